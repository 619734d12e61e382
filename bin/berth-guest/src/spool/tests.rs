#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

/// A disk in memory that can be told to fail.
#[derive(Clone, Default)]
struct Fake {
    bytes: Rc<RefCell<Vec<u8>>>,
    fails: Rc<Cell<bool>>,
    unreadable: Rc<Cell<bool>>,
}

impl Disk for Fake {
    fn write_at(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        if self.fails.get() {
            return Err(Errno::DQUOT);
        }
        let mut file = self.bytes.borrow_mut();
        let end = at as usize + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        if self.unreadable.get() {
            return Err(Errno::IO);
        }
        into.copy_from_slice(&self.bytes.borrow()[at as usize..at as usize + into.len()]);
        Ok(())
    }
}

/// The byte at `offset` of `stream`, whatever it is.
fn byte(stream: usize, offset: u64) -> u8 {
    (offset.wrapping_mul(31) ^ (offset >> 8) ^ (stream as u64 * 77)) as u8
}

fn bytes(stream: usize, from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|offset| byte(stream, offset)).collect()
}

/// What one reader has got: where it is in both outputs.
struct Got {
    reader: Reader,
    at: [u64; 2],
    gaps: u64,
    times: u64,
}

impl Got {
    fn new(spool: &Spool, from: [u64; 2]) -> Self {
        Self { reader: spool.reader(from), at: from, gaps: 0, times: 0 }
    }

    /// Reads up to `max` bytes and checks each against what was written.
    fn read(&mut self, spool: &mut Spool, max: usize) {
        let mut left = max;
        loop {
            for gap in spool.gaps(&mut self.reader) {
                assert_eq!(gap.from, self.at[gap.stream], "a gap begins where the reader is");
                assert!(gap.to > gap.from);
                self.gaps += gap.to - gap.from;
                self.at[gap.stream] = gap.to;
            }
            if left == 0 {
                return;
            }
            let before = spool.kept_from();
            let Some(piece) = spool.next(&mut self.reader, left) else {
                if spool.kept_from() == before {
                    return;
                }
                continue;
            };
            assert!(!piece.data.is_empty() && piece.data.len() <= left);
            assert_eq!(piece.offset, self.at[piece.stream], "pieces follow on one another");
            assert!(piece.time_us >= self.times, "pieces are in order");
            self.times = piece.time_us;
            let wanted = bytes(piece.stream, piece.offset, piece.data.len());
            assert!(piece.data == wanted, "the bytes are those that were written");
            self.at[piece.stream] += piece.data.len() as u64;
            left -= piece.data.len();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { stream: usize, len: usize, us: u64 },
    Read { who: usize, max: usize },
    Attach { stdout: u16, stderr: u16 },
    Detach { who: usize },
    Fail(bool),
    Seal,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..2usize, 1..70_000usize, 0..3000u64).prop_map(|(stream, len, us)| Step::Write { stream, len, us }),
        4 => (0..2usize, 1..200usize, 0..600u64).prop_map(|(stream, len, us)| Step::Write { stream, len, us }),
        8 => (0..4usize, 1..300_000usize).prop_map(|(who, max)| Step::Read { who, max }),
        2 => any::<(u16, u16)>().prop_map(|(stdout, stderr)| Step::Attach { stdout, stderr }),
        1 => (0..4usize).prop_map(|who| Step::Detach { who }),
        1 => any::<bool>().prop_map(Step::Fail),
        1 => Just(Step::Seal),
    ]
}

