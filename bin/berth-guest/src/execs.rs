//! All execs of the sandbox, by their ids: those that run, those that are over and read, and those that are only
//! remembered.
//!
//! ```text
//!   start ──► Entry: exec, spool, attachments ──► over, nobody attached ──► Known::Over: some bytes, output perhaps
//!                          ▲                                                    │
//!                          └──────────────────── attach ────────────────────────┘
//! ```
//!
//! Of an exec that is over its status is kept for as long as the sandbox lives, its output within bounds: the oldest
//! goes first, and who asks for it is told the gap.

use std::collections::{BTreeMap, HashMap, VecDeque};

use berth_wire::{ExecInfo, Exited, Offsets, OnDetach, Reply};
use rustix::process::Pid;

use crate::accounts::Accounts;
use crate::attachment::Attachment;
use crate::exec::{Exec, Verdict};
use crate::input::Input;
use crate::link::Link;
use crate::record::{Facts, Over};
use crate::spool::Spool;
use crate::spooldir::{Archive, SpoolDir};
use crate::tree::Trees;

/// Bytes in files of their own that are kept of all execs that are over.
const ON_DISK: u64 = 192 << 20;
/// Bytes in memory likewise. What is more goes to the archive.
const IN_MEMORY: u64 = 2 << 20;
/// Bytes of text in one part of a listing, about: others wait while it is sent.
const PART: usize = 256 << 10;
/// What one output takes in memory beside its bytes.
const BESIDE: u64 = 512;

/// See the module.
pub(crate) struct Execs {
    known: HashMap<Box<str>, Known>,
    live: BTreeMap<u64, Entry>,
    pids: HashMap<Pid, u64>,
    made: u64,
    dir: SpoolDir,
    archive: Archive,
    /// Of those that are over and whose output is in memory or in a file of its own: id, bytes there; oldest first.
    in_memory: Queue,
    on_disk: Queue,
    /// Where the last turn ended for want of room to send.
    turn: u64,
}

/// Outputs of execs that are over, the oldest first.
#[derive(Default)]
struct Queue {
    items: VecDeque<(Box<str>, u64)>,
    bytes: u64,
}

impl Queue {
    fn push(&mut self, id: Box<str>, bytes: u64) {
        self.bytes += bytes;
        self.items.push_back((id, bytes));
    }

    /// The oldest, while there is more than `most`.
    fn pop_beyond(&mut self, most: u64) -> Option<Box<str>> {
        if self.bytes <= most {
            return None;
        }
        let (id, bytes) = self.items.pop_front()?;
        self.bytes -= bytes;
        Some(id)
    }

    fn remove(&mut self, id: &str) {
        if let Some(at) = self.items.iter().position(|(other, _)| &**other == id)
            && let Some((_, bytes)) = self.items.remove(at)
        {
            self.bytes -= bytes;
        }
    }
}

enum Known {
    Live(u64),
    Over(Box<[u8]>, Output),
}

impl Known {
    /// The exec's, in the order of starts.
    fn number(&self) -> u64 {
        match self {
            Self::Live(number) => *number,
            Self::Over(record, _) => Over::number(record).unwrap_or(0),
        }
    }
}

/// Where the output of an exec that is over is.
enum Output {
    Gone,
    Kept(Box<Spool>),
    Archived {
        at: u64,
        /// Whether nothing is missing at its beginning.
        whole: bool,
    },
}

/// An exec that runs, or is over and read.
pub(crate) struct Entry {
    pub(crate) id: Box<str>,
    pub(crate) facts: Facts,
    pub(crate) spool: Spool,
    pub(crate) input: Input,
    pub(crate) exec: Option<Box<Exec>>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) on_detach: OnDetach,
}

impl Execs {
    pub(crate) fn new(dir: SpoolDir) -> Self {
        Self {
            known: HashMap::new(),
            live: BTreeMap::new(),
            pids: HashMap::new(),
            made: 0,
            dir,
            archive: Archive::new(),
            in_memory: Queue::default(),
            on_disk: Queue::default(),
            turn: 0,
        }
    }

