//! Credit: how much data may be under way on one direction of one channel.

use crate::WINDOW;

/// A peer that does not keep to the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// It sent more than was granted.
    #[error("{sent} bytes of data were sent where {left} were allowed")]
    Exceeded {
        /// Bytes it sent.
        sent: usize,
        /// Bytes it was allowed.
        left: u32,
    },
    /// It granted more than a window can hold.
    #[error("credit of {granted} bytes on top of {left} overflows the window")]
    Overflow {
        /// Bytes it granted.
        granted: u32,
        /// Bytes that were left.
        left: u32,
    },
}

/// The sender's side: how much it may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow {
    size: u32,
    left: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self::new(WINDOW)
    }
}

impl SendWindow {
    /// A window of `size` bytes.
    pub fn new(size: u32) -> Self {
        Self { size, left: size }
    }

    /// Bytes that may be sent now.
    pub fn left(self) -> usize {
        self.left as usize
    }

    /// Takes room for up to `wanted` bytes and says for how many.
    pub fn take(&mut self, wanted: usize) -> usize {
        let taken = wanted.min(self.left());
        // `taken` is at most `left`, which is a u32.
        self.left -= taken as u32;
        taken
    }

    /// Adds what the receiver granted.
    pub fn grant(&mut self, bytes: u32) -> Result<(), WindowError> {
        match self.left.checked_add(bytes) {
            Some(left) if left <= self.size => {
                self.left = left;
                Ok(())
            }
            _ => Err(WindowError::Overflow { granted: bytes, left: self.left }),
        }
    }
}

/// The receiver's side: how much it may still be sent, and what it owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveWindow {
    size: u32,
    left: u32,
    consumed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self::new(WINDOW)
    }
}

impl ReceiveWindow {
    /// A window of `size` bytes.
    pub fn new(size: u32) -> Self {
        Self { size, left: size, consumed: 0 }
    }

    /// Books `sent` bytes that arrived.
    pub fn received(&mut self, sent: usize) -> Result<(), WindowError> {
        match u32::try_from(sent).ok().and_then(|sent| self.left.checked_sub(sent)) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(WindowError::Exceeded { sent, left: self.left }),
        }
    }

    /// Books `bytes` that arrived earlier as used up; gives the credit to send, once there is enough of it to be worth
    /// a frame.
    pub fn consumed(&mut self, bytes: usize) -> Option<u32> {
        let outstanding = self.size - self.left - self.consumed;
        self.consumed += u32::try_from(bytes).unwrap_or(u32::MAX).min(outstanding);
        (self.consumed >= self.size / 4).then(|| {
            let credit = std::mem::take(&mut self.consumed);
            self.left += credit;
            credit
        })
    }
}
