//! The host's handle of a guest, with a guest that is made up at the other end of the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use berth_types::exec::{Command, ExecOffsets, ExitReason, OutputStream, TerminalSize};
use berth_types::files::{ChangeKind, FsRequest};
use berth_wire::{
    Body, Chunk, Decoder, DirEntry, ExecInfo, ExecUsage, Exited, FileKind, FileStat, Frame, GENERATION,
    Hello, Offsets, Outcome, Output, Reply, Request, WINDOW,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;

/// The guest's end of the stream.
struct Fake {
    stream: DuplexStream,
    decoder: Decoder,
}

impl Fake {
    async fn new() -> (Guest, Self) {
        // A few bytes at a time, so that every frame is cut somewhere.
        Self::with_pipe(61).await
    }

    async fn with_pipe(size: usize) -> (Guest, Self) {
        let (ours, theirs) = tokio::io::duplex(size);
        let mut fake = Self { stream: theirs, decoder: Decoder::new() };
        let hello = Hello {
            generation: GENERATION,
            shell: None,
            tree_kill: TreeKill::Cgroup,
            is_init: true,
            earlier_connections: 2,
            last_error: None,
        };
        let (guest, ()) = tokio::join!(Guest::connect(ours), fake.say(0, Body::Hello(hello)));
        (guest.unwrap(), fake)
    }

    async fn say(&mut self, channel: u32, body: Body) {
        let mut bytes = Vec::new();
        Frame { channel, body }.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn reply(&mut self, channel: u32, reply: Reply) {
        self.say(channel, Body::Event(reply)).await;
    }

    async fn done(&mut self, channel: u32, outcome: Outcome) {
        self.reply(channel, Reply::Done(outcome)).await;
    }

    async fn hear(&mut self) -> Frame {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buffer)).await;
            let len = read.expect("the host says nothing").unwrap();
            assert!(len > 0, "the host closed the stream");
            self.decoder.feed(&buffer[..len]);
        }
    }

    async fn opened(&mut self) -> (u32, Request) {
        match self.hear().await {
            Frame { channel, body: Body::Open(request) } => (channel, *request),
            other => panic!("{other:?}"),
        }
    }

    /// Data of a channel up to its end, with credit for all of it.
    async fn data_to_end(&mut self, channel: u32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            match self.hear().await {
                Frame { body: Body::Data(data), .. } => {
                    self.say(channel, Body::Credit(u32::try_from(data.len()).unwrap())).await;
                    all.extend_from_slice(&data);
                }
                Frame { body: Body::End, .. } => return all,
                other => panic!("{other:?}"),
            }
        }
    }
}

fn started() -> Reply {
    Reply::Started { program: "/bin/sh".into(), attached: false, stdin_offset: 0 }
}

fn exited(code: i32) -> Exited {
    Exited {
        code,
        reason: berth_wire::ExitReason::Exited,
        signal: None,
        message: None,
        duration_ms: 5,
        usage: ExecUsage::default(),
        written: Offsets { stdout: 9, stderr: 0 },
        dropped: Offsets { stdout: 4, stderr: 0 },
    }
}

fn chunk(stream: Output, offset: u64, data: &[u8]) -> Body {
    Body::Output(Chunk { stream, offset, time_us: 77, data: data.to_vec() })
}

fn failure(code: FailureCode) -> Reply {
    Reply::Failed(Failure { code, message: "no".into(), path: None })
}

fn code<T>(result: Result<T, Error>) -> FailureCode {
    match result.map(drop) {
        Err(Error::Refused(failure)) => failure.code,
        other => panic!("{other:?}"),
    }
}

fn streaming() -> ExecSpec {
    ExecSpec { stdin: Stdin::Stream, ..ExecSpec::new("e", Command::Shell("cat".into())) }
}

/// An exec that runs, and its channel.
async fn running(guest: &Guest, fake: &mut Fake, spec: ExecSpec) -> (Exec, u32) {
    let start = async {
        let (channel, _) = fake.opened().await;
        fake.reply(channel, started()).await;
        channel
    };
    let (exec, channel) = tokio::join!(guest.exec(spec), start);
    (exec.unwrap(), channel)
}

