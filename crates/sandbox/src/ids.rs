//! Ranges of user and group ids on the host, one for each sandbox: what root and everybody else inside are outside.
//!
//! ```text
//!   first_id ─┬─ range ─┬─ range ─┬─ /etc/subuid's ─┬─ range ─┬─ rest ─ last_id
//!             └─────── ids_per_sandbox each         └─ free again at the end of the queue
//! ```
//!
//! A range that was given back is the last to be handed out again, so that whatever a sandbox left behind with its ids
//! (a file in a directory that somebody shared, say) is not soon another one's. Ranges of /etc/subuid and /etc/subgid
//! are left to the engines that they are meant for. Users of the host above 65535 that come from a directory service
//! are not looked for: whoever has such configures `isolation.first_id` and `isolation.last_id` around them.
//!
//! Ranges are this daemon's alone to hand out. Each daemon begins at another place ([`IdRanges::begin_at`]), so that two on
//! one machine seldom have the same range at a time; who wants to be sure configures them apart.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Fewest ids that images and programs get along with: 65534 is `nobody` everywhere.
const LEAST_PER_SANDBOX: u32 = 65_536;
/// The first id that is not a host's own user by convention (and by what 16 bits hold).
const FIRST_FOREIGN: u32 = 65_536;
/// The kernel takes no group above this for ping, and many programs none at all (they read ids as signed numbers).
const LAST_USABLE: u32 = i32::MAX.cast_unsigned();
/// Who gives ids to other engines.
const SUBORDINATE_FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// Where ranges are taken from: `[isolation]` of the configuration. Users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The lowest id on the host, `isolation.first_id`; at least 65536.
    pub first: u32,
    /// The highest id on the host, itself included, `isolation.last_id`; at most 2147483647.
    pub last: u32,
    /// How many ids a sandbox gets, `isolation.ids_per_sandbox`; at least 65536.
    pub per_sandbox: u32,
}

impl Default for Options {
    /// 4095 ranges of 262144, above what user management hands out and below the sign bit.
    fn default() -> Self {
        Self { first: 1_073_741_824, last: 2_147_352_575, per_sandbox: 262_144 }
    }
}

/// Ids of the host that are somebody's: `first..first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The lowest.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl Range {
    fn overlaps(&self, first: u32, count: u32) -> bool {
        let end = |first: u32, count: u32| u64::from(first) + u64::from(count);
        // One without ids has none in common with anybody, wherever it begins.
        let each_begins_before_the_other_ends =
            u64::from(first) < end(self.first, self.count) && u64::from(self.first) < end(first, count);
        self.count > 0 && each_begins_before_the_other_ends
    }
}

