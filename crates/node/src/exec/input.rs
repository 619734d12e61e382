//! What execs read: what came with their request, and what clients send later.
//!
//! The guest alone knows how much an exec has been given, so its count is what is answered. Whoever writes holds the
//! exec's turn, is attached as the one who gives the input, and stays so until the guest has counted what was sent, or
//! until somebody else attaches as the one who gives it.

use std::time::Duration;

use berth_sandbox::guest::{self, AttachSpec, ExecInput};
use berth_types::exec::{ExecOffsets, StdinQuery, StdinReport};
use berth_wire::message::FailureCode;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::patience::{Progress, SMALL, START, TRANSFER, while_alive};
use crate::registry::Live;
use crate::{Error, Node};

/// Pieces that a body is read in, in bytes.
const PIECE: usize = 64 << 10;

/// Where there never is any output: an attachment from there on gets none, and holds none up.
pub(super) const NO_OUTPUT: ExecOffsets = ExecOffsets { stdout: u64::MAX, stderr: u64::MAX };

/// How often input that came with a request is begun anew when others take the exec's input meanwhile.
const MOST_TRIES: usize = 16;

/// How often it is asked whether an exec has been given all that was sent.
const COUNT_EVERY: Duration = Duration::from_millis(20);

/// Why no more is written.
enum Stopped {
    Taken,
    Body(std::io::Error),
    Guest(guest::Error),
}

/// An exec that one is attached to for its input.
struct Attached {
    exec: guest::Exec,
    /// How many bytes it had been given by then.
    offset: u64,
}

impl Node {
    /// Writes to the input of an exec that takes such: the body is what belongs at the given offset, or where the input
    /// is now. What of it the exec has been given before is skipped. The answer is what the exec has been given in all,
    /// by its guest's own count; where that is less than was sent, the rest is to be sent again.
    ///
    /// # Errors
    /// [`Error::StdinGap`] when bytes would be missing, [`Error::StdinTaken`] when somebody else gives it input,
    /// [`Error::NoStdin`], [`Error::ExecNotFound`], [`Error::ExecOver`],
    /// [`Error::Unresponsive`], [`Error::Body`]; as [`Node::execs`].
    pub async fn write_stdin(
        &self,
        sandbox: &str,
        exec: &str,
        query: StdinQuery,
        body: impl AsyncRead + Unpin + Send,
    ) -> Result<StdinReport, Error> {
        let (sandbox, _, live) = self.live(sandbox)?;
        let turn = tokio::time::timeout(TRANSFER, live.execs.input(exec).lock_owned()).await;
        let _turn = turn.map_err(|_| Error::StdinTaken { exec: exec.to_owned() })?;
        // Whoever is attached and gave it its input so far learns of it.
        live.execs.take_input(exec);
        let mut given_elsewhere = live.execs.input_taken(exec);
        let taken = self.attach_input(&sandbox, &live, exec, true).await?;
        let Some(input) = taken.exec.input() else {
            return Err(Error::NoStdin { exec: exec.to_owned() });
        };
        let missing = query.offset.filter(|offset| *offset > taken.offset);
        if let Some(offset) = missing {
            return Err(Error::StdinGap { exec: exec.to_owned(), offset, given: taken.offset });
        }
        let skip = query.offset.map_or(0, |offset| taken.offset - offset);
        let progress = Progress::new();
        let write = async {
            tokio::select! {
                written = write(&input, skip, query.end, body, &progress) => written,
                _ = given_elsewhere.changed() => Err(Stopped::Taken),
            }
        };
        let written = while_alive(&live.machine.guest(), TRANSFER, &progress, write).await;
        let sent = match written.ok_or_else(|| self.unresponsive(&sandbox, TRANSFER))? {
            Ok(sent) => sent,
            Err(Stopped::Taken) => return Err(Error::StdinTaken { exec: exec.to_owned() }),
            Err(Stopped::Body(source)) => return Err(Error::Body(source)),
            Err(Stopped::Guest(guest::Error::Over)) => {
                let over = self.find_exec(&sandbox, &live, exec).await?.status.is_some();
                let (sandbox, exec) = (sandbox.clone(), exec.to_owned());
                return Err(if over { Error::ExecOver { sandbox, exec } } else { Error::NoStdin { exec } });
            }
            Err(Stopped::Guest(source)) => return Err(self.guest_error(&sandbox, source).await),
        };
        let offset = self.count(&sandbox, &live, exec, taken.offset + sent).await?;
        Ok(StdinReport { offset })
    }

