//! Single flight: the same work asked for many times at once is done once, and everybody who asked hears all of it.
//!
//! ```text
//!   join(key) ──► no such flight: a task of its own is spawned ──► events ──► log (bounded) ──► every listener
//!   join(key) ──► a flight: the log so far is replayed, then events as they come ──────────────┘
//!   result ─────► everybody who waits (errors behind an `Arc`)
//!   last Flying dropped ──► the task is cancelled
//! ```
//!
//! A flight belongs to nobody who asked for it: it goes on when the first one leaves, and is cancelled when the last one does.
//! Its key is free again before its result is told, so whoever asks after the end starts anew.
//!
//! It fails as the work does, with the same error for everybody; a flight that ended without a result (its task panicked, or
//! the runtime is shutting down) is [`FlightError::Cut`].

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use berth_types::progress::Progress;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::progress::Reporter;

/// Most events that are kept for those who come later.
const MAX_EVENTS: usize = 4096;
/// Most text in the events that are kept, in bytes.
const MAX_TEXT: usize = 1 << 20;

/// Work under way, by what it is about. Cheap to clone; clones share the flights.
pub struct Flights<K, T, E> {
    flights: Arc<Mutex<Table<K, T, E>>>,
}

/// Why a flight has no result.
#[derive(Debug, thiserror::Error)]
pub enum FlightError<E> {
    /// The work failed, for everybody alike.
    #[error(transparent)]
    Failed(Arc<E>),
    /// The work ended without a result.
    #[error("the work was cut off by a shutdown")]
    Cut,
}

type Outcome<T, E> = Result<T, FlightError<E>>;
type Table<K, T, E> = HashMap<K, Arc<Flight<T, E>>>;

/// One piece of work and those who wait for it.
struct Flight<T, E> {
    log: Mutex<Log>,
    outcome: watch::Receiver<Option<Outcome<T, E>>>,
    task: Mutex<Option<AbortHandle>>,
}

/// A seat in a flight; whoever drops it no longer waits. See [`Flying::landed`].
#[must_use = "a flight nobody waits for is cancelled"]
pub struct Flying<K: Hash + Eq, T, E> {
    flights: Flights<K, T, E>,
    key: K,
    flight: Arc<Flight<T, E>>,
    seat: u64,
    joined: bool,
}

impl<E> Clone for FlightError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Failed(error) => Self::Failed(Arc::clone(error)),
            Self::Cut => Self::Cut,
        }
    }
}

impl<K, T, E> Clone for Flights<K, T, E> {
    fn clone(&self) -> Self {
        Self { flights: Arc::clone(&self.flights) }
    }
}

impl<K, T, E> Default for Flights<K, T, E> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

impl<K, T, E> std::fmt::Debug for Flights<K, T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<K, T, E> Flights<K, T, E>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// No flights.
    pub fn new() -> Self {
        Self::default()
    }

    /// A seat in the flight of `key`; where there is none, `start` makes the work, which runs as a task of its own and is given
    /// the reporter that everybody hears. To be called on a tokio runtime.
    ///
    /// `reporter` hears at once what went on before, then what goes on. It is called with a lock held: it must neither block nor
    /// come back to these flights.
    pub fn join<F, W>(&self, key: K, reporter: Reporter, start: F) -> Flying<K, T, E>
    where
        F: FnOnce(Reporter) -> W,
        W: Future<Output = Result<T, E>> + Send + 'static,
    {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&key) {
            let flight = Arc::clone(flight);
            return self.board(key, flight, reporter, true);
        }
        let (sender, outcome) = watch::channel(None);
        let flight = Arc::new(Flight { log: Mutex::default(), outcome, task: Mutex::default() });
        let told = Arc::downgrade(&flight);
        let work = start(Arc::new(move |event| {
            if let Some(flight) = told.upgrade() {
                flight.log().add(event);
            }
        }));
        flights.insert(key.clone(), Arc::clone(&flight));
        let entry = Entry { flights: self.clone(), key: key.clone(), flight: Arc::downgrade(&flight) };
        let flying = self.board(key, flight, reporter, false);
        let task = tokio::spawn(async move {
            let outcome = work.await.map_err(|error| FlightError::Failed(Arc::new(error)));
            drop(entry);
            sender.send_replace(Some(outcome));
        });
        *lock(&flying.flight.task) = Some(task.abort_handle());
        drop(flights);
        flying
    }

    /// A seat in the flight of `key`, if there is one.
    pub fn attach(&self, key: &K, reporter: Reporter) -> Option<Flying<K, T, E>> {
        let flights = self.lock();
        let flight = Arc::clone(flights.get(key)?);
        Some(self.board(key.clone(), flight, reporter, true))
    }

    fn board(&self, key: K, flight: Arc<Flight<T, E>>, reporter: Reporter, joined: bool) -> Flying<K, T, E> {
        let seat = flight.log().listen(reporter);
        Flying { flights: self.clone(), key, flight, seat, joined }
    }
}