/// Why there is no range.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sandbox would have fewer ids than images use.
    #[error("isolation.ids_per_sandbox = {per_sandbox} is below {LEAST_PER_SANDBOX}")]
    TooFewPerSandbox {
        /// As it was configured.
        per_sandbox: u32,
    },
    /// The ids are the host's own.
    #[error("isolation.first_id = {first} is among the host's own users, which are below {FIRST_FOREIGN}")]
    OwnIds {
        /// As it was configured.
        first: u32,
    },
    /// The ids are above what programs and the kernel take.
    #[error("isolation.last_id = {last} is above {LAST_USABLE}")]
    TooHigh {
        /// As it was configured.
        last: u32,
    },
    /// There is no room for one sandbox.
    #[error(
        "isolation.first_id = {first} to isolation.last_id = {last} do not hold isolation.ids_per_sandbox = {per_sandbox}"
    )]
    NoRoom {
        /// As it was configured.
        first: u32,
        /// As it was configured.
        last: u32,
        /// As it was configured.
        per_sandbox: u32,
    },
    /// All of it is promised to others.
    #[error(
        "every range of {per_sandbox} ids between isolation.first_id = {first} and isolation.last_id = {last} overlaps /etc/subuid or /etc/subgid"
    )]
    AllSubordinate {
        /// As it was configured.
        first: u32,
        /// As it was configured.
        last: u32,
        /// As it was configured.
        per_sandbox: u32,
    },
    /// As many sandboxes as there are ranges have one, or are kept ready with one.
    #[error(
        "all {total} ranges of ids between isolation.first_id = {first} and isolation.last_id = {last} are in use"
    )]
    Exhausted {
        /// How many there are.
        total: usize,
        /// As it was configured.
        first: u32,
        /// As it was configured.
        last: u32,
    },
    /// A sandbox that lives on has ids that another one has too.
    #[error("{count} ids from {first} are another sandbox's")]
    Taken {
        /// The lowest.
        first: u32,
        /// How many.
        count: u32,
    },
    /// What is promised to others cannot be read.
    #[error("cannot read {}", path.display())]
    ReadSubordinate {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::TooFewPerSandbox { .. } => {
                format!("set isolation.ids_per_sandbox to at least {LEAST_PER_SANDBOX}")
            }
            Error::OwnIds { .. } => format!("set isolation.first_id to at least {FIRST_FOREIGN}"),
            Error::TooHigh { .. } => format!("set isolation.last_id to at most {LAST_USABLE}"),
            Error::NoRoom { first, per_sandbox, .. } => {
                let last = u64::from(*first) + u64::from(*per_sandbox) - 1;
                match last <= u64::from(LAST_USABLE) {
                    true => format!("set isolation.last_id to at least {last}"),
                    false => "set isolation.first_id lower, or isolation.ids_per_sandbox".to_owned(),
                }
            }
            Error::AllSubordinate { .. } => {
                "set isolation.first_id and isolation.last_id to ids that are in neither file".to_owned()
            }
            Error::Exhausted { .. } => {
                "set isolation.first_id lower or isolation.last_id higher, or isolation.ids_per_sandbox lower"
                    .to_owned()
            }
            Error::Taken { .. } | Error::ReadSubordinate { .. } => return None,
        };
        Some(hint)
    }
}

/// All ranges of this daemon. Cheap to clone: clones hand out the same ranges.
#[derive(Clone, Debug)]
pub struct IdRanges {
    options: Options,
    /// The lowest of each, free or not.
    all: Arc<[u32]>,
    free: Arc<Mutex<VecDeque<u32>>>,
}

impl IdRanges {
    /// Every range that fits the options and overlaps nothing `subordinate`.
    ///
    /// # Errors
    /// Options that cannot be, each named with what it should be; and [`Error::AllSubordinate`].
    pub fn new(options: Options, subordinate: &[Range]) -> Result<IdRanges, Error> {
        check(&options)?;
        let Options { first, last, per_sandbox } = options;
        let starts = (first..=last).step_by(usize::try_from(per_sandbox).unwrap_or(usize::MAX));
        let free: VecDeque<_> = starts
            .take_while(|start| last - start >= per_sandbox - 1)
            .filter(|start| !subordinate.iter().any(|other| other.overlaps(*start, per_sandbox)))
            .collect();
        if free.is_empty() {
            return Err(Error::AllSubordinate { first, last, per_sandbox });
        }
        let all = free.iter().copied().collect();
        Ok(IdRanges { options, all, free: Arc::new(Mutex::new(free)) })
    }

    /// The range that has been free for longest.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when all are out.
    pub fn take(&self) -> Result<IdLease, Error> {
        let taken = lock(&self.free).pop_front();
        let Options { first, last, per_sandbox } = self.options;
        let start = taken.ok_or(Error::Exhausted { total: self.total(), first, last })?;
        let range = Range { first: start, count: per_sandbox };
        Ok(IdLease { range, starts: vec![start], free: Arc::clone(&self.free) })
    }

