//! Sandboxes entered by OpenSSH's own clients, through the daemon's SSH door. None of them has a network, an sshd, or
//! anything but busybox in it.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Daemon, PLAIN, SMALL_POOL, eventually, process_with, text};

/// A daemon with a sandbox `box`, and a user's home that knows of it.
struct World {
    daemon: Daemon,
}

/// `None`, loudly, where the machine lacks busybox or one of the programs.
fn world(programs: &[&str], files: &[(&str, u32, &[u8])]) -> Option<World> {
    if !std::path::Path::new("/bin/busybox").exists() {
        println!("SKIP: no /bin/busybox (Debian's busybox-static)");
        return None;
    }
    for program in ["ssh"].iter().chain(programs) {
        if path_of(program).is_none() {
            println!("SKIP: no {program} on this machine");
            return None;
        }
    }
    let daemon = Daemon::with_busybox_and(files);
    daemon.sandbox("box", &["--network", "no-network"]);
    let world = World { daemon };
    let config = world.berth(&["ssh-config", "box"]).output().unwrap();
    assert!(config.status.success(), "{config:?}");
    std::fs::write(world.path("config"), config.stdout).unwrap();
    Some(world)
}

fn path_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

impl World {
    fn path(&self, name: &str) -> String {
        self.daemon.path().join(name).to_str().unwrap().to_owned()
    }

