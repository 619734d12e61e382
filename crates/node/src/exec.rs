//! Commands in a sandbox.

use std::time::Duration;

use berth_sandbox::DiskFull;
use berth_sandbox::guest::{self, ExecSpec};
use berth_types::error::Kind;
use berth_types::exec::{ExecRequest, ExecStatus, ExitReason, OutputStream};
use berth_types::sandbox::{Limit, ReasonCode};
use berth_wire::message::FailureCode;
use bytes::Bytes;
use uuid::Uuid;

use crate::registry::{Entry, Live};
use crate::{Error, Node, files};

/// Longest id of an exec.
const MAX_ID: usize = 64;

/// Longest that the end of a command which failed is held up to learn whether its disk was full. It takes less than one
/// millisecond where nothing else is wrong.
const DISK_LIMIT: Duration = Duration::from_millis(20);

/// The same for whether the disk is lost; it matters more.
const HEALTH_LIMIT: Duration = Duration::from_secs(1);

/// Something that an exec did.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// The command runs.
    Started {
        /// The exec's id.
        id: String,
        /// Path of its program.
        program: String,
    },
    /// Bytes of its stdout.
    Stdout(Bytes),
    /// Bytes of its stderr.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exited(ExecStatus),
}

/// A command under way. Dropping it before its end kills everything that it started.
pub struct Exec {
    node: Node,
    sandbox: String,
    id: String,
    live: Live,
    inner: guest::Exec,
}

impl Node {
    /// Runs a command in a sandbox.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::SandboxNotRunning`], [`Error::BadRequest`]. A command that cannot be started is
    /// no error: it exits, with a reason.
    pub async fn exec(&self, sandbox: &str, request: ExecRequest) -> Result<Exec, Error> {
        let (sandbox, record, live) = self.live(sandbox)?;
        let id = match request.id {
            Some(id) => check_id(id)?,
            None => Uuid::now_v7().simple().to_string(),
        };
        let mut env = (*live.env).clone();
        env.extend(request.env);
        let spec = ExecSpec {
            env,
            cwd: request.cwd.unwrap_or(record.workdir),
            user: Some(request.user.unwrap_or(record.user)).filter(|user| !user.is_empty()),
            timeout: timeout(request.timeout_seconds)?,
            no_new_privileges: live.no_new_privileges,
            ..ExecSpec::new(id.clone(), request.command)
        };
        let inner = match live.machine.guest().exec(spec).await {
            Ok(inner) => inner,
            Err(source) => return Err(self.guest_error(&sandbox, source).await),
        };
        Ok(Exec { node: self.clone(), sandbox, id, live, inner })
    }

