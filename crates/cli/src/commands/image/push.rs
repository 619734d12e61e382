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
    /// A reference of the local store, registry/name:tag unless --to says where it goes
    reference: String,
    /// Where to push it, registry/name:tag
    #[arg(long, value_name = "REFERENCE")]
    to: Option<String>,
    /// The build cache too, for those who pull it with --cache
    #[arg(long)]
    cache: bool,
    #[command(flatten)]
    credentials: Credentials,
}

impl Push {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut view = ProgressView::new(&session.output, &format!("pushing {}", self.reference));
        let request = PushImage {
            reference: self.reference,
            auth: self.credentials.read()?,
            to: self.to,
            cache: self.cache,
        };
        let image = session.client().await?.push_image(&request, |step| view.show(&step)).await;
        drop(view);
        super::print(session, &image?)
    }
}
