//! How long a guest is waited for. A guest can be stopped, frozen with its control group or starved, and then says
//! nothing: whoever asked something of it gets an answer all the same, which is that it does not answer.
//!
//! ```text
//!   small calls     a limit of their own
//!   long calls      no answer and no progress for a while ──► does it answer anything at all? ── no ──► given up
//!                                                                          └─ yes ──► waited for, up to LONGEST
//! ```

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_sandbox::guest::{self, Guest};
use tokio::time::Instant;

use crate::registry::Live;
use crate::{Error, Node};

/// Limit of calls that take a guest less than a millisecond.
pub(crate) const SMALL: Duration = Duration::from_secs(10);

/// Limit of a kill: the grace that processes get, and then some.
pub(crate) const KILL: Duration = Duration::from_millis(berth_wire::DEFAULT_GRACE_MS + 30_000);

/// Limit of a start of a command.
pub(crate) const START: Duration = Duration::from_secs(20);

/// How long a transfer may stand still before the guest is asked for a sign of life.
pub(crate) const TRANSFER: Duration = Duration::from_secs(60);

/// Longest that something may stand still in a guest that shows signs of life.
const LONGEST: Duration = Duration::from_secs(600);

/// An exec that there is not: what the guest says of it is a sign of life.
const NOBODY: &str = "-";

/// When something last moved, and whether it is the client who is waited for.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<Moved>>);

struct Moved {
    at: Instant,
    by_client: bool,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress(Arc::new(Mutex::new(Moved { at: Instant::now(), by_client: false })))
    }

    /// Notes that the client has the next move, or no longer.
    pub(crate) fn moved(&self, by_client: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Moved { at: Instant::now(), by_client };
    }

    /// How long the guest has had the next move.
    fn idle(&self) -> Duration {
        let moved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.by_client { Duration::ZERO } else { moved.at.elapsed() }
    }
}

/// Waits for `call` as long as it moves, or the guest shows signs of life; `None` when it is given up.
pub(crate) async fn while_alive<T>(
    guest: &Guest,
    patience: Duration,
    progress: &Progress,
    call: impl Future<Output = T>,
) -> Option<T> {
    tokio::pin!(call);
    let mut wait = patience;
    loop {
        tokio::select! {
            biased;
            done = &mut call => return Some(done),
            () = tokio::time::sleep(wait) => {}
        }
        let idle = progress.idle();
        if idle >= LONGEST {
            return None;
        }
        if idle < patience {
            wait = patience - idle;
            continue;
        }
        // A connection that is gone ends the call by itself.
        let sign = tokio::time::timeout(SMALL, guest.execs(Some(NOBODY)));
        tokio::select! {
            biased;
            done = &mut call => return Some(done),
            sign = sign => if sign.is_err() { return None },
        }
        wait = patience;
    }
}

impl Node {
    /// A call of the guest that takes no time of its own, under a limit.
    ///
    /// # Errors
    /// [`Error::Unresponsive`], and what the call's failure means.
    pub(crate) async fn ask<T>(
        &self,
        sandbox: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, guest::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => self.told(sandbox, answer).await,
            Err(_) => Err(self.unresponsive(sandbox, limit)),
        }
    }

    /// A call that may take long; see [`while_alive`].
    ///
    /// # Errors
    /// [`Error::Unresponsive`], and what the call's failure means.
    pub(crate) async fn ask_long<T>(
        &self,
        sandbox: &str,
        live: &Live,
        patience: Duration,
        progress: &Progress,
        call: impl Future<Output = Result<T, guest::Error>>,
    ) -> Result<T, Error> {
        match while_alive(&live.machine.guest(), patience, progress, call).await {
            Some(answer) => self.told(sandbox, answer).await,
            None => Err(self.unresponsive(sandbox, patience)),
        }
    }

    async fn told<T>(&self, sandbox: &str, answer: Result<T, guest::Error>) -> Result<T, Error> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(source) => Err(self.guest_error(sandbox, source).await),
        }
    }

    pub(crate) fn unresponsive(&self, sandbox: &str, waited: Duration) -> Error {
        tracing::warn!(id = sandbox, seconds = waited.as_secs(), "a sandbox did not answer");
        Error::Unresponsive { id: sandbox.to_owned(), seconds: waited.as_secs(), starting: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Controls, World, roomy};

    async fn live(world: &World) -> (String, Live) {
        let made = world.create(|_| ()).await.unwrap();
        let (_, _, live) = world.node.live(&made.id).unwrap();
        (made.id, live)
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_guest_is_given_up_and_named() {
        let world = World::new().await;
        let (id, live) = live(&world).await;
        let began = Instant::now();
        let never = std::future::pending::<Result<(), guest::Error>>();
        let error = world.node.ask_long(&id, &live, TRANSFER, &Progress::new(), never).await.unwrap_err();
        assert!(matches!(&error, Error::Unresponsive { id: named, .. } if *named == id), "{error}");
        assert!(began.elapsed() < TRANSFER + SMALL * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_not_blamed_on_the_guest() {
        let world = World::new().await;
        let (_, live) = live(&world).await;
        let progress = Progress::new();
        progress.moved(true);
        let slow = tokio::time::sleep(LONGEST * 3);
        assert!(while_alive(&live.machine.guest(), TRANSFER, &progress, slow).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_answers_has_longer_but_not_for_ever() {
        let controls = Controls { reading: std::sync::Mutex::new(roomy()), ..Controls::answering() };
        let world = World::with(controls).await;
        let (_, live) = live(&world).await;
        let guest = live.machine.guest();
        let long = tokio::time::sleep(TRANSFER * 3);
        assert!(while_alive(&guest, TRANSFER, &Progress::new(), long).await.is_some());
        let began = Instant::now();
        let never = std::future::pending::<()>();
        assert!(while_alive(&guest, TRANSFER, &Progress::new(), never).await.is_none());
        assert!(began.elapsed() >= LONGEST);
    }
}
