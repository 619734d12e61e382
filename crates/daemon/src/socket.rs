//! WebSockets: how one is taken up, and the two directions of it.
//!
//! ```text
//!   client ──► Inbox   binary messages; silence beyond a limit is the end of a connection that nobody holds any more
//!   client ◄── Outbox  binary messages, a ping now and then, the last word
//! ```
//!
//! A message is read when whoever it is for has room for it, and the next one is made when the last one has been
//! written: a slow side slows the other down, and nothing is gathered in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::request::Parts;
use axum::response::Response;
use berth_types::error::{ApiError, Kind};
use berth_types::exec::frame;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::App;
use crate::activity::Busy;
use crate::frames::{HEADER_LEN, Queue};
use crate::reply::{Failure, user_error};

/// Longest message that is taken, in bytes: the longest frame, and room for some small ones beside it.
pub(crate) const MAX_MESSAGE: usize = frame::MAX_LEN as usize + HEADER_LEN + (64 << 10);

/// What is read at a time, of each connection for as long as it lasts.
const READ_BUFFER: usize = 16 << 10;

/// How often a client is asked for a sign of life.
const PING: Duration = Duration::from_secs(20);

/// How long a client may be silent, answers to pings included.
const IDLE: Duration = Duration::from_secs(60);

/// How long a client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// A request that asks for a WebSocket.
pub(crate) struct Upgrade {
    request: WebSocketUpgrade,
    busy: Busy,
}

impl FromRequestParts<App> for Upgrade {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let request = WebSocketUpgrade::from_request_parts(parts, app).await.map_err(|error| {
            user_error("not_a_websocket", format!("this is for a WebSocket: {}", error.body_text()))
        })?;
        let request =
            request.read_buffer_size(READ_BUFFER).max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
        Ok(Self { request, busy: app.activity.begin() })
    }
}

impl Upgrade {
    /// Answers the request, and talks once the connection is a WebSocket.
    pub(crate) fn talk<F>(self, talk: impl FnOnce(Inbox, Outbox) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { request, busy } = self;
        request.on_upgrade(async move |socket| {
            let (inbox, outbox) = halves(socket);
            talk(inbox, outbox).await;
            drop(busy);
        })
    }
}

fn halves(socket: WebSocket) -> (Inbox, Outbox) {
    let (sink, stream) = socket.split();
    let is_stuck = Arc::new(AtomicBool::new(false));
    let mut pings = tokio::time::interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    (Inbox { stream, is_stuck: is_stuck.clone() }, Outbox { sink, pings, is_stuck })
}

/// What a client sends.
pub(crate) struct Inbox {
    stream: SplitStream<WebSocket>,
    is_stuck: Arc<AtomicBool>,
}

/// Something that a client said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A binary message.
    Bytes(Bytes),
    /// A text message.
    Text(String),
}

/// Why a client says nothing any more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// It said goodbye, or its connection is over.
    Left,
    /// It was silent for too long.
    Silent,
    /// What it sent is no WebSocket's message, or too long.
    Wrong(String),
}

impl Inbox {
    /// The next message.
    pub(crate) async fn next(&mut self) -> Result<Said, Gone> {
        loop {
            let message = match tokio::time::timeout(IDLE, self.stream.next()).await {
                Ok(message) => message,
                // What it has to read comes before any ping; if it is gone, writing will find out.
                Err(_) if self.is_stuck.load(Ordering::Relaxed) => continue,
                Err(_) => return Err(Gone::Silent),
            };
            match message {
                Some(Ok(Message::Binary(data))) => return Ok(Said::Bytes(data)),
                Some(Ok(Message::Text(text))) => return Ok(Said::Text(text.as_str().to_owned())),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Err(Gone::Left),
                Some(Err(error)) => return Err(of_fault(error)),
            }
        }
    }

    /// Waits for the client's goodbye, so that what was said last is not lost by a connection that is closed with
    /// something unread in it.
    pub(crate) async fn farewell(&mut self) {
        let left = async { while !matches!(self.stream.next().await, None | Some(Err(_))) {} };
        let _ = tokio::time::timeout(GOODBYE, left).await;
    }
}

fn of_fault(error: axum::Error) -> Gone {
    use std::error::Error as _;
    // A connection that breaks is an I/O error inside; anything else is what the client did.
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<std::io::Error>() {
            return Gone::Left;
        }
        cause = inner.source();
    }
    let text = error.to_string();
    if text.contains("without closing handshake") { Gone::Left } else { Gone::Wrong(text) }
}