#[tokio::test]
async fn output_comes_with_its_place_and_its_time() {
    let (guest, mut fake) = Fake::new().await;
    assert_eq!(guest.info().earlier_connections, 2);
    let (mut exec, channel) = running(&guest, &mut fake, streaming()).await;
    let big = vec![7; 60_000];
    let say = async {
        fake.reply(channel, Reply::Gap { stream: Output::Stderr, from: 0, to: 3 }).await;
        fake.say(channel, chunk(Output::Stderr, 3, b"small")).await;
        fake.say(channel, chunk(Output::Stdout, 1 << 40, &big)).await;
        fake.reply(channel, Reply::Exited(exited(3))).await;
    };
    let hear = async {
        let mut all = Vec::new();
        while let Some(output) = exec.next().await {
            all.push(output.unwrap());
        }
        all
    };
    let ((), all) = tokio::join!(say, hear);
    let [start, gap, small, large, ExecOutput::Exited(status)] = &all[..] else { panic!("{all:?}") };
    let program = "/bin/sh".into();
    assert_eq!(*start, ExecOutput::Started { program, attached: false, stdin_offset: 0 });
    assert_eq!(*gap, ExecOutput::Gap { stream: OutputStream::Stderr, from: 0, to: 3 });
    let output = |stream, offset, data: &[u8]| {
        let data = bytes::Bytes::copy_from_slice(data);
        ExecOutput::Output { stream, offset, time_us: 77, data }
    };
    assert_eq!(*small, output(OutputStream::Stderr, 3, b"small"));
    assert_eq!(*large, output(OutputStream::Stdout, 1 << 40, &big));
    assert_eq!((status.exit_code, status.reason), (3, ExitReason::Exited));
    assert_eq!(status.dropped, ExecOffsets { stdout: 4, stderr: 0 });
}

#[tokio::test]
async fn credit_is_given_for_what_was_taken_and_not_before() {
    let (guest, mut fake) = Fake::with_pipe(1 << 20).await;
    let (mut exec, channel) = running(&guest, &mut fake, streaming()).await;
    for number in 0..4 {
        fake.say(channel, chunk(Output::Stdout, number << 16, &[0; 1 << 16])).await;
    }
    // The start, and the first piece: nothing is used up until the next is asked for.
    exec.next().await.unwrap().unwrap();
    exec.next().await.unwrap().unwrap();
    guest.open(Request::Shutdown).unwrap();
    assert!(matches!(fake.opened().await.1, Request::Shutdown));
    assert!(matches!(fake.hear().await.body, Body::Cancel));
    exec.next().await.unwrap().unwrap();
    assert_eq!(fake.hear().await, Frame { channel, body: Body::Credit(1 << 16) });
}

#[tokio::test]
async fn attaching_asks_from_a_place_and_may_end_before_the_exec() {
    let (guest, mut fake) = Fake::new().await;
    let from = ExecOffsets { stdout: 5, stderr: 6 };
    let spec = AttachSpec { id: "e".into(), from, stdin: false, follow: false };
    let answer = async {
        let (channel, request) = fake.opened().await;
        let from = Offsets { stdout: 5, stderr: 6 };
        let attach = berth_wire::Attach { id: "e".into(), from, stdin: false, follow: false };
        assert_eq!(request, Request::Attach(attach));
        let program = "/bin/cat".into();
        fake.reply(channel, Reply::Started { program, attached: true, stdin_offset: 8 }).await;
        fake.reply(channel, Reply::Detached).await;
    };
    let (exec, ()) = tokio::join!(guest.attach(spec), answer);
    let mut exec = exec.unwrap();
    assert!(exec.input().is_none());
    let start = exec.next().await.unwrap().unwrap();
    assert!(matches!(start, ExecOutput::Started { attached: true, stdin_offset: 8, .. }));
    assert_eq!(exec.next().await.unwrap().unwrap(), ExecOutput::Detached);
    assert!(exec.next().await.is_none());
}

#[tokio::test]
async fn an_id_of_another_request_is_refused() {
    let (guest, mut fake) = Fake::new().await;
    let spec = ExecSpec { fingerprint: Some("f".into()), ..streaming() };
    let refuse = async {
        let (channel, request) = fake.opened().await;
        let Request::Exec(exec) = request else { panic!("{request:?}") };
        assert_eq!((exec.fingerprint.as_deref(), exec.stdin), (Some("f"), Stdin::Stream));
        assert_eq!(exec.on_detach, berth_wire::OnDetach::Kill);
        fake.reply(channel, failure(FailureCode::Conflict)).await;
    };
    let (exec, ()) = tokio::join!(guest.exec(spec), refuse);
    assert_eq!(code(exec), FailureCode::Conflict);
}