    /// Kills a running exec with everything it started.
    ///
    /// # Errors
    /// [`Error::ExecNotFound`] when none of that id is running.
    pub async fn kill_exec(&self, sandbox: &str, exec: &str) -> Result<(), Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        match live.machine.guest().kill(exec).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::ExecNotFound { sandbox, exec: exec.to_owned() }),
            Err(source) => Err(self.guest_error(&sandbox, source).await),
        }
    }

    /// What a failed call of the guest means: something in the sandbox's files, or the end of the sandbox.
    pub(crate) async fn guest_error(&self, sandbox: &str, source: guest::Error) -> Error {
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
            end => Error::Guest { reason: end.map(|(_, reason)| reason), source: Box::new(source) },
        }
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
    async fn disk_is_lost(&self) -> bool {
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

impl Exec {
    /// What happened next; after [`ExecOutput::Exited`] and after an error there is nothing more to ask for.
    ///
    /// # Errors
    /// [`Error::CutOff`], [`Error::Guest`]: the sandbox was ended, or died. How the command ended is not known.
    pub async fn next(&mut self) -> Result<ExecOutput, Error> {
        match self.inner.next().await {
            Some(Ok(guest::ExecOutput::Started { program, .. })) => {
                Ok(ExecOutput::Started { id: self.id.clone(), program })
            }
            Some(Ok(guest::ExecOutput::Output { stream: OutputStream::Stdout, data, .. })) => {
                Ok(ExecOutput::Stdout(data))
            }
            Some(Ok(guest::ExecOutput::Output { stream: OutputStream::Stderr, data, .. })) => {
                Ok(ExecOutput::Stderr(data))
            }
            // The one reader was there from the start and follows.
            Some(Ok(guest::ExecOutput::Gap { .. } | guest::ExecOutput::Detached)) => {
                Err(self.node.guest_error(&self.sandbox, guest::Error::Answer { request: "exec" }).await)
            }
            Some(Ok(guest::ExecOutput::Exited(status))) => {
                // What a command says that could not read its files is no result.
                if status.exit_code != 0 && self.node.disk_is_lost().await {
                    return Err(self.node.guest_error(&self.sandbox, guest::Error::Gone).await);
                }
                Ok(ExecOutput::Exited(with_limits(&self.sandbox, &self.live, status).await))
            }
            Some(Err(source)) => Err(self.node.guest_error(&self.sandbox, source).await),
            None => Err(self.node.guest_error(&self.sandbox, guest::Error::Gone).await),
        }
    }
}

/// With the limits that only the machine knows of, and notes for the sandbox which ones were met.
async fn with_limits(sandbox: &str, live: &Live, mut status: ExecStatus) -> ExecStatus {
    if status.reason == ExitReason::OutOfMemory {
        status.met(Limit::Memory);
    }
    // A command that has succeeded is not to wait for the answer.
    if status.exit_code != 0 && status.reason != ExitReason::NotStarted {
        match tokio::time::timeout(DISK_LIMIT, live.machine.disk_full()).await {
            Ok(Some(DiskFull::Limit)) => status.met(Limit::Disk),
            Ok(Some(DiskFull::Machine)) => {
                status.machine_disk_full = true;
                if live.met.add_machine_disk_full() {
                    tracing::warn!(id = sandbox, "a command failed while the machine's disk was full");
                }
            }
            Ok(None) => {}
            Err(_) => tracing::debug!("whether a command's disk was full could not be told in time"),
        }
    }
    live.met.add(&status.limits_hit);
    status
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

fn check_id(id: String) -> Result<String, Error> {
    let fits = (1..=MAX_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if fits {
        return Ok(id);
    }
    Err(Error::BadRequest { field: "id", problem: format!("{id:?} is not 1 to {MAX_ID} of [A-Za-z0-9_-]") })
}

fn timeout(seconds: Option<f64>) -> Result<Option<Duration>, Error> {
    match seconds {
        None => Ok(None),
        Some(0.0) => Ok(None),
        Some(seconds) => Duration::try_from_secs_f64(seconds).map(Some).map_err(|error| Error::BadRequest {
            field: "timeout_seconds",
            problem: format!("{seconds}: {error}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_command_met_is_the_sandboxes_too() {
        let world = crate::fake::World::new().await;
        let made = world.create(|_| ()).await.unwrap();
        let (_, _, live) = world.node.live(&made.id).unwrap();
        let disk_full = |is| *world.controls.machine(&made.id).disk_full.lock().unwrap() = is;
        let end = |code, reason| with_limits(&made.id, &live, ExecStatus::new(code, reason));
        disk_full(Some(DiskFull::Limit));
        assert_eq!(end(0, ExitReason::Exited).await.limits_hit, []);
        assert_eq!(end(127, ExitReason::NotStarted).await.limits_hit, []);
        assert_eq!(end(1, ExitReason::Exited).await.limits_hit, [Limit::Disk]);
        disk_full(None);
        assert_eq!(end(1, ExitReason::Exited).await.limits_hit, []);
        assert_eq!(end(137, ExitReason::OutOfMemory).await.limits_hit, [Limit::Memory]);
        let mut forked = ExecStatus::new(0, ExitReason::Exited);
        forked.met(Limit::Pids);
        assert_eq!(with_limits(&made.id, &live, forked).await.limits_hit, [Limit::Pids]);
        let shown = world.node.sandbox(&made.id).await.unwrap().usage.unwrap();
        assert_eq!(shown.limits_hit, [Limit::Memory, Limit::Pids, Limit::Disk]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_machine_is_not_the_sandboxes_limit() {
        let world = crate::fake::World::new().await;
        let made = world.create(|_| ()).await.unwrap();
        let (_, _, live) = world.node.live(&made.id).unwrap();
        let machine = world.controls.machine(&made.id);
        let end = |code| with_limits(&made.id, &live, ExecStatus::new(code, ExitReason::Exited));
        *machine.disk_full.lock().unwrap() = Some(DiskFull::Machine);
        assert!(!end(0).await.machine_disk_full);
        assert!(!world.node.sandbox(&made.id).await.unwrap().usage.unwrap().machine_disk_full);
        let failed = end(1).await;
        assert!(failed.machine_disk_full);
        assert_eq!(failed.limits_hit, []);
        *machine.disk_full.lock().unwrap() = None;
        assert!(!end(1).await.machine_disk_full);
        // What failed meanwhile stays in doubt.
        let usage = world.node.sandbox(&made.id).await.unwrap().usage.unwrap();
        assert!(usage.machine_disk_full);
        assert_eq!(usage.limits_hit, []);
    }

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

    #[test]
    fn timeouts() {
        assert_eq!(timeout(None).unwrap(), None);
        assert_eq!(timeout(Some(0.0)).unwrap(), None);
        assert_eq!(timeout(Some(0.5)).unwrap(), Some(Duration::from_millis(500)));
        assert!(timeout(Some(-1.0)).is_err());
        assert!(timeout(Some(f64::NAN)).is_err());
    }

    #[test]
    fn ids() {
        assert!(check_id("a-b_1".into()).is_ok());
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(check_id(bad.into()).is_err(), "{bad:?}");
        }
    }
}
