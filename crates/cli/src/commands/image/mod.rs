//! `berth image …`.

mod bootstrap;
mod build;
mod credentials;
mod export;
mod import;
mod ls;
mod prune;
mod pull;
mod push;
mod rm;
mod tag;
mod verify;

use berth_types::image::Image;
use clap::Subcommand;

use crate::Session;
use crate::failure::Failure;

/// Commands on images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Get an image from a registry
    Pull(pull::Pull),
    /// Make an image of an archive: docker save, OCI layout or a root file system
    Import(import::Import),
    /// Make a base image from a Debian mirror, without a registry
    Bootstrap(bootstrap::Bootstrap),
    /// Build an image of a Dockerfile
    Build(build::Build),
    /// Send an image to a registry
    Push(push::Push),
    /// Write images, or the build cache, to an archive
    Export(export::Export),
    /// Give an image another name
    Tag(tag::Tag),
    /// List images
    Ls,
    /// Remove images
    Rm(rm::Rm),
    /// Remove what nothing uses
    Prune(prune::Prune),
    /// Look whether the store holds what it should
    Verify(verify::Verify),
}

impl ImageCommand {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            ImageCommand::Pull(command) => command.run(session).await,
            ImageCommand::Import(command) => command.run(session).await,
            ImageCommand::Bootstrap(command) => command.run(session).await,
            ImageCommand::Build(command) => command.run(session).await,
            ImageCommand::Push(command) => command.run(session).await,
            ImageCommand::Ls => ls::run(session).await,
            ImageCommand::Rm(command) => command.run(session).await,
            ImageCommand::Export(command) => command.run(session).await,
            ImageCommand::Tag(command) => command.run(session).await,
            ImageCommand::Prune(command) => command.run(session).await,
            ImageCommand::Verify(command) => command.run(session).await,
        }
    }
}

/// What is printed of an image that was got: its id.
fn print(session: &Session, image: &Image) -> Result<(), Failure> {
    session.output.result(image, |image| image.id.clone())
}
