//! One connection: who it is, and what he asks for on which channel. What takes time is done by tasks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_node::Connect;
use berth_types::exec::{Command, Signal, SignalRequest, TerminalSize};
use russh::keys::PublicKey;
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session as Wire, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Error, Pty, Sig};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::Keys;
use crate::door::{Door, Refused};
use crate::inlet::{self, Inlet, Outlet, WINDOW};
use crate::session::{Control, Forward, Line, STDERR, Session, Setting, Target};

/// Channels that one connection may have at once.
const MAX_CHANNELS: usize = 256;

/// Names and values of variables that a client may set on a channel, in bytes together.
const MAX_ENV: usize = 128 << 10;

/// A client and his channels.
pub(crate) struct Visitor<D> {
    door: D,
    keys: Keys,
    tasks: TaskTracker,
    target: Option<Target>,
    is_in: Arc<AtomicBool>,
    channels: HashMap<ChannelId, Open>,
    /// Cancelled when the connection has ended: the library drops the visitor then.
    end: CancellationToken,
    _guard: DropGuard,
}

struct Open {
    inlet: Inlet,
    gone: CancellationToken,
    stage: Stage,
}

enum Stage {
    /// A session in which nothing was started yet.
    Fresh(Box<Fresh>),
    /// A session with a command.
    Busy(mpsc::UnboundedSender<Control>),
    Forward,
}

struct Fresh {
    write: ChannelWriteHalf<Msg>,
    input: Outlet,
    setting: Setting,
}

impl<D: Door> Visitor<D> {
    /// `is_in` is set once the client is known; `end` ends all that goes on for him.
    pub(crate) fn new(
        door: D,
        keys: Keys,
        tasks: TaskTracker,
        is_in: Arc<AtomicBool>,
        end: CancellationToken,
    ) -> Self {
        let guard = end.clone().drop_guard();
        Self { door, keys, tasks, target: None, is_in, channels: HashMap::new(), end, _guard: guard }
    }

    fn check(&self, key: &PublicKey) -> Auth {
        match self.keys.may_enter(key) {
            Ok(true) => Auth::Accept,
            Ok(false) => Auth::reject(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "nobody is let in by SSH");
                Auth::reject()
            }
        }
    }

    /// Takes a channel in; the half that the library would queue its data in is dropped, see [`crate::inlet`].
    fn admit(&mut self, channel: Channel<Msg>) -> (ChannelWriteHalf<Msg>, Outlet, CancellationToken) {
        let (_, write) = channel.split();
        let (inlet, outlet) = inlet::pipe();
        let gone = self.end.child_token();
        let open = Open { inlet, gone: gone.clone(), stage: Stage::Forward };
        self.channels.insert(write.id(), open);
        (write, outlet, gone)
    }

    async fn forward(&mut self, channel: Channel<Msg>, socket: Connect, reply: ChannelOpenHandle) {
        let Some(target) = self.target.clone().filter(|_| self.channels.len() < MAX_CHANNELS) else {
            return reply.reject(ChannelOpenFailure::ResourceShortage).await;
        };
        let (write, input, gone) = self.admit(channel);
        let forward = Forward { door: self.door.clone(), sandbox: target.sandbox, write, input, gone };
        self.tasks.spawn(forward.run(socket, reply));
    }

    /// What was set on a session before anything was started in it.
    fn setting(&mut self, channel: ChannelId) -> Option<&mut Setting> {
        match &mut self.channels.get_mut(&channel)?.stage {
            Stage::Fresh(fresh) => Some(&mut fresh.setting),
            Stage::Busy(_) | Stage::Forward => None,
        }
    }

    fn tell(&self, channel: ChannelId, control: Control) -> bool {
        match self.channels.get(&channel).map(|open| &open.stage) {
            Some(Stage::Busy(controls)) => controls.send(control).is_ok(),
            _ => false,
        }
    }

    /// Starts a command in a session, or says there why not.
    fn start(
        &mut self,
        channel: ChannelId,
        command: Result<Command, Refused>,
        wire: &mut Wire,
    ) -> Result<(), Error> {
        let (Some(target), Some(open)) = (self.target.clone(), self.channels.get_mut(&channel)) else {
            return wire.channel_failure(channel);
        };
        let (sender, controls) = mpsc::unbounded_channel();
        let fresh = match std::mem::replace(&mut open.stage, Stage::Busy(sender)) {
            Stage::Fresh(fresh) => *fresh,
            // One command a session; the one that is there stays.
            stage => {
                open.stage = stage;
                return wire.channel_failure(channel);
            }
        };
        wire.channel_success(channel)?;
        let Fresh { write, input, setting } = fresh;
        let line = Line { write, handle: wire.handle() };
        let (door, gone) = (self.door.clone(), open.gone.clone());
        match command {
            Ok(command) => {
                let session = Session { door, target, line, input, controls, gone };
                self.tasks.spawn(session.run(command, setting));
            }
            Err(refused) => {
                let has_terminal = setting.terminal.is_some();
                self.tasks.spawn(async move { line.complain(&refused, has_terminal).await });
            }
        }
        Ok(())
    }
}

