//! `berth sandbox rm SANDBOX…`.

use clap::Args;

use super::ls;
use crate::Session;
use crate::arguments::key_value;
use crate::commands::removal::Removal;
use crate::failure::Failure;

/// Arguments of `berth sandbox rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Ids or names
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    sandboxes: Vec<String>,
    /// All sandboxes, or all with the given labels
    #[arg(long)]
    all: bool,
    /// With --all: only those with this label; may be repeated
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = key_value, requires = "all")]
    labels: Vec<(String, String)>,
    /// With --all: do not ask
    #[arg(long, short)]
    yes: bool,
}

impl Rm {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        let names = if self.all {
            let found = ls::all(&client, self.labels).await?;
            if !found.is_empty() {
                session.output.confirm(&format!("remove {} sandboxes?", found.len()), self.yes)?;
            }
            found.into_iter().map(|sandbox| sandbox.id).collect()
        } else {
            self.sandboxes
        };
        let mut removal = Removal::new(session);
        for name in names {
            removal.note(&name, client.delete_sandbox(&name).await)?;
        }
        removal.finish()
    }
}
