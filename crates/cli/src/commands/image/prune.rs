//! `berth image prune`.

use berth_types::image::PruneImages;
use clap::Args;

use crate::Session;
use crate::arguments::{bytes, duration};
use crate::failure::Failure;
use crate::output::size;
use crate::progress::ProgressView;

/// Arguments of `berth image prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Images that nothing uses too, not only layers that no image names
    #[arg(long, short)]
    all: bool,
    /// Only what was not used for so long: 90s, 30m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    unused_for: Option<u64>,
    /// Only as much, what was not used for longest first, as brings the store down to so much: 500M, 20G
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    keep: Option<u64>,
    /// The contents of cache mounts too
    #[arg(long)]
    cache_mounts: bool,
    /// Only say what would go
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

impl Prune {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        if self.all && !self.dry_run {
            session.output.confirm("Remove every image that nothing uses?", self.yes)?;
        }
        let request = PruneImages {
            all: self.all,
            unused_for_seconds: self.unused_for,
            keep_bytes: self.keep,
            cache_mounts: self.cache_mounts,
            dry_run: self.dry_run,
        };
        let client = session.client().await?;
        let mut view = ProgressView::new(&session.output, "pruning images");
        let report = client.prune_images(&request, |step| view.show(&step)).await;
        drop(view);
        let would = if self.dry_run { "would free" } else { "freed" };
        session.output.result(&report?, |report| {
            let kinds =
                [("image", &report.images), ("layer", &report.layers), ("cache", &report.cache_mounts)];
            let names =
                kinds.iter().flat_map(|(kind, ids)| ids.iter().map(move |id| format!("{kind} {id}\n")));
            let names: String = names.collect();
            format!("{names}{would} {}, {} left", size(report.freed_bytes), size(report.left_bytes))
        })
    }
}
