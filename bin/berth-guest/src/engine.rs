//! The loop: one thread that never blocks anywhere but in epoll.
//!
//! Every turn ends with [`Engine::settle`], which does whatever has become possible: execs advance, file work is
//! pumped, finished channels are answered, pipes are watched exactly when something read from them could be passed on.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use berth_wire::{
    Body, ExitReason, FailureCode, Frame, GENERATION, Hello, MAX_DATA, Outcome, Reply, Request,
};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, WaitStatus};

use crate::exec::{Begin, Exec, above_stdio};
use crate::link::{Link, system};
use crate::surroundings::Surroundings;
use crate::tree::Trees;
use crate::work::{Doorbell, Note, Work};
use crate::{Error, Options, failure, launch, work};

const CONTROL: u64 = 0;
const CHILDREN: u64 = 1;
const NOTES: u64 = 2;
/// Set in the tokens of pipes that outlived their exec.
const LEFTOVER: u64 = 1 << 63;
/// Tokens of an exec are its channel above these eight bits, and in them one of these.
const CHANNEL_SHIFT: u32 = 8;
const REPORT: u64 = 3;
const OUTPUTS: u64 = 4;

/// How long an end that PID 1's own end does not bring about may take.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the cgroups of what outlives its exec wait to be looked at after a death.
const SWEEP: Duration = Duration::from_millis(50);

enum Channel {
    Exec(Box<Exec>),
    Work(Work),
}

pub(crate) struct Engine {
    epoll: OwnedFd,
    link: Link,
    children: OwnedFd,
    notes: Receiver<Note>,
    bell: Doorbell,
    trees: Trees,
    stdin: OwnedFd,
    surroundings: Surroundings,
    channels: HashMap<u32, Channel>,
    /// Reading ends of pipes whose exec is over but to which something still writes. They stay open, read and thrown
    /// away: closing them would kill a daemon at its next line of log.
    leftovers: HashMap<u64, OwnedFd>,
    next_leftover: u64,
    sweep_at: Option<Instant>,
    control_flags: EventFlags,
    scratch: Box<[u8]>,
}

