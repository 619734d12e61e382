//! What a call on [`crate::Images`] can fail with, and whose fault each failure is.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_types::error::Kind;

use crate::bootstrap::BootstrapError;
use crate::cache::CacheError;
use crate::config::ConfigError;
use crate::export::ExportError;
use crate::import::ImportError;
use crate::ingest::IngestError;
use crate::layer::pack::PackError;
use crate::original::OriginalError;
use crate::pull::PullError;
use crate::push::PushError;
use crate::reference::ReferenceError;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The configuration of registries is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A registry did not do it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What the registry has cannot be used.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A layer could not be brought in.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// A layer could not be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// An archive cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Images cannot be exported.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A build cache cannot be taken.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An image cannot be made from a Debian mirror.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// An image cannot be pushed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// A layer's tar cannot be given as it came.
    #[error(transparent)]
    Original(#[from] OriginalError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system of the store is full; nothing half is left in it.
    #[error("no space left in the image store {path}")]
    DiskFull {
        /// Root of the store.
        path: PathBuf,
        /// What was being done.
        #[source]
        source: Box<Error>,
    },
    /// The same pull, asked for by others too, failed for all of them.
    #[error(transparent)]
    Shared(Arc<Error>),
    /// The process is shutting down.
    #[error("the work was cut off by a shutdown")]
    ShuttingDown,
}

impl Error {
    /// The same error, or [`Error::DiskFull`] when that is what lies at its bottom.
    pub(crate) fn at(self, root: &Path) -> Self {
        match self {
            full @ Self::DiskFull { .. } => full,
            error if is_disk_full(&error) => {
                Self::DiskFull { path: root.to_owned(), source: Box::new(error) }
            }
            error => error,
        }
    }

    /// The error itself, where it is one that others share.
    pub fn root(&self) -> &Error {
        match self {
            Self::Shared(error) => error.root(),
            error => error,
        }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        self.facts().1
    }

    /// Stable name for programs.
    pub fn code(&self) -> &'static str {
        self.facts().0
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Shared(error) => error.hint(),
            Self::DiskFull { .. } => Some("free space, or remove images with `berth image rm`".into()),
            Self::Registry(error) => registry_hint(error).map(str::to_owned),
            Self::Config(ConfigError::CredentialHelper { .. }) => {
                Some("put user and password under [registry.auth] in the configuration".into())
            }
            Self::Original(OriginalError::NotKept { .. }) => {
                Some("remove the images that have this layer, and pull or import them again".into())
            }
            Self::Bootstrap(error) => error.hint(),
            Self::Import(ImportError::NoReference { .. }) => Some("give the image a reference".into()),
            _ => None,
        }
    }

    fn facts(&self) -> (&'static str, Kind) {
        match self {
            Self::Reference(_) => ("bad_reference", Kind::User),
            Self::Shared(error) => error.facts(),
            Self::Config(
                ConfigError::DockerConfig { .. }
                | ConfigError::DockerConfigForm { .. }
                | ConfigError::CredentialHelper { .. },
            ) => ("registry_credentials", Kind::Config),
            Self::Config(_) => ("bad_registry_config", Kind::Config),
            Self::Registry(error) => registry_facts(error),
            Self::Pull(PullError::NotLocal { .. }) => ("image_not_found", Kind::NotFound),
            Self::Pull(PullError::Platform(_)) => ("wrong_platform", Kind::User),
            Self::Pull(_) => ("bad_image", Kind::User),
            Self::Ingest(IngestError::Store(error)) | Self::Store(error) => store_facts(error),
            Self::Ingest(IngestError::Survey { .. } | IngestError::Split { .. }) => {
                ("image_store", Kind::Internal)
            }
            Self::Ingest(_) => ("bad_layer", Kind::User),
            Self::Pack(PackError::Inexpressible { .. }) => ("layer_inexpressible", Kind::User),
            Self::Pack(PackError::TooLarge { .. }) => ("layer_too_large", Kind::User),
            Self::Pack(PackError::GivenUp { .. }) => ("shutting_down", Kind::Unavailable),
            Self::Pack(_) => ("layer_not_packed", Kind::Internal),
            Self::Import(error) => error.facts(),
            Self::Bootstrap(error) => error.facts(),
            Self::Original(error) => error.facts(),
            Self::Export(error) => error.facts(),
            Self::Cache(error) => error.facts(),
            Self::Push(_) => ("push_failed", Kind::Unavailable),
            Self::DiskFull { .. } => ("disk_full", Kind::Capacity),
            Self::ShuttingDown => ("shutting_down", Kind::Unavailable),
        }
    }
}