    /// The range of a sandbox that lives on from an earlier daemon, so that nobody else gets any of it. It need not be one
    /// that is handed out today: who configures other ids keeps every range back that it overlaps.
    ///
    /// # Errors
    /// [`Error::Taken`] when some of it is out already.
    pub fn reserve(&self, range: Range) -> Result<IdLease, Error> {
        let Range { first, count } = range;
        let per_sandbox = self.options.per_sandbox;
        let mut free = lock(&self.free);
        let overlapped = |start: &u32| range.overlaps(*start, per_sandbox);
        let starts: Vec<u32> = free.iter().copied().filter(overlapped).collect();
        if starts.len() < self.all.iter().copied().filter(|start| overlapped(start)).count() {
            return Err(Error::Taken { first, count });
        }
        free.retain(|start| !overlapped(start));
        Ok(IdLease { range, starts, free: Arc::clone(&self.free) })
    }

    /// Hands out the ranges from another place on: `seed` says which, and may be any number.
    #[must_use]
    pub fn begin_at(self, seed: u64) -> IdRanges {
        let place = seed % self.total() as u64;
        // Below the length, which is a usize.
        lock(&self.free).rotate_left(place as usize);
        self
    }

    /// How many ranges there are, free or not.
    pub fn total(&self) -> usize {
        self.all.len()
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        lock(&self.free).len()
    }
}

/// One sandbox's ids, until it is dropped.
#[derive(Debug)]
pub struct IdLease {
    range: Range,
    /// Those that are handed out again when it ends.
    starts: Vec<u32>,
    free: Arc<Mutex<VecDeque<u32>>>,
}

impl IdLease {
    /// The ids.
    pub fn range(&self) -> Range {
        self.range
    }
}

impl Drop for IdLease {
    fn drop(&mut self) {
        lock(&self.free).extend(self.starts.drain(..));
    }
}

fn lock(free: &Mutex<VecDeque<u32>>) -> std::sync::MutexGuard<'_, VecDeque<u32>> {
    free.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(options: &Options) -> Result<(), Error> {
    let Options { first, last, per_sandbox } = *options;
    if per_sandbox < LEAST_PER_SANDBOX {
        return Err(Error::TooFewPerSandbox { per_sandbox });
    }
    if first < FIRST_FOREIGN {
        return Err(Error::OwnIds { first });
    }
    if last > LAST_USABLE {
        return Err(Error::TooHigh { last });
    }
    if last.checked_sub(first).is_none_or(|span| span < per_sandbox - 1) {
        return Err(Error::NoRoom { first, last, per_sandbox });
    }
    Ok(())
}

/// What /etc/subuid and /etc/subgid give to others. Files that are not there give nothing; lines that cannot be read
/// are logged and give nothing either, as for the programs that these files are for.
///
/// # Errors
/// A file is there and cannot be read.
pub fn subordinate_of_host() -> Result<Vec<Range>, Error> {
    let mut ranges = Vec::new();
    for path in SUBORDINATE_FILES.map(Path::new) {
        // Not as UTF-8: what counts are the numbers.
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::ReadSubordinate { path: path.to_owned(), source }),
        };
        let (found, malformed) = parse_subordinate(&text);
        ranges.extend(found);
        for line in malformed {
            tracing::warn!(path = %path.display(), line, "line is not name:first:count, and is ignored");
        }
    }
    Ok(ranges)
}

/// Reads `name:first:count` lines; those that are neither that, nor empty, nor a comment are the second part, numbered
/// from 1.
fn parse_subordinate(text: &str) -> (Vec<Range>, Vec<usize>) {
    let (mut ranges, mut malformed) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_line(line) {
            Some(range) => ranges.push(range),
            None => malformed.push(number),
        }
    }
    (ranges, malformed)
}

