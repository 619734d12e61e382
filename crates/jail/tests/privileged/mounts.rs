//! Mounts beside those that every container has. Each test runs without and with ids of the container's own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use berth_jail::Error;
use berth_jail::spec::{Contents, Mount, MountSource};

use crate::containers::with_300_layers;
use crate::rig::{IDS, Rig, Sandbox, launcher, link};

/// A rig whose mounts can be made again and again.
struct Mounts {
    rig: Rig,
    mapped: bool,
}

fn both(test: impl Fn(&mut Mounts)) {
    for mapped in [false, true] {
        test(&mut Mounts { rig: Rig::usual(), mapped });
    }
}

fn mount(target: &str, read_only: bool, source: MountSource) -> Mount {
    Mount { target: target.into(), read_only, source }
}

fn bytes(target: &str, text: &str) -> Mount {
    let contents = Contents(text.as_bytes().to_vec());
    mount(target, true, MountSource::Bytes { contents, uid: 5, gid: 6, mode: 0o440 })
}

impl Mounts {
    /// A layer that is none of the root's.
    fn layer(&self, name: &str) -> PathBuf {
        let path = self.rig.spec.root.layers_dir.join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// Adds a mount of layers.
    fn add(&mut self, target: &str, read_only: bool, lowers: &[&str], path: &str) {
        let own = self.rig.dir.path().join("mounts").join(self.rig.spec.mounts.len().to_string());
        let source = MountSource::Layers {
            lowers: lowers.iter().map(|&name| name.to_owned()).collect(),
            upper: own.join("upper"),
            work: own.join("work"),
            path: path.into(),
        };
        self.rig.spec.mounts.push(mount(target, read_only, source));
    }

    fn upper(&self, number: usize) -> PathBuf {
        self.rig.dir.path().join("mounts").join(number.to_string()).join("upper")
    }

    fn try_launch(&mut self) -> Result<Sandbox, Error> {
        for (number, mount) in self.rig.spec.mounts.iter().enumerate() {
            if matches!(mount.source, MountSource::Layers { .. }) {
                let own = self.rig.dir.path().join("mounts").join(number.to_string());
                let _ = fs::remove_dir_all(&own);
                fs::create_dir_all(own.join("upper")).unwrap();
                fs::create_dir(own.join("work")).unwrap();
            }
        }
        match self.mapped {
            true => self.rig.try_launch_mapped(&launcher().make_namespaces(IDS).unwrap()),
            false => self.rig.try_launch(),
        }
    }

    fn launch(&mut self) -> Sandbox {
        self.try_launch().unwrap()
    }

    fn refused(&mut self) -> Error {
        self.try_launch().err().expect("it started")
    }
}

pub fn layers() {
    both(|mounts| {
        let (low, high) = (mounts.layer("low"), mounts.layer("high"));
        fs::create_dir_all(low.join("src/sub")).unwrap();
        fs::write(low.join("src/file"), "low").unwrap();
        fs::write(low.join("src/sub/kept"), "kept").unwrap();
        fs::create_dir_all(high.join("src")).unwrap();
        fs::write(high.join("src/file"), "high").unwrap();
        mounts.add("/all", true, &["high", "low"], "/");
        mounts.add("/mnt/dir", false, &["high", "low"], "/src");
        mounts.add("/etc/one", true, &["high", "low"], "/src/file");
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("cat /all/src/file"), "high");
        assert_eq!(sandbox.ask("cat /mnt/dir/file"), "high");
        assert_eq!(sandbox.ask("cat /mnt/dir/sub/kept"), "kept");
        assert_eq!(sandbox.ask("cat /etc/one"), "high");
        assert_eq!(sandbox.ask("cat /etc/passwd"), "image's\n");
        assert_eq!(sandbox.ask("put /all/src/file"), "errno 30");
        assert_eq!(sandbox.ask("put /etc/one"), "errno 30");
        let none = sandbox.ask("node /mnt/dir/node");
        assert!(none.ends_with("open 13") || none.ends_with("open 2"), "{none}");
        drop(sandbox);
        for missing in ["/src/nothing", "/src/file/x"] {
            mounts.rig.spec.mounts.clear();
            mounts.add("/all", true, &["low"], missing);
            let error = mounts.refused();
            assert!(
                matches!(&error, Error::MountSource { path, .. } if path == Path::new(missing)),
                "{error:?}"
            );
        }
    });
}

