//! An exec over a WebSocket: its stream one way; input, sizes of its terminal and signals the other way.

use axum::extract::State;
use axum::extract::ws::close_code;
use axum::response::Response;
use berth_node::{AttachSpec, ExecInput, Node};
use berth_types::error::{ApiError, ErrorBody, Kind};
use berth_types::exec::{AttachQuery, ExecOffsets, SignalRequest, TerminalSize, frame};
use bytes::{Buf, Bytes};
use futures_util::FutureExt;
use futures_util::stream::{BoxStream, StreamExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::exec::told;
use crate::extract::{self, Path};
use crate::frames::{HEADER_LEN, Queue, Told};
use crate::reply::Reply;
use crate::socket::{Gone, Inbox, Outbox, Said, Upgrade};

/// Most output in one message, but for a single piece that is longer.
const MESSAGE: usize = 64 << 10;

/// Attaches to an exec by a WebSocket: output, input, the size of its terminal and signals on one connection.
///
/// Binary messages, each of one or more whole frames. To the client: the frames of the exec stream; after the last one
/// (`exited` or an error) the WebSocket is closed, with code 1000 after `exited`. To the exec: 16 bytes of input, 17
/// (empty) the end of its input, 18 a `TerminalSize`, 19 a `SignalRequest`. With `stdin=true` this client gives the input from now on,
/// in place of the one that did so far, whose WebSocket ends with the error `stdin_taken`; `stdin_offset` in `started` says where in the input its first byte is. A client
/// that closes, or answers no ping for a minute, detaches.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/execs/{exec}/attach", tag = "execs",
    params(("id" = String, Path), ("exec" = String, Path), ("stdout" = Option<u64>, Query), ("stderr" = Option<u64>, Query),
        ("stdin" = Option<bool>, Query)),
    responses((status = 101, description = "a WebSocket"), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn attach(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
    extract::Query(query): extract::Query<AttachQuery>,
    upgrade: Upgrade,
) -> Reply<Response> {
    let AttachQuery { stdout, stderr, stdin } = query;
    let spec = AttachSpec { from: ExecOffsets { stdout, stderr }, stdin, follow: true };
    let attached = app.node.attach_exec(&id, &exec, spec).await?;
    let wishes =
        OfNode { node: app.node.clone(), input: attached.input(), wants_input: stdin, sandbox: id, exec };
    let taken = attached.input_taken();
    let replaced = async move {
        match stdin {
            true => taken.await,
            false => std::future::pending().await,
        }
    };
    let (told, stop) = (told(attached).boxed(), app.stop.clone());
    Ok(upgrade.talk(move |inbox, outbox| talk(inbox, outbox, told, wishes, replaced, stop)))
}

/// What a client wants of an exec.
#[derive(Debug, PartialEq)]
enum Wish {
    /// Bytes for its input.
    Input(Bytes),
    /// Its input is at its end.
    InputEnd,
    /// Its terminal's size.
    Resize(TerminalSize),
    /// A signal.
    Signal(SignalRequest),
}

/// The next of the frames in a message.
fn next_wish(message: &mut Bytes) -> Result<Option<Wish>, ApiError> {
    let wrong = |what: String| Err(ApiError::new(Kind::User, "bad_frame", what));
    let Some(&[kind, a, b, c, d]) = message.first_chunk::<HEADER_LEN>() else {
        return if message.is_empty() {
            Ok(None)
        } else {
            wrong("a message ends within a frame's header".into())
        };
    };
    let len = u32::from_be_bytes([a, b, c, d]);
    message.advance(HEADER_LEN);
    let payload = match usize::try_from(len) {
        Ok(fits) if len <= frame::MAX_LEN && fits <= message.len() => message.split_to(fits),
        _ => return wrong(format!("a frame of {len} bytes is too long, or not all of it is in its message")),
    };
    Ok(Some(match kind {
        frame::STDIN => Wish::Input(payload),
        frame::STDIN_END if payload.is_empty() => Wish::InputEnd,
        frame::STDIN_END => return wrong("the frame that ends the input holds bytes".into()),
        frame::RESIZE => Wish::Resize(json(&payload)?),
        frame::SIGNAL => Wish::Signal(json(&payload)?),
        _ => return wrong(format!("clients send no frames of kind {kind}")),
    }))
}

fn json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(payload)
        .map_err(|error| ApiError::new(Kind::User, "bad_frame", format!("a frame is not valid: {error}")))
}

/// Carries out wishes.
trait Exec: Send + Sync {
    fn carry_out(&self, wish: Wish) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// An exec of the node's.
struct OfNode {
    node: Node,
    sandbox: String,
    exec: String,
    input: Option<ExecInput>,
    /// Whether the client has said that it gives the input.
    wants_input: bool,
}

impl Exec for OfNode {
    async fn carry_out(&self, wish: Wish) -> Result<(), ApiError> {
        let told = match wish {
            Wish::Input(_) | Wish::InputEnd if !self.wants_input => {
                return Err(ApiError::new(
                    Kind::User,
                    "bad_frame",
                    "input is for a client that attached with stdin=true",
                ));
            }
            // What is not taken any more is not missed: the command is over or does not read on, and its end, or that of
            // the sandbox, is being told.
            Wish::Input(data) => {
                if let Some(input) = &self.input {
                    let _ = input.write(&data).await;
                }
                return Ok(());
            }
            Wish::InputEnd => {
                self.input.as_ref().inspect(|input| input.end());
                return Ok(());
            }
            Wish::Resize(size) => self.node.resize_exec(&self.sandbox, &self.exec, size).await,
            Wish::Signal(signal) => self.node.signal_exec(&self.sandbox, &self.exec, &signal).await,
        };
        match told {
            // Its end is on its way already.
            Ok(()) | Err(berth_node::Error::ExecOver { .. }) => Ok(()),
            Err(error) => Err(ApiError::from(&error)),
        }
    }
}

/// How a conversation ends.
enum End {
    /// All was told.
    Told,
    /// The client is gone, or is not to be waited for.
    Gone,
    /// The client did what it should not, or the exec cannot do what it wants.
    Fault(ApiError),
    /// The daemon stops.
    Stopping,
}

/// Says what is told of the exec, and carries out what the client wishes, until either ends.
async fn talk(
    mut inbox: Inbox,
    mut outbox: Outbox,
    mut told: BoxStream<'static, Told>,
    exec: impl Exec,
    replaced: impl Future<Output = ()> + Send,
    stop: CancellationToken,
) {
    let end = tokio::select! {
        biased;
        end = tell(&mut outbox, &mut told) => end,
        // What it sends from now on would be lost in silence.
        () = replaced => End::Fault(ApiError::new(Kind::Conflict, "stdin_taken", "another client gives the input now")),
        end = hear(&mut inbox, &exec) => end,
        () = stop.cancelled() => End::Stopping,
    };
    // Detaches: whoever attaches next need not wait for this client's goodbye.
    drop((told, exec));
    match end {
        End::Gone => return,
        End::Told => outbox.close(close_code::NORMAL, "").await,
        End::Stopping => outbox.close(close_code::AWAY, "the daemon stops").await,
        End::Fault(error) => outbox.fail(error).await,
    }
    inbox.farewell().await;
}

/// Sends what is told, until the last of it.
async fn tell(outbox: &mut Outbox, told: &mut BoxStream<'static, Told>) -> End {
    loop {
        match outbox.while_waiting(told.next()).await {
            None => return End::Gone,
            Some(None) => return End::Told,
            Some(Some(next)) => {
                if let Some(end) = send(outbox, next, told).await {
                    return end;
                }
            }
        }
    }
}

/// Sends what was told, together with what else is there already; an end when it was the last, or cannot be sent.
async fn send(outbox: &mut Outbox, first: Told, told: &mut BoxStream<'static, Told>) -> Option<End> {
    let mut queue = Queue::default();
    let mut next = Some(first);
    let mut end = None;
    while let Some(one) = next.take() {
        match one {
            Err(error) => end = Some(End::Fault(error)),
            Ok(output) => {
                if queue.push(Ok(output)) {
                    end = Some(End::Told);
                } else if queue.len() < MESSAGE {
                    next = told.next().now_or_never().flatten();
                }
            }
        }
    }
    let Some(message) = queue.pop_all() else { return end };
    if outbox.send(message).await { end } else { Some(End::Gone) }
}

/// Carries out what the client wishes, one after the other.
async fn hear(inbox: &mut Inbox, exec: &impl Exec) -> End {
    let mut has_ended = false;
    loop {
        let mut message = match inbox.next().await {
            Ok(Said::Bytes(message)) => message,
            Ok(Said::Text(_)) => return fault("text messages mean nothing here; frames are binary"),
            Err(Gone::Wrong(what)) => return fault(what),
            Err(Gone::Left) => return End::Gone,
            Err(Gone::Silent) => {
                tracing::info!("a client that was attached to an exec has gone silent");
                return End::Gone;
            }
        };
        loop {
            let done = match next_wish(&mut message) {
                Ok(None) => break,
                // It would be lost in silence.
                Ok(Some(Wish::Input(data))) if has_ended && !data.is_empty() => {
                    return fault("input after its end");
                }
                Ok(Some(wish)) => {
                    has_ended |= wish == Wish::InputEnd;
                    exec.carry_out(wish).await
                }
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                return End::Fault(error);
            }
        }
    }
}

fn fault(what: impl Into<String>) -> End {
    End::Fault(ApiError::new(Kind::User, "bad_frame", what))
}

#[cfg(test)]
mod tests;