/// What is sent to a client.
pub(crate) struct Outbox {
    sink: SplitSink<WebSocket, Message>,
    pings: Interval,
    is_stuck: Arc<AtomicBool>,
}

impl Outbox {
    /// Sends a binary message; returns when it is written. False when the client is gone.
    pub(crate) async fn send(&mut self, bytes: Bytes) -> bool {
        self.write(Message::Binary(bytes)).await
    }

    /// Waits for `work`, and pings now and then meanwhile. Nothing when the client is gone.
    pub(crate) async fn while_waiting<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                _ = self.pings.tick() => if !self.write(Message::Ping(Bytes::new())).await { return None },
            }
        }
    }

    /// Says why it goes on no more, by a frame of the exec stream, and goodbye.
    pub(crate) async fn fail(&mut self, error: ApiError) {
        let (code, reason) = (close_code_of(&error), error.message.clone());
        let mut last = Queue::default();
        last.push(Err(error));
        let sent = self.send(last.pop_all().unwrap_or_default());
        if tokio::time::timeout(GOODBYE, sent).await == Ok(true) {
            self.close(code, &reason).await;
        }
    }

    /// Says goodbye.
    pub(crate) async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame { code, reason: short(reason).into() };
        let goodbye = self.sink.send(Message::Close(Some(frame)));
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }

    async fn write(&mut self, message: Message) -> bool {
        self.is_stuck.store(true, Ordering::Relaxed);
        let written = self.sink.send(message).await;
        self.is_stuck.store(false, Ordering::Relaxed);
        written.is_ok()
    }
}

/// The reason in a close frame has at most 123 bytes. RFC 6455, 5.5.
fn short(reason: &str) -> &str {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

/// The code with which a WebSocket ends for an error.
pub(crate) fn close_code_of(error: &ApiError) -> u16 {
    match error.kind {
        Kind::User | Kind::NotFound | Kind::Conflict => close_code::POLICY,
        Kind::Config | Kind::Capacity | Kind::Unavailable | Kind::Internal => close_code::ERROR,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::routing::get;
    use hyper::server::conn::http1;
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;
    use tokio::net::UnixStream;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message as Theirs;

    use super::*;
    use crate::activity::Activity;

    pub(crate) type Client = WebSocketStream<UnixStream>;

    /// A client whose WebSocket is served by `talk`.
    pub(crate) async fn connect<F>(talk: impl FnOnce(Inbox, Outbox) -> F + Send + 'static) -> Client
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let talk = Arc::new(Mutex::new(Some(talk)));
        let handler = async move |request: WebSocketUpgrade| {
            let talk = talk.lock().unwrap().take().unwrap();
            Upgrade {
                request: request.max_message_size(MAX_MESSAGE),
                busy: Arc::new(Activity::default()).begin(),
            }
            .talk(talk)
        };
        let service = TowerToHyperService::new(Router::new().route("/", get(handler)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(ours), service).with_upgrades());
        tokio_tungstenite::client_async("ws://berth/", theirs).await.unwrap().0
    }

    /// The code and the reason of the next close frame; panics on anything else.
    pub(crate) async fn closed(client: &mut Client) -> (u16, String) {
        match client.next().await {
            Some(Ok(Theirs::Close(Some(frame)))) => (frame.code.into(), frame.reason.as_str().to_owned()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reasons_fit_into_a_close_frame() {
        assert_eq!(short("gone"), "gone");
        assert_eq!(short(&"ä".repeat(100)).len(), 122);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_no_ping_is_gone_and_one_that_does_is_not() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let mut client = connect(|mut inbox, mut outbox| async move {
            let silent = outbox.while_waiting(inbox.next());
            let _ = tell.send(silent.await);
        })
        .await;
        // Reading answers the pings.
        let alive = async { while let Some(Ok(_)) = client.next().await {} };
        assert!(tokio::time::timeout(IDLE * 3, alive).await.is_err());
        assert_eq!(told.await.unwrap(), Some(Err(Gone::Silent)));
    }

    #[tokio::test]
    async fn what_is_too_long_or_cut_off_is_told_apart() {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        for send in [vec![0; MAX_MESSAGE + 1], Vec::new()] {
            let tell = tell.clone();
            let mut client = connect(move |mut inbox, _outbox| async move {
                let _ = tell.send(inbox.next().await);
            })
            .await;
            if send.is_empty() {
                drop(client);
                assert_eq!(told.recv().await.unwrap(), Err(Gone::Left));
            } else {
                let _ = client.send(Theirs::binary(send)).await;
                assert!(matches!(told.recv().await.unwrap(), Err(Gone::Wrong(_))));
            }
        }
    }
}