#[tokio::test]
async fn a_dropped_exec_detaches_and_its_input_is_over() {
    let (guest, mut fake) = Fake::new().await;
    let (exec, channel) = running(&guest, &mut fake, streaming()).await;
    let input = exec.input().unwrap();
    drop(exec);
    assert_eq!(fake.hear().await, Frame { channel, body: Body::Cancel });
    assert!(matches!(input.write(b"x").await, Err(Error::Over)));
}

#[tokio::test]
async fn input_waits_for_the_window() {
    let (guest, mut fake) = Fake::with_pipe(1 << 20).await;
    let (exec, channel) = running(&guest, &mut fake, streaming()).await;
    let input = exec.input().unwrap();
    let data: Vec<u8> = (0..WINDOW + 10).map(|number| number as u8).collect();
    let mut write = Box::pin(input.write(&data));
    let mut heard = Vec::new();
    while heard.len() < WINDOW as usize {
        tokio::select! {
            biased;
            written = &mut write => panic!("{written:?} beyond the window"),
            frame = fake.hear() => match frame.body {
                Body::Data(data) => heard.extend_from_slice(&data),
                other => panic!("{other:?}"),
            },
        }
    }
    assert_eq!(heard.len(), WINDOW as usize);
    assert!(futures_util::poll!(&mut write).is_pending());
    fake.say(channel, Body::Credit(WINDOW)).await;
    write.await.unwrap();
    input.clone().end();
    input.end();
    assert!(matches!(input.write(b"x").await, Err(Error::Over)));
    heard.extend(fake.data_to_end(channel).await);
    assert!(heard == data, "what was heard is not what was written");
    // The end was said once.
    drop(exec);
    assert_eq!(fake.hear().await.body, Body::Cancel);
}

#[tokio::test]
async fn who_waits_to_write_learns_of_the_end() {
    for dies in [false, true] {
        let (guest, mut fake) = Fake::with_pipe(1 << 20).await;
        let (mut exec, channel) = running(&guest, &mut fake, streaming()).await;
        let input = exec.input().unwrap();
        let data = vec![0; WINDOW as usize + 1];
        let mut write = Box::pin(input.write(&data));
        assert!(futures_util::poll!(&mut write).is_pending());
        if dies {
            drop(fake);
            assert!(matches!(write.await, Err(Error::Gone)));
            exec.next().await.unwrap().unwrap();
            assert!(matches!(exec.next().await, Some(Err(Error::Gone))));
            assert!(exec.next().await.is_none());
            assert!(matches!(guest.kill("e").await, Err(Error::Gone)));
        } else {
            fake.reply(channel, Reply::Exited(exited(0))).await;
            assert!(matches!(write.await, Err(Error::Over)));
        }
    }
}

#[tokio::test]
async fn small_calls_and_their_answers() {
    let (guest, mut fake) = Fake::new().await;
    let info = ExecInfo {
        id: "e".into(),
        command: "cat".into(),
        user: None,
        cwd: "/".into(),
        started_at_us: 1_000_000,
        pid: Some(3),
        exited: Some(exited(1)),
        cpu_usec: None,
        memory_bytes: Some(4),
        processes: Some(0),
        written: Offsets { stdout: 9, stderr: 0 },
        kept_from: Offsets::default(),
        blocked: false,
        attached: 1,
        terminal: true,
    };
    let stat = FileStat { kind: FileKind::File, size: 1, mode: 0o644, uid: 1, gid: 2, modified_us: -3 };
    let entry = DirEntry { name: "f".into(), stat, link: Some("g".into()) };
    let calls = async {
        assert!(guest.signal("e", 15, true).await.unwrap());
        assert!(!guest.resize("e", TerminalSize { rows: 2, cols: 3 }).await.unwrap());
        assert_eq!(guest.quiesce().await.unwrap(), 6);
        let execs = guest.execs(Some("e")).await.unwrap();
        assert_eq!((execs.len(), execs[0].started_at.as_str()), (2, "1970-01-01T00:00:01Z"));
        assert_eq!(execs[0].status.as_ref().unwrap().exit_code, 1);
        let list = FsRequest::List { path: "/".into(), user: None };
        let entries = guest.fs(list).await.unwrap().entries.unwrap();
        assert_eq!((entries[0].name.as_str(), entries[0].link.as_deref()), ("f", Some("g")));
        assert_eq!(entries[0].stat.modified_us, -3);
        assert!(matches!(guest.quiesce().await, Err(Error::Answer { .. })));
    };
    let answers = async {
        let outcomes = [
            Outcome::Told { was_running: true },
            Outcome::Told { was_running: false },
            Outcome::Quiesced { killed: 6 },
            Outcome::Execs { infos: vec![info.clone()], next: Some(7) },
            Outcome::Execs { infos: vec![info], next: None },
            Outcome::Fs { stat: None, entries: vec![entry] },
            Outcome::Disconnected,
        ];
        let mut requests = Vec::new();
        for outcome in outcomes {
            let (channel, request) = fake.opened().await;
            fake.done(channel, outcome).await;
            requests.push(request);
        }
        requests
    };
    let ((), requests) = tokio::join!(calls, answers);
    assert_eq!(requests[0], Request::Signal { id: "e".into(), signal: 15, tree: true });
    let size = berth_wire::TerminalSize { rows: 2, cols: 3 };
    assert_eq!(requests[1], Request::Resize { id: "e".into(), size });
    assert_eq!(requests[3], Request::Execs { id: Some("e".into()), after: None });
    assert_eq!(requests[4], Request::Execs { id: Some("e".into()), after: Some(7) });
}

