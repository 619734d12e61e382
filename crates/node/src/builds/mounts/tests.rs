//! What a step asks for, and what the driver is told, over a driver that is made up.

use std::sync::Arc;
use std::sync::Mutex;

use berth_build::runner::{Runner, Setting, Sharing};
use berth_types::image::BuildImage;
use berth_types::sandbox::NetworkMode;

use super::super::runner::Kept;
use super::super::settings::Settings;
use super::*;
use crate::fake::World;
use crate::{BuildPolicy, LimitPolicy};

type Said = Arc<Mutex<Vec<String>>>;

fn builder(world: &World, request: &BuildImage) -> (Builder, Said) {
    let said = Said::default();
    let hear = said.clone();
    let sink: crate::Sink = Arc::new(move |progress| {
        if let Progress::Message { text } = progress {
            hear.lock().unwrap().push(text);
        }
    });
    let settings =
        Settings::new(request, &BuildPolicy::default(), &LimitPolicy::default(), world.node.enforces())
            .unwrap();
    (
        Builder {
            node: world.node.clone(),
            sink,
            kept: Kept::default(),
            settings,
            remotes: Default::default(),
            own: None,
        },
        said,
    )
}

fn cache(id: &str, sharing: Sharing) -> Mount {
    // Nobody else's files can be made without privilege.
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let source = MountSource::Cache { id: id.into(), sharing, seed: None, uid, gid, mode: 0o755 };
    Mount { target: format!("/{id}"), read_only: false, source }
}

fn setting(mounts: Vec<Mount>) -> Setting {
    Setting { mounts, no_network: false, runs: true }
}

fn last_spec(world: &World) -> berth_sandbox::StartSpec {
    world.controls.specs.lock().unwrap().last().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_has_the_mounts_and_the_network_that_it_asks_for() {
    let world = World::new().await;
    let (builder, _) = builder(&world, &BuildImage::default());
    let base = builder.base_image("tiny").await.unwrap();
    let secret = MountSource::Secret { bytes: b"hush".to_vec(), uid: 1, gid: 2, mode: 0o400 };
    let layers = MountSource::Layers { layers: base.layers.clone(), path: "/hello".into() };
    let mount = |target: &str, source| Mount { target: target.into(), read_only: true, source };
    let mounts = vec![
        mount("/bind", layers),
        mount("/tmp", MountSource::Tmpfs { size: Some(7) }),
        mount("/run/secrets/x", secret),
        cache("c", Sharing::Shared),
    ];
    let _step = builder.open(&base.layers, setting(mounts)).await.unwrap();
    let spec = last_spec(&world);
    assert!(spec.public_network && spec.binds.is_empty());
    let [bind, tmpfs, secret, cache] = spec.mounts.as_slice() else { panic!("{:?}", spec.mounts) };
    let berth_sandbox::MountSource::Layers { names, path } = &bind.source else { panic!("{bind:?}") };
    assert_eq!((names, path.to_str()), (&spec.layers, Some("/hello")));
    assert!(bind.read_only && bind.target.to_str() == Some("/bind"));
    assert_eq!(tmpfs.source, berth_sandbox::MountSource::Tmpfs { size: Some(7) });
    let hush = berth_sandbox::MountSource::Bytes { bytes: b"hush".to_vec(), uid: 1, gid: 2, mode: 0o400 };
    assert_eq!(secret.source, hush);
    let berth_sandbox::MountSource::Directory(dir) = &cache.source else { panic!("{cache:?}") };
    assert!(dir.is_dir() && !cache.read_only);
    assert!(!format!("{spec:?}").contains("hush") && !format!("{:?}", spec.mounts).contains("104, 117"));

    let offline = Setting { no_network: true, ..Setting::default() };
    let _step = builder.open(&base.layers, offline).await.unwrap();
    assert!(!last_spec(&world).public_network);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_without_network_has_none_in_any_step() {
    let world = World::new().await;
    let request = BuildImage { network: NetworkMode::NoNetwork, ..BuildImage::default() };
    let (builder, _) = builder(&world, &request);
    let base = builder.base_image("tiny").await.unwrap();
    let _step = builder.open(&base.layers, Setting::default()).await.unwrap();
    assert!(!last_spec(&world).public_network);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_cache_is_waited_for_until_the_step_that_has_it_is_dead() {
    let world = World::new().await;
    let (first, _) = builder(&world, &BuildImage::default());
    let (second, said) = builder(&world, &BuildImage::default());
    let base = first.base_image("tiny").await.unwrap();
    let step = first.open(&base.layers, setting(vec![cache("apt", Sharing::Locked)])).await.unwrap();
    let machine = world.controls.machine(&last_spec(&world).id);
    let layers = base.layers.clone();
    let waits = tokio::spawn(async move {
        let opened = second.open(&layers, setting(vec![cache("apt", Sharing::Locked)])).await;
        opened.map(drop).map_err(|error| error.to_string())
    });
    while said.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*said.lock().unwrap(), ["waiting for the cache mount `apt`, which another step uses"]);
    assert!(!waits.is_finished() && !machine.is_dead());
    // As when a step fails: nobody commits it.
    drop(step);
    waits.await.unwrap().unwrap();
    assert!(machine.is_dead(), "its cache was given to another while it could still write");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_cannot_be_had_leaves_no_cache() {
    let world = World::new().await;
    let (builder, _) = builder(&world, &BuildImage::default());
    let base = builder.base_image("tiny").await.unwrap();
    let mut mount = cache("x", Sharing::Shared);
    let MountSource::Cache { seed, .. } = &mut mount.source else { unreachable!() };
    *seed = Some((vec![LayerId(format!("sha256:{}", "0".repeat(64)))], "/".into()));
    let refused = builder.open(&base.layers, setting(vec![mount])).await;
    assert!(matches!(refused.map(drop), Err(RunnerError::Infrastructure { .. })));
    assert_eq!(world.node.0.caches.list(), []);
    let _step = builder.open(&base.layers, setting(vec![cache("x", Sharing::Shared)])).await.unwrap();
}
