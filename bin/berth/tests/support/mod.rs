//! A daemon of its own for every test, driven through the `berth` command as a user would.

#![allow(dead_code, reason = "each test file uses its part of this")]

pub(crate) mod builds;
pub(crate) mod registry;

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A static busybox, the smallest real userland there is.
const BUSYBOX: &str = "/bin/busybox";

/// Ends the test early, loudly, when the machine lacks something.
#[macro_export]
macro_rules! require_busybox {
    () => {
        if !std::path::Path::new("/bin/busybox").exists() {
            println!("SKIP: {}: no /bin/busybox (Debian's busybox-static)", module_path!());
            return;
        }
    };
}

/// The engine of the machine's choice, with a pool file so small that dozens of daemons fit side by side; it grows as
/// a test fills it.
pub(crate) const SMALL_POOL: &str = "[disk]\npool_size_mb = 256\nreserve_mb = 64\n";

/// For disks that have no room for a pool.
pub(crate) const PLAIN: &str = "[disk]\nengine = \"plain\"\nreserve_mb = 0\n";

pub(crate) struct Daemon {
    dir: TempDir,
    child: Option<Child>,
}

impl Daemon {
    pub(crate) fn start() -> Daemon {
        Self::configured(SMALL_POOL)
    }

    /// A daemon with a configuration file of that content.
    pub(crate) fn configured(config: &str) -> Daemon {
        let mut daemon = Self::in_new_directory(config);
        daemon.restart(&[]);
        daemon
    }

    /// The same, with the image `busybox` in its store.
    pub(crate) fn configured_with_busybox(config: &str) -> Daemon {
        let daemon = Self::configured(config);
        daemon.import_busybox(&[]);
        daemon
    }

    fn in_new_directory(config: &str) -> Daemon {
        let dir = tempfile::Builder::new().prefix("berth-e2e-").tempdir_in(test_root()).unwrap();
        std::fs::write(dir.path().join("berth.toml"), config).unwrap();
        Daemon { dir, child: None }
    }

    /// A daemon with the image `busybox` in its store.
    pub(crate) fn with_busybox() -> Daemon {
        Self::with_busybox_and(&[])
    }

    /// The same, with more files in the image: path, mode, content.
    pub(crate) fn with_busybox_and(files: &[(&str, u32, &[u8])]) -> Daemon {
        let daemon = Daemon::start();
        daemon.import_busybox(files);
        daemon
    }

    fn import_busybox(&self, files: &[(&str, u32, &[u8])]) {
        let tar = self.path().join("busybox.tar");
        std::fs::write(&tar, busybox_rootfs_and(files)).unwrap();
        self.ok(&["image", "import", tar.to_str().unwrap(), "--reference", "busybox:test"]);
    }

    /// Sends a request as it stands and does not wait for the answer.
    pub(crate) fn send(&self, method: &str, path: &str, body: &str) -> std::os::unix::net::UnixStream {
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    /// Status and body of the answer.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (status, body) = self.whole_answer(method, path, body);
        (status, text(&body))
    }

