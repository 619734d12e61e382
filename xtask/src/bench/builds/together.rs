//! Equal builds at once, on an image that has to be pulled.

use std::time::Instant;

use anyhow::Context as _;
use berth_client::types::image::BuildImage;
use futures_util::future::join_all;

use super::super::rows::{Bound, Row, Samples, Target};
use super::{World, build, milliseconds, progress};

#[expect(clippy::cast_precision_loss, reason = "a hundred")]
pub(super) async fn measure(world: &World) -> anyhow::Result<Vec<Row>> {
    let count = world.together;
    progress(&format!("{count} equal builds at once"));
    let registry = world.registry()?;
    let fresh = world.fresh("together")?;
    let context = world.dir.join("together-context");
    std::fs::create_dir_all(&context).context("making a context")?;
    let dockerfile = format!("FROM {}\nCOPY file /file\nRUN sleep 2 && cat /file\n", registry.reference());
    std::fs::write(context.join("Dockerfile"), dockerfile)?;
    std::fs::write(context.join("file"), "the same\n")?;

    let start = Instant::now();
    let requests = (0..count).map(|number| {
        let request =
            BuildImage { tags: vec![format!("localhost/together:{number}")], ..BuildImage::default() };
        let (client, context) = (&fresh.client, &context);
        async move {
            let begun = Instant::now();
            let built = build(client, &request, context, |_| {}).await;
            (built, milliseconds(begun))
        }
    });
    let done = join_all(requests).await;
    let took = milliseconds(start);
    let mut each = Samples::default();
    let mut built = Vec::new();
    for (result, took) in done {
        match result {
            Ok(result) => {
                each.add(Ok(took));
                built.push(result);
            }
            Err(error) => each.fail(&error),
        }
    }
    let builds = built.iter().filter(|result| !result.joined && result.cached_steps < result.steps).count();
    let mut ids: Vec<_> = built.iter().map(|result| &result.image.id).collect();
    ids.sort();
    ids.dedup();
    let asked = registry.requests()?;
    let blobs: Vec<_> =
        asked.iter().filter(|line| line.starts_with("GET") && line.contains("/blobs/")).collect();
    let mut distinct = blobs.clone();
    distinct.sort();
    distinct.dedup();
    let manifests =
        asked.iter().filter(|line| line.starts_with("GET") && line.ends_with("/manifests/1")).count();
    let pulls = if blobs.len() == distinct.len() { manifests } else { manifests.max(blobs.len()) };
    let one = |count: usize, figure: &str| {
        let row = Samples::of(vec![count as f64])
            .row(format!("{count_of} equal builds at once: {figure}", count_of = world.together), "");
        row.asked(Target::value(Bound::AtMost(1.0)))
    };
    Ok(vec![
        one(builds, "builds"),
        one(pulls, "pulls"),
        one(ids.len(), "images"),
        each.row(format!("{count} equal builds at once: each (a step of them sleeps 2 s)"), "ms")
            .noted(format!("{took:.0} ms for all")),
    ])
}
