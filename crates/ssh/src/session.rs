//! What goes on in one channel: a command, or a connection to a socket inside.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_node::{Connect, ExecOutput};
use berth_types::exec::{
    Command, ExecRequest, ExecStatus, OutputStream, Signal, SignalRequest, Stdin, TerminalSize,
};
use bytes::{Bytes, BytesMut};
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{ChannelOpenFailure, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::door::{Door, Input, Refused, Running};
use crate::inlet::{Outlet, Sent};

/// Bytes that are read at once from a socket inside.
const PIECE: usize = 32 << 10;

/// `SSH_EXTENDED_DATA_STDERR`.
pub(crate) const STDERR: u32 = 1;

/// Between the two times that a terminal's foreground is told of its client's end: the first ends what runs in it, the
/// second its shell.
const HANG_UP_AGAIN: Duration = Duration::from_secs(2);

/// Which sandbox, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) sandbox: String,
    pub(crate) user: Option<String>,
}

impl Target {
    /// `NAME` or `NAME+USER`. Neither ids nor names of sandboxes have a plus.
    pub(crate) fn parse(user: &str) -> Self {
        match user.split_once('+') {
            Some((sandbox, user)) if !user.is_empty() => {
                Self { sandbox: sandbox.to_owned(), user: Some(user.to_owned()) }
            }
            Some((sandbox, _)) => Self { sandbox: sandbox.to_owned(), user: None },
            None => Self { sandbox: user.to_owned(), user: None },
        }
    }
}

/// What a client asked for before it starts a command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setting {
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) terminal: Option<TerminalSize>,
}

/// What a client asks of a command that runs.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    Resize(TerminalSize),
    Signal(SignalRequest),
}

/// The client's end of a channel.
pub(crate) struct Line {
    pub(crate) write: ChannelWriteHalf<Msg>,
    pub(crate) handle: Handle,
}

/// A command and its client.
pub(crate) struct Session<D> {
    pub(crate) door: D,
    pub(crate) target: Target,
    pub(crate) line: Line,
    pub(crate) input: Outlet,
    pub(crate) controls: mpsc::UnboundedReceiver<Control>,
    /// The client has closed the channel, or is gone.
    pub(crate) gone: CancellationToken,
}

impl<D: Door> Session<D> {
    /// Runs a command for its client, to the end of either.
    pub(crate) async fn run(self, command: Command, setting: Setting) {
        let Self { door, target, line, input, controls, gone } = self;
        let id = format!("ssh-{}", Uuid::now_v7().simple());
        let has_terminal = setting.terminal.is_some();
        let request = ExecRequest {
            id: Some(id.clone()),
            env: setting.env,
            user: target.user,
            stdin: Some(Stdin::Stream),
            terminal: setting.terminal,
            ..ExecRequest::new(command)
        };
        let sandbox = &target.sandbox;
        let mut exec = match door.exec(sandbox, request).await {
            Ok(exec) => exec,
            Err(refused) => return line.complain(&refused, has_terminal).await,
        };
        let stdin = exec.input();
        let attended = async {
            let control = control(&door, sandbox, &id, controls);
            tokio::join!(feed(input, stdin.as_ref()), control);
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = deliver(&mut exec, &line) => Some(ended),
            () = attended => None,
            () = gone.cancelled() => None,
        };
        match ended {
            Some(Ok(status)) => line.finish(&status, has_terminal).await,
            Some(Err(Stopped::Exec(refused))) => line.complain(&refused, has_terminal).await,
            Some(Err(Stopped::Client)) | None => {
                if let Some(stdin) = stdin {
                    stdin.end();
                }
                hang_up(&door, sandbox, &id, has_terminal).await;
            }
        }
    }
}

enum Stopped {
    Exec(Refused),
    Client,
}

/// Gives the client what the command writes, as fast as the client takes it.
async fn deliver(exec: &mut impl Running, line: &Line) -> Result<ExecStatus, Stopped> {
    let broken = |message: String| Err(Stopped::Exec(Refused(message)));
    loop {
        match exec.next().await.map_err(Stopped::Exec)? {
            ExecOutput::Started { .. } => {}
            ExecOutput::Output { stream, data, .. } => {
                line.write(stream, data).await.map_err(|_| Stopped::Client)?;
            }
            ExecOutput::Exited(status) => return Ok(status),
            ExecOutput::Gap { from, to, .. } => {
                return broken(format!("{} bytes of the command's output are lost", to - from));
            }
            ExecOutput::Detached => return broken("the command runs on, but is out of reach".to_owned()),
        }
    }
}

/// Gives the command what the client sends. A command that reads no more gets none, as of a closed pipe.
async fn feed(mut input: Outlet, stdin: Option<&impl Input>) {
    let mut stdin = stdin;
    while let Some(sent) = input.next().await {
        match sent {
            Sent::Data(data) => {
                if let Some(open) = stdin
                    && open.write(&data).await.is_err()
                {
                    stdin = None;
                }
                input.gone(data.len());
            }
            Sent::End => {
                if let Some(open) = stdin.take() {
                    open.end();
                }
            }
        }
    }
}

async fn control<D: Door>(
    door: &D,
    sandbox: &str,
    exec: &str,
    mut controls: mpsc::UnboundedReceiver<Control>,
) {
    while let Some(control) = controls.recv().await {
        let done = match &control {
            Control::Resize(size) => door.resize(sandbox, exec, *size).await,
            Control::Signal(signal) => door.signal(sandbox, exec, signal).await,
        };
        // The protocol has no answer to either.
        if let Err(refused) = done {
            tracing::debug!(sandbox, exec, ?control, %refused, "a client's wish was not granted");
        }
    }
}

