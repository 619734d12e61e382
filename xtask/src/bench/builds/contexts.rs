//! Contexts that are what they were, and one of which a line has changed.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use berth_client::types::image::BuildImage;
use berth_client::types::progress::Progress;

use super::super::rows::{Bound, Row, Samples, Target};
use super::{Fresh, World, build, milliseconds, progress};

const FILES: usize = 1000;
const SMALL: usize = 1 << 10;
const LARGE: usize = 50_000_000 / FILES;
const DOCKERFILE: &str = "FROM scratch\nCOPY data /data\nCOPY last /last\n";

pub(super) async fn measure(world: &World) -> anyhow::Result<Vec<Row>> {
    let fresh = world.fresh("contexts")?;
    let mut rows = Vec::new();
    for (name, bytes, most) in [("1,000 files", SMALL, 50.0), ("50 MB in 1,000 files", LARGE, 150.0)] {
        let context = world.dir.join(format!("context-{bytes}"));
        make(&context, bytes)?;
        progress(&format!("{name}, unchanged"));
        let unchanged = unchanged(&fresh, &context, world.count).await?;
        let row = unchanged.row(format!("unchanged context, {name} → image"), "ms");
        rows.push(row.asked(Target::value(Bound::AtMost(most))));
        progress(&format!("{name}, one line changed"));
        let row = changed(&fresh, &context, world.count)
            .await?
            .row(format!("one line changed in the last COPY, {name}: beyond its steps' own time"), "ms");
        rows.push(row.asked(Target::value(Bound::AtMost(300.0))));
    }
    Ok(rows)
}

fn make(context: &Path, bytes: usize) -> anyhow::Result<()> {
    for number in 0..FILES {
        let dir = context.join(format!("data/{:02}", number / 50));
        std::fs::create_dir_all(&dir).context("making a context")?;
        // No two alike, and none that compresses.
        let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        let data: Vec<u8> = std::iter::repeat_with(next).take(bytes).collect();
        std::fs::write(dir.join(format!("{number}")), data).context("making a context")?;
    }
    std::fs::write(context.join("Dockerfile"), DOCKERFILE).context("making a context")?;
    std::fs::write(context.join("last"), "line\n").context("making a context")
}

async fn unchanged(fresh: &Fresh, context: &Path, count: u32) -> anyhow::Result<Samples> {
    let request = BuildImage::default();
    let first = build(&fresh.client, &request, context, |_| {}).await?;
    let mut samples = Samples::default();
    for _ in 0..count {
        let start = Instant::now();
        let again = build(&fresh.client, &request, context, |_| {}).await?;
        let took = milliseconds(start);
        anyhow::ensure!(again.image.id == first.image.id, "an unchanged context became another image");
        anyhow::ensure!(again.cached_steps == again.steps, "an unchanged context ran steps");
        samples.add(Ok(took));
    }
    Ok(samples)
}

/// What a build took beyond what the daemon says that its steps did.
#[expect(clippy::cast_precision_loss, reason = "milliseconds")]
async fn changed(fresh: &Fresh, context: &Path, count: u32) -> anyhow::Result<Samples> {
    let request = BuildImage::default();
    let mut samples = Samples::default();
    for number in 0..count.min(10) {
        std::fs::write(context.join("last"), format!("another line {number}\n"))?;
        let mut own = 0;
        let start = Instant::now();
        let built = build(&fresh.client, &request, context, |step| {
            if let Progress::StepDone { elapsed_ms, .. } = step {
                own += elapsed_ms;
            }
        })
        .await?;
        let took = milliseconds(start);
        anyhow::ensure!(
            built.steps - built.cached_steps < built.steps,
            "nothing of a changed context was found"
        );
        samples.add(Ok(took - own as f64));
    }
    Ok(samples)
}
