//! `berth image import FILE`.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use berth_types::image::{ArchiveFormat, ImportImage};
use clap::{Args, ValueEnum};
use tokio::io::AsyncRead;

use crate::Session;
use crate::failure::Failure;
use crate::progress::ProgressView;

/// Arguments of `berth image import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The archive, plain, gzip or zstd; - for stdin
    file: PathBuf,
    /// Reference to give the image; needed unless the archive names one
    #[arg(long, short = 't', visible_alias = "tag")]
    reference: Option<String>,
    /// What the archive is; told from its content by default
    #[arg(long, value_enum)]
    format: Option<Format>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// What docker save writes
    DockerArchive,
    /// A tar of an OCI image layout
    OciArchive,
    /// A tar of a plain root file system
    Rootfs,
}

impl From<Format> for ArchiveFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::DockerArchive => ArchiveFormat::DockerArchive,
            Format::OciArchive => ArchiveFormat::OciArchive,
            Format::Rootfs => ArchiveFormat::Rootfs,
        }
    }
}

impl Import {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let archive = open(&self.file).await?;
        let mut view = ProgressView::new(&session.output, &format!("importing {}", self.file.display()));
        let request = ImportImage { reference: self.reference, format: self.format.map(Into::into) };
        let image = session.client().await?.import_image(&request, archive, |step| view.show(&step)).await;
        drop(view);
        super::print(session, &image?)
    }
}

async fn open(file: &Path) -> Result<Pin<Box<dyn AsyncRead + Send>>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::pin(tokio::io::stdin()));
    }
    match tokio::fs::File::open(file).await {
        Ok(file) => Ok(Box::pin(file)),
        Err(source) => Err(Failure::Read { path: file.to_owned(), source }),
    }
}