pub fn writes_aside() {
    both(|mounts| {
        let layer = mounts.layer("context");
        fs::write(layer.join("file"), "layer").unwrap();
        fs::write(layer.join("gone"), "layer").unwrap();
        mounts.add("/a", false, &["context"], "/");
        mounts.add("/b", false, &["context"], "/");
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("put /a/file"), "ok");
        assert_eq!(sandbox.ask("put /a/new"), "ok");
        assert_eq!(sandbox.ask("remove /a/gone"), "0");
        assert_eq!(sandbox.ask("cat /a/file"), "layerx");
        // Each has its own.
        assert_eq!(sandbox.ask("cat /b/file"), "layer");
        assert_eq!(sandbox.ask("cat /b/gone"), "layer");
        drop(sandbox);
        assert_eq!(fs::read_to_string(layer.join("file")).unwrap(), "layer");
        assert_eq!(fs::read_to_string(mounts.upper(0).join("file")).unwrap(), "layerx");
        assert_eq!(fs::metadata(mounts.upper(0).join("new")).unwrap().uid(), 0);
        let upper = &mounts.rig.spec.root.upper;
        assert_eq!(fs::read_dir(upper.join("a")).unwrap().count(), 0);
    });
}

pub fn links_stay_inside() {
    both(|mounts| {
        let host = mounts.rig.host_file("secret", "of the host");
        let dir = mounts.rig.dir.path().to_str().unwrap().to_owned();
        let layer = mounts.layer("evil");
        fs::create_dir_all(layer.join("real")).unwrap();
        fs::write(layer.join("real/file"), "of the layer").unwrap();
        link("/", layer.join("top"));
        link("/proc/1/root", layer.join("root"));
        link("../../../../../../..", layer.join("real/up"));
        link(&dir, layer.join("host"));
        link(host.to_str().unwrap(), layer.join("file"));
        link("/real", layer.join("absolute"));
        link("loop", layer.join("loop"));
        // Links that stay are followed.
        mounts.add("/one", true, &["evil"], "/top/absolute/up/real/file");
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("cat /one"), "of the layer");
        drop(sandbox);
        for outside in ["/root", "/root/etc", "/host", "/file", "/loop", "/top/proc/self", "/real/up/etc"] {
            mounts.rig.spec.mounts.clear();
            mounts.add("/one", true, &["evil"], outside);
            let error = mounts.refused();
            assert!(matches!(error, Error::MountSource { .. }), "{outside}: {error:?}");
        }
        // A target through a link leads to where the link does inside, and to nothing of the host's.
        let base = mounts.rig.spec.root.layers_dir.join("base");
        link(&dir, base.join("out"));
        link("../../../../../../tmp/../tmp", base.join("climbs"));
        mounts.rig.spec.mounts.clear();
        mounts.add("/out/made", true, &["evil"], "/real");
        mounts.add("/climbs/made", true, &["evil"], "/real");
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask(&format!("cat {dir}/made/file")), "of the layer");
        assert_eq!(sandbox.ask("cat /tmp/made/file"), "of the layer");
        assert!(!Path::new(&dir).join("made").exists());
    });
}

pub fn numbers_of_layers() {
    both(|mounts| {
        mounts.add("/none", false, &[], "/");
        let one = mounts.layer("one");
        fs::write(one.join("file"), "1").unwrap();
        mounts.add("/one", false, &["one"], "/");
        mounts.add("/twice", false, &["one", "one"], "/");
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("list /none"), "");
        assert_eq!(sandbox.ask("put /none/new"), "ok");
        assert_eq!(sandbox.ask("look /none/new"), "0:0");
        assert_eq!(sandbox.ask("cat /one/file"), "1");
        assert_eq!(sandbox.ask("cat /twice/file"), "1");
        drop(sandbox);
        assert!(mounts.upper(0).join("new").exists());
        mounts.rig.spec.mounts.clear();
        mounts.add("/none", true, &[], "/missing");
        assert!(matches!(mounts.refused(), Error::MountSource { .. }));
        if !berth_jail::Facts::detect().unwrap().layers_one_by_one {
            println!("SKIP: the kernel's overlayfs does not take layers one by one");
            return;
        }
        mounts.rig.spec.mounts.clear();
        let own = std::mem::take(&mut mounts.rig.spec.root.lowers);
        with_300_layers(&mut mounts.rig);
        let many = std::mem::replace(&mut mounts.rig.spec.root.lowers, own);
        mounts.add("/many", false, &many.iter().map(String::as_str).collect::<Vec<_>>(), "/");
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("cat /many/file0"), "0");
        assert_eq!(sandbox.ask("put /many/new"), "ok");
    });
}

