//! The loop: one thread that never blocks anywhere but in epoll.
//!
//! Every turn ends with [`Engine::settle`], which does whatever has become possible: execs advance, output and file work
//! are pumped, finished channels are answered, pipes are watched exactly when something read from them could be kept.
//! What the host asks is in [`crate::requests`], how it comes and goes in [`crate::connections`].

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use berth_wire::{Body, MAX_OUTPUT, Outcome, Reply};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::connect::Sockets;
use crate::connections::Connections;
use crate::exec::{Means, above_stdio};
use crate::execs::{Entry, Execs};
use crate::link::{Link, system};
use crate::quiesce::Quiesce;
use crate::record::now_us;
use crate::spooldir::SpoolDir;
use crate::surroundings::Surroundings;
use crate::tree::Trees;
use crate::work::{Doorbell, Note, Work};
use crate::{Error, Options};

pub(crate) const CONTROL: u64 = 0;
const CHILDREN: u64 = 1;
const NOTES: u64 = 2;
const LISTENER: u64 = 3;
const SOCKETS: u64 = 4;
/// Set in the tokens of pipes that outlived their exec.
const LEFTOVER: u64 = 1 << 63;
/// Tokens of an exec are its number, from 1 on, above these eight bits, and in them one of these.
const NUMBER_SHIFT: u32 = 8;
const REPORT: u64 = 0;
const INPUT: u64 = 1;
const OUTPUTS: u64 = 2;
/// From so many bytes on a command is one that writes much.
const MUCH: u64 = 256 * 1024;
/// What is in its pipes at the end is kept in any case, so they are only made longer where that is little beside the rest.
const MUCH_KEPT: u64 = 16 << 20;
/// How often writing to a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How long an end that PID 1's own end does not bring about may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the cgroups of what outlives its exec wait to be looked at after a death.
const SWEEP: Duration = Duration::from_millis(50);
/// How often they are looked at again while the kernel holds on to one that is empty.
const SWEEPS: u32 = 5;

/// What a channel of the host is about.
pub(crate) enum Channel {
    /// It is attached to the exec of this number.
    Exec(u64),
    Work(Work),
    /// It waits to be told that something was killed.
    Waiting,
}

pub(crate) struct Engine {
    pub(crate) epoll: OwnedFd,
    pub(crate) link: Link,
    pub(crate) connections: Connections,
    children: OwnedFd,
    pub(crate) notes: Receiver<Note>,
    pub(crate) bell: Doorbell,
    pub(crate) trees: Trees,
    pub(crate) means: Means,
    pub(crate) channels: HashMap<u32, Channel>,
    pub(crate) execs: Execs,
    /// Connected to sockets of the sandbox; their channels are not among `channels`.
    pub(crate) sockets: Sockets,
    pub(crate) spool_dir: SpoolDir,
    pub(crate) quiesces: Vec<Quiesce>,
    /// Reading ends of pipes whose exec is over but to which something still writes. They stay open, read and thrown
    /// away: closing them would kill a daemon at its next line of log.
    leftovers: HashMap<u64, OwnedFd>,
    next_leftover: u64,
    sweep_at: Option<Instant>,
    sweeps_left: u32,
    retry_at: Option<Instant>,
    pub(crate) control_flags: EventFlags,
    /// Made when it is needed.
    scratch: Vec<u8>,
}

/// Whether there is more to serve.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    On,
    /// The connection has ended.
    Disconnected,
    /// The host said that it is the end.
    End,
}