impl<K: Hash + Eq, T, E> Flights<K, T, E> {
    fn lock(&self) -> MutexGuard<'_, Table<K, T, E>> {
        lock(&self.flights)
    }

    fn forget(&self, key: &K, flight: &Weak<Flight<T, E>>) {
        let mut flights = self.lock();
        if flights.get(key).is_some_and(|current| std::ptr::eq(Arc::as_ptr(current), flight.as_ptr())) {
            flights.remove(key);
        }
    }
}

impl<T, E> Flight<T, E> {
    fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

impl<K: Hash + Eq, T: Clone, E> Flying<K, T, E> {
    /// Whether the flight was under way already.
    pub fn joined(&self) -> bool {
        self.joined
    }

    /// Waits for the end. Dropping the future gives the seat up.
    pub async fn landed(self) -> Result<T, FlightError<E>> {
        let mut outcome = self.flight.outcome.clone();
        let ended = outcome.wait_for(Option::is_some).await;
        ended.map_or(Err(FlightError::Cut), |ended| ended.clone().unwrap_or(Err(FlightError::Cut)))
    }
}

impl<K: Hash + Eq, T, E> Drop for Flying<K, T, E> {
    fn drop(&mut self) {
        // Under the lock of all flights, so that nobody joins one that is being given up.
        let mut flights = self.flights.lock();
        if self.flight.log().leave(self.seat) > 0 {
            return;
        }
        if flights.get(&self.key).is_some_and(|current| Arc::ptr_eq(current, &self.flight)) {
            flights.remove(&self.key);
        }
        drop(flights);
        if let Some(task) = lock(&self.flight.task).take() {
            task.abort();
        }
    }
}

/// Frees the key when the work ends, however it does.
struct Entry<K: Hash + Eq, T, E> {
    flights: Flights<K, T, E>,
    key: K,
    flight: Weak<Flight<T, E>>,
}

impl<K: Hash + Eq, T, E> Drop for Entry<K, T, E> {
    fn drop(&mut self) {
        self.flights.forget(&self.key, &self.flight);
    }
}

/// What went on, as far as it is kept, and who hears the rest.
#[derive(Default)]
struct Log {
    events: std::collections::VecDeque<Progress>,
    text: usize,
    left_out: usize,
    listeners: HashMap<u64, Reporter>,
    seats: u64,
}

impl Log {
    fn add(&mut self, event: Progress) {
        for listener in self.listeners.values() {
            listener(event.clone());
        }
        if let Some(earlier) = self.events.iter_mut().rev().find(|earlier| supersedes(&event, earlier)) {
            *earlier = event;
            return;
        }
        self.text += text_of(&event);
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || self.text > MAX_TEXT {
            let Some(oldest) = self.events.pop_front() else { break };
            self.text -= text_of(&oldest);
            self.left_out += 1;
        }
    }

    fn listen(&mut self, reporter: Reporter) -> u64 {
        if self.left_out > 0 {
            let text = format!("{} earlier messages are no longer kept", self.left_out);
            reporter(Progress::Message { text });
        }
        self.events.iter().for_each(|event| reporter(event.clone()));
        self.seats += 1;
        self.listeners.insert(self.seats, reporter);
        self.seats
    }

