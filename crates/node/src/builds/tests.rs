//! Many who ask for builds at once, over the driver that is made up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_types::error::ApiError;
use berth_types::image::{BuildImage, BuildResult, ContextEntry, ContextKind, ContextManifest, Secret};
use berth_types::progress::Progress;
use berth_types::sandbox::Resources;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

use super::settings::hex;
use crate::fake::{Controls, World, roomy};
use crate::images::{Body, Sink};
use crate::{Error, Node};

/// A context of one Dockerfile and one other file.
struct Files {
    manifest: ContextManifest,
    tar: Vec<u8>,
}

fn files(dockerfile: &str, data: &str) -> Files {
    let mut tar = tar::Builder::new(Vec::new());
    let mut entries = Vec::new();
    for (path, text) in [("Dockerfile", dockerfile), ("data", data)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        let kind = ContextKind::File { size: text.len() as u64, digest: hex(&Sha256::digest(text)) };
        entries.push(ContextEntry { path: path.to_owned(), mode: 0o644, kind });
    }
    let texts = BTreeMap::from([("Dockerfile".to_owned(), dockerfile.to_owned())]);
    Files { manifest: ContextManifest { entries, texts }, tar: tar.into_inner().unwrap() }
}

/// One that needs no sandbox.
fn plain() -> Files {
    files("FROM scratch\nLABEL a=b\n", "x")
}

/// One whose only command never ends: guests of this world say nothing.
fn endless() -> Files {
    files("FROM tiny\nRUN true\n", "x")
}

fn request(files: &Files) -> BuildImage {
    BuildImage { manifest: Some(files.manifest.clone()), ..BuildImage::default() }
}

fn silent() -> Sink {
    Arc::new(|_| {})
}

fn body(tar: &[u8]) -> Option<Body> {
    Some(Box::new(std::io::Cursor::new(tar.to_vec())))
}

type Asking = JoinHandle<Result<BuildResult, Error>>;

fn ask(node: &Node, request: BuildImage, context: Option<Body>, sink: Sink) -> Asking {
    let node = node.clone();
    tokio::spawn(async move { node.build_image(request, context, sink).await })
}

fn code(result: Result<BuildResult, Error>) -> String {
    ApiError::from(&result.unwrap_err()).code
}

/// Waits until something is so, for as long as a slow machine may take.
async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never was so");
}

