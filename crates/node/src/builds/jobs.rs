//! Equal builds asked for at once are one.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_types::image::BuildImage;
use berth_types::progress::Progress;

use crate::images::Sink;

/// Builds under way, by what was asked for.
#[derive(Default)]
pub(crate) struct Builds {
    flights: std::sync::Mutex<BTreeMap<String, std::sync::Weak<tokio::sync::Mutex<()>>>>,
}

/// One build that several may wait for.
pub(super) struct Flight(Arc<tokio::sync::Mutex<()>>);

impl Builds {
    pub(super) fn flight(&self, context: &[u8; 32], options: &BuildImage) -> Flight {
        let untagged = BuildImage { tags: Vec::new(), ..options.clone() };
        let key = format!("{context:?}{untagged:?}");
        let mut flights = self.flights.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        let known = flights.get(&key).and_then(std::sync::Weak::upgrade);
        let flight = known.unwrap_or_else(|| {
            let new = Arc::new(tokio::sync::Mutex::new(()));
            flights.insert(key, Arc::downgrade(&new));
            new
        });
        Flight(flight)
    }
}

impl Flight {
    pub(super) async fn turn(&self, sink: &Sink) -> tokio::sync::MutexGuard<'_, ()> {
        if let Ok(turn) = self.0.try_lock() {
            return turn;
        }
        sink(Progress::Message { text: "the same build is under way, waiting for it".to_owned() });
        self.0.lock().await
    }
}
