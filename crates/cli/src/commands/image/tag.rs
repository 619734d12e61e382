//! `berth image tag IMAGE REFERENCE`.

use berth_types::image::TagImage;
use clap::Args;

use crate::Session;
use crate::failure::Failure;

/// Arguments of `berth image tag`.
#[derive(Debug, Args)]
pub struct Tag {
    /// Reference or id of an image
    image: String,
    /// Reference to point at it as well
    reference: String,
}

impl Tag {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let request = TagImage { image: self.image, reference: self.reference };
        super::print(session, &session.client().await?.tag_image(&request).await?)
    }
}
