//! A guest that is made up: it starts nothing, and answers what a guest would of four commands. `exit N` writes
//! `out` and is over, `cat` gives back its input when that ends, `sha` the sum of it, `sleep` runs until it is killed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use berth_wire::{
    Body, Chunk, Command, Decoder, ExecInfo, ExitReason, Exited, Failure, FailureCode, Frame, Offsets,
    Outcome, Output, Reply, Request, Stdin,
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::encoded;

/// The ids of the commands that guests have started, once for each time, and from where on their output was wanted.
pub(crate) type Started = Arc<Mutex<Vec<(String, Offsets)>>>;

struct FakeExec {
    fingerprint: Option<String>,
    streams: bool,
    sums: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    exited: Option<Exited>,
    /// Channels that wait for its end.
    attached: Vec<u32>,
    /// The one of them whose data is its input.
    giver: Option<u32>,
}

pub(super) struct FakeGuest {
    execs: BTreeMap<String, FakeExec>,
    started: Started,
    out: Vec<u8>,
}

/// What a guest knows. It serves one connection at a time.
pub(super) type Inside = Arc<tokio::sync::Mutex<FakeGuest>>;

pub(super) fn inside(started: Started) -> Inside {
    Arc::new(tokio::sync::Mutex::new(FakeGuest { execs: BTreeMap::new(), started, out: Vec::new() }))
}

pub(super) async fn serve(mut stream: UnixStream, inside: &Inside) {
    let mut guest = inside.lock().await;
    guest.detach_all();
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        decoder.feed(&buffer[..read]);
        while let Ok(Some(Frame { channel, body })) = decoder.next_frame() {
            guest.take(channel, body);
        }
        if stream.write_all(&std::mem::take(&mut guest.out)).await.is_err() {
            return;
        }
    }
}

impl FakeGuest {
    /// Nothing of an earlier connection is answered on this one.
    fn detach_all(&mut self) {
        self.out.clear();
        for exec in self.execs.values_mut() {
            (exec.attached, exec.giver) = (Vec::new(), None);
        }
    }

    fn say(&mut self, channel: u32, body: Body) {
        self.out.extend(encoded(channel, body));
    }

    fn fail(&mut self, channel: u32, code: FailureCode) {
        let failure = Failure { code, message: "as the test wants it".into(), path: None };
        self.say(channel, Body::Event(Reply::Failed(failure)));
    }

    fn done(&mut self, channel: u32, outcome: Outcome) {
        self.say(channel, Body::Event(Reply::Done(outcome)));
    }

    fn take(&mut self, channel: u32, body: Body) {
        match body {
            Body::Open(request) => self.open(channel, *request),
            Body::Data(data) => {
                self.say(channel, Body::Credit(u32::try_from(data.len()).unwrap()));
                if let Some((_, exec)) = self.given_by(channel) {
                    exec.input.extend(data);
                }
            }
            Body::End => {
                if let Some((id, exec)) = self.given_by(channel) {
                    exec.output =
                        if exec.sums { Sha256::digest(&exec.input).to_vec() } else { exec.input.clone() };
                    self.end(&id, 0, ExitReason::Exited);
                }
            }
            Body::Cancel => {
                for exec in self.execs.values_mut() {
                    exec.attached.retain(|attached| *attached != channel);
                }
            }
            _ => {}
        }
    }

    fn given_by(&mut self, channel: u32) -> Option<(String, &mut FakeExec)> {
        let mut given = self.execs.iter_mut().filter(|(_, exec)| exec.giver == Some(channel));
        given.next().map(|(id, exec)| (id.clone(), exec))
    }

