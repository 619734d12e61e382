//! What is done to execs, and told of them, without being attached.

use berth_sandbox::guest;
use berth_types::exec::{ExecInfo, ExecList, QuiesceReport, SignalRequest, TerminalSize};
use berth_wire::message::FailureCode;

use super::request;
use crate::patience::{KILL, SMALL};
use crate::registry::Live;
use crate::{Error, Node};

impl Node {
    /// The execs of a sandbox, those that run and those that have ended, the oldest first.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::SandboxNotRunning`], [`Error::Unresponsive`].
    pub async fn execs(&self, sandbox: &str) -> Result<ExecList, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let execs = self.ask(&sandbox, SMALL, live.guest().await.execs(None)).await?;
        Ok(ExecList { items: execs.into_iter().map(|exec| shown(&live, exec)).collect() })
    }

    /// One exec of a sandbox.
    ///
    /// # Errors
    /// As [`Node::execs`], and [`Error::ExecNotFound`] when none of that id was ever started.
    pub async fn exec_info(&self, sandbox: &str, exec: &str) -> Result<ExecInfo, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        self.find_exec(&sandbox, &live, exec).await
    }

    pub(super) async fn find_exec(&self, sandbox: &str, live: &Live, exec: &str) -> Result<ExecInfo, Error> {
        let none = || Error::ExecNotFound { sandbox: sandbox.to_owned(), exec: exec.to_owned() };
        let call = async {
            match live.guest().await.execs(Some(exec)).await {
                Err(guest::Error::Refused(failure)) if failure.code == FailureCode::NotFound => {
                    Ok(Vec::new())
                }
                other => other,
            }
        };
        let found = self.ask(sandbox, SMALL, call).await?;
        found.into_iter().next().map(|exec| shown(live, exec)).ok_or_else(none)
    }

    /// Sends a signal to a running exec.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for what is no signal, [`Error::ExecNotFound`], [`Error::ExecOver`]; as [`Node::execs`].
    pub async fn signal_exec(&self, sandbox: &str, exec: &str, signal: &SignalRequest) -> Result<(), Error> {
        let number = request::signal(signal)?;
        let (sandbox, _, live) = self.live(sandbox)?;
        let guest = live.guest().await;
        let told = self.ask_of(&sandbox, exec, SMALL, guest.signal(exec, number, signal.tree));
        let told = told.await?;
        self.must_have_run(&sandbox, &live, exec, told).await
    }

    /// Tells a running exec the size of its terminal.
    ///
    /// # Errors
    /// [`Error::ExecNotFound`], [`Error::ExecOver`], and a refusal when it has no terminal; as [`Node::execs`].
    pub async fn resize_exec(&self, sandbox: &str, exec: &str, size: TerminalSize) -> Result<(), Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let guest = live.guest().await;
        let told = self.ask_of(&sandbox, exec, SMALL, guest.resize(exec, size)).await?;
        self.must_have_run(&sandbox, &live, exec, told).await
    }

    /// Kills an exec with everything that it started; one that is over already is no error.
    ///
    /// # Errors
    /// [`Error::ExecNotFound`] when none of that id was ever started; as [`Node::execs`].
    pub async fn kill_exec(&self, sandbox: &str, exec: &str) -> Result<(), Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        if self.ask_of(&sandbox, exec, KILL, live.guest().await.kill(exec)).await? {
            return Ok(());
        }
        self.find_exec(&sandbox, &live, exec).await.map(drop)
    }

    /// Kills every process of every exec, also those that execs have left behind; returns when all of them are dead.
    ///
    /// # Errors
    /// As [`Node::execs`].
    pub async fn quiesce(&self, sandbox: &str) -> Result<QuiesceReport, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let killed = self.ask(&sandbox, KILL, live.guest().await.quiesce()).await?;
        Ok(QuiesceReport { killed })
    }

    /// As [`Node::ask`], of one exec: what is not found is that.
    pub(super) async fn ask_of<T>(
        &self,
        sandbox: &str,
        exec: &str,
        limit: std::time::Duration,
        call: impl Future<Output = Result<T, guest::Error>>,
    ) -> Result<T, Error> {
        let call = async {
            match call.await {
                Err(guest::Error::Refused(failure)) if failure.code == FailureCode::NotFound => Ok(None),
                other => other.map(Some),
            }
        };
        let answer = self.ask(sandbox, limit, call).await?;
        answer.ok_or_else(|| Error::ExecNotFound { sandbox: sandbox.to_owned(), exec: exec.to_owned() })
    }

    async fn must_have_run(
        &self,
        sandbox: &str,
        live: &Live,
        exec: &str,
        was_running: bool,
    ) -> Result<(), Error> {
        if was_running {
            return Ok(());
        }
        self.find_exec(sandbox, live, exec).await?;
        Err(Error::ExecOver { sandbox: sandbox.to_owned(), exec: exec.to_owned() })
    }
}

fn shown(live: &Live, mut exec: ExecInfo) -> ExecInfo {
    if let (Some(status), Some(facts)) = (&mut exec.status, live.execs.facts(&exec.id)) {
        facts.add_to(status);
    }
    exec
}
