//! Running a command: the exec stream, and how it is picked up again where it was cut.
//!
//! ```text
//!   POST …/exec {id, from} ──► started ─ output at offsets ─ … ─ exited
//!        ▲                                    │ cut
//!        └── the same request again, from where this side is ──┘
//! ```
//!
//! The id makes the repetition harmless: the daemon attaches to what it has started before. Only an `exited` event
//! says how a command ended; no exit code is ever made up here, and no byte is passed on twice or left out in silence.

mod decode;

use std::time::{Duration, Instant};

use berth_types::exec::{
    AttachQuery, ExecEvent, ExecInfo, ExecList, ExecOffsets, ExecRequest, ExecStatus, OnDisconnect,
    OutputQuery, OutputStream, QuiesceReport, Signal, SignalRequest, StdinQuery, StdinReport, TerminalSize,
};
use bytes::{Buf, Bytes};
use http::Method;
use tokio::io::AsyncRead;

pub(crate) use decode::{Decoder, Frame};

use crate::sandboxes::sandbox_path;
use crate::transport::{Answer, Call, encode, next_data};
use crate::{Client, Error};

/// Waits between tries.
const PAUSES_MS: [u64; 6] = [10, 50, 100, 200, 500, 1000];

/// What a sandbox that does not answer is reported as. What came of the request is not known, and asking again with
/// the same id is harmless.
const UNRESPONSIVE: &str = "sandbox_unresponsive";

/// One thing that came from a command.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// It runs.
    Started {
        /// Its id.
        id: String,
        /// The program that was started.
        program: String,
        /// How many bytes of input it has been given.
        stdin_offset: u64,
    },
    /// Bytes of its stdout, following those before.
    Stdout(Bytes),
    /// Bytes of its stderr, following those before.
    Stderr(Bytes),
    /// Bytes that are not kept any more and do not come.
    Gap {
        /// Of which stream.
        stream: OutputStream,
        /// Where they begin.
        from: u64,
        /// Where output goes on.
        to: u64,
    },
    /// It ended; nothing follows.
    Exited(ExecStatus),
    /// It runs on; nothing follows. Only of [`Client::exec_output`] that does not follow.
    Detached,
}

/// A command that has ended, with all of its output.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecOutcome {
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: ExecStatus,
}

/// A running command. Dropping this leaves the command running, unless [`ExecRequest::on_disconnect`] says otherwise.
#[derive(Debug)]
pub struct ExecStream {
    client: Client,
    sandbox: String,
    source: Source,
    /// How far this side has got.
    at: ExecOffsets,
    is_started: bool,
    time_us: Option<u64>,
    /// Since when there was nothing new, after a cut.
    cut_since: Option<Instant>,
    decoder: Decoder,
    /// Nothing once the stream has ended, well or not.
    answer: Option<Answer>,
}

/// What is asked for again after a cut.
#[derive(Debug)]
enum Source {
    Exec(Box<ExecRequest>),
    Output { exec: String, follow: bool },
}

impl Client {
    /// Starts a command, or attaches to it where one of that id was started before by the same request; returns when the
    /// daemon has accepted it. A request without an id is given one.
    pub async fn exec(&self, sandbox: &str, request: &ExecRequest) -> Result<ExecStream, Error> {
        let mut request = request.clone();
        request.detach = false;
        request.id.get_or_insert_with(new_id);
        let at = request.from;
        let source = Source::Exec(Box::new(request));
        ExecStream::open(self.clone(), sandbox.to_owned(), source, at).await
    }

    /// Starts a command and comes back as soon as it runs.
    pub async fn exec_detached(&self, sandbox: &str, request: &ExecRequest) -> Result<ExecInfo, Error> {
        let mut request = request.clone();
        request.detach = true;
        request.id.get_or_insert_with(new_id);
        let operation = format!("run a command in sandbox {sandbox}");
        self.call(Call::new(Method::POST, sandbox_path(sandbox, "/exec"), operation).json(&request)?).await
    }

