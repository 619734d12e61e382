//! Whose turn it is to send a context: of all who have the same one, one sends it and the others wait for that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long others wait for one who was told to send a context to begin.
const PROMISE: Duration = Duration::from_secs(10);

/// Contexts that are being sent, or are about to be, by key.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Slots>>);

#[derive(Default)]
struct Slots {
    by_key: HashMap<String, Slot>,
    made: u64,
}

struct Slot {
    number: u64,
    /// Until when its owner is waited for, who has gone to fetch the context.
    promised: Option<Instant>,
    /// Dropped with the slot: that wakes who waits.
    gone: watch::Sender<()>,
}

/// What one who has a context is to do.
pub(super) enum Turn {
    /// Send it.
    Yours(Sending),
    /// Wait until another's turn is over, and ask again.
    Wait(Waiting),
}

/// One's turn; over when it is dropped.
pub(super) struct Sending {
    turns: Turns,
    key: String,
    number: u64,
    promised: bool,
}

/// Another's turn.
pub(super) struct Waiting {
    gone: watch::Receiver<()>,
    until: Option<Instant>,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the turn; `at_hand` is for those who can send at once. They go before those who were told to fetch the
    /// context, and one of those is who comes with it.
    pub(super) fn ask(&self, key: &str, at_hand: bool) -> Turn {
        let mut slots = self.lock();
        let now = Instant::now();
        slots.by_key.retain(|_, slot| slot.promised.is_none_or(|until| until > now));
        if let Some(slot) = slots.by_key.get(key)
            && !(at_hand && slot.promised.is_some())
        {
            return Turn::Wait(Waiting { gone: slot.gone.subscribe(), until: slot.promised });
        }
        slots.made += 1;
        let number = slots.made;
        let slot = Slot { number, promised: None, gone: watch::Sender::new(()) };
        slots.by_key.insert(key.to_owned(), slot);
        Turn::Yours(Sending { turns: self.clone(), key: key.to_owned(), number, promised: false })
    }
}

impl Sending {
    /// Keeps the turn for a while for the client, who goes to fetch the context.
    pub(super) fn promise(mut self) {
        if let Some(slot) = self.turns.lock().by_key.get_mut(&self.key)
            && slot.number == self.number
        {
            slot.promised = Some(Instant::now() + PROMISE);
        }
        self.promised = true;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.promised {
            return;
        }
        let mut slots = self.turns.lock();
        if slots.by_key.get(&self.key).is_some_and(|slot| slot.number == self.number) {
            slots.by_key.remove(&self.key);
        }
    }
}

impl Waiting {
    /// Waits until it is worth asking again.
    pub(super) async fn over(mut self) {
        let until = async {
            match self.until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Nothing is ever sent: this is the sender's end.
            _ = self.gone.changed() => {}
            () = until => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yours(turn: Turn) -> Sending {
        match turn {
            Turn::Yours(sending) => sending,
            Turn::Wait(_) => panic!("it is another's turn"),
        }
    }

    fn waiting(turn: Turn) -> Waiting {
        match turn {
            Turn::Wait(waiting) => waiting,
            Turn::Yours(_) => panic!("it is nobody else's turn"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_sends_and_when_he_is_gone_the_next_one_does() {
        let turns = Turns::default();
        let first = yours(turns.ask("a", true));
        let second = waiting(turns.ask("a", true));
        drop(yours(turns.ask("b", false)));
        let over = tokio::spawn(second.over());
        tokio::time::sleep(PROMISE * 3).await;
        assert!(!over.is_finished(), "one who sends is waited for");
        drop(first);
        over.await.unwrap();
        drop(yours(turns.ask("a", false)));
        assert!(turns.lock().by_key.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_was_told_to_come_back_is_waited_for_but_not_for_ever() {
        let turns = Turns::default();
        yours(turns.ask("a", false)).promise();
        let began = Instant::now();
        waiting(turns.ask("a", false)).over().await;
        assert_eq!(began.elapsed(), PROMISE);
        yours(turns.ask("a", false)).promise();
        let second = tokio::spawn(waiting(turns.ask("a", false)).over());
        tokio::task::yield_now().await;
        let back = yours(turns.ask("a", true));
        second.await.unwrap();
        let third = waiting(turns.ask("a", false));
        assert_eq!(third.until, None, "he has come back");
        drop(back);
        third.over().await;
    }
}
