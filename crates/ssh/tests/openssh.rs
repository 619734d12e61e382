//! OpenSSH's own clients, through the door. Behind it are processes of this machine in place of a sandbox's.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod world;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate, load_secret_key};
use russh::{ChannelMsg, Sig};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use world::{World, sftp_server};

macro_rules! world {
    ($($program:literal),*) => {
        match World::with(&[$($program),*]) {
            Some(world) => world,
            None => return,
        }
    };
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Ended with the test, whatever happens.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let stdout = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    text(&line).trim().to_owned()
}

#[test]
fn a_command_has_its_own_streams_and_its_exit_code() {
    let world = world!();
    assert_eq!(told(&world.run("echo out; echo err >&2; exit 3")), (Some(3), "out\n".into(), "err\n".into()));
    assert_eq!(told(&world.run("true")).0, Some(0));
    assert_eq!(told(&world.run("exit 255")).0, Some(255));
    // After signal n, 128 + n.
    for signal in [9, 15, 31] {
        assert_eq!(told(&world.run(&format!("kill -{signal} $$"))).0, Some(128 + signal));
    }
}

#[test]
fn input_and_output_arrive_whole() {
    let world = world!();
    let data = pattern(20 << 20);
    // The second time with new keys for every megabyte.
    for options in [&[][..], &["-o", "RekeyLimit=1M"]] {
        let mut ssh =
            world.ssh("box", options, &["cat; echo end >&2"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = ssh.stdin.take().unwrap();
        let copy = data.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
        let output = ssh.wait_with_output().unwrap();
        writer.join().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), "end\n".into()), "{options:?}");
        assert!(output.stdout == data, "{} bytes came back, {options:?}", output.stdout.len());
    }
}

