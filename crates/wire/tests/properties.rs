//! What holds for every frame, every cut of the stream and every bytes at all.

use std::collections::BTreeMap;

use berth_wire::{
    Body, Chunk, Command, DecodeError, Decoder, Exec, ExecUsage, ExitReason, Exited, Failure, FailureCode,
    Frame, Fs, Glob, HEADER_LEN, Hello, Keep, Limit, MAX_DATA, Manner, Offsets, OnDetach, Outcome, Output,
    Owner, Pack, ReceiveWindow, Reply, Request, SendWindow, Stdin, TerminalSize, TreeKill, Unpack,
    UnpackReport, WINDOW, WhenFull,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    ".{0,40}"
}

fn exec() -> impl Strategy<Value = Exec> {
    let command = prop_oneof![vec(text(), 0..4).prop_map(Command::Argv), text().prop_map(Command::Shell)];
    let env = btree_map(text(), text(), 0..4);
    (command, env, text(), option::of(text()), option::of(any::<u64>()), any::<bool>()).prop_map(
        |(command, env, cwd, user, timeout_ms, no_new_privs)| Exec {
            id: "x".into(),
            command,
            env,
            cwd,
            user,
            timeout_ms,
            grace_ms: None,
            no_new_privs,
            plain_env: no_new_privs,
            fingerprint: None,
            stdin: Stdin::Stream,
            terminal: timeout_ms.map(|_| TerminalSize { rows: 24, cols: 80 }),
            keep: Keep { bytes: 7, when_full: WhenFull::DropOldest },
            on_detach: OnDetach::Kill,
            from: Offsets { stdout: 1, stderr: 2 },
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let owner = prop_oneof![Just(Owner::Root), Just(Owner::Keep), text().prop_map(Owner::User)];
    let manner = prop_oneof![Just(Manner::Upload), Just(Manner::Copy), Just(Manner::Archive)];
    prop_oneof![
        exec().prop_map(Request::Exec),
        (text(), option::of(any::<u64>())).prop_map(|(id, grace_ms)| Request::Kill { id, grace_ms }),
        (text(), owner, option::of(any::<u32>()), manner)
            .prop_map(|(path, owner, mode, manner)| Request::Unpack(Unpack { path, owner, mode, manner })),
        (text(), vec(text(), 0..3), any::<bool>()).prop_map(|(path, exclude, follow)| Request::Pack(Pack {
            path,
            exclude,
            follow,
            include_top: !follow,
            xattrs: follow,
            one_mount: !follow,
            ignore_failed_read: follow,
            include: vec!["*.log".into()],
            exclude_files: vec!["b/*".into()],
            protect: Vec::new(),
            sparse: follow,
            exact: follow,
        })),
        (text(), option::of(text())).prop_map(|(path, user)| Request::Fs(Fs::Stat { path, user })),
        (vec(text(), 0..3), option::of(any::<u32>())).prop_map(|(paths, mode)| Request::Fs(Fs::Mkdir {
            paths,
            mode,
            owner: None
        })),
        text().prop_map(|pattern| Request::Glob(Glob { pattern })),
        Just(Request::Shutdown),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let exited = (any::<i32>(), option::of(text()), any::<u64>()).prop_map(|(code, message, duration_ms)| {
        let usage = ExecUsage { oom_kills: Some(duration_ms), rescued: code > 0, ..ExecUsage::default() };
        Exited {
            code,
            reason: ExitReason::TimedOut,
            signal: None,
            message,
            duration_ms,
            usage,
            written: Offsets::default(),
            dropped: Offsets::default(),
        }
    });
    let failure = (text(), option::of(text())).prop_map(|(message, path)| Failure {
        code: FailureCode::NoSpace,
        message,
        path,
    });
    prop_oneof![
        text().prop_map(|program| Reply::Started { program, attached: true, stdin_offset: 3 }),
        exited.prop_map(Reply::Exited),
        failure.prop_map(Reply::Failed),
        any::<u64>().prop_map(|entries| Reply::Done(Outcome::Unpacked(UnpackReport {
            entries,
            ..UnpackReport::default()
        }))),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let hello = (any::<u32>(), option::of(text())).prop_map(|(generation, shell)| Frame {
        channel: 0,
        body: Body::Hello(Hello {
            generation,
            shell,
            tree_kill: TreeKill::Cgroup,
            is_init: true,
            earlier_connections: 1,
            last_error: Some("why".into()),
        }),
    });
    let body = prop_oneof![
        request().prop_map(|request| Body::Open(Box::new(request))),
        reply().prop_map(Body::Event),
        vec(any::<u8>(), 0..200).prop_map(Body::Data),
        (any::<bool>(), any::<u64>(), any::<u64>(), vec(any::<u8>(), 0..200)).prop_map(
            |(out, offset, time_us, data)| {
                let stream = if out { Output::Stdout } else { Output::Stderr };
                Body::Output(Chunk { stream, offset, time_us, data })
            }
        ),
        Just(Body::End),
        any::<u32>().prop_map(Body::Credit),
        Just(Body::Cancel),
    ];
    prop_oneof![1 => hello, 9 => (1_u32.., body).prop_map(|(channel, body)| Frame { channel, body })]
}

fn decode_all(decoder: &mut Decoder, frames: &mut Vec<Frame>) -> Result<(), DecodeError> {
    while let Some(frame) = decoder.next_frame()? {
        frames.push(frame);
    }
    Ok(())
}

proptest! {
    #[test]
    fn frames_come_back_however_the_stream_is_cut(frames in vec(frame(), 1..8), piece in 1_usize..64) {
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes).unwrap();
        }
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.feed(piece);
            decode_all(&mut decoder, &mut decoded).unwrap();
        }
        prop_assert_eq!(decoded, frames);
        prop_assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn a_stream_that_is_cut_short_gives_what_was_whole_and_no_more(frames in vec(frame(), 1..8), cut in any::<prop::sample::Index>()) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes).unwrap();
            ends.push(bytes.len());
        }
        let cut = cut.index(bytes.len() + 1);
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let mut decoder = Decoder::new();
        decoder.feed(&bytes[..cut]);
        let mut decoded = Vec::new();
        decode_all(&mut decoder, &mut decoded).unwrap();
        prop_assert_eq!(&decoded[..], &frames[..whole]);
        // Whoever reads the end of the stream here knows that something is missing.
        prop_assert_eq!(decoder.is_mid_frame(), cut > 0 && !ends.contains(&cut));
    }

    #[test]
    fn a_frame_of_which_bytes_were_changed_is_another_one_or_a_mistake(frames in vec(frame(), 1..4),
                                                                     changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes).unwrap());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        let _ = decode_all(&mut decoder, &mut Vec::new());
    }

    #[test]
    fn lengths_that_nobody_sends_are_refused_by_the_header_alone(kind in 1_u8..=9, len in (16_u32 << 20) + 1..) {
        let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, u8::from(kind != 1)];
        bytes.extend_from_slice(&len.to_be_bytes());
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        // Before a byte of the body has come, and so before anything was set aside for it.
        prop_assert!(decoder.next_frame().is_err());
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..400), piece in 1_usize..50) {
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.feed(piece);
            if decode_all(&mut decoder, &mut decoded).is_err() {
                break;
            }
        }
    }

    #[test]
    fn no_body_makes_the_decoder_panic(kind in 0_u8..11, body in vec(any::<u8>(), 0..100)) {
        let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, u8::from(kind != 1)];
        bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&body);
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        let _ = decoder.next_frame();
    }

    #[test]
    fn a_sender_that_keeps_to_its_window_is_never_refused(steps in vec((0_usize..100_000, 0_usize..100_000), 0..60)) {
        let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
        let mut held = 0;
        for (wanted, read) in steps {
            let sent = send.take(wanted);
            receive.received(sent).unwrap();
            held += sent;
            let read = read.min(held);
            held -= read;
            if let Some(credit) = receive.consumed(read) {
                send.grant(credit).unwrap();
            }
            prop_assert!(held <= WINDOW as usize);
        }
        // A reader that has read everything leaves the sender room to go on.
        if let Some(credit) = receive.consumed(held) {
            send.grant(credit).unwrap();
        }
        prop_assert!(send.left() > 0);
    }
}

