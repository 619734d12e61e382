//! `berth image export IMAGE… -o FILE`.

use std::path::{Path, PathBuf};

use berth_types::image::{ArchiveFormat, ExportImages};
use clap::{Args, ValueEnum};
use tokio::io::{AsyncRead, AsyncWriteExt as _};

use crate::Session;
use crate::failure::Failure;

/// Arguments of `berth image export`.
#[derive(Debug, Args)]
pub struct Export {
    /// References or ids
    #[arg(required_unless_present = "cache")]
    images: Vec<String>,
    /// The archive to write; - for stdout
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "oci-archive")]
    format: Format,
    /// The build cache too, so that another machine builds from there
    #[arg(long)]
    cache: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A tar of an OCI image layout
    OciArchive,
    /// What docker load reads
    DockerArchive,
}

impl From<Format> for ArchiveFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::OciArchive => ArchiveFormat::OciArchive,
            Format::DockerArchive => ArchiveFormat::DockerArchive,
        }
    }
}

impl Export {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let request =
            ExportImages { images: self.images, format: Some(self.format.into()), cache: self.cache };
        let archive = session.client().await?.export_images(&request).await?;
        match self.output.as_path() {
            path if path == Path::new("-") => copy(archive, tokio::io::stdout(), Failure::Output).await,
            path => write(archive, path).await,
        }
    }
}

/// The file is there, or replaced, only when it is whole.
async fn write(archive: impl AsyncRead + Unpin, path: &Path) -> Result<(), Failure> {
    let failed = |source| Failure::Write { path: path.to_owned(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let partial = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    let file = tokio::fs::File::from_std(partial.reopen().map_err(failed)?);
    copy(archive, file, failed).await?;
    partial.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

async fn copy(
    mut archive: impl AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    failed: impl Fn(std::io::Error) -> Failure,
) -> Result<(), Failure> {
    // An archive that breaks off is an error of the reader's.
    tokio::io::copy(&mut archive, &mut to).await.map_err(&failed)?;
    to.flush().await.map_err(failed)
}
