//! Telling how far a long call is.

use std::sync::Arc;

use berth_types::progress::Progress;

/// Hears what goes on during a pull, an import or a bootstrap; called from several threads, and must not block.
pub type Reporter = Arc<dyn Fn(Progress) + Send + Sync>;

/// Fewest bytes between two events of one transfer.
const STEP: u64 = 1 << 20;

/// Counts the bytes of one transfer, and reports them in decent steps.
pub(crate) struct Meter {
    reporter: Reporter,
    item: String,
    action: &'static str,
    total: Option<u64>,
    current: u64,
    reported: u64,
}

impl Meter {
    /// Begins a transfer, and says so.
    pub(crate) fn start(reporter: &Reporter, item: &str, action: &'static str, total: Option<u64>) -> Self {
        let meter = Self {
            reporter: Arc::clone(reporter),
            item: item.to_owned(),
            action,
            total,
            current: 0,
            reported: 0,
        };
        meter.report();
        meter
    }

    pub(crate) fn add(&mut self, bytes: u64) {
        self.set(self.current + bytes);
    }

    pub(crate) fn set(&mut self, current: u64) {
        self.current = current;
        let complete = self.total == Some(current) && self.reported != current;
        if complete || current.abs_diff(self.reported) >= STEP {
            self.reported = current;
            self.report();
        }
    }

    fn report(&self) {
        (self.reporter)(Progress::Transfer {
            item: self.item.clone(),
            action: self.action.to_owned(),
            current: self.current,
            total: self.total,
        });
    }
}

/// A plain message.
pub(crate) fn say(reporter: &Reporter, text: impl Into<String>) {
    reporter(Progress::Message { text: text.into() });
}
