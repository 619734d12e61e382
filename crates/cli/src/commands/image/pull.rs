//! `berth image pull REFERENCE`.

use berth_types::image::{PullImage, PullPolicy};
use clap::{Args, ValueEnum};

use super::credentials::Credentials;
use crate::Session;
use crate::failure::Failure;
use crate::progress::ProgressView;

/// Arguments of `berth image pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// [registry/]name[:tag][@digest]
    reference: String,
    /// When to ask the registry
    #[arg(long, value_enum, default_value_t = Policy::Always)]
    policy: Policy,
    /// The build cache that was pushed with it, too
    #[arg(long)]
    cache: bool,
    #[command(flatten)]
    credentials: Credentials,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// Only when the store has no such image
    Missing,
    /// Always
    Always,
}

impl From<Policy> for PullPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Missing => PullPolicy::Missing,
            Policy::Always => PullPolicy::Always,
        }
    }
}

impl Pull {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut view = ProgressView::new(&session.output, &format!("pulling {}", self.reference));
        let request = PullImage {
            reference: self.reference,
            policy: self.policy.into(),
            auth: self.credentials.read()?,
            cache: self.cache,
        };
        let image = session.client().await?.pull_image(&request, |step| view.show(&step)).await;
        drop(view);
        super::print(session, &image?)
    }
}