fn parse_line(line: &str) -> Option<Range> {
    let mut fields = line.split(':');
    let (name, first, count) = (fields.next()?, fields.next()?, fields.next()?);
    if name.is_empty() || fields.next().is_some() {
        return None;
    }
    let (first, count) = (first.parse().ok()?, count.parse::<u32>().ok()?);
    Some(Range { first, count })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(first: u32, last: u32, per_sandbox: u32) -> Options {
        Options { first, last, per_sandbox }
    }

    fn refusal(first: u32, last: u32, per_sandbox: u32) -> String {
        let error = IdRanges::new(options(first, last, per_sandbox), &[]).unwrap_err();
        format!("{error}; {}", error.hint().unwrap())
    }

    #[test]
    fn the_default_numbers_four_thousand_sandboxes() {
        let ranges = IdRanges::new(Options::default(), &[]).unwrap();
        assert_eq!((ranges.total(), ranges.free()), (4095, 4095));
        assert_eq!(ranges.take().unwrap().range(), Range { first: 1_073_741_824, count: 262_144 });
        assert_eq!(ranges.free(), 4095);
    }

    #[test]
    fn options_that_cannot_be_are_refused_with_what_could() {
        insta::assert_snapshot!(refusal(100_000, 900_000, 1000), @"isolation.ids_per_sandbox = 1000 is below 65536; set isolation.ids_per_sandbox to at least 65536");
        insta::assert_snapshot!(refusal(1000, 900_000, 65_536), @"isolation.first_id = 1000 is among the host's own users, which are below 65536; set isolation.first_id to at least 65536");
        insta::assert_snapshot!(refusal(100_000, 3_000_000_000, 65_536), @"isolation.last_id = 3000000000 is above 2147483647; set isolation.last_id to at most 2147483647");
        insta::assert_snapshot!(refusal(100_000, 165_534, 65_536), @"isolation.first_id = 100000 to isolation.last_id = 165534 do not hold isolation.ids_per_sandbox = 65536; set isolation.last_id to at least 165535");
        insta::assert_snapshot!(refusal(900_000, 100_000, 65_536), @"isolation.first_id = 900000 to isolation.last_id = 100000 do not hold isolation.ids_per_sandbox = 65536; set isolation.last_id to at least 965535");
        insta::assert_snapshot!(refusal(2_147_483_600, 2_147_483_647, u32::MAX), @"isolation.first_id = 2147483600 to isolation.last_id = 2147483647 do not hold isolation.ids_per_sandbox = 4294967295; set isolation.first_id lower, or isolation.ids_per_sandbox");
        assert_eq!(IdRanges::new(options(100_000, 165_535, 65_536), &[]).unwrap().total(), 1);
        let top = options(i32::MAX.cast_unsigned() - 65_535, i32::MAX.cast_unsigned(), 65_536);
        assert_eq!(IdRanges::new(top, &[]).unwrap().total(), 1);
    }

    #[test]
    fn a_range_given_back_is_the_last_to_be_used_again() {
        let ranges = IdRanges::new(options(100_000, 100_000 + 4 * 65_536, 65_536), &[]).unwrap();
        let first = ranges.take().unwrap();
        let again = first.range();
        drop(first);
        let leases: Vec<_> = (0..4).map(|_| ranges.take().unwrap()).collect();
        assert_eq!(leases[3].range(), again);
        let error = ranges.clone().take().unwrap_err();
        insta::assert_snapshot!(error, @"all 4 ranges of ids between isolation.first_id = 100000 and isolation.last_id = 362144 are in use");
        insta::assert_snapshot!(error.hint().unwrap(), @"set isolation.first_id lower or isolation.last_id higher, or isolation.ids_per_sandbox lower");
        drop(leases);
        assert_eq!(ranges.free(), 4);
    }

    #[test]
    fn ids_of_those_who_live_on_are_nobody_elses() {
        let ranges = IdRanges::new(options(100_000, 100_000 + 4 * 65_536, 65_536), &[]).unwrap();
        let kept = ranges.reserve(Range { first: 165_536, count: 65_536 }).unwrap();
        assert_eq!((kept.range(), ranges.free()), (Range { first: 165_536, count: 65_536 }, 3));
        let error = ranges.reserve(kept.range()).unwrap_err();
        insta::assert_snapshot!(error, @"65536 ids from 165536 are another sandbox's");
        let leases: Vec<_> = std::iter::from_fn(|| ranges.take().ok()).collect();
        let others: Vec<_> = leases.iter().map(|lease| lease.range().first).collect();
        assert_eq!(others, [100_000, 231_072, 296_608]);
        drop((kept, leases));
        assert_eq!(ranges.free(), 4);
        // Of other options: it overlaps two of today's.
        let kept = ranges.reserve(Range { first: 200_000, count: 65_536 }).unwrap();
        assert_eq!(ranges.free(), 2);
        drop(kept);
        assert_eq!(ranges.free(), 4);
        drop(ranges.reserve(Range { first: 3_000_000, count: 65_536 }).unwrap());
        assert_eq!(ranges.free(), 4);
    }

    #[test]
    fn ranges_of_others_are_left_alone() {
        let others = [Range { first: 165_535, count: 2 }, Range { first: 0, count: 100_000 }];
        let ranges = IdRanges::new(options(100_000, 400_000, 65_536), &others).unwrap();
        assert_eq!((ranges.total(), ranges.take().unwrap().range().first), (2, 231_072));
        let nothing = Range { first: 120_000, count: 0 };
        assert_eq!(IdRanges::new(options(100_000, 400_000, 65_536), &[nothing]).unwrap().total(), 4);
        let all = Range { first: 1, count: u32::MAX };
        let error = IdRanges::new(options(100_000, 400_000, 65_536), &[all]).unwrap_err();
        insta::assert_snapshot!(error, @"every range of 65536 ids between isolation.first_id = 100000 and isolation.last_id = 400000 overlaps /etc/subuid or /etc/subgid");
    }

    #[test]
    fn what_is_promised_to_others_is_read_line_by_line() {
        let text = "# who\nalice:100000:65536\n\nbob:165536:65536\nworse\ncarol:1:2:3\ndave:-1:5\neve:5\n:1:2\n1001:300000:0\nfay:1:99999999999\n";
        let (ranges, malformed) = parse_subordinate(text);
        let firsts: Vec<_> = ranges.iter().map(|range| (range.first, range.count)).collect();
        assert_eq!(firsts, [(100_000, 65_536), (165_536, 65_536), (300_000, 0)]);
        assert_eq!(malformed, [5, 6, 7, 8, 9, 11]);
    }

    proptest::proptest! {
        #[test]
        fn no_id_is_two_sandboxes_or_somebody_elses(
            first in 65_536u32..2_000_000,
            size in 65_536u32..200_000,
            others in proptest::collection::vec((0u32..4_000_000, 0u32..400_000), 0..8),
            steps in proptest::collection::vec(proptest::bool::ANY, 0..60),
        ) {
            let others: Vec<_> = others.into_iter().map(|(first, count)| Range { first, count }).collect();
            let Ok(ranges) = IdRanges::new(options(first, first + 2_000_000, size), &others) else { return Ok(()) };
            let mut leases: Vec<IdLease> = Vec::new();
            for take in steps {
                match take {
                    true => leases.extend(ranges.take().ok()),
                    false if leases.is_empty() => {}
                    false => drop(leases.remove(0)),
                }
                proptest::prop_assert_eq!(leases.len() + ranges.free(), ranges.total());
                for (at, lease) in leases.iter().enumerate() {
                    let Range { first: start, count } = lease.range();
                    proptest::prop_assert!(start >= first && start + count - 1 <= first + 2_000_000);
                    let mut rest = leases[at + 1..].iter().map(IdLease::range).chain(others.iter().copied());
                    proptest::prop_assert!(!rest.any(|other| other.overlaps(start, count)));
                }
            }
        }
    }

    #[test]
    fn daemons_begin_apart_and_lose_no_range() {
        let options = Options { first: 100_000, last: 100_000 + 10 * 65_536, per_sandbox: 65_536 };
        let first = |seed| IdRanges::new(options, &[]).unwrap().begin_at(seed).take().unwrap().range().first;
        assert_eq!(first(0), 100_000);
        assert_eq!(first(3), 100_000 + 3 * 65_536);
        assert_eq!(first(13), first(3));
        assert_eq!(IdRanges::new(options, &[]).unwrap().begin_at(7).free(), 10);
    }
}
