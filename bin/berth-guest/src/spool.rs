//! What an exec has written and is still kept, at byte offsets: one log of both of its outputs in the order in which
//! they were read.
//!
//! ```text
//!   record │ record │ record │ record │ record …          a record: stream and length, time, bytes
//!   ▲ kept from                ▲ memory from        ▲ end
//!   └───── ring in a file ─────┴───── memory ───────┘
//! ```
//!
//! Little output never leaves memory. More than [`FLUSH_AT`] goes to a ring in a file ([`Disk`]), the newest bytes stay
//! in memory, so that readers who keep up never wait for the file. Every [`Reader`] has a place of its own. What is
//! dropped is never dropped in silence: a reader who comes to a place that is no longer kept is told the gap.
//!
//! Where the file cannot be written, [`WITHOUT_DISK`] bytes are kept in memory, and then the policy applies.
//!
//! It makes no system call but through [`Disk`].

use std::collections::VecDeque;

use rustix::io::Errno;

/// Bytes of a record before its data.
pub(crate) const HEADER: usize = 12;
/// Longest data of a record.
pub(crate) const MAX_RECORD: usize = berth_wire::MAX_OUTPUT;
/// So much in memory goes to the file, but for the last [`STAYS`].
const FLUSH_AT: usize = 256 * 1024;
const STAYS: usize = 64 * 1024;
/// Kept in memory of an exec that is over without making use of a file.
pub(crate) const SMALL: u64 = 64 * 1024;
/// Kept where there is no file to be written to.
const WITHOUT_DISK: u64 = 1 << 20;
/// Unread output that a command may be ahead of its reader at the least, whatever is to be kept.
const LEAST_AHEAD: u64 = 256 * 1024;
/// Least that is kept where the oldest bytes are dropped: less than a read would lose everything.
const LEAST_KEPT: u64 = 4096;
/// Output of one stream read within so many microseconds is one record.
const MERGE_US: u64 = 1000;
/// What a reader was sent last may not have arrived: so much, or an eighth of what is kept, is not given up for new
/// output while the command could wait instead.
const MOST_SLACK: u64 = 4 << 20;
/// What one reader of the file reads ahead; longer than any record.
const AHEAD: usize = 2 * (MAX_RECORD + HEADER);
/// Room of a ring beyond what is to be kept and headers: dropping goes by steps.
const BEYOND: u64 = 256 * 1024;

/// Numbers before the log in [`Spool::freeze`].
const FROZEN: usize = 10;

const STREAM_BIT: u32 = 1 << 31;

/// A file to be written anywhere.
pub(crate) trait Disk {
    /// Lets go of the descriptor until it is needed again.
    fn rest(&self) {}
    /// Writes all of it.
    fn write_at(&self, at: u64, bytes: &[u8]) -> Result<(), Errno>;
    /// Reads all of it.
    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<(), Errno>;
}

/// The beginning of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    /// In the log, headers included.
    pos: u64,
    /// In both outputs.
    at: [u64; 2],
}

impl Place {
    fn bytes(&self) -> u64 {
        self.at[0] + self.at[1]
    }

    fn after(self, header: &Header) -> Self {
        let mut next = self;
        next.pos += HEADER as u64 + u64::from(header.len);
        next.at[header.stream] += u64::from(header.len);
        next
    }
}

struct Header {
    stream: usize,
    len: u32,
    time_us: u64,
}

impl Header {
    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let word = self.len | if self.stream == 1 { STREAM_BIT } else { 0 };
        bytes[..4].copy_from_slice(&word.to_le_bytes());
        bytes[4..].copy_from_slice(&self.time_us.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (word, rest) = bytes.split_first_chunk::<4>()?;
        let word = u32::from_le_bytes(*word);
        let time_us = u64::from_le_bytes(*rest.first_chunk::<8>()?);
        Some(Self { stream: usize::from(word & STREAM_BIT != 0), len: word & !STREAM_BIT, time_us })
    }
}

/// What is to be kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) bytes: u64,
    pub(crate) drop_oldest: bool,
}

impl Policy {
    /// Most bytes there ever are, but for those that are due at the end.
    fn limit(self) -> u64 {
        if self.drop_oldest { self.bytes.max(LEAST_KEPT) } else { self.bytes.max(LEAST_AHEAD) }
    }

