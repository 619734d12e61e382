//! How many steps of builds run at a time on this machine, whichever builds they are of.
//!
//! A step takes its place when nothing else is missing, and needs no second one while it has it: a sandbox that lends files
//! to it goes with it. So whoever has a place goes on, and whoever waits gets one.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// How many times what one build runs at a time runs of all builds together, where the configuration does not say.
const BUILDS: usize = 4;

/// Places for steps.
pub(super) struct Slots {
    places: Arc<Semaphore>,
    most: usize,
}

/// A place; given back when it is dropped.
pub(super) type Slot = OwnedSemaphorePermit;

impl Slots {
    pub(super) fn new(parallel_steps: Option<usize>) -> Slots {
        let most = parallel_steps.unwrap_or_else(|| berth_build::default_parallel().saturating_mul(BUILDS));
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Slots { places: Arc::new(Semaphore::new(most)), most }
    }

    /// Takes a place, in the order of those who come. `waits` is told how many there are where none is free.
    ///
    /// # Errors
    /// Never: places are not closed.
    pub(super) async fn take(&self, waits: impl FnOnce(usize)) -> Result<Slot, AcquireError> {
        match self.places.clone().try_acquire_owned() {
            Ok(slot) => return Ok(slot),
            Err(TryAcquireError::NoPermits) => waits(self.most),
            Err(TryAcquireError::Closed) => {}
        }
        self.places.clone().acquire_owned().await
    }

    /// How many steps run now.
    pub(super) fn taken(&self) -> usize {
        self.most - self.places.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_who_finds_no_place_is_told_and_gets_the_next() {
        let slots = Arc::new(Slots::new(Some(2)));
        let (first, second) =
            (slots.take(|_| panic!("free")).await.unwrap(), slots.take(|_| ()).await.unwrap());
        assert_eq!(slots.taken(), 2);
        let (told, heard) = tokio::sync::oneshot::channel();
        let third = tokio::spawn({
            let slots = slots.clone();
            async move { slots.take(|most| told.send(most).unwrap()).await }
        });
        assert_eq!(heard.await.unwrap(), 2);
        assert!(!third.is_finished());
        drop(first);
        let third = third.await.unwrap().unwrap();
        drop((second, third));
        assert_eq!(slots.taken(), 0);
        assert!(Slots::new(None).most >= 8, "several builds go on side by side");
    }
}
