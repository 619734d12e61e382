//! What a client sends on a channel, on its way to somebody who may take his time.
//!
//! The SSH library reads all channels of a connection in one loop, and gives a client new credit for what has arrived,
//! not for what was taken. Waiting in that loop for a slow command would hold up its client's word that there is room for
//! the command's output, and then neither side could go on. So data is queued here, and while a channel is full the
//! client's credit is made small: [`Inlet::credit`] is then [`TRICKLE`], so that the client goes on with two bytes at a
//! time, which costs next to nothing and brings the occasion to open up again.
//!
//! So a channel holds some [`FULL`] and what a window or two let through. But the credit is one number for all channels
//! of a connection: a busy channel beside one that is full lets that have windows too, and it may be more of them than it
//! gets itself. [`MOST`] ends this: beyond, the connection waits for the channel, and after [`PATIENCE`] the channel is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

/// Bytes that a client may be ahead of us on a channel. [`Inlet::credit`].
pub(crate) const WINDOW: u32 = 2 << 20;

/// The least that the library takes as a window: it grants this much whenever nothing is left.
const TRICKLE: u32 = 2;

/// From so many bytes on a channel is full.
const FULL: usize = 512 << 10;

/// With so many bytes queued on one channel its connection is not read any more.
const MOST: usize = 64 << 20;

/// How long a connection is not read for the sake of one channel.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long a connection pauses for a piece of the trickle, or that would be a stream of little pieces.
const PAUSE: Duration = Duration::from_millis(20);

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Data(Bytes),
    End,
}

/// Where what a client sends goes in.
#[derive(Debug)]
pub(crate) struct Inlet {
    queue: mpsc::UnboundedSender<Sent>,
    level: Arc<Level>,
}

/// Where it comes out.
#[derive(Debug)]
pub(crate) struct Outlet {
    queue: mpsc::UnboundedReceiver<Sent>,
    level: Arc<Level>,
}

#[derive(Debug, Default)]
struct Level {
    held: AtomicUsize,
    fell: Notify,
}

pub(crate) fn pipe() -> (Inlet, Outlet) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let level = Arc::<Level>::default();
    (Inlet { queue: sender, level: level.clone() }, Outlet { queue: receiver, level })
}

impl Inlet {
    /// Takes data in, and pauses where there is too much. False when this channel is to be given up.
    pub(crate) async fn data(&self, data: &[u8]) -> bool {
        let held = self.level.held.fetch_add(data.len(), Ordering::AcqRel) + data.len();
        // Nobody takes it any more: then it is of no interest.
        if self.queue.send(Sent::Data(Bytes::copy_from_slice(data))).is_err() {
            self.level.held.store(0, Ordering::Release);
            return true;
        }
        if held > MOST {
            return tokio::time::timeout(PATIENCE, self.below(MOST)).await.is_ok();
        }
        if held > FULL && data.len() <= TRICKLE as usize {
            let _ = tokio::time::timeout(PAUSE, self.below(FULL)).await;
        }
        true
    }

    pub(crate) fn end(&self) {
        let _ = self.queue.send(Sent::End);
    }

    /// What the client may be ahead by now.
    pub(crate) fn credit(&self) -> u32 {
        let is_full = self.level.held.load(Ordering::Acquire) > FULL && !self.queue.is_closed();
        if is_full { TRICKLE } else { WINDOW }
    }

    async fn below(&self, most: usize) {
        loop {
            let fell = self.level.fell.notified();
            if self.level.held.load(Ordering::Acquire) <= most || self.queue.is_closed() {
                return;
            }
            tokio::select! {
                () = fell => {}
                () = self.queue.closed() => {}
            }
        }
    }
}

impl Outlet {
    pub(crate) async fn next(&mut self) -> Option<Sent> {
        self.queue.recv().await
    }

    /// Says that so many bytes are gone from here.
    pub(crate) fn gone(&self, bytes: usize) {
        self.level.held.fetch_sub(bytes, Ordering::AcqRel);
        self.level.fell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_full_channel_trickles_until_it_was_taken_from() {
        let (inlet, mut outlet) = pipe();
        let piece = vec![0; FULL];
        assert!(inlet.data(&piece).await);
        assert_eq!(inlet.credit(), WINDOW);
        let before = tokio::time::Instant::now();
        assert!(inlet.data(b"xy").await);
        assert_eq!(before.elapsed(), PAUSE);
        assert_eq!(inlet.credit(), TRICKLE);
        assert_eq!(outlet.next().await, Some(Sent::Data(piece.into())));
        outlet.gone(FULL);
        assert_eq!(inlet.credit(), WINDOW);
        inlet.end();
        assert_eq!(outlet.next().await, Some(Sent::Data(Bytes::from_static(b"xy"))));
        assert_eq!(outlet.next().await, Some(Sent::End));
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_what_is_queued_and_to_the_wait() {
        let (inlet, mut outlet) = pipe();
        let piece = vec![0; MOST + 1];
        let before = tokio::time::Instant::now();
        assert!(!inlet.data(&piece).await, "what nobody takes was waited for as if somebody did");
        assert_eq!(before.elapsed(), PATIENCE);
        let (taken, ()) = tokio::join!(inlet.data(b"x"), async {
            outlet.next().await;
            outlet.gone(MOST + 1);
        });
        assert!(taken);
        // Who takes is gone: there is nothing to wait for.
        assert!(!inlet.data(&piece).await);
        drop(outlet);
        assert!(inlet.data(&piece).await);
        assert_eq!(inlet.credit(), WINDOW);
    }
}