    /// `berth`, with nothing of the home of whoever runs the tests.
    fn berth(&self, args: &[&str]) -> Command {
        let mut command = self.daemon.command(args);
        command.env("HOME", self.daemon.path()).env("XDG_CACHE_HOME", self.daemon.path().join("cache"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What `berth ssh box -- WORDS` comes to.
    fn ssh(&self, words: &[&str]) -> Output {
        let mut all = vec!["ssh", "box", "--"];
        all.extend(words);
        self.berth(&all).output().unwrap()
    }

    /// One of OpenSSH's programs, or one that uses `ssh`, with the block of `berth ssh-config`.
    fn by_config(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["-F", &self.path("config")]).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[track_caller]
    fn sh(&self, line: &str) -> String {
        let (code, out, err) = self.daemon.sh("box", line);
        assert_eq!((code, err.as_str()), (0, ""), "{line}");
        out
    }
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Ended with the test, whatever happens.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_command_is_itself_in_all_that_it_says() {
    let Some(world) = world(&[], &[]) else { return };
    let output = world.ssh(&["echo out; echo err >&2; exit 3"]);
    assert_eq!(told(&output), (Some(3), "out\n".into(), "err\n".into()));
    for code in [0, 1, 2, 126, 127, 128, 254, 255] {
        assert_eq!(world.ssh(&[&format!("exit {code}")]).status.code(), Some(code));
    }
    // After signal n, 128 + n.
    assert_eq!(world.ssh(&["kill -9 $$"]).status.code(), Some(137));
    // Stdin, all of it, and its end.
    let data = pattern(3 << 20);
    let mut ssh = world.berth(&["ssh", "box", "--", "cat; echo end >&2"]);
    let mut ssh = ssh.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = ssh.stdin.take().unwrap();
    let copy = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
    let output = ssh.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), "end\n".into()));
    assert!(output.stdout == data, "{} bytes came back", output.stdout.len());
    // It is an exec like any other.
    let (_, execs) = world.daemon.json("GET", "/v1/sandboxes/box/execs", &Value::Null);
    assert_eq!(execs["items"][0]["status"]["exit_code"], 3, "{execs}");
}

/// Slow, and so by itself: each is a connection of its own.
#[test]
fn each_exit_code_arrives() {
    let Some(world) = world(&[], &[]) else { return };
    // One connection for all, by a master.
    let control = format!("ControlPath={}", world.path("c"));
    let _master = Ended(world.by_config("ssh", &["-o", &control, "-M", "-N", "box"]).spawn().unwrap());
    eventually("a master connection", || std::path::Path::new(&world.path("c")).exists());
    for code in 0..=255 {
        let output = world.by_config("ssh", &["-o", &control, "box", &format!("exit {code}")]).output();
        assert_eq!(output.unwrap().status.code(), Some(code));
    }
}

#[test]
fn a_terminal_and_a_login_shell() {
    let Some(world) = world(&[], &[]) else { return };
    let output = world.ssh(&["-tt", "tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM"]);
    let (code, out, _) = told(&output);
    assert_eq!(code, Some(0), "{output:?}");
    assert!(out.starts_with("/dev/pts/") && out.contains("all\r\n"), "{out}");
    let mut shell = world.berth(&["ssh", "box", "--", "-tt"]);
    let mut shell = shell.stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(b"echo $((6 * 7)); exit 5\n").unwrap();
    let (code, out, _) = told(&shell.wait_with_output().unwrap());
    assert_eq!(code, Some(5));
    assert!(out.contains("42"), "{out}");
}

#[test]
fn a_user_of_ones_choice() {
    let Some(world) = world(&[], &[]) else { return };
    let id = |user: &str| {
        let output = world.berth(&["ssh", "--user", user, "box", "--", "id -u"]).output().unwrap();
        told(&output)
    };
    assert_eq!(id("alice"), (Some(0), "1000\n".into(), String::new()));
    assert_eq!(id("0"), (Some(0), "0\n".into(), String::new()));
    let (code, out, err) = id("nobody-there");
    // As of any command that could not be run.
    assert_eq!((code, out.as_str()), (Some(126), ""));
    assert!(err.contains("berth: ") && err.contains("nobody-there"), "{err}");
    let output = world.by_config("ssh", &["-l", "box+alice", "box", "id -un"]).output().unwrap();
    assert_eq!(told(&output).1, "alice\n");
}

#[test]
fn what_is_not_there_has_no_exit_code() {
    let Some(world) = world(&[], &[]) else { return };
    let output = world.berth(&["ssh", "nowhere", "--", "true"]).output().unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, Some(125), "{err}");
    assert!(err.contains("nowhere"), "{err}");
    // A client that is not Berth's asks the door.
    let output = world.by_config("ssh", &["-l", "nowhere", "box", "true"]).output().unwrap();
    let (code, out, err) = told(&output);
    assert_eq!((code, out.as_str()), (Some(255), ""));
    assert!(err.contains("berth: ") && err.contains("nowhere"), "{err}");
    // Nor does it make one up for a sandbox that goes meanwhile.
    world.daemon.sandbox("gone", &["--network", "no-network"]);
    let mut ssh = Ended(world.berth(&["ssh", "gone", "--", "echo up; sleep 600"]).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(ssh.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    world.daemon.ok(&["sandbox", "rm", "gone"]);
    assert_eq!(ssh.0.wait().unwrap().code(), Some(255));
}

#[test]
fn a_client_that_is_killed_takes_its_command_along() {
    let Some(world) = world(&[], &[]) else { return };
    let mut ssh = Ended(world.berth(&["ssh", "box", "--", "echo up; sleep 64713"]).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(ssh.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(world.sh("ps").contains("sleep 64713"));
    drop(ssh);
    eventually("the end of a command whose client is gone", || !world.sh("ps").contains("sleep 64713"));
}

fn make_tree(world: &World) -> PathBuf {
    let tree = PathBuf::from(world.path("tree"));
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("a file"), pattern(3 << 20)).unwrap();
    std::fs::write(tree.join("sub/empty"), b"").unwrap();
    std::fs::write(tree.join("sub/script"), b"#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("sub/script"), PermissionsExt::from_mode(0o750)).unwrap();
    tree
}

#[track_caller]
fn assert_is_tree(back: &str) {
    let at = |name: &str| std::path::Path::new(back).join(name);
    assert!(std::fs::read(at("a file")).unwrap() == pattern(3 << 20), "another file came back");
    assert_eq!(std::fs::read(at("sub/empty")).unwrap(), b"");
    assert_eq!(std::fs::read(at("sub/script")).unwrap(), b"#!/bin/sh\n");
    assert_eq!(at("sub/script").metadata().unwrap().permissions().mode() & 0o777, 0o750);
}

#[test]
fn scp_both_ways() {
    let Some(world) = world(&["scp"], &[]) else { return };
    let tree = make_tree(&world);
    let back = world.path("back");
    let into = ["-s", "-rp", tree.to_str().unwrap(), "box:/tmp/there"];
    let from = ["-s", "-rp", "box:/tmp/there", &back];
    for words in [&into[..], &from] {
        let output = world.by_config("scp", words).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    assert_is_tree(&back);
    let output = world.by_config("scp", &["-s", "box:/tmp/nothing", &back]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn sftp_puts_gets_and_lists() {
    let Some(world) = world(&["sftp"], &[]) else { return };
    let tree = make_tree(&world);
    let back = world.path("back");
    std::fs::create_dir(&back).unwrap();
    let batch = world.path("batch");
    let lines = format!(
        "mkdir /tmp/there\nput -pr {} /tmp/there\nls /tmp/there/tree/sub\nget -pr /tmp/there/tree {back}\n\
         rename /tmp/there/tree/sub/empty /tmp/there/moved\nrm /tmp/there/tree/sub/script\n",
        tree.display()
    );
    std::fs::write(&batch, lines).unwrap();
    let output = world.by_config("sftp", &["-b", &batch, "box"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("sub/script"), "{output:?}");
    assert_is_tree(&format!("{back}/tree"));
    assert_eq!(
        world.sh("ls /tmp/there /tmp/there/tree/sub"),
        "/tmp/there:\nmoved\ntree\n\n/tmp/there/tree/sub:\n"
    );
    // As a user who may not.
    std::fs::write(&batch, "rm /etc/passwd\n").unwrap();
    let output = world.by_config("sftp", &["-b", &batch, "box+alice@box"]).output().unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert!(text(&output.stderr).to_lowercase().contains("permission denied"), "{output:?}");
}

/// The machine's rsync and the libraries that it needs, to be put into an image.
fn rsync_files() -> Option<Vec<(String, Vec<u8>)>> {
    let program = path_of("rsync")?;
    let listed = Command::new("ldd").arg(&program).output().ok()?;
    let listed = text(&listed.stdout);
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut files = vec![("usr/bin/rsync".to_owned(), std::fs::read(&program).ok()?)];
    for library in libraries {
        let name = library.rsplit('/').next().unwrap();
        // The loader has its path in the program, and looks for the others in some places.
        let at = if name.starts_with("ld-") {
            library.trim_start_matches('/').to_owned()
        } else {
            format!("lib/{name}")
        };
        files.push((at, std::fs::read(library).ok()?));
    }
    Some(files)
}

#[test]
fn rsync_both_ways() {
    let Some(files) = rsync_files() else {
        println!("SKIP: no rsync (or no ldd) on this machine");
        return;
    };
    let files: Vec<_> = files.iter().map(|(path, content)| (path.as_str(), 0o755, &content[..])).collect();
    let Some(world) = world(&[], &files) else { return };
    let tree = make_tree(&world);
    let back = world.path("back");
    let shell = format!("ssh -F {}", world.path("config"));
    let into = format!("{}/", tree.display());
    for (from, to) in [(into.as_str(), "box:/tmp/there/"), ("box:/tmp/there/", &back)] {
        let output = Command::new("rsync").args(["-a", "-e", &shell, from, to]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    assert_is_tree(&back);
}

/// A connection to a port on which something will listen soon.
fn reach(port: u16) -> TcpStream {
    let mut stream = None;
    eventually("somebody listens", || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        stream.is_some()
    });
    let stream = stream.unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

fn page(mut stream: TcpStream) -> String {
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn ports_inside_are_reached_where_there_is_no_network() {
    let Some(world) = world(&[], &[]) else { return };
    world.sh("mkdir /tmp/www; echo 'from inside' > /tmp/www/page; httpd -p 127.0.0.1:8080 -h /tmp/www");
    let (local, dead, socks) = (free_port(), free_port(), free_port());
    let forwards = [
        format!("-L127.0.0.1:{local}:localhost:8080"),
        format!("-L127.0.0.1:{dead}:localhost:1"),
        format!("-D127.0.0.1:{socks}"),
    ];
    let mut words = vec!["ssh", "box", "--", "-N"];
    words.extend(forwards.iter().map(String::as_str));
    let _ssh = Ended(world.berth(&words).spawn().unwrap());
    assert!(page(reach(local)).ends_with("from inside\n"));
    // Nobody listens there; the others live on.
    assert_eq!(reach(dead).read(&mut [0]).unwrap_or(0), 0);
    // SOCKS 5: no authentication, then connect to a name.
    let mut stream = reach(socks);
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).unwrap();
    let mut connect = vec![5, 1, 0, 3, 9];
    connect.extend_from_slice(b"localhost");
    connect.extend_from_slice(&8080_u16.to_be_bytes());
    stream.write_all(&connect).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[1], 0, "{answer:?}");
    assert!(page(stream).ends_with("from inside\n"));
    // Not the other way round: a sandbox reaches nothing of its client.
    let output = world.ssh(&["-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:1", "true"]);
    assert_eq!(output.status.code(), Some(255), "{output:?}");
}

#[test]
fn keys_decide_who_comes_in() {
    let Some(world) = world(&["ssh-keygen"], &[]) else { return };
    let key = world.path("id");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", &key]).output();
    assert!(made.unwrap().status.success());
    let enter = || world.berth(&["ssh", "--identity", &key, "box", "--", "echo in"]).output().unwrap();
    let is_kept_out = |output: &Output| {
        let (code, out, err) = told(output);
        code == Some(255) && out.is_empty() && err.contains("Permission denied (publickey)")
    };
    assert!(is_kept_out(&enter()), "{:?}", enter());

    let fingerprint = world.daemon.ok(&["ssh-key", "add", &format!("{key}.pub")]);
    assert!(fingerprint.starts_with("SHA256:"), "{fingerprint}");
    assert_eq!(told(&enter()), (Some(0), "in\n".into(), String::new()));
    let listed = world.daemon.ok(&["ssh-key", "ls"]);
    assert!(listed.contains(&fingerprint) && listed.contains("the owner of this machine"), "{listed}");

    // Who is in stays in, who comes later does not get in.
    let mut inside = world.berth(&["ssh", "--identity", &key, "box", "--", "echo up; cat"]);
    let mut inside = Ended(inside.stdin(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(inside.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    world.daemon.ok(&["ssh-key", "rm", &fingerprint]);
    assert!(is_kept_out(&enter()), "{:?}", enter());
    inside.0.stdin.take().unwrap().write_all(b"still here\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "still here");
    assert_eq!(world.daemon.fails(&["ssh-key", "rm", &fingerprint]).0, 66);

    // Without the daemon's own key there is no way in by itself, and that is said.
    let owners = world.daemon.json("GET", "/v1/ssh/keys", &Value::Null).1["items"][0].clone();
    world.daemon.ok(&["ssh-key", "rm", owners["fingerprint"].as_str().unwrap()]);
    let (code, _, err) = told(&world.ssh(&["true"]));
    assert_eq!(code, Some(125), "{err}");
    assert!(err.contains("--identity"), "{err}");
}

#[test]
fn what_is_no_key_is_told_what_it_is() {
    let Some(world) = world(&[], &[]) else { return };
    let add = |key: &str| world.daemon.json("POST", "/v1/ssh/keys", &json!({ "key": key }));
    for (key, why) in [
        ("hello", "no public key"),
        ("", "0 lines"),
        ("a\nb", "2 lines"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key"),
    ] {
        let (status, answer) = add(key);
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("bad_ssh_key")), "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(why), "{answer}");
    }
    let (status, answer) = world.daemon.json("POST", "/v1/ssh/keys", &json!({ "kee": "x" }));
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("bad_body")), "{answer}");
    let (status, answer) = world.daemon.json("DELETE", "/v1/ssh/keys/SHA256%3Ano%2Fsuch", &Value::Null);
    assert_eq!((status, answer["error"]["code"].as_str()), (404, Some("ssh_key_not_found")), "{answer}");
    // A list that is not understood lets nobody in, and the API says which line of it is wrong.
    let list = world.daemon.path().join("data/ssh/authorized_keys");
    std::fs::write(&list, "rubbish\n").unwrap();
    let (status, answer) = world.daemon.json("GET", "/v1/ssh/keys", &Value::Null);
    assert_eq!((status, answer["error"]["code"].as_str()), (412, Some("ssh_keys_unusable")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("line 1"), "{answer}");
    assert_eq!(world.by_config("ssh", &["box", "true"]).output().unwrap().status.code(), Some(255));
}

/// Ports on which a process of this machine's own network listens.
fn listens(daemon: &Daemon) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let sockets: Vec<String> = fds
        .flatten()
        .filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.to_str()?.to_owned()))
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let tables =
        ["tcp", "tcp6"].map(|name| std::fs::read_to_string(format!("/proc/{}/net/{name}", daemon.pid())));
    tables.into_iter().flatten().any(|table| {
        table.lines().skip(1).any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            // State 0A is listening.
            words[3] == "0A" && sockets.iter().any(|inode| inode == words[9])
        })
    })
}

#[test]
fn the_door_opens_when_it_is_asked_for() {
    require_busybox!();
    let daemon = Daemon::start();
    assert!(!listens(&daemon), "a port that nobody asked for");
    let (status, door) = daemon.json("GET", "/v1/ssh", &Value::Null);
    assert_eq!(status, 200, "{door}");
    let address = door["address"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(listens(&daemon));
    let line = door["host_key"].as_str().unwrap();
    let port = address.rsplit(':').next().unwrap();
    assert!(line.starts_with(&format!("[127.0.0.1]:{port} ssh-ed25519 AAAA")), "{line}");
    // Once opened it is where it is.
    assert_eq!(daemon.json("GET", "/v1/ssh", &Value::Null).1, door);
    let key = door["client_key_path"].as_str().unwrap();
    assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn the_configuration_says_where_and_whether() {
    require_busybox!();
    let port = free_port();
    let mut daemon = Daemon::configured(&format!("{SMALL_POOL}[ssh]\nlisten = \"127.0.0.1:{port}\"\n"));
    let mut greeting = [0; 14];
    reach(port).read_exact(&mut greeting).unwrap();
    assert_eq!(text(&greeting), "SSH-2.0-Berth_");
    let key = daemon.json("GET", "/v1/ssh", &Value::Null).1["host_key"].clone();
    assert!(daemon.terminate().success());
    // The same key after a new start, or clients would take it for somebody else.
    daemon.restart(&[]);
    assert_eq!(daemon.json("GET", "/v1/ssh", &Value::Null).1["host_key"], key);

    let daemon = Daemon::configured(&format!("{SMALL_POOL}[ssh]\nenabled = false\n"));
    for (method, path, body) in
        [("GET", "/v1/ssh", Value::Null), ("POST", "/v1/ssh/keys", json!({ "key": "ssh-ed25519 AAAA" }))]
    {
        let (status, answer) = daemon.json(method, path, &body);
        assert_eq!((status, answer["error"]["code"].as_str()), (412, Some("ssh_disabled")), "{answer}");
    }
    assert!(!listens(&daemon));
}

#[test]
fn a_daemon_that_cannot_listen_where_it_is_told_does_not_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = tempfile::Builder::new().prefix("berth-e2e-").tempdir_in(support::test_root()).unwrap();
    let (config, socket) = (dir.path().join("berth.toml"), dir.path().join("berth.sock"));
    std::fs::write(&config, format!("{PLAIN}[ssh]\nlisten = \"{address}\"\n")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["serve", "--host", &format!("unix://{}", socket.display()), "--data-dir"])
        .arg(dir.path().join("data"))
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, Some(78), "{err}");
    let why = format!("cannot open the SSH door: listen for SSH on {address}: Address already in use");
    assert!(err.contains(&why), "{err}");
    assert!(!socket.exists(), "a socket on which nobody answers");
}

#[test]
fn the_block_of_config_outlives_the_daemon() {
    let Some(mut world) = world(&[], &[]) else { return };
    assert!(world.daemon.terminate().success());
    world.daemon.restart(&[]);
    world.daemon.sandbox("box", &["--network", "no-network"]);
    // Another port by now, and not even open.
    let output = world.by_config("ssh", &["box", "echo in"]).output().unwrap();
    assert_eq!(told(&output), (Some(0), "in\n".into(), String::new()));
}

#[test]
fn a_daemon_does_not_end_for_want_of_work_while_somebody_is_in() {
    let Some(mut world) = world(&[], &[]) else { return };
    assert!(world.daemon.terminate().success());
    world.daemon.restart(&["--idle-exit", "1"]);
    // Nothing runs for it: the connection is all that there is.
    let mut ssh = world.by_config("ssh", &["-v", "-N", "box"]);
    let mut ssh = Ended(ssh.spawn().unwrap());
    let mut lines = BufReader::new(ssh.0.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("Authenticated to")));
    std::thread::sleep(Duration::from_secs(4));
    assert!(world.daemon.socket().exists(), "{}", world.daemon.log());
    drop(ssh);
    let pid = world.daemon.pid();
    let ended = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z')
    };
    eventually("the end of an idle daemon", ended);
    assert!(world.daemon.terminate().success());
}

#[test]
fn the_daemons_end_ends_its_clients() {
    let Some(mut world) = world(&[], &[]) else { return };
    let mut ssh = Ended(world.berth(&["ssh", "box", "--", "echo up; sleep 64714"]).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(ssh.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(process_with("64714"));
    assert!(world.daemon.terminate().success());
    assert_eq!(ssh.0.wait().unwrap().code(), Some(255));
}

#[test]
fn what_a_client_lacks_is_said() {
    let Some(world) = world(&[], &[]) else { return };
    let missing = world.path("no-such-key");
    let (code, _, err) = told(&world.berth(&["ssh", "--identity", &missing, "box"]).output().unwrap());
    assert_eq!(code, Some(125), "{err}");
    assert!(err.contains("no-such-key") && err.contains("berth ssh-key add"), "{err}");
    let (code, _, err) = told(&world.berth(&["ssh", "box"]).env("PATH", "/nonexistent").output().unwrap());
    assert_eq!(code, Some(125), "{err}");
    assert!(err.contains("cannot start ssh") && err.contains("openssh-client"), "{err}");
    let (code, _, err) = told(&world.berth(&["ssh-key", "add", &missing]).output().unwrap());
    assert_eq!(code, Some(66), "{err}");
    // What its owner set for all hosts is not in the way.
    let own = "Host *\n  User somebody\n  ProxyJump bastion\n  StrictHostKeyChecking no\n";
    std::fs::write(world.path("own"), own).unwrap();
    assert_eq!(
        told(&world.ssh(&["-F", &world.path("own"), "echo in"])),
        (Some(0), "in\n".into(), String::new())
    );
}
