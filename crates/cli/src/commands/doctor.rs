//! `berth doctor`.

use std::process::ExitCode;

use berth_client::Client;
use berth_types::error::Kind;
use berth_types::system::{CheckStatus, DoctorReport};

use crate::Session;
use crate::failure::Failure;

/// Prints the daemon's checks of its machine. Where no daemon runs, checks this one, and starts a daemon for the rest
/// (network, disk) unless that could not run anyway.
pub(super) async fn run(session: &Session) -> Result<ExitCode, Failure> {
    let options = session.start_options()?;
    let report = match Client::new(options.host).doctor().await {
        Ok(report) => report,
        Err(berth_client::Error::Connect { .. }) if !options.host_is_given => check_here(session).await?,
        Err(error) => return Err(error.into()),
    };
    session.output.result(&report, render)?;
    Ok(if is_fit(&report) { ExitCode::SUCCESS } else { ExitCode::from(Kind::Config.exit_code()) })
}

async fn check_here(session: &Session) -> Result<DoctorReport, Failure> {
    let local = tokio::task::spawn_blocking(session.context.local_doctor).await.map_err(Failure::Doctor)?;
    if is_fit(&local) {
        return Ok(session.client().await?.doctor().await?);
    }
    session.output.note("no daemon can run here, so network and disk were not looked at");
    Ok(local)
}

fn is_fit(report: &DoctorReport) -> bool {
    report.checks.iter().all(|check| check.status != CheckStatus::Fail)
}

fn render(report: &DoctorReport) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for check in &report.checks {
        let status = match check.status {
            CheckStatus::Ok => "ok  ",
            CheckStatus::Warn => "warn",
            CheckStatus::Fail => "FAIL",
        };
        lines.push(format!("{status}  {:width$}  {}", check.name, check.found));
        lines.extend(check.hint.iter().map(|hint| format!("      {:width$}  hint: {hint}", "")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use berth_types::system::Check;

    use super::*;

    #[test]
    fn checks_are_lined_up_with_their_hints() {
        let check = |name: &str, status, found: &str, hint: Option<&str>| Check {
            name: name.into(),
            status,
            found: found.into(),
            hint: hint.map(str::to_owned),
        };
        let report = DoctorReport {
            checks: vec![
                check("kernel", CheckStatus::Ok, "6.1", None),
                check("cgroups", CheckStatus::Warn, "v1", Some("boot with v2")),
                check("root", CheckStatus::Fail, "uid 1000", Some("use sudo")),
            ],
        };
        insta::assert_snapshot!(render(&report), @r"
        ok    kernel   6.1
        warn  cgroups  v1
                       hint: boot with v2
        FAIL  root     uid 1000
                       hint: use sudo
        ");
    }
}
