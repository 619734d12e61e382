//! Whatever ends the process, and whenever the disk is full: the store that is left has no problems.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_image::{Error, Images, ImportOptions};
use berth_types::image::PruneImages;
use fixture::*;

/// Where the child finds its store.
const ROOT: &str = "BERTH_TEST_CRASH_ROOT";

/// Something of everything that writes: imports with replaced files, layers that are made, images of them, references
/// that move, removing and pruning, exports.
async fn work(images: &Images, root: &Path, round: u64) -> Result<(), Error> {
    let text = |n: u64| format!("{round} {n} ").repeat(1 + (round * 7919 % 5000) as usize).into_bytes();
    let name = |n: u64| format!("image{n}:latest");
    let files: Vec<(String, Vec<u8>)> =
        (0..20).map(|n| (format!("dir{}/file{}", n % 5, n % 15), text(n))).collect();
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    let options = ImportOptions { reference: Some(name(round % 3)), format: None };
    let base = images.import(tar(&files).as_slice(), options, silent()).await?.remove(0);
    let upper = root.join("upper");
    drop(std::fs::remove_dir_all(&upper));
    let written = std::fs::create_dir(&upper).and_then(|()| std::fs::write(upper.join("made"), text(99)));
    if written.is_ok() {
        let (layer, hold) = images.adopt_layer(&upper).await?;
        let layers = [base.layers[0].diff_id.clone(), layer.diff_id];
        let tags = [format!("made{}:latest", round % 2)];
        images.create_image(serde_json::json!({ "created": "2024-01-01T00:00:00Z" }), &layers, &tags).await?;
        drop(hold);
        let archive = images.export(&tags, None, None)?.write(Vec::new())?;
        images.remove(&tags[0]).await?;
        images.import(archive.as_slice(), ImportOptions::default(), silent()).await?;
    }
    images.tag(base.id.as_str(), &format!("tag{}", round % 4)).await?;
    if round % 3 == 2 {
        images
            .prune(PruneImages {
                all: round.is_multiple_of(2),
                keep_bytes: Some(50_000),
                ..PruneImages::default()
            })
            .await?;
    }
    if round % 5 == 4 {
        images.remove(base.id.as_str()).await?;
    }
    Ok(())
}

async fn assert_whole(images: &Images, when: &str) {
    let report = images.verify(true, silent()).await.unwrap();
    assert_eq!(report.problems, [""; 0], "{when}");
    assert_eq!(report.unverifiable, [""; 0], "{when}");
}

/// Not a test: what the next one starts and kills.
#[tokio::test]
#[ignore = "only as the child of another test"]
async fn the_child_that_is_killed() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let images = open(Path::new(&root));
    println!("open");
    for round in 0.. {
        work(&images, Path::new(&root), round).await.unwrap();
    }
}

#[tokio::test]
async fn killed_at_any_moment_it_leaves_a_whole_store() {
    let tmp = tempfile::tempdir().unwrap();
    let mut filled = 0;
    for round in 0..25u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_child_that_is_killed", "--ignored", "--nocapture"])
            .env(ROOT, tmp.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("open")), "the child did not open the store");
        // Anywhere in the first rounds, at steps that have nothing to do with the rounds' own length.
        std::thread::sleep(Duration::from_micros(1000 + round * 7919 % 100_000));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9),
            "it ended by itself: {status}"
        );
        let images = open(tmp.path());
        assert_whole(&images, &format!("after kill {round}")).await;
        filled += usize::from(!images.list().is_empty());
        let left: Vec<String> = names(&tmp.path().join("tmp"));
        assert_eq!(left, [""; 0], "after kill {round}");
    }
    assert!(filled > 5, "the child was mostly killed before it did anything: {filled}");
}

struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn full_at_any_step_it_leaves_a_whole_store() {
    let tmp = tempfile::tempdir().unwrap();
    let (mut full, mut done) = (0, 0);
    for pages in (8..160).step_by(4) {
        let root = tmp.path().join(pages.to_string());
        std::fs::create_dir(&root).unwrap();
        let size = std::ffi::CString::new(format!("size={}k", pages * 4)).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        if let Err(errno) = rustix::mount::mount("tmpfs", &root, "tmpfs", flags, size.as_c_str()) {
            println!("SKIP: cannot mount a tmpfs: {errno}");
            return;
        }
        let mounted = Tmpfs(&root);
        let images = open(&root);
        for round in 1..6 {
            match work(&images, &root, round * 13).await {
                Ok(()) => done += 1,
                Err(Error::DiskFull { .. }) => full += 1,
                Err(error) => panic!("with {pages} pages: {}", chain(&error)),
            }
            drop(std::fs::remove_dir_all(root.join("upper")));
            assert_whole(&images, &format!("with {pages} pages after round {round}")).await;
        }
        drop(images);
        // Trash of the store goes in the background.
        let images = open(&root);
        assert_whole(&images, &format!("opened again with {pages} pages")).await;
        drop((images, mounted));
    }
    assert!(full > 20 && done > 20, "the disk was full {full} times, and not {done} times");
}
