//! A platform in memory: sandboxes are maps of files, and commands are functions on them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use berth_client::Error;
use berth_types::error::{ApiError, Kind};
use berth_types::exec::{Command, ExecRequest, ExecStatus, ExitReason, Limit};
use berth_types::files::{ArchiveOut, ArchiveReport, FileKind, FileStat, FsRequest, FsResponse};
use berth_types::image::{BuildImage, Image, ImageConfig, PullImage};
use berth_types::progress::Progress;
use berth_types::sandbox::{CreateSandbox, QueuePlace, Sandbox, SandboxState};

use super::{OnProgress, Output, Platform};

/// The files of a sandbox: content and mode.
pub(crate) type Files = BTreeMap<String, (Vec<u8>, u32)>;

type Shell = dyn Fn(&ExecRequest, &mut Files) -> Reply + Send + Sync;

/// What a command does in the end.
pub(crate) enum Reply {
    Exit(i32, &'static str),
    /// Ends with this code, having met limits.
    Met(i32, ExitReason, &'static [Limit]),
    /// Runs until its limit.
    Hang,
    NotStarted(&'static str),
    /// Fails while the machine has no room to write.
    MachineFull(i32),
}

pub(crate) struct Fake {
    shell: Box<Shell>,
    pub(crate) build: Box<dyn Fn() -> Result<(), ApiError> + Send + Sync>,
    pub(crate) build_takes: Duration,
    /// The number of the call, from 0, from which on the daemon is away.
    pub(crate) away_from: usize,
    /// Whether the machine's disk is full at the end.
    pub(crate) machine_full: bool,
    calls: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    log: Vec<String>,
    files: BTreeMap<String, Files>,
    dirs: BTreeMap<String, BTreeSet<String>>,
    alive: BTreeMap<String, Option<String>>,
    most_alive: usize,
    leases: usize,
    requests: Vec<CreateSandbox>,
}

impl Fake {
    pub(crate) fn new(shell: impl Fn(&ExecRequest, &mut Files) -> Reply + Send + Sync + 'static) -> Self {
        Self {
            shell: Box::new(shell),
            build: Box::new(|| Ok(())),
            build_takes: Duration::ZERO,
            away_from: usize::MAX,
            machine_full: false,
            calls: AtomicUsize::new(0),
            state: Mutex::default(),
        }
    }

    /// Every call that was made, one a line.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub(crate) fn count(&self, prefix: &str) -> usize {
        self.log().iter().filter(|line| line.starts_with(prefix)).count()
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn alive(&self) -> usize {
        self.state.lock().unwrap().alive.len()
    }

    pub(crate) fn most_alive(&self) -> usize {
        self.state.lock().unwrap().most_alive
    }

    pub(crate) fn requests(&self) -> Vec<CreateSandbox> {
        self.state.lock().unwrap().requests.clone()
    }

    async fn call(&self, line: String) -> Result<(), Error> {
        // Every real call is a point at which other trials run.
        tokio::task::yield_now().await;
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        if number >= self.away_from {
            let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            return Err(Error::Connect { operation: line, host: "unix:///nowhere".to_owned(), source });
        }
        self.state.lock().unwrap().log.push(line);
        Ok(())
    }
}

impl Platform for Fake {
    type Lease = String;

    async fn hold_lease(&self, ttl: Duration) -> Result<String, Error> {
        self.call(format!("lease {ttl:?}")).await?;
        let mut state = self.state.lock().unwrap();
        state.leases += 1;
        Ok(format!("lease-{}", state.leases))
    }

    fn lease_id(lease: &String) -> &str {
        lease
    }

    async fn release(&self, lease: String) -> Result<(), Error> {
        self.call("release".to_owned()).await?;
        self.state.lock().unwrap().alive.retain(|_, holder| holder.as_ref() != Some(&lease));
        Ok(())
    }

    async fn keep(&self, sandbox: &str) -> Result<(), Error> {
        self.call("keep".to_owned()).await?;
        self.state.lock().unwrap().alive.insert(sandbox.to_owned(), None);
        Ok(())
    }

    async fn build(
        &self,
        request: &BuildImage,
        context: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<Image, Error> {
        let name = context.file_name().unwrap().to_string_lossy();
        self.call(format!("build {name} no_cache={}", request.no_cache)).await?;
        tokio::time::sleep(self.build_takes).await;
        on_progress(Progress::Step {
            step: 1,
            steps: 1,
            instruction: "FROM debian:bookworm".to_owned(),
            cached: true,
        });
        match (self.build)() {
            Ok(()) => Ok(image()),
            Err(source) => Err(Error::Api { operation: "build".to_owned(), source: source.into() }),
        }
    }

    async fn pull(&self, request: &PullImage, _: OnProgress<'_>) -> Result<Image, Error> {
        self.call(format!("pull {} {:?}", request.reference, request.policy)).await?;
        Ok(image())
    }

    async fn queue_place(&self, _: &str) -> Result<Option<QueuePlace>, Error> {
        Ok(None)
    }

    async fn machine_disk_full(&self, _: &str) -> Result<bool, Error> {
        Ok(self.machine_full)
    }

    async fn create(&self, request: &CreateSandbox) -> Result<Sandbox, Error> {
        self.call("create".to_owned()).await?;
        let mut state = self.state.lock().unwrap();
        let id = format!("sandbox-{}", state.files.len());
        state.requests.push(request.clone());
        state.files.insert(id.clone(), Files::new());
        state.alive.insert(id.clone(), request.lease.clone());
        state.most_alive = state.most_alive.max(state.alive.len());
        Ok(sandbox(id, request))
    }

    async fn exec(
        &self,
        sandbox: &str,
        request: &ExecRequest,
        output: Output<'_>,
    ) -> Result<ExecStatus, Error> {
        let Command::Shell(command) = &request.command else { panic!("only the shell is used") };
        let user = request.user.as_deref().unwrap_or("-");
        let limit = request.timeout_seconds.map(f64::ceil);
        let env: Vec<&str> = request.env.keys().map(String::as_str).collect();
        self.call(format!("exec user={user} limit={limit:?} env={env:?} {command}")).await?;
        let reply = {
            let mut state = self.state.lock().unwrap();
            (self.shell)(request, state.files.get_mut(sandbox).unwrap())
        };
        let status = |exit_code, reason, message: Option<&str>| {
            let message = message.map(str::to_owned);
            ExecStatus { message, duration_ms: 1, ..ExecStatus::new(exit_code, reason) }
        };
        Ok(match reply {
            Reply::Exit(code, text) => {
                output(text.as_bytes());
                status(code, ExitReason::Exited, None)
            }
            Reply::Met(code, reason, limits) => {
                ExecStatus { limits_hit: limits.to_vec(), ..status(code, reason, None) }
            }
            Reply::MachineFull(code) => {
                ExecStatus { machine_disk_full: true, ..status(code, ExitReason::Exited, None) }
            }
            Reply::NotStarted(why) => status(127, ExitReason::NotStarted, Some(why)),
            Reply::Hang => {
                let limit = request.timeout_seconds.map_or(Duration::MAX, Duration::from_secs_f64);
                tokio::time::sleep(limit).await;
                status(124, ExitReason::TimedOut, None)
            }
        })
    }

    async fn kill_exec(&self, _: &str, exec: &str) -> Result<(), Error> {
        self.call(format!("kill {exec}")).await
    }

    async fn upload_dir(&self, sandbox: &str, source: &Path, target: &str) -> Result<ArchiveReport, Error> {
        self.call(format!("upload {target}")).await?;
        let mut state = self.state.lock().unwrap();
        copy_in(source, target, state.files.get_mut(sandbox).unwrap());
        Ok(ArchiveReport::default())
    }

    async fn upload_tar(&self, sandbox: &str, tar: Vec<u8>, target: &str) -> Result<ArchiveReport, Error> {
        self.call(format!("upload tar {target}")).await?;
        let mut state = self.state.lock().unwrap();
        let files = state.files.get_mut(sandbox).unwrap();
        for entry in tar::Archive::new(tar.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = format!("{target}/{}", entry.path().unwrap().display());
            let mode = entry.header().mode().unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            files.insert(path, (content, mode));
        }
        Ok(ArchiveReport::default())
    }

    async fn download(
        &self,
        sandbox: &str,
        source: &ArchiveOut,
        target: &Path,
    ) -> Result<Vec<String>, Error> {
        self.call(format!("download {}", source.path)).await?;
        let state = self.state.lock().unwrap();
        let prefix = format!("{}/", source.path);
        if state.dirs.get(sandbox).is_none_or(|dirs| !dirs.contains(&source.path)) {
            return Err(not_found(&source.path));
        }
        for (path, (content, _)) in &state.files[sandbox] {
            if let Some(relative) = path.strip_prefix(&prefix) {
                let target = target.join(relative);
                std::fs::create_dir_all(target.parent().unwrap()).unwrap();
                std::fs::write(target, content).unwrap();
            }
        }
        Ok(Vec::new())
    }

    async fn download_file(&self, sandbox: &str, source: &str, target: &Path) -> Result<(), Error> {
        self.call(format!("download file {source}")).await?;
        let state = self.state.lock().unwrap();
        let (content, _) = state.files[sandbox].get(source).ok_or_else(|| not_found(source))?;
        std::fs::write(target, content).unwrap();
        Ok(())
    }

    async fn fs(&self, sandbox: &str, request: &FsRequest) -> Result<FsResponse, Error> {
        let (line, paths) = match request {
            FsRequest::Mkdir { paths, mode, .. } => {
                (format!("mkdir {:o} {}", mode.unwrap(), paths.join(" ")), paths.clone())
            }
            FsRequest::Remove { paths } => (format!("remove {}", paths.join(" ")), Vec::new()),
            FsRequest::Stat { path, .. } => (format!("stat {path}"), Vec::new()),
            FsRequest::Empty { .. } | FsRequest::List { .. } => panic!("not used"),
        };
        self.call(line).await?;
        let mut state = self.state.lock().unwrap();
        state.dirs.entry(sandbox.to_owned()).or_default().extend(paths);
        let mut response = FsResponse::default();
        if let FsRequest::Remove { paths } = request {
            let files = state.files.get_mut(sandbox).unwrap();
            paths.iter().for_each(|path| drop(files.remove(path)));
        }
        if let FsRequest::Stat { path, .. } = request {
            let is_dir = state.dirs.get(sandbox).is_some_and(|dirs| dirs.contains(path));
            let kind = if is_dir { FileKind::Dir } else { FileKind::File };
            let found = is_dir || state.files[sandbox].contains_key(path);
            response.stat =
                found.then_some(FileStat { kind, size: 0, mode: 0o755, uid: 0, gid: 0, modified_us: 0 });
        }
        Ok(response)
    }
}

fn copy_in(source: &Path, target: &str, files: &mut Files) {
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let target = format!("{target}/{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            copy_in(&path, &target, files);
        } else {
            let mode = path.metadata().unwrap().permissions().mode();
            files.insert(target, (std::fs::read(&path).unwrap(), mode));
        }
    }
}

fn not_found(path: &str) -> Error {
    let source = ApiError::new(Kind::NotFound, "path_not_found", format!("{path} is not there"));
    Error::Api { operation: format!("copy {path}"), source: source.into() }
}

fn image() -> Image {
    Image {
        id: "sha256:0123".to_owned(),
        references: Vec::new(),
        size_bytes: 0,
        layers: 1,
        platform: "linux/amd64".to_owned(),
        created: None,
        config: ImageConfig::default(),
    }
}

fn sandbox(id: String, request: &CreateSandbox) -> Sandbox {
    serde_json::from_value(serde_json::json!({
        "id": id,
        "group": id,
        "name": request.name.clone().unwrap_or_default(),
        "state": SandboxState::Running,
        "image": request.image,
        "labels": request.labels,
        "lease": request.lease,
        "resources": request.resources,
        "storage_enforced": false,
        "network": request.network,
        "workdir": request.workdir.clone().unwrap_or_else(|| "/app".to_owned()),
        "user": "root",
        "shell": "/bin/bash",
        "created_at": "2026-01-02T03:04:05Z",
    }))
    .unwrap()
}

/// Does what the scripts of square-2 do.
pub(crate) fn square_2(request: &ExecRequest, files: &mut Files) -> Reply {
    let Command::Shell(command) = &request.command else { panic!("only the shell is used") };
    let runs = |script: &str, files: &Files| {
        command.starts_with(&format!("({script})"))
            && files.get(script).is_some_and(|(_, mode)| mode & 0o111 == 0o111)
    };
    if runs("/solution/solve.sh", files) {
        files.insert("/tmp/answer.txt".to_owned(), (b"4\n".to_vec(), 0o644));
        files.insert("/logs/agent/oracle.txt".to_owned(), (Vec::new(), 0o644));
        return Reply::Exit(0, "");
    }
    if runs("/tests/test.sh", files) {
        let reward: &[u8] = if files.contains_key("/tmp/answer.txt") { b"1\n" } else { b"0\n" };
        files.insert("/logs/verifier/reward.txt".to_owned(), (reward.to_vec(), 0o644));
        files.insert("/logs/verifier/test-stdout.txt".to_owned(), (Vec::new(), 0o644));
        return Reply::Exit(0, "");
    }
    Reply::Exit(127, "not found\n")
}
