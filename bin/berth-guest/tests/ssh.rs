//! OpenSSH's own clients, through the SSH door, to a guest: an ordinary process of this machine that runs what they ask
//! for, with its own terminals, its own SFTP server and its own connections.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use berth_node::{Connect, ExecInput, ExecOutput, Socket};
use berth_sandbox::guest::{self, ExecSpec, Guest};
use berth_ssh::{Door, Listener, Options, Refused, Running};
use berth_types::exec::{ExecRequest, OnDisconnect, Signal, SignalRequest, TerminalSize};
use rig::{Rig, is_alive, until};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// What the node makes of it, without one.
#[derive(Clone)]
struct Through(Guest);

struct Attached(guest::Exec);

fn refused(error: guest::Error) -> Refused {
    Refused(error.to_string())
}

impl Door for Through {
    type Exec = Attached;
    type Socket = Socket;

    async fn exec(&self, _: &str, request: ExecRequest) -> Result<Attached, Refused> {
        let spec = ExecSpec {
            env: request.env,
            user: request.user,
            stdin: guest::Stdin::Stream,
            terminal: request.terminal,
            on_detach: OnDisconnect::Keep,
            ..ExecSpec::new(request.id.unwrap(), request.command)
        };
        self.0.exec(spec).await.map(Attached).map_err(refused)
    }

    async fn signal(&self, _: &str, exec: &str, signal: &SignalRequest) -> Result<(), Refused> {
        let number = match &signal.signal {
            Signal::Name(name) if name == "HUP" => 1,
            other => panic!("{other:?}"),
        };
        match self.0.signal(exec, number, signal.tree).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refused("it is over".to_owned())),
            Err(error) => Err(refused(error)),
        }
    }

    async fn resize(&self, _: &str, exec: &str, size: TerminalSize) -> Result<(), Refused> {
        self.0.resize(exec, size).await.map(drop).map_err(refused)
    }

    async fn connect(&self, _: &str, socket: Connect) -> Result<Socket, Refused> {
        self.0.connect_to(socket).await.map_err(refused)
    }
}

impl Running for Attached {
    type Input = ExecInput;

    fn input(&self) -> Option<ExecInput> {
        self.0.input()
    }

    async fn next(&mut self) -> Result<ExecOutput, Refused> {
        Ok(match self.0.next().await.unwrap().map_err(refused)? {
            guest::ExecOutput::Started { program, attached, stdin_offset } => {
                ExecOutput::Started { id: String::new(), program, attached, stdin_offset }
            }
            guest::ExecOutput::Output { stream, offset, time_us, data } => {
                ExecOutput::Output { stream, offset, time_us, data }
            }
            guest::ExecOutput::Gap { stream, from, to } => ExecOutput::Gap { stream, from, to },
            guest::ExecOutput::Exited(status) => ExecOutput::Exited(status),
            guest::ExecOutput::Detached => ExecOutput::Detached,
        })
    }
}

