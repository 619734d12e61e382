//! `berth image verify`.

use berth_types::image::VerifyImages;
use clap::Args;

use crate::Session;
use crate::failure::Failure;
use crate::output::size;
use crate::progress::ProgressView;

/// Arguments of `berth image verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Read every byte and compare it with the layers' digests
    #[arg(long)]
    deep: bool,
}

impl Verify {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        let mut view = ProgressView::new(&session.output, "verifying images");
        let report = client.verify_images(&VerifyImages { deep: self.deep }, |step| view.show(&step)).await;
        drop(view);
        let report = report?;
        for layer in &report.unverifiable {
            session.output.note(&format!("layer {layer} cannot be compared with its digest"));
        }
        for problem in &report.problems {
            session.output.warning(problem);
        }
        session.output.result(&report, |report| {
            format!("{} images, {} layers, {}", report.images, report.layers, size(report.bytes))
        })?;
        match report.problems.len() {
            0 => Ok(()),
            problems => Err(Failure::BadStore { problems }),
        }
    }
}
