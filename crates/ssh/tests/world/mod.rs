//! A door onto this machine itself, and OpenSSH's clients in front of it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};
use std::sync::{Arc, Mutex};

use berth_node::{Connect, ExecOutput};
use berth_ssh::{Door, Input, Keys, Listener, Options, Refused, Running};
use berth_types::exec::{
    Command, ExecRequest, ExecStatus, ExitReason, OutputStream, Signal, SignalRequest, TerminalSize,
};
use rustix::process::{Pid, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Where Debian and others have it.
const SFTP_SERVERS: [&str; 3] =
    ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];

/// Commands of "sandbox" `box` run as processes of this machine; there is no other sandbox.
#[derive(Clone, Default)]
pub(crate) struct Here(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    pids: HashMap<String, Pid>,
    terminals: HashMap<String, OwnedFd>,
    pub(crate) requests: Vec<ExecRequest>,
}

impl Here {
    pub(crate) fn requests(&self) -> Vec<ExecRequest> {
        self.0.lock().unwrap().requests.clone()
    }
}

fn refused(error: impl std::fmt::Display) -> Refused {
    Refused(error.to_string())
}

pub(crate) fn sftp_server() -> Option<&'static str> {
    SFTP_SERVERS.into_iter().find(|path| Path::new(path).exists())
}

fn program(command: &Command, has_terminal: bool) -> Process {
    let argv: Vec<String> = match command {
        Command::Argv(argv) => argv.clone(),
        Command::Shell(line) => ["/bin/bash", "-c", line].map(str::to_owned).to_vec(),
        Command::LoginShell => ["/bin/sh", "-l"].map(str::to_owned).to_vec(),
        Command::Sftp => vec![sftp_server().unwrap_or("/nonexistent").to_owned()],
    };
    let mut process = Process::new(if has_terminal { "setsid" } else { &argv[0] });
    if has_terminal {
        process.args(["--ctty", "--wait"]).args(&argv);
    } else {
        process.args(&argv[1..]);
    }
    process
}

impl Door for Here {
    type Exec = Local;
    type Socket = Box<dyn Both>;

    async fn exec(&self, sandbox: &str, request: ExecRequest) -> Result<Local, Refused> {
        if sandbox != "box" {
            return Err(Refused(format!("there is no sandbox {sandbox:?}")));
        }
        let id = request.id.clone().unwrap();
        let mut process = program(&request.command, request.terminal.is_some());
        process.envs(&request.env);
        let local = match request.terminal {
            Some(size) => self.on_terminal(&id, process, size).map_err(refused)?,
            None => on_pipes(process).map_err(refused)?,
        };
        let mut inside = self.0.lock().unwrap();
        inside.pids.insert(id, Pid::from_raw(local.pid.try_into().unwrap()).unwrap());
        inside.requests.push(request);
        Ok(local)
    }

    async fn signal(&self, _: &str, exec: &str, signal: &SignalRequest) -> Result<(), Refused> {
        let number = match &signal.signal {
            Signal::Name(name) if name == "HUP" => rustix::process::Signal::HUP,
            Signal::Name(name) if name == "TERM" => rustix::process::Signal::TERM,
            other => return Err(Refused(format!("{other:?}"))),
        };
        let pid = self.0.lock().unwrap().pids[exec];
        kill_process(pid, number).map_err(refused)
    }

    async fn resize(&self, _: &str, exec: &str, size: TerminalSize) -> Result<(), Refused> {
        let inside = self.0.lock().unwrap();
        set_size(&inside.terminals[exec], size).map_err(refused)
    }

    async fn connect(&self, sandbox: &str, socket: Connect) -> Result<Box<dyn Both>, Refused> {
        if sandbox != "box" {
            return Err(Refused(format!("there is no sandbox {sandbox:?}")));
        }
        Ok(match socket {
            Connect::Tcp { host, port } => Box::new(TcpStream::connect((host, port)).await.map_err(refused)?),
            Connect::Unix { path } => Box::new(UnixStream::connect(path).await.map_err(refused)?),
        })
    }
}

impl Here {
    fn on_terminal(&self, id: &str, mut process: Process, size: TerminalSize) -> io::Result<Local> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        set_size(&master, size)?;
        let name = PathBuf::from(ptsname(&master, Vec::new())?.into_string().unwrap());
        let slave = std::fs::File::options().read(true).write(true).open(name)?;
        process.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        let child = tokio::process::Command::from(process).spawn()?;
        self.0.lock().unwrap().terminals.insert(id.to_owned(), master.try_clone()?);
        let file = |fd: &OwnedFd| fd.try_clone().map(std::fs::File::from).map(tokio::fs::File::from_std);
        let (reader, writer) = (file(&master)?, file(&master)?);
        Ok(Local::new(child, vec![(OutputStream::Stdout, Box::new(reader))], Box::new(writer)))
    }
}

fn set_size(master: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}

fn on_pipes(mut process: Process) -> io::Result<Local> {
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(process).spawn()?;
    let stdin = child.stdin.take().unwrap();
    let outputs: Vec<(OutputStream, Reader)> = vec![
        (OutputStream::Stdout, Box::new(child.stdout.take().unwrap())),
        (OutputStream::Stderr, Box::new(child.stderr.take().unwrap())),
    ];
    Ok(Local::new(child, outputs, Box::new(stdin)))
}

pub(crate) trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

