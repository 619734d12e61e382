//! One stream, the task that serves it, and the channels on it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use berth_wire::{
    Body, DecodeError, Frame, GENERATION, HEADER_LEN, Hello, MAX_DATA, ReceiveWindow, Reply, Request,
    WindowError,
};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;

use super::Error;
use super::cut::{Cut, Cutter, Piece};

/// What the guest sent on a channel.
#[derive(Debug)]
pub(super) enum Incoming {
    Data(Bytes),
    Output(Piece),
    /// No more data comes; other than that the channel goes on.
    End,
    Reply(Reply),
}

/// A stream that is served. Dropping it closes the stream.
pub(super) struct Connection {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shared {
    slots: Mutex<Slots>,
    /// Encoded frames. Data in it is bounded by the channels' windows.
    out: mpsc::UnboundedSender<Vec<u8>>,
    gone: watch::Sender<bool>,
}

#[derive(Default)]
struct Slots {
    last: u32,
    open: HashMap<u32, Slot>,
    gone: bool,
}

/// A channel on which the guest has not said its last word.
struct Slot {
    incoming: mpsc::UnboundedSender<Incoming>,
    receive: ReceiveWindow,
    send: Arc<Semaphore>,
    window: u32,
}

/// Why a stream is given up.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("read from the guest")]
    Read(#[source] io::Error),
    #[error("write to the guest")]
    Write(#[source] io::Error),
    #[error("decode the guest's stream")]
    Decode(#[from] DecodeError),
    #[error("the guest does not keep to a window")]
    Window(#[from] WindowError),
    #[error("the guest sent a frame that only a host sends, on channel {0}")]
    Unexpected(u32),
}

/// Reads the greeting and starts to serve the stream.
pub(super) async fn greet<S>(mut stream: S) -> Result<(Connection, Hello), Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut cutter = Cutter::default();
    let hello = read_hello(&mut stream, &mut cutter).await?;
    if hello.generation != GENERATION {
        return Err(Error::Generation { theirs: hello.generation });
    }
    let (out, queue) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared { slots: Mutex::default(), out, gone: watch::Sender::new(false) });
    let (reader, writer) = tokio::io::split(stream);
    let task = tokio::spawn(serve(shared.clone(), reader, cutter, writer, queue)).abort_handle();
    Ok((Connection { shared, task }, hello))
}

async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S, cutter: &mut Cutter) -> Result<Hello, Error> {
    loop {
        match cutter.next().map_err(|error| Error::Protocol(Some(error)))? {
            Some((_, Cut::Control(Body::Hello(hello)))) => return Ok(hello),
            Some(_) => return Err(Error::Protocol(None)),
            None => {}
        }
        if cutter.read_from(stream).await.map_err(Error::Greeting)? == 0 {
            return Err(Error::Greeting(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Reads and writes until the guest closes the stream or breaks the protocol, and then closes it from this side as
/// well. Without room to write it goes on to read: the guest's last words may be on their way.
async fn serve<S: AsyncRead + AsyncWrite>(
    shared: Arc<Shared>,
    reader: ReadHalf<S>,
    cutter: Cutter,
    writer: WriteHalf<S>,
    queue: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    let write = async {
        if let Err(error) = write(writer, queue).await {
            tracing::debug!(error = &error as &dyn std::error::Error);
        }
        std::future::pending().await
    };
    let read = tokio::select! {
        read = read(&shared, reader, cutter) => read,
        () = write => Ok(()),
    };
    match &read {
        Ok(()) => {}
        // A guest that dies resets the stream; only breaches of the protocol are news.
        Err(error @ Broken::Read(_)) => tracing::debug!(error = error as &dyn std::error::Error),
        Err(error) => {
            tracing::warn!(error = error as &dyn std::error::Error, "gave up the connection to a guest");
        }
    }
    shared.end();
}

async fn read<S>(shared: &Shared, mut reader: ReadHalf<S>, mut cutter: Cutter) -> Result<(), Broken>
where
    S: AsyncRead,
{
    loop {
        while let Some((channel, cut)) = cutter.next()? {
            shared.take(channel, cut)?;
        }
        if cutter.read_from(&mut reader).await.map_err(Broken::Read)? == 0 {
            return Ok(());
        }
    }
}

async fn write<S>(mut writer: WriteHalf<S>, mut queue: mpsc::UnboundedReceiver<Vec<u8>>) -> Result<(), Broken>
where
    S: AsyncWrite,
{
    while let Some(frames) = queue.recv().await {
        writer.write_all(&frames).await.map_err(Broken::Write)?;
        if queue.is_empty() {
            writer.flush().await.map_err(Broken::Write)?;
        }
    }
    Ok(())
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Nothing panics while it holds the lock.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, channel: u32, cut: Cut) -> Result<(), Broken> {
        let mut slots = self.slots();
        let Some(slot) = slots.open.get_mut(&channel) else {
            // Credit may arrive after the last word was read; nothing else may.
            let is_credit = matches!(cut, Cut::Control(Body::Credit(_)));
            return if is_credit { Ok(()) } else { Err(Broken::Unexpected(channel)) };
        };
        // A receiver that is gone has cancelled: what still comes is of no interest.
        match cut {
            Cut::Data(data) => {
                slot.receive.received(data.len())?;
                let _ = slot.incoming.send(Incoming::Data(data));
            }
            Cut::Output(piece) => {
                slot.receive.received(piece.data.len())?;
                let _ = slot.incoming.send(Incoming::Output(piece));
            }
            Cut::Control(Body::Event(reply)) => {
                let is_last = reply.is_last();
                let _ = slot.incoming.send(Incoming::Reply(reply));
                if is_last && let Some(slot) = slots.open.remove(&channel) {
                    // Whoever waits for room to send learns that there is no use in it.
                    slot.send.close();
                }
            }
            Cut::Control(Body::Credit(bytes)) => grant(&slot.send, slot.window, bytes)?,
            Cut::Control(Body::End) => {
                let _ = slot.incoming.send(Incoming::End);
            }
            Cut::Control(_) => return Err(Broken::Unexpected(channel)),
        }
        Ok(())
    }

    fn send(&self, channel: u32, body: Body) {
        let mut bytes = Vec::new();
        // Control frames without a JSON body always encode.
        if (Frame { channel, body }).encode(&mut bytes).is_ok() {
            let _ = self.out.send(bytes);
        }
    }

    /// Drops the senders of all channels, so that everybody who waits learns of it.
    fn end(&self) {
        let mut slots = self.slots();
        slots.gone = true;
        for (_, slot) in slots.open.drain() {
            slot.send.close();
        }
        self.gone.send_replace(true);
    }
}

fn grant(window: &Semaphore, size: u32, bytes: u32) -> Result<(), WindowError> {
    let left = u32::try_from(window.available_permits()).unwrap_or(u32::MAX);
    if left.saturating_add(bytes) > size {
        return Err(WindowError::Overflow { granted: bytes, left });
    }
    window.add_permits(bytes as usize);
    Ok(())
}

impl Connection {
    pub(super) async fn closed(&self) {
        let mut gone = self.shared.gone.subscribe();
        // The sender lives as long as `self`.
        let _ = gone.wait_for(|gone| *gone).await;
    }
}

/// One conversation. Dropping it before the guest's last word tells the guest to stop.
pub(super) struct Channel {
    sender: Sender,
    incoming: mpsc::UnboundedReceiver<Incoming>,
    is_over: bool,
}

/// The half of a channel that sends data. It does not keep the conversation alive: once that is over, or its
/// [`Channel`] is dropped, nothing can be sent.
#[derive(Clone)]
pub(super) struct Sender {
    connection: Arc<Connection>,
    number: u32,
    window: Arc<Semaphore>,
}

impl Channel {
    pub(super) fn open(connection: &Arc<Connection>, request: &Request) -> Result<Self, Error> {
        let (sender, incoming) = mpsc::unbounded_channel();
        let size = request.window();
        let window = Arc::new(Semaphore::new(size as usize));
        let receive = ReceiveWindow::new(size);
        let slot = Slot { incoming: sender, receive, send: window.clone(), window: size };
        let mut slots = connection.shared.slots();
        let number = slots.free_number();
        let mut bytes = Vec::new();
        berth_wire::encode_open(number, request, &mut bytes).map_err(|error| Error::too_long(&error))?;
        if slots.gone || connection.shared.out.send(bytes).is_err() {
            return Err(Error::Gone);
        }
        slots.open.insert(number, slot);
        drop(slots);
        Ok(Self {
            sender: Sender { connection: connection.clone(), number, window },
            incoming,
            is_over: false,
        })
    }

    /// What came next; `None` after the last word, and when the connection is gone. Nothing is lost when the future is
    /// dropped.
    pub(super) async fn receive(&mut self) -> Option<Incoming> {
        std::future::poll_fn(|context| self.poll_receive(context)).await
    }

    pub(super) fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let incoming = std::task::ready!(self.incoming.poll_recv(context));
        self.is_over |= match &incoming {
            Some(Incoming::Reply(reply)) => reply.is_last(),
            Some(_) => false,
            None => true,
        };
        Poll::Ready(incoming)
    }

    /// Lets the guest send more, now that `bytes` of data are used up.
    pub(super) fn consumed(&self, bytes: usize) {
        let Sender { connection, number, .. } = &self.sender;
        let mut slots = connection.shared.slots();
        let Some(slot) = slots.open.get_mut(number) else { return };
        if let Some(credit) = slot.receive.consumed(bytes) {
            connection.shared.send(*number, Body::Credit(credit));
        }
    }

    /// What sends data on this channel.
    pub(super) fn sender(&self) -> &Sender {
        &self.sender
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.sender.window.close();
        if !self.is_over {
            self.sender.connection.shared.send(self.sender.number, Body::Cancel);
        }
    }
}

impl Sender {
    /// The window of data to the guest. Closed when the conversation is over.
    pub(super) fn window(&self) -> &Arc<Semaphore> {
        &self.window
    }

    /// Sends as much of `data` as there is room for, and says how much that was; waits for room when there is none.
    /// `None` when the conversation is over. Nothing was sent when the future is dropped.
    pub(super) async fn send(&self, data: &[u8]) -> Option<usize> {
        if data.is_empty() {
            return (!self.window.is_closed()).then_some(0);
        }
        self.window.acquire().await.ok()?.forget();
        Some(self.send_after_one(data))
    }

    /// As [`Sender::send`], of data that is not empty and once room for one byte was taken.
    pub(super) fn send_after_one(&self, data: &[u8]) -> usize {
        let more = data.len().min(MAX_DATA) - 1;
        let more = more.min(self.window.available_permits());
        // Another sender may have taken it meanwhile.
        let more = match self.window.try_acquire_many(u32::try_from(more).unwrap_or(0)) {
            Ok(room) => {
                room.forget();
                more
            }
            Err(_) => 0,
        };
        let data = &data[..=more];
        let mut bytes = Vec::with_capacity(data.len() + berth_wire::HEADER_LEN);
        if berth_wire::encode_data(self.number, data, &mut bytes).is_ok() {
            let _ = self.connection.shared.out.send(bytes);
        }
        data.len()
    }

    /// Sends a data frame, all of it, once there is room: its payload, before which [`HEADER_LEN`] bytes are left free.
    /// False when the conversation is over. Nothing was sent when the future is dropped.
    ///
    /// For requests with a window of several frames.
    pub(super) async fn send_frame(&self, frame: Vec<u8>) -> bool {
        let len = u32::try_from(frame.len() - HEADER_LEN).unwrap_or(u32::MAX);
        let Ok(room) = self.window.acquire_many(len).await else { return false };
        room.forget();
        if let Some(frame) = berth_wire::finish_data(self.number, frame) {
            let _ = self.connection.shared.out.send(frame);
        }
        true
    }

    /// Says that the data is complete.
    pub(super) fn end(&self) {
        if !self.window.is_closed() {
            self.connection.shared.send(self.number, Body::End);
        }
    }

    /// Why nothing can be sent any more.
    pub(super) fn why_closed(&self) -> Error {
        if *self.connection.shared.gone.borrow() { Error::Gone } else { Error::Over }
    }
}

impl Slots {
    /// Numbers go round only after four thousand million channels; one that is still open is passed over.
    fn free_number(&mut self) -> u32 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.open.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}