pub fn neutral_owners() {
    both(|mounts| {
        let layer = mounts.layer("owned");
        fs::write(layer.join("file"), "").unwrap();
        chown(layer.join("file"), Some(7), Some(8)).unwrap();
        let cache = mounts.rig.dir.path().join("cache");
        fs::create_dir(&cache).unwrap();
        fs::write(cache.join("file"), "kept").unwrap();
        chown(cache.join("file"), Some(1000), Some(1001)).unwrap();
        mounts.add("/layers", false, &["owned"], "/");
        mounts.rig.spec.mounts.push(mount("/cache", false, MountSource::Directory(cache.clone())));
        mounts.rig.spec.mounts.push(mount("/fixed", true, MountSource::Directory(cache.clone())));
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("look /layers"), "0:0");
        assert_eq!(sandbox.ask("look /layers/file"), "7:8");
        assert_eq!(sandbox.ask("own /layers/file 9 9"), "0");
        assert_eq!(sandbox.ask("look /cache/file"), "1000:1001");
        assert_eq!(sandbox.ask("put /cache/new"), "ok");
        assert_eq!(sandbox.ask("own /cache/new 5 6"), "0");
        assert_eq!(sandbox.ask("cat /fixed/new"), "x");
        assert_eq!(sandbox.ask("put /fixed/new"), "errno 30");
        let node = sandbox.ask("node /cache/node");
        assert!(node.ends_with("open 13") || node.ends_with("open 2"), "{node}");
        drop(sandbox);
        let new = fs::metadata(cache.join("new")).unwrap();
        assert_eq!((new.uid(), new.gid()), (5, 6));
        assert_eq!(fs::metadata(mounts.upper(0).join("file")).unwrap().uid(), 9);
    });
}

pub fn memory() {
    both(|mounts| {
        let tmpfs = |size| MountSource::Tmpfs { size };
        mounts.rig.spec.mounts.push(mount("/small", false, tmpfs(Some(65_536))));
        mounts.rig.spec.mounts.push(mount("/default", true, tmpfs(None)));
        mounts.rig.spec.mounts.push(bytes("/run/secrets/key", "to be kept\n"));
        let writable = MountSource::Bytes { contents: Contents(Vec::new()), uid: 0, gid: 0, mode: 0o600 };
        mounts.rig.spec.mounts.push(mount("/etc/passwd", false, writable));
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("look /small"), "0:0");
        assert_eq!(sandbox.ask("mode /small"), "41777");
        assert_eq!(sandbox.ask("put /small/new"), "ok");
        assert_eq!(sandbox.ask("put /default/new"), "errno 30");
        let info = sandbox.ask("cat /proc/self/mountinfo");
        let line = |target: &str| info.lines().find(|line| line.contains(&format!(" {target} "))).unwrap();
        assert!(line("/small").contains("size=64k"), "{info}");
        assert!(line("/small").contains("nosuid,nodev"), "{info}");
        assert!(line("/run/secrets/key").contains(" ramfs "), "{info}");
        assert_eq!(sandbox.ask("cat /run/secrets/key"), "to be kept\n");
        assert_eq!(sandbox.ask("look /run/secrets/key"), "5:6");
        assert_eq!(sandbox.ask("mode /run/secrets/key"), "100440");
        assert_eq!(sandbox.ask("put /run/secrets/key"), "errno 30");
        assert_eq!(sandbox.ask("put /etc/passwd"), "ok");
        assert_eq!(sandbox.ask("cat /etc/passwd"), "x");
        // Where it was made is as empty as ever.
        assert_eq!(sandbox.ask("list /sys/fs/cgroup"), "");
        drop(sandbox);
        let stub = fs::metadata(mounts.rig.spec.root.upper.join("run/secrets/key")).unwrap();
        assert_eq!(stub.len(), 0);
        assert!(!mounts.rig.spec.root.upper.join("etc/passwd").exists());
    });
    let printed = format!("{:?}", bytes("/x", "to be kept"));
    assert!(!printed.contains("116") && !printed.contains("kept"), "{printed}");
}

