//! Whether this machine is fit, for people.

use std::sync::Arc;

use berth_disk::{Choice, Engine};
use berth_jail::doctor::{Finding, State};
use berth_net::Network;
use berth_types::error::ApiError;
use berth_types::system::{Check, CheckStatus, DoctorReport};

use crate::Node;

/// What only a running node knows.
pub(crate) struct Facts {
    network: Vec<Check>,
    /// None on a machine that is made up.
    disk: Option<(Arc<dyn Engine>, Choice)>,
}

impl Facts {
    /// Of a machine that is made up.
    #[cfg(test)]
    pub(crate) fn none() -> Facts {
        Facts { network: Vec::new(), disk: None }
    }

    pub(crate) fn of(network: &Network, disk: Arc<dyn Engine>, choice: Choice) -> Facts {
        Facts { network: network_checks(network), disk: Some((disk, choice)) }
    }
}

impl Node {
    /// Every check, in a fixed order.
    pub async fn doctor(&self) -> DoctorReport {
        let mut report = local_doctor();
        let driver = self.0.driver.clone();
        match tokio::task::spawn_blocking(move || driver.doctor()).await {
            Ok(findings) => report.checks.extend(findings.into_iter().map(show)),
            Err(error) => tracing::warn!(%error, "what the driver finds of the machine is not known"),
        }
        report.checks.extend(self.0.facts.network.iter().cloned());
        report.checks.push(self.disk_check().await);
        report
    }

    /// As the disk is now: a pool grows, and may be lost.
    async fn disk_check(&self) -> Check {
        if let Err(error) = self.check_disk().await {
            return Check {
                name: "disk".to_owned(),
                status: CheckStatus::Fail,
                found: crate::error::chain(&error),
                hint: ApiError::from(&error).hint,
            };
        }
        match &self.0.facts.disk {
            Some((disk, choice)) => disk_check(disk.as_ref(), choice),
            None => Check {
                name: "disk".to_owned(),
                status: CheckStatus::Ok,
                found: "made up".to_owned(),
                hint: None,
            },
        }
    }
}

/// The checks that need no daemon.
pub fn local_doctor() -> DoctorReport {
    DoctorReport { checks: berth_jail::doctor().into_iter().map(show).collect() }
}

fn show(finding: Finding) -> Check {
    let status = match finding.state {
        State::Ok => CheckStatus::Ok,
        State::Warn => CheckStatus::Warn,
        State::Fail => CheckStatus::Fail,
    };
    Check { name: finding.name.to_owned(), status, found: finding.found, hint: finding.hint }
}

fn network_checks(network: &Network) -> Vec<Check> {
    let check = |status, found: String, hint: Option<&str>| Check {
        name: "network".to_owned(),
        status,
        found,
        hint: hint.map(str::to_owned),
    };
    let public = match network.public() {
        Ok(range) => check(CheckStatus::Ok, format!("public sandboxes have addresses in {range}"), None),
        Err(refusal) => check(
            CheckStatus::Warn,
            format!("only no-network sandboxes can run: {}", crate::error::chain(refusal.as_ref())),
            refusal.hint().as_deref(),
        ),
    };
    let warnings = network.warnings().iter().map(|warning| check(CheckStatus::Warn, warning.clone(), None));
    std::iter::once(public).chain(warnings).collect()
}

fn disk_check(disk: &dyn Engine, choice: &Choice) -> Check {
    let limits = disk.enforces_storage();
    let rejected: Vec<String> =
        choice.rejected.iter().map(|other| format!("{}: {}", other.engine, other.reason)).collect();
    let others =
        if rejected.is_empty() { String::new() } else { format!(" (not {})", rejected.join("; not ")) };
    Check {
        name: "disk".to_owned(),
        status: if limits { CheckStatus::Ok } else { CheckStatus::Warn },
        found: format!("{}; taken because {}{others}", disk.describe(), choice.why),
        hint: (!limits)
            .then(|| "a sandbox that asks for storage_mb is refused, unless it or [limits] allow_unenforced_storage allows that".to_owned()),
    }
}
