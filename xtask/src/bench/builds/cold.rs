//! Ten steps of apt and pip with nothing cached, beside podman's builder.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context as _;
use berth_client::types::image::BuildImage;

use super::super::rows::{Bound, Row, Samples, Target};
use super::{BASE, World, build, milliseconds, progress, time};

/// What signs outgoing TLS may be known to this machine alone, so its list goes into the image for both.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

const DOCKERFILE: &str = "\
FROM localhost/berth-bench/debian:bookworm
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ENV SSL_CERT_FILE=/opt/ca.crt PIP_CERT=/opt/ca.crt
COPY ca.crt /opt/ca.crt
RUN apt-get update
RUN apt-get install -y --no-install-recommends python3 python3-venv
RUN apt-get install -y --no-install-recommends git jq
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install requests
RUN pip install pytest
WORKDIR /app
COPY app.py .
RUN python app.py > result && grep -q 200 result
RUN rm -rf /var/lib/apt/lists/*
";

pub(super) async fn measure(world: &World) -> anyhow::Result<Vec<Row>> {
    let context = world.dir.join("cold");
    std::fs::create_dir_all(&context).context("making a context")?;
    std::fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    std::fs::write(context.join("app.py"), "import requests\nprint(requests.codes.ok)\n")?;
    let certificates = std::fs::read(CERTIFICATES).unwrap_or_default();
    std::fs::write(context.join("ca.crt"), certificates)?;

    let fresh = world.fresh("cold-berth")?;
    let tar = world.base_tar();
    let tar = tar.to_str().context("the benchmark's directory is not UTF-8")?;
    let daemon = fresh.daemon.as_ref().context("a daemon")?;
    daemon.ask(&["image", "import", "--format", "rootfs", "--reference", BASE, tar])?;
    let imported = time(world.podman("cold-podman").arg("import").arg(world.base_tar()).arg(BASE));
    let (mut berth, mut podman) = (Samples::default(), Samples::default());
    let request = BuildImage { no_cache: true, ..BuildImage::default() };
    for round in 1..=world.rounds {
        progress(&format!("cold build, round {round} of {}", world.rounds));
        let start = Instant::now();
        let built = build(&fresh.client, &request, &context, |_| {}).await;
        berth.add(built.map(|_| milliseconds(start)));
        if imported.is_ok() {
            podman.add(time(&mut peer(world, &context)));
        }
    }
    let _ = world.podman("cold-podman").args(["system", "reset", "--force"]).output();
    let figure = "cold build of 10 steps, apt and pip";
    let row = berth.row(figure, "ms").beside("podman build", podman.p50());
    let row = row.asked(Target::ratio(Bound::AtMost(1.0)));
    let peer = match imported {
        Ok(_) => podman.row(format!("{figure}/podman"), "ms"),
        Err(error) => Row::not_measured(format!("{figure}/podman"), "ms", format!("{error:#}")),
    };
    Ok(vec![row, peer])
}

fn peer(world: &World, context: &Path) -> Command {
    let mut command = world.podman("cold-podman");
    command.args(["build", "--no-cache", "--isolation", "chroot", "--network", "host", "--format", "docker"]);
    command.arg("--layers=true").args(["-t", "localhost/berth-bench/cold"]).arg(context);
    command
}