    /// The number for the next exec.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    pub(crate) fn insert(&mut self, entry: Entry) {
        let number = entry.facts.number;
        self.known.insert(entry.id.clone(), Known::Live(number));
        if let Some(exec) = &entry.exec {
            self.pids.insert(exec.pid(), number);
        }
        self.live.insert(number, entry);
    }

    pub(crate) fn get(&mut self, number: u64) -> Option<&mut Entry> {
        self.live.get_mut(&number)
    }

    pub(crate) fn all(&mut self) -> impl Iterator<Item = (u64, &mut Entry)> {
        self.live.iter_mut().map(|(number, entry)| (*number, entry))
    }

    /// Numbers of all entries, beginning where the last turn ended.
    pub(crate) fn in_turn(&self) -> Vec<u64> {
        self.live.range(self.turn..).chain(self.live.range(..self.turn)).map(|(number, _)| *number).collect()
    }

    /// Begins the next turn with this one.
    pub(crate) fn begin_with(&mut self, number: u64) {
        self.turn = number;
    }

    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Entry> + use<> {
        std::mem::take(&mut self.live).into_values()
    }

    pub(crate) fn by_pid(&mut self, pid: Pid) -> Option<&mut Entry> {
        let number = self.pids.remove(&pid)?;
        self.live.get_mut(&number)
    }

    /// The exec of that id with a process that can be killed or told something; `None` also when it is over.
    pub(crate) fn running(&mut self, id: &str) -> Option<&mut Exec> {
        let Some(Known::Live(number)) = self.known.get(id) else { return None };
        self.live.get_mut(number)?.exec.as_deref_mut().filter(|exec| exec.is_alive())
    }

    pub(crate) fn knows(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    /// The entry of that id; one that was only remembered is made anew.
    pub(crate) fn open(&mut self, id: &str) -> Option<&mut Entry> {
        let number = match self.known.get_mut(id)? {
            Known::Live(number) => *number,
            known @ Known::Over(..) => {
                let Known::Over(record, output) = std::mem::replace(known, Known::Live(0)) else {
                    return None;
                };
                let entry = self.reopen(id, &record, output)?;
                let number = entry.facts.number;
                self.known.insert(id.into(), Known::Live(number));
                self.live.insert(number, entry);
                number
            }
        };
        self.live.get_mut(&number)
    }

    fn reopen(&mut self, id: &str, record: &[u8], output: Output) -> Option<Entry> {
        let Over { facts, exited, input } = Over::decode(record)?;
        let policy = facts.policy();
        let of = |offsets: Offsets| [offsets.stdout, offsets.stderr];
        let spool = match output {
            Output::Kept(spool) => {
                self.in_memory.remove(id);
                self.on_disk.remove(id);
                Some(*spool)
            }
            Output::Archived { at, .. } => self.archive.get(at).and_then(|bytes| Spool::thaw(policy, &bytes)),
            Output::Gone => None,
        };
        Some(Entry {
            id: id.into(),
            spool: spool.unwrap_or_else(|| Spool::spent(policy, of(exited.written), of(exited.dropped))),
            input: Input::over(input.is_some(), input.unwrap_or(0)),
            facts,
            exec: None,
            verdict: Some(Verdict::Exited(exited)),
            attachments: Vec::new(),
            on_detach: OnDetach::Keep,
        })
    }

    /// Remembers an exec that is over, to which nobody is attached, in as few bytes as can be; one that never came to
    /// be is forgotten, so that its id can be used.
    pub(crate) fn put_away(&mut self, number: u64) {
        let Some(entry) = self.live.remove(&number) else { return };
        let Entry { id, facts, mut spool, input, verdict, on_detach, .. } = entry;
        let Some(Verdict::Exited(exited)) = verdict else {
            self.known.remove(&id);
            return;
        };
        let input = input.can_be_given().then(|| input.offset());
        // Nothing was to be kept, and who it was for has gone.
        let is_wanted = facts.keep > 0 || on_detach == OnDetach::Keep;
        let record = Over { facts, exited, input }.encode();
        if is_wanted {
            spool.seal(&mut || self.dir.file(format!("{number}")));
        }
        let (on_disk, in_memory) = spool.held();
        let output = if !is_wanted || on_disk + in_memory == 0 {
            Output::Gone
        } else {
            let (queue, bytes) = if on_disk > 0 {
                (&mut self.on_disk, on_disk + in_memory)
            } else {
                (&mut self.in_memory, in_memory + BESIDE)
            };
            queue.push(id.clone(), bytes);
            Output::Kept(Box::new(spool))
        };
        self.known.insert(id, Known::Over(record, output));
        self.bound();
    }

    fn bound(&mut self) {
        while let Some(id) = self.on_disk.pop_beyond(ON_DISK) {
            if let Some(Known::Over(_, output)) = self.known.get_mut(&id) {
                *output = Output::Gone;
            }
        }
        while let Some(id) = self.in_memory.pop_beyond(IN_MEMORY) {
            let Some(Known::Over(_, output)) = self.known.get_mut(&id) else { continue };
            let Output::Kept(spool) = output else { continue };
            let whole = spool.kept_from() == [0, 0];
            let at = spool.freeze().and_then(|bytes| self.archive.put(&bytes, &self.dir));
            *output = at.map_or(Output::Gone, |at| Output::Archived { at, whole });
        }
    }

    /// Tells of execs in the order in which they were started, from the one after number `after` on, at most `most` of
    /// them; with the number of the last where there are more.
    pub(crate) fn infos(&self, trees: &Trees, after: u64, most: usize) -> (Vec<ExecInfo>, Option<u64>) {
        let numbered = self.known.iter().map(|(id, known)| (known.number(), id));
        let mut wanted: Vec<_> = numbered.filter(|(number, _)| *number > after).collect();
        let are_more = wanted.len() > most;
        if are_more {
            wanted.select_nth_unstable(most);
            wanted.truncate(most);
        }
        wanted.sort_unstable();
        let (mut infos, mut room) = (Vec::with_capacity(wanted.len()), PART);
        for (at, (number, id)) in wanted.iter().enumerate() {
            let Some(info) = self.info(id, trees) else { continue };
            room = room.saturating_sub(length(&info));
            infos.push(info);
            if (are_more || at + 1 < wanted.len()) && (room == 0 || at + 1 == wanted.len()) {
                return (infos, Some(*number));
            }
        }
        (infos, None)
    }

    /// Tells of one.
    pub(crate) fn info(&self, id: &str, trees: &Trees) -> Option<ExecInfo> {
        match self.known.get(id)? {
            Known::Live(number) => Some(self.live.get(number)?.info(trees)),
            Known::Over(record, output) => Some(self.over_info(id, Over::decode(record)?, output, trees)),
        }
    }

    fn over_info(&self, id: &str, over: Over, output: &Output, trees: &Trees) -> ExecInfo {
        let Over { facts, exited, .. } = over;
        let kept_from = match output {
            Output::Kept(spool) => offsets(spool.kept_from()),
            Output::Archived { at, whole: true } if self.archive.has(*at) => Offsets::default(),
            Output::Archived { at, .. } => {
                let spool = self.archive.get(*at).and_then(|bytes| Spool::thaw(facts.policy(), &bytes));
                spool.map_or(exited.written, |spool| offsets(spool.kept_from()))
            }
            Output::Gone => exited.written,
        };
        told(id, &facts, Some(exited), kept_from, trees)
    }
}