    /// How many are left.
    fn leave(&mut self, seat: u64) -> usize {
        self.listeners.remove(&seat);
        self.listeners.len()
    }
}

/// Of a transfer only the latest state is worth telling to who comes later.
fn supersedes(event: &Progress, earlier: &Progress) -> bool {
    match (event, earlier) {
        (
            Progress::Transfer { item, action, .. },
            Progress::Transfer { item: before, action: as_before, .. },
        ) => item == before && action == as_before,
        _ => false,
    }
}

fn text_of(event: &Progress) -> usize {
    match event {
        Progress::Message { text } | Progress::Output { text, .. } => text.len(),
        Progress::Transfer { item, action, .. } => item.len() + action.len(),
        Progress::Step { instruction, .. } => instruction.len(),
        Progress::Warning(warning) => warning.message.len(),
        Progress::StepDone { .. } => 0,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here panics between changes that belong together.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    type Numbers = Flights<&'static str, u32, String>;

    fn message(text: &str) -> Progress {
        Progress::Message { text: text.to_owned() }
    }

    fn listening() -> (Reporter, Arc<Mutex<Vec<Progress>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&heard);
        (Arc::new(move |event| into.lock().unwrap().push(event)), heard)
    }

    fn silent() -> Reporter {
        Arc::new(|_| {})
    }

    #[tokio::test]
    async fn a_hundred_who_ask_at_once_share_one_flight_and_hear_all_of_it() {
        let flights = Numbers::new();
        let started = Arc::new(AtomicUsize::new(0));
        let (go, gone) = oneshot::channel::<()>();
        let mut gone = Some(gone);
        let (mut seats, mut ears) = (Vec::new(), Vec::new());
        for n in 0..100 {
            let (reporter, heard) = listening();
            let (started, gone) = (Arc::clone(&started), gone.take());
            let seat = flights.join("a", reporter, |report| async move {
                started.fetch_add(1, Ordering::SeqCst);
                report(message("begun"));
                gone.unwrap().await.unwrap();
                report(message("done"));
                Ok(7)
            });
            assert_eq!(seat.joined(), n > 0);
            seats.push(seat);
            ears.push(heard);
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        for seat in seats {
            assert_eq!(seat.landed().await.unwrap(), 7);
        }
        assert_eq!(started.load(Ordering::SeqCst), 1);
        for heard in ears {
            assert_eq!(*heard.lock().unwrap(), [message("begun"), message("done")]);
        }
        assert!(flights.attach(&"a", silent()).is_none(), "the key is free after the end");
    }

    #[tokio::test]
    async fn it_goes_on_without_the_first_and_is_cancelled_without_the_last() {
        struct Told(Option<oneshot::Sender<()>>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.take().map(|told| told.send(()));
            }
        }
        let flights = Numbers::new();
        let (told, cancelled) = oneshot::channel();
        let told = Told(Some(told));
        let first = flights.join("a", silent(), |_| async move {
            let _told = told;
            std::future::pending().await
        });
        tokio::task::yield_now().await;
        let second = flights.attach(&"a", silent()).expect("under way");
        drop(first);
        tokio::task::yield_now().await;
        let third = flights.attach(&"a", silent()).expect("still under way");
        drop(second);
        drop(third);
        cancelled.await.expect("the work is dropped");
        assert!(flights.attach(&"a", silent()).is_none());
        let again = flights.join("a", silent(), |_| async { Ok(1) });
        assert!(!again.joined());
        assert_eq!(again.landed().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn everybody_gets_the_same_error_and_the_next_one_starts_anew() {
        let flights = Numbers::new();
        let one = flights.join("a", silent(), |_| async { Err("no".to_owned()) });
        let two = flights.attach(&"a", silent()).expect("under way");
        let (one, two) = (one.landed().await.unwrap_err(), two.landed().await.unwrap_err());
        let (FlightError::Failed(one), FlightError::Failed(two)) = (one, two) else { panic!("not cut") };
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(flights.join("a", silent(), |_| async { Ok(2) }).landed().await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_panic_is_no_result_and_frees_the_key() {
        let flights = Numbers::new();
        let flying = flights.join("a", silent(), |_| async { panic!("on purpose") });
        assert!(matches!(flying.landed().await, Err(FlightError::Cut)));
        assert!(flights.attach(&"a", silent()).is_none());
    }

    #[tokio::test]
    async fn others_keys_fly_apart() {
        let flights = Numbers::new();
        let a = flights.join("a", silent(), |_| async { Ok(1) });
        let b = flights.join("b", silent(), |_| async { Ok(2) });
        assert!(!b.joined());
        assert_eq!((a.landed().await.unwrap(), b.landed().await.unwrap()), (1, 2));
    }

    #[test]
    fn what_is_kept_is_bounded_and_says_what_is_not() {
        let mut log = Log::default();
        for current in 0..10_000 {
            let (item, action) = ("layer".to_owned(), "download".to_owned());
            log.add(Progress::Transfer { item, action, current, total: None });
        }
        assert_eq!(log.events.len(), 1, "only a transfer's latest state is kept");
        for n in 0..MAX_EVENTS + 5 {
            log.add(message(&n.to_string()));
        }
        let (reporter, heard) = listening();
        log.listen(reporter);
        let heard = heard.lock().unwrap();
        assert_eq!(heard.len(), MAX_EVENTS + 1);
        assert_eq!(heard[0], message("6 earlier messages are no longer kept"));
        let mut log = Log::default();
        (0..20).for_each(|_| log.add(message(&"x".repeat(MAX_TEXT / 10))));
        assert!(log.text <= MAX_TEXT && log.events.len() == 10);
    }
}
