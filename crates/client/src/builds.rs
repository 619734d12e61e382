//! Builds: by what the context holds first, and with the context itself only where the daemon needs it.

use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_types::files::TAR_TYPE;
use berth_types::image::{BUILD_OPTIONS, BuildImage, BuildResult, ReplayResult, Secret};
use berth_types::progress::Progress;
use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt, once};
use http::Method;
use serde::de::DeserializeOwned;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use crate::archive::{self, manifest_of, pack_dir};
use crate::sandboxes::sandbox_path;
use crate::transport::Call;
use crate::{Client, Error};

/// How often a context that changes while it is sent is tried.
const ATTEMPTS: usize = 2;

/// Size of the pieces in which a context is sent.
const PIECE: usize = 256 * 1024;

/// Name of the Dockerfile where a request has none.
const DOCKERFILE: &str = "Dockerfile";

/// Bytes as a secret of a build.
pub fn secret(bytes: &[u8]) -> Secret {
    Secret(STANDARD.encode(bytes))
}

/// A route that takes build options and a context.
struct Route<'a> {
    path: String,
    operation: String,
    request: &'a BuildImage,
}

impl Route<'_> {
    /// The call with the request's options, and after them the context.
    fn call(
        &self,
        request: &BuildImage,
        context: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<Call, Error> {
        let options = serde_json::to_vec(request)
            .map_err(|source| Error::Encode { operation: self.operation.clone(), source })?;
        let length = options.len();
        let body = once(std::future::ready(Ok(Bytes::from(options)))).chain(context);
        let call = Call::new(Method::POST, self.path.clone(), self.operation.clone());
        Ok(call.header(BUILD_OPTIONS, length.into()).upload_pieces(TAR_TYPE, body))
    }
}

impl Client {
    /// Builds an image of a directory. The daemon is asked by what the directory holds; the context is sent only where
    /// nothing that it built before is the same. Dropping the future ends the build, unless others wait for it.
    ///
    /// # Errors
    /// [`Error::Archive`] for a directory that cannot be read, [`Error::Api`] for everything that the build meets;
    /// `context_changed` where the directory changes all the time.
    pub async fn build_dir(
        &self,
        request: &BuildImage,
        dir: &Path,
        on_progress: impl FnMut(Progress),
    ) -> Result<BuildResult, Error> {
        self.send_dir(&build_route(request), dir, on_progress).await
    }

    /// Builds an image; `context` is a tar of the build context ([`crate::archive::pack_dir`]).
    pub async fn build_image(
        &self,
        request: &BuildImage,
        context: impl AsyncRead + Send + 'static,
        on_progress: impl FnMut(Progress),
    ) -> Result<BuildResult, Error> {
        let context = ReaderStream::with_capacity(Box::pin(context), PIECE);
        self.follow(build_route(request).call(request, context)?, on_progress).await
    }

    /// The image that the Dockerfile of a directory builds on, pulled where it is missing: what a sandbox is made from for
    /// [`Client::replay_dir`].
    pub async fn base_of_dir(
        &self,
        request: &BuildImage,
        dir: &Path,
        on_progress: impl FnMut(Progress),
    ) -> Result<BuildResult, Error> {
        let route = Route {
            path: "/v1/images/build?base=true".to_owned(),
            operation: "look up the base image of a build".to_owned(),
            request,
        };
        self.send_dir(&route, dir, on_progress).await
    }

    /// Carries out the steps of a directory's Dockerfile in a running sandbox, which was made from its base image.
    ///
    /// # Errors
    /// As [`Client::build_dir`]; what was done of it stays in the sandbox.
    pub async fn replay_dir(
        &self,
        sandbox: &str,
        request: &BuildImage,
        dir: &Path,
        on_progress: impl FnMut(Progress),
    ) -> Result<ReplayResult, Error> {
        let route = Route {
            path: sandbox_path(sandbox, "/replay"),
            operation: format!("replay a Dockerfile in sandbox {sandbox}"),
            request,
        };
        // The files are needed in any case.
        self.follow(route.call(request, pack_dir(dir))?, on_progress).await
    }

    async fn send_dir<T: DeserializeOwned>(
        &self,
        route: &Route<'_>,
        dir: &Path,
        mut on_progress: impl FnMut(Progress),
    ) -> Result<T, Error> {
        let mut attempt = 1;
        loop {
            let Some(manifest) = manifest(route, dir).await? else {
                return self.follow(route.call(route.request, pack_dir(dir))?, on_progress).await;
            };
            let request = BuildImage { manifest: Some(manifest), ..route.request.clone() };
            let nothing = futures_util::stream::empty();
            match self.follow(route.call(&request, nothing)?, &mut on_progress).await {
                Err(error) if has_code(&error, "context_needed") => {}
                answer => return answer,
            }
            match self.follow(route.call(&request, pack_dir(dir))?, &mut on_progress).await {
                Err(error) if has_code(&error, "context_changed") && attempt < ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }
}

fn build_route(request: &BuildImage) -> Route<'_> {
    let operation = match request.tags.first() {
        Some(tag) => format!("build {tag}"),
        None => "build an image".to_owned(),
    };
    Route { path: "/v1/images/build".to_owned(), operation, request }
}

fn has_code(error: &Error, code: &str) -> bool {
    error.api().is_some_and(|api| api.code == code)
}

async fn manifest(
    route: &Route<'_>,
    dir: &Path,
) -> Result<Option<berth_types::image::ContextManifest>, Error> {
    let dockerfile = route.request.dockerfile.clone().unwrap_or_else(|| DOCKERFILE.to_owned());
    let dir = dir.to_owned();
    let read = tokio::task::spawn_blocking(move || manifest_of(&dir, &dockerfile)).await;
    let failed = |source| Error::Archive { operation: route.operation.clone(), source };
    read.map_err(|source| failed(archive::Error::CutOff { source }))?
        .map_err(|source| failed(archive::Error::ReadContext { source }))
}
