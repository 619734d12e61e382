//! What goes both ways at once: terminals and ports, each over a WebSocket of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use berth_types::error::ErrorBody;
use berth_types::exec::{
    AttachQuery, ExecEvent, ExecStatus, OutputStream, SignalRequest, TerminalSize, frame,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use http::Method;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, handshake::client::Request};

use crate::exec::{Decoder, Frame};
use crate::sandboxes::sandbox_path;
use crate::transport::{connect_tcp, encode};
use crate::{Client, Error, ExecOutput, Host};

/// Most that waits to be sent before the sender waits.
const UNSENT: usize = 256 * 1024;

/// Most bytes of input in one message.
const PIECE: usize = 64 * 1024;

/// How much of an unknown error body an error quotes.
const QUOTED_BODY: usize = 400;

/// A connection to the daemon of either kind.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

type Socket = WebSocketStream<Box<dyn Wire>>;

/// A client's place at an exec: output comes, input and signals go.
pub struct Attached {
    sandbox: String,
    operation: String,
    host: String,
    socket: Socket,
    decoder: Decoder,
    is_over: bool,
}

/// A connection to a port inside a sandbox. `shutdown` ends this side's half alone; dropping it ends both.
pub struct PortStream {
    socket: Socket,
    read: Bytes,
    is_over: bool,
    has_ended: bool,
}

impl Client {
    /// Attaches to an exec with a way back to it. A cut is not mended here: attach again at the offsets that were read.
    pub async fn attach_exec(
        &self,
        sandbox: &str,
        exec: &str,
        query: AttachQuery,
    ) -> Result<Attached, Error> {
        let operation = format!("attach to exec {exec} of sandbox {sandbox}");
        let socket = self.upgrade(&Client::attach_path(sandbox, exec, query), &operation).await?;
        Ok(Attached {
            sandbox: sandbox.to_owned(),
            operation,
            host: self.host().to_string(),
            socket,
            decoder: Decoder::default(),
            is_over: false,
        })
    }

    /// Connects to a port inside a sandbox, as seen from inside: `localhost` usually.
    ///
    /// # Errors
    /// [`Error::Api`] with the code `not_listening` where nothing listens.
    pub async fn connect_port(&self, sandbox: &str, host: &str, port: u16) -> Result<PortStream, Error> {
        let operation = format!("connect to port {port} of sandbox {sandbox}");
        let path = sandbox_path(sandbox, &format!("/tcp?host={}&port={port}", encode(host)));
        let socket = self.upgrade(&path, &operation).await?;
        Ok(PortStream { socket, read: Bytes::new(), is_over: false, has_ended: false })
    }

    async fn upgrade(&self, path: &str, operation: &str) -> Result<Socket, Error> {
        let failed = |source| self.web_socket_error(operation, source);
        let request = request(path).map_err(failed)?;
        let connected = match self.host() {
            Host::Unix(socket) => {
                UnixStream::connect(socket).await.map(|wire| Box::new(wire) as Box<dyn Wire>)
            }
            Host::Tcp { host, port } => connect_tcp(host, *port).await.map(|wire| Box::new(wire) as _),
        };
        let wire = connected.map_err(|source| Error::Connect {
            operation: operation.to_owned(),
            host: self.host().to_string(),
            source,
        })?;
        let config =
            WebSocketConfig::default().write_buffer_size(0).max_write_buffer_size(UNSENT + PIECE * 2);
        let upgraded = tokio_tungstenite::client_async_with_config(request, wire, Some(config)).await;
        upgraded.map(|(socket, _)| socket).map_err(failed)
    }

    fn web_socket_error(&self, operation: &str, source: tungstenite::Error) -> Error {
        let operation = operation.to_owned();
        let tungstenite::Error::Http(answer) = source else {
            return Error::WebSocket { operation, host: self.host().to_string(), source: Box::new(source) };
        };
        let body = answer.body().as_deref().unwrap_or_default();
        match serde_json::from_slice::<ErrorBody>(body) {
            Ok(body) => Error::Api { operation, source: Box::new(body.error) },
            Err(_) => {
                let body = String::from_utf8_lossy(&body[..body.len().min(QUOTED_BODY)]).into_owned();
                Error::Status { operation, status: answer.status().as_u16(), body }
            }
        }
    }
}

fn request(path: &str) -> Result<Request, tungstenite::Error> {
    // The host is a formality: the wire is connected already.
    let mut request = format!("ws://berth{path}").into_client_request()?;
    *request.method_mut() = Method::GET;
    Ok(request)
}

