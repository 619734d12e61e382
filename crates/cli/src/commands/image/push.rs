//! `berth image push REFERENCE`.

use berth_types::image::PushImage;
use clap::Args;

use super::credentials::Credentials;
use crate::Session;
use crate::failure::Failure;
use crate::progress::ProgressView;

/// Arguments of `berth image push`.
#[derive(Debug, Args)]
pub struct Push {
    /// registry/name:tag, a reference of the local store
    reference: String,
    #[command(flatten)]
    credentials: Credentials,
}

impl Push {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut view = ProgressView::new(&session.output, &format!("pushing {}", self.reference));
        let request =
            PushImage { reference: self.reference, auth: self.credentials.read()?, to: None, cache: false };
        let image = session.client().await?.push_image(&request, |step| view.show(&step)).await;
        drop(view);
        super::print(session, &image?)
    }
}