    /// Output of an exec, running or over, and its status: from `query`'s offsets on.
    pub async fn exec_output(
        &self,
        sandbox: &str,
        exec: &str,
        query: OutputQuery,
    ) -> Result<ExecStream, Error> {
        let at = ExecOffsets { stdout: query.stdout, stderr: query.stderr };
        let source = Source::Output { exec: exec.to_owned(), follow: query.follow };
        ExecStream::open(self.clone(), sandbox.to_owned(), source, at).await
    }

    /// Runs a command to its end and keeps all of its output.
    pub async fn exec_collect(&self, sandbox: &str, request: &ExecRequest) -> Result<ExecOutcome, Error> {
        self.exec(sandbox, request).await?.collect().await
    }

    /// Execs of a sandbox, running and over, the oldest first.
    pub async fn execs(&self, sandbox: &str) -> Result<Vec<ExecInfo>, Error> {
        let path = sandbox_path(sandbox, "/execs");
        let list: ExecList =
            self.call(Call::new(Method::GET, path, format!("list execs of sandbox {sandbox}"))).await?;
        Ok(list.items)
    }

    /// One exec.
    pub async fn exec_info(&self, sandbox: &str, exec: &str) -> Result<ExecInfo, Error> {
        let operation = format!("look up exec {exec} of sandbox {sandbox}");
        self.call(Call::new(Method::GET, exec_path(sandbox, exec, ""), operation)).await
    }

    /// Kills an exec and all that it started; returns when none of it is left.
    pub async fn kill_exec(&self, sandbox: &str, exec: &str) -> Result<(), Error> {
        let operation = format!("kill exec {exec} of sandbox {sandbox}");
        self.call_empty(Call::new(Method::DELETE, exec_path(sandbox, exec, ""), operation)).await
    }

    /// Sends a running exec a signal: its first process alone, or with `tree` all that it started.
    pub async fn signal_exec(
        &self,
        sandbox: &str,
        exec: &str,
        signal: Signal,
        tree: bool,
    ) -> Result<(), Error> {
        let operation = format!("send a signal to exec {exec} of sandbox {sandbox}");
        let call = Call::new(Method::POST, exec_path(sandbox, exec, "/signal"), operation);
        self.call_empty(call.json(&SignalRequest { signal, tree })?).await
    }

    /// Tells a running exec the size of its terminal.
    pub async fn resize_exec(&self, sandbox: &str, exec: &str, size: TerminalSize) -> Result<(), Error> {
        let operation = format!("resize the terminal of exec {exec} of sandbox {sandbox}");
        let call = Call::new(Method::POST, exec_path(sandbox, exec, "/resize"), operation);
        self.call_empty(call.json(&size)?).await
    }

    /// Gives a running exec input. With an offset a repetition is harmless: what it has already is passed over.
    pub async fn write_stdin(
        &self,
        sandbox: &str,
        exec: &str,
        query: StdinQuery,
        input: impl AsyncRead + Send + 'static,
    ) -> Result<StdinReport, Error> {
        let offset = query.offset.map(|offset| format!("&offset={offset}")).unwrap_or_default();
        let path = exec_path(sandbox, exec, &format!("/stdin?end={}{offset}", query.end));
        let operation = format!("give exec {exec} of sandbox {sandbox} its input");
        self.call(Call::new(Method::POST, path, operation).upload("application/octet-stream", input)).await
    }

    /// Kills every process of every exec, daemons that they left behind included; tells how many.
    pub async fn quiesce(&self, sandbox: &str) -> Result<u64, Error> {
        let operation = format!("end all commands in sandbox {sandbox}");
        let call = Call::new(Method::POST, sandbox_path(sandbox, "/quiesce"), operation);
        let report: QuiesceReport = self.call(call).await?;
        Ok(report.killed)
    }

    /// Path and query for [`Client::attach`](crate::Client::attach).
    pub(crate) fn attach_path(sandbox: &str, exec: &str, query: AttachQuery) -> String {
        let AttachQuery { stdout, stderr, stdin } = query;
        exec_path(sandbox, exec, &format!("/attach?stdout={stdout}&stderr={stderr}&stdin={stdin}"))
    }
}

fn exec_path(sandbox: &str, exec: &str, rest: &str) -> String {
    sandbox_path(sandbox, &format!("/execs/{}{rest}", encode(exec)))
}