impl Attached {
    /// What comes next; nothing after [`ExecOutput::Exited`] and after an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<ExecOutput, Error>> {
        if self.is_over {
            return None;
        }
        let step = self.step().await;
        self.is_over = !matches!(&step, Ok(output) if !matches!(output, ExecOutput::Exited(_)));
        Some(step)
    }

    async fn step(&mut self) -> Result<ExecOutput, Error> {
        loop {
            if let Some(frame) = self.decoder.next().map_err(|fault| fault.into_error(&self.sandbox))? {
                return self.output(frame);
            }
            match self.socket.next().await {
                Some(Ok(Message::Binary(data))) => self.decoder.feed(data),
                Some(Ok(Message::Close(_))) | None => {
                    return Err(Error::ExecLost { sandbox: self.sandbox.clone(), source: None });
                }
                Some(Ok(_)) => {}
                Some(Err(source)) => return Err(self.broken(source)),
            }
        }
    }

    fn output(&self, frame: Frame) -> Result<ExecOutput, Error> {
        Ok(match frame {
            Frame::Output { stream: OutputStream::Stdout, data, .. } => ExecOutput::Stdout(data),
            Frame::Output { stream: OutputStream::Stderr, data, .. } => ExecOutput::Stderr(data),
            Frame::Event(ExecEvent::Started { id, program, stdin_offset, .. }) => {
                ExecOutput::Started { id, program, stdin_offset }
            }
            Frame::Event(ExecEvent::Gap { stream, from, to }) => ExecOutput::Gap { stream, from, to },
            Frame::Event(ExecEvent::Exited(status)) => ExecOutput::Exited(status),
            Frame::Event(ExecEvent::Detached) => ExecOutput::Detached,
            Frame::Error(source) => {
                return Err(Error::Api { operation: self.operation.clone(), source: Box::new(source) });
            }
        })
    }

    /// Gives the command input; returns when it is on its way.
    pub async fn send_input(&mut self, input: &[u8]) -> Result<(), Error> {
        for piece in input.chunks(PIECE) {
            self.send(frame::STDIN, piece).await?;
        }
        Ok(())
    }

    /// Ends the command's input.
    pub async fn end_input(&mut self) -> Result<(), Error> {
        self.send(frame::STDIN_END, &[]).await
    }

    /// Tells the size of its terminal.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<(), Error> {
        self.send_json(frame::RESIZE, &size).await
    }

    /// Sends it a signal.
    pub async fn signal(&mut self, signal: &SignalRequest) -> Result<(), Error> {
        self.send_json(frame::SIGNAL, signal).await
    }

    /// The status, once it ends; output is thrown away.
    pub async fn wait(mut self) -> Result<ExecStatus, Error> {
        while let Some(output) = self.next().await {
            if let ExecOutput::Exited(status) = output? {
                return Ok(status);
            }
        }
        Err(Error::ExecLost { sandbox: self.sandbox, source: None })
    }

    /// Goes away in order; the command runs on.
    pub async fn detach(mut self) {
        // One that is broken is gone already.
        let _ = self.socket.close(None).await;
    }

    async fn send_json(&mut self, kind: u8, value: &impl serde::Serialize) -> Result<(), Error> {
        let text = serde_json::to_vec(value)
            .map_err(|source| Error::Encode { operation: self.operation.clone(), source })?;
        self.send(kind, &text).await
    }

    async fn send(&mut self, kind: u8, payload: &[u8]) -> Result<(), Error> {
        let mut bytes = BytesMut::with_capacity(payload.len() + 5);
        bytes.put_u8(kind);
        bytes.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        bytes.put_slice(payload);
        self.socket.send(Message::Binary(bytes.freeze())).await.map_err(|source| self.broken(source))
    }

    fn broken(&self, source: tungstenite::Error) -> Error {
        let (operation, host) = (self.operation.clone(), self.host.clone());
        Error::WebSocket { operation, host, source: Box::new(source) }
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.read.is_empty() && !self.is_over {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(data))) => self.read = data,
                // Any other goodbye than that to an end says that there was none.
                Some(Ok(Message::Close(Some(frame)))) if frame.code != CloseCode::Normal => {
                    let reason = frame.reason.as_str().to_owned();
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason)));
                }
                Some(Ok(Message::Close(_))) => self.is_over = true,
                Some(Ok(_)) => {}
                Some(Err(tungstenite::Error::ConnectionClosed)) => self.is_over = true,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                // Without a goodbye it was cut off.
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        let len = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..len]);
        self.read.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io::Error::other)?;
        let len = data.len().min(PIECE);
        let message = Message::Binary(Bytes::copy_from_slice(&data[..len]));
        Pin::new(&mut self.socket).start_send(message).map_err(io::Error::other)?;
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_gone = |error: &tungstenite::Error| {
            matches!(error, tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)
        };
        if !self.has_ended {
            match ready!(Pin::new(&mut self.socket).poll_ready(cx)) {
                Err(error) if is_gone(&error) => return Poll::Ready(Ok(())),
                ready => ready.map_err(io::Error::other)?,
            }
            let end = Message::Text("end".into());
            Pin::new(&mut self.socket).start_send(end).map_err(io::Error::other)?;
            self.has_ended = true;
        }
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Err(error) if !is_gone(&error) => Poll::Ready(Err(io::Error::other(error))),
            _ => Poll::Ready(Ok(())),
        }
    }
}