/// About how long an exec's entry in a listing is.
fn length(info: &ExecInfo) -> usize {
    let message = info.exited.as_ref().and_then(|exited| exited.message.as_ref());
    let texts = [Some(&info.id), Some(&info.command), Some(&info.cwd), info.user.as_ref(), message];
    texts.into_iter().flatten().map(String::len).sum()
}

fn offsets([stdout, stderr]: [u64; 2]) -> Offsets {
    Offsets { stdout, stderr }
}

/// What there is to tell of an exec without a process.
fn told(id: &str, facts: &Facts, exited: Option<Exited>, kept_from: Offsets, trees: &Trees) -> ExecInfo {
    let left = trees.left_of(facts.number);
    ExecInfo {
        id: id.to_owned(),
        command: facts.command.clone(),
        user: facts.user.clone(),
        cwd: facts.cwd.clone(),
        started_at_us: facts.started_at_us,
        pid: None,
        cpu_usec: match left.and_then(|tree| tree.accounts()?.cpu_usec()) {
            None => exited.as_ref().and_then(|exited| exited.usage.cpu_usec),
            now => now,
        },
        memory_bytes: left.and_then(crate::tree::Tree::memory_bytes),
        processes: left.map(|tree| tree.members().len() as u64).or(Some(0)),
        written: exited.as_ref().map_or(Offsets::default(), |exited| exited.written),
        exited,
        kept_from,
        blocked: false,
        attached: 0,
        terminal: facts.terminal,
    }
}

