//! Images: list, look at, remove, the ways to get one, and what is done with the store as a whole.

use berth_types::image::{
    BootstrapImage, ExportImages, Image, ImportImage, ImportResult, PruneImages, PruneReport, PullImage,
    PushImage, TagImage, VerifyImages, VerifyReport,
};
use berth_types::progress::Progress;
use berth_types::sandbox::Page;
use http::Method;
use tokio::io::AsyncRead;

use crate::files::ArchiveStream;
use crate::transport::{Call, encode};
use crate::{Client, Error};

impl Client {
    /// All images of the store.
    pub async fn images(&self) -> Result<Vec<Image>, Error> {
        let mut images = Vec::new();
        let mut path = "/v1/images".to_owned();
        loop {
            let page: Page<Image> = self.call(Call::new(Method::GET, path, "list images")).await?;
            images.extend(page.items);
            match page.next {
                Some(next) => path = format!("/v1/images?after={}", encode(&next)),
                None => return Ok(images),
            }
        }
    }

    /// One image, by reference or id.
    pub async fn image(&self, reference: &str) -> Result<Image, Error> {
        self.call(Call::new(Method::GET, image_path(reference), format!("look up image {reference}"))).await
    }

    /// Removes a reference, and the image with its last one; by id, the image with all of its references.
    pub async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        self.call_empty(Call::new(Method::DELETE, image_path(reference), format!("remove image {reference}")))
            .await
    }

    /// Gets an image from a registry.
    pub async fn pull_image(
        &self,
        request: &PullImage,
        on_progress: impl FnMut(Progress),
    ) -> Result<Image, Error> {
        let operation = format!("pull {}", request.reference);
        self.follow(Call::new(Method::POST, "/v1/images/pull", operation).json(request)?, on_progress).await
    }

    /// Sends an image of the store to a registry.
    pub async fn push_image(
        &self,
        request: &PushImage,
        on_progress: impl FnMut(Progress),
    ) -> Result<Image, Error> {
        let operation = format!("push {}", request.reference);
        self.follow(Call::new(Method::POST, "/v1/images/push", operation).json(request)?, on_progress).await
    }

    /// Makes images of an archive, and gives the first of them.
    pub async fn import_image(
        &self,
        request: &ImportImage,
        archive: impl AsyncRead + Send + 'static,
        on_progress: impl FnMut(Progress),
    ) -> Result<Image, Error> {
        Ok(self.import_images(request, archive, on_progress).await?.image)
    }

    /// Makes images of an archive.
    pub async fn import_images(
        &self,
        request: &ImportImage,
        archive: impl AsyncRead + Send + 'static,
        on_progress: impl FnMut(Progress),
    ) -> Result<ImportResult, Error> {
        let operation = match &request.reference {
            Some(reference) => format!("import {reference}"),
            None => "import an image".to_owned(),
        };
        let call = Call::new(Method::POST, import_path(request), operation);
        self.follow(call.upload("application/octet-stream", archive), on_progress).await
    }

    /// Makes a base image from a Debian mirror.
    pub async fn bootstrap_image(
        &self,
        request: &BootstrapImage,
        on_progress: impl FnMut(Progress),
    ) -> Result<Image, Error> {
        let operation = format!("bootstrap {}", request.reference);
        self.follow(Call::new(Method::POST, "/v1/images/bootstrap", operation).json(request)?, on_progress)
            .await
    }

    /// Points another reference at an image of the store.
    pub async fn tag_image(&self, request: &TagImage) -> Result<Image, Error> {
        let operation = format!("tag {} as {}", request.image, request.reference);
        self.call(Call::new(Method::POST, "/v1/images/tag", operation).json(request)?).await
    }

    /// Removes what nobody uses, as `request` says.
    pub async fn prune_images(
        &self,
        request: &PruneImages,
        on_progress: impl FnMut(Progress),
    ) -> Result<PruneReport, Error> {
        self.follow(Call::new(Method::POST, "/v1/images/prune", "prune images").json(request)?, on_progress)
            .await
    }

    /// Compares the store with what it should hold; what is wrong is in the report.
    pub async fn verify_images(
        &self,
        request: &VerifyImages,
        on_progress: impl FnMut(Progress),
    ) -> Result<VerifyReport, Error> {
        self.follow(Call::new(Method::POST, "/v1/images/verify", "verify images").json(request)?, on_progress)
            .await
    }

    /// An archive of images, to be read to its end. Reading fails where it breaks off, so what was read without an error is
    /// whole.
    pub async fn export_images(&self, request: &ExportImages) -> Result<ArchiveStream, Error> {
        let operation = format!("export {}", request.images.join(", "));
        let call = Call::new(Method::POST, "/v1/images/export", operation).json(request)?.with_trailers();
        ArchiveStream::of(self.send(call).await?)
    }
}

fn image_path(reference: &str) -> String {
    format!("/v1/images/{}", encode(reference))
}

fn import_path(request: &ImportImage) -> String {
    let reference = request.reference.as_ref().map(|reference| format!("reference={}", encode(reference)));
    let format = request.format.map(|format| {
        use berth_types::image::ArchiveFormat::{DockerArchive, OciArchive, Rootfs};
        match format {
            DockerArchive => "format=docker-archive".to_owned(),
            OciArchive => "format=oci-archive".to_owned(),
            Rootfs => "format=rootfs".to_owned(),
        }
    });
    let query: Vec<String> = reference.into_iter().chain(format).collect();
    if query.is_empty() {
        "/v1/images/import".to_owned()
    } else {
        format!("/v1/images/import?{}", query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use berth_types::image::ArchiveFormat;

    use super::*;

    #[test]
    fn references_are_one_segment() {
        assert_eq!(
            image_path("docker.io/library/a:b@sha256:c"),
            "/v1/images/docker.io%2Flibrary%2Fa%3Ab%40sha256%3Ac"
        );
    }

    #[test]
    fn an_import_spells_its_format_as_the_api_does() {
        for format in [ArchiveFormat::DockerArchive, ArchiveFormat::OciArchive, ArchiveFormat::Rootfs] {
            let name = serde_json::to_value(format).unwrap();
            let request = ImportImage { reference: Some("a:b".into()), format: Some(format) };
            let expected = format!("/v1/images/import?reference=a%3Ab&format={}", name.as_str().unwrap());
            assert_eq!(import_path(&request), expected);
        }
        assert_eq!(import_path(&ImportImage { reference: None, format: None }), "/v1/images/import");
    }
}
