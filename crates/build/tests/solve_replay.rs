//! Contexts by manifest, and replays in a sandbox that is there.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fake;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use berth_build::{ContextSource, Error, ReplayOutcome, Request, base, build, content_key, replay};
use berth_types::error::Kind;
use berth_types::image::{ContextEntry, ContextKind, ContextManifest};
use berth_types::progress::Progress;
use fake::sandbox::Sandbox;
use fake::world::World;
use sha2::{Digest, Sha256};

/// What a client says of a directory.
fn manifest(root: &Path, texts: &[&str]) -> ContextManifest {
    let mut manifest = ContextManifest::default();
    let mut queue = vec![String::new()];
    while let Some(dir) = queue.pop() {
        for item in fs::read_dir(root.join(&dir)).unwrap() {
            let name = item.unwrap().file_name().into_string().unwrap();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            let metadata = root.join(&path).symlink_metadata().unwrap();
            let kind = if metadata.is_dir() {
                queue.push(path.clone());
                ContextKind::Dir
            } else if metadata.is_symlink() {
                let target = fs::read_link(root.join(&path)).unwrap().to_str().unwrap().to_owned();
                ContextKind::Link { target }
            } else {
                let bytes = fs::read(root.join(&path)).unwrap();
                let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                ContextKind::File { size: bytes.len() as u64, digest }
            };
            manifest.entries.push(ContextEntry { path, mode: metadata.mode() & 0o7777, kind });
        }
    }
    for text in texts {
        manifest.texts.insert((*text).to_owned(), fs::read_to_string(root.join(text)).unwrap());
    }
    manifest
}

fn quiet(_: Progress) {}

fn by_manifest<'a>(world: &'a World, manifest: &'a ContextManifest) -> Request<'a> {
    Request { context: ContextSource::Manifest(manifest), ..world.request(&quiet) }
}

#[tokio::test]
async fn a_manifest_finds_what_was_built_of_the_same() {
    let world = World::new("FROM debian\nCOPY . /x\nRUN --mount=target=/m,source=dir ls /m");
    world.write("dir/f", "F");
    world.write("gone", "");
    world.write(".dockerignore", "gone\n");
    symlink("f", world.path().join("dir/link")).unwrap();
    let manifest_before = manifest(world.path(), &["Dockerfile", ".dockerignore"]);
    let needed = build(by_manifest(&world, &manifest_before), &world.machine).await.unwrap_err();
    assert_eq!((needed.kind(), needed.code()), (Kind::Conflict, "context_needed"));
    let built = world.build().await;
    let key = content_key(&by_manifest(&world, &manifest_before), &world.machine).await.unwrap();
    assert_eq!(key, built.content_key);
    world.machine.take_log();
    let found = build(by_manifest(&world, &manifest_before), &world.machine).await.unwrap();
    assert_eq!((found.image, found.cached_steps), (built.image, built.steps));
    assert_eq!(world.machine.take_log(), ["base debian"]);
    world.write("dir/f", "changed");
    let changed = manifest(world.path(), &["Dockerfile", ".dockerignore"]);
    let needed = build(by_manifest(&world, &changed), &world.machine).await.unwrap_err();
    assert_eq!(needed.code(), "context_needed");
}

#[tokio::test]
async fn a_manifest_is_not_enough_where_bytes_decide() {
    let world = World::new("FROM debian\nADD maybe.tar /x");
    world.write("maybe.tar", "text");
    world.build().await;
    let manifest = manifest(world.path(), &["Dockerfile"]);
    let needed = build(by_manifest(&world, &manifest), &world.machine).await.unwrap_err();
    assert_eq!(needed.code(), "context_needed");
}

#[tokio::test]
async fn a_manifest_without_the_dockerfiles_text_is_not_enough() {
    let world = World::new("FROM debian");
    let manifest = manifest(world.path(), &[]);
    let needed = build(by_manifest(&world, &manifest), &world.machine).await.unwrap_err();
    assert_eq!(needed.code(), "context_needed");
}

/// Replays in a sandbox of the base.
async fn replayed(world: &World, takes_mounts: bool) -> (Result<ReplayOutcome, Error>, Sandbox) {
    let tell = |progress| world.progress.lock().unwrap().push(progress);
    let base = base(&world.request(&tell), &world.machine).await.unwrap();
    let mut sandbox = world.machine.sandbox(&base.layers);
    sandbox.takes_mounts = takes_mounts;
    let outcome = replay(&world.request(&tell), &world.machine, &mut sandbox).await;
    (outcome, sandbox)
}

