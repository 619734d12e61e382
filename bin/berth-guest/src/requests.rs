//! What the host asks, frame by frame.

use std::os::fd::AsFd;

use berth_wire::{Body, ExitReason, FailureCode, Frame, Outcome, Reply, Request, Stdin};

use crate::attachment::Attachment;
use crate::engine::{Channel, Engine, Served, report_token, watch};
use crate::exec::{Begin, Exec, Verdict};
use crate::execs::Entry;
use crate::input::Input;
use crate::quiesce::Quiesce;
use crate::record::{Facts, hash};
use crate::spool::Spool;
use crate::{Error, failure, work};

/// Most execs that one part of a listing tells of.
const MOST_TOLD: usize = 1000;

impl Engine {
    pub(crate) fn receive(&mut self) -> Result<Served, Error> {
        if !self.link.receive()? {
            return Ok(Served::Disconnected);
        }
        while let Some(frame) = self.link.next_frame()? {
            if self.take(frame)? == Served::End {
                return Ok(Served::End);
            }
        }
        Ok(Served::On)
    }

    fn take(&mut self, Frame { channel, body }: Frame) -> Result<Served, Error> {
        match body {
            Body::Open(request) => return self.open(channel, *request),
            Body::Data(data) => self.take_data(channel, data)?,
            Body::End => self.take_end(channel),
            Body::Credit(bytes) => self.take_credit(channel, bytes)?,
            Body::Cancel => self.cancel(channel),
            Body::Hello(_) | Body::Event(_) | Body::Output(_) => return Err(Error::Unexpected { channel }),
        }
        Ok(Served::On)
    }

    fn open(&mut self, channel: u32, request: Request) -> Result<Served, Error> {
        if self.channels.contains_key(&channel) || self.sockets.has(channel) {
            return Err(Error::Unexpected { channel });
        }
        let answer = match request {
            Request::Shutdown => return Ok(Served::End),
            Request::Exec(exec) => self.open_exec(channel, exec)?,
            Request::Attach(attach) => self.open_attach(channel, &attach),
            Request::Kill { id, grace_ms } => self.open_kill(channel, &id, grace_ms),
            Request::Quiesce { grace_ms } => {
                let quiesce = Quiesce::begin(channel, grace_ms, &mut self.execs, &mut self.trees);
                self.quiesces.push(quiesce);
                self.channels.insert(channel, Channel::Waiting);
                None
            }
            Request::Signal { id, signal, tree } => Some(self.signal(&id, signal, tree)),
            Request::Resize { id, size } => Some(self.told(&id, |exec| exec.resize(size))),
            Request::Execs { id, after } => Some(self.list(id.as_deref(), after)),
            Request::Connect(socket) => {
                self.sockets.open(channel, &socket, std::time::Instant::now());
                None
            }
            other => match work::start(channel, other, self.bell.clone()) {
                Ok(work) => {
                    self.channels.insert(channel, Channel::Work(work));
                    None
                }
                Err(failure) => Some(Reply::Failed(failure)),
            },
        };
        if let Some(reply) = answer {
            self.link.reply(channel, &reply);
        }
        Ok(Served::On)
    }

