//! `berth image rm REFERENCE…`.

use clap::Args;

use crate::Session;
use crate::commands::removal::Removal;
use crate::failure::Failure;

/// Arguments of `berth image rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// References or ids
    #[arg(required = true)]
    images: Vec<String>,
}

impl Rm {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        let mut removal = Removal::new(session);
        for image in self.images {
            removal.note(&image, client.remove_image(&image).await)?;
        }
        removal.finish()
    }
}