impl World {
    fn contexts(&self) -> usize {
        let tmp = std::fs::read_dir(&self.node.0.tmp).unwrap();
        tmp.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("context-"))
            .count()
    }

    fn steps_under_way(&self) -> usize {
        self.controls.machines.lock().unwrap().keys().filter(|id| id.starts_with("build-")).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_who_ask_at_once_one_sends_the_context_and_one_image_is_built() {
    let world = World::new().await;
    let files = Arc::new(plain());
    let sent = Arc::new(AtomicUsize::new(0));
    let clients: Vec<JoinHandle<BuildResult>> = (0..100)
        .map(|_| {
            let (node, files, sent) = (world.node.clone(), files.clone(), sent.clone());
            tokio::spawn(async move {
                match node.build_image(request(&files), None, silent()).await {
                    Err(Error::ContextNeeded) => {
                        sent.fetch_add(1, Ordering::SeqCst);
                        node.build_image(request(&files), body(&files.tar), silent()).await.unwrap()
                    }
                    other => other.unwrap(),
                }
            })
        })
        .collect();
    let mut ids = Vec::new();
    for client in clients {
        ids.push(client.await.unwrap().image.id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(sent.load(Ordering::SeqCst), 1, "one context was sent");
    until(|| world.contexts() == 0).await;
}

#[tokio::test]
async fn everybody_who_waits_gives_the_image_his_own_tags_and_sees_what_went_on() {
    let world = World::new().await;
    let files = plain();
    let tagged = |tag: &str| BuildImage { tags: vec![tag.into()], ..request(&files) };
    let (sender, mut pipe) = tokio::io::duplex(64);
    let first = ask(&world.node, tagged("one"), Some(Box::new(sender)), silent());
    let (heard, log) = {
        let log = Arc::new(Mutex::new(Vec::new()));
        let into = log.clone();
        (Arc::new(move |progress| into.lock().unwrap().push(progress)) as Sink, log)
    };
    until(|| world.contexts() == 1).await;
    let second = ask(&world.node, tagged("two"), None, heard);
    until(|| !log.lock().unwrap().is_empty()).await;
    assert!(matches!(&log.lock().unwrap()[0], Progress::Message { text } if text.contains("another client")));
    pipe.write_all(&files.tar).await.unwrap();
    drop(pipe);
    let one = first.await.unwrap().unwrap();
    let two = second.await.unwrap().unwrap();
    assert_eq!(one.image.id, two.image.id);
    let references = world.node.image(&one.image.id).await.unwrap().references;
    assert_eq!(references, ["docker.io/library/one:latest", "docker.io/library/two:latest"]);
    assert!(log.lock().unwrap().iter().any(|progress| matches!(progress, Progress::Step { .. })));
}

#[tokio::test]
async fn when_the_one_who_sends_goes_away_the_next_one_is_told_to_send() {
    let world = World::new().await;
    let files = plain();
    let (sender, _pipe) = tokio::io::duplex(64);
    let first = ask(&world.node, request(&files), Some(Box::new(sender)), silent());
    until(|| world.contexts() == 1).await;
    let second = ask(&world.node, request(&files), None, silent());
    tokio::task::yield_now().await;
    first.abort();
    assert_eq!(code(second.await.unwrap()), "context_needed");
    // One that breaks off is no better.
    let half = &files.tar[..700];
    let third = world.node.build_image(request(&files), body(half), silent()).await;
    assert_eq!(code(third), "bad_context");
    world.node.build_image(request(&files), body(&files.tar), silent()).await.unwrap();
}

#[tokio::test]
async fn a_context_that_is_not_what_was_said_of_it_is_not_built() {
    let world = World::new().await;
    let (said, came) = (plain(), files("FROM scratch\nLABEL a=b\n", "y"));
    let refused = world.node.build_image(request(&said), body(&came.tar), silent()).await.unwrap_err();
    assert!(refused.to_string().contains("\"data\" is not what was said of it"), "{refused}");
    assert_eq!(ApiError::from(&refused).code, "context_changed");
    let mut more = plain();
    more.manifest.entries.pop();
    let refused = world.node.build_image(request(&more), body(&said.tar), silent()).await;
    assert_eq!(code(refused), "context_changed");
    assert!(
        world.node.images().await.unwrap().iter().all(|image| !image.references.is_empty()),
        "nothing was built"
    );
    until(|| world.contexts() == 0).await;
}

#[tokio::test]
async fn what_was_built_before_is_found_by_what_the_context_holds() {
    let world = World::new().await;
    let files = plain();
    let plain_tar = world.node.build_image(BuildImage::default(), body(&files.tar), silent()).await.unwrap();
    let found = world.node.build_image(request(&files), None, silent()).await.unwrap();
    assert_eq!((found.image.id, found.content_key), (plain_tar.image.id, plain_tar.content_key));
    assert_eq!((found.cached_steps, found.joined), (found.steps, false));
    let anew = BuildImage { no_cache: true, ..request(&files) };
    assert_eq!(code(world.node.build_image(anew, None, silent()).await), "context_needed");
    let nothing = world.node.build_image(BuildImage::default(), None, silent()).await;
    assert_eq!(code(nothing), "context_needed");
}

#[tokio::test]
async fn a_dockerfile_without_a_context_is_built_at_once() {
    let world = World::new().await;
    let text =
        BuildImage { dockerfile_text: Some("FROM scratch\nLABEL x=y\n".into()), ..BuildImage::default() };
    let built = world.node.build_image(text, None, silent()).await.unwrap();
    assert_eq!(built.image.config.labels["x"], "y");
}

#[tokio::test]
async fn a_build_goes_on_when_the_first_one_leaves_and_ends_with_the_last() {
    let world = World::new().await;
    let files = endless();
    let first = ask(&world.node, request(&files), body(&files.tar), silent());
    until(|| world.steps_under_way() == 1).await;
    let second = ask(&world.node, request(&files), None, silent());
    // By the tar alone it is the same build, too.
    let third = ask(&world.node, BuildImage::default(), body(&files.tar), silent());
    let other = Secret("aHVzaA==".into());
    let apart = BuildImage { secrets: BTreeMap::from([("id".to_owned(), other)]), ..request(&files) };
    assert_eq!(code(world.node.build_image(apart, None, silent()).await), "context_needed");
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.abort();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!second.is_finished() && !third.is_finished());
    assert_eq!(world.steps_under_way(), 1, "one build is under way");
    let id =
        world.controls.machines.lock().unwrap().keys().find(|id| id.starts_with("build-")).unwrap().clone();
    let machine = world.controls.machine(&id);
    assert!(Arc::strong_count(&machine) > 2, "the step is alive");
    until(|| world.contexts() == 1).await;
    second.abort();
    third.abort();
    // Ours, and that of the driver's list.
    until(|| Arc::strong_count(&machine) == 2).await;
    until(|| world.contexts() == 0).await;
}

#[tokio::test]
async fn all_who_wait_get_the_same_failure_and_the_next_one_starts_anew() {
    let world = World::new().await;
    let files = endless();
    let first = ask(&world.node, request(&files), body(&files.tar), silent());
    until(|| world.steps_under_way() == 1).await;
    let second = ask(&world.node, request(&files), None, silent());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let id =
        world.controls.machines.lock().unwrap().keys().find(|id| id.starts_with("build-")).unwrap().clone();
    world.controls.machine(&id).cut().await;
    let (one, two) = (first.await.unwrap().unwrap_err(), second.await.unwrap().unwrap_err());
    let (one, two) = (ApiError::from(&one), ApiError::from(&two));
    assert_eq!(one, two);
    assert!(one.kind.is_infrastructure(), "{one:?}");
    assert_eq!(code(world.node.build_image(request(&files), None, silent()).await), "context_needed");
}

#[tokio::test]
async fn packages_are_a_step_on_top_of_the_image() {
    let world = World::new().await;
    let log = Arc::new(Mutex::new(Vec::new()));
    let into = log.clone();
    let heard: Sink = Arc::new(move |progress| into.lock().unwrap().push(progress));
    let with = |packages: &[&str]| BuildImage {
        dockerfile_text: Some("FROM tiny\nUSER app\n".into()),
        packages: packages.iter().map(|name| (*name).to_owned()).collect(),
        ..BuildImage::default()
    };
    let refused = world.node.build_image(with(&["git", "a;b"]), None, silent()).await.unwrap_err();
    assert!(refused.to_string().contains("\"a;b\""), "{refused}");
    let asking = ask(&world.node, with(&["jq", "git", "jq"]), None, heard);
    until(|| world.steps_under_way() == 1).await;
    let steps: Vec<String> = log
        .lock()
        .unwrap()
        .iter()
        .filter_map(|progress| match progress {
            Progress::Step { instruction, .. } => Some(instruction.clone()),
            _ => None,
        })
        .collect();
    let install = steps.iter().find(|step| step.starts_with("RUN")).unwrap();
    assert!(install.ends_with(r#""install","git","jq"]"#), "{install}");
    let below = steps.iter().position(|step| step == "USER app").unwrap();
    let on_top = steps.iter().position(|step| step == "USER root").unwrap();
    assert!(below < on_top, "{steps:?}");
    asking.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_steps_run_at_a_time_over_all_builds() {
    let most = 3;
    let policy = crate::BuildPolicy { parallel_steps: Some(most), ..crate::BuildPolicy::default() };
    let controls = Controls { reading: Mutex::new(roomy()), builds: policy, ..Controls::default() };
    let world = World::with(controls).await;
    let heard = Arc::new(AtomicUsize::new(0));
    let builds: Vec<Asking> = (0..100)
        .map(|n| {
            let files = files(&format!("FROM tiny\nRUN true {n}\n"), "x");
            let heard = heard.clone();
            let sink: Sink = Arc::new(move |progress| {
                if matches!(&progress, Progress::Message { text } if text.contains("3 steps run at a time")) {
                    heard.fetch_add(1, Ordering::SeqCst);
                }
            });
            ask(&world.node, BuildImage::default(), body(&files.tar), sink)
        })
        .collect();
    until(|| heard.load(Ordering::SeqCst) == 100 - most).await;
    assert_eq!(world.steps_under_way(), most, "the others wait, and were told");
    let committed = world.node.status().memory.committed_bytes;
    assert_eq!(committed, most as u64 * (16 << 20), "and nothing is set aside for them");
    // Whose step ends makes room for the next.
    let id = world.controls.machines.lock().unwrap().keys().next().unwrap().clone();
    world.controls.machine(&id).die(0);
    world.controls.machine(&id).cut().await;
    until(|| world.steps_under_way() == most + 1).await;
    builds.iter().for_each(JoinHandle::abort);
    until(|| world.node.0.builds.slots.taken() == 0).await;
    until(|| world.node.status().memory.committed_bytes == 0).await;
}

#[tokio::test]
async fn a_step_sets_aside_what_the_build_asks_for_and_what_never_fits_is_refused() {
    let world = World::new().await;
    let with = |memory_mb| BuildImage {
        dockerfile_text: Some("FROM tiny\nRUN true\n".into()),
        resources: Some(Resources { memory_mb: Some(memory_mb), ..Resources::default() }),
        ..BuildImage::default()
    };
    let asking = ask(&world.node, with(2048), None, silent());
    until(|| world.steps_under_way() == 1).await;
    assert_eq!(world.node.status().memory.committed_bytes, 1 << 30, "the limit over the overcommitment");
    asking.abort();
    until(|| world.node.status().memory.committed_bytes == 0).await;
    assert_eq!(code(world.node.build_image(with(9 << 10), None, silent()).await), "never_fits");
}

#[tokio::test]
async fn a_limit_of_storage_that_nobody_enforces_is_refused() {
    let world = World::with(Controls { reading: Mutex::new(roomy()), ..Controls::default() }).await;
    let asked = BuildImage {
        dockerfile_text: Some("FROM tiny\nRUN true\n".into()),
        resources: Some(Resources { storage_mb: Some(10), ..Resources::default() }),
        ..BuildImage::default()
    };
    assert_eq!(code(world.node.build_image(asked, None, silent()).await), "storage_unenforced");
}