/// What the end of its terminal, or of its client, means to a command.
async fn hang_up<D: Door>(door: &D, sandbox: &str, exec: &str, has_terminal: bool) {
    let signal = SignalRequest { signal: Signal::Name("HUP".to_owned()), tree: !has_terminal };
    for again in [false, true] {
        if again {
            tokio::time::sleep(HANG_UP_AGAIN).await;
        }
        // It may be over by now.
        let told = door.signal(sandbox, exec, &signal).await;
        if !has_terminal || told.is_err() {
            return;
        }
    }
}

impl Line {
    async fn write(&self, stream: OutputStream, data: Bytes) -> Result<(), russh::Error> {
        match stream {
            OutputStream::Stdout => self.write.data_bytes(data).await,
            OutputStream::Stderr => self.write.extended_data_bytes(STDERR, data).await,
        }
    }

    /// Says why there is no exit status, and closes without.
    pub(crate) async fn complain(&self, refused: &Refused, has_terminal: bool) {
        self.say(&refused.0, has_terminal).await;
        let _ = self.write.eof().await;
        let _ = self.write.close().await;
    }

    /// A client that is gone is not told.
    async fn finish(&self, status: &ExecStatus, has_terminal: bool) {
        if let Some(message) = &status.message {
            self.say(message, has_terminal).await;
        }
        let _ = self.write.eof().await;
        // Clients that know signals get both; OpenSSH's own shows the status alone.
        if let Some(signal) = status.signal.and_then(signal_name) {
            let message = status.message.clone().unwrap_or_default();
            let told =
                self.handle.exit_signal_request(self.write.id(), signal, false, message, String::new());
            let _ = told.await;
        }
        // Codes are 0 to 255.
        let _ = self.write.exit_status(status.exit_code.unsigned_abs()).await;
        let _ = self.write.close().await;
    }

    async fn say(&self, message: &str, has_terminal: bool) {
        let end = if has_terminal { "\r\n" } else { "\n" };
        let _ = self.write(OutputStream::Stderr, format!("berth: {message}{end}").into()).await;
    }
}

/// The protocol has names for some signals only.
fn signal_name(signal: i32) -> Option<Sig> {
    Some(match signal {
        1 => Sig::HUP,
        2 => Sig::INT,
        3 => Sig::QUIT,
        4 => Sig::ILL,
        6 => Sig::ABRT,
        8 => Sig::FPE,
        9 => Sig::KILL,
        10 => Sig::USR1,
        11 => Sig::SEGV,
        13 => Sig::PIPE,
        14 => Sig::ALRM,
        15 => Sig::TERM,
        _ => return None,
    })
}

/// A client's connection to a socket inside.
pub(crate) struct Forward<D> {
    pub(crate) door: D,
    pub(crate) sandbox: String,
    pub(crate) write: ChannelWriteHalf<Msg>,
    pub(crate) input: Outlet,
    pub(crate) gone: CancellationToken,
}

impl<D: Door> Forward<D> {
    /// Connects, says so, and carries bytes both ways until both are at their ends or the client is gone.
    pub(crate) async fn run(self, socket: Connect, reply: ChannelOpenHandle) {
        let Self { door, sandbox, write, input, gone } = self;
        let connected = tokio::select! {
            connected = door.connect(&sandbox, socket) => connected,
            () = gone.cancelled() => return,
        };
        let socket = match connected {
            Ok(socket) => socket,
            Err(refused) => {
                tracing::debug!(sandbox, %refused, "a client's connection was refused");
                return reply.reject(ChannelOpenFailure::ConnectFailed).await;
            }
        };
        reply.accept().await;
        let (reader, writer) = tokio::io::split(socket);
        let both = async {
            let outward = outward(reader, &write);
            let inward = async {
                inward(input, writer).await;
                Ok(())
            };
            // What is cut off is closed without an end.
            let _ = tokio::try_join!(outward, inward);
        };
        tokio::select! {
            () = both => {}
            () = gone.cancelled() => return,
        }
        let _ = write.close().await;
    }
}

async fn outward(mut reader: impl AsyncRead + Unpin, write: &ChannelWriteHalf<Msg>) -> Result<(), Broken> {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE);
        if reader.read_buf(&mut piece).await.map_err(|_| Broken)? == 0 {
            return write.eof().await.map_err(|_| Broken);
        }
        write.data_bytes(piece.freeze()).await.map_err(|_| Broken)?;
    }
}

/// A direction that ended otherwise than by its end.
struct Broken;

/// To the end of what the client sends. What a socket takes no more is dropped, as it is in any network.
async fn inward(mut input: Outlet, writer: impl AsyncWrite + Unpin) {
    let mut writer = Some(writer);
    while let Some(Sent::Data(data)) = input.next().await {
        if let Some(open) = &mut writer
            && open.write_all(&data).await.is_err()
        {
            writer = None;
        }
        input.gone(data.len());
    }
    if let Some(mut open) = writer {
        let _ = open.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_name_says_where_and_as_whom() {
        let target = |sandbox: &str, user: Option<&str>| Target {
            sandbox: sandbox.to_owned(),
            user: user.map(str::to_owned),
        };
        assert_eq!(Target::parse("box"), target("box", None));
        assert_eq!(Target::parse("box+"), target("box", None));
        assert_eq!(Target::parse("box+alice"), target("box", Some("alice")));
        assert_eq!(Target::parse("box+alice:staff"), target("box", Some("alice:staff")));
        assert_eq!(Target::parse("box+a+b"), target("box", Some("a+b")));
    }
}