impl Entry {
    fn info(&self, trees: &Trees) -> ExecInfo {
        let exited = match &self.verdict {
            Some(Verdict::Exited(exited)) => Some(exited.clone()),
            Some(Verdict::Failed(_)) | None => None,
        };
        let mut info = told(&self.id, &self.facts, exited, offsets(self.spool.kept_from()), trees);
        info.written = offsets(self.spool.written());
        info.attached = u32::try_from(self.attachments.len()).unwrap_or(u32::MAX);
        if let Some(exec) = &self.exec {
            let tree = exec.tree();
            info.pid = exec.is_running().then(|| exec.pid().as_raw_nonzero().get());
            info.cpu_usec = tree.accounts().and_then(Accounts::cpu_usec);
            info.memory_bytes = tree.memory_bytes();
            info.processes = Some(tree.members().len() as u64);
            info.blocked = exec.is_held_up();
        }
        info
    }

    pub(crate) fn attachment(&mut self, channel: u32) -> Option<&mut Attachment> {
        self.attachments.iter_mut().find(|attachment| attachment.channel == channel)
    }

    /// Sends what can be sent, and the last word to those who have had everything. Gives the channels that are over.
    pub(crate) fn pump(&mut self, link: &mut Link) -> Vec<u32> {
        if self.attachments.is_empty() {
            return Vec::new();
        }
        let mut done = Vec::new();
        for attachment in &mut self.attachments {
            let not_started = matches!(&self.verdict, Some(Verdict::Failed(_)))
                || self.verdict.is_some() && self.facts.program.is_none();
            if !attachment.told && !attachment.cancelled && !not_started {
                let Some(program) = self.facts.program.clone() else { continue };
                let (attached, stdin_offset) = (attachment.attached, attachment.stdin_offset);
                link.reply(attachment.channel, &Reply::Started { program, attached, stdin_offset });
                attachment.told = true;
            }
            if !attachment.pump(&mut self.spool, link) {
                continue;
            }
            let last = match &self.verdict {
                _ if attachment.until.is_some() && !attachment.cancelled => Reply::Detached,
                Some(Verdict::Exited(exited)) => Reply::Exited(exited.clone()),
                Some(Verdict::Failed(failure)) => Reply::Failed(failure.clone()),
                None => continue,
            };
            link.reply(attachment.channel, &last);
            done.push(attachment.channel);
        }
        for channel in &done {
            self.detach(*channel);
        }
        self.spool.read_by(self.attachments.iter().filter(|one| one.counts()).map(|one| &one.reader));
        done
    }

    /// Takes an attachment away, and ends an exec that ends with the last one.
    pub(crate) fn detach(&mut self, channel: u32) {
        self.attachments.retain(|attachment| attachment.channel != channel);
        self.input.left_by(channel);
        self.after_detach();
    }

    /// Takes all away: the connection has ended.
    pub(crate) fn detach_all(&mut self) {
        for attachment in std::mem::take(&mut self.attachments) {
            self.input.left_by(attachment.channel);
        }
        self.spool.read_by(std::iter::empty());
        self.after_detach();
    }

    /// Whether the exec is to be killed if this is the last who lets go of it.
    pub(crate) fn ends_without(&self, channel: u32) -> bool {
        self.on_detach == OnDetach::Kill
            && self.exec.is_some()
            && !self.attachments.iter().any(|other| other.channel != channel && other.counts())
    }

    fn after_detach(&mut self) {
        if self.attachments.is_empty() {
            self.spool.rest();
            if self.on_detach == OnDetach::Kill
                && let Some(exec) = &mut self.exec
            {
                exec.kill(berth_wire::ExitReason::Killed, exec.request.grace_ms);
            }
        }
    }
}
