//! What the node does by itself, over and over, and how that went the last time.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use berth_types::system::TaskStatus;
use jiff::Timestamp;

/// Every background task's last result.
pub(crate) struct Tasks(Mutex<Vec<TaskStatus>>);

impl Tasks {
    /// A board with these names on it, in this order.
    pub(crate) fn new(names: &[&str]) -> Tasks {
        let fresh = |name: &&str| TaskStatus { name: (*name).to_owned(), ..TaskStatus::default() };
        Tasks(Mutex::new(names.iter().map(fresh).collect()))
    }

    /// Notes one run of a task that began at `began`.
    pub(crate) fn ran(&self, name: &str, began: Instant, result: Result<String, String>) {
        let duration = (began.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(task) = all.iter_mut().find(|task| task.name == name) else { return };
        task.runs += 1;
        task.last_run_at = Some(Timestamp::now().to_string());
        task.last_duration_ms = Some(duration);
        task.failed = result.is_err();
        task.last_result = Some(result.unwrap_or_else(|error| error));
    }

    pub(crate) fn list(&self) -> Vec<TaskStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run_is_what_shows() {
        let tasks = Tasks::new(&["leases", "tidy"]);
        tasks.ran("tidy", Instant::now(), Ok("nothing to do".into()));
        tasks.ran("tidy", Instant::now(), Err("the disk failed".into()));
        tasks.ran("unknown", Instant::now(), Ok(String::new()));
        let list = tasks.list();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].runs, list[0].failed), (0, false));
        assert_eq!((list[1].runs, list[1].failed), (2, true));
        assert_eq!(list[1].last_result.as_deref(), Some("the disk failed"));
    }
}