struct World {
    spool: Spool,
    disk: Fake,
    now: u64,
    readers: Vec<Got>,
    policy: Policy,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self { spool: Spool::new(policy), disk: Fake::default(), now: 5, readers: Vec::new(), policy }
    }

    fn step(&mut self, step: &Step) {
        let disk = self.disk.clone();
        let mut make = || Some(Box::new(disk.clone()) as Box<dyn Disk>);
        match *step {
            Step::Write { stream, len, us } => {
                self.now += us;
                let room = self.spool.room(len);
                let from = self.spool.written()[stream];
                if room > 0 {
                    self.spool.append(stream, &bytes(stream, from, room.min(len)), self.now, &mut make);
                }
            }
            Step::Read { who, max } => {
                if let Some(got) = self.readers.get_mut(who) {
                    got.read(&mut self.spool, max);
                }
                self.spool.read_by(self.readers.iter().map(|got| &got.reader));
            }
            Step::Attach { stdout, stderr } => {
                let written = self.spool.written();
                let part = |end: u64, part: u16| end * u64::from(part) / u64::from(u16::MAX);
                let from = [part(written[0], stdout), part(written[1], stderr)];
                self.readers.push(Got::new(&self.spool, from));
                self.spool.read_by(self.readers.iter().map(|got| &got.reader));
            }
            Step::Detach { who } => {
                if who < self.readers.len() {
                    self.readers.remove(who);
                    self.spool.read_by(self.readers.iter().map(|got| &got.reader));
                }
            }
            Step::Fail(fails) => {
                self.disk.fails.set(fails);
                self.spool.try_disk(&mut make);
            }
            Step::Seal => self.spool.seal(&mut make),
        }
        self.check();
    }

    fn check(&mut self) {
        let (on_disk, in_memory) = self.spool.held();
        let kept = self.spool.written().iter().sum::<u64>() - self.spool.kept_from().iter().sum::<u64>();
        assert!(kept <= self.policy.limit(), "{kept} bytes are kept");
        assert_eq!(self.spool.room(1) > 0, self.spool.room(MAX_RECORD) > 0, "room for one byte is room");
        assert!(on_disk <= self.policy.ring());
        assert!(in_memory <= WITHOUT_DISK + 3 * MAX_RECORD as u64, "{in_memory} bytes in memory");
        assert!(self.disk.bytes.borrow().len() as u64 <= self.policy.ring());
        if !self.policy.drop_oldest {
            assert_eq!(self.spool.dropped(), [0, 0], "nothing unread is dropped by a command that can wait");
        }
    }

    fn finish(mut self) {
        for got in &mut self.readers {
            got.read(&mut self.spool, usize::MAX);
            assert!(self.spool.is_read_by(&got.reader));
            assert_eq!(got.at, self.spool.written(), "every reader ends at the end");
        }
        if !self.readers.is_empty() {
            self.spool.read_by(self.readers.iter().map(|got| &got.reader));
            assert!(!self.spool.is_full(), "when everything was read the command goes on");
        }
        self.readers.clear();
        let mut late = Got::new(&self.spool, [0, 0]);
        let kept = self.spool.kept_from();
        late.read(&mut self.spool, usize::MAX);
        assert_eq!(late.at, self.spool.written());
        assert_eq!(late.gaps, kept[0] + kept[1], "a late reader gets all that is kept");
        if let Some(frozen) = self.spool.freeze() {
            let mut thawed = Spool::thaw(self.policy, &frozen).unwrap();
            assert_eq!((thawed.kept_from(), thawed.written()), (kept, self.spool.written()));
            let mut again = Got::new(&thawed, kept);
            again.read(&mut thawed, usize::MAX);
            assert_eq!((again.at, again.gaps), (self.spool.written(), 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_readers_get_what_was_written_but_for_the_gaps_they_are_told(
        keep in prop_oneof![Just(0u64), 1..5000u64, 5000..600_000u64, 600_000..3_000_000u64],
        drop_oldest: bool,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(Policy { bytes: keep, drop_oldest });
        steps.iter().for_each(|step| world.step(step));
        world.finish();
    }
}

fn fill(world: &mut World, total: u64) -> u64 {
    let before = world.spool.written()[0];
    for _ in 0..total / 50_000 + 1 {
        world.step(&Step::Write { stream: 0, len: 50_000, us: 2000 });
    }
    world.spool.written()[0] - before
}

#[test]
fn a_command_waits_when_as_much_as_is_kept_is_unread_and_goes_on_when_it_was_read() {
    let mut world = World::new(Policy { bytes: 1 << 20, drop_oldest: false });
    assert_eq!(fill(&mut world, 4 << 20), 1 << 20);
    assert!(world.spool.is_full());
    world.step(&Step::Attach { stdout: 0, stderr: 0 });
    world.step(&Step::Read { who: 0, max: 900_000 });
    assert!(!world.spool.is_full());
    assert!(fill(&mut world, 4 << 20) > 500_000);
    world.step(&Step::Read { who: 0, max: usize::MAX });
    assert_eq!(world.readers[0].gaps, 0, "the only reader misses nothing");
    world.finish();
}

#[test]
fn who_stands_beyond_the_end_has_read_nothing() {
    let mut world = World::new(Policy { bytes: 1 << 20, drop_oldest: false });
    let before = fill(&mut world, 300_000);
    let beyond = world.spool.reader([u64::MAX; 2]);
    world.spool.read_by(std::iter::once(&beyond));
    assert_eq!(before + fill(&mut world, 4 << 20), 1 << 20);
    assert!(world.spool.is_full());
    assert_eq!(world.spool.kept_from(), [0, 0]);
}

#[test]
fn who_reads_again_from_the_beginning_misses_nothing_that_was_kept_when_he_came() {
    let mut world = World::new(Policy { bytes: 2 << 20, drop_oldest: false });
    world.step(&Step::Attach { stdout: 0, stderr: 0 });
    fill(&mut world, 1 << 20);
    world.step(&Step::Read { who: 0, max: usize::MAX });
    world.step(&Step::Detach { who: 0 });
    world.step(&Step::Attach { stdout: 0, stderr: 0 });
    fill(&mut world, 8 << 20);
    world.step(&Step::Read { who: 0, max: usize::MAX });
    assert_eq!(world.readers[0].gaps, 0);
}

#[test]
fn what_is_dropped_unread_is_counted_and_told() {
    let mut world = World::new(Policy { bytes: 10_000, drop_oldest: true });
    assert!(fill(&mut world, 1 << 20) > 50_000);
    let written = world.spool.written()[0];
    let kept = world.spool.kept_from()[0];
    assert!(written - kept <= 10_000 && written - kept > 5_000);
    assert_eq!(world.spool.dropped(), [kept, 0]);
    let mut late = Got::new(&world.spool, [0, 0]);
    late.read(&mut world.spool, usize::MAX);
    assert_eq!(late.gaps, kept);
}

#[test]
fn what_comes_at_the_end_beyond_all_room_is_kept() {
    let mut world = World::new(Policy { bytes: 1 << 20, drop_oldest: false });
    fill(&mut world, 2 << 20);
    let disk = world.disk.clone();
    let mut make = || Some(Box::new(disk.clone()) as Box<dyn Disk>);
    for _ in 0..2 << 20 >> 16 {
        let from = world.spool.written()[0];
        world.now += 2000;
        world.spool.append(0, &bytes(0, from, 1 << 16), world.now, &mut make);
    }
    world.spool.seal(&mut make);
    assert!(disk.bytes.borrow().len() as u64 <= world.policy.ring());
    let mut late = Got::new(&world.spool, [0, 0]);
    late.read(&mut world.spool, usize::MAX);
    assert_eq!((late.at, late.gaps), ([3 << 20, 0], 0));
}

#[test]
fn a_full_disk_holds_the_command_up_and_loses_nothing() {
    let mut world = World::new(Policy { bytes: 8 << 20, drop_oldest: false });
    fill(&mut world, 1 << 20);
    world.step(&Step::Fail(true));
    let more = fill(&mut world, 8 << 20);
    assert!(more > 700_000 && more <= WITHOUT_DISK, "{more}");
    assert!(world.spool.is_full() && world.spool.waits_for_disk());
    world.step(&Step::Fail(false));
    assert!(!world.spool.is_full());
    fill(&mut world, 1 << 20);
    world.finish();
}

#[test]
fn a_disk_that_cannot_be_read_makes_a_gap() {
    let mut world = World::new(Policy { bytes: 8 << 20, drop_oldest: false });
    fill(&mut world, 2 << 20);
    world.disk.unreadable.set(true);
    let mut late = Got::new(&world.spool, [0, 0]);
    late.read(&mut world.spool, usize::MAX);
    assert!(late.gaps > 1 << 20);
    assert_eq!(late.at, world.spool.written());
    assert_eq!(world.spool.dropped()[0], late.gaps);
}

#[test]
fn little_output_makes_no_file_and_little_work() {
    let mut spool = Spool::new(Policy { bytes: 64 << 20, drop_oldest: false });
    let mut never = || -> Option<Box<dyn Disk>> { panic!("a file was made") };
    for at in 0..1000 {
        spool.append(0, &bytes(0, at * 60, 60), at * 10, &mut never);
    }
    spool.seal(&mut never);
    let (on_disk, in_memory) = spool.held();
    // Writes within a millisecond are one record.
    assert_eq!((on_disk, in_memory), (0, 60_000 + 10 * HEADER as u64));
}