fn file() -> ReadFile {
    ReadFile { path: "/f".into(), offset: 0, length: None, user: None }
}

#[tokio::test]
async fn a_file_comes_out_as_a_whole_or_fails() {
    let (guest, mut fake) = Fake::new().await;
    let open = guest.read_file(file());
    let send = async {
        let (channel, _) = fake.opened().await;
        fake.say(channel, Body::Data(b"abc".to_vec())).await;
        channel
    };
    let (reading, channel) = tokio::join!(open, send);
    let mut reading = reading.unwrap();
    assert_eq!(reading.next().await.unwrap().unwrap(), "abc");
    assert_eq!(reading.size(), None);
    fake.say(channel, Body::Data(b"de".to_vec())).await;
    fake.done(channel, Outcome::Read { size: 90 }).await;
    let mut rest = String::new();
    reading.read_to_string(&mut rest).await.unwrap();
    assert_eq!((rest.as_str(), reading.size()), ("de", Some(90)));

    // Nothing in it.
    let (reading, ()) = tokio::join!(guest.read_file(file()), async {
        let (channel, _) = fake.opened().await;
        fake.done(channel, Outcome::Read { size: 0 }).await;
    });
    let mut reading = reading.unwrap();
    assert!(reading.next().await.is_none());
    assert_eq!(reading.size(), Some(0));

    // Not there; not readable after a while; cut off.
    let (reading, ()) = tokio::join!(guest.read_file(file()), async {
        let (channel, _) = fake.opened().await;
        fake.reply(channel, failure(FailureCode::NotFound)).await;
    });
    assert_eq!(code(reading), FailureCode::NotFound);
    let start = async {
        let (channel, _) = fake.opened().await;
        fake.say(channel, Body::Data(b"abc".to_vec())).await;
        fake.reply(channel, failure(FailureCode::Io)).await;
    };
    let (reading, ()) = tokio::join!(guest.read_file(file()), start);
    assert!(reading.unwrap().read_to_end(&mut Vec::new()).await.is_err());
    let start = async {
        let (channel, _) = fake.opened().await;
        fake.say(channel, Body::Data(b"abc".to_vec())).await;
    };
    let (reading, ()) = tokio::join!(guest.read_file(file()), start);
    drop(fake);
    let mut reading = reading.unwrap();
    assert_eq!(reading.next().await.unwrap().unwrap(), "abc");
    assert!(matches!(reading.next().await, Some(Err(Error::Gone))));
    assert_eq!(reading.size(), None);
}

fn target() -> WriteFile {
    WriteFile { path: "/f".into(), mode: None, owner: None, create_only: true }
}

#[tokio::test]
async fn a_file_is_written_when_the_guest_says_so() {
    let (guest, mut fake) = Fake::new().await;
    let contents: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
    let take = async {
        let (channel, _) = fake.opened().await;
        let data = fake.data_to_end(channel).await;
        fake.done(channel, Outcome::Written { bytes: 300_000 }).await;
        data
    };
    let (written, data) = tokio::join!(guest.write_file(target(), &contents[..]), take);
    assert_eq!(written.unwrap(), 300_000);
    assert!(data == contents, "what arrived is not what was sent");
    // Refused before the end of a source that has none, also while the window is used up.
    let refuse = async {
        let (channel, _) = fake.opened().await;
        fake.hear().await;
        fake.reply(channel, failure(FailureCode::Exists)).await;
    };
    let (written, ()) = tokio::join!(guest.write_file(target(), tokio::io::repeat(0)), refuse);
    assert_eq!(code(written), FailureCode::Exists);
}

