//! What an exec reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use super::connection::Sender;

/// Standard input of an exec. Its clones write to the same; it does not keep the exec.
#[derive(Clone)]
pub struct ExecInput {
    sender: Sender,
    has_ended: Arc<AtomicBool>,
}

impl ExecInput {
    pub(super) fn new(sender: Sender) -> Self {
        Self { sender, has_ended: Arc::default() }
    }

    /// Sends all of `data`; waits while the exec has not read as much as a window holds. When the future is dropped, a
    /// part may have been sent: use [`ExecInput::write_some`] where that matters.
    ///
    /// # Errors
    /// [`Error::Over`] after [`ExecInput::end`] and when the exec or its handle is gone, [`Error::Gone`].
    pub async fn write(&self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            data = &data[self.write_some(data).await?..];
        }
        Ok(())
    }

    /// Sends what there is room for, and says how many bytes that was; waits while there is no room at all. Nothing was
    /// sent when the future is dropped.
    ///
    /// # Errors
    /// As [`ExecInput::write`].
    pub async fn write_some(&self, data: &[u8]) -> Result<usize, Error> {
        if self.has_ended.load(Ordering::Acquire) {
            return Err(Error::Over);
        }
        self.sender.send(data).await.ok_or_else(|| self.sender.why_closed())
    }

    /// Says that nothing more comes: the exec reads the end of its input.
    pub fn end(&self) {
        if !self.has_ended.swap(true, Ordering::AcqRel) {
            self.sender.end();
        }
    }
}