fn answer(wire: &mut Wire, channel: ChannelId, is_done: bool) -> Result<(), Error> {
    if is_done { wire.channel_success(channel) } else { wire.channel_failure(channel) }
}

/// A terminal has at least one character.
fn size(cols: u32, rows: u32) -> TerminalSize {
    let fit = |number: u32, unknown: u16| match number {
        0 => unknown,
        number => u16::try_from(number).unwrap_or(u16::MAX),
    };
    TerminalSize { rows: fit(rows, 24), cols: fit(cols, 80) }
}

impl<D: Door> Handler for Visitor<D> {
    type Error = Error;

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Error> {
        Ok(self.check(offer.public_key))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Error> {
        let auth = self.check(key.public_key);
        if auth == Auth::Accept {
            self.target = Some(Target::parse(user));
        }
        Ok(auth)
    }

    async fn auth_succeeded(&mut self, _: &mut Wire) -> Result<(), Error> {
        self.is_in.store(true, Ordering::Release);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Wire,
    ) -> Result<(), Error> {
        if self.channels.len() >= MAX_CHANNELS {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let (write, input, _) = self.admit(channel);
        if let Some(open) = self.channels.get_mut(&id) {
            open.stage = Stage::Fresh(Box::new(Fresh { write, input, setting: Setting::default() }));
        }
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Wire,
    ) -> Result<(), Error> {
        let Ok(port) = u16::try_from(port) else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        self.forward(channel, Connect::Tcp { host: host.to_owned(), port }, reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Wire,
    ) -> Result<(), Error> {
        self.forward(channel, Connect::Unix { path: path.to_owned() }, reply).await;
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _: &mut Wire) -> Result<(), Error> {
        if let Some(open) = self.channels.remove(&channel) {
            open.gone.cancel();
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut Wire) -> Result<(), Error> {
        if let Some(open) = self.channels.get(&channel) {
            open.inlet.end();
        }
        Ok(())
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], wire: &mut Wire) -> Result<(), Error> {
        let Some(open) = self.channels.get(&channel) else { return Ok(()) };
        if open.inlet.data(data).await {
            return Ok(());
        }
        tracing::warn!("closed a channel whose data nobody takes, since it held up its connection");
        open.gone.cancel();
        if !matches!(open.stage, Stage::Forward) {
            let why = "berth: closed: the command has not read its input for minutes, and held up all else\n";
            wire.extended_data(channel, STDERR, why.as_bytes())?;
        }
        self.channels.remove(&channel);
        wire.close(channel)
    }

    fn adjust_window(&mut self, channel: ChannelId, _: u32) -> u32 {
        self.channels.get(&channel).map_or(WINDOW, |open| open.inlet.credit())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        wire: &mut Wire,
    ) -> Result<(), Error> {
        let setting = self.setting(channel);
        let is_done = setting.is_some();
        if let Some(setting) = setting {
            setting.terminal = Some(size(cols, rows));
            if !term.is_empty() {
                setting.env.insert("TERM".to_owned(), term.to_owned());
            }
        }
        answer(wire, channel, is_done)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        wire: &mut Wire,
    ) -> Result<(), Error> {
        let is_one = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        let setting = self.setting(channel).filter(|setting| {
            let held: usize = setting.env.iter().map(|(name, value)| name.len() + value.len()).sum();
            is_one && held + name.len() + value.len() <= MAX_ENV
        });
        let is_done = setting.is_some();
        if let Some(setting) = setting {
            setting.env.insert(name.to_owned(), value.to_owned());
        }
        answer(wire, channel, is_done)
    }

    async fn shell_request(&mut self, channel: ChannelId, wire: &mut Wire) -> Result<(), Error> {
        self.start(channel, Ok(Command::LoginShell), wire)
    }

    async fn exec_request(&mut self, channel: ChannelId, line: &[u8], wire: &mut Wire) -> Result<(), Error> {
        let line = String::from_utf8(line.to_vec());
        let line = line.map_err(|_| Refused("a command that is not UTF-8 cannot be run".to_owned()));
        self.start(channel, line.map(Command::Shell), wire)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        wire: &mut Wire,
    ) -> Result<(), Error> {
        if name == "sftp" {
            return self.start(channel, Ok(Command::Sftp), wire);
        }
        tracing::debug!(name, "a client asked for a subsystem that there is not");
        wire.channel_failure(channel)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        wire: &mut Wire,
    ) -> Result<(), Error> {
        let is_told = self.tell(channel, Control::Resize(size(cols, rows)));
        answer(wire, channel, is_told)
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, wire: &mut Wire) -> Result<(), Error> {
        let name = match signal {
            Sig::Custom(name) => name,
            // The library's names are the protocol's.
            known => format!("{known:?}"),
        };
        let signal = SignalRequest { signal: Signal::Name(name), tree: false };
        let is_told = self.tell(channel, Control::Signal(signal));
        answer(wire, channel, is_told)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        wire: &mut Wire,
    ) -> Result<(), Error> {
        wire.channel_failure(channel)
    }
}