const STEPS: &str = "FROM debian AS lender\nRUN write /lent 1\n\
     FROM debian AS first\nENV A=1\nRUN write /one $A\nUSER app\n\
     FROM first\nWORKDIR /w\nCOPY f /w/\nCOPY --from=lender /lent /lent\nRUN cat /one && env\nRUN write /two 2\nCMD [\"x\"]";

#[tokio::test]
async fn steps_are_replayed_in_the_sandbox_that_is_there() {
    let world = World::new(STEPS);
    world.write("f", "F");
    let (outcome, sandbox) = replayed(&world, false).await;
    let outcome = outcome.unwrap();
    for path in ["/one", "/w/f", "/lent", "/two", "/bin/sh"] {
        assert!(sandbox.now.contains_key(path), "{path}");
    }
    let output = world.output();
    assert!(output.contains("A=1\n") && output.contains("cwd=/w user=app\n"), "{output}");
    assert_eq!(outcome.config["config"]["WorkingDir"], "/w");
    assert_eq!(outcome.config["config"]["User"], "app");
    assert_eq!(outcome.config["config"]["Cmd"], serde_json::json!(["x"]));
    assert_eq!(outcome.steps, 11);
    let quiet = |_| {};
    assert_eq!(content_key(&world.request(&quiet), &world.machine).await.unwrap(), outcome.content_key);
    let state = world.machine.0.lock().unwrap();
    // Of the lending stage alone something is kept: its step by its place and by what it was done to.
    assert_eq!((state.steps.len(), state.images.len(), state.configs.len()), (2, 0, 0));
}

#[tokio::test]
async fn a_replay_leaves_what_a_build_makes() {
    let world = World::new(STEPS);
    world.write("f", "F");
    let (outcome, sandbox) = replayed(&world, false).await;
    outcome.unwrap();
    let built = world.build().await;
    let paths = |tree: &fake::Tree| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&sandbox.now), paths(&world.machine.tree(&built.image)));
}

#[tokio::test]
async fn a_replay_of_scratch_begins_with_nothing() {
    let world = World::new("FROM scratch\nCOPY f /f");
    world.write("f", "F");
    let quiet = |_| {};
    let found = base(&world.request(&quiet), &world.machine).await.unwrap();
    assert!(found.layers.is_empty());
    let (outcome, sandbox) = replayed(&world, false).await;
    outcome.unwrap();
    assert_eq!(sandbox.now["/f"].content, "F");
}

#[tokio::test]
async fn secret_variables_are_there_in_a_replay_and_masked() {
    let world = World::new("FROM debian\nRUN --mount=type=secret,id=t,env=TOKEN env");
    world.machine.0.lock().unwrap().secrets.insert("t".to_owned(), b"hunter2".to_vec());
    let (outcome, _sandbox) = replayed(&world, false).await;
    outcome.unwrap();
    assert!(world.output().contains("TOKEN=[secret t]\n"));
}

#[tokio::test]
async fn mounts_of_a_replay_are_up_to_the_sandbox() {
    let world = World::new("FROM debian\nRUN --mount=target=/m,source=dir copy /m/f /out\nRUN ls /m");
    world.write("dir/f", "F");
    let (outcome, _sandbox) = replayed(&world, false).await;
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), Kind::User);
    let message = error.to_api().message;
    assert!(message.starts_with("Dockerfile:2: cannot set the sandbox up for step 2"), "{message}");
    let (outcome, sandbox) = replayed(&world, true).await;
    outcome.unwrap();
    assert_eq!(sandbox.now["/out"].content, "F");
    // It is gone with the step.
    assert_eq!(world.output(), "\n");
}

#[tokio::test]
async fn a_step_that_fails_ends_the_replay_and_leaves_no_mount() {
    let world = World::new(
        "FROM debian\nRUN --mount=type=secret,id=t cat /run/secrets/t && fail 4\nRUN write /never 1",
    );
    world.machine.0.lock().unwrap().secrets.insert("t".to_owned(), b"hunter2".to_vec());
    let (outcome, mut sandbox) = replayed(&world, true).await;
    let Err(Error::StepFailed(failure)) = outcome else { panic!("{outcome:?}") };
    assert_eq!((failure.exit_code, failure.step), (Some(4), 2));
    assert!(!sandbox.now.contains_key("/never"));
    let spec = berth_build::runner::RunSpec {
        argv: vec!["cat /run/secrets/t".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: String::new(),
    };
    let mut output = |_: &[u8]| {};
    let code = berth_build::runner::Step::run(&mut sandbox, spec, &mut output).await.unwrap();
    assert_eq!(code, 1);
}