impl Engine {
    pub(crate) fn new(options: Options, surroundings: Surroundings) -> Result<Self, Error> {
        let children = berth_sys::spawn::child_signals()
            .map_err(|source| Error::System { operation: "watch for children", source })?;
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|errno| system("make an epoll", errno))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| system("make an eventfd", errno))?;
        let (sender, notes) = channel();
        let engine = Self {
            epoll,
            link: Link::new(options.control)?,
            children,
            notes,
            bell: Doorbell { notes: sender, wake: Arc::new(wake) },
            trees: Trees::new(options.groups)
                .map_err(|errno| system("open the control groups of commands", errno))?,
            stdin: null_input().map_err(|errno| system("make an empty standard input", errno))?,
            surroundings,
            channels: HashMap::new(),
            leftovers: HashMap::new(),
            next_leftover: 0,
            sweep_at: None,
            control_flags: EventFlags::IN,
            scratch: vec![0; MAX_DATA].into_boxed_slice(),
        };
        watch(&engine.epoll, engine.link.fd(), CONTROL)?;
        watch(&engine.epoll, engine.children.as_fd(), CHILDREN)?;
        watch(&engine.epoll, engine.bell.wake.as_fd(), NOTES)?;
        Ok(engine)
    }

    /// Serves until the stream ends or the host says so, and takes everything that runs along.
    pub(crate) fn serve(mut self) -> Result<(), Error> {
        let served = self.turn_until_end();
        self.farewell();
        served
    }

    fn turn_until_end(&mut self) -> Result<(), Error> {
        self.link.send(0, Body::Hello(self.hello()));
        let mut events = Vec::with_capacity(128);
        loop {
            self.settle()?;
            self.link.flush()?;
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
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            generation: GENERATION,
            shell: launch::find_shell().map(|(path, _)| path.to_owned()),
            tree_kill: self.trees.kind(),
            is_init: is_init(),
            earlier_connections: 0,
        }
    }

    /// False when there is nothing more to serve.
    fn handle(&mut self, token: u64, flags: EventFlags) -> Result<bool, Error> {
        match token {
            CONTROL if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) => self.receive(),
            CONTROL => Ok(true),
            CHILDREN => self.reap().map(|()| true),
            NOTES => self.read_notes().map(|()| true),
            leftover if leftover & LEFTOVER != 0 => {
                self.drain_leftover(leftover);
                Ok(true)
            }
            of_exec => {
                let channel = (of_exec >> CHANNEL_SHIFT) as u32;
                match of_exec & ((1 << CHANNEL_SHIFT) - 1) {
                    REPORT => self.read_report(channel),
                    output => self.read_output(channel, usize::from(output != OUTPUTS)),
                }
                Ok(true)
            }
        }
    }

    // ---- frames of the host ----

    fn receive(&mut self) -> Result<bool, Error> {
        if !self.link.receive()? {
            return Ok(false);
        }
        while let Some(frame) = self.link.next_frame()? {
            if !self.take(frame)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn take(&mut self, Frame { channel, body }: Frame) -> Result<bool, Error> {
        match body {
            Body::Open(request) => return self.open(channel, *request),
            Body::Data(data) => self.take_data(channel, data)?,
            Body::End => {
                if let Some(Channel::Work(work)) = self.channels.get(&channel) {
                    work.end();
                }
            }
            Body::Credit(bytes) => self.take_credit(channel, bytes)?,
            Body::Cancel => self.cancel(channel),
            Body::Hello(_) | Body::Event(_) | Body::Output(_) => return Err(Error::Unexpected { channel }),
        }
        Ok(true)
    }

    fn open(&mut self, channel: u32, request: Request) -> Result<bool, Error> {
        if self.channels.contains_key(&channel) {
            return Err(Error::Unexpected { channel });
        }
        match request {
            Request::Exec(exec) => self.open_exec(channel, exec)?,
            Request::Kill { id, grace_ms } => self.open_kill(channel, &id, grace_ms),
            Request::Shutdown => return Ok(false),
            other => match work::start(channel, other, self.bell.clone()) {
                Ok(work) => {
                    self.channels.insert(channel, Channel::Work(work));
                }
                Err(failure) => self.link.reply(channel, &Reply::Failed(failure)),
            },
        }
        Ok(true)
    }

    fn open_exec(&mut self, channel: u32, request: berth_wire::Exec) -> Result<(), Error> {
        if self.running(&request.id).is_some() {
            let message = format!("an exec {:?} is running", request.id);
            let failure = failure::because(FailureCode::Conflict, message, None);
            self.link.reply(channel, &Reply::Failed(failure));
            return Ok(());
        }
        match Exec::start(request, &mut self.trees, &self.stdin, self.surroundings) {
            Begin::Running(exec) => {
                watch(&self.epoll, exec.spawned.report.as_fd(), token(channel, REPORT))?;
                self.channels.insert(channel, Channel::Exec(exec));
            }
            Begin::Over(reply) => self.link.reply(channel, &reply),
        }
        Ok(())
    }

    fn open_kill(&mut self, channel: u32, id: &str, grace_ms: Option<u64>) {
        match self.running(id) {
            Some(exec) => {
                exec.kill(ExitReason::Killed, grace_ms);
                exec.kill_waiters.push(channel);
            }
            None => self.link.reply(channel, &Reply::Done(Outcome::Killed { was_running: false })),
        }
    }

    fn running(&mut self, id: &str) -> Option<&mut Exec> {
        self.channels.values_mut().find_map(|channel| match channel {
            Channel::Exec(exec) if exec.request.id == id && exec.is_alive() => Some(&mut **exec),
            Channel::Exec(_) | Channel::Work(_) => None,
        })
    }

    /// Data for a channel that is over was under way when it ended.
    fn take_data(&mut self, channel: u32, data: Vec<u8>) -> Result<(), Error> {
        match self.channels.get_mut(&channel) {
            Some(Channel::Work(work)) => {
                work.receive.received(data.len()).map_err(|source| Error::Window { channel, source })?;
                work.feed(data);
                Ok(())
            }
            Some(Channel::Exec(_)) => Err(Error::Unexpected { channel }),
            None => Ok(()),
        }
    }

    fn take_credit(&mut self, channel: u32, bytes: u32) -> Result<(), Error> {
        let window = match self.channels.get_mut(&channel) {
            Some(Channel::Exec(exec)) => &mut exec.window,
            Some(Channel::Work(work)) => &mut work.send,
            None => return Ok(()),
        };
        window.grant(bytes).map_err(|source| Error::Window { channel, source })
    }

    fn cancel(&mut self, channel: u32) {
        match self.channels.get_mut(&channel) {
            Some(Channel::Exec(exec)) => {
                exec.cancelled = true;
                exec.kill(ExitReason::Killed, exec.request.grace_ms);
            }
            Some(Channel::Work(work)) => work.cancel(),
            None => {}
        }
    }

    // ---- what happens inside ----

    fn reap(&mut self) -> Result<(), Error> {
        // signalfd(2): one record may stand for any number of children.
        while matches!(rustix::io::read(&self.children, &mut self.scratch[..]), Ok(len) if len > 0) {}
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
        }
        Ok(())
    }

    fn reaped(&mut self, pid: Pid, status: WaitStatus) {
        for channel in self.channels.values_mut() {
            if let Channel::Exec(exec) = channel
                && exec.pid() == pid
                && exec.is_running()
            {
                exec.reaped(status);
                return;
            }
        }
    }

    fn read_notes(&mut self) -> Result<(), Error> {
        let _ = rustix::io::read(&*self.bell.wake, &mut self.scratch[..8]);
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
        Ok(())
    }

    fn read_report(&mut self, channel: u32) {
        let Some(Channel::Exec(exec)) = self.channels.get_mut(&channel) else { return };
        if let Some(program) = exec.poll_start()
            && !exec.cancelled
        {
            self.link.reply(channel, &Reply::Started { program, attached: false, stdin_offset: 0 });
        }
        if exec.progress != berth_sys::spawn::Progress::Pending {
            let _ = epoll::delete(&self.epoll, &exec.spawned.report);
        }
    }

    fn read_output(&mut self, channel: u32, which: usize) {
        let Some(Channel::Exec(exec)) = self.channels.get_mut(&channel) else { return };
        // News of the start goes before what the program says.
        if exec.progress == berth_sys::spawn::Progress::Pending {
            self.read_report(channel);
        }
        let Some(Channel::Exec(exec)) = self.channels.get_mut(&channel) else { return };
        let room = exec.window.left().min(MAX_DATA);
        let Some(fd) = &exec.pipes[which].fd else { return };
        if room == 0 || !self.link.has_room() {
            // Level-triggered: it comes back when it is watched again.
            let _ = epoll::delete(&self.epoll, fd);
            exec.pipes[which].armed = false;
            return;
        }
        match rustix::io::read(fd, &mut self.scratch[..room]) {
            Ok(len) if len > 0 => {
                exec.window.take(len);
                exec.delivered(which, len);
                if !exec.cancelled {
                    let offset = exec.written(which, len);
                    self.link.chunk(channel, which == 1, offset, &self.scratch[..len]);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end; a pipe knows no other error.
            Ok(_) | Err(_) => {
                let _ = epoll::delete(&self.epoll, fd);
                exec.closed(which);
            }
        }
    }

    fn drain_leftover(&mut self, token: u64) {
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
            self.sweep_at = None;
            self.trees.sweep();
        }
        let (mut over, mut killed) = (Vec::new(), Vec::new());
        for (number, channel) in &mut self.channels {
            match channel {
                Channel::Exec(exec) => {
                    if exec.advance(now) {
                        killed.append(&mut exec.kill_waiters);
                    }
                    if exec.is_over(now) {
                        over.push((*number, None));
                    }
                }
                Channel::Work(work) => {
                    if let Some(reply) = work.pump(*number, &mut self.link) {
                        over.push((*number, Some(reply)));
                    }
                }
            }
        }
        for channel in killed {
            self.link.reply(channel, &Reply::Done(Outcome::Killed { was_running: true }));
        }
        for (number, reply) in over {
            self.close(number, reply)?;
        }
        self.arm()
    }

    fn close(&mut self, number: u32, reply: Option<Reply>) -> Result<(), Error> {
        let reply = match (self.channels.remove(&number), reply) {
            (Some(Channel::Exec(exec)), _) => self.close_exec(*exec)?,
            (_, Some(reply)) => reply,
            (_, None) => return Ok(()),
        };
        self.link.reply(number, &reply);
        Ok(())
    }

    fn close_exec(&mut self, mut exec: Exec) -> Result<Reply, Error> {
        let _ = epoll::delete(&self.epoll, &exec.spawned.report);
        for channel in std::mem::take(&mut exec.kill_waiters) {
            self.link.reply(channel, &Reply::Done(Outcome::Killed { was_running: false }));
        }
        let armed = exec.pipes.each_ref().map(|pipe| pipe.armed);
        for (pipe, armed) in exec.pipes.iter().zip(armed) {
            if let (Some(fd), true) = (&pipe.fd, armed) {
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
        let (reply, tree, pipes) = exec.conclude();
        for fd in pipes {
            self.next_leftover += 1;
            let token = LEFTOVER | self.next_leftover;
            watch(&self.epoll, fd.as_fd(), token)?;
            self.leftovers.insert(token, fd);
        }
        self.trees.give_back(tree);
        Ok(reply)
    }

    /// Watches the pipes from which something could be passed on.
    fn arm(&mut self) -> Result<(), Error> {
        if !self.link.has_room() {
            return Ok(());
        }
        for (number, channel) in &mut self.channels {
            let Channel::Exec(exec) = channel else { continue };
            if exec.window.left() == 0 {
                continue;
            }
            for (which, pipe) in exec.pipes.iter_mut().enumerate() {
                if let (Some(fd), false) = (&pipe.fd, pipe.armed) {
                    watch(&self.epoll, fd.as_fd(), token(*number, OUTPUTS + which as u64))?;
                    pipe.armed = true;
                }
            }
        }
        Ok(())
    }

    fn watch_control(&mut self) -> Result<(), Error> {
        let flags = if self.link.waiting() > 0 { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        if flags != self.control_flags {
            epoll::modify(&self.epoll, self.link.fd(), EventData::new_u64(CONTROL), flags)
                .map_err(|errno| system("watch the control stream", errno))?;
            self.control_flags = flags;
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<Instant> {
        let execs = self.channels.values().filter_map(|channel| match channel {
            Channel::Exec(exec) => exec.next_timer(),
            Channel::Work(_) => None,
        });
        execs.chain(self.sweep_at).min()
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
        for (_, channel) in self.channels.drain() {
            if let Channel::Exec(exec) = channel {
                exec.kill_now();
                trees.push(exec.conclude().1);
            }
        }
        while !trees.is_empty() && Instant::now() < until {
            while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
            trees.iter().for_each(|tree| tree.kill(v2));
            std::thread::sleep(Duration::from_millis(2));
            let (dead, alive) = trees.into_iter().partition(crate::tree::Tree::is_empty);
            trees = alive;
            Vec::into_iter(dead).for_each(|tree| self.trees.give_back(tree));
        }
    }
}

fn is_init() -> bool {
    rustix::process::getpid() == Pid::INIT
}

fn token(channel: u32, kind: u64) -> u64 {
    (u64::from(channel) << CHANNEL_SHIFT) | kind
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> Result<(), Error> {
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