/// A guest behind an open door, and somebody with the key to it.
struct World {
    _rig: Rig,
    dir: TempDir,
    key: PathBuf,
    port: u16,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    async fn with(programs: &[&str]) -> Option<Self> {
        for program in ["ssh"].iter().chain(programs) {
            let path = std::env::var_os("PATH").unwrap_or_default();
            if !std::env::split_paths(&path).any(|dir| dir.join(program).exists()) {
                println!("SKIP: {program} is not installed");
                return None;
            }
        }
        let rig = Rig::new().await;
        let dir = tempfile::Builder::new().prefix("berth-ssh").tempdir().unwrap();
        let stop = CancellationToken::new();
        let options = Options {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: dir.path().to_owned(),
            stop: stop.clone(),
        };
        let listener = Listener::bind(options).await.unwrap();
        let port = listener.address().port();
        let key = listener.keys().client().unwrap();
        let known = listener.keys().known_hosts_line("127.0.0.1", port).unwrap();
        fs::write(dir.path().join("known_hosts"), known + "\n").unwrap();
        tokio::spawn(listener.run(Through(rig.guest.clone())));
        Some(Self { _rig: rig, dir, key, port, stop })
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn options(&self) -> Vec<String> {
        let known = format!("UserKnownHostsFile={}", self.path("known_hosts"));
        let port = format!("Port={}", self.port);
        let key = self.key.to_str().unwrap();
        [
            "-F",
            "none",
            "-i",
            key,
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "IdentityAgent=none",
            "-o",
            "BatchMode=yes",
        ]
        .into_iter()
        .chain(["-o", "GlobalKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", &known, "-o", &port])
        .map(str::to_owned)
        .collect()
    }

    fn command(&self, program: &str, words: &[&str]) -> tokio::process::Command {
        let mut command = Command::new(program);
        command.args(self.options()).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        command.kill_on_drop(true);
        command
    }

    async fn run(&self, program: &str, words: &[&str]) -> Output {
        let output = self.command(program, words).output();
        tokio::time::timeout(Duration::from_secs(60), output).await.expect("it does not end").unwrap()
    }

    /// A small tree with something of everything.
    fn make_tree(&self) -> String {
        let tree = self.path("tree");
        fs::create_dir_all(format!("{tree}/sub/deep")).unwrap();
        fs::write(format!("{tree}/a file"), pattern(3 << 20)).unwrap();
        fs::write(format!("{tree}/sub/empty"), b"").unwrap();
        fs::write(format!("{tree}/sub/script"), b"#!/bin/sh\n").unwrap();
        fs::set_permissions(format!("{tree}/sub/script"), fs::Permissions::from_mode(0o751)).unwrap();
        tree
    }
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn assert_same(one: &str, other: &str) {
    let output = Command::new("diff").args(["-r", one, other]).output().unwrap();
    assert_eq!(told(&output), (Some(0), String::new(), String::new()));
    let mode = |tree: &str| fs::metadata(format!("{tree}/sub/script")).unwrap().permissions().mode();
    assert_eq!(mode(one), mode(other));
}

const BOX: &str = "box@127.0.0.1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_their_exits() {
    let Some(world) = World::with(&[]).await else { return };
    let output = world.run("ssh", &[BOX, "echo out; echo err >&2; exit 3"]).await;
    assert_eq!(told(&output), (Some(3), "out\n".into(), "err\n".into()));
    assert_eq!(told(&world.run("ssh", &[BOX, "kill -9 $$"]).await).0, Some(137));
    let none = world.run("ssh", &["box+nobody-of-that-name@127.0.0.1", "true"]).await;
    let (code, _, said) = told(&none);
    assert!(code != Some(0) && said.contains("nobody-of-that-name"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_and_output_arrive_whole() {
    let Some(world) = World::with(&[]).await else { return };
    let data = pattern(24 << 20);
    let mut ssh = world.command("ssh", &[BOX, "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = ssh.stdin.take().unwrap();
    let copy = data.clone();
    let write = tokio::spawn(async move {
        stdin.write_all(&copy).await.unwrap();
    });
    let output =
        tokio::time::timeout(Duration::from_secs(120), ssh.wait_with_output()).await.unwrap().unwrap();
    write.await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == data, "{} bytes came back", output.stdout.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_in_a_terminal() {
    let Some(world) = World::with(&[]).await else { return };
    let mut ssh = world.command("ssh", &["-tt", BOX]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = ssh.stdin.take().unwrap();
    stdin.write_all(b"stty size; tty; sleep 600\n").await.unwrap();
    let mut stdout = ssh.stdout.take().unwrap();
    let mut seen = String::new();
    let mut more = async |seen: &mut String, what: &str| {
        while !seen.contains(what) {
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(Duration::from_secs(30), stdout.read(&mut buffer)).await;
            let len = read.unwrap_or_else(|_| panic!("no {what} in {seen:?}")).unwrap();
            assert!(len > 0, "no {what} in {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
    };
    more(&mut seen, "24 80\r\n").await;
    more(&mut seen, "/dev/pts/").await;
    // Job control: the terminal's interrupt ends what is in the foreground, not the shell.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stdin.write_all(b"\x03").await.unwrap();
    stdin.write_all(b"echo still $((40 + 2)); exit 7\n").await.unwrap();
    more(&mut seen, "still 42").await;
    let status = tokio::time::timeout(Duration::from_secs(30), ssh.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(7), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_hangs_up() {
    let Some(world) = World::with(&[]).await else { return };
    for terminal in ["-T", "-tt"] {
        let line = "echo pid $$; sleep 600; echo no";
        let mut ssh = world.command("ssh", &[terminal, BOX, line]).spawn().unwrap();
        let mut stdout = ssh.stdout.take().unwrap();
        let mut seen = String::new();
        while !seen.contains('\n') {
            let mut buffer = [0; 100];
            let len = stdout.read(&mut buffer).await.unwrap();
            assert!(len > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..len]));
        }
        let pid = seen.trim().trim_start_matches("pid ").to_owned();
        assert!(is_alive(&pid), "{seen}");
        ssh.kill().await.unwrap();
        until("a command outlives its client", || !is_alive(&pid)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_and_scp_need_nothing_of_the_image() {
    let Some(world) = World::with(&["sftp", "scp", "diff"]).await else { return };
    let tree = world.make_tree();
    let (there, back, batch) = (world.path("there"), world.path("back"), world.path("batch"));
    fs::create_dir(&there).unwrap();
    fs::create_dir(&back).unwrap();
    let lines = format!(
        "put -rp {tree} {there}\nls -l {there}/tree/sub\nget -rp {there}/tree {back}\n\
         rename {there}/tree/sub/empty {there}/tree/sub/full\nrm {there}/tree/sub/full\nrmdir {there}/tree/sub/deep\n"
    );
    fs::write(&batch, lines).unwrap();
    let output = world.run("sftp", &["-b", &batch, BOX]).await;
    assert_eq!(told(&output).0, Some(0), "{output:?}");
    assert!(told(&output).1.contains("script"), "{output:?}");
    assert_same(&tree, &format!("{back}/tree"));
    assert!(!Path::new(&format!("{there}/tree/sub/full")).exists());
    assert!(!Path::new(&format!("{there}/tree/sub/deep")).exists());
    for protocol in ["-s", "-O"] {
        let (there, back) = (world.path(&format!("there{protocol}")), world.path(&format!("back{protocol}")));
        let remote = format!("{BOX}:{there}");
        let output = world.run("scp", &[protocol, "-rp", &tree, &remote]).await;
        assert_eq!(told(&output).0, Some(0), "{output:?}");
        assert_same(&tree, &there);
        let output = world.run("scp", &[protocol, "-rp", &remote, &back]).await;
        assert_eq!(told(&output).0, Some(0), "{output:?}");
        assert_same(&tree, &back);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsync_both_ways() {
    let Some(world) = World::with(&["rsync", "diff"]).await else { return };
    let tree = world.make_tree();
    let shell = world.options().iter().fold("ssh".to_owned(), |line, word| format!("{line} {word}"));
    let (there, back) = (world.path("there"), world.path("back"));
    for (from, to) in
        [(format!("{tree}/"), format!("{BOX}:{there}/")), (format!("{BOX}:{there}/"), format!("{back}/"))]
    {
        let output = Command::new("rsync").args(["-a", "-e", &shell, &from, &to]).output().unwrap();
        assert_eq!(told(&output).0, Some(0), "{output:?}");
    }
    assert_same(&tree, &back);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_inside_is_reached() {
    let Some(world) = World::with(&[]).await else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let inside = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let data = pattern(6 << 20);
    let mut ssh = world.command("ssh", &["-W", &format!("localhost:{inside}"), BOX]);
    let mut ssh = ssh.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = ssh.stdin.take().unwrap();
    let copy = data.clone();
    let write = tokio::spawn(async move {
        stdin.write_all(&copy).await.unwrap();
    });
    let output =
        tokio::time::timeout(Duration::from_secs(60), ssh.wait_with_output()).await.unwrap().unwrap();
    write.await.unwrap();
    assert!(output.stdout == data, "{} bytes came back", output.stdout.len());
    let output = world.run("ssh", &["-W", "localhost:1", BOX]).await;
    assert_eq!(told(&output).0, Some(255), "{output:?}");
}
