//! What it means that a call of a guest failed: something in the sandbox's files, the machine's disk, or the end of the
//! sandbox, and by whom.

use std::time::Duration;

use berth_sandbox::DiskFull;
use berth_sandbox::guest;
use berth_types::error::Kind;
use berth_types::sandbox::{ReasonCode, SandboxState};
use berth_wire::message::FailureCode;

use crate::registry::Entry;
use crate::{Error, Node, files};

/// Longest that a failure is held up to learn whether the disk is lost, or full.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

impl Node {
    /// What a failed call of the guest means: something in the sandbox's files, or the end of the sandbox.
    pub(crate) async fn guest_error(&self, sandbox: &str, source: guest::Error) -> Error {
        // Nothing is wrong with the sandbox then.
        if let guest::Error::Archive { source, .. } = source {
            return Error::Body(source);
        }
        let refusal = source.refusal();
        // The sandbox's files failed: the disk below may have.
        let suspect = refusal.is_none_or(|failure| failure.code == FailureCode::Io);
        let lost = suspect && self.disk_is_lost().await;
        if let Some(error) = files::refusal(&source).filter(|_| !lost) {
            let no_space = refusal.is_some_and(|failure| failure.code == FailureCode::NoSpace);
            let machines = no_space && self.disk_full_of(sandbox).await == Some(DiskFull::Machine);
            return if machines { of_machine(error) } else { error };
        }
        match self.end_of(sandbox).await {
            Some((Some(code), reason)) if is_on_purpose(code) => {
                Error::CutOff { id: sandbox.to_owned(), code, reason }
            }
            None if matches!(source, guest::Error::Gone) && self.runs(sandbox) => {
                Error::Cut { id: sandbox.to_owned() }
            }
            end => Error::Guest { reason: end.map(|(_, reason)| reason), source: Box::new(source) },
        }
    }

    fn runs(&self, sandbox: &str) -> bool {
        let entry = self.0.sandboxes.find(sandbox);
        entry.is_ok_and(|entry| entry.sandbox().state == SandboxState::Running)
    }

    async fn disk_full_of(&self, sandbox: &str) -> Option<DiskFull> {
        let live = self.0.sandboxes.find(sandbox).ok()?.live?;
        let full = tokio::time::timeout(HEALTH_LIMIT, live.machine.disk_full()).await.ok()?;
        if full == Some(DiskFull::Machine) && live.met.add_machine_disk_full() {
            tracing::warn!(id = sandbox, "files could not be written while the machine's disk was full");
        }
        full
    }

    /// Whether the disk is found to be lost now. One that does not answer may only be slow.
    pub(crate) async fn disk_is_lost(&self) -> bool {
        match tokio::time::timeout(HEALTH_LIMIT, self.check_disk()).await {
            Ok(checked) => checked.is_err(),
            Err(_) => false,
        }
    }

    /// What is known of a sandbox's end. The stream closes a moment before the kernel reports the death.
    async fn end_of(&self, sandbox: &str) -> Option<(Option<ReasonCode>, String)> {
        for _ in 0..20 {
            match self.0.sandboxes.find(sandbox) {
                Ok(Entry { row, .. }) if row.sandbox.reason.is_some() => {
                    return row.sandbox.reason.map(|reason| (row.sandbox.reason_code, reason));
                }
                Ok(entry) if entry.live.is_some() => tokio::time::sleep(Duration::from_millis(10)).await,
                Ok(_) => return None,
                Err(_) => return Some((Some(ReasonCode::Deleted), "it was deleted".to_owned())),
            }
        }
        None
    }
}

/// What the sandbox's files had no room for, the machine had none for: not the sandbox's fault.
fn of_machine(error: Error) -> Error {
    match error {
        Error::InSandbox { message, .. } => Error::InSandbox {
            code: "disk_full",
            kind: Kind::Capacity,
            message: format!("{message} (the machine's disk is full)"),
        },
        other => other,
    }
}

/// Whether a sandbox that ended so was ended by somebody.
fn is_on_purpose(code: ReasonCode) -> bool {
    matches!(code, ReasonCode::Ttl | ReasonCode::Deleted | ReasonCode::LeaseEnded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn files_that_the_machine_has_no_room_for_are_its_fault() {
        let world = crate::fake::World::new().await;
        let made = world.create(|_| ()).await.unwrap();
        let machine = world.controls.machine(&made.id);
        let told = async |full| {
            *machine.disk_full.lock().unwrap() = full;
            let failure = berth_wire::Failure {
                code: FailureCode::NoSpace,
                message: "write: no space left".into(),
                path: Some("/a".into()),
            };
            let error = world.node.guest_error(&made.id, guest::Error::Refused(failure)).await;
            berth_types::error::ApiError::from(&error).code
        };
        assert_eq!(told(Some(DiskFull::Limit)).await, "sandbox_disk_full");
        assert_eq!(told(None).await, "sandbox_disk_full");
        assert_eq!(told(Some(DiskFull::Machine)).await, "disk_full");
    }
}
