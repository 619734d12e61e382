//! One syncfs(2) for all layers that wait for one: it is the slowest part of bringing in a small layer, and one that begins
//! after a layer was written covers that layer, whoever asked for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

/// The syncs of one file system.
#[derive(Default)]
pub(crate) struct Syncs {
    rounds: Mutex<Rounds>,
    over: Condvar,
}

#[derive(Default)]
struct Rounds {
    /// How many have begun; the last one may be under way.
    begun: u64,
    is_running: bool,
    /// The last round that failed, and how.
    failed: Option<(u64, Errno)>,
}

impl Syncs {
    /// Returns when a round is over that began after this was called: `sync` is called for it, or was by somebody else. A
    /// round that failed fails for everybody who waited for it.
    pub(crate) fn sync(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let mut rounds = self.lock();
        // The one that is under way may have passed by what was written last.
        let wanted = rounds.begun + 1;
        while rounds.is_running {
            rounds = self.over.wait(rounds).unwrap_or_else(PoisonError::into_inner);
            let ended = rounds.begun - u64::from(rounds.is_running);
            if ended >= wanted {
                return match rounds.failed {
                    Some((round, errno)) if round >= wanted => Err(errno),
                    _ => Ok(()),
                };
            }
        }
        rounds.begun += 1;
        rounds.is_running = true;
        let mut running = Running { syncs: self, failed: Some(Errno::IO) };
        drop(rounds);
        let result = sync();
        running.failed = result.err();
        result
    }

    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A round under way. Ends it, also by a panic, which is a failure.
struct Running<'a> {
    syncs: &'a Syncs,
    failed: Option<Errno>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut rounds = self.syncs.lock();
        rounds.is_running = false;
        if let Some(errno) = self.failed {
            rounds.failed = Some((rounds.begun, errno));
        }
        drop(rounds);
        self.syncs.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// How many rounds there are when so many more ask while one is under way, and what they are told.
    fn rounds(others: usize, second: Result<(), Errno>) -> (usize, Vec<Result<(), Errno>>) {
        let (syncs, calls, asking) = (Syncs::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        let (begun, has_begun) = channel();
        let (release, released) = channel::<()>();
        let results = thread::scope(|scope| {
            let (syncs, calls, asking) = (&syncs, &calls, &asking);
            let first = scope.spawn(move || {
                syncs.sync(|| {
                    begun.send(()).unwrap();
                    released.recv().unwrap();
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            let others: Vec<_> = (0..others)
                .map(|_| {
                    scope.spawn(move || {
                        asking.fetch_add(1, Ordering::SeqCst);
                        syncs.sync(|| {
                            calls.fetch_add(1, Ordering::SeqCst);
                            second
                        })
                    })
                })
                .collect();
            while asking.load(Ordering::SeqCst) < others.len() {
                thread::yield_now();
            }
            // They have said that they will ask, and may not have done so yet.
            thread::sleep(Duration::from_millis(200));
            assert_eq!(calls.load(Ordering::SeqCst), 0, "one at a time");
            release.send(()).unwrap();
            first.join().unwrap().unwrap();
            others.into_iter().map(|other| other.join().unwrap()).collect()
        });
        (calls.into_inner(), results)
    }

    #[test]
    fn all_who_ask_while_one_is_under_way_share_the_next() {
        let (calls, results) = rounds(8, Ok(()));
        assert!(results.iter().all(Result::is_ok));
        // One more where a thread was so late that it asked during the second round.
        assert!((1..=2).contains(&calls), "{calls}");
    }

    #[test]
    fn a_round_that_fails_fails_for_all_who_waited_and_for_nobody_after() {
        let (_, results) = rounds(8, Err(Errno::IO));
        assert_eq!(results, [Err(Errno::IO); 8]);
        let syncs = Syncs::default();
        syncs.sync(|| Err(Errno::NOSPC)).unwrap_err();
        syncs.sync(|| Ok(())).unwrap();
    }

    #[test]
    fn a_round_that_panics_holds_nobody_up() {
        let syncs = Syncs::default();
        let panicked = thread::scope(|scope| scope.spawn(|| syncs.sync(|| panic!("as it does"))).join());
        assert!(panicked.is_err());
        syncs.sync(|| Ok(())).unwrap();
    }
}
