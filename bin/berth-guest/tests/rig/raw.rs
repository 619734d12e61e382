//! A guest spoken to frame by frame, for what the host's handle would smooth over.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_wire::{
    Body, Chunk, Command as WireCommand, Decoder, Exec, Exited, Frame, Hello, Outcome, Output, Reply, Request,
};

/// A guest that outlives its connections. Ends with this.
pub(crate) struct RawGuest {
    pub(crate) process: Child,
    pub(crate) dir: tempfile::TempDir,
}

/// One connection to it.
pub(crate) struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    waiting: HashMap<u32, VecDeque<Body>>,
    next: u32,
    pub(crate) hello: Hello,
}

/// All that came on a channel.
#[derive(Debug, Default)]
pub(crate) struct Got {
    pub(crate) started: Option<(bool, u64)>,
    pub(crate) out: [Vec<u8>; 2],
    pub(crate) chunks: Vec<Chunk>,
    /// Stream, from, to.
    pub(crate) gaps: Vec<(Output, u64, u64)>,
    pub(crate) last: Option<Reply>,
}

impl Got {
    pub(crate) fn exited(&self) -> &Exited {
        match &self.last {
            Some(Reply::Exited(exited)) => exited,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out[0]).into_owned()
    }
}

impl RawGuest {
    /// A guest that waits so long for a host, with a spool if asked for, and the first connection to it.
    pub(crate) fn start(orphan: Duration, spool: bool) -> (Self, Connection) {
        Self::start_by("", orphan, spool)
    }

    /// As [`RawGuest::start`], by a program that starts it.
    pub(crate) fn start_by(wrapper: &str, orphan: Duration, spool: bool) -> (Self, Connection) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("spool")).unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let spool = if spool { "--spool-fd=5 5<\"$1\"" } else { "" };
        // The shell moves what it has as standard streams to the numbers that the guest is told.
        let script = format!(
            "exec {wrapper} \"$0\" --control-fd=3 --listen-fd=4 --orphan-ms={} {spool} 3<&0 4<&1 0</dev/null 1>&2",
            orphan.as_millis()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_berth-guest")]).arg(dir.path().join("spool"));
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(OwnedFd::from(listener)));
        let process = command.spawn().unwrap();
        drop(command);
        (Self { process, dir }, Connection::new(ours))
    }

    /// Another connection.
    pub(crate) fn connect(&self) -> Connection {
        Connection::new(UnixStream::connect(self.dir.path().join("socket")).unwrap())
    }

    /// Bytes that the files of the spool take on the disk.
    pub(crate) fn spooled(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let files = std::fs::read_dir(self.dir.path().join("spool")).unwrap().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum()
    }

    /// Memory of the guest, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }
}

impl Drop for RawGuest {
    fn drop(&mut self) {
        let guest = self.process.id();
        let children =
            std::fs::read_to_string(format!("/proc/{guest}/task/{guest}/children")).unwrap_or_default();
        let _ = self.process.kill();
        for pid in children
            .split_ascii_whitespace()
            .filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// A shell line as root in `/`, that is kept when nobody is attached.
pub(crate) fn exec(id: &str, line: &str) -> Exec {
    Exec {
        id: id.to_owned(),
        fingerprint: Some(line.to_owned()),
        command: WireCommand::Shell(line.to_owned()),
        env: std::collections::BTreeMap::new(),
        cwd: "/".into(),
        user: None,
        timeout_ms: None,
        grace_ms: None,
        no_new_privs: false,
        plain_env: false,
        stdin: berth_wire::Stdin::Null,
        terminal: None,
        keep: berth_wire::Keep::default(),
        on_detach: berth_wire::OnDetach::Keep,
        from: berth_wire::Offsets::default(),
    }
}

pub(crate) fn attach(id: &str, stdout: u64, stderr: u64) -> Request {
    let from = berth_wire::Offsets { stdout, stderr };
    Request::Attach(berth_wire::Attach { id: id.to_owned(), from, stdin: false, follow: true })
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let hello = Hello {
            generation: 0,
            shell: None,
            tree_kill: berth_wire::TreeKill::Cgroup,
            is_init: false,
            earlier_connections: 0,
            last_error: None,
        };
        let waiting = HashMap::new();
        let mut connection = Self { stream, decoder: Decoder::new(), waiting, next: 1, hello };
        match connection.next(0) {
            Some(Body::Hello(hello)) => connection.hello = hello,
            other => panic!("{other:?}"),
        }
        connection
    }

    pub(crate) fn open(&mut self, request: Request) -> u32 {
        let channel = self.next;
        self.next += 1;
        self.send(channel, Body::Open(Box::new(request)));
        channel
    }

    pub(crate) fn send(&mut self, channel: u32, body: Body) {
        let mut bytes = Vec::new();
        Frame { channel, body }.encode(&mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame of a channel; `None` at the end of the stream.
    pub(crate) fn next(&mut self, channel: u32) -> Option<Body> {
        loop {
            if let Some(body) = self.waiting.get_mut(&channel).and_then(VecDeque::pop_front) {
                return Some(body);
            }
            while let Some(Frame { channel, body }) = self.decoder.next_frame().unwrap() {
                self.waiting.entry(channel).or_default().push_back(body);
            }
            if self.waiting.get(&channel).is_some_and(|bodies| !bodies.is_empty()) {
                continue;
            }
            let mut buffer = vec![0; 1 << 16];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => self.decoder.feed(&buffer[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Takes frames into `got` until `enough`, or the last reply, or the end of the stream.
    pub(crate) fn read_until(&mut self, channel: u32, got: &mut Got, enough: impl Fn(&Got) -> bool) {
        while got.last.is_none() && !enough(got) {
            match self.next(channel) {
                Some(Body::Output(chunk)) => {
                    let len = u32::try_from(chunk.data.len()).unwrap();
                    got.out[usize::from(chunk.stream == Output::Stderr)].extend_from_slice(&chunk.data);
                    got.chunks.push(chunk);
                    self.send(channel, Body::Credit(len));
                }
                Some(Body::Event(Reply::Started { attached, stdin_offset, .. })) => {
                    got.started = Some((attached, stdin_offset));
                }
                Some(Body::Event(Reply::Gap { stream, from, to })) => got.gaps.push((stream, from, to)),
                Some(Body::Event(last)) => got.last = Some(last),
                Some(Body::Credit(_)) => {}
                Some(other) => panic!("{other:?}"),
                None => return,
            }
        }
    }

    /// All of a channel, to its last reply.
    pub(crate) fn finish(&mut self, channel: u32) -> Got {
        let mut got = Got::default();
        self.read_until(channel, &mut got, |_| false);
        assert!(got.last.is_some(), "the stream ended");
        got
    }

    pub(crate) fn run(&mut self, request: Request) -> Got {
        let channel = self.open(request);
        self.finish(channel)
    }

    pub(crate) fn ask(&mut self, request: Request) -> Outcome {
        match self.run(request).last {
            Some(Reply::Done(outcome)) => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// A part of the listing of all execs, and where the next begins.
    pub(crate) fn infos(&mut self, after: Option<u64>) -> (Vec<berth_wire::ExecInfo>, Option<u64>) {
        match self.ask(Request::Execs { id: None, after }) {
            Outcome::Execs { infos, next } => (infos, next),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn info(&mut self, id: &str) -> berth_wire::ExecInfo {
        match self.ask(Request::Execs { id: Some(id.to_owned()), after: None }) {
            Outcome::Execs { mut infos, .. } => infos.remove(0),
            other => panic!("{other:?}"),
        }
    }
}