pub(crate) struct Local {
    pid: u32,
    events: mpsc::Receiver<ExecOutput>,
    stdin: LocalInput,
}

#[derive(Clone)]
pub(crate) struct LocalInput(Arc<tokio::sync::Mutex<Option<Writer>>>);

impl Local {
    fn new(mut child: Child, outputs: Vec<(OutputStream, Reader)>, stdin: Writer) -> Self {
        let pid = child.id().unwrap();
        // Little is queued, so that the command feels a client that does not read.
        let (sender, events) = mpsc::channel(2);
        tokio::spawn(async move {
            let mut readers = Vec::new();
            for (stream, mut reader) in outputs {
                let sender = sender.clone();
                readers.push(tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    // A terminal's end is an error.
                    while let Ok(len @ 1..) = reader.read(&mut buffer).await {
                        let data = buffer[..len].to_vec().into();
                        let _ = sender.send(ExecOutput::Output { stream, offset: 0, time_us: 0, data }).await;
                    }
                }));
            }
            let status = child.wait().await.unwrap();
            for mut reader in readers {
                // What was left behind may hold the pipe; a client that is slow gets all.
                let limit = std::time::Duration::from_millis(100);
                while tokio::time::timeout(limit, &mut reader).await.is_err() {
                    if sender.capacity() > 0 {
                        reader.abort();
                        break;
                    }
                }
            }
            let _ = sender.send(ExecOutput::Exited(ended(status))).await;
        });
        Self { pid, events, stdin: LocalInput(Arc::new(tokio::sync::Mutex::new(Some(stdin)))) }
    }
}

fn ended(status: std::process::ExitStatus) -> ExecStatus {
    match status.signal() {
        Some(signal) => {
            ExecStatus { signal: Some(signal), ..ExecStatus::new(128 + signal, ExitReason::Signaled) }
        }
        None => ExecStatus::new(status.code().unwrap(), ExitReason::Exited),
    }
}

impl Running for Local {
    type Input = LocalInput;

    fn input(&self) -> Option<LocalInput> {
        Some(self.stdin.clone())
    }

    async fn next(&mut self) -> Result<ExecOutput, Refused> {
        self.events.recv().await.ok_or_else(|| refused("nobody is there"))
    }
}

impl Input for LocalInput {
    async fn write(&self, data: &[u8]) -> io::Result<()> {
        match &mut *self.0.lock().await {
            Some(stdin) => {
                stdin.write_all(data).await?;
                stdin.flush().await
            }
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn end(&self) {
        let stdin = self.0.clone();
        tokio::spawn(async move { stdin.lock().await.take() });
    }
}

/// A door that is open, and somebody with the key to it.
pub(crate) struct World {
    pub(crate) here: Here,
    pub(crate) dir: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) keys: Keys,
    pub(crate) stop: CancellationToken,
    key: PathBuf,
    runtime: Option<tokio::runtime::Runtime>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl World {
    /// `None`, said out loud, where a program is not installed.
    pub(crate) fn with(programs: &[&str]) -> Option<Self> {
        for program in ["ssh", "bash", "setsid"].iter().chain(programs) {
            let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .any(|dir| dir.join(program).exists());
            if !found {
                println!("SKIP: {program} is not installed");
                return None;
            }
        }
        let dir = tempfile::Builder::new().prefix("berth-ssh").tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: dir.path().join("data"),
            stop: stop.clone(),
        };
        let listener = runtime.block_on(Listener::bind(options)).unwrap();
        let (address, keys) = (listener.address(), listener.keys().clone());
        let key = keys.client().unwrap();
        let known = keys.known_hosts_line("127.0.0.1", address.port()).unwrap();
        std::fs::write(dir.path().join("known_hosts"), format!("{known}\n")).unwrap();
        let here = Here::default();
        let served = Some(runtime.spawn(listener.run(here.clone())));
        Some(Self { here, dir, address, keys, stop, key, runtime: Some(runtime), served })
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// What `ssh`, `scp` and `sftp` are to know.
    pub(crate) fn options(&self) -> Vec<String> {
        let known = format!("UserKnownHostsFile={}", self.path("known_hosts"));
        let mut options = vec!["-F".to_owned(), "none".to_owned(), "-i".to_owned()];
        options.push(self.key.to_str().unwrap().to_owned());
        for option in [
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "LogLevel=ERROR",
            "ConnectTimeout=20",
            &known,
            &format!("Port={}", self.address.port()),
        ] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options
    }

    /// `ssh` to `user`, with further options before and words after.
    pub(crate) fn ssh(&self, user: &str, options: &[&str], words: &[&str]) -> Process {
        let mut ssh = Process::new("ssh");
        ssh.args(self.options()).args(options).arg(format!("{user}@127.0.0.1")).args(words);
        ssh.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ssh
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        self.ssh("box", &[], &[line]).output().unwrap()
    }

    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let runtime = self.runtime.as_ref().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(std::time::Duration::from_secs(60), future).await.unwrap()
        })
    }

    /// Stops the door, and waits for that.
    pub(crate) fn close(&mut self) {
        self.stop.cancel();
        if let (Some(runtime), Some(served)) = (&self.runtime, self.served.take()) {
            runtime.block_on(served).unwrap();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        for pid in self.here.0.lock().unwrap().pids.values() {
            // Those that were left running on purpose.
            let _ = kill_process(*pid, rustix::process::Signal::KILL);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
    }
}
