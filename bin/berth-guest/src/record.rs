//! What is remembered of an exec that is over, as few bytes: there may be a hundred thousand of them.

use berth_wire::{Command, ExecUsage, ExitReason, Exited, Limit, Offsets};

use crate::spool::Policy;

/// Longest command that a listing shows, in bytes.
const SHOWN: usize = 160;

/// What does not change of an exec, but for its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// Where it is in the order of starts.
    pub(crate) number: u64,
    /// A hash: equal requests are to be told from others, not from forgeries.
    pub(crate) fingerprint: Option<u64>,
    pub(crate) command: String,
    pub(crate) user: Option<String>,
    pub(crate) cwd: String,
    pub(crate) started_at_us: u64,
    pub(crate) terminal: bool,
    pub(crate) keep: u64,
    pub(crate) drop_oldest: bool,
    /// Path of the program, once it runs.
    pub(crate) program: Option<String>,
}

impl Facts {
    pub(crate) fn new(request: &berth_wire::Exec, number: u64) -> Self {
        Self {
            number,
            fingerprint: request.fingerprint.as_deref().map(hash),
            command: shown(&request.command),
            user: request.user.clone().map(shortened),
            cwd: shortened(request.cwd.clone()),
            started_at_us: now_us(),
            terminal: request.terminal.is_some(),
            keep: request.keep.bytes,
            drop_oldest: request.keep.when_full == berth_wire::WhenFull::DropOldest,
            program: None,
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy { bytes: self.keep, drop_oldest: self.drop_oldest }
    }
}

/// Microseconds since the epoch.
pub(crate) fn now_us() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn shown(command: &Command) -> String {
    shortened(match command {
        Command::Argv(argv) => argv.join(" "),
        Command::Shell(line) => line.clone(),
        Command::LoginShell => "(login shell)".to_owned(),
        Command::Builtin(_) => "(sftp)".to_owned(),
    })
}

fn shortened(mut text: String) -> String {
    if text.len() > SHOWN {
        let most = SHOWN - '…'.len_utf8();
        let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= most).last();
        text.truncate(end.unwrap_or(0));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// An exec that is over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Over {
    pub(crate) facts: Facts,
    pub(crate) exited: Exited,
    /// Bytes of input that it was given, where it could be given any.
    pub(crate) input: Option<u64>,
}

impl Over {
    pub(crate) fn encode(&self) -> Box<[u8]> {
        let (facts, exited, usage) = (&self.facts, &self.exited, &self.exited.usage);
        let mut out = Writer(Vec::with_capacity(160));
        out.number(facts.number);
        out.option(facts.fingerprint);
        out.text(&facts.command);
        out.text_option(facts.user.as_deref());
        out.text(&facts.cwd);
        out.number(facts.started_at_us);
        out.number(facts.keep);
        out.text_option(facts.program.as_deref());
        out.number(exited.code.cast_unsigned().into());
        out.number(REASONS.iter().position(|reason| *reason == exited.reason).unwrap_or(0) as u64);
        out.option(exited.signal.map(|signal| u64::from(signal.cast_unsigned())));
        out.text_option(exited.message.as_deref());
        for number in [exited.duration_ms, exited.written.stdout, exited.written.stderr] {
            out.number(number);
        }
        out.number(exited.dropped.stdout);
        out.number(exited.dropped.stderr);
        out.option(usage.oom_kills);
        out.option(usage.peak_memory_bytes);
        out.option(usage.cpu_usec);
        out.option(self.input);
        let limit = |limit| u64::from(usage.limits_hit.contains(&limit));
        let bits = [u64::from(facts.terminal), u64::from(facts.drop_oldest), u64::from(usage.rescued)];
        let bits = bits.into_iter().chain(LIMITS.map(limit));
        out.number(bits.enumerate().map(|(at, bit)| bit << at).sum());
        out.0.into_boxed_slice()
    }

    /// [`Facts::number`] alone, of what [`Over::encode`] gave.
    pub(crate) fn number(bytes: &[u8]) -> Option<u64> {
        Reader(bytes).number()
    }

