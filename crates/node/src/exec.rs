//! Commands in a sandbox.
//!
//! The guest is the one authority on execs: it starts each id once, keeps its output and its end. What is added here is
//! what only the machine knows of an end ([`memory`]), limits of time for a guest that says nothing ([`crate::patience`]),
//! and the words of the API.

mod control;
mod input;
mod memory;
mod request;

use std::time::Duration;

use berth_sandbox::DiskFull;
use berth_sandbox::guest::{self, ExecInput};
use berth_types::exec::{
    ExecInfo, ExecOffsets, ExecRequest, ExecStatus, ExitReason, OnDisconnect, OutputStream,
};
use berth_types::sandbox::Limit;
use berth_wire::WINDOW;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use crate::patience::START;
use crate::registry::Live;
use crate::{Error, Node};

pub(crate) use memory::Execs;

use memory::Facts;

/// Longest that the end of a command which failed is held up to learn whether its disk was full. It takes less than one
/// millisecond where nothing else is wrong.
const DISK_LIMIT: Duration = Duration::from_millis(20);

/// How long after a command's end, in milliseconds, the machine is still taken for what it was at its end.
const RECENT: i64 = 5_000;

/// How long after its limit of time, and the grace to end in, a command's end is waited for.
const OVERTIME: Duration = Duration::from_millis(berth_wire::DEFAULT_GRACE_MS + 20_000);

/// Something that an exec did.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// The command runs, or has run. Comes first, unless it could not be started.
    Started {
        /// The exec's id.
        id: String,
        /// Path of its program.
        program: String,
        /// Whether it had been started before this was asked for.
        attached: bool,
        /// How many bytes of input it has been given.
        stdin_offset: u64,
    },
    /// Bytes that it wrote.
    Output {
        /// To which of its outputs.
        stream: OutputStream,
        /// Where in that they begin, in bytes.
        offset: u64,
        /// When it wrote them, in microseconds since the epoch.
        time_us: u64,
        /// They.
        data: Bytes,
    },
    /// Output that was asked for is not kept any more.
    Gap {
        /// Of which output.
        stream: OutputStream,
        /// Where the missing bytes begin.
        from: u64,
        /// Where output goes on.
        to: u64,
    },
    /// It ended; nothing follows.
    Exited(ExecStatus),
    /// It runs on, and all that it has written was sent; nothing follows. Only without [`AttachSpec::follow`].
    Detached,
}

/// How to attach to an exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachSpec {
    /// From where on its output is wanted.
    pub from: ExecOffsets,
    /// Whether its input comes from here from now on: [`Exec::input`].
    pub stdin: bool,
    /// Whether to stay until it has ended.
    pub follow: bool,
}

/// A command that one is attached to. Dropping it before its end detaches: the command runs on or is killed, as its
/// request's `on_disconnect` says.
pub struct Exec {
    node: Node,
    sandbox: String,
    id: String,
    live: Live,
    inner: guest::Exec,
    /// What was waited for at the start.
    first: Option<guest::ExecOutput>,
    input: Option<ExecInput>,
    /// When it must have ended; `None` without a limit of time, or where that is not known here.
    deadline: Option<Instant>,
    /// Whether it had ended before: what the machine is like now says nothing of its end then.
    is_old: bool,
}

impl Node {
    /// Runs a command in a sandbox, once: where one of that id was started by the same request before, it is attached
    /// to.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::SandboxNotRunning`], [`Error::BadRequest`], [`Error::Unresponsive`];
    /// [`Error::SandboxInUse`] while a Dockerfile is replayed in it; a conflict
    /// when the id is that of another request. A command that cannot be started is no error: it exits, with a reason.
    pub async fn exec(&self, sandbox: &str, request: ExecRequest) -> Result<Exec, Error> {
        let (sandbox, record, live) = self.live(sandbox)?;
        let id = match &request.id {
            Some(id) => request::check_id(id.clone())?,
            None => Uuid::now_v7().simple().to_string(),
        };
        let defaults = request::Defaults {
            env: (*live.env).clone(),
            cwd: record.workdir,
            user: record.user,
            no_new_privileges: live.no_new_privileges,
        };
        let request::Asked { spec, input: data } = request::ask(id.clone(), request, defaults)?;
        let deadline =
            spec.timeout.and_then(|limit| Instant::now().checked_add(limit.checked_add(OVERTIME)?));
        let on_detach = spec.on_detach;
        let (fingerprint, from) = (spec.fingerprint.clone(), spec.from);
        let (inner, first) = if live.execs.is_known(&id, fingerprint.as_deref()) {
            // The guest takes the input from whoever gives it when the request is repeated, and there is no need for that.
            let spec = guest::AttachSpec { id: id.clone(), from, stdin: false, follow: true };
            self.start_exec(&sandbox, &id, live.guest().await.attach(spec)).await?
        } else {
            let _starting = self.0.replays.start(&sandbox)?;
            self.start_exec(&sandbox, &id, live.guest().await.exec(spec)).await?
        };
        live.execs.is_of(&id, fingerprint);
        let attached = matches!(&first, guest::ExecOutput::Started { attached: true, .. });
        if !attached {
            live.execs.started(&id, deadline);
        }
        // A repeated request is no reason to take the input from whoever gives it.
        let mut input = inner.input().filter(|_| !attached);
        if let Some(data) = data {
            self.give(&sandbox, &id, input.take(), data, attached, on_detach).await;
        }
        let is_old = attached && self.is_old(&sandbox, &live, &id).await?;
        let deadline = live.execs.deadline(&id);
        Ok(Exec { node: self.clone(), sandbox, id, live, inner, first: Some(first), input, deadline, is_old })
    }

