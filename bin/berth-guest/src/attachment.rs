//! A channel that is attached to an exec: its window, and its place in the output.

use berth_wire::{MAX_OUTPUT, Output, ReceiveWindow, Reply, SendWindow};

use crate::link::Link;
use crate::spool::{Reader, Spool};

/// See the module.
pub(crate) struct Attachment {
    pub(crate) channel: u32,
    pub(crate) send: SendWindow,
    /// For input.
    pub(crate) receive: ReceiveWindow,
    pub(crate) reader: Reader,
    /// How far it goes, where it does not stay until the end.
    pub(crate) until: Option<[u64; 2]>,
    /// Whether the exec was there before.
    pub(crate) attached: bool,
    /// Bytes of input that the exec had been given before.
    pub(crate) stdin_offset: u64,
    /// Whether it was told of the start.
    pub(crate) told: bool,
    /// Whether it asked for the input, and so may still send some that was under way when another took it over.
    pub(crate) had_input: bool,
    /// The host wants to know of the end alone.
    pub(crate) cancelled: bool,
}

impl Attachment {
    pub(crate) fn new(channel: u32, spool: &Spool, from: berth_wire::Offsets) -> Self {
        Self {
            channel,
            send: SendWindow::default(),
            receive: ReceiveWindow::default(),
            reader: spool.reader([from.stdout, from.stderr]),
            until: None,
            attached: false,
            stdin_offset: 0,
            told: false,
            had_input: false,
            cancelled: false,
        }
    }

    /// Whether its end would be noticed by an exec that ends with the last one.
    pub(crate) fn counts(&self) -> bool {
        !self.cancelled
    }

    /// Sends what link and window allow; true when everything so far, or as far as it goes, was sent.
    pub(crate) fn pump(&mut self, spool: &mut Spool, link: &mut Link) -> bool {
        if self.cancelled {
            return true;
        }
        while !self.is_done(spool) {
            for gap in spool.gaps(&mut self.reader) {
                let stream = if gap.stream == 1 { Output::Stderr } else { Output::Stdout };
                link.reply(self.channel, &Reply::Gap { stream, from: gap.from, to: gap.to });
            }
            let room = self.send.left().min(MAX_OUTPUT);
            if room == 0 || !link.has_room() {
                return self.is_done(spool);
            }
            let kept = spool.kept_from();
            let Some(piece) = spool.next(&mut self.reader, room) else {
                // Unless the disk could not be read, which makes a gap.
                if spool.kept_from() == kept {
                    return self.is_done(spool);
                }
                continue;
            };
            self.send.take(piece.data.len());
            link.chunk(self.channel, piece.stream == 1, piece.offset, piece.time_us, piece.data);
        }
        true
    }

    fn is_done(&self, spool: &Spool) -> bool {
        match self.until {
            Some(until) => self.reader.has_come_to(until),
            None => spool.is_read_by(&self.reader),
        }
    }
}