    /// The same, the body as JSON; nothing where it is empty.
    #[track_caller]
    pub(crate) fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.whole_answer(method, path, &body);
        let answer = if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer).unwrap() };
        (status, answer)
    }

    /// By a version of HTTP that knows no chunks.
    fn whole_answer(&self, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
        use std::io::Read;
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: berth\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        let status = text(&answer[..end]).split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_off(end + 4))
    }

    /// What the API says of a sandbox.
    #[track_caller]
    pub(crate) fn show(&self, sandbox: &str) -> Value {
        let (status, answer) = self.json("GET", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Runs a command, or a line where there is no `command` in the request, and gives all that the API says of it.
    #[track_caller]
    pub(crate) fn exec(&self, sandbox: &str, request: &Value) -> Outcome {
        let request = match request {
            Value::String(line) => serde_json::json!({ "command": { "shell": line } }),
            request => request.clone(),
        };
        let (status, body) =
            self.whole_answer("POST", &format!("/v1/sandboxes/{sandbox}/exec"), &request.to_string());
        assert_eq!(status, 200, "{}", text(&body));
        Outcome::parse(&body)
    }

    pub(crate) fn restart(&mut self, args: &[&str]) {
        self.restart_logging(args, "info");
    }

    /// The same, with that filter for its log.
    pub(crate) fn restart_logging(&mut self, args: &[&str], filter: &str) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.path().join("daemon.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_berth"))
            .args(["serve", "--host", &self.host(), "--data-dir"])
            .arg(self.path().join("data"))
            .arg("--config")
            .arg(self.path().join("berth.toml"))
            .args(args)
            .env("BERTH_LOG", filter)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.wait_ready();
    }

    /// A daemon whose data directory is a tmpfs of so many MiB, in a mount namespace of its own, so that nothing is
    /// left of it. `None`, loudly, where that cannot be had.
    pub(crate) fn on_small_disk(mib: u32) -> Option<Daemon> {
        if Command::new("unshare").args(["-m", "true"]).status().map_or(true, |status| !status.success()) {
            println!("SKIP: no unshare (util-linux), or no right to mount namespaces");
            return None;
        }
        // Before Linux 6.3 a tmpfs has no id-mapped mounts.
        let mut daemon = Self::in_new_directory(&format!("{PLAIN}[isolation]\nuser_namespaces = false\n"));
        let data = daemon.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let line = "mount -t tmpfs -o \"size=$1m\" none \"$2\" && exec \"$3\" serve --host \"$4\" --config \"$5\" --data-dir \"$2\"";
        let child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", line, "sh", &mib.to_string()])
            .arg(&data)
            .args([env!("CARGO_BIN_EXE_berth"), &daemon.host()])
            .arg(daemon.path().join("berth.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(daemon.path().join("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        daemon.child = Some(child);
        daemon.wait_ready();
        daemon.import_busybox(&[]);
        Some(daemon)
    }

    fn wait_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the daemon ended ({status}):\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "the daemon does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("berth.sock")
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("daemon.log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(args).env("BERTH_HOST", self.host()).env("NO_COLOR", "1").current_dir(self.path());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command that must succeed; its stdout without the last newline.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(
            output.status.success(),
            "berth {args:?}: {}\n{}\n{}",
            output.status,
            text(&output.stderr),
            self.log()
        );
        text(&output.stdout).trim_end_matches('\n').to_owned()
    }

    /// Runs a command that must fail; its exit code and stderr.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(!output.status.success(), "berth {args:?} succeeded: {}", text(&output.stdout));
        (output.status.code().unwrap_or(-1), text(&output.stderr))
    }

    /// A sandbox of `busybox:test`, by name.
    #[track_caller]
    pub(crate) fn sandbox(&self, name: &str, args: &[&str]) {
        let mut all = vec!["sandbox", "create", "busybox:test", "--name", name];
        all.extend(args);
        self.ok(&all);
    }

    /// A shell line in a sandbox: exit code, stdout, stderr.
    #[track_caller]
    pub(crate) fn sh(&self, sandbox: &str, line: &str) -> (i32, String, String) {
        let output = self.run(&["sandbox", "exec", sandbox, "--", "/bin/sh", "-c", line]);
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the daemon does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            let status = self.terminate();
            if !std::thread::panicking() {
                assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
            } else {
                println!("--- daemon.log\n{}", self.log());
            }
        }
    }
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Its `exited` event.
    pub(crate) status: Value,
}