    /// What [`Over::encode`] gave.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = Reader(bytes);
        let mut facts = Facts {
            number: from.number()?,
            fingerprint: from.option()?,
            command: from.text()?,
            user: from.text_option()?,
            cwd: from.text()?,
            started_at_us: from.number()?,
            terminal: false,
            keep: from.number()?,
            drop_oldest: false,
            program: from.text_option()?,
        };
        let mut exited = Exited {
            code: u32::try_from(from.number()?).ok()?.cast_signed(),
            reason: *REASONS.get(usize::try_from(from.number()?).ok()?)?,
            signal: from.option()?.map(|signal| signal as i32),
            message: from.text_option()?,
            duration_ms: from.number()?,
            usage: ExecUsage::default(),
            written: Offsets { stdout: from.number()?, stderr: from.number()? },
            dropped: Offsets { stdout: from.number()?, stderr: from.number()? },
        };
        exited.usage.oom_kills = from.option()?;
        exited.usage.peak_memory_bytes = from.option()?;
        exited.usage.cpu_usec = from.option()?;
        let input = from.option()?;
        let bits = from.number()?;
        let bit = |at: usize| bits & (1 << at) != 0;
        (facts.terminal, facts.drop_oldest, exited.usage.rescued) = (bit(0), bit(1), bit(2));
        let limits = LIMITS.into_iter().zip(3..).filter(|(_, at)| bit(*at)).map(|(limit, _)| limit);
        exited.usage.limits_hit = limits.collect();
        Some(Self { facts, exited, input })
    }
}

const REASONS: [ExitReason; 6] = [
    ExitReason::Exited,
    ExitReason::Signaled,
    ExitReason::OutOfMemory,
    ExitReason::TimedOut,
    ExitReason::Killed,
    ExitReason::NotStarted,
];
const LIMITS: [Limit; 3] = [Limit::Memory, Limit::Pids, Limit::Disk];

/// Numbers by seven bits a byte, the lowest first; the eighth says that more follow.
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// An absent number is 0, others come after a 1.
    fn option(&mut self, number: Option<u64>) {
        self.0.push(u8::from(number.is_some()));
        number.into_iter().for_each(|number| self.number(number));
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn text_option(&mut self, text: Option<&str>) {
        self.0.push(u8::from(text.is_some()));
        text.into_iter().for_each(|text| self.text(text));
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn option(&mut self) -> Option<Option<u64>> {
        if self.byte()? == 0 { Some(None) } else { self.number().map(Some) }
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn text_option(&mut self) -> Option<Option<String>> {
        if self.byte()? == 0 { Some(None) } else { self.text().map(Some) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

    use proptest::prelude::*;

    use super::*;

    fn offsets() -> impl Strategy<Value = Offsets> {
        any::<(u64, u64)>().prop_map(|(stdout, stderr)| Offsets { stdout, stderr })
    }

    fn usage() -> impl Strategy<Value = ExecUsage> {
        let limits = prop::sample::subsequence(LIMITS.to_vec(), 0..=3);
        (any::<[Option<u64>; 3]>(), limits, any::<bool>()).prop_map(|(numbers, limits_hit, rescued)| {
            let [oom_kills, peak_memory_bytes, cpu_usec] = numbers;
            ExecUsage { oom_kills, limits_hit, peak_memory_bytes, cpu_usec, rescued }
        })
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_what_was(
            numbers: [u64; 4],
            fingerprint: Option<u64>,
            texts: [String; 2],
            options: [Option<String>; 3],
            flags: [bool; 2],
            code: i32,
            reason in prop::sample::select(REASONS.to_vec()),
            signal in prop::option::of(1..64i32),
            usage in usage(),
            written in offsets(),
            dropped in offsets(),
            input: Option<u64>,
        ) {
            let [number, started_at_us, keep, duration_ms] = numbers;
            let [command, cwd] = texts;
            let [user, program, message] = options;
            let [terminal, drop_oldest] = flags;
            let facts = Facts {
                number, fingerprint, command, user, cwd, started_at_us, terminal, keep, drop_oldest, program,
            };
            let exited = Exited { code, reason, signal, message, duration_ms, usage, written, dropped };
            let over = Over { facts, exited, input };
            prop_assert_eq!(Over::number(&over.encode()), Some(number));
            prop_assert_eq!(Over::decode(&over.encode()).unwrap(), over);
        }
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let shown = shown(&Command::Shell("ä".repeat(500)));
        assert!(shown.len() <= SHOWN && shown.ends_with("ä…"), "{shown}");
    }
}
