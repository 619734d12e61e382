//! The system call filter of sandboxes: rules as data (`table`) and their compilation to BPF.
//!
//! Two kinds of programs, which the kernel both runs and of which the stricter answer counts:
//!
//! - one that decides by the number of the call: `Allow`, `Refuse` (`EPERM`), or `Absent` (`ENOSYS`, as an older kernel
//!   would answer, so that libraries fall back). It is a binary search over ranges of numbers, made here: as a chain of
//!   comparisons, one a call, the kernel takes 0.9 ms to accept it, more than the rest of a sandbox's launch;
//! - one an errno that decides by arguments, made by `seccompiler`, behind a search of that kind for the few calls that
//!   it is about: the kernel follows each program once for every call that there is, at every launch.
//!
//! A call by another architecture's convention (32-bit programs on x86-64) kills the process: it could do nothing
//! sensible, not even exit. The x32 convention has numbers far above all that are known, and is absent.
//!
//! See seccomp(2), and `docs/decisions/0008-seccomp-filter.md`.

mod table;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use berth_sys::seccomp::Instruction;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use serde::{Deserialize, Serialize};

/// Which system calls a sandbox may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// What programs need, less what reaches around the sandbox's walls.
    #[default]
    Default,
    /// All of them.
    Unconfined,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// `EPERM`.
    Refuse,
    /// `ENOSYS`.
    Absent,
}

/// Calls with the same fate for the same reason.
struct Group {
    /// The reason; for who reads the table, and its listing in the tests.
    #[cfg_attr(not(test), expect(dead_code, reason = "data for readers"))]
    why: &'static str,
    verdict: Verdict,
    calls: &'static [Call],
    /// Those that only x86-64 has.
    x86_64: &'static [Call],
}

/// A system call.
struct Call {
    /// As the kernel headers name it.
    #[cfg_attr(not(test), expect(dead_code, reason = "data for readers"))]
    constant: &'static str,
    number: u32,
}

/// A call that is refused for one of its arguments.
struct Argument {
    /// The reason.
    #[cfg_attr(not(test), expect(dead_code, reason = "data for readers"))]
    why: &'static str,
    call: u32,
    /// Which argument; its lower 32 bits are looked at, as all calls here take it.
    index: u8,
    refused: Condition,
    errno: u32,
}

