//! Real base images from the machine's own Debian mirror. Slow, so only with `BERTH_TEST_BOOTSTRAP=1`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::process::Command;

use berth_image::{BootstrapError, BootstrapOptions, Error};
use berth_types::progress::Progress;
use fixture::*;

fn wanted() -> bool {
    let wanted = std::env::var_os("BERTH_TEST_BOOTSTRAP").is_some_and(|v| v == "1");
    if !wanted {
        println!("SKIP: bootstrapping takes a minute and a mirror; set BERTH_TEST_BOOTSTRAP=1 to do it");
    }
    wanted
}

fn options(reference: &str) -> BootstrapOptions {
    BootstrapOptions { reference: reference.into(), mirror: None, packages: vec!["hello".into()] }
}

#[tokio::test(flavor = "multi_thread")]
async fn debian_from_a_mirror() {
    if !wanted() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let (reporter, heard) = listening();
    let image = images
        .bootstrap(options("debian:bookworm"), reporter)
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(image.references, ["docker.io/library/debian:bookworm"]);
    assert_eq!(image.config.cmd, ["bash"]);
    assert!(image.config.env[0].starts_with("PATH=/usr/local/sbin:"));
    assert!(image.config.labels.contains_key("berth.bootstrap"));
    assert!(image.created.is_some() && image.has_privileged_files());
    let messages = heard.lock().unwrap().iter().filter(|e| matches!(e, Progress::Message { .. })).count();
    assert!(messages > 5, "it tells what it does");
    let root = images.layers_dir().join(&image.layers[0].name);
    let os_release = std::fs::read_to_string(root.join("usr/lib/os-release")).unwrap();
    assert!(os_release.contains("bookworm"));
    let sources = std::fs::read_to_string(root.join("etc/apt/sources.list")).unwrap();
    let mut lines = sources.lines().filter(|line| !line.is_empty());
    assert!(
        lines.all(|line| line.starts_with("deb [signed-by=")) && sources.contains(" bookworm main"),
        "{sources}"
    );
    for absent in ["etc/hostname", "etc/resolv.conf", "dev/sda"] {
        assert!(!root.join(absent).exists(), "{absent}");
    }
    assert!(names(&root.join("var/lib/apt/lists")).iter().all(|n| !n.contains("_dists_")));
    let output = Command::new("chroot").arg(&root).arg("/usr/bin/hello").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(names(&tmp.path().join("tmp")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_suite_lists_the_known_ones() {
    if !wanted() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let error = open(tmp.path()).bootstrap(options("debian:bookwurm"), silent()).await.unwrap_err();
    let Error::Bootstrap(BootstrapError::UnknownSuite { available, .. }) = &error else {
        panic!("{}", chain(&error))
    };
    assert!(available.iter().any(|suite| suite == "bookworm"), "{error}");
    assert_empty(tmp.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_away_is_named() {
    if !std::path::Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists() {
        println!("SKIP: no debian-archive-keyring");
        return;
    }
    if which("mmdebstrap").or(which("debootstrap")).is_none() {
        println!("SKIP: neither mmdebstrap nor debootstrap is installed");
        return;
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mirror = Some(format!("http://{nobody}/debian"));
    let tmp = tempfile::tempdir().unwrap();
    let options = BootstrapOptions { mirror, ..options("debian:bookworm") };
    let error = open(tmp.path()).bootstrap(options, silent()).await.unwrap_err();
    assert!(error.to_string().contains(&nobody.to_string()), "{error}");
    assert_eq!(error.code(), "mirror_unreachable");
    assert_empty(tmp.path());
}

fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file())
}