pub fn order() {
    both(|mounts| {
        let layer = mounts.layer("outer");
        fs::create_dir_all(layer.join("there")).unwrap();
        fs::write(layer.join("there/hidden"), "").unwrap();
        mounts.add("/outer", false, &["outer"], "/");
        mounts.rig.spec.mounts.push(mount("/outer/there", false, MountSource::Tmpfs { size: None }));
        mounts.rig.spec.mounts.push(bytes("/outer/new/key", "inner"));
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("list /outer/there"), "");
        assert_eq!(sandbox.ask("cat /outer/new/key"), "inner");
        assert_eq!(sandbox.process.stubs().last().unwrap(), Path::new("outer"));
        drop(sandbox);
        assert!(mounts.upper(0).join("new/key").exists());
        assert!(!mounts.rig.spec.root.upper.join("outer/new").exists());
        // The later covers the earlier.
        mounts.rig.spec.mounts.swap(0, 2);
        mounts.rig.spec.mounts.swap(1, 2);
        let own = mounts.rig.dir.path().join("mounts");
        for mount in &mut mounts.rig.spec.mounts {
            if let MountSource::Layers { upper, work, .. } = &mut mount.source {
                (*upper, *work) = (own.join("1/upper"), own.join("1/work"));
            }
        }
        let sandbox = mounts.launch();
        assert_eq!(sandbox.ask("cat /outer/new/key"), "errno 2");
        drop(sandbox);
        // Nothing can be made in what may only be read.
        mounts.rig.spec.mounts.clear();
        mounts.add("/outer", true, &["outer"], "/");
        mounts.rig.spec.mounts.push(bytes("/outer/new/key", "inner"));
        let error = mounts.refused();
        assert!(matches!(error, Error::MountTarget { .. }), "{error:?}");
    });
}

pub fn stubs() {
    both(|mounts| {
        mounts.layer("context");
        mounts.add("/src/deep", false, &["context"], "/");
        mounts.rig.spec.mounts.push(mount("/tmp", false, MountSource::Tmpfs { size: None }));
        mounts.rig.spec.mounts.push(bytes("/run/secrets/key", "k"));
        let sandbox = mounts.launch();
        let made: Vec<&str> = sandbox.process.stubs().iter().map(|stub| stub.to_str().unwrap()).collect();
        assert_eq!(made, ["src", "src/deep", "run", "run/secrets", "run/secrets/key"]);
        assert_eq!(sandbox.ask("put /src/deep/new"), "ok");
        drop(sandbox);
        let upper = &mounts.rig.spec.root.upper;
        assert_eq!(fs::read_dir(upper.join("src/deep")).unwrap().count(), 0);
        let made = fs::metadata(upper.join("src")).unwrap();
        assert_eq!((made.uid(), made.permissions().mode() & 0o7777), (0, 0o755));
    });
}

pub fn refused_targets() {
    both(|mounts| {
        let base = mounts.rig.spec.root.layers_dir.join("base");
        link("/proc/sys", base.join("settings"));
        link("sys/fs/cgroup", base.join("groups"));
        fs::write(base.join("file"), "").unwrap();
        mounts.layer("context");
        let targets = [
            "/proc",
            "/proc/sys",
            "/proc/1",
            "/proc/new",
            "/sys",
            "/sys/fs/cgroup",
            "/settings",
            "/groups/x",
        ];
        for target in targets.into_iter().chain(["/settings/new", "/file", "/file/below"]) {
            mounts.rig.spec.mounts.clear();
            mounts.add(target, true, &["context"], "/");
            let error = mounts.refused();
            assert!(
                matches!(&error, Error::MountTarget { path, .. } if path == Path::new(target)),
                "{error:?}"
            );
            let tmpfs = MountSource::Tmpfs { size: None };
            mounts.rig.spec.mounts = vec![mount(target, false, tmpfs)];
            assert!(matches!(mounts.refused(), Error::MountTarget { .. }), "{target}");
        }
        for target in ["/proc/meminfo", "/proc/new", "/etc"] {
            mounts.rig.spec.mounts = vec![bytes(target, "mine")];
            let error = mounts.refused();
            assert!(matches!(error, Error::MountTarget { .. }), "{target}: {error:?}");
        }
        // What the container has of its own besides is its own to cover.
        mounts.rig.spec.mounts = vec![mount("/dev/shm", false, MountSource::Tmpfs { size: Some(4096) })];
        assert_eq!(mounts.launch().ask("put /dev/shm/new"), "ok");
    });
}

pub fn leaves_nothing() {
    both(|mounts| {
        let dir = mounts.rig.dir.path().to_str().unwrap().to_owned();
        let clean = || {
            let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!host.contains(&dir) && !host.contains("berth-test"), "{host}");
        };
        let layer = mounts.layer("context");
        fs::write(layer.join("file"), "1").unwrap();
        mounts.add("/layers", false, &["context"], "/");
        mounts.rig.spec.mounts.push(bytes("/key", "k"));
        let sandbox = mounts.launch();
        clean();
        let inside = sandbox.ask("cat /proc/self/mountinfo");
        assert!(!inside.contains(&dir), "paths of the host show: {inside}");
        assert_eq!(sandbox.ask("cat /layers/file"), "1");
        drop(sandbox);
        clean();
        // One that does not start leaves as little.
        mounts.add("/other", false, &["context"], "/nothing");
        mounts.refused();
        clean();
    });
}