    fn open_exec(&mut self, channel: u32, request: berth_wire::Exec) -> Result<Option<Reply>, Error> {
        if let Some(entry) = self.execs.open(&request.id) {
            if entry.facts.fingerprint != request.fingerprint.as_deref().map(hash) {
                let message = format!("an exec {:?} is there, with another request", request.id);
                return Ok(Some(Reply::Failed(failure::because(FailureCode::Conflict, message, None))));
            }
            let takes_input = request.stdin == Stdin::Stream || request.terminal.is_some();
            // Who repeats a request after a cut takes the input from nobody: another connection may be giving it.
            let wants_input = takes_input && entry.input.owner().is_none();
            let number = attach(entry, channel, request.from, wants_input, true);
            self.channels.insert(channel, Channel::Exec(number));
            return Ok(None);
        }
        let number = self.execs.next_number();
        let (facts, from, on_detach) = (Facts::new(&request, number), request.from, request.on_detach);
        let id = request.id.clone().into_boxed_str();
        let (exec, input, verdict) = match Exec::start(request, &mut self.trees, &self.means) {
            Begin::Running(exec, input) => (Some(exec), input, None),
            Begin::Over(exited) => (None, Input::default(), Some(Verdict::Exited(exited))),
            Begin::Failed(failure) => return Ok(Some(Reply::Failed(failure))),
        };
        if let Some(exec) = &exec {
            watch(&self.epoll, exec.spawned.report.as_fd(), report_token(number))?;
        }
        let spool = Spool::new(facts.policy());
        let attachments = Vec::new();
        let mut entry = Entry { id, facts, spool, input, exec, verdict, attachments, on_detach };
        let wants_input = entry.input.can_be_given();
        attach(&mut entry, channel, from, wants_input, false);
        self.execs.insert(entry);
        self.channels.insert(channel, Channel::Exec(number));
        Ok(None)
    }

    fn open_attach(&mut self, channel: u32, request: &berth_wire::Attach) -> Option<Reply> {
        let refuse = |code, message: String| Some(Reply::Failed(failure::because(code, message, None)));
        if request.stdin && !request.follow {
            let message = "input can be given only by who stays until the end";
            return refuse(FailureCode::Invalid, message.to_owned());
        }
        let Some(entry) = self.execs.open(&request.id) else {
            return refuse(FailureCode::NotFound, format!("no exec {:?} is known", request.id));
        };
        if request.stdin && !entry.input.can_be_given() {
            let message = format!("exec {:?} was started with an empty standard input", request.id);
            // An exec that was only remembered is put away at the end of the turn.
            return refuse(FailureCode::Invalid, message);
        }
        let number = attach(entry, channel, request.from, request.stdin, true);
        if !request.follow
            && entry.verdict.is_none()
            && let Some(attachment) = entry.attachments.last_mut()
        {
            attachment.until = Some(entry.spool.written());
        }
        self.channels.insert(channel, Channel::Exec(number));
        None
    }

    fn open_kill(&mut self, channel: u32, id: &str, grace_ms: Option<u64>) -> Option<Reply> {
        match self.execs.running(id) {
            Some(exec) => {
                exec.kill(ExitReason::Killed, grace_ms);
                exec.kill_waiters.push(channel);
                self.channels.insert(channel, Channel::Waiting);
                None
            }
            None => Some(Reply::Done(Outcome::Killed { was_running: false })),
        }
    }

    fn signal(&mut self, id: &str, signal: i32, tree: bool) -> Reply {
        if !berth_sys::signal::is_signal(signal) {
            let message = format!("{signal} is no signal that can be sent");
            return Reply::Failed(failure::because(FailureCode::Invalid, message, None));
        }
        self.told(id, |exec| Ok(exec.signal(signal, tree)))
    }

    /// Tells a running exec something; one that is over is no error, one that was never known is.
    fn told(&mut self, id: &str, tell: impl FnOnce(&Exec) -> failure::Result<bool>) -> Reply {
        let is_known = self.execs.knows(id);
        let told = match self.execs.running(id) {
            Some(exec) => tell(exec),
            None if is_known => Ok(false),
            None => Err(failure::because(FailureCode::NotFound, format!("no exec {id:?} is known"), None)),
        };
        told.map_or_else(Reply::Failed, |was_running| Reply::Done(Outcome::Told { was_running }))
    }

    fn list(&self, id: Option<&str>, after: Option<u64>) -> Reply {
        let Some(id) = id else {
            let (infos, next) = self.execs.infos(&self.trees, after.unwrap_or(0), MOST_TOLD);
            return Reply::Done(Outcome::Execs { infos, next });
        };
        match self.execs.info(id, &self.trees) {
            Some(info) => Reply::Done(Outcome::Execs { infos: vec![info], next: None }),
            None => {
                let message = format!("no exec {id:?} is known");
                Reply::Failed(failure::because(FailureCode::NotFound, message, None))
            }
        }
    }

