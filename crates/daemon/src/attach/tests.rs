//! Conversations with execs that are made up.

use std::sync::{Arc, Mutex};

use berth_node::ExecOutput;
use berth_types::exec::{ExecStatus, ExitReason, OutputStream, Signal};
use futures_util::{SinkExt, stream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::socket::tests::{Client, closed, connect};

type Wishes = Arc<Mutex<Vec<Wish>>>;

/// Notes what is wished; refuses signals.
#[derive(Clone, Default)]
struct Fake {
    wishes: Wishes,
    /// Told when it is dropped: nobody is attached any more.
    _attached: Option<mpsc::Sender<()>>,
}

impl Exec for Fake {
    async fn carry_out(&self, wish: Wish) -> Result<(), ApiError> {
        if let Wish::Signal(_) = &wish {
            return Err(ApiError::new(Kind::User, "bad_request", "no such signal"));
        }
        self.wishes.lock().unwrap().push(wish);
        Ok(())
    }
}

/// A client that is attached to an exec which says what comes through the channel, and then nothing.
async fn attached() -> (Client, mpsc::UnboundedSender<Told>, Wishes, mpsc::Receiver<()>) {
    attached_until(std::future::pending()).await
}

/// The same, whose place somebody else takes.
async fn attached_until(
    replaced: impl Future<Output = ()> + Send + 'static,
) -> (Client, mpsc::UnboundedSender<Told>, Wishes, mpsc::Receiver<()>) {
    let (say, said) = mpsc::unbounded_channel();
    let (token, gone) = mpsc::channel(1);
    let exec = Fake { _attached: Some(token), ..Fake::default() };
    let wishes = exec.wishes.clone();
    let told = stream::unfold(said, |mut said| async { Some((said.recv().await?, said)) })
        .chain(stream::pending())
        .boxed();
    let client = connect(|inbox, outbox| async move {
        talk(inbox, outbox, told, exec, replaced, CancellationToken::new()).await
    });
    (client.await, say, wishes, gone)
}

fn output(offset: u64, data: &'static [u8]) -> Told {
    let data = Bytes::from_static(data);
    Ok(ExecOutput::Output { stream: OutputStream::Stdout, offset, time_us: 0, data })
}

fn frame_of(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend(payload);
    bytes
}

async fn received(client: &mut Client) -> Bytes {
    match client.next().await {
        Some(Ok(Message::Binary(data))) => data,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn output_comes_as_frames_and_the_end_closes_in_order() {
    let (mut client, say, _, _gone) = attached().await;
    say.send(output(3, b"out")).unwrap();
    let message = received(&mut client).await;
    assert_eq!(
        (message[0], message[5..13].to_vec(), &message[21..]),
        (frame::STDOUT, 3u64.to_be_bytes().to_vec(), &b"out"[..])
    );
    say.send(Ok(ExecOutput::Exited(ExecStatus::new(7, ExitReason::Exited)))).unwrap();
    let last = received(&mut client).await;
    assert_eq!(last[0], frame::EVENT);
    assert!(last[5..].starts_with(br#"{"event":"exited","exit_code":7"#));
    assert_eq!(closed(&mut client).await.0, 1000);
}

#[tokio::test]
async fn what_clients_wish_is_carried_out_in_order() {
    let (mut client, say, wishes, _gone) = attached().await;
    let message = [
        frame_of(frame::STDIN, b"in"),
        frame_of(frame::RESIZE, br#"{"rows":2,"cols":3}"#),
        frame_of(frame::STDIN_END, b""),
    ];
    client.send(Message::binary(message.concat())).await.unwrap();
    client.send(Message::binary(frame_of(frame::STDIN, b""))).await.unwrap();
    client.flush().await.unwrap();
    while wishes.lock().unwrap().len() < 4 {
        tokio::task::yield_now().await;
    }
    let expected = [
        Wish::Input(Bytes::from_static(b"in")),
        Wish::Resize(TerminalSize { rows: 2, cols: 3 }),
        Wish::InputEnd,
        Wish::Input(Bytes::new()),
    ];
    assert_eq!(*wishes.lock().unwrap(), expected);
    drop(say);
}

#[tokio::test]
async fn an_error_is_told_by_a_frame_before_the_end() {
    let (mut client, say, _, _gone) = attached().await;
    say.send(Err(ApiError::new(Kind::Unavailable, "sandbox_lost", "it is gone"))).unwrap();
    let last = received(&mut client).await;
    assert_eq!(last[0], frame::ERROR);
    assert_eq!(serde_json::from_slice::<ApiError>(&last[5..]).unwrap().code, "sandbox_lost");
    assert_eq!(closed(&mut client).await, (1011, "it is gone".to_owned()));
}

#[tokio::test]
async fn what_is_no_frame_is_told_and_ends_the_conversation() {
    let mut long = frame_of(frame::STDIN, b"x");
    long[4] = 2;
    let bad = [
        Message::text("hello"),
        Message::binary(vec![frame::STDIN, 0, 0]),
        Message::binary(long),
        Message::binary(frame_of(frame::STDOUT, b"x")),
        Message::binary(frame_of(frame::STDIN_END, b"x")),
        Message::binary(frame_of(frame::RESIZE, br#"{"rows":2}"#)),
        Message::binary(frame_of(frame::RESIZE, br#"{"rows":2,"cols":3,"x":1}"#)),
        Message::binary([frame::STDIN, 0xff, 0xff, 0xff, 0xff].to_vec()),
        Message::binary([frame_of(frame::STDIN_END, b""), frame_of(frame::STDIN, b"x")].concat()),
    ];
    for message in bad {
        let (mut client, _say, _, mut gone) = attached().await;
        let shown = format!("{message:?}");
        client.send(message).await.unwrap();
        let last = received(&mut client).await;
        let error: ApiError = serde_json::from_slice(&last[5..]).unwrap();
        assert_eq!((last[0], error.code.as_str()), (frame::ERROR, "bad_frame"), "{shown}");
        assert_eq!(closed(&mut client).await.0, 1008);
        assert_eq!(gone.recv().await, None);
    }
}

#[tokio::test]
async fn a_wish_that_is_refused_says_why() {
    let (mut client, _say, _, _gone) = attached().await;
    client.send(Message::binary(frame_of(frame::SIGNAL, br#"{"signal":"NONE"}"#))).await.unwrap();
    let last = received(&mut client).await;
    assert_eq!(serde_json::from_slice::<ApiError>(&last[5..]).unwrap().message, "no such signal");
    assert_eq!(closed(&mut client).await.0, 1008);
}

#[tokio::test]
async fn a_client_whose_input_another_gives_is_told() {
    let (mut client, _say, _, _gone) = attached_until(async {}).await;
    let last = received(&mut client).await;
    assert_eq!(serde_json::from_slice::<ApiError>(&last[5..]).unwrap().code, "stdin_taken");
    assert_eq!(closed(&mut client).await.0, 1008);
}

#[tokio::test]
async fn a_client_that_leaves_or_is_cut_off_detaches() {
    for in_order in [true, false] {
        let (mut client, _say, _, mut gone) = attached().await;
        if in_order {
            client.close(None).await.unwrap();
        }
        drop(client);
        assert_eq!(gone.recv().await, None);
    }
}

#[test]
fn signals_are_read_by_name_and_number() {
    let mut message = Bytes::from(
        [
            frame_of(frame::SIGNAL, br#"{"signal":"INT"}"#),
            frame_of(frame::SIGNAL, br#"{"signal":9,"tree":true}"#),
        ]
        .concat(),
    );
    let by = |signal, tree| Some(Wish::Signal(SignalRequest { signal, tree }));
    assert_eq!(next_wish(&mut message).unwrap(), by(Signal::Name("INT".into()), false));
    assert_eq!(next_wish(&mut message).unwrap(), by(Signal::Number(9), true));
    assert_eq!(next_wish(&mut message).unwrap(), None);
}

proptest::proptest! {
    #[test]
    fn any_message_is_wishes_or_a_mistake(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
        let mut message = Bytes::from(bytes);
        while let Ok(Some(_)) = next_wish(&mut message) {}
    }
}
