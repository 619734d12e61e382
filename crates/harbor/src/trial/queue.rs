//! Waiting for room on the machine: told, and not held against the trial's own limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_client::Error;
use berth_types::sandbox::{CreateSandbox, QueuePlace, Sandbox};
use tokio::time::Instant;

use super::Trial;
use crate::env::Platform;
use crate::observer::Event;

/// How often a sandbox that is being made is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Later than any limit that somebody means.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Time that a trial's sandbox has spent in the queue.
#[derive(Clone, Default)]
pub(super) struct Queued(Arc<AtomicU64>);

impl Queued {
    fn add(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(ms, Ordering::Relaxed);
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    /// `work` within `limit`, time in the queue not counted; `None` when it took longer.
    pub(super) async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        let began = Instant::now();
        let mut work = std::pin::pin!(work);
        loop {
            let queued = self.time();
            let until = began + limit.min(NEVER) + queued;
            tokio::select! {
                done = &mut work => return Some(done),
                () = tokio::time::sleep_until(until) => if self.time() == queued { return None },
            }
        }
    }
}

impl<P: Platform> Trial<'_, P> {
    /// Makes the sandbox. While it waits for room its place is told.
    pub(super) async fn create(&self, request: &CreateSandbox) -> Result<Sandbox, Error> {
        let mut created = std::pin::pin!(self.job.platform.create(request));
        let mut looked = Instant::now();
        let mut told: Option<QueuePlace> = None;
        loop {
            tokio::select! {
                created = &mut created => return created,
                () = tokio::time::sleep(LOOK) => {}
            }
            // Whatever is wrong with the daemon, the call that is under way will say it.
            let name = request.name.as_deref().unwrap_or_default();
            let place = self.job.platform.queue_place(name).await.ok().flatten();
            if place.is_some() {
                self.queued.add(looked.elapsed());
            }
            looked = Instant::now();
            if let Some(place) = place.filter(|place| told != Some(*place)) {
                told = Some(place);
                self.tell_place(place);
            }
        }
    }

    fn tell_place(&self, place: QueuePlace) {
        let QueuePlace { position, waits_for } = place;
        self.log.line(&format!("waiting for room: place {position} of the queue, for {}", waits_for.words()));
        let trial = self.plan.config.trial_name.as_str();
        self.job.observer.event(Event::Queued { trial, place });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_in_the_queue_does_not_count() {
        let queued = Queued::default();
        let work = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                queued.add(Duration::from_secs(1));
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        assert_eq!(queued.timeout(Duration::from_secs(2), work).await, Some(()));
        let slow = tokio::time::sleep(Duration::from_secs(3));
        assert_eq!(Queued::default().timeout(Duration::from_secs(2), slow).await, None);
    }
}