    /// Data for a channel that is over was under way when it ended.
    fn take_data(&mut self, channel: u32, data: Vec<u8>) -> Result<(), Error> {
        let window = |source| Error::Window { channel, source };
        match self.channels.get_mut(&channel) {
            Some(Channel::Work(work)) => {
                work.receive.received(data.len()).map_err(window)?;
                work.feed(data);
            }
            Some(Channel::Exec(number)) => {
                let number = *number;
                let Some(entry) = self.execs.get(number) else { return Ok(()) };
                let is_owner = entry.input.belongs_to(channel);
                let Some(attachment) = entry.attachment(channel) else { return Ok(()) };
                if !attachment.had_input {
                    return Err(Error::Unexpected { channel });
                }
                attachment.receive.received(data.len()).map_err(window)?;
                // What was under way when another took the input over is not taken; the other knows from where on.
                if is_owner {
                    let used = entry.input.give(&data);
                    self.used_up(number, used);
                }
            }
            Some(Channel::Waiting) => return Err(Error::Unexpected { channel }),
            None => self.sockets.data(channel, data).map_err(window)?,
        }
        Ok(())
    }

    fn take_end(&mut self, channel: u32) {
        match self.channels.get(&channel) {
            Some(Channel::Work(work)) => work.end(),
            Some(Channel::Exec(number)) => {
                if let Some(entry) = self.execs.get(*number)
                    && entry.input.belongs_to(channel)
                {
                    entry.input.end();
                }
            }
            Some(Channel::Waiting) => {}
            None => self.sockets.end(channel),
        }
    }

    fn take_credit(&mut self, channel: u32, bytes: u32) -> Result<(), Error> {
        let window = match self.channels.get_mut(&channel) {
            Some(Channel::Exec(number)) => {
                self.execs.get(*number).and_then(|entry| entry.attachment(channel)).map(|one| &mut one.send)
            }
            Some(Channel::Work(work)) => Some(&mut work.send),
            Some(Channel::Waiting) => None,
            None => {
                let granted = self.sockets.credit(channel, bytes);
                return granted.map_err(|source| Error::Window { channel, source });
            }
        };
        let Some(window) = window else { return Ok(()) };
        window.grant(bytes).map_err(|source| Error::Window { channel, source })
    }

    /// Nobody waits for the channel any more. An exec that runs on without him is none of his business; of one that
    /// ends with him he is told the end.
    fn cancel(&mut self, channel: u32) {
        match self.channels.get_mut(&channel) {
            Some(Channel::Work(work)) => work.cancel(),
            Some(Channel::Exec(number)) => {
                let Some(entry) = self.execs.get(*number) else { return };
                if entry.ends_without(channel) {
                    if let Some(attachment) = entry.attachment(channel) {
                        attachment.cancelled = true;
                    }
                    if let Some(exec) = &mut entry.exec {
                        exec.kill(ExitReason::Killed, exec.request.grace_ms);
                    }
                    return;
                }
                entry.detach(channel);
                self.channels.remove(&channel);
                self.link.reply(channel, &Reply::Detached);
            }
            Some(Channel::Waiting) => {}
            None => self.sockets.cancel(channel),
        }
    }
}

/// Attaches a channel to an exec; gives the exec's number.
fn attach(entry: &mut Entry, channel: u32, from: berth_wire::Offsets, stdin: bool, was_there: bool) -> u64 {
    let mut attachment = Attachment::new(channel, &entry.spool, from);
    attachment.attached = was_there;
    attachment.stdin_offset = entry.input.offset();
    attachment.had_input = stdin;
    if stdin {
        entry.input.belong_to(channel);
    }
    entry.attachments.push(attachment);
    entry.facts.number
}
