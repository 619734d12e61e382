//! The limits that a command met, in words for a person.

use berth_types::exec::{ExecStatus, ExitReason, Limit};
use berth_types::sandbox::Resources;

/// What a command met, in one line, with the limits in force as far as they are known;
/// `None` where it met nothing.
pub fn met(status: &ExecStatus, resources: Option<&Resources>) -> Option<String> {
    let was_killed = status.reason == ExitReason::OutOfMemory;
    let mut limits = status.limits_hit.clone();
    if was_killed {
        limits.push(Limit::Memory);
    }
    limits.sort_unstable();
    limits.dedup();
    let parts = limits.into_iter().map(|limit| match limit {
        Limit::Memory => memory(status, resources),
        Limit::Pids => match resources.and_then(|resources| resources.pids) {
            Some(pids) => format!("the sandbox's limit of {pids} processes was met"),
            None => "no more processes could be started".to_owned(),
        },
        Limit::Disk => disk(resources),
    });
    let text = parts.collect::<Vec<_>>().join("; ");
    (!text.is_empty()).then_some(text)
}

fn memory(status: &ExecStatus, resources: Option<&Resources>) -> String {
    let cause = match resources.map(|resources| resources.memory_mb) {
        Some(Some(mb)) => format!("the sandbox's memory limit of {mb} MB was met"),
        None => "the sandbox's memory limit was met".to_owned(),
        // Then it was the machine's own, or that of something that the daemon is in.
        Some(None) => "the machine had no memory left (the sandbox has no limit)".to_owned(),
    };
    match (status.reason, status.oom_kills.unwrap_or(0)) {
        (ExitReason::OutOfMemory, _) => format!("the command was killed: {cause}"),
        (_, 0) => cause,
        (_, 1) => format!("{cause} and a process was killed"),
        (_, kills) => format!("{cause} and {kills} processes were killed"),
    }
}

fn disk(resources: Option<&Resources>) -> String {
    let Some(resources) = resources else { return "the sandbox's disk was full".to_owned() };
    let bytes = resources.storage_mb.map(|mb| format!("{mb} MB"));
    let files = resources.storage_inodes.map(|files| format!("{files} files"));
    let limits: Vec<String> = bytes.into_iter().chain(files).collect();
    match limits.as_slice() {
        [] => "the sandbox's disk was full".to_owned(),
        limits => format!("the sandbox's disk was full at its limit of {}", limits.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named_with_their_numbers() {
        let all = Resources {
            memory_mb: Some(128),
            pids: Some(64),
            storage_mb: Some(20),
            storage_inodes: Some(1000),
            ..Resources::default()
        };
        let status = |reason, limits: &[Limit], kills| ExecStatus {
            limits_hit: limits.to_vec(),
            oom_kills: Some(kills),
            ..ExecStatus::new(1, reason)
        };
        let text =
            |status: &ExecStatus, resources: &Resources| met(status, Some(resources)).unwrap_or_default();
        let killed = status(ExitReason::OutOfMemory, &[Limit::Memory], 1);
        let all_of_them = status(ExitReason::Exited, &[Limit::Disk, Limit::Pids, Limit::Memory], 3);
        let lines = [
            text(&killed, &all),
            text(&killed, &Resources::default()),
            text(&all_of_them, &all),
            text(&all_of_them, &Resources { storage_inodes: None, ..all.clone() }),
            text(&all_of_them, &Resources::default()),
            met(&all_of_them, None).unwrap_or_default(),
            text(&status(ExitReason::Exited, &[], 0), &all),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r"
        the command was killed: the sandbox's memory limit of 128 MB was met
        the command was killed: the machine had no memory left (the sandbox has no limit)
        the sandbox's memory limit of 128 MB was met and 3 processes were killed; the sandbox's limit of 64 processes was met; the sandbox's disk was full at its limit of 20 MB or 1000 files
        the sandbox's memory limit of 128 MB was met and 3 processes were killed; the sandbox's limit of 64 processes was met; the sandbox's disk was full at its limit of 20 MB
        the machine had no memory left (the sandbox has no limit) and 3 processes were killed; no more processes could be started; the sandbox's disk was full
        the sandbox's memory limit was met and 3 processes were killed; no more processes could be started; the sandbox's disk was full
        ");
    }
}