/// What an argument must be for its call to be refused.
enum Condition {
    AnyBit(u32),
    OneOf(&'static [u32]),
    NoneOf(&'static [u32]),
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody has ported it.
    #[error("there is no system call filter for the architecture {architecture}")]
    Architecture {
        /// Which one.
        architecture: &'static str,
        /// Cause.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The rules do not make a program.
    #[error("the system call filter's rules on arguments do not compile")]
    Arguments(#[source] seccompiler::BackendError),
}

/// The programs of the default profile, in the order in which they are installed.
pub(crate) fn programs() -> Result<&'static [Vec<Instruction>], &'static Error> {
    static PROGRAMS: OnceLock<Result<Vec<Vec<Instruction>>, Error>> = OnceLock::new();
    PROGRAMS.get_or_init(compile).as_deref()
}

/// What comes before them for a sandbox without a user namespace of its own.
pub(crate) fn programs_without_user_namespace() -> Result<&'static [Vec<Instruction>], &'static Error> {
    static PROGRAMS: OnceLock<Result<Vec<Vec<Instruction>>, Error>> = OnceLock::new();
    PROGRAMS.get_or_init(|| by_argument(target()?, table::WITHOUT_USER_NAMESPACE)).as_deref()
}

fn target() -> Result<TargetArch, Error> {
    let architecture = std::env::consts::ARCH;
    TargetArch::try_from(architecture).map_err(|source| Error::Architecture { architecture, source })
}

fn compile() -> Result<Vec<Vec<Instruction>>, Error> {
    let mut programs = by_argument(target()?, table::ARGUMENTS)?;
    // Last, so that it is asked first, and its answer stands where both refuse.
    programs.push(by_number(&ranges()));
    Ok(programs)
}

/// A run of numbers with one verdict, up to the next one's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    verdict: Verdict,
}

/// All numbers, in order.
fn ranges() -> Vec<Range> {
    let calls = table::GROUPS
        .iter()
        .flat_map(|group| group.calls.iter().chain(group.x86_64).map(|call| (call.number, group.verdict)));
    let verdicts: BTreeMap<u32, Verdict> = calls.collect();
    let mut ranges = vec![Range { start: 0, verdict: Verdict::Absent }];
    for (number, verdict) in verdicts {
        set(&mut ranges, number, verdict);
        ranges.push(Range { start: number + 1, verdict: Verdict::Absent });
    }
    ranges
}

/// Begins a range at a number that is not before the last range's start.
fn set(ranges: &mut Vec<Range>, start: u32, verdict: Verdict) {
    if ranges.last().is_some_and(|last| last.start == start) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.verdict != verdict) {
        ranges.push(Range { start, verdict });
    }
}

/// `BPF_LD | BPF_W | BPF_ABS`: load a word of the call's description.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_IF_NOT_LESS: u16 = 0x35;
/// `BPF_JMP | BPF_JA`.
const JUMP: u16 = 0x05;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;

/// `AUDIT_ARCH_*` of `linux/audit.h`.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;

/// `SECCOMP_RET_*` of `linux/seccomp.h`.
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

impl Verdict {
    fn action(self) -> u32 {
        match self {
            Self::Allow => ALLOW,
            Self::Refuse => ERRNO | linux_raw_sys::errno::EPERM,
            Self::Absent => ERRNO | linux_raw_sys::errno::ENOSYS,
        }
    }
}

fn by_number(ranges: &[Range]) -> Vec<Instruction> {
    let mut program = vec![
        Instruction::new(LOAD, ARCHITECTURE_OFFSET),
        Instruction::jump(JUMP_IF_EQUAL, ARCHITECTURE, 1, 0),
        Instruction::new(RETURN, KILL_PROCESS),
        Instruction::new(LOAD, NUMBER_OFFSET),
    ];
    program.extend(search(ranges));
    program
}

/// Finds the range of the loaded number by halves.
fn search(ranges: &[Range]) -> Vec<Instruction> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (Some(_), Some(middle)) = (lower.first(), upper.first()) else {
        let verdict = upper.first().map_or(Verdict::Absent, |only| only.verdict);
        return vec![Instruction::new(RETURN, verdict.action())];
    };
    let lower = search(lower);
    // The tests see to it that the table stays that small.
    let skip = u8::try_from(lower.len()).expect("half of the ranges are within one jump");
    let mut program = vec![Instruction::jump(JUMP_IF_NOT_LESS, middle.start, skip, 0)];
    program.extend(lower);
    program.extend(search(upper));
    program
}

/// One program an errno.
fn by_argument(target: TargetArch, arguments: &[Argument]) -> Result<Vec<Vec<Instruction>>, Error> {
    let mut by_errno: BTreeMap<u32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for argument in arguments {
        let calls = by_errno.entry(argument.errno).or_default();
        let rules = rules(argument).map_err(Error::Arguments)?;
        calls.entry(argument.call.into()).or_default().extend(rules);
    }
    let program = |(errno, rules): (u32, BTreeMap<i64, Vec<SeccompRule>>)| {
        let calls: Vec<u32> = rules.keys().filter_map(|number| u32::try_from(*number).ok()).collect();
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), target)?;
        let program: BpfProgram = filter.try_into()?;
        let steps = program.iter().map(|step| Instruction::jump(step.code, step.k, step.jt, step.jf));
        Ok(gate(&calls).into_iter().chain(steps).collect())
    };
    by_errno.into_iter().map(program).collect::<Result<_, _>>().map_err(Error::Arguments)
}

/// Allows all but these calls, in order, which go on to the program behind it. Other architectures' calls are not told
/// apart: the program that decides by number kills those.
fn gate(calls: &[u32]) -> Vec<Instruction> {
    let on = Verdict::Refuse;
    let mut ranges = vec![Range { start: 0, verdict: Verdict::Allow }];
    for number in calls {
        set(&mut ranges, *number, on);
        ranges.push(Range { start: number + 1, verdict: Verdict::Allow });
    }
    let mut steps = vec![Instruction::new(LOAD, NUMBER_OFFSET)];
    steps.extend(search(&ranges));
    let last = steps.len() - 1;
    for (at, step) in steps.iter_mut().enumerate() {
        if *step == Instruction::new(RETURN, on.action()) {
            // Some thousand steps at most.
            *step = Instruction::new(JUMP, (last - at) as u32);
        }
    }
    steps
}