#[test]
fn malformed_headers_are_told_apart() {
    let decode = |bytes: &[u8]| {
        let mut decoder = Decoder::new();
        decoder.feed(bytes);
        decoder.next_frame().unwrap_err().to_string()
    };
    let errors = [
        decode(&[99, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        decode(&[4, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
        decode(&[4, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 1]),
        decode(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        decode(&[1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1]),
        decode(&[7, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3]),
        decode(&[3, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, b'{', b'}']),
    ];
    insta::assert_debug_snapshot!(errors);
}

#[test]
fn control_messages_look_like_the_document_says() {
    let exec = Exec {
        id: "e1".into(),
        command: Command::Shell("make".into()),
        env: BTreeMap::from([("A".into(), "1".into())]),
        cwd: "/src".into(),
        user: None,
        timeout_ms: Some(1500),
        grace_ms: None,
        no_new_privs: true,
        plain_env: false,
        fingerprint: Some("f".into()),
        stdin: Stdin::Stream,
        terminal: Some(TerminalSize { rows: 24, cols: 80 }),
        keep: Keep { bytes: 1 << 20, when_full: WhenFull::DropOldest },
        on_detach: OnDetach::Kill,
        from: Offsets { stdout: 7, stderr: 0 },
    };
    let unpack =
        Unpack { path: "/app".into(), owner: Owner::User("app:app".into()), mode: None, ..Unpack::default() };
    let exited = Exited {
        code: 137,
        reason: ExitReason::OutOfMemory,
        signal: Some(9),
        message: None,
        duration_ms: 12,
        usage: ExecUsage {
            oom_kills: Some(1),
            limits_hit: vec![Limit::Memory],
            peak_memory_bytes: Some(1 << 20),
            cpu_usec: None,
            rescued: false,
        },
        written: Offsets { stdout: 12, stderr: 3 },
        dropped: Offsets::default(),
    };
    let failed =
        Failure { code: FailureCode::NotFound, message: "open".into(), path: Some("/nowhere".into()) };
    let stat = Fs::Stat { path: "/etc".into(), user: None };
    insta::assert_snapshot!(
        [
            serde_json::to_string(&Request::Exec(exec)).unwrap(),
            serde_json::to_string(&Request::Unpack(unpack)).unwrap(),
            serde_json::to_string(&Request::Fs(stat)).unwrap(),
            serde_json::to_string(&Request::Shutdown).unwrap(),
            serde_json::to_string(&Reply::Exited(exited)).unwrap(),
            serde_json::to_string(&Reply::Failed(failed)).unwrap(),
            serde_json::to_string(&Reply::Done(Outcome::Killed { was_running: true })).unwrap(),
        ]
        .join("\n")
    );
}

#[test]
fn an_unknown_field_of_a_request_is_refused_but_not_of_hello() {
    let unknown = r#"{"exec":{"id":"a","command":{"shell":"x"},"cwd":"/","tty":true}}"#;
    assert!(serde_json::from_str::<Request>(unknown).is_err());
    let hello = r#"{"generation":9,"tree_kill":"cgroup","is_init":true,"new":1}"#;
    assert_eq!(serde_json::from_str::<Hello>(hello).unwrap().generation, 9);
}

#[test]
fn what_is_too_long_is_not_encoded() {
    let mut out = vec![1];
    let frame = Frame { channel: 1, body: Body::Data(vec![0; MAX_DATA + 1]) };
    assert!(frame.encode(&mut out).is_err());
    let huge = Request::Glob(Glob { pattern: "x".repeat(17 << 20) });
    assert!(Frame { channel: 1, body: Body::Open(Box::new(huge)) }.encode(&mut out).is_err());
    assert_eq!(out, [1]);
    Frame { channel: 1, body: Body::Data(vec![0; MAX_DATA]) }.encode(&mut out).unwrap();
    assert_eq!(out.len(), 1 + HEADER_LEN + MAX_DATA);
}

#[test]
fn more_than_the_window_is_refused() {
    let mut receive = ReceiveWindow::default();
    receive.received(WINDOW as usize).unwrap();
    assert!(receive.received(1).is_err());
    assert_eq!(receive.consumed(WINDOW as usize), Some(WINDOW));
    assert!(SendWindow::default().grant(1).is_err());
}