    /// Gives an exec all of the input that came with its request, and the end, wherever it is with that.
    pub(super) async fn feed(&self, sandbox: &str, exec: &str, data: Vec<u8>) {
        let query = StdinQuery { offset: Some(0), end: true };
        for tries in 1..=MOST_TRIES {
            match self.write_stdin(sandbox, exec, query, &data[..]).await {
                Ok(report) if report.offset < data.len() as u64 && tries < MOST_TRIES => {}
                // A repeated request is attached with the input, and has it given from here all the same.
                Err(Error::StdinTaken { .. }) if tries < MOST_TRIES => {}
                // Over the next connection it goes on where the guest's count says.
                Err(Error::Cut { .. }) if tries < MOST_TRIES => {}
                // A command that is over has read what it wanted.
                Ok(_) | Err(Error::ExecOver { .. }) => return,
                Err(error) => {
                    tracing::warn!(id = sandbox, exec, %error, "a command did not get all of its input");
                    return;
                }
            }
        }
    }

    async fn attach_input(
        &self,
        sandbox: &str,
        live: &Live,
        exec: &str,
        take: bool,
    ) -> Result<Attached, Error> {
        let spec = AttachSpec { id: exec.to_owned(), from: NO_OUTPUT, stdin: take, follow: true };
        let call = async {
            let mut exec = live.guest().await.attach(spec).await?;
            let first = exec.next().await.unwrap_or(Err(guest::Error::Gone))?;
            Ok((exec, first))
        };
        let refused = |failure: &guest::Failure| {
            take && matches!(
                failure.code,
                FailureCode::Refused | FailureCode::Invalid | FailureCode::NotConnected
            )
        };
        let call = async {
            match call.await {
                Err(guest::Error::Refused(failure)) if refused(&failure) => Ok(None),
                other => other.map(Some),
            }
        };
        match self.ask_of(sandbox, exec, START, call).await? {
            Some((exec, guest::ExecOutput::Started { stdin_offset: offset, .. })) => {
                Ok(Attached { exec, offset })
            }
            Some(_) => Err(Error::ExecOver { sandbox: sandbox.to_owned(), exec: exec.to_owned() }),
            None => Err(Error::NoStdin { exec: exec.to_owned() }),
        }
    }

    /// Waits until an exec has been given so many bytes; where that takes too long, tells how many they are.
    ///
    /// # Errors
    /// [`Error::ExecOver`] where it never will be.
    async fn count(&self, sandbox: &str, live: &Live, exec: &str, sent: u64) -> Result<u64, Error> {
        let deadline = tokio::time::Instant::now() + SMALL;
        loop {
            // Asked first: what is over by then has been given all that it ever will be.
            let is_over = self.find_exec(sandbox, live, exec).await?.status.is_some();
            let given = self.attach_input(sandbox, live, exec, false).await?.offset;
            if given >= sent || tokio::time::Instant::now() >= deadline {
                return Ok(given);
            }
            if is_over {
                return Err(Error::ExecOver { sandbox: sandbox.to_owned(), exec: exec.to_owned() });
            }
            tokio::time::sleep(COUNT_EVERY).await;
        }
    }
}

/// Writes a body but for its first bytes, and tells how many that were.
async fn write(
    input: &ExecInput,
    mut skip: u64,
    end: bool,
    mut body: impl AsyncRead + Unpin + Send,
    progress: &Progress,
) -> Result<u64, Stopped> {
    let mut buffer = vec![0; PIECE];
    let mut sent = 0;
    loop {
        progress.moved(true);
        let len = body.read(&mut buffer).await.map_err(Stopped::Body)?;
        progress.moved(false);
        if len == 0 {
            break;
        }
        let known = usize::try_from(skip).unwrap_or(usize::MAX).min(len);
        skip -= known as u64;
        let mut rest = &buffer[known..len];
        while !rest.is_empty() {
            let some = input.write_some(rest).await.map_err(Stopped::Guest)?;
            progress.moved(false);
            (rest, sent) = (&rest[some..], sent + some as u64);
        }
    }
    if end {
        input.end();
    }
    Ok(sent)
}
