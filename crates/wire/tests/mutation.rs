//! Streams of real frames with bytes changed, cut, doubled and moved: whoever reads them gets frames or a mistake, in
//! bounded memory, and the same whatever pieces they come in.
//!
//! The dice fall the same way in every run. `BERTH_FUZZ_SECONDS` lets the test go on for so long.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use berth_wire::{
    Attach, Body, Builtin, Change, ChangeKind, Chunk, Command, Connect, Decoder, DirEntry, Exec, ExecInfo,
    FileKind, FileStat, Frame, Fs, Keep, Notice, Offsets, OnDetach, Outcome, Output, Pack, PackReport,
    ReadFile, Reply, Request, Stdin, TerminalSize, Watch, WhenFull, WriteFile,
};

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

fn exec() -> Exec {
    Exec {
        id: "e1".into(),
        fingerprint: Some("f".into()),
        command: Command::Builtin(Builtin::Sftp),
        env: BTreeMap::from([("A".into(), "\u{1f980}\n".into())]),
        cwd: "/".into(),
        user: Some("0:0".into()),
        timeout_ms: Some(u64::MAX),
        grace_ms: None,
        no_new_privs: true,
        plain_env: false,
        stdin: Stdin::Stream,
        terminal: Some(TerminalSize { rows: 24, cols: u16::MAX }),
        keep: Keep { bytes: 7, when_full: WhenFull::DropOldest },
        on_detach: OnDetach::Kill,
        from: Offsets { stdout: u64::MAX, stderr: 0 },
    }
}

fn requests() -> Vec<Request> {
    vec![
        Request::Exec(exec()),
        Request::Attach(Attach { id: "e1".into(), from: Offsets::default(), stdin: true, follow: false }),
        Request::Signal { id: "e1".into(), signal: -1, tree: true },
        Request::Resize { id: "e1".into(), size: TerminalSize { rows: 0, cols: 0 } },
        Request::Quiesce { grace_ms: Some(1) },
        Request::Execs { id: None, after: Some(u64::MAX) },
        Request::ReadFile(ReadFile { path: "/a".into(), offset: 1, length: Some(2), user: None }),
        Request::WriteFile(WriteFile {
            path: "/a".into(),
            mode: Some(0o644),
            owner: None,
            create_only: true,
        }),
        Request::Watch(Watch { path: "/a".into(), recursive: true }),
        Request::Connect(Connect::Tcp { host: "localhost".into(), port: 80 }),
        Request::Connect(Connect::Unix { path: "/s".into() }),
        Request::Fs(Fs::List { path: "/".into(), user: Some("u".into()) }),
        Request::Pack(Pack {
            path: "/a".into(),
            include: vec!["*".into()],
            exclude_files: vec!["[!a]".into()],
            protect: vec!["b".into()],
            sparse: true,
            ..Pack::default()
        }),
    ]
}

fn replies() -> Vec<Reply> {
    let stat =
        FileStat { kind: FileKind::Other, size: 1, mode: 0o777, uid: 1, gid: 2, modified_us: i64::MIN };
    let entry = DirEntry { name: "\u{fffd}".into(), stat, link: Some("..".into()) };
    let info = ExecInfo {
        id: "e1".into(),
        command: "make".into(),
        user: None,
        cwd: "/".into(),
        started_at_us: 1,
        pid: Some(7),
        exited: None,
        cpu_usec: Some(1),
        memory_bytes: None,
        processes: Some(2),
        written: Offsets { stdout: 1, stderr: 2 },
        kept_from: Offsets::default(),
        blocked: true,
        attached: 3,
        terminal: false,
    };
    let report = PackReport {
        changed: vec![Notice { path: "a".into(), why: "grew".into() }],
        ..PackReport::default()
    };
    vec![
        Reply::Started { program: "/bin/sh".into(), attached: true, stdin_offset: 9 },
        Reply::Gap { stream: Output::Stderr, from: 1, to: u64::MAX },
        Reply::Connected,
        Reply::Detached,
        Reply::Done(Outcome::Execs { infos: vec![info], next: Some(1) }),
        Reply::Done(Outcome::Fs { stat: Some(stat), entries: vec![entry] }),
        Reply::Done(Outcome::Packed(report)),
        Reply::Done(Outcome::Read { size: 5 }),
        Reply::Done(Outcome::Written { bytes: 5 }),
        Reply::Done(Outcome::Quiesced { killed: 2 }),
    ]
}

