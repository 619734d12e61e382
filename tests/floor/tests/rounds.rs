//! The floor program with real kernel objects: needs root, user namespaces, control groups and a static busybox.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A root of the machine's own busybox; nothing where there is none.
fn rootfs(dir: &Path) -> Option<()> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists())?;
    for name in ["bin", "proc"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::copy(busybox, dir.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", dir.join("bin/echo")).unwrap();
    Some(())
}

fn floor(rootfs: &Path, dir: &Path, network: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-floor"));
    command.arg("3").arg(rootfs).arg(dir);
    if network {
        command.arg("network");
    }
    command.output().unwrap()
}

#[test]
fn rounds_leave_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: making namespaces and control groups needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (root, dir) = (place.path().join("rootfs"), place.path().join("floor"));
    if rootfs(&root).is_none() {
        println!("SKIP: there is no busybox");
        return;
    }
    for network in [false, true] {
        let output = floor(&root, &dir, network);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "network {network}: {error}");
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["rounds_us"].as_array().unwrap().len(), 3);
        assert_eq!(said["phases_us"]["command"].as_array().unwrap().len(), 3);
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["root"]);
    }
}

#[test]
fn what_goes_wrong_inside_is_told() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: making namespaces and control groups needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("rootfs");
    fs::create_dir_all(root.join("proc")).unwrap();
    let output = floor(&root, &place.path().join("floor"), false);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("in the sandbox: running /bin/echo"), "{error}");
}