#[test]
fn a_client_that_writes_more_than_it_reads_is_not_the_end_of_both() {
    let world = world!();
    // Much more than all windows, queues and pipes on the way together.
    let data = pattern(48 << 20);
    let mut ssh = Ended(world.ssh("box", &[], &["cat"]).stdin(Stdio::piped()).spawn().unwrap());
    let mut stdin = ssh.0.stdin.take().unwrap();
    let copy = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy).is_ok());
    std::thread::sleep(Duration::from_secs(2));
    assert!(!writer.is_finished(), "all was taken though nobody read");
    let mut read = Vec::new();
    ssh.0.stdout.take().unwrap().read_to_end(&mut read).unwrap();
    assert!(writer.join().unwrap());
    assert!(read == data, "{} bytes came back", read.len());
    assert_eq!(ssh.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_command_that_does_not_read_holds_up_no_other_channel() {
    let world = world!();
    let control = format!("ControlPath={}", world.path("c"));
    let mut master = world.ssh("box", &["-o", &control, "-M", "-N"], &[]);
    let _master = Ended(master.spawn().unwrap());
    eventually("no master connection", || Path::new(&world.path("c")).exists());
    let through = ["-o", &control];
    let mut stuck = world.ssh("box", &through, &["echo up; sleep 600"]);
    let mut stuck = Ended(stuck.stdin(Stdio::piped()).spawn().unwrap());
    let mut stdin = stuck.0.stdin.take().unwrap();
    assert_eq!(first_line(&mut stuck.0), "up");
    let writer = std::thread::spawn(move || stdin.write_all(&vec![7; 56 << 20]).is_ok());
    std::thread::sleep(Duration::from_secs(1));
    let output = world.ssh("box", &through, &["echo quick"]).output().unwrap();
    assert_eq!(told(&output), (Some(0), "quick\n".into(), String::new()));
    assert!(!writer.is_finished(), "what nobody reads was taken");
    // The other one's input arrives too, whatever more of the first one's is taken beside it.
    let data = pattern(8 << 20);
    let mut other = world.ssh("box", &through, &["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = other.stdin.take().unwrap();
    let copy = data.clone();
    let other_writer = std::thread::spawn(move || input.write_all(&copy).unwrap());
    let output = other.wait_with_output().unwrap();
    other_writer.join().unwrap();
    assert!(output.stdout == data, "{} bytes came back", output.stdout.len());
    drop(stuck);
    writer.join().unwrap();
}

#[test]
fn many_channels_at_once() {
    let world = world!();
    let control = format!("ControlPath={}", world.path("c"));
    let _master = Ended(world.ssh("box", &["-o", &control, "-M", "-N"], &[]).spawn().unwrap());
    eventually("no master connection", || Path::new(&world.path("c")).exists());
    let sessions: Vec<_> = (0..40)
        .map(|number| {
            let line = format!("sleep 0.3; echo {number}; exit {number}");
            world.ssh("box", &["-o", &control], &[&line]).spawn().unwrap()
        })
        .collect();
    for (number, session) in (0..).zip(sessions) {
        let output = session.wait_with_output().unwrap();
        assert_eq!(told(&output), (Some(number), format!("{number}\n"), String::new()));
    }
}

#[test]
fn who_has_no_key_stays_out() {
    let world = world!();
    let key = world.keys.authorized().unwrap().pop().unwrap();
    assert!(world.keys.remove(&key.fingerprint).unwrap());
    let (code, _, said) = told(&world.run("echo in"));
    assert_eq!(code, Some(255));
    assert!(said.contains("Permission denied (publickey)"), "{said}");
    assert!(world.here.requests().is_empty());
}

#[test]
fn what_is_not_there_is_said_and_has_no_exit_code() {
    let world = world!();
    let output = world.ssh("nowhere", &[], &["true"]).output().unwrap();
    assert_eq!(told(&output), (Some(255), String::new(), "berth: there is no sandbox \"nowhere\"\n".into()));
    let output =
        world.ssh("box", &["-R", "0:localhost:1", "-o", "ExitOnForwardFailure=yes"], &["true"]).output();
    let (code, _, said) = told(&output.unwrap());
    assert_eq!(code, Some(255));
    assert!(said.contains("remote port forwarding failed"), "{said}");
    let (code, _, said) = told(&world.ssh("box", &["-s"], &["netconf"]).output().unwrap());
    assert_eq!(code, Some(255));
    assert!(said.contains("subsystem request failed"), "{said}");
}

#[test]
fn variables_and_users_are_passed_on() {
    let world = world!();
    let output =
        world.ssh("box+alice", &["-o", "SetEnv=GREETING=hello"], &["echo $GREETING"]).output().unwrap();
    assert_eq!(told(&output).1, "hello\n");
    let requests = world.here.requests();
    assert_eq!(requests[0].user.as_deref(), Some("alice"));
}

#[test]
fn a_terminal_has_a_size_and_a_shell_in_it() {
    let world = world!();
    let mut ssh = world.ssh("box", &["-tt"], &["stty size; tty; echo $TERM"]);
    let output = ssh.env("TERM", "vt100").output().unwrap();
    let (code, out, _) = told(&output);
    let lines: Vec<_> = out.lines().map(str::trim).collect();
    assert_eq!(code, Some(0), "{out}");
    assert_eq!((lines[0], lines[2]), ("24 80", "vt100"), "{out}");
    assert!(lines[1].starts_with("/dev/pts/"), "{out}");
    // Without a command: the login shell.
    let mut shell = world.ssh("box", &["-tt"], &[]).stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"echo $((6 * 7)); exit 5\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stdout).contains("42"), "{}", text(&output.stdout));
}

#[test]
fn the_size_of_the_clients_terminal_goes_along() {
    let world = world!();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let resize = |rows, cols| {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
    };
    resize(30, 100);
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let terminal = || fs::File::options().read(true).write(true).open(&path).unwrap();
    // The client in a session of its own, whose terminal that is.
    let line = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done";
    let ssh = world.ssh("box", &["-t"], &[line]);
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(ssh.get_program()).args(ssh.get_args());
    command.stdin(terminal()).stdout(terminal()).stderr(terminal());
    let _ssh = Ended(command.spawn().unwrap());
    drop(command);
    let (sender, pieces) = std::sync::mpsc::channel();
    let mut reader = fs::File::from(master.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(len @ 1..) = reader.read(&mut buffer) {
            let _ = sender.send(text(&buffer[..len]));
        }
    });
    let mut seen = String::new();
    let mut until = |what: &str| {
        while !seen.contains(what) {
            let piece = pieces.recv_timeout(Duration::from_secs(30));
            seen.push_str(&piece.unwrap_or_else(|_| panic!("no {what:?} in {seen:?}")));
        }
    };
    until("30 100");
    resize(50, 132);
    until("50 132");
}

/// Takes any server for the right one: what is tried here is something else.
struct Trusting;

impl russh::client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

#[test]
fn a_client_may_send_signals_and_is_told_of_them() {
    let world = world!();
    let key = Arc::new(load_secret_key(world.keys.client().unwrap(), None).unwrap());
    let told = world.block_on(async {
        let mut client = russh::client::connect(Arc::default(), world.address, Trusting).await.unwrap();
        let key = PrivateKeyWithHashAlg::new(key, None);
        assert!(client.authenticate_publickey("box", key).await.unwrap().success());
        let mut channel = client.channel_open_session().await.unwrap();
        channel.exec(true, "echo up; exec sleep 600").await.unwrap();
        let (mut signal, mut status) = (None, None);
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { .. } => channel.signal(Sig::TERM).await.unwrap(),
                ChannelMsg::ExitSignal { signal_name, .. } => signal = Some(signal_name),
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                _ => {}
            }
        }
        (signal, status)
    });
    assert!(matches!(told, (Some(Sig::TERM), Some(143))), "{told:?}");
}

