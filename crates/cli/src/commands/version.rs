//! `berth version`.

use berth_client::{Client, VERSION};
use berth_types::system::Version;
use serde::Serialize;

use crate::Session;
use crate::failure::Failure;

/// What `berth version --json` prints.
#[derive(Debug, Serialize)]
struct Versions {
    /// This program's.
    client: &'static str,
    /// The daemon's; absent when none runs.
    daemon: Option<Version>,
}

/// Prints both versions. A daemon that does not run is not started for this.
pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let options = session.start_options()?;
    let daemon = match Client::new(options.host.clone()).version().await {
        Ok(version) => Some(version),
        Err(berth_client::Error::Connect { .. }) if !options.host_is_given => None,
        Err(error) => return Err(error.into()),
    };
    session.output.result(&Versions { client: VERSION, daemon }, |versions| {
        let daemon = match &versions.daemon {
            Some(daemon) => {
                format!("{} (API {}, pid {}, {})", daemon.version, daemon.api, daemon.pid, options.host)
            }
            None => "not running".to_owned(),
        };
        format!("berth  {}\ndaemon {daemon}", versions.client)
    })
}
