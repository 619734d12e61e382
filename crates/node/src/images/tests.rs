//! What is kept, for how long, and how it goes to another machine; over the driver that is made up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use berth_types::error::ApiError;
use berth_types::image::{ArchiveFormat, BuildImage, BuildResult, ExportImages, ImportImage, PruneImages};
use berth_types::progress::Progress;
use tokio::io::AsyncReadExt;

use super::{ImageLimits, Sink, TIDY_TASK};
use crate::builds::want_cache;
use crate::fake::{Controls, World, roomy, rootfs};

fn silent() -> Sink {
    Arc::new(|_| {})
}

/// A world whose disk, which is that of the machine that runs the test, is never too full.
async fn keeping(limits: ImageLimits) -> World {
    let image_limits = ImageLimits { min_free_percent: 0, ..limits };
    World::with(Controls { reading: Mutex::new(roomy()), image_limits, ..Controls::default() }).await
}

/// A build that needs no sandbox.
fn labelled(value: &str) -> BuildImage {
    let text = format!("FROM tiny\nLABEL a={value}\n");
    BuildImage { dockerfile_text: Some(text), ..BuildImage::default() }
}

async fn build(world: &World, request: BuildImage) -> BuildResult {
    world.node.build_image(request, None, silent()).await.unwrap()
}

async fn references(world: &World) -> Vec<String> {
    let images = world.node.images().await.unwrap();
    let mut all: Vec<String> = images.into_iter().flat_map(|image| image.references).collect();
    all.sort();
    all
}