    fn open(&mut self, channel: u32, request: Request) {
        match request {
            Request::Exec(exec) => match self.execs.get(&exec.id) {
                Some(known) if known.fingerprint != exec.fingerprint => {
                    self.fail(channel, FailureCode::Conflict);
                }
                Some(known) => {
                    let gives = known.streams;
                    self.attach(channel, &exec.id, exec.from, true, gives);
                }
                None => self.start(channel, exec),
            },
            Request::Attach(attach) => match self.execs.get(&attach.id) {
                None => self.fail(channel, FailureCode::NotFound),
                Some(exec) if attach.stdin && !exec.streams => self.fail(channel, FailureCode::Invalid),
                Some(_) => self.attach(channel, &attach.id, attach.from, true, attach.stdin),
            },
            Request::Execs { id, .. } => {
                let wanted = |name: &String| id.as_ref().is_none_or(|id| id == name);
                let infos = self.execs.iter().filter(|(id, _)| wanted(id)).map(|(id, exec)| info(id, exec));
                let infos = infos.collect();
                self.done(channel, Outcome::Execs { infos, next: None });
            }
            Request::Signal { id, .. } | Request::Resize { id, .. } => {
                let was_running = self.runs(&id);
                self.done(channel, Outcome::Told { was_running });
            }
            Request::Kill { id, .. } => {
                let was_running = self.runs(&id);
                if was_running {
                    self.end(&id, 137, ExitReason::Killed);
                }
                self.done(channel, Outcome::Killed { was_running });
            }
            _ => {}
        }
    }

    fn runs(&self, id: &str) -> bool {
        self.execs.get(id).is_some_and(|exec| exec.exited.is_none())
    }

    fn start(&mut self, channel: u32, exec: berth_wire::Exec) {
        self.started.lock().unwrap().push((exec.id.clone(), exec.from));
        let streams = exec.stdin == Stdin::Stream;
        let known = FakeExec {
            fingerprint: exec.fingerprint,
            streams,
            sums: exec.command == Command::Shell("sha".into()),
            input: Vec::new(),
            output: Vec::new(),
            exited: None,
            attached: Vec::new(),
            giver: None,
        };
        self.execs.insert(exec.id.clone(), known);
        self.attach(channel, &exec.id, exec.from, false, streams);
        let Command::Shell(line) = exec.command else { return };
        if let Some(code) = line.strip_prefix("exit ") {
            self.execs.get_mut(&exec.id).unwrap().output = b"out".to_vec();
            self.end(&exec.id, code.parse().unwrap(), ExitReason::Exited);
        }
    }

    fn attach(&mut self, channel: u32, id: &str, from: Offsets, attached: bool, gives: bool) {
        let exec = self.execs.get_mut(id).unwrap();
        if gives && exec.exited.is_none() {
            exec.giver = Some(channel);
        }
        let stdin_offset = exec.input.len() as u64;
        let over = exec.exited.is_some();
        exec.attached.push(channel);
        let program = "/bin/sh".to_owned();
        self.say(channel, Body::Event(Reply::Started { program, attached, stdin_offset }));
        if over {
            self.tell_end(channel, id, from.stdout);
        }
    }

    fn end(&mut self, id: &str, code: i32, reason: ExitReason) {
        let exec = self.execs.get_mut(id).unwrap();
        let written = Offsets { stdout: exec.output.len() as u64, stderr: 0 };
        exec.giver = None;
        exec.exited = Some(Exited {
            code,
            reason,
            signal: None,
            message: None,
            duration_ms: 1,
            usage: Default::default(),
            written,
            dropped: Offsets::default(),
        });
        for channel in exec.attached.clone() {
            self.tell_end(channel, id, 0);
        }
    }

    fn tell_end(&mut self, channel: u32, id: &str, from: u64) {
        let exec = self.execs.get_mut(id).unwrap();
        exec.attached.retain(|attached| *attached != channel);
        let exited = exec.exited.clone().unwrap();
        let data =
            exec.output.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default().to_vec();
        if !data.is_empty() {
            let chunk = Chunk { stream: Output::Stdout, offset: from, time_us: 1, data };
            self.say(channel, Body::Output(chunk));
        }
        self.say(channel, Body::Event(Reply::Exited(exited)));
    }
}

fn info(id: &str, exec: &FakeExec) -> ExecInfo {
    ExecInfo {
        id: id.to_owned(),
        command: "sh".into(),
        user: None,
        cwd: "/".into(),
        started_at_us: 1_700_000_000_000_000,
        pid: None,
        exited: exec.exited.clone(),
        cpu_usec: None,
        memory_bytes: None,
        processes: None,
        written: Offsets::default(),
        kept_from: Offsets::default(),
        blocked: false,
        attached: u32::try_from(exec.attached.len()).unwrap(),
        terminal: false,
    }
}