    /// As [`Node::exec`], and returns what there is to tell of it as soon as it runs.
    ///
    /// # Errors
    /// As [`Node::exec`].
    pub async fn exec_detached(&self, sandbox: &str, request: ExecRequest) -> Result<ExecInfo, Error> {
        if request.on_disconnect == OnDisconnect::Kill {
            let problem = "with detach there is nobody whose going away could kill it".to_owned();
            return Err(Error::BadRequest { field: "on_disconnect", problem });
        }
        // What is sent to who is attached counts as read, and may be dropped: nobody reads here.
        let exec = self.exec(sandbox, ExecRequest { from: input::NO_OUTPUT, ..request }).await?;
        let (sandbox, live, id) = (exec.sandbox.clone(), exec.live.clone(), exec.id.clone());
        // Nobody is attached to it from here on, and so it is told.
        drop(exec);
        self.find_exec(&sandbox, &live, &id).await
    }

    /// Attaches to a command that was started before, whether it runs or has ended.
    ///
    /// # Errors
    /// [`Error::ExecNotFound`], [`Error::NoStdin`]; as [`Node::execs`].
    pub async fn attach_exec(&self, sandbox: &str, exec: &str, spec: AttachSpec) -> Result<Exec, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let id = exec.to_owned();
        let AttachSpec { from, stdin, follow } = spec;
        if stdin && !follow {
            let problem = "who gives it its input has to stay until it has ended".to_owned();
            return Err(Error::BadRequest { field: "follow", problem });
        }
        let is_old = self.is_old(&sandbox, &live, exec).await?;
        let spec = guest::AttachSpec { id: id.clone(), from, stdin, follow };
        let guest = live.guest().await;
        let call = guest.attach(spec);
        let (inner, first) = match self.start_exec(&sandbox, exec, call).await {
            Err(Error::InSandbox { code: "bad_request", .. }) if stdin => {
                return Err(Error::NoStdin { exec: id });
            }
            other => other?,
        };
        if stdin {
            live.execs.take_input(exec);
        }
        let (input, deadline) = (inner.input(), live.execs.deadline(exec));
        Ok(Exec { node: self.clone(), sandbox, id, live, inner, first: Some(first), input, deadline, is_old })
    }

    /// Whether an exec ended so long ago that what the machine is like now says nothing of its end.
    async fn is_old(&self, sandbox: &str, live: &Live, exec: &str) -> Result<bool, Error> {
        let info = self.find_exec(sandbox, live, exec).await?;
        Ok(info.status.is_some_and(|status| is_long_ago(&info.started_at, status.duration_ms)))
    }

    /// Waits for the guest's first word on an exec.
    async fn start_exec(
        &self,
        sandbox: &str,
        exec: &str,
        call: impl Future<Output = Result<guest::Exec, guest::Error>>,
    ) -> Result<(guest::Exec, guest::ExecOutput), Error> {
        let call = async {
            let mut exec = call.await?;
            let first = exec.next().await.unwrap_or(Err(guest::Error::Gone))?;
            Ok((exec, first))
        };
        match self.ask_of(sandbox, exec, START, call).await {
            Err(Error::Unresponsive { id, seconds, .. }) => {
                Err(Error::Unresponsive { id, seconds, starting: Some(exec.to_owned()) })
            }
            other => other,
        }
    }

    /// Gives a command the input that came with its request. What fits into the window is on its way at once; the rest
    /// must not depend on whether the one who asked stays.
    async fn give(
        &self,
        sandbox: &str,
        exec: &str,
        input: Option<ExecInput>,
        data: Vec<u8>,
        attached: bool,
        on_detach: OnDisconnect,
    ) {
        match input.filter(|_| !attached) {
            Some(input) if data.len() <= WINDOW as usize => {
                // Only a command that is over takes nothing.
                let _ = input.write(&data).await;
                input.end();
            }
            Some(input) if on_detach == OnDisconnect::Kill => {
                tokio::spawn(async move {
                    if input.write(&data).await.is_ok() {
                        input.end();
                    }
                });
            }
            _ => {
                let (node, sandbox, exec) = (self.clone(), sandbox.to_owned(), exec.to_owned());
                tokio::spawn(async move { node.feed(&sandbox, &exec, data).await });
            }
        }
    }
}