/// Rules of which any one refuses.
fn rules(argument: &Argument) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let is = |comparison, value: u32| {
        SeccompCondition::new(argument.index, SeccompCmpArgLen::Dword, comparison, value.into())
    };
    match argument.refused {
        Condition::AnyBit(mask) => (0..u32::BITS)
            .map(|bit| 1 << bit)
            .filter(|bit| mask & bit != 0)
            .map(|bit| SeccompRule::new(vec![is(SeccompCmpOp::MaskedEq(bit.into()), bit)?]))
            .collect(),
        Condition::OneOf(values) => {
            values.iter().map(|value| SeccompRule::new(vec![is(SeccompCmpOp::Eq, *value)?])).collect()
        }
        Condition::NoneOf(values) => {
            let all = values.iter().map(|value| is(SeccompCmpOp::Ne, *value)).collect::<Result<_, _>>()?;
            Ok(vec![SeccompRule::new(all)?])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    /// What the kernel would answer, by running the programs as it does: the lowest action wins.
    fn answer(architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let outcomes =
            programs().unwrap().iter().map(|program| run(program, architecture, number, arguments));
        // The kernel compares actions as signed numbers: killing the process is the lowest.
        outcomes.rev().min_by_key(|action| (action & 0xffff_0000).cast_signed()).unwrap()
    }

    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let low = |value: u64| u32::try_from(value & 0xffff_ffff).unwrap();
        let mut words = vec![number, architecture, 0, 0];
        words.extend(arguments.iter().flat_map(|value| [low(*value), low(value >> 32)]));
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = program[at];
            let jump = |taken| usize::from(if taken { step.if_true } else { step.if_false });
            at += 1 + match step.code {
                LOAD => {
                    loaded = words[step.operand as usize / 4];
                    0
                }
                RETURN => return step.operand,
                JUMP_IF_EQUAL => jump(loaded == step.operand),
                JUMP_IF_NOT_LESS => jump(loaded >= step.operand),
                JUMP => step.operand as usize,
                // BPF_JGT, BPF_AND.
                0x25 => jump(loaded > step.operand),
                0x54 => {
                    loaded &= step.operand;
                    0
                }
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    fn by_arguments(number: u32, arguments: &[u64]) -> String {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        name(answer(ARCHITECTURE, number, all))
    }

    fn name(action: u32) -> String {
        match (action & 0xffff_0000, action & 0xffff) {
            (ALLOW, _) => "allow".to_owned(),
            (KILL_PROCESS, _) => "kill".to_owned(),
            (ERRNO, 1) => "EPERM".to_owned(),
            (ERRNO, 38) => "ENOSYS".to_owned(),
            (ERRNO, 97) => "EAFNOSUPPORT".to_owned(),
            _ => format!("{action:#x}"),
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_call_and_its_reason() {
        let mut text = String::new();
        for group in table::GROUPS {
            let calls = group.calls.iter().chain(group.x86_64);
            let names: Vec<_> = calls.map(|call| call.constant.trim_start_matches("__NR_")).collect();
            writeln!(text, "{:?}: {}\n  {}", group.verdict, group.why, names.join(" ")).unwrap();
        }
        for argument in table::ARGUMENTS.iter().chain(table::WITHOUT_USER_NAMESPACE) {
            let Argument { why, call, index, errno, .. } = argument;
            let refused = match argument.refused {
                Condition::AnyBit(mask) => format!("any bit of {mask:#x}"),
                Condition::OneOf(values) => format!("one of {values:x?}"),
                Condition::NoneOf(values) => format!("none of {values:x?}"),
            };
            writeln!(text, "Argument {index} of call {call}, {refused}: errno {errno}: {why}").unwrap();
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_programs_answer_as_the_table_says() {
        let groups = table::GROUPS.iter();
        let calls: Vec<(u32, Verdict)> = groups
            .flat_map(|group| group.calls.iter().chain(group.x86_64).map(|call| (call.number, group.verdict)))
            .collect();
        let distinct: BTreeMap<u32, Verdict> = calls.iter().copied().collect();
        assert_eq!(distinct.len(), calls.len(), "a call is in two groups");
        for number in 0..1000 {
            let verdict = distinct.get(&number).copied().unwrap_or(Verdict::Absent);
            // -1 for all arguments would be refused; 0 is harmless for each.
            assert_eq!(answer(ARCHITECTURE, number, [0; 6]), verdict.action(), "{number}");
        }
        assert_eq!(by_arguments(u32::MAX, &[]), "ENOSYS");
        assert_eq!(by_arguments(0x4000_0000, &[]), "ENOSYS", "x32");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_number_is_forgotten() {
        let last = 469;
        let known: Vec<u32> = ranges().iter().map(|range| range.start).collect();
        assert_eq!(*known.last().unwrap(), last + 1);
        // A hole in the kernel's own numbering, and clone3.
        let absent: Vec<u32> = (0..=last).filter(|number| by_arguments(*number, &[]) == "ENOSYS").collect();
        let expected: Vec<u32> = (336..424).chain([435]).collect();
        assert_eq!(absent, expected);
    }

    #[test]
    fn other_architectures_are_killed() {
        for architecture in [0x4000_0003, 0x4000_0028, 0] {
            assert_eq!(name(answer(architecture, 1, [0; 6])), "kill");
        }
    }

    #[test]
    fn arguments_decide() {
        use linux_raw_sys::general::*;
        let call = by_arguments;
        assert_eq!(call(__NR_clone, &[0x0120_0011]), "allow", "fork");
        assert_eq!(call(__NR_clone, &[0x003d_0f00]), "allow", "pthread_create");
        for flag in
            [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            assert_eq!(call(__NR_clone, &[flag | 17]), "EPERM");
            assert_eq!(call(__NR_unshare, &[flag]), "EPERM");
        }
        assert_eq!(call(__NR_unshare, &[0x80]), "EPERM", "a time namespace");
        assert_eq!(call(__NR_unshare, &[0x600]), "allow");
        assert_eq!(call(__NR_ioctl, &[0, 0x5412]), "EPERM");
        assert_eq!(call(__NR_ioctl, &[0, 0x1_0000_5412]), "EPERM", "the kernel ignores the upper half");
        assert_eq!(call(__NR_ioctl, &[0, 0x5413]), "allow");
        assert_eq!(call(__NR_personality, &[0x4_0000]), "allow");
        assert_eq!(call(__NR_personality, &[0xffff_ffff]), "allow");
        assert_eq!(call(__NR_personality, &[0x40_0000]), "EPERM", "READ_IMPLIES_EXEC");
        assert_eq!(call(__NR_prlimit64, &[0, 0]), "allow");
        assert_eq!(call(__NR_prlimit64, &[1, 0]), "EPERM");
        assert_eq!(call(__NR_setpriority, &[0, 1]), "EPERM");
        assert_eq!(call(__NR_setpriority, &[2, 0]), "EPERM");
        assert_eq!(call(__NR_setpriority, &[0, 0]), "allow");
        for (family, expected) in [(1, "allow"), (2, "allow"), (10, "allow"), (16, "allow"), (17, "allow")] {
            assert_eq!(call(__NR_socket, &[family]), expected);
        }
        for family in [38, 40, 29, 15, 44] {
            assert_eq!(call(__NR_socket, &[family]), "EAFNOSUPPORT");
            assert_eq!(call(__NR_socketpair, &[family]), "EAFNOSUPPORT");
        }
    }

    #[test]
    fn without_a_user_namespace_flags_of_files_stay() {
        let ioctl = linux_raw_sys::general::__NR_ioctl;
        let answer = |request| {
            let programs = programs_without_user_namespace().unwrap();
            name(run(&programs[0], ARCHITECTURE, ioctl, [0, request, 0, 0, 0, 0]))
        };
        assert_eq!(programs_without_user_namespace().unwrap().len(), 1);
        assert_eq!(answer(0x4008_6602), "EPERM");
        assert_eq!(answer(0x8008_6601), "allow", "to ask for them is harmless");
        assert_eq!(by_arguments(ioctl, &[0, 0x4008_6602]), "allow", "the kernel knows user namespaces");
    }

    #[test]
    fn the_programs_are_short() {
        // Each must be accepted by the kernel at every launch, which takes time in proportion to what it follows: the
        // way of every call through every program.
        let lengths: Vec<usize> = programs().unwrap().iter().map(Vec::len).collect();
        assert!(lengths.iter().sum::<usize>() < 440, "{lengths:?}");
    }
}