fn frames() -> Vec<Frame> {
    let opens = requests().into_iter().map(|request| Body::Open(Box::new(request)));
    let events = replies().into_iter().map(Body::Event);
    let chunk =
        |stream, len| Body::Output(Chunk { stream, offset: u64::MAX, time_us: 1, data: vec![9; len] });
    let rest = [
        chunk(Output::Stdout, 0),
        chunk(Output::Stderr, 700),
        Body::Data(Vec::new()),
        Body::Data(vec![7; 900]),
        Body::End,
        Body::Credit(u32::MAX),
        Body::Cancel,
    ];
    opens.chain(events).chain(rest).zip(1..).map(|(body, channel)| Frame { channel, body }).collect()
}

/// All frames up to a mistake, and what that was.
fn decode(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<String>) {
    let (mut decoder, mut frames) = (Decoder::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }
    (frames, None)
}

fn mutated(dice: &mut Dice, frames: &[Frame]) -> Vec<u8> {
    const TELLING: [&[u8]; 10] =
        [b"\0", b"\xff\xff\xff\xff", b"{", b"\"", b":", b"[[[[", b"null", b"-1", b"\\u0000", b"1e999"];
    let mut bytes = Vec::new();
    for _ in 0..1 + dice.below(6) {
        frames[dice.below(frames.len())].encode(&mut bytes).unwrap();
    }
    for _ in 0..dice.below(5) {
        let at = dice.below(bytes.len());
        match dice.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + dice.below(20)).min(bytes.len()))),
            2 => {
                let copy = bytes[at..(at + dice.below(40)).min(bytes.len())].to_vec();
                let to = dice.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            3 => {
                let telling = TELLING[dice.below(TELLING.len())];
                bytes.splice(at..at, telling.iter().copied());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = dice.below(256) as u8;
                }
            }
        }
    }
    bytes
}

#[test]
fn every_kind_of_frame_comes_back() {
    let frames = frames();
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes).unwrap());
    for piece in [1, 7, 4096, bytes.len()] {
        assert_eq!(decode(&bytes, piece), (frames.clone(), None));
    }
}

#[test]
fn changed_streams_are_read_alike_however_they_are_cut() {
    let frames = frames();
    let (mut dice, started) = (Dice(11), Instant::now());
    let seconds = std::env::var("BERTH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let (mut round, mut mistakes, mut fine) = (0, 0, 0);
    while round < 20_000 || seconds.is_some_and(|seconds| started.elapsed() < Duration::from_secs(seconds)) {
        let bytes = mutated(&mut dice, &frames);
        let whole = decode(&bytes, bytes.len().max(1));
        let piece = 1 + dice.below(50);
        assert_eq!(decode(&bytes, piece), whole, "round {round}");
        // What was read can be said again, in no more bytes than a frame may have.
        for frame in &whole.0 {
            let mut again = Vec::new();
            frame.encode(&mut again).unwrap();
            assert_eq!(decode(&again, again.len()), (vec![frame.clone()], None), "round {round}");
        }
        if whole.1.is_some() {
            mistakes += 1
        } else {
            fine += 1
        }
        round += 1;
    }
    assert!(mistakes > 1000 && fine > 1000, "{mistakes} mistakes, {fine} without");
}

#[test]
fn a_change_is_a_line_whatever_its_name_is() {
    let change = Change {
        kind: ChangeKind::Moved,
        path: "/a\nb\"\u{2028}".into(),
        from: Some("/\0".into()),
        is_dir: true,
    };
    let mut line = Vec::new();
    berth_wire::encode_change(&change, &mut line).unwrap();
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert_eq!(serde_json::from_slice::<Change>(&line).unwrap(), change);
}