impl Exec {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What writes to its standard input, where that is streamed and comes from here.
    pub fn input(&self) -> Option<ExecInput> {
        self.input.clone()
    }

    /// Waits until somebody else gives it its input: what is written to [`Exec::input`] goes nowhere then.
    pub fn input_taken(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut taken = self.live.execs.input_taken(&self.id);
        async move {
            if taken.changed().await.is_err() {
                // It is forgotten: nobody can take it any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What happened next; after [`ExecOutput::Exited`], [`ExecOutput::Detached`] and an error there is nothing more to
    /// ask for. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`Error::CutOff`], [`Error::Guest`]: the sandbox was ended, or died. [`Error::Unresponsive`] when a limit of time is
    /// over and the sandbox tells no end. How the command ended is not known then.
    pub async fn next(&mut self) -> Result<ExecOutput, Error> {
        let output = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => self.wait().await?,
        };
        match output {
            Some(Ok(output)) => self.told(output).await,
            Some(Err(source)) => Err(self.node.guest_error(&self.sandbox, source).await),
            None => Err(self.node.guest_error(&self.sandbox, guest::Error::Gone).await),
        }
    }

    /// Waits for the guest, where there is a limit of time not longer than that and [`OVERTIME`]; but one who has read
    /// slowly gets what there is.
    async fn wait(&mut self) -> Result<Option<Result<guest::ExecOutput, guest::Error>>, Error> {
        let Some(deadline) = self.deadline else { return Ok(self.inner.next().await) };
        let deadline = deadline.max(Instant::now() + START);
        match tokio::time::timeout_at(deadline, self.inner.next()).await {
            Ok(output) => Ok(output),
            Err(_) => Err(self.node.unresponsive(&self.sandbox, OVERTIME)),
        }
    }

    async fn told(&self, output: guest::ExecOutput) -> Result<ExecOutput, Error> {
        Ok(match output {
            guest::ExecOutput::Started { program, attached, stdin_offset } => {
                ExecOutput::Started { id: self.id.clone(), program, attached, stdin_offset }
            }
            guest::ExecOutput::Output { stream, offset, time_us, data } => {
                ExecOutput::Output { stream, offset, time_us, data }
            }
            guest::ExecOutput::Gap { stream, from, to } => ExecOutput::Gap { stream, from, to },
            guest::ExecOutput::Detached => ExecOutput::Detached,
            guest::ExecOutput::Exited(status) => {
                // What a command says that could not read its files is no result.
                if status.exit_code != 0 && self.node.disk_is_lost().await {
                    return Err(self.node.guest_error(&self.sandbox, guest::Error::Gone).await);
                }
                ExecOutput::Exited(self.with_facts(status).await)
            }
        })
    }

    /// With what the machine knew at its end, which is asked for once.
    async fn with_facts(&self, mut status: ExecStatus) -> ExecStatus {
        let facts = match self.live.execs.facts(&self.id) {
            Some(known) => known,
            None if self.is_old => Facts::default(),
            None => {
                let before = self.live.met.known();
                let status = with_limits(&self.sandbox, &self.live, status.clone()).await;
                if self.live.met.known() != before {
                    self.node.write_down(&self.sandbox, &self.live).await;
                }
                self.live.execs.ended(&self.id, Facts::of(&status))
            }
        };
        facts.add_to(&mut status);
        status
    }
}

/// Whether what began then and took so long ended before [`RECENT`].
fn is_long_ago(started_at: &str, duration_ms: u64) -> bool {
    let Ok(started_at) = started_at.parse::<Timestamp>() else { return true };
    let now = Timestamp::now().as_millisecond();
    let ended_at = started_at.as_millisecond().saturating_add_unsigned(duration_ms);
    now.saturating_sub(ended_at) > RECENT
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_recent_for_some_seconds() {
        let ago = |seconds| (Timestamp::now() - jiff::SignedDuration::from_secs(seconds)).to_string();
        assert!(!is_long_ago(&ago(0), 0));
        assert!(!is_long_ago(&ago(3600), 3_599_000));
        assert!(is_long_ago(&ago(3600), 3_000_000));
        assert!(is_long_ago("no time", 0));
    }

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
}
