//! `berth doctor`.

use std::process::ExitCode;

use berth_client::Client;
use berth_types::error::Kind;
use berth_types::system::{CheckStatus, DoctorReport};

use crate::Session;
use crate::failure::Failure;

/// Prints the daemon's checks of its machine; where no daemon runs, checks this one.
pub(super) async fn run(session: &Session) -> Result<ExitCode, Failure> {
    let options = session.start_options()?;
    let report = match Client::new(options.host).doctor().await {
        Ok(report) => report,
        Err(berth_client::Error::Connect { .. }) if !options.host_is_given => {
            session.output.note("no daemon runs: checking this machine directly");
            tokio::task::spawn_blocking(session.context.local_doctor).await.map_err(Failure::Doctor)?
        }
        Err(error) => return Err(error.into()),
    };
    session.output.result(&report, render)?;
    let is_fit = report.checks.iter().all(|check| check.status != CheckStatus::Fail);
    Ok(if is_fit { ExitCode::SUCCESS } else { ExitCode::from(Kind::Config.exit_code()) })
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