fn registry_hint(error: &RegistryError) -> Option<&'static str> {
    match error {
        RegistryError::Unauthorised { user: None, .. } => {
            Some("give credentials under [registry.auth] in the configuration, or log in with `docker login`")
        }
        RegistryError::Unauthorised { .. } | RegistryError::Forbidden { .. } => {
            Some("the user's rights are the registry's to give; other credentials go under [registry.auth]")
        }
        RegistryError::RateLimited { .. } => Some(
            "registries allow more to users who log in; a mirror under [registry.mirrors] asks only once",
        ),
        RegistryError::Tls { .. } => Some(
            "an authority of your own goes into [registry] ca_bundle; a registry whose certificate is not to be checked \
             into `unverified`, one on plain HTTP into `insecure`",
        ),
        RegistryError::Unreachable { .. } => Some(
            "a mirror can be set under [registry.mirrors]; without any registry, see `berth image bootstrap`",
        ),
        _ => None,
    }
}

fn registry_facts(error: &RegistryError) -> (&'static str, Kind) {
    match error {
        RegistryError::NotFound { .. } => ("image_not_found", Kind::NotFound),
        RegistryError::Unauthorised { .. } => ("registry_unauthorised", Kind::User),
        RegistryError::Forbidden { .. } => ("registry_forbidden", Kind::User),
        RegistryError::RateLimited { .. } => ("registry_rate_limited", Kind::Unavailable),
        RegistryError::Tls { .. } => ("registry_tls", Kind::Config),
        RegistryError::Missing { .. } => ("registry_incomplete", Kind::Unavailable),
        RegistryError::SizeMismatch { .. } => ("size_mismatch", Kind::Unavailable),
        RegistryError::Unreachable { .. } => ("registry_unreachable", Kind::Unavailable),
        RegistryError::DigestMismatch { .. } => ("digest_mismatch", Kind::Unavailable),
        // Whatever it was: that no other place had it is no fault of the image's.
        RegistryError::Lied { source, .. } => (registry_facts(source).0, Kind::Unavailable),
        RegistryError::MediaType { .. }
        | RegistryError::NotAnImage { .. }
        | RegistryError::Manifest { .. }
        | RegistryError::Digest { .. }
        | RegistryError::TooLarge { .. } => ("bad_image", Kind::User),
        RegistryError::Keep { .. } => ("image_store", Kind::Internal),
        RegistryError::Push { .. } => ("push_failed", Kind::Unavailable),
    }
}

pub(crate) fn store_facts(error: &StoreError) -> (&'static str, Kind) {
    match error {
        StoreError::NoImage { .. } => ("image_not_found", Kind::NotFound),
        StoreError::NoLayer { .. } => ("layer_not_found", Kind::NotFound),
        StoreError::Ambiguous { .. } => ("ambiguous_image", Kind::User),
        StoreError::Config { .. } | StoreError::NotAConfig => ("bad_image", Kind::User),
        StoreError::Pinned { .. } => ("image_in_use", Kind::Conflict),
        StoreError::Locked { .. } => ("image_store_locked", Kind::Config),
        StoreError::Format { .. } => ("image_store_format", Kind::Config),
        _ => ("image_store", Kind::Internal),
    }
}

/// Whether a full disk or quota is among the causes.
fn is_disk_full(error: &Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        cause = current.source();
    }
    false
}
