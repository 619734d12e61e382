//! A connection to a port inside, over a WebSocket.

use std::io;

use axum::extract::State;
use axum::extract::ws::close_code;
use axum::response::Response;
use berth_node::Connect;
use berth_types::error::ErrorBody;
use berth_types::files::TcpQuery;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;
use crate::socket::{Gone, Inbox, Outbox, Said, Upgrade};

/// Most bytes in one message to a client.
const MESSAGE: usize = 32 << 10;

/// The text message by which a client says that it has sent all: the port reads an end, and may go on to answer.
const CLIENT_DONE: &str = "end";

/// Connects to a port of the sandbox. A WebSocket: each binary message is bytes of the connection, either way.
///
/// When the port has sent all, the WebSocket is closed with code 1000; with 1011 and a reason when the connection inside
/// broke. A client that has sent all but still wants to read says so by the text message `end`; one that closes the
/// WebSocket ends the connection. Without anything that listens the answer is 502, `not_listening`. The sandbox needs no
/// network for this: the connection is made by its own first process.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/tcp", tag = "ports",
    params(("id" = String, Path), ("host" = Option<String>, Query, description = "as the sandbox sees it; localhost when absent"),
        ("port" = u16, Query)),
    responses((status = 101, description = "a WebSocket"), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn connect(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<TcpQuery>,
    upgrade: Upgrade,
) -> Reply<Response> {
    let host = query.host.unwrap_or_else(|| "localhost".to_owned());
    let socket = app.node.connect(&id, Connect::Tcp { host, port: query.port }).await?;
    let stop = app.stop.clone();
    Ok(upgrade.talk(move |inbox, outbox| relay(inbox, outbox, socket, stop)))
}

/// How a connection ends.
enum End {
    /// The port has sent all.
    Told,
    /// The connection inside broke.
    Broken(io::Error),
    /// The client did what it should not.
    Fault(String),
    /// The client is gone.
    Gone,
    /// The daemon stops.
    Stopping,
}

async fn relay(
    mut inbox: Inbox,
    mut outbox: Outbox,
    socket: impl AsyncRead + AsyncWrite + Send + 'static,
    stop: CancellationToken,
) {
    let (mut reader, mut writer) = tokio::io::split(socket);
    let end = tokio::select! {
        end = outward(&mut outbox, &mut reader) => end,
        end = inward(&mut inbox, &mut writer) => end,
        () = stop.cancelled() => End::Stopping,
    };
    drop((reader, writer));
    match end {
        End::Gone => return,
        End::Told => outbox.close(close_code::NORMAL, "").await,
        End::Stopping => outbox.close(close_code::AWAY, "the daemon stops").await,
        End::Broken(error) => outbox.close(close_code::ERROR, &error.to_string()).await,
        End::Fault(what) => outbox.close(close_code::POLICY, &what).await,
    }
    inbox.farewell().await;
}

async fn outward<S: AsyncRead>(outbox: &mut Outbox, reader: &mut ReadHalf<S>) -> End {
    loop {
        let read = async {
            let mut piece = BytesMut::with_capacity(MESSAGE);
            reader.read_buf(&mut piece).await.map(|_| piece.freeze())
        };
        match outbox.while_waiting(read).await {
            None => return End::Gone,
            Some(Err(error)) => return End::Broken(error),
            Some(Ok(piece)) if piece.is_empty() => return End::Told,
            Some(Ok(piece)) => {
                if !outbox.send(piece).await {
                    return End::Gone;
                }
            }
        }
    }
}

async fn inward<S: AsyncWrite>(inbox: &mut Inbox, writer: &mut WriteHalf<S>) -> End {
    let (mut is_done, mut is_deaf) = (false, false);
    loop {
        let written = match inbox.next().await {
            Ok(Said::Bytes(_)) if is_done => return End::Fault("bytes after the end".to_owned()),
            Ok(Said::Bytes(_)) if is_deaf => Ok(()),
            Ok(Said::Bytes(data)) => write(writer, &data).await,
            Ok(Said::Text(text)) if text == CLIENT_DONE => {
                is_done = true;
                writer.shutdown().await
            }
            Ok(Said::Text(text)) => {
                return End::Fault(format!("the text message {text:?} means nothing here"));
            }
            Err(Gone::Wrong(what)) => return End::Fault(what),
            Err(Gone::Left | Gone::Silent) => return End::Gone,
        };
        // What the port does not read any more is its own affair: it may still have something to say, and when it is gone
        // that is found by reading.
        if let Err(error) = written {
            tracing::debug!(%error, "a port takes nothing any more");
            is_deaf = true;
        }
    }
}

async fn write<S: AsyncWrite>(writer: &mut WriteHalf<S>, data: &Bytes) -> io::Result<()> {
    writer.write_all(data).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::DuplexStream;
    use tokio_tungstenite::tungstenite::Message;

    use super::*;
    use crate::socket::tests::{Client, closed, connect};

    /// A client, and what is connected to it inside.
    async fn pair() -> (Client, DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 10);
        let stop = CancellationToken::new();
        let client = connect(move |inbox, outbox| async move {
            let _kept = &stop;
            relay(inbox, outbox, near, stop.clone()).await;
        })
        .await;
        (client, far)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_port_may_end_it() {
        let (mut client, mut port) = pair().await;
        client.send(Message::binary(&b"question"[..])).await.unwrap();
        let mut heard = [0; 8];
        port.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"question");
        port.write_all(b"answer").await.unwrap();
        drop(port);
        assert_eq!(client.next().await.unwrap().unwrap().into_data(), "answer");
        assert_eq!(closed(&mut client).await.0, 1000);
    }

    #[tokio::test]
    async fn a_client_that_has_sent_all_still_gets_the_answer() {
        let (mut client, mut port) = pair().await;
        client.send(Message::binary(&b"all"[..])).await.unwrap();
        client.send(Message::text("end")).await.unwrap();
        let mut heard = Vec::new();
        port.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"all");
        port.write_all(b"answer").await.unwrap();
        drop(port);
        assert_eq!(client.next().await.unwrap().unwrap().into_data(), "answer");
        assert_eq!(closed(&mut client).await.0, 1000);
    }

    #[tokio::test]
    async fn bytes_after_the_end_and_words_without_meaning_are_refused() {
        for last in [Message::binary(&b"more"[..]), Message::text("stop")] {
            let (mut client, _port) = pair().await;
            client.send(Message::text("end")).await.unwrap();
            client.send(last).await.unwrap();
            assert_eq!(closed(&mut client).await.0, 1008);
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_connection() {
        let (mut client, mut port) = pair().await;
        client.close(None).await.unwrap();
        assert_eq!(port.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_port_that_does_not_read_holds_the_client_up() {
        let (mut client, mut port) = pair().await;
        let sender = tokio::spawn(async move {
            for _ in 0..256 {
                client.send(Message::binary(vec![7; 64 << 10])).await.unwrap();
            }
            client
        });
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert!(!sender.is_finished(), "16 MiB went somewhere");
        let mut left = vec![0; 256 * (64 << 10)];
        port.read_exact(&mut left).await.unwrap();
        assert!(left.iter().all(|byte| *byte == 7));
        sender.await.unwrap();
    }
}
