//! What the SSH door opens onto: the machine's sandboxes, behind a trait so that it can be tried without them.

use std::io;

use berth_node::{Connect, Exec, ExecOutput, Node};
use berth_types::error::ApiError;
use berth_types::exec::{ExecRequest, SignalRequest, TerminalSize};
use tokio::io::{AsyncRead, AsyncWrite};

/// Why something was not done; a line for the person at the other end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Sandboxes that can be entered.
pub trait Door: Clone + Send + Sync + 'static {
    /// A command under way.
    type Exec: Running;
    /// A connection to a socket inside.
    type Socket: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Runs a command.
    fn exec(
        &self,
        sandbox: &str,
        request: ExecRequest,
    ) -> impl Future<Output = Result<Self::Exec, Refused>> + Send;

    /// Sends it a signal.
    fn signal(
        &self,
        sandbox: &str,
        exec: &str,
        signal: &SignalRequest,
    ) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Tells it the size of its terminal.
    fn resize(
        &self,
        sandbox: &str,
        exec: &str,
        size: TerminalSize,
    ) -> impl Future<Output = Result<(), Refused>> + Send;

    /// Connects to a socket inside.
    fn connect(
        &self,
        sandbox: &str,
        socket: Connect,
    ) -> impl Future<Output = Result<Self::Socket, Refused>> + Send;
}

/// A command under way; it goes on when this is dropped.
pub trait Running: Send + 'static {
    /// What writes to its stdin.
    type Input: Input;

    /// What writes to its stdin, where it has one.
    fn input(&self) -> Option<Self::Input>;

    /// What happened next; cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<ExecOutput, Refused>> + Send;
}

/// Standard input of a command.
pub trait Input: Send + Sync + 'static {
    /// Writes all of `data`, once there is room for it.
    fn write(&self, data: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Ends it.
    fn end(&self);
}

impl From<berth_node::Error> for Refused {
    fn from(error: berth_node::Error) -> Self {
        let api = ApiError::from(&error);
        Self(match api.hint {
            Some(hint) => format!("{}; hint: {hint}", api.message),
            None => api.message,
        })
    }
}

impl Door for Node {
    type Exec = Exec;
    type Socket = berth_node::Socket;

    async fn exec(&self, sandbox: &str, request: ExecRequest) -> Result<Exec, Refused> {
        Ok(Node::exec(self, sandbox, request).await?)
    }

    async fn signal(&self, sandbox: &str, exec: &str, signal: &SignalRequest) -> Result<(), Refused> {
        Ok(self.signal_exec(sandbox, exec, signal).await?)
    }

    async fn resize(&self, sandbox: &str, exec: &str, size: TerminalSize) -> Result<(), Refused> {
        Ok(self.resize_exec(sandbox, exec, size).await?)
    }

    async fn connect(&self, sandbox: &str, socket: Connect) -> Result<Self::Socket, Refused> {
        Ok(Node::connect(self, sandbox, socket).await?)
    }
}

impl Running for Exec {
    type Input = berth_node::ExecInput;

    fn input(&self) -> Option<Self::Input> {
        Exec::input(self)
    }

    async fn next(&mut self) -> Result<ExecOutput, Refused> {
        Ok(Exec::next(self).await?)
    }
}

impl Input for berth_node::ExecInput {
    async fn write(&self, data: &[u8]) -> io::Result<()> {
        berth_node::ExecInput::write(self, data).await.map_err(io::Error::other)
    }

    fn end(&self) {
        berth_node::ExecInput::end(self);
    }
}
