//! The guest's SFTP server, through OpenSSH's own client, and at its pipes.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const GUEST: &str = env!("CARGO_BIN_EXE_berth-guest");

/// A directory on this side and one on the server's, and the client between them.
struct Client {
    dir: tempfile::TempDir,
}

impl Client {
    /// `None`, said out loud, where there is no client.
    fn new() -> Option<Self> {
        if Command::new("sftp").arg("-?").stderr(Stdio::null()).status().is_err() {
            println!("SKIP: OpenSSH's sftp is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("here")).unwrap();
        std::fs::create_dir(dir.path().join("there")).unwrap();
        Some(Self { dir })
    }

    fn here(&self, name: &str) -> PathBuf {
        self.dir.path().join("here").join(name)
    }

    fn there(&self, name: &str) -> PathBuf {
        self.dir.path().join("there").join(name)
    }

    /// Runs `commands` in a session of its own, which ends at the first that fails.
    fn run(&self, commands: &str) -> Output {
        let mut client = Command::new("sftp");
        client.args(["-q", "-b", "-", "-D"]).arg(format!("{GUEST} --builtin=sftp"));
        client.current_dir(self.dir.path().join("here")).env("HOME", self.dir.path().join("there"));
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().unwrap();
        let there = self.dir.path().join("there");
        let commands = format!("cd {}\n{commands}\n", there.display());
        client.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        client.wait_with_output().unwrap()
    }

    /// What the client showed of commands that all succeed.
    fn ok(&self, commands: &str) -> String {
        let output = self.run(commands);
        let shown = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{shown}");
        shown
    }

    /// What the client says of a command that fails.
    fn fails(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(!output.status.success(), "{command}: {}", text(&output.stdout));
        text(&output.stderr)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes that are not the same anywhere.
fn bytes(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| step()).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_come_and_go_unchanged_whatever_their_size() {
    let Some(client) = Client::new() else { return };
    for (name, len) in [("empty", 0), ("one", 1), ("block", 32 * 1024), ("big", 20_000_001)] {
        std::fs::write(client.here(name), bytes(len)).unwrap();
        std::fs::set_permissions(client.here(name), PermissionsExt::from_mode(0o640)).unwrap();
        client.ok(&format!("put -p {name} {name}\nget -p {name} back"));
        assert!(std::fs::read(client.there(name)).unwrap() == bytes(len), "{name}");
        assert!(std::fs::read(client.here("back")).unwrap() == bytes(len), "{name}");
        assert_eq!((mode(&client.there(name)), mode(&client.here("back"))), (0o640, 0o640));
        let times = [client.here(name), client.there(name)].map(|path| path.metadata().unwrap().mtime());
        assert_eq!(times[0], times[1]);
    }
}

#[test]
fn a_cut_off_transfer_goes_on_where_it_stopped() {
    let Some(client) = Client::new() else { return };
    let whole = bytes(3_000_000);
    std::fs::write(client.here("up"), &whole).unwrap();
    std::fs::write(client.there("up"), &whole[..1_234_567]).unwrap();
    std::fs::write(client.there("down"), &whole).unwrap();
    std::fs::write(client.here("down"), &whole[..765_432]).unwrap();
    client.ok("reput up\nreget down");
    assert!(std::fs::read(client.there("up")).unwrap() == whole);
    assert!(std::fs::read(client.here("down")).unwrap() == whole);
}

#[test]
fn whole_trees_come_and_go() {
    let Some(client) = Client::new() else { return };
    for name in ["tree/a/b", "tree/empty"] {
        std::fs::create_dir_all(client.here(name)).unwrap();
    }
    for (name, len) in [("tree/file", 10), ("tree/a/b/deep", 100_000), ("tree/a/with space", 3)] {
        std::fs::write(client.here(name), bytes(len)).unwrap();
    }
    client.ok("put -r tree\nget -r tree back");
    for name in ["file", "a/b/deep", "a/with space"] {
        let original = std::fs::read(client.here("tree").join(name)).unwrap();
        assert!(std::fs::read(client.there("tree").join(name)).unwrap() == original);
        assert!(std::fs::read(client.here("back").join(name)).unwrap() == original);
    }
    assert!(client.here("back/empty").is_dir());
}

#[test]
fn names_links_and_modes_are_as_the_client_wants_them() {
    let Some(client) = Client::new() else { return };
    std::fs::write(client.there("file"), "text").unwrap();
    client
        .ok("mkdir dir\nrename file dir/moved\nsymlink moved dir/link\nln dir/moved hard\nchmod 4711 hard\n\
         mkdir gone\nrmdir gone\nsymlink x rubbish\nrm rubbish");
    assert_eq!(std::fs::read_link(client.there("dir/link")).unwrap(), Path::new("moved"));
    assert_eq!(std::fs::read(client.there("dir/link")).unwrap(), b"text");
    assert_eq!(
        (mode(&client.there("dir/moved")), client.there("hard").metadata().unwrap().nlink()),
        (0o4711, 2)
    );
    assert!(!client.there("gone").exists() && client.there("rubbish").symlink_metadata().is_err());
    if rustix::process::geteuid().is_root() {
        client.ok("chown 4242 hard\nchgrp 4243 hard");
        let stat = client.there("hard").metadata().unwrap();
        assert_eq!((stat.uid(), stat.gid()), (4242, 4243));
    }
}

#[test]
fn listings_show_what_there_is() {
    let Some(client) = Client::new() else { return };
    std::fs::write(client.there("plain"), "12345").unwrap();
    std::fs::write(client.there(".hidden"), "").unwrap();
    std::fs::create_dir(client.there("dir")).unwrap();
    let shown = client.ok("ls -1a\nls -l\npwd\ndf\ndf -i");
    for name in ["plain", ".hidden", "dir", "%Capacity"] {
        assert!(shown.contains(name), "{shown}");
    }
    let plain = shown.lines().find(|line| line.starts_with('-') && line.ends_with(" plain"));
    assert!(plain.is_some_and(|line| line.contains("     5 ")), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("drwxr-xr-x") && line.ends_with(" dir")), "{shown}");
    assert!(
        shown.contains(
            format!("Remote working directory: {}", client.there("").display()).trim_end_matches('/')
        )
    );
}

#[test]
fn what_does_not_work_is_said() {
    let Some(client) = Client::new() else { return };
    std::fs::create_dir(client.there("full")).unwrap();
    std::fs::write(client.there("full/file"), "").unwrap();
    std::fs::write(client.there("taken"), "old").unwrap();
    std::fs::write(client.here("new"), "new").unwrap();
    assert!(client.fails("get nothing").contains("not found"));
    assert!(client.fails("cd taken").contains("not a directory"));
    client.fails("rmdir full");
    client.fails("mkdir full");
    client.fails("put new full/file/below");
    assert_eq!(std::fs::read(client.there("taken")).unwrap(), b"old");
}

#[test]
fn the_kernel_decides_what_a_user_may() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: needs root");
        return;
    }
    let Some(client) = Client::new() else { return };
    std::fs::set_permissions(client.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(client.there("secret"), "").unwrap();
    std::fs::set_permissions(client.there("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    // Its executable may lie where nobody else gets.
    let guest = client.dir.path().join("guest");
    std::fs::copy(GUEST, &guest).unwrap();
    let script = format!("{} --builtin=sftp", guest.display());
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script]);
    let Ok(mut server) = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        println!("SKIP: no setpriv");
        return;
    };
    let path = client.there("secret").to_str().unwrap().to_owned();
    let mut requests = vec![0, 0, 0, 5, 1, 0, 0, 0, 3];
    let open_len = 1 + 4 + 4 + path.len() + 4 + 4;
    requests.extend((open_len as u32).to_be_bytes());
    requests.extend([3, 0, 0, 0, 9]);
    requests.extend((path.len() as u32).to_be_bytes());
    requests.extend(path.as_bytes());
    requests.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    server.stdin.take().unwrap().write_all(&requests).unwrap();
    let mut answers = Vec::new();
    server.stdout.take().unwrap().read_to_end(&mut answers).unwrap();
    assert!(server.wait().unwrap().success());
    let greeting = u32::from_be_bytes(answers[..4].try_into().unwrap()) as usize + 4;
    // A status, to request 9, of "permission denied".
    assert_eq!(answers[greeting + 4..greeting + 13], [101, 0, 0, 0, 9, 0, 0, 0, 3]);
}

#[test]
fn a_broken_client_ends_the_session_with_an_error() {
    let mut server = Command::new(GUEST);
    server.arg("--builtin=sftp").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut server = server.spawn().unwrap();
    server.stdin.take().unwrap().write_all(&[255; 100]).unwrap();
    let output = server.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("packet of 4294967295 bytes"), "{}", text(&output.stderr));
}