#[test]
fn a_client_that_goes_hangs_up_and_nohup_helps() {
    let world = world!();
    let mut ssh = Ended(world.ssh("box", &[], &["echo $$; exec sleep 600"]).spawn().unwrap());
    let pid = first_line(&mut ssh.0);
    assert!(is_alive(&pid));
    drop(ssh);
    eventually("a command outlives its client", || !is_alive(&pid));
    let mut ssh = Ended(world.ssh("box", &[], &["echo $$; exec nohup sleep 600"]).spawn().unwrap());
    let kept = first_line(&mut ssh.0);
    eventually("nohup does not start", || {
        fs::read_to_string(format!("/proc/{kept}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    });
    drop(ssh);
    // One more that goes, after which the first would have gone as well.
    let mut ssh = Ended(world.ssh("box", &[], &["echo $$; exec sleep 600"]).spawn().unwrap());
    let pid = first_line(&mut ssh.0);
    drop(ssh);
    eventually("a command outlives its client", || !is_alive(&pid));
    assert!(is_alive(&kept), "nohup did not help");
}

#[test]
fn the_end_of_the_door_ends_its_connections() {
    let mut world = world!();
    let mut ssh = Ended(world.ssh("box", &[], &["echo $$; exec sleep 600"]).spawn().unwrap());
    let pid = first_line(&mut ssh.0);
    world.close();
    assert_eq!(ssh.0.wait().unwrap().code(), Some(255));
    eventually("a command outlives the door", || !is_alive(&pid));
    assert!(TcpStream::connect(world.address).is_err());
}

fn transfer(program: &str, world: &World, words: &[&str]) -> Output {
    Command::new(program).args(world.options()).args(words).stdin(Stdio::null()).output().unwrap()
}

/// A small tree with something of everything.
fn make_tree(world: &World) -> String {
    let tree = world.path("tree");
    fs::create_dir_all(format!("{tree}/sub")).unwrap();
    fs::write(format!("{tree}/a file"), pattern(3 << 20)).unwrap();
    fs::write(format!("{tree}/sub/empty"), b"").unwrap();
    fs::write(format!("{tree}/sub/script"), b"#!/bin/sh\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(format!("{tree}/sub/script"), mode).unwrap();
    tree
}

fn assert_same(one: &str, other: &str) {
    let output = Command::new("diff").args(["-r", one, other]).output().unwrap();
    assert_eq!(told(&output), (Some(0), String::new(), String::new()));
}

#[test]
fn scp_both_ways_by_sftp_and_by_its_old_protocol() {
    let world = world!("scp", "diff");
    let tree = make_tree(&world);
    for (number, protocol) in ["-O", "-s"].into_iter().enumerate() {
        if protocol == "-s" && sftp_server().is_none() {
            println!("SKIP: no sftp-server on this machine to stand for the guest's");
            return;
        }
        let (there, back) = (world.path(&format!("there{number}")), world.path(&format!("back{number}")));
        let output = transfer("scp", &world, &[protocol, "-rp", &tree, &format!("box@127.0.0.1:{there}")]);
        assert_eq!(told(&output).0, Some(0), "{output:?}");
        assert_same(&tree, &there);
        let output = transfer("scp", &world, &[protocol, "-rp", &format!("box@127.0.0.1:{there}"), &back]);
        assert_eq!(told(&output).0, Some(0), "{output:?}");
        assert_same(&tree, &back);
    }
}

#[test]
fn sftp_reads_writes_and_lists() {
    let world = world!("sftp", "diff");
    if sftp_server().is_none() {
        println!("SKIP: no sftp-server on this machine to stand for the guest's");
        return;
    }
    let tree = make_tree(&world);
    let (there, back) = (world.path("there"), world.path("back"));
    let batch = world.path("batch");
    fs::create_dir(&there).unwrap();
    fs::create_dir(&back).unwrap();
    let lines = format!("put -r {tree} {there}\nls {there}/tree/sub\nget -r {there}/tree {back}\n");
    fs::write(&batch, lines).unwrap();
    let output = transfer("sftp", &world, &["-b", &batch, "box@127.0.0.1"]);
    assert_eq!(told(&output).0, Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("script"), "{output:?}");
    assert_same(&tree, &format!("{there}/tree"));
    assert_same(&tree, &format!("{back}/tree"));
}

#[test]
fn rsync_both_ways() {
    let world = world!("rsync", "diff");
    let tree = make_tree(&world);
    let (there, back) = (world.path("there"), world.path("back"));
    let shell = world.options().iter().fold("ssh".to_owned(), |line, word| format!("{line} {word}"));
    for (from, to) in [
        (format!("{tree}/"), format!("box@127.0.0.1:{there}/")),
        (format!("box@127.0.0.1:{there}/"), format!("{back}/")),
    ] {
        let output = Command::new("rsync").args(["-a", "-e", &shell, &from, &to]).output().unwrap();
        assert_eq!(told(&output).0, Some(0), "{output:?}");
    }
    assert_same(&tree, &back);
}

/// Answers each connection with what it was sent, once that has ended.
fn mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).is_ok() {
                    let _ = stream.write_all(&all);
                }
            });
        }
    });
    port
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn reach(port: u16) -> TcpStream {
    let mut stream = None;
    eventually("ssh does not listen", || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn reflected(mut stream: TcpStream, data: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    let copy = data.to_vec();
    let writing = std::thread::spawn(move || {
        writer.write_all(&copy).unwrap();
        // Only when this arrives does the answer come.
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == data, "{} bytes came back", back.len());
}

#[test]
fn ports_and_sockets_inside_are_reached() {
    let world = world!();
    let (inside, port, dead, socks) = (mirror(), free_port(), free_port(), free_port());
    let path = world.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(b"by a path\n").unwrap();
        }
    });
    let by_path = free_port();
    let forwards = [
        format!("-L127.0.0.1:{port}:localhost:{inside}"),
        format!("-L127.0.0.1:{dead}:localhost:1"),
        format!("-L127.0.0.1:{by_path}:{path}"),
        format!("-D127.0.0.1:{socks}"),
    ];
    let options: Vec<_> = forwards.iter().map(String::as_str).chain(["-N"]).collect();
    let _ssh = Ended(world.ssh("box", &options, &[]).spawn().unwrap());
    let data = pattern(5 << 20);
    reflected(reach(port), &data);
    let several: Vec<_> = (0..10)
        .map(|_| {
            let data = data.clone();
            std::thread::spawn(move || reflected(reach(port), &data))
        })
        .collect();
    several.into_iter().for_each(|thread| thread.join().unwrap());
    // Nobody listens there: the connection is closed, and the others live on.
    assert_eq!(reach(dead).read(&mut [0]).unwrap_or(0), 0);
    let mut said = String::new();
    reach(by_path).read_to_string(&mut said).unwrap();
    assert_eq!(said, "by a path\n");
    // SOCKS 5: no authentication, then connect to a name.
    let mut stream = reach(socks);
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [5, 0]);
    let mut connect = vec![5, 1, 0, 3, 9];
    connect.extend_from_slice(b"localhost");
    connect.extend_from_slice(&inside.to_be_bytes());
    stream.write_all(&connect).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[1], 0);
    reflected(stream, &data);
}

#[test]
fn a_jump_through_one_sandbox_is_a_connection_too() {
    let world = world!();
    let inside = mirror();
    let mut ssh = world.ssh("box", &["-W", &format!("localhost:{inside}")], &[]);
    let mut ssh = ssh.stdin(Stdio::piped()).spawn().unwrap();
    ssh.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(told(&ssh.wait_with_output().unwrap()), (Some(0), "through".into(), String::new()));
}
