//! `berth image bootstrap debian:SUITE`.

use berth_types::image::BootstrapImage;
use clap::Args;

use crate::Session;
use crate::failure::Failure;
use crate::progress::ProgressView;

/// Arguments of `berth image bootstrap`.
#[derive(Debug, Args)]
pub struct Bootstrap {
    /// debian:SUITE, for example debian:bookworm; also the image's reference
    reference: String,
    /// Mirror to use; the one of the daemon's machine by default
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Further package to install; may be repeated
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
}

impl Bootstrap {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut view = ProgressView::new(&session.output, &format!("bootstrapping {}", self.reference));
        let request =
            BootstrapImage { reference: self.reference, mirror: self.mirror, packages: self.packages };
        let image = session.client().await?.bootstrap_image(&request, |step| view.show(&step)).await;
        drop(view);
        super::print(session, &image?)
    }
}