    fn slack(self) -> u64 {
        if self.drop_oldest { 0 } else { (self.bytes / 8).min(MOST_SLACK) }
    }

    /// Bytes of headers that there may be. Where records are that small more is dropped, or waited for.
    fn headers(self) -> u64 {
        self.limit() / 4 + SMALL
    }

    fn ring(self) -> u64 {
        self.limit() + self.headers() + BEYOND
    }

    /// At least so far apart are the places from which reading can begin.
    fn step(self) -> u64 {
        (self.limit() / 16).clamp(4096, 64 * 1024)
    }
}

/// See the module.
pub(crate) struct Spool {
    policy: Policy,
    memory: Vec<u8>,
    /// What of `memory` is no longer part of it.
    stale: usize,
    memory_from: Place,
    disk: Option<Box<dyn Disk>>,
    disk_fails: bool,
    /// The record in which what is kept begins, and how much of it is dropped.
    first: Place,
    skip: u64,
    skip_stream: usize,
    /// The newest record, and whether it can take more.
    last: Place,
    open: Option<(usize, u64)>,
    end: Place,
    /// Beginnings of records, [`Policy::step`] apart; the first is at or before `first`.
    marks: VecDeque<Place>,
    /// How far the reader who was furthest has come.
    read: [u64; 2],
    /// How far, in bytes of both outputs, the furthest of those has come who are reading now.
    hold: Option<u64>,
    dropped: [u64; 2],
}

/// Somebody's place in it.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    place: Place,
    /// What is to be sent next of each output.
    next: [u64; 2],
    /// How far he has come, in bytes of both outputs.
    reached: u64,
    ahead: Vec<u8>,
    ahead_from: u64,
}

/// A part of a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece<'a> {
    pub(crate) stream: usize,
    pub(crate) offset: u64,
    pub(crate) time_us: u64,
    pub(crate) data: &'a [u8],
}

/// Output that is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) stream: usize,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Reader {
    /// Whether he has had everything before these offsets.
    pub(crate) fn has_come_to(&self, offsets: [u64; 2]) -> bool {
        self.next[0] >= offsets[0] && self.next[1] >= offsets[1]
    }
}

