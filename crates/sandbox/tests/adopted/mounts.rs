//! What a build's step is given beside its root, and what is left of that in the layer.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use berth_sandbox::{Driver, Machine, Mount, MountSource, StartSpec};

use crate::rig::Rig;

pub fn leave_no_trace() {
    let rig = Rig::new();
    let data = rig.dir.path().join("data");
    for name in ["base/etc", "base/opt", "context/src", "cache"] {
        fs::create_dir_all(data.join(name)).unwrap();
    }
    fs::write(data.join("context/src/file"), "").unwrap();
    let names = || vec!["context".to_owned()];
    let sources = [
        ("/src", MountSource::Layers { names: names(), path: "/src".into() }),
        ("/opt/one/file", MountSource::Layers { names: names(), path: "/src/file".into() }),
        ("/root/.cache", MountSource::Directory(data.join("cache"))),
        ("/opt/scratch", MountSource::Tmpfs { size: Some(1 << 20) }),
        ("/run/secrets/key", MountSource::Bytes { bytes: b"key".to_vec(), uid: 1, gid: 2, mode: 0o400 }),
        ("/empty", MountSource::Layers { names: Vec::new(), path: "/".into() }),
    ];
    let mount = |(target, source)| Mount { target: Path::new(target).to_owned(), read_only: false, source };
    let mounts: Vec<Mount> = sources.map(mount).into();
    rig.run(async {
        let (driver, _) = rig.start(Vec::new()).await;
        let mapped = driver.features().user_namespace;
        for user_namespace in [false, true].into_iter().take(1 + usize::from(mapped)) {
            let id = format!("step-{user_namespace}");
            let spec = driver.spec(&id, None);
            let (layers, mounts) = (vec!["base".to_owned()], mounts.clone());
            let spec = StartSpec { user_namespace, layers, mounts, ..spec };
            let machine = driver.start(spec).await.unwrap();
            let stubs = machine.stubs();
            assert!(stubs.contains(&"/opt/one/file".into()) && !stubs.contains(&"/opt".into()), "{stubs:?}");
            enter_network(machine.as_ref());
            let disk = machine.take_disk().await.unwrap();
            let left: Vec<_> =
                fs::read_dir(disk.upper()).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(left, Vec::<std::path::PathBuf>::new());
            assert!(!disk.upper().with_file_name("mounts").exists());
            assert!(machine.network().is_none());
        }
        assert_eq!(fs::read_dir(data.join("cache")).unwrap().count(), 0);
        // What does not start leaves as little.
        let nothing = MountSource::Layers { names: names(), path: "/nothing".into() };
        let mounts = vec![mount(("/src", nothing))];
        let spec = StartSpec { mounts, layers: vec!["base".to_owned()], ..driver.spec("none", None) };
        let error = driver.start(spec).await.err().unwrap();
        let berth_sandbox::Error::Launch(berth_jail::Error::MountSource { path, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!(path, Path::new("/nothing"));
        driver.shutdown().await;
    });
    rig.assert_no_trace();
}

fn enter_network(machine: &dyn Machine) {
    let door = machine.network().unwrap();
    let inode = |path: &str| fs::metadata(path).unwrap().ino();
    let inside = inode(&format!("/proc/self/fd/{}", door.netns.as_raw_fd()));
    assert_ne!(inside, inode("/proc/self/ns/net"));
}