/// A source that gives a little and then fails.
struct Broken(bool);

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        buffer.put_slice(b"part");
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_source_that_fails_never_looks_like_its_end() {
    let (guest, mut fake) = Fake::new().await;
    let written = guest.write_file(target(), Broken(false)).await;
    assert!(matches!(written, Err(Error::Archive { .. })));
    fake.opened().await;
    assert_eq!(fake.hear().await.body, Body::Data(b"part".to_vec()));
    assert_eq!(fake.hear().await.body, Body::Cancel);
}

#[tokio::test]
async fn changes_are_told_line_by_line() {
    let (guest, mut fake) = Fake::new().await;
    let watch = Watch { path: "/d".into(), recursive: true };
    let start = async {
        let (channel, request) = fake.opened().await;
        assert!(matches!(request, Request::Watch(_)));
        fake.say(channel, Body::Data(b"{\"kind\":\"ready\",\"path\":\"/d\"}\n{\"ki".to_vec())).await;
        channel
    };
    let (changes, channel) = tokio::join!(guest.watch(watch), start);
    let mut changes = changes.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap().kind, ChangeKind::Ready);
    let line = b"nd\":\"moved\",\"path\":\"/d/b\",\"from\":\"/d/a\",\"is_dir\":true}\n";
    fake.say(channel, Body::Data(line.to_vec())).await;
    let moved = changes.next().await.unwrap().unwrap();
    assert_eq!(
        (moved.kind, moved.path.as_str(), moved.from.as_deref()),
        (ChangeKind::Moved, "/d/b", Some("/d/a"))
    );
    assert!(moved.is_dir);
    fake.reply(channel, failure(FailureCode::NotFound)).await;
    assert_eq!(code(changes.next().await.unwrap()), FailureCode::NotFound);
    assert!(changes.next().await.is_none());
}

async fn connected(guest: &Guest, fake: &mut Fake) -> (Socket, u32) {
    let accept = async {
        let (channel, _) = fake.opened().await;
        fake.reply(channel, Reply::Connected).await;
        channel
    };
    let (socket, channel) =
        tokio::join!(guest.connect_to(Connect::Tcp { host: "localhost".into(), port: 80 }), accept);
    (socket.unwrap(), channel)
}

#[tokio::test]
async fn each_half_of_a_socket_closes_for_itself() {
    let (guest, mut fake) = Fake::new().await;
    let (mut socket, channel) = connected(&guest, &mut fake).await;
    let data: Vec<u8> = (0..600_000_u32).map(|number| number as u8).collect();
    let write = async {
        socket.write_all(&data).await.unwrap();
        socket.shutdown().await.unwrap();
    };
    let ((), heard) = tokio::join!(write, fake.data_to_end(channel));
    assert!(heard == data, "what arrived is not what was sent");
    assert_eq!(socket.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // The other half is open.
    fake.say(channel, Body::Data(b"answer".to_vec())).await;
    fake.say(channel, Body::End).await;
    fake.done(channel, Outcome::Disconnected).await;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_socket_that_was_cut_off_has_no_end() {
    let (guest, mut fake) = Fake::new().await;
    let refuse = async {
        let (channel, _) = fake.opened().await;
        fake.reply(channel, failure(FailureCode::NotConnected)).await;
    };
    let (socket, ()) = tokio::join!(guest.connect_to(Connect::Unix { path: "/s".into() }), refuse);
    assert_eq!(code(socket), FailureCode::NotConnected);
    let (socket, channel) = connected(&guest, &mut fake).await;
    drop(socket);
    assert_eq!(fake.hear().await, Frame { channel, body: Body::Cancel });
    let (mut socket, channel) = connected(&guest, &mut fake).await;
    fake.reply(channel, failure(FailureCode::Io)).await;
    assert_eq!(socket.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(socket.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let (mut socket, _) = connected(&guest, &mut fake).await;
    drop(fake);
    assert!(socket.read(&mut [0]).await.is_err());
}