impl Outcome {
    /// Frames: a byte of kind, four of length, the rest; of output first eight bytes of its offset and eight of its time.
    #[track_caller]
    fn parse(mut body: &[u8]) -> Outcome {
        let (mut stdout, mut stderr, mut status) = (Vec::new(), Vec::new(), Value::Null);
        while let Some((head, rest)) = body.split_at_checked(5) {
            let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
            let (payload, rest) = rest.split_at(length);
            match head[0] {
                1 => stdout.extend_from_slice(&payload[16..]),
                2 => stderr.extend_from_slice(&payload[16..]),
                3 => status = serde_json::from_slice(payload).unwrap(),
                kind => panic!("frame {kind}: {}", text(payload)),
            }
            body = rest;
        }
        assert_eq!(status["event"], "exited");
        Outcome { stdout: text(&stdout), stderr: text(&stderr), status }
    }

    pub(crate) fn code(&self) -> i64 {
        self.status["exit_code"].as_i64().unwrap()
    }

    pub(crate) fn met(&self, limit: &str) -> bool {
        meets(&self.status, limit)
    }
}

/// Whether an exec's status or a sandbox's usage has that limit among those that were met.
pub(crate) fn meets(status: &Value, limit: &str) -> bool {
    status["limits_hit"].as_array().is_some_and(|all| all.iter().any(|met| met == limit))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where tests keep their data: a real disk, since overlayfs wants one and a tmpfs may be small.
pub(crate) fn test_root() -> PathBuf {
    let root = std::env::var_os("BERTH_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    std::fs::create_dir_all(&root).unwrap();
    root
}

/// A root file system with nothing but busybox and its applets.
pub(crate) fn busybox_rootfs() -> Vec<u8> {
    busybox_rootfs_and(&[])
}

fn busybox_rootfs_and(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["bin/", "etc/", "tmp/", "root/"] {
        append(&mut tar, dir, tar::EntryType::Directory, if dir == "tmp/" { 0o1777 } else { 0o755 }, b"");
    }
    append(&mut tar, "bin/busybox", tar::EntryType::Regular, 0o755, &std::fs::read(BUSYBOX).unwrap());
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n";
    append(&mut tar, "etc/passwd", tar::EntryType::Regular, 0o644, passwd);
    append(
        &mut tar,
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n",
    );
    let list = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for applet in text(&list.stdout).lines().filter(|name| *name != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    for (path, mode, content) in files {
        append(&mut tar, path, tar::EntryType::Regular, *mode, content);
    }
    tar.into_inner().unwrap()
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, path, data).unwrap();
}

/// A static program of `tests/support`, compiled; `None`, loudly, where there is no C compiler.
pub(crate) fn compiled(source: &str) -> Option<Vec<u8>> {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(source);
    let built = Command::new("cc")
        .args(["-static", "-O1", "-w", "-pthread", "-o"])
        .arg(&program)
        .arg(source)
        .stdin(Stdio::null())
        .output();
    match built {
        Ok(output) if output.status.success() => Some(std::fs::read(program).unwrap()),
        Ok(output) => {
            println!("SKIP: cc cannot make a static program: {}", text(&output.stderr));
            None
        }
        Err(error) => {
            println!("SKIP: no C compiler: {error}");
            None
        }
    }
}

/// Writes files below `dir`, given as (path, mode, content).
pub(crate) fn write_tree(dir: &Path, files: &[(&str, u32, &str)]) {
    use std::os::unix::fs::PermissionsExt;
    for (path, mode, content) in files {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.set_permissions(PermissionsExt::from_mode(*mode)).unwrap();
    }
}

/// Waits until `condition` holds: far longer than anything takes, for machines that are busy with other things.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process of this machine has `marker` in its command line.
pub(crate) fn process_with(marker: &str) -> bool {
    let Ok(all) = std::fs::read_dir("/proc") else { return false };
    all.flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|cmdline| cmdline.windows(marker.len()).any(|part| part == marker.as_bytes()))
            && entry.file_name().to_str().is_some_and(|name| name != std::process::id().to_string())
    })
}

pub(crate) fn signal_of(output: &Output) -> Option<i32> {
    output.status.signal()
}