async fn export(world: &World, request: ExportImages) -> Vec<u8> {
    let mut archive = Vec::new();
    world.node.export_images(request).await.unwrap().read_to_end(&mut archive).await.unwrap();
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_takes_image_and_build_cache_to_another_machine() {
    let (here, there) = (World::new().await, World::new().await);
    let built = build(&here, BuildImage { tags: vec!["app".into()], ..labelled("b") }).await;
    let request = ExportImages { images: vec!["app".into()], cache: true, ..ExportImages::default() };
    let archive = export(&here, request).await;

    let said = Arc::new(Mutex::new(String::new()));
    let into = said.clone();
    let sink: Sink = Arc::new(move |progress| {
        if let Progress::Message { text } = progress {
            into.lock().unwrap().push_str(&text);
        }
    });
    let import = ImportImage { reference: None, format: None };
    let body = Box::new(std::io::Cursor::new(archive));
    let imported = there.node.import_images(import, body, sink).await.unwrap();
    assert_eq!(imported.image.id, built.image.id);
    assert_eq!(imported.image.references, ["docker.io/library/app:latest"]);
    assert!(said.lock().unwrap().contains("1 rows of the build cache imported"), "{}", said.lock().unwrap());
    let found = build(&there, labelled("b")).await;
    assert_eq!((&found.image.id, found.cached_steps), (&built.image.id, found.steps), "it starts warm");
    // And what it is not of is made anew.
    assert_eq!(build(&there, labelled("c")).await.cached_steps, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_nobody_reads_to_its_end_ends_and_one_of_nothing_does_not_begin() {
    let world = World::new().await;
    let missing = ExportImages { images: vec!["nothing".into()], ..ExportImages::default() };
    let refused = world.node.export_images(missing).await.map(drop).unwrap_err();
    assert_eq!(ApiError::from(&refused).code, "image_not_found");
    let tiny = ExportImages { images: vec!["tiny".into()], ..ExportImages::default() };
    drop(world.node.export_images(tiny.clone()).await.unwrap());
    let mut first = [0; 1];
    world.node.export_images(tiny.clone()).await.unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!(export(&world, tiny.clone()).await, export(&world, tiny).await, "the same every time");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_another_kind_is_not_taken_for_one() {
    let world = World::new().await;
    let import = ImportImage { reference: None, format: Some(ArchiveFormat::OciArchive) };
    let body = Box::new(std::io::Cursor::new(rootfs(0)));
    let refused = world.node.import_images(import, body, silent()).await.unwrap_err();
    assert!(!ApiError::from(&refused).kind.is_infrastructure(), "{refused}");
    assert_eq!(references(&world).await, ["docker.io/library/tiny:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_above_its_bound_loses_what_has_no_name_first_and_then_what_was_used_longest_ago() {
    let world = keeping(ImageLimits { max_bytes: Some(4), ..ImageLimits::default() }).await;
    assert!(world.node.tidy_once().await.unwrap().is_nothing(), "3 bytes are below 4");
    world.import("other", rootfs(7)).await;
    let done = world.node.tidy_once().await.unwrap().to_string();
    assert!(done.starts_with("1 images and 1 layers of 3 bytes freed"), "{done}");
    assert_eq!(references(&world).await.len(), 1);

    // What a sandbox stands on stays, and that is said.
    let tight = keeping(ImageLimits { max_bytes: Some(1), ..ImageLimits::default() }).await;
    tight.create(|_| ()).await.unwrap();
    let done = tight.node.tidy_once().await.unwrap().to_string();
    assert!(done.contains("3 bytes are in use, 1 are allowed"), "{done}");
    assert_eq!(references(&tight).await, ["docker.io/library/tiny:latest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_used_for_long_and_has_no_name_goes_with_its_rows() {
    let world = keeping(ImageLimits { unused_days: 0, ..ImageLimits::default() }).await;
    let named = build(&world, BuildImage { tags: vec!["kept".into()], ..labelled("kept") }).await;
    let unnamed = build(&world, labelled("gone")).await;
    // Ages are whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let done = world.node.tidy_once().await.unwrap().to_string();
    assert!(done.contains(&unnamed.image.id) && !done.contains(&named.image.id), "{done}");
    assert!(world.node.image(&unnamed.image.id).await.is_err());
    assert!(world.node.image("kept").await.is_ok());
    assert_eq!(build(&world, labelled("gone")).await.cached_steps, 0, "nothing leads to what is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tasks_of_the_node_say_what_was_tidied_and_built() {
    let world = World::new().await;
    build(&world, labelled("x")).await;
    let failing = BuildImage { dockerfile_text: Some("FROM nothing:here\n".into()), ..BuildImage::default() };
    let token = ("TOKEN".to_owned(), "hush-hush".to_owned());
    let failing = BuildImage { build_args: BTreeMap::from([token]), ..failing };
    let line = |name: &str| {
        let tasks = world.node.status().tasks;
        tasks.into_iter().find(|task| task.name == name).unwrap()
    };
    let built = line("builds");
    assert_eq!((built.runs, built.failed), (1, false));
    assert!(built.last_result.unwrap().contains("steps from the cache"));
    for _ in 0..3000 {
        if line(TIDY_TASK).runs > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(line(TIDY_TASK).last_result.unwrap().contains("layers of"));
    world
        .node
        .build_image(BuildImage { pull: berth_types::image::BasePull::Never, ..failing }, None, silent())
        .await
        .unwrap_err();
    let failed = line("builds");
    assert_eq!((failed.runs, failed.failed), (2, false), "the Dockerfile's fault is not the node's");
    let told = failed.last_result.unwrap();
    assert!(told.contains("by its own fault") && !told.contains("hush"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_takes_cache_mounts_that_no_step_uses() {
    let world = World::new().await;
    let caches = &world.node.0.caches;
    let mut leases = caches.take(&[want_cache("used"), want_cache("idle")], |_| ()).await.unwrap();
    for lease in &mut leases {
        std::fs::write(lease.dir().join("file"), vec![1; 8192]).unwrap();
        lease.made().unwrap();
    }
    let idle = leases.pop().unwrap();
    assert_eq!(idle.id(), "idle");
    drop(idle);
    let prune = async |request: PruneImages| {
        world.node.prune_images(PruneImages { cache_mounts: true, ..request }, silent()).await.unwrap()
    };
    for _ in 0..3000 {
        let settled =
            caches.list().iter().any(|cache| cache.id == "idle" && !cache.in_use && cache.bytes > 0);
        if settled {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let would = prune(PruneImages { dry_run: true, ..PruneImages::default() }).await;
    assert_eq!(would.cache_mounts, ["idle"]);
    assert_eq!(caches.list().len(), 2, "it only said so");
    let kept = prune(PruneImages { unused_for_seconds: Some(3600), ..PruneImages::default() }).await;
    assert_eq!(kept.cache_mounts, [""; 0]);
    let gone = prune(PruneImages::default()).await;
    assert_eq!(gone.cache_mounts, ["idle"]);
    assert!(gone.freed_bytes >= 8192, "{gone:?}");
    assert_eq!(caches.list().len(), 1, "what is in use stays");
    assert_eq!(references(&world).await, ["docker.io/library/tiny:latest"]);
}
