//! What the tests share: layers in a temporary directory, a container on them, questions to its first process.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use berth_jail::cgroup::{self, Cgroup, Limits};
use berth_jail::spec::{CgroupMembership, DEFAULT_SHM_BYTES, EtcFiles, Root};
use berth_jail::{
    Capability, Error, Facts, GuestImage, IdRange, LaunchRequest, Launcher, NamespacePair, Plan, Process,
    Spec, plan,
};
use tempfile::TempDir;

/// The ids of mapped containers.
pub const IDS: IdRange = IdRange { first: 1_500_000_000, count: 262_144 };

/// Why the tests cannot run here.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    match Command::new("cc").arg("--version").output() {
        Ok(_) => None,
        Err(error) => Some(format!("no C compiler: {error}")),
    }
}

pub fn guest() -> &'static GuestImage {
    static GUEST: OnceLock<GuestImage> = OnceLock::new();
    GUEST.get_or_init(|| GuestImage::new(probe()).unwrap())
}

/// The program that plays the guest.
pub fn probe() -> &'static [u8] {
    static PROBE: OnceLock<Vec<u8>> = OnceLock::new();
    PROBE.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/privileged/probe.c");
        let program = dir.path().join("probe");
        let built =
            Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(source).status();
        assert!(built.unwrap().success(), "cc failed");
        fs::read(program).unwrap()
    })
}

pub fn launcher() -> &'static Launcher {
    static LAUNCHER: OnceLock<Launcher> = OnceLock::new();
    LAUNCHER.get_or_init(|| Launcher::spawn().unwrap())
}

/// Layers and the spec of a container on them.
pub struct Rig {
    pub dir: TempDir,
    pub spec: Spec,
}

impl Rig {
    /// Without layers.
    pub fn empty() -> Self {
        let dir = TempDir::with_prefix("berth-jail-").unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["layers", "upper", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::set_permissions(at("upper"), fs::Permissions::from_mode(0o755)).unwrap();
        let root =
            Root { layers_dir: at("layers"), lowers: Vec::new(), upper: at("upper"), work: at("work") };
        let spec = Spec {
            id: "test".to_owned(),
            hostname: "box".to_owned(),
            root,
            binds: Vec::new(),
            mounts: Vec::new(),
            etc: EtcFiles::default(),
            cgroups: Default::default(),
            ids: None,
            guest: Default::default(),
            views: Default::default(),
            no_new_privileges: false,
            capabilities: Capability::defaults(),
            command_capabilities: None,
            seccomp: Default::default(),
            shm_bytes: DEFAULT_SHM_BYTES,
            spool: None,
        };
        Self { dir, spec }
    }

    /// With one layer that has the usual directories.
    pub fn usual() -> Self {
        let mut rig = Self::empty();
        let layer = rig.layer("base");
        for name in ["proc", "sys", "dev", "etc", "tmp", "usr/bin"] {
            fs::create_dir_all(layer.join(name)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "image's\n").unwrap();
        rig
    }

    /// Adds a layer on top of the others.
    pub fn layer(&mut self, name: &str) -> PathBuf {
        let path = self.spec.root.layers_dir.join(name);
        fs::create_dir(&path).unwrap();
        self.spec.root.lowers.insert(0, name.to_owned());
        path
    }

    /// Writes a file of the host's.
    pub fn host_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn try_launch(&self) -> Result<Sandbox, Error> {
        self.launch_in(None)
    }

    pub fn launch(&self) -> Sandbox {
        self.try_launch().unwrap()
    }

    pub fn launch_in(&self, netns: Option<BorrowedFd<'_>>) -> Result<Sandbox, Error> {
        self.launch_plan(&plan(&self.spec, &Facts::detect().unwrap()).unwrap(), netns)
    }

    pub fn launch_plan(&self, plan: &Plan, netns: Option<BorrowedFd<'_>>) -> Result<Sandbox, Error> {
        self.launch_with(plan, netns, None)
    }

    /// With ids of its own, in namespaces that were made for them.
    pub fn try_launch_mapped(&mut self, pair: &NamespacePair) -> Result<Sandbox, Error> {
        self.spec.ids = Some(IDS);
        let plan = plan(&self.spec, &Facts::detect().unwrap()).unwrap();
        self.launch_with(&plan, Some(pair.net.as_fd()), Some(pair.user.as_fd()))
    }

    pub fn launch_mapped(&mut self) -> Sandbox {
        self.try_launch_mapped(&launcher().make_namespaces(IDS).unwrap()).unwrap()
    }

    pub fn launch_with(
        &self,
        plan: &Plan,
        netns: Option<BorrowedFd<'_>>,
        user_namespace: Option<BorrowedFd<'_>>,
    ) -> Result<Sandbox, Error> {
        // The kernel takes none that a volatile overlay has used.
        let work = &self.spec.root.work;
        fs::remove_dir_all(work).and_then(|()| fs::create_dir(work)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let control = theirs.into();
        let (guest, listen, stderr) = (guest(), None, None);
        let request = LaunchRequest { plan, netns, user_namespace, control, listen, guest, stderr };
        let process = launcher().launch(request)?;
        Ok(Sandbox { process, control: ours })
    }
}

pub fn link(target: &str, at: PathBuf) {
    symlink(target, at).unwrap();
}

/// A container that runs.
pub struct Sandbox {
    pub process: Process,
    pub control: UnixStream,
}

impl Sandbox {
    /// Sends a command to the first process and returns its answer.
    pub fn ask(&self, command: &str) -> String {
        (&self.control).write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(&self.control);
        let mut length = String::new();
        reader.read_line(&mut length).unwrap();
        let mut text = vec![0; length.trim().parse().expect("the first process is gone")];
        reader.read_exact(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// A line of a `Key:\tvalue` file.
    pub fn status(&self, key: &str) -> String {
        let text = self.ask("cat /proc/self/status");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap();
        line.trim().to_owned()
    }
}

/// Control groups of a test, gone with it.
pub struct Groups {
    pub cgroup: Cgroup,
    pub membership: CgroupMembership,
    instance: String,
}

impl Groups {
    pub fn make(limits: Limits) -> Self {
        Self::make_on(limits, &cgroup::Facts::detect().unwrap())
    }

    pub fn make_on(limits: Limits, facts: &cgroup::Facts) -> Self {
        Self::make_for(limits, facts, None)
    }

    pub fn make_for(limits: Limits, facts: &cgroup::Facts, owner: Option<u32>) -> Self {
        let instance = format!("test{}", std::process::id());
        let plan = cgroup::plan(&limits, facts, &format!("berth/{instance}/s"), owner).unwrap();
        Self { cgroup: plan.create().unwrap(), membership: plan.membership(), instance }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        self.cgroup.kill_all().unwrap();
        self.cgroup.remove().unwrap();
        cgroup::remove_instance(&cgroup::Facts::detect().unwrap(), &self.instance).unwrap();
        for dir in &self.cgroup.dirs {
            assert!(!dir.exists(), "{} is left", dir.display());
            assert!(!dir.parent().unwrap().exists());
        }
    }
}
