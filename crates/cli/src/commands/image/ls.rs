//! `berth image ls`.

use berth_types::image::Image;
use berth_types::sandbox::Page;
use jiff::Timestamp;

use crate::Session;
use crate::failure::Failure;
use crate::output::{age, short_digest, size, table};

/// Lists all images.
pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let items = session.client().await?.images().await?;
    session.output.result(&Page { items, next: None }, |page| render(&page.items, Timestamp::now()))
}

fn render(images: &[Image], now: Timestamp) -> String {
    let rows = images.iter().flat_map(|image| {
        let names = if image.references.is_empty() { vec!["-".to_owned()] } else { image.references.clone() };
        names.into_iter().map(move |name| {
            vec![
                name,
                short_digest(&image.id).to_owned(),
                image.created.as_deref().map_or_else(|| "-".to_owned(), |created| age(created, now)),
                image.layers.to_string(),
                size(image.size_bytes),
            ]
        })
    });
    table(&["REFERENCE", "ID", "AGE", "LAYERS", "SIZE"], rows)
}

#[cfg(test)]
mod tests {
    use berth_types::image::ImageConfig;

    use super::*;

    #[test]
    fn each_reference_has_its_line() {
        let image = |references: &[&str], created: Option<&str>| Image {
            id: "sha256:0123456789abcdef".into(),
            references: references.iter().map(|name| (*name).to_owned()).collect(),
            size_bytes: 216_006_656,
            layers: 3,
            platform: "linux/amd64".into(),
            created: created.map(str::to_owned),
            config: ImageConfig::default(),
        };
        let images =
            [image(&["a:1", "docker.io/library/b:2"], Some("2025-12-31T00:00:00Z")), image(&[], None)];
        insta::assert_snapshot!(render(&images, "2026-01-01T00:00:00Z".parse().unwrap()), @r"
        REFERENCE              ID            AGE  LAYERS  SIZE
        a:1                    0123456789ab  1 d  3       206 MiB
        docker.io/library/b:2  0123456789ab  1 d  3       206 MiB
        -                      0123456789ab  -    3       206 MiB
        ");
    }
}