impl Spool {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            memory: Vec::new(),
            stale: 0,
            memory_from: Place::default(),
            disk: None,
            disk_fails: false,
            first: Place::default(),
            skip: 0,
            skip_stream: 0,
            last: Place::default(),
            open: None,
            end: Place::default(),
            marks: VecDeque::new(),
            read: [0; 2],
            hold: None,
            dropped: [0; 2],
        }
    }

    /// Of an exec that has written so much, of which nothing is kept.
    pub(crate) fn spent(policy: Policy, written: [u64; 2], dropped: [u64; 2]) -> Self {
        let end = Place { pos: 0, at: written };
        let mut spool = Self::new(policy);
        (spool.first, spool.last, spool.end, spool.memory_from) = (end, end, end, end);
        (spool.read, spool.dropped) = (written, dropped);
        spool
    }

    pub(crate) fn written(&self) -> [u64; 2] {
        self.end.at
    }

    pub(crate) fn dropped(&self) -> [u64; 2] {
        self.dropped
    }

    /// From where on each output is kept.
    pub(crate) fn kept_from(&self) -> [u64; 2] {
        let mut from = self.first.at;
        from[self.skip_stream] += self.skip;
        from
    }

    fn kept(&self) -> u64 {
        self.end.bytes() - self.first.bytes() - self.skip
    }

    /// Bytes on the disk, and in memory.
    pub(crate) fn held(&self) -> (u64, u64) {
        let memory = self.end.pos - self.memory_from.pos;
        (self.memory_from.pos.saturating_sub(self.first.pos), memory)
    }

    /// Whether it can take no more until somebody has read.
    pub(crate) fn is_full(&mut self) -> bool {
        self.room(1) == 0
    }

    /// Whether waiting may be over without anybody having read: what was wrong with the disk may be mended.
    pub(crate) fn waits_for_disk(&self) -> bool {
        self.disk_fails
    }

    // ---- writing ----

    /// How many bytes can be taken now, up to `wanted`, once what may be dropped for them is.
    pub(crate) fn room(&mut self, wanted: usize) -> usize {
        let limit = self.policy.limit();
        let chunk = if self.policy.drop_oldest { (limit / 4).max(1024) } else { MAX_RECORD as u64 };
        let wanted = (wanted as u64).min(chunk).min(MAX_RECORD as u64);
        self.drop_down_to(limit - wanted.min(limit));
        while self.memory_left() == 0 || self.headers() > self.policy.headers() {
            if !self.drop_some(wanted) {
                return 0;
            }
        }
        wanted.min(limit.saturating_sub(self.kept())).min(self.memory_left()) as usize
    }

    fn headers(&self) -> u64 {
        // The dropped part of the first record is still in the log.
        (self.end.pos - self.first.pos) - (self.end.bytes() - self.first.bytes())
    }

    /// How many bytes more may be in memory.
    fn memory_left(&self) -> u64 {
        let held = self.end.pos - self.memory_from.pos.max(self.first.pos);
        if self.disk_fails { WITHOUT_DISK.saturating_sub(held) } else { u64::MAX }
    }

    /// Takes output that [`Spool::room`] was asked for; `disk` makes the file when one is needed. At the end of an exec
    /// more may be taken.
    pub(crate) fn append(
        &mut self,
        stream: usize,
        bytes: &[u8],
        time_us: u64,
        disk: &mut dyn FnMut() -> Option<Box<dyn Disk>>,
    ) {
        for part in bytes.chunks(MAX_RECORD) {
            self.append_record(stream, part, time_us);
        }
        if self.memory.len() - self.stale >= FLUSH_AT
            && (self.policy.limit() > LEAST_AHEAD || self.disk_fails)
        {
            self.flush(STAYS, disk);
        }
        self.trim();
    }

    fn append_record(&mut self, stream: usize, bytes: &[u8], time_us: u64) {
        match self.open {
            Some((same, since)) if same == stream && self.can_grow(bytes.len(), time_us, since) => {
                let len = u32::try_from(self.end.at[stream] - self.last.at[stream] + bytes.len() as u64);
                let header = Header { stream, len: len.unwrap_or(0), time_us: since };
                let at = self.stale + (self.last.pos - self.memory_from.pos) as usize;
                self.memory[at..at + HEADER].copy_from_slice(&header.encode());
            }
            _ => self.begin_record(stream, bytes.len(), time_us),
        }
        self.memory.extend_from_slice(bytes);
        self.end.pos += bytes.len() as u64;
        self.end.at[stream] += bytes.len() as u64;
    }

    fn can_grow(&self, by: usize, time_us: u64, since: u64) -> bool {
        let len = (self.end.pos - self.last.pos) as usize - HEADER;
        len + by <= MAX_RECORD / 4 && time_us.wrapping_sub(since) < MERGE_US
    }

    fn begin_record(&mut self, stream: usize, len: usize, time_us: u64) {
        self.last = self.end;
        self.open = Some((stream, time_us));
        if self.marks.back().is_none_or(|mark| self.end.pos - mark.pos >= self.policy.step()) {
            self.marks.push_back(self.end);
        }
        let header = Header { stream, len: u32::try_from(len).unwrap_or(0), time_us };
        self.memory.extend_from_slice(&header.encode());
        self.end.pos += HEADER as u64;
    }

    /// Moves what is in memory to the file, but for about the last `stays` bytes.
    fn flush(&mut self, stays: usize, disk: &mut dyn FnMut() -> Option<Box<dyn Disk>>) {
        if self.disk.is_none() {
            self.disk = disk();
        }
        // What was in the pipes at the end comes on top of what the ring has room for, and stays in memory.
        let excess = (self.end.pos - self.first.pos).saturating_sub(self.policy.ring());
        let upto = self.flush_upto(stays.max(usize::try_from(excess).unwrap_or(usize::MAX)));
        let len = (upto.pos - self.memory_from.pos) as usize;
        if len == 0 {
            return;
        }
        self.disk_fails = !self.write(len);
        if self.disk_fails {
            return;
        }
        if upto.pos > self.last.pos {
            self.open = None;
        }
        self.memory_from = upto;
        self.forget(len);
    }

    /// A beginning of a record, so that none is in two places.
    fn flush_upto(&self, stays: usize) -> Place {
        if stays == 0 {
            return self.end;
        }
        let latest = self.end.pos.saturating_sub(stays as u64);
        let after = self.marks.partition_point(|mark| mark.pos <= latest);
        let mark = after.checked_sub(1).and_then(|index| self.marks.get(index)).copied();
        mark.filter(|mark| mark.pos > self.memory_from.pos).unwrap_or(self.memory_from)
    }

    fn write(&self, len: usize) -> bool {
        let Some(disk) = &self.disk else { return false };
        let bytes = &self.memory[self.stale..self.stale + len];
        let parts = ring_parts(self.policy.ring(), self.memory_from.pos, len);
        parts.into_iter().all(|(at, range)| range.is_empty() || disk.write_at(at, &bytes[range]).is_ok())
    }

    /// Lets go of so many of the oldest bytes in memory.
    fn forget(&mut self, len: usize) {
        self.stale += len;
        if self.stale == self.memory.len() {
            self.memory.clear();
            self.stale = 0;
            self.memory.shrink_to(2 * MAX_RECORD);
        } else if self.stale > self.memory.len() / 2 {
            self.memory.drain(..self.stale);
            self.stale = 0;
        }
    }

    /// Tries again what failed; for the time when nothing is read from the exec since nothing can be kept.
    pub(crate) fn try_disk(&mut self, disk: &mut dyn FnMut() -> Option<Box<dyn Disk>>) {
        self.flush(STAYS, disk);
    }

    /// At the end of the exec: nothing more will come. What is more than little goes to the file as a whole.
    pub(crate) fn seal(&mut self, disk: &mut dyn FnMut() -> Option<Box<dyn Disk>>) {
        self.open = None;
        self.trim();
        if self.disk.is_some() || self.end.pos - self.memory_from.pos > SMALL {
            self.flush(0, disk);
        }
        self.memory.drain(..self.stale);
        self.stale = 0;
        self.memory.shrink_to_fit();
        self.rest();
        self.marks.shrink_to_fit();
    }

    // ---- dropping ----

    /// Drops what need not be kept and was read.
    fn trim(&mut self) {
        if self.policy.drop_oldest || self.kept() > self.policy.bytes {
            let keep = if self.policy.drop_oldest { self.policy.limit() } else { self.policy.bytes };
            self.drop_down_to(keep);
        }
    }

    fn drop_down_to(&mut self, target: u64) {
        while self.kept() > target {
            if !self.drop_some(self.kept() - target) {
                return;
            }
        }
    }

    /// How far dropping may go, in bytes of both outputs.
    fn droppable(&self) -> u64 {
        if self.policy.drop_oldest {
            self.end.bytes()
        } else {
            let read = self.read[0] + self.read[1];
            let slack = if self.disk_fails { WITHOUT_DISK / 8 } else { u64::MAX };
            let slack = self.policy.slack().min(slack);
            self.hold.map_or(read, |hold| hold.min(read)).saturating_sub(slack)
        }
    }

    /// Drops about `need` of the oldest bytes; false when nothing may go.
    fn drop_some(&mut self, need: u64) -> bool {
        let before = self.kept_from();
        let done =
            if self.first.pos < self.memory_from.pos { self.drop_step() } else { self.drop_exactly(need) };
        let now = self.kept_from();
        for (stream, dropped) in self.dropped.iter_mut().enumerate() {
            *dropped += now[stream].saturating_sub(before[stream].max(self.read[stream]));
        }
        while self.marks.get(1).is_some_and(|mark| mark.pos <= self.first.pos) {
            self.marks.pop_front();
        }
        done
    }

    /// On the disk by steps, so that nothing has to be read for it.
    fn drop_step(&mut self) -> bool {
        let next = self.marks.iter().find(|mark| mark.pos > self.first.pos).copied();
        let next = next.filter(|mark| mark.pos < self.memory_from.pos).unwrap_or(self.memory_from);
        if next.bytes() > self.droppable() {
            return false;
        }
        (self.first, self.skip) = (next, 0);
        true
    }

    fn drop_exactly(&mut self, need: u64) -> bool {
        let Some(header) = self.in_memory(self.first.pos).and_then(Header::decode) else { return false };
        let from = self.first.bytes() + self.skip;
        let len = (u64::from(header.len) - self.skip).min(self.droppable().saturating_sub(from)).min(need);
        if len == 0 {
            return false;
        }
        self.skip += len;
        self.skip_stream = header.stream;
        if self.skip == u64::from(header.len) {
            (self.first, self.skip) = (self.first.after(&header), 0);
            if self.first.pos == self.end.pos {
                self.open = None;
            }
            self.forget((self.first.pos - self.memory_from.pos) as usize);
            self.memory_from = self.first;
        }
        true
    }

    /// Drops all that is on the disk, which cannot be read.
    fn give_up_disk(&mut self) {
        let before = self.kept_from();
        (self.first, self.skip) = (self.memory_from, 0);
        for (stream, dropped) in self.dropped.iter_mut().enumerate() {
            *dropped += self.first.at[stream].saturating_sub(before[stream].max(self.read[stream]));
        }
        self.disk_fails = true;
    }

    // ---- reading ----

    fn in_memory(&self, pos: u64) -> Option<&[u8]> {
        let at = usize::try_from(pos.checked_sub(self.memory_from.pos)?).ok()?;
        self.memory.get(self.stale + at..)
    }

    /// A reader from these offsets on; what is not kept there is told by [`Spool::gaps`].
    pub(crate) fn reader(&self, from: [u64; 2]) -> Reader {
        let after = self.marks.partition_point(|mark| mark.at[0] <= from[0] && mark.at[1] <= from[1]);
        let mark = after.checked_sub(1).and_then(|index| self.marks.get(index)).copied();
        let place = mark.filter(|mark| mark.pos >= self.first.pos).unwrap_or(self.first);
        // Who begins beyond all that there is (to give input, say) has read none of it.
        let is_beyond = from[0] > self.end.at[0] && from[1] > self.end.at[1];
        let reached = if is_beyond { 0 } else { place.bytes() };
        Reader { place, next: from, reached, ahead: Vec::new(), ahead_from: 0 }
    }

    /// What `reader` missed; he goes on behind it.
    pub(crate) fn gaps(&self, reader: &mut Reader) -> impl Iterator<Item = Gap> + use<> {
        let kept = self.kept_from();
        if reader.place.pos < self.first.pos {
            reader.place = self.first;
        }
        let mut gaps = [None; 2];
        for (stream, gap) in gaps.iter_mut().enumerate() {
            if reader.next[stream] < kept[stream] {
                *gap = Some(Gap { stream, from: reader.next[stream], to: kept[stream] });
                reader.next[stream] = kept[stream];
            }
        }
        gaps.into_iter().flatten()
    }

    /// Whether `reader` has had everything so far.
    pub(crate) fn is_read_by(&self, reader: &Reader) -> bool {
        reader.has_come_to(self.end.at)
    }

    /// The next piece for `reader`, of at most `max` bytes; he goes on behind it. [`Spool::gaps`] comes first.
    /// `None` at the end; also where the disk cannot be read, and then there is another gap.
    pub(crate) fn next<'a>(&'a mut self, reader: &'a mut Reader, max: usize) -> Option<Piece<'a>> {
        let found = loop {
            if reader.place.pos >= self.end.pos || reader.place.pos < self.first.pos {
                break None;
            }
            let Some(header) = self.header(reader) else { break None };
            let Place { pos, at } = reader.place;
            let end = at[header.stream] + u64::from(header.len);
            let next = reader.next[header.stream];
            if next < end {
                break Some((header, pos, at));
            }
            if pos == self.last.pos && self.open.is_some() {
                break None;
            }
            reader.place = reader.place.after(&header);
        };
        let (header, pos, at) = found?;
        let (offset, stream) = (reader.next[header.stream], header.stream);
        let within = offset - at[stream];
        let len = (u64::from(header.len) - within).min(max as u64);
        reader.next[stream] = offset + len;
        // Also what he did not want counts: it was there for him.
        let mut read = at;
        read[stream] = reader.next[stream];
        reader.reached = read[0] + read[1];
        if read[0] + read[1] > self.read[0] + self.read[1] {
            self.read = read;
        }
        let begin = pos + HEADER as u64 + within;
        let bytes = if pos >= self.memory_from.pos {
            self.in_memory(begin)?
        } else {
            &reader.ahead[(begin - reader.ahead_from) as usize..]
        };
        Some(Piece { stream, offset, time_us: header.time_us, data: &bytes[..len as usize] })
    }

    /// Says who reads now: what none of them has had is kept for them, as long as the command can wait. Drops what need
    /// not be kept any longer.
    pub(crate) fn read_by<'a>(&mut self, readers: impl Iterator<Item = &'a Reader>) {
        self.hold = readers.map(|reader| reader.reached).max();
        self.trim();
    }

    /// Lets go of what is only needed while somebody reads.
    pub(crate) fn rest(&self) {
        if let Some(disk) = &self.disk {
            disk.rest();
        }
    }

    // ---- as bytes ----

    /// All of it as bytes, where none is on the disk.
    pub(crate) fn freeze(&self) -> Option<Vec<u8>> {
        let log = self.in_memory(self.first.pos)?;
        let numbers =
            [self.first.at, [self.skip, self.skip_stream as u64], self.end.at, self.dropped, self.read];
        let numbers = numbers.as_flattened().iter().flat_map(|number| number.to_le_bytes());
        Some(numbers.chain(log.iter().copied()).collect())
    }

    /// What [`Spool::freeze`] gave.
    pub(crate) fn thaw(policy: Policy, bytes: &[u8]) -> Option<Self> {
        let (numbers, log) = bytes.split_at_checked(FROZEN * 8)?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let number = |index: usize| numbers.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let pair = |index: usize| [number(index), number(index + 1)];
        let first = Place { pos: 0, at: pair(0) };
        let mut spool = Self::spent(policy, pair(4), pair(6));
        (spool.first, spool.memory_from, spool.last) = (first, first, first);
        (spool.skip, spool.skip_stream) = (number(2), usize::from(number(3) == 1));
        spool.read = pair(8);
        spool.end.pos = log.len() as u64;
        spool.marks.push_back(first);
        spool.memory = log.to_vec();
        Some(spool)
    }

    /// The header at the reader's place; of a record on the disk the whole of it is in `ahead` then.
    fn header(&mut self, reader: &mut Reader) -> Option<Header> {
        let pos = reader.place.pos;
        if pos >= self.memory_from.pos {
            reader.ahead = Vec::new();
            return Header::decode(self.in_memory(pos)?);
        }
        if let Some(header) = ahead(reader, pos) {
            return Some(header);
        }
        let len = (self.memory_from.pos - pos).min(AHEAD as u64) as usize;
        reader.ahead.resize(len, 0);
        reader.ahead_from = pos;
        let parts = ring_parts(self.policy.ring(), pos, len);
        let disk = self.disk.as_ref();
        let read = disk.is_some_and(|disk| {
            let into = &mut reader.ahead;
            parts
                .into_iter()
                .all(|(at, range)| range.is_empty() || disk.read_at(at, &mut into[range]).is_ok())
        });
        let header = if read { ahead(reader, pos) } else { None };
        if header.is_none() {
            reader.ahead = Vec::new();
            self.give_up_disk();
        }
        header
    }
}

/// The header at `pos`, if all of its record was read ahead.
fn ahead(reader: &Reader, pos: u64) -> Option<Header> {
    let at = usize::try_from(pos.checked_sub(reader.ahead_from)?).ok()?;
    let rest = reader.ahead.get(at..)?;
    Header::decode(rest).filter(|header| rest.len() >= HEADER + header.len as usize)
}

/// Where `len` bytes of the log from `pos` on are in a ring.
pub(crate) fn ring_parts(ring: u64, pos: u64, len: usize) -> [(u64, std::ops::Range<usize>); 2] {
    let at = pos % ring;
    let first = (ring - at).min(len as u64) as usize;
    [(at, 0..first), (0, first..len)]
}

#[cfg(test)]
mod tests;