/// A name that nobody else gives: 128 random bits.
pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl ExecStream {
    async fn open(client: Client, sandbox: String, source: Source, at: ExecOffsets) -> Result<Self, Error> {
        let mut stream = Self {
            client,
            sandbox,
            source,
            at,
            is_started: false,
            time_us: None,
            cut_since: None,
            decoder: Decoder::default(),
            answer: None,
        };
        stream.answer = Some(match stream.ask().await {
            Ok(answer) => answer,
            // No daemon is there, or it says no.
            Err(error) if !stream.may_have_begun(&error) => return Err(error),
            Err(error) => stream.ask_again(error).await?,
        });
        Ok(stream)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        match &self.source {
            Source::Exec(request) => request.id.as_deref().unwrap_or_default(),
            Source::Output { exec, .. } => exec,
        }
    }

    /// How far its output was passed on.
    pub fn offsets(&self) -> ExecOffsets {
        self.at
    }

    /// When the command wrote the output that came last, in microseconds since the epoch.
    pub fn time_us(&self) -> Option<u64> {
        self.time_us
    }

    /// What comes next; nothing after [`ExecOutput::Exited`], [`ExecOutput::Detached`] and after an error. A stream that is
    /// cut is picked up again; the error comes when nothing new has come for the client's patience. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<ExecOutput, Error>> {
        let step = self.step().await;
        let goes_on = matches!(
            &step,
            Some(Ok(output)) if !matches!(output, ExecOutput::Exited(_) | ExecOutput::Detached)
        );
        if !goes_on {
            self.answer = None;
        }
        step
    }

    /// All that is still to come.
    ///
    /// # Errors
    /// [`Error::ExecGap`] when some of it is not kept any more, and those of [`ExecStream::next`].
    pub async fn collect(mut self) -> Result<ExecOutcome, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(output) = self.next().await {
            match output? {
                ExecOutput::Started { .. } => {}
                ExecOutput::Stdout(data) => stdout.extend_from_slice(&data),
                ExecOutput::Stderr(data) => stderr.extend_from_slice(&data),
                ExecOutput::Gap { stream, from, to } => {
                    return Err(Error::ExecGap { sandbox: self.sandbox, stream, from, to });
                }
                ExecOutput::Exited(status) => return Ok(ExecOutcome { stdout, stderr, status }),
                ExecOutput::Detached => break,
            }
        }
        Err(Error::ExecLost { sandbox: self.sandbox, source: None })
    }

    async fn step(&mut self) -> Option<Result<ExecOutput, Error>> {
        loop {
            let answer = self.answer.as_mut()?;
            match self.decoder.next() {
                Ok(None) => {}
                Ok(Some(frame)) => match self.take(frame) {
                    Ok(Some(output)) => return Some(Ok(output)),
                    Ok(None) => continue,
                    Err(error) if is_unresponsive(&error) => match self.pick_up(error).await {
                        Ok(()) => continue,
                        Err(error) => return Some(Err(error)),
                    },
                    Err(error) => return Some(Err(error)),
                },
                Err(fault) => return Some(Err(fault.into_error(&self.sandbox))),
            }
            let source = match next_data(answer.response.body_mut()).await {
                Ok(Some(data)) => {
                    self.decoder.feed(data);
                    continue;
                }
                Ok(None) => None,
                Err(source) => Some(source),
            };
            let lost = Error::ExecLost { sandbox: self.sandbox.clone(), source };
            if let Err(error) = self.pick_up(lost).await {
                return Some(Err(error));
            }
        }
    }

    /// What a frame is for the caller; nothing where it is known already.
    fn take(&mut self, frame: Frame) -> Result<Option<ExecOutput>, Error> {
        match frame {
            Frame::Output { stream, offset, time_us, data } => {
                self.time_us = Some(time_us);
                self.take_output(stream, offset, data)
            }
            Frame::Event(ExecEvent::Started { id, program, stdin_offset, .. }) => {
                let is_news = !std::mem::replace(&mut self.is_started, true);
                Ok(is_news.then_some(ExecOutput::Started { id, program, stdin_offset }))
            }
            Frame::Event(ExecEvent::Gap { stream, from, to }) => {
                let at = self.place(stream);
                let from = from.max(*at);
                *at = to.max(*at);
                Ok((to > from).then_some(ExecOutput::Gap { stream, from, to }))
            }
            Frame::Event(ExecEvent::Exited(status)) => Ok(Some(ExecOutput::Exited(status))),
            Frame::Event(ExecEvent::Detached) => Ok(Some(ExecOutput::Detached)),
            Frame::Error(source) => Err(Error::Api {
                operation: format!("run a command in sandbox {}", self.sandbox),
                source: Box::new(source),
            }),
        }
    }

    fn take_output(
        &mut self,
        stream: OutputStream,
        offset: u64,
        mut data: Bytes,
    ) -> Result<Option<ExecOutput>, Error> {
        let at = *self.place(stream);
        if offset > at {
            let sandbox = self.sandbox.clone();
            return Err(Error::ExecOffset { sandbox, stream, expected: at, found: offset });
        }
        let known = usize::try_from(at - offset).unwrap_or(usize::MAX).min(data.len());
        data.advance(known);
        *self.place(stream) += data.len() as u64;
        if !data.is_empty() {
            self.cut_since = None;
        }
        Ok((!data.is_empty()).then_some(match stream {
            OutputStream::Stdout => ExecOutput::Stdout(data),
            OutputStream::Stderr => ExecOutput::Stderr(data),
        }))
    }

    fn place(&mut self, stream: OutputStream) -> &mut u64 {
        match stream {
            OutputStream::Stdout => &mut self.at.stdout,
            OutputStream::Stderr => &mut self.at.stderr,
        }
    }

    /// Asks for what is missing, again and again.
    async fn pick_up(&mut self, cause: Error) -> Result<(), Error> {
        self.answer = None;
        self.decoder = Decoder::default();
        self.answer = Some(self.ask_again(cause).await?);
        Ok(())
    }

    async fn ask_again(&mut self, cause: Error) -> Result<Answer, Error> {
        // What is killed with its client cannot be found again.
        if matches!(&self.source, Source::Exec(request) if request.on_disconnect == OnDisconnect::Kill) {
            return Err(cause);
        }
        let since = *self.cut_since.get_or_insert_with(Instant::now);
        let mut pauses = PAUSES_MS.into_iter();
        let mut pause = 0;
        while since.elapsed() < self.client.patience {
            pause = pauses.next().unwrap_or(pause.max(PAUSES_MS[PAUSES_MS.len() - 1]));
            tokio::time::sleep(Duration::from_millis(pause)).await;
            match self.ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) if is_cut(&error) => tracing::debug!(%error, "an exec is not picked up yet"),
                Err(error) => return Err(error),
            }
        }
        Err(cause)
    }

    async fn ask(&self) -> Result<Answer, Error> {
        let call = match &self.source {
            Source::Exec(request) => {
                let request = ExecRequest { from: self.at, ..(**request).clone() };
                let operation = format!("run a command in sandbox {}", self.sandbox);
                Call::new(Method::POST, sandbox_path(&self.sandbox, "/exec"), operation).json(&request)?
            }
            Source::Output { exec, follow } => {
                let ExecOffsets { stdout, stderr } = self.at;
                let query = format!("/output?stdout={stdout}&stderr={stderr}&follow={follow}");
                let operation = format!("read the output of exec {exec} of sandbox {}", self.sandbox);
                Call::new(Method::GET, exec_path(&self.sandbox, exec, &query), operation)
            }
        };
        self.client.send(call).await
    }

    /// Whether a first request that failed so may have been carried out all the same.
    fn may_have_begun(&self, error: &Error) -> bool {
        !matches!(error, Error::Connect { .. }) && is_cut(error)
    }
}

/// Whether an error is one of the connection or of a daemon that is away, after which to ask again makes sense.
fn is_cut(error: &Error) -> bool {
    matches!(error, Error::Connect { .. } | Error::Send { .. } | Error::Read { .. } | Error::ExecLost { .. })
        || is_unresponsive(error)
}

fn is_unresponsive(error: &Error) -> bool {
    error.api().is_some_and(|error| error.code == UNRESPONSIVE)
}
