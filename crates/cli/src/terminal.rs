//! This side's terminal: its size, its raw mode, its keys.

use std::io::{self, IsTerminal, Read};

use berth_types::exec::TerminalSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// Size of a terminal that does not tell.
const USUAL: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// Pieces of input that may wait; more stay with the terminal.
const WAITING: usize = 16;

/// Leaves the terminal to what runs in the sandbox until it is dropped: no echo, no lines, no keys that raise signals.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Of standard input; fails where that is no terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // What is left to try fails only where the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Whether standard input and output both are a terminal.
pub(crate) fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The terminal's size.
pub(crate) fn size() -> TerminalSize {
    let size = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(USUAL, |size| TerminalSize { rows: size.ws_row, cols: size.ws_col })
}

/// What standard input gives, until it ends. On a thread that is not waited for at the end of the program: nobody can
/// make a terminal give up a read.
pub(crate) fn input() -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = match io::stdin().read(&mut buffer) {
                Ok(0) => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map(|len| buffer[..len].to_vec()),
            };
            let failed = read.is_err();
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// Finds the keys that detach (ctrl-p, then ctrl-q, as with docker) in what is typed.
#[derive(Debug, Default)]
pub(crate) struct DetachKeys {
    is_half: bool,
}

const FIRST: u8 = 0x10;
const SECOND: u8 = 0x11;

impl DetachKeys {
    /// What of `typed` goes to the sandbox, and whether the keys were pressed after it.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            match (std::mem::take(&mut self.is_half), *byte) {
                (true, SECOND) => return (passed, true),
                (was_half, FIRST) => {
                    passed.extend(was_half.then_some(FIRST));
                    self.is_half = true;
                }
                (was_half, byte) => {
                    passed.extend(was_half.then_some(FIRST));
                    passed.push(byte);
                }
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_both_keys_in_a_row_detach() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x11"), (b"\x11".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
        assert_eq!(keys.filter(b"a\x10\x11b"), (b"a".to_vec(), true));
    }
}
