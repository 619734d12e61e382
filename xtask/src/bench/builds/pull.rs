//! An image of a registry on loopback into an empty store, beside podman's.

use std::time::Instant;

use berth_client::types::image::{PullImage, PullPolicy};

use super::super::rows::{Bound, Row, Samples, Target};
use super::{World, milliseconds, progress, time};

pub(super) async fn measure(world: &World) -> anyhow::Result<Vec<Row>> {
    let registry = world.registry()?;
    let (mut berth, mut podman) = (Samples::default(), Samples::default());
    for round in 1..=world.rounds {
        progress(&format!("pull, round {round} of {}", world.rounds));
        let fresh = world.fresh(&format!("pull-{round}"))?;
        let request = PullImage {
            reference: registry.reference(),
            policy: PullPolicy::Missing,
            auth: None,
            cache: false,
        };
        let start = Instant::now();
        let pulled = fresh.client.pull_image(&request, |_| {}).await;
        berth.add(pulled.map(|_| milliseconds(start)).map_err(Into::into));
        drop(fresh);
        let name = format!("pull-podman-{round}");
        let mut command = world.podman(&name);
        podman.add(time(command.args(["pull", "--quiet", "--tls-verify=false", &registry.reference()])));
        let _ = world.podman(&name).args(["system", "reset", "--force"]).output();
    }
    let figure = "pull and unpack of 180 MB, 4 layers";
    let row = berth.row(figure, "ms").beside("podman pull", podman.p50());
    let row = row.asked(Target::ratio(Bound::AtMost(1.0 / 1.5)));
    Ok(vec![row, podman.row(format!("{figure}/podman"), "ms")])
}
