//! A command that somebody sits at: what is typed goes in, what it writes comes out, and a cut is mended.
//!
//! Input is kept until the sandbox has said that it got it, so that after a cut it goes on at the very byte.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use berth_client::{Attached, Client, Error, ExecOutput};
use berth_types::exec::{AttachQuery, ExecStatus, OutputStream};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::terminal::{self, DetachKeys};

/// How long a cut may last.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// Input that may be under way; the same as what fits into the guest's window and a pipe.
const KEPT: usize = 1024 * 1024;

/// How a session ended.
pub(crate) enum End {
    /// The command ended.
    Exited(ExecStatus),
    /// The keys for it were pressed: the command runs on.
    Detached,
}

/// A session at an exec.
pub(crate) struct Session<'a> {
    pub(crate) client: &'a Client,
    pub(crate) sandbox: &'a str,
    pub(crate) exec: &'a str,
    /// Whether the exec has a terminal, and this is one: its size is passed on, keys detach.
    pub(crate) terminal: bool,
}

#[derive(Default)]
struct State {
    query: AttachQuery,
    /// Input from `kept_from` on.
    kept: VecDeque<u8>,
    kept_from: u64,
    input_ended: bool,
    /// How much input the exec had when this session began; `None` before it is told.
    began_at: Option<u64>,
    /// Whether this attachment has told how much input the exec has: before that nobody knows what is to follow.
    is_told: bool,
}

impl State {
    fn keep(&mut self, input: &[u8]) {
        self.kept.extend(input);
        let excess = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..excess);
        self.kept_from += excess as u64;
    }

    /// What is to follow byte `offset` of the exec's input; `None` where some of that is not here any more.
    fn after(&mut self, offset: u64) -> Option<Vec<u8>> {
        if self.began_at.is_none() {
            self.began_at = Some(offset);
            self.kept_from = offset;
        }
        let known = usize::try_from(offset.checked_sub(self.kept_from)?).ok()?;
        (known <= self.kept.len()).then(|| self.kept.iter().skip(known).copied().collect())
    }
}

impl Session<'_> {
    /// Until the command ends or is left.
    pub(crate) async fn run(
        &self,
        mut input: mpsc::Receiver<io::Result<Vec<u8>>>,
        stdout: &mut (impl AsyncWrite + Unpin),
        stderr: &mut (impl AsyncWrite + Unpin),
    ) -> Result<End, Failure> {
        let mut state =
            State { query: AttachQuery { stdin: true, ..AttachQuery::default() }, ..State::default() };
        let mut keys = DetachKeys::default();
        let mut resized = signal(SignalKind::window_change()).map_err(Failure::Stdin)?;
        let mut attached = self.client.attach_exec(self.sandbox, self.exec, state.query).await?;
        loop {
            let step = tokio::select! {
                output = attached.next() => match output {
                    Some(Ok(output)) => {
                        if let Some(end) = self.take(output, &mut state, &mut attached, stdout, stderr).await? {
                            return Ok(end);
                        }
                        Ok(())
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(Error::ExecLost { sandbox: self.sandbox.to_owned(), source: None }),
                },
                typed = input.recv(), if state.is_told && !state.input_ended => match typed {
                    Some(typed) => {
                        let typed = typed.map_err(Failure::Stdin)?;
                        let (typed, leave) =
                            if self.terminal { keys.filter(&typed) } else { (typed, false) };
                        state.keep(&typed);
                        let sent = attached.send_input(&typed).await;
                        if leave {
                            attached.detach().await;
                            return Ok(End::Detached);
                        }
                        sent
                    }
                    None => {
                        state.input_ended = true;
                        attached.end_input().await
                    }
                },
                Some(()) = resized.recv(), if self.terminal => attached.resize(terminal::size()).await,
            };
            if let Err(error) = step {
                state.is_told = false;
                attached = self.attach_again(error, state.query).await?;
            }
        }
    }

    async fn take(
        &self,
        output: ExecOutput,
        state: &mut State,
        attached: &mut Attached,
        stdout: &mut (impl AsyncWrite + Unpin),
        stderr: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Option<End>, Failure> {
        match output {
            ExecOutput::Started { stdin_offset, .. } => {
                let Some(missing) = state.after(stdin_offset) else {
                    return Err(Failure::InputLost { at: stdin_offset });
                };
                state.is_told = true;
                // At the first time there is nothing that it could lack. Errors of this show again at the next step.
                let _ = attached.send_input(&missing).await;
                if state.input_ended {
                    let _ = attached.end_input().await;
                }
                if self.terminal {
                    let _ = attached.resize(terminal::size()).await;
                }
            }
            ExecOutput::Stdout(data) => {
                state.query.stdout += data.len() as u64;
                write(stdout, &data).await?;
            }
            ExecOutput::Stderr(data) => {
                state.query.stderr += data.len() as u64;
                write(stderr, &data).await?;
            }
            ExecOutput::Gap { stream, to, .. } => match stream {
                OutputStream::Stdout => state.query.stdout = to,
                OutputStream::Stderr => state.query.stderr = to,
            },
            ExecOutput::Exited(status) => return Ok(Some(End::Exited(status))),
            ExecOutput::Detached => return Ok(Some(End::Detached)),
        }
        Ok(None)
    }

    async fn attach_again(&self, cause: Error, query: AttachQuery) -> Result<Attached, Failure> {
        if !is_cut(&cause) {
            return Err(cause.into());
        }
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            tokio::time::sleep(PAUSE).await;
            match self.client.attach_exec(self.sandbox, self.exec, query).await {
                Ok(attached) => return Ok(attached),
                Err(error) if is_cut(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(cause.into())
    }
}

fn is_cut(error: &Error) -> bool {
    matches!(
        error,
        Error::Connect { .. } | Error::Send { .. } | Error::ExecLost { .. } | Error::WebSocket { .. }
    )
}

pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), Failure> {
    to.write_all(data).await.map_err(Failure::Output)?;
    to.flush().await.map_err(Failure::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_cut_input_goes_on_at_the_very_byte() {
        let mut state = State::default();
        assert_eq!(state.after(100), Some(Vec::new()));
        state.keep(b"hello ");
        state.keep(b"world");
        assert_eq!(state.after(100).as_deref(), Some(&b"hello world"[..]));
        assert_eq!(state.after(108).as_deref(), Some(&b"rld"[..]));
        assert_eq!(state.after(111).as_deref(), Some(&b""[..]));
        assert_eq!(state.after(112), None, "somebody else has given it input");
        state.keep(&vec![b'x'; KEPT]);
        assert_eq!(state.after(110), None, "not kept any more");
        assert_eq!(state.after(111 + KEPT as u64 - 1).as_deref(), Some(&b"x"[..]));
    }
}