impl Engine {
    pub(crate) fn new(options: Options, surroundings: Surroundings) -> Result<Self, Error> {
        let children = berth_sys::spawn::child_signals()
            .map_err(|source| Error::System { operation: "watch for children", source })?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|errno| system("make an epoll", errno))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| system("make an eventfd", errno))?;
        let (sender, notes) = channel();
        let null = null_input().map_err(|errno| system("make an empty standard input", errno))?;
        let spool_dir = SpoolDir::new(options.durable.spool);
        let mut engine = Self {
            epoll,
            link: Link::none(),
            connections: Connections::new(options.durable.listen, options.durable.orphan),
            children,
            notes,
            bell: Doorbell { notes: sender, wake: Arc::new(wake) },
            trees: Trees::new(options.groups)
                .map_err(|errno| system("open the control groups of commands", errno))?,
            means: Means { null, surroundings },
            channels: HashMap::new(),
            execs: Execs::new(spool_dir.clone()),
            sockets: Sockets::new().map_err(|errno| system("make an epoll for sockets", errno))?,
            spool_dir,
            quiesces: Vec::new(),
            leftovers: HashMap::new(),
            next_leftover: 0,
            sweep_at: None,
            sweeps_left: 0,
            retry_at: None,
            control_flags: EventFlags::IN,
            scratch: Vec::new(),
        };
        watch(&engine.epoll, engine.children.as_fd(), CHILDREN)?;
        watch(&engine.epoll, engine.bell.wake.as_fd(), NOTES)?;
        watch(&engine.epoll, engine.sockets.fd(), SOCKETS)?;
        if let Some(listener) = engine.connections.listener() {
            watch(&engine.epoll, listener, LISTENER)?;
        }
        engine.connect(options.control)?;
        Ok(engine)
    }

    /// Serves until the stream ends or the host says so, and takes everything that runs along.
    pub(crate) fn serve(mut self) -> Result<(), Error> {
        let served = self.turn_until_end();
        self.farewell();
        served
    }

    fn turn_until_end(&mut self) -> Result<(), Error> {
        let mut events = Vec::with_capacity(128);
        loop {
            self.settle()?;
            let flushed = self.link.flush().map(|sent| if sent { Served::On } else { Served::Disconnected });
            if !self.goes_on(flushed)? {
                return Ok(());
            }
            self.watch_control()?;
            let timeout = self.next_timer().map(|at| timespec(at.saturating_duration_since(Instant::now())));
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(system("wait for events", errno)),
            }
            for event in &events {
                // The fields are packed.
                let (data, flags) = (event.data, event.flags);
                if !self.handle(data.u64(), flags)? {
                    return Ok(());
                }
            }
            if self.connections.is_given_up() {
                return Ok(());
            }
        }
    }

    /// False when there is nothing more to serve.
    fn handle(&mut self, token: u64, flags: EventFlags) -> Result<bool, Error> {
        match token {
            CONTROL if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) => {
                let served = self.receive();
                return self.goes_on(served);
            }
            // What sockets have to tell is looked at in every turn.
            CONTROL | SOCKETS => {}
            CHILDREN => self.reap()?,
            NOTES => self.read_notes(),
            LISTENER => self.accept()?,
            leftover if leftover & LEFTOVER != 0 => self.drain_leftover(leftover),
            of_exec => {
                let number = of_exec >> NUMBER_SHIFT;
                match of_exec & ((1 << NUMBER_SHIFT) - 1) {
                    REPORT => self.read_report(number),
                    INPUT => self.write_input(number),
                    output => self.read_output(number, usize::from(output != OUTPUTS)),
                }
            }
        }
        Ok(true)
    }

    // ---- what happens inside ----

    fn reap(&mut self) -> Result<(), Error> {
        // signalfd(2): one record may stand for any number of children.
        let mut records = [0_u8; 1024];
        while matches!(rustix::io::read(&self.children, &mut records), Ok(len) if len > 0) {}
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.reaped(pid, status),
                Ok(None) | Err(Errno::CHILD) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(system("reap children", errno)),
            }
        }
        if self.trees.has_lingering() {
            self.sweep_at.get_or_insert(Instant::now() + SWEEP);
            self.sweeps_left = SWEEPS;
        }
        Ok(())
    }

    fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        if let Some(exec) = self.execs.by_pid(pid).and_then(|entry| entry.exec.as_mut()) {
            exec.reaped(status);
        }
    }

    fn read_notes(&mut self) {
        let _ = rustix::io::read(&*self.bell.wake, &mut [0_u8; 8]);
        while let Ok(note) = self.notes.try_recv() {
            match note {
                Note::Consumed { channel, bytes } => {
                    if let Some(Channel::Work(work)) = self.channels.get_mut(&channel)
                        && let Some(credit) = work.receive.consumed(bytes)
                    {
                        self.link.send(channel, Body::Credit(credit));
                    }
                }
                Note::Finished { channel, reply } => {
                    if let Some(Channel::Work(work)) = self.channels.get_mut(&channel) {
                        work.finished(reply);
                    }
                }
            }
        }
    }

    fn read_report(&mut self, number: u64) {
        let Some(entry) = self.execs.get(number) else { return };
        let Some(exec) = &mut entry.exec else { return };
        if let Some(program) = exec.poll_start() {
            entry.facts.program = Some(program);
        }
        if exec.progress != berth_sys::spawn::Progress::Pending {
            let _ = epoll::delete(&self.epoll, &exec.spawned.report);
        }
    }

    fn read_output(&mut self, number: u64, which: usize) {
        self.scratch.resize(MAX_OUTPUT, 0);
        let Some(Entry { exec: Some(exec), spool, facts, .. }) = self.execs.get(number) else { return };
        let keep = facts.keep;
        let room = spool.room(MAX_OUTPUT).max(exec.owed(which)).min(MAX_OUTPUT);
        let Some(fd) = &exec.pipes[which].fd else { return };
        if room == 0 {
            // Level-triggered: it comes back when it is watched again.
            let _ = epoll::delete(&self.epoll, fd);
            exec.pipes[which].armed = false;
            return;
        }
        match rustix::io::read(fd, &mut self.scratch[..room]) {
            Ok(len) if len > 0 => {
                exec.delivered(which, len);
                let before = spool.written()[which];
                let dir = &self.spool_dir;
                let mut file = || dir.file(number.to_string());
                spool.append(which, &self.scratch[..len], now_us(), &mut file);
                let passed = before < MUCH && before + len as u64 >= MUCH;
                if passed && keep >= MUCH_KEPT {
                    exec.widen(which);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end; a pipe knows no other error, a terminal has this one for it.
            Ok(_) | Err(_) => {
                let _ = epoll::delete(&self.epoll, fd);
                exec.closed(which);
            }
        }
    }

    fn write_input(&mut self, number: u64) {
        let Some(entry) = self.execs.get(number) else { return };
        let used = entry.input.write();
        self.used_up(number, used);
    }

    /// Gives whoever has the input of an exec credit for what was used up of it.
    pub(crate) fn used_up(&mut self, number: u64, used: usize) {
        let Some(entry) = self.execs.get(number) else { return };
        if let Some(channel) = entry.input.owner()
            && let Some(attachment) = entry.attachment(channel)
            && let Some(credit) = attachment.receive.consumed(used)
        {
            self.link.send(channel, Body::Credit(credit));
        }
    }

    fn drain_leftover(&mut self, token: u64) {
        self.scratch.resize(MAX_OUTPUT, 0);
        let Some(fd) = self.leftovers.get(&token) else { return };
        match rustix::io::read(fd, &mut self.scratch[..]) {
            Ok(len) if len > 0 => {}
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                let _ = epoll::delete(&self.epoll, fd);
                self.leftovers.remove(&token);
            }
        }
    }

    // ---- the end of every turn ----

    fn settle(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.sweep_at.is_some_and(|at| now >= at) {
            self.sweeps_left = self.sweeps_left.saturating_sub(1);
            self.sweep_at = (self.trees.sweep() && self.sweeps_left > 0).then(|| now + SWEEP);
        }
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_disk();
        }
        self.sockets.settle(now, &mut self.link);
        self.settle_work();
        for number in self.execs.in_turn() {
            self.settle_exec(number, now)?;
        }
        self.settle_quiesces(now);
        Ok(())
    }

    fn settle_work(&mut self) {
        let mut over = Vec::new();
        for (number, channel) in &mut self.channels {
            if let Channel::Work(work) = channel
                && let Some(reply) = work.pump(*number, &mut self.link)
            {
                over.push((*number, reply));
            }
        }
        for (number, reply) in over {
            self.channels.remove(&number);
            self.link.reply(number, &reply);
        }
    }

    fn settle_exec(&mut self, number: u64, now: Instant) -> Result<(), Error> {
        let Some(entry) = self.execs.get(number) else { return Ok(()) };
        let mut is_over = false;
        if let Some(exec) = &mut entry.exec {
            if exec.advance(now) {
                for channel in exec.kill_waiters.drain(..) {
                    self.channels.remove(&channel);
                    self.link.reply(channel, &Reply::Done(Outcome::Killed { was_running: true }));
                }
            }
            is_over = exec.is_over(now);
        }
        if is_over {
            self.conclude(number)?;
        }
        let Some(entry) = self.execs.get(number) else { return Ok(()) };
        for channel in entry.pump(&mut self.link) {
            self.channels.remove(&channel);
        }
        if !self.link.has_room() {
            self.execs.begin_with(number);
        }
        let Some(entry) = self.execs.get(number) else { return Ok(()) };
        if entry.exec.is_none() && entry.attachments.is_empty() {
            self.execs.put_away(number);
            return Ok(());
        }
        self.arm(number)
    }

    /// An exec has ended, and all of its output is kept.
    fn conclude(&mut self, number: u64) -> Result<(), Error> {
        let Some(entry) = self.execs.get(number) else { return Ok(()) };
        let Some(mut exec) = entry.exec.take() else { return Ok(()) };
        let used = entry.input.close();
        let _ = epoll::delete(&self.epoll, &exec.spawned.report);
        let waiters = std::mem::take(&mut exec.kill_waiters);
        for pipe in &exec.pipes {
            if let (Some(fd), true) = (&pipe.fd, pipe.armed) {
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
        let (verdict, tree, pipes) = exec.conclude(entry.spool.written(), entry.spool.dropped());
        entry.verdict = Some(verdict);
        self.used_up(number, used);
        for channel in waiters {
            self.channels.remove(&channel);
            self.link.reply(channel, &Reply::Done(Outcome::Killed { was_running: false }));
        }
        for fd in pipes {
            self.next_leftover += 1;
            let token = LEFTOVER | self.next_leftover;
            watch(&self.epoll, fd.as_fd(), token)?;
            self.leftovers.insert(token, fd);
        }
        self.trees.give_back(tree, Some(number));
        Ok(())
    }

    /// Watches the pipes from which something could be kept, and the input when it waits.
    fn arm(&mut self, number: u64) -> Result<(), Error> {
        let Some(Entry { exec: Some(exec), spool, input, .. }) = self.execs.get(number) else {
            return Ok(());
        };
        if exec.is_held_up() {
            let has_room = !spool.is_full();
            if !has_room && spool.waits_for_disk() {
                self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
            }
            for which in 0..exec.pipes.len() {
                let owes = exec.owed(which) > 0;
                let pipe = &mut exec.pipes[which];
                if let (Some(fd), false, true) = (&pipe.fd, pipe.armed, has_room || owes) {
                    watch(&self.epoll, fd.as_fd(), token(number, OUTPUTS + which as u64))?;
                    pipe.armed = true;
                }
            }
        }
        let waits = input.waits();
        if waits == input.armed {
            return Ok(());
        }
        if let Some(fd) = input.fd() {
            if waits {
                let data = EventData::new_u64(token(number, INPUT));
                epoll::add(&self.epoll, fd, data, EventFlags::OUT)
                    .map_err(|errno| system("watch a descriptor", errno))?;
            } else {
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
        input.armed = waits;
        Ok(())
    }

    fn retry_disk(&mut self) {
        self.retry_at = None;
        let dir = self.spool_dir.clone();
        for (number, entry) in self.execs.all() {
            if entry.spool.waits_for_disk() {
                entry.spool.try_disk(&mut || dir.file(number.to_string()));
            }
        }
    }

    fn settle_quiesces(&mut self, now: Instant) {
        let mut quiesces = std::mem::take(&mut self.quiesces);
        quiesces.retain_mut(|quiesce| {
            let Some(killed) = quiesce.advance(now, &mut self.execs, &mut self.trees) else { return true };
            if let Some(channel) = quiesce.channel {
                self.channels.remove(&channel);
                self.link.reply(channel, &Reply::Done(Outcome::Quiesced { killed }));
            }
            false
        });
        self.quiesces = quiesces;
    }

    fn watch_control(&mut self) -> Result<(), Error> {
        let flags = if self.link.waiting() > 0 { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        if flags != self.control_flags
            && let Some(fd) = self.link.fd()
        {
            epoll::modify(&self.epoll, fd, EventData::new_u64(CONTROL), flags)
                .map_err(|errno| system("watch the control stream", errno))?;
            self.control_flags = flags;
        }
        Ok(())
    }

    fn next_timer(&mut self) -> Option<Instant> {
        let quiesces = self.quiesces.iter().map(Quiesce::next_timer).min();
        let execs = self.execs.all().filter_map(|(_, entry)| entry.exec.as_ref()?.next_timer()).min();
        let sockets = self.sockets.next_timer();
        let others = [self.sweep_at, self.retry_at, self.connections.next_timer(), quiesces, sockets];
        others.into_iter().flatten().chain(execs).min()
    }

    // ---- the end ----

    /// As PID 1 there is nothing to do: the kernel kills the namespace. Elsewhere the trees are killed one by one.
    fn farewell(&mut self) {
        let _ = self.link.flush();
        if is_init() {
            return;
        }
        let v2 = self.trees.is_v2();
        let until = Instant::now() + FAREWELL;
        let mut trees = self.trees.take_lingering();
        for exec in self.execs.take_all().filter_map(|entry| entry.exec) {
            exec.kill_now();
            trees.push(exec.conclude([0; 2], [0; 2]).1);
        }
        while !trees.is_empty() && Instant::now() < until {
            while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
            trees.iter().for_each(|tree| tree.kill(v2));
            std::thread::sleep(Duration::from_millis(2));
            let (dead, alive) = trees.into_iter().partition(crate::tree::Tree::is_empty);
            trees = alive;
            Vec::into_iter(dead).for_each(|tree| self.trees.give_back(tree, None));
        }
    }
}

pub(crate) fn is_init() -> bool {
    rustix::process::getpid() == Pid::INIT
}

fn token(number: u64, kind: u64) -> u64 {
    (number << NUMBER_SHIFT) | kind
}

/// The token under which the start of an exec is watched.
pub(crate) fn report_token(number: u64) -> u64 {
    token(number, REPORT)
}

pub(crate) fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> Result<(), Error> {
    epoll::add(epoll, fd, EventData::new_u64(token), EventFlags::IN)
        .map_err(|errno| system("watch a descriptor", errno))
}

/// Rounded up: a turn too early would only spin.
fn timespec(duration: Duration) -> Timespec {
    let duration = duration + Duration::from_micros(999);
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// `/dev/null`, or where there is none a pipe that has ended.
fn null_input() -> Result<OwnedFd, Errno> {
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    above_stdio(match null {
        Ok(null) => null,
        Err(_) => pipe_with(PipeFlags::CLOEXEC)?.0,
    })
}
