//! `trial.log`: what happened in a trial, for whoever looks into it later.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

use jiff::Timestamp;

/// An open `trial.log`.
pub(super) struct TrialLog {
    file: Mutex<File>,
}

impl TrialLog {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: Mutex::new(File::create(path)?) })
    }

    /// Add a line. A log that cannot be written is no reason to fail a trial.
    pub(super) fn line(&self, text: &str) {
        let line = format!("{:.3} {}\n", Timestamp::now(), text.trim_end());
        if let Ok(mut file) = self.file.lock() {
            let _ = file.write_all(line.as_bytes());
        }
    }
}
