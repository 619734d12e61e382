//! Files in and out, through `berth sandbox cp`.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::os::unix::fs::PermissionsExt;

use support::{Daemon, write_tree};

#[test]
fn a_tree_survives_the_round_trip() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let tree = daemon.path().join("tree");
    write_tree(
        &tree,
        &[
            ("run.sh", 0o755, "#!/bin/sh\n"),
            ("deep/er/secret", 0o600, "s"),
            ("-dash", 0o644, "d"),
            ("new\nline", 0o644, "n"),
        ],
    );
    std::fs::create_dir(tree.join("empty")).unwrap();
    std::os::unix::fs::symlink("nowhere", tree.join("dangling")).unwrap();
    std::os::unix::fs::symlink("run.sh", tree.join("link")).unwrap();

    assert_eq!(daemon.sh("box", "mkdir -p /data && echo old > /data/kept && echo old > /data/run.sh").0, 0);
    daemon.ok(&["sandbox", "cp", &format!("{}/.", tree.display()), "box:/data"]);
    assert_eq!(daemon.sh("box", "cat /data/kept").1, "old\n");
    assert_eq!(
        daemon.sh("box", "stat -c '%a %u %g' /data/run.sh /data/deep/er/secret").1,
        "755 0 0\n600 0 0\n"
    );
    assert_eq!(
        daemon.sh("box", "readlink /data/dangling; readlink /data/link; ls -A /data/empty | wc -l").1,
        "nowhere\nrun.sh\n0\n"
    );

    let back = daemon.path().join("back");
    daemon.ok(&["sandbox", "cp", "box:/data/.", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back.join("run.sh")).unwrap(), "#!/bin/sh\n");
    assert_eq!(std::fs::metadata(back.join("deep/er/secret")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read_link(back.join("dangling")).unwrap().to_str(), Some("nowhere"));
    assert_eq!(std::fs::read_to_string(back.join("new\nline")).unwrap(), "n");
    assert!(back.join("empty").is_dir());
}

#[test]
fn a_hostile_sandbox_cannot_write_beside_the_target() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let victim = daemon.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    assert_eq!(daemon.sh("box", &format!("mkdir /x && ln -s {} /x/out", victim.display())).0, 0);
    let target = daemon.path().join("target");
    let (_, error) = daemon.fails(&["sandbox", "cp", "box:/x/.", target.to_str().unwrap()]);
    assert!(error.contains("points out of the target"), "{error}");
    // The second round would write through the link of the first.
    assert_eq!(daemon.sh("box", "rm /x/out && mkdir /x/out && echo bad > /x/out/file").0, 0);
    let _ = daemon.run(&["sandbox", "cp", "box:/x/.", target.to_str().unwrap()]);
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
}

#[test]
fn a_missing_path_is_named_and_leaves_nothing() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let target = daemon.path().join("target");
    let (code, error) = daemon.fails(&["sandbox", "cp", "box:/not/there", target.to_str().unwrap()]);
    assert_eq!(code, 66, "{error}");
    assert!(error.contains("/not/there"), "{error}");
    assert!(!target.exists());
}
