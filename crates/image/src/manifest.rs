//! Manifests and indexes, as registries and archives hold them, and the choice of one for this machine.

use serde::Deserialize;

use crate::image::Platform;

/// A part that a manifest names.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    /// In bytes.
    pub(crate) size: u64,
}

/// One image of an index.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Entry {
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: Option<u64>,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// An image, or a choice of images.
#[derive(Debug)]
pub(crate) enum Manifest {
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
    Index(Vec<Entry>),
    /// Neither, with the type it gives itself.
    Other(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Any {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Entry>>,
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, serde_json::Error> {
    let any: Any = serde_json::from_slice(bytes)?;
    Ok(match any {
        Any { schema_version: Some(2), config: Some(config), layers: Some(layers), .. } => {
            Manifest::Image { config, layers }
        }
        Any { schema_version: Some(2), manifests: Some(manifests), .. } => Manifest::Index(manifests),
        Any { media_type: Some(media_type), .. } => Manifest::Other(media_type),
        Any { schema_version, .. } => Manifest::Other(match schema_version {
            Some(version) => format!("none given (schema version {version})"),
            None => "none given".to_owned(),
        }),
    })
}

/// No image of an index is for this machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name} has no image for {wanted}; there is {}", if available.is_empty() { "none at all".to_owned() } else { available.join(", ") })]
pub struct NoPlatform {
    /// The image or archive.
    pub name: String,
    /// This machine's platform.
    pub wanted: String,
    /// What there is.
    pub available: Vec<String>,
}

/// The entry for `host`: the first of its platform, or the only one when it names no platform.
pub(crate) fn choose<'a>(name: &str, entries: &'a [Entry], host: &Platform) -> Result<&'a Entry, NoPlatform> {
    let fits = |entry: &&Entry| entry.platform.as_ref().is_some_and(|p| host.runs(p));
    // The first of the most general ones: a variant may need more than this machine has.
    if let Some(entry) = entries.iter().filter(fits).min_by_key(|entry| speciality(entry.platform.as_ref())) {
        return Ok(entry);
    }
    if let [entry @ Entry { platform: None, .. }] = entries {
        return Ok(entry);
    }
    let mut available: Vec<String> =
        entries.iter().filter_map(|e| e.platform.as_ref().map(Platform::to_string)).collect();
    // Attestations go as images of an unknown platform.
    available.retain(|platform| platform != "unknown/unknown");
    available.sort();
    available.dedup();
    Err(NoPlatform { name: name.to_owned(), wanted: host.to_string(), available })
}

/// How much a variant asks of a machine beyond its architecture.
fn speciality(platform: Option<&Platform>) -> u32 {
    let Some(platform) = platform else { return 0 };
    let variant = platform.variant.as_deref().unwrap_or_default();
    match (platform.architecture.as_str(), variant) {
        (_, "") | ("amd64", "v1") | ("arm64", "v8") => 0,
        // Every 32-bit ARM that runs Berth is of version 7.
        ("arm", "v7") => 0,
        ("arm", "v6") => 1,
        ("arm", "v5") => 2,
        (_, variant) => 10 + variant.trim_start_matches('v').parse::<u32>().unwrap_or(99).min(99),
    }
}

/// Whether a config is one of an image. Some registries give them no type, or a general one.
pub(crate) fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
            | "application/json"
            | "text/plain"
    )
}

/// Whether a layer is one that registries may not hold, only name.
pub(crate) fn is_foreign_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

/// Whether a layer's media type is one that can be unpacked. What it says of compression is not relied upon.
pub(crate) fn is_layer_type(media_type: &str) -> bool {
    let plain = media_type.split('+').next().unwrap_or_default();
    matches!(
        plain,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
    ) && !media_type.contains("encrypted")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: Option<&str>) -> Entry {
        let platform = platform.map(|p| {
            let (os, architecture) = p.split_once('/').unwrap();
            Platform { os: os.into(), architecture: architecture.into(), variant: None }
        });
        Entry { digest: format!("{platform:?}"), platform, annotations: None, size: None }
    }

    #[test]
    fn chooses_this_machine_or_lists_the_others() {
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let entries =
            [entry(Some("linux/arm64")), entry(Some("linux/amd64")), entry(Some("unknown/unknown"))];
        assert_eq!(choose("x", &entries, &host).unwrap().digest, entries[1].digest);
        let error = choose("x", &[entries[0].clone(), entries[2].clone()], &host).unwrap_err();
        assert_eq!(error.to_string(), "x has no image for linux/amd64; there is linux/arm64");
        assert!(choose("x", &[entry(None)], &host).is_ok());
        assert!(choose("x", &[entry(None), entry(None)], &host).is_err());
    }

    #[test]
    fn tells_manifests_apart() {
        let image = br#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"d","size":1},"layers":[]}"#;
        assert!(matches!(parse(image).unwrap(), Manifest::Image { .. }));
        assert!(matches!(parse(br#"{"schemaVersion":2,"manifests":[]}"#).unwrap(), Manifest::Index(_)));
        assert!(matches!(parse(br#"{"schemaVersion":1,"fsLayers":[]}"#).unwrap(), Manifest::Other(_)));
        assert!(parse(b"[]").is_err());
    }

    #[test]
    fn layer_types() {
        assert!(is_layer_type("application/vnd.oci.image.layer.v1.tar+zstd"));
        assert!(is_layer_type("application/vnd.docker.image.rootfs.diff.tar.gzip"));
        assert!(!is_layer_type("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"));
        assert!(!is_layer_type("application/vnd.oci.image.layer.nondistributable.v1.tar"));
        assert!(!is_layer_type("application/vnd.cncf.helm.chart.content.v1.tar+gzip"));
    }
}
