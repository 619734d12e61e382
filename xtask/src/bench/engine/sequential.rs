//! One sandbox after the other: create, `echo ok`, delete, by everybody, in turns so that a machine that changes while
//! it is measured changes for all.

use std::collections::BTreeMap;

use anyhow::Context as _;
use berth_client::types::sandbox::NetworkMode;
use serde::Deserialize;

use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::{cycle, request};
use super::peers::{Peer, time_peer, timed};
use super::{World, progress};

/// What the issue asks for. "Level" with bubblewrap is taken for at most a tenth slower.
const FLOOR_RATIO: f64 = 2.0;
const PODMAN_RATIO: f64 = 0.05;
const LEVEL_RATIO: f64 = 1.1;
const NETWORK_RATIO: f64 = 1.3;
/// Rounds that everybody's measurement is divided into.
const TURNS: u32 = 5;
/// Rounds of the floor program's that one process of it does.
const FLOOR_PIECE: u32 = 50;

/// Everybody's values, network or not.
pub(super) struct Sequential {
    network: bool,
    berth: Samples,
    create: Samples,
    exec: Samples,
    delete: Samples,
    phases: BTreeMap<String, Samples>,
    pub(super) floor: Samples,
    floor_phases: BTreeMap<String, Samples>,
    peers: Vec<(Peer, Result<Samples, String>)>,
}

/// What the floor program prints.
#[derive(Deserialize)]
struct FloorRounds {
    rounds_us: Vec<f64>,
    phases_us: BTreeMap<String, Vec<f64>>,
}

/// Measures everybody.
pub(super) async fn measure(world: &World, network: bool) -> Sequential {
    let mut all = Sequential {
        network,
        berth: Samples::default(),
        create: Samples::default(),
        exec: Samples::default(),
        delete: Samples::default(),
        phases: BTreeMap::new(),
        floor: Samples::default(),
        floor_phases: BTreeMap::new(),
        peers: Vec::new(),
    };
    all.warm_up(world).await;
    let turns = TURNS.min(world.count);
    for turn in 1..=turns {
        progress(&format!("one after the other{}: {turn}/{turns}", if network { ", network" } else { "" }));
        let count = world.count.div_ceil(turns);
        // In pieces: Ctrl-C waits for the present one.
        for done in (0..count).step_by(FLOOR_PIECE as usize) {
            all.add_floor(world, FLOOR_PIECE.min(count - done)).await;
        }
        for _ in 0..count {
            all.add_berth(world).await;
        }
        for (peer, samples) in &mut all.peers {
            let (Ok(samples), Some(argv)) = (samples, peer.command(&world.place, network)) else { continue };
            for _ in 0..count.div_ceil(peer.share()) {
                samples.add(time_peer(&world.place, *peer, argv.clone()).await);
            }
        }
    }
    all
}

impl Sequential {
    /// Finds out which peers work here, and has everybody's files in memory.
    async fn warm_up(&mut self, world: &World) {
        for _ in 0..3 {
            // What fails here fails again below, where it is counted.
            let _ = cycle(&world.client, &request(self.mode())).await;
        }
        for peer in &world.peers {
            let samples = match peer.command(&world.place, self.network) {
                None => Err("it makes no networks by itself".to_owned()),
                Some(argv) => match (world.podman_image(*peer), time_peer(&world.place, *peer, argv).await) {
                    (Err(why), _) => Err(why),
                    (Ok(()), Ok(_)) => Ok(Samples::default()),
                    (Ok(()), Err(error)) => Err(format!("{error:#}")),
                },
            };
            self.peers.push((*peer, samples));
        }
    }

    fn mode(&self) -> NetworkMode {
        if self.network { NetworkMode::Public } else { NetworkMode::NoNetwork }
    }

    async fn add_berth(&mut self, world: &World) {
        match cycle(&world.client, &request(self.mode())).await {
            Ok(cycle) => {
                self.berth.values.push(cycle.total());
                self.create.values.push(cycle.create);
                self.exec.values.push(cycle.exec);
                self.delete.values.push(cycle.delete);
                for (name, milliseconds) in cycle.phases {
                    self.phases.entry(name).or_default().values.push(milliseconds);
                }
            }
            Err(error) => self.berth.fail(&error),
        }
    }

    async fn add_floor(&mut self, world: &World, count: u32) {
        match floor(world, count, self.network).await {
            Ok(rounds) => {
                let milliseconds = |micros: Vec<f64>| micros.into_iter().map(|us| us / 1000.0);
                self.floor.values.extend(milliseconds(rounds.rounds_us));
                for (name, micros) in rounds.phases_us {
                    self.floor_phases.entry(name).or_default().values.extend(milliseconds(micros));
                }
            }
            Err(error) => self.floor.fail(&error),
        }
    }

    fn figure(&self) -> &'static str {
        if self.network { "sandbox-network" } else { "sandbox" }
    }

    fn peer_p50(&self, peer: Peer) -> Option<f64> {
        let (_, samples) = self.peers.iter().find(|(known, _)| *known == peer)?;
        samples.as_ref().ok()?.p50()
    }

    /// Berth beside each, then each by itself, then the parts. `without` is the same without network.
    pub(super) fn rows(&self, without: Option<&Self>) -> Vec<Row> {
        let own = |peer: &str, p50| self.berth.in_turn(self.figure()).beside(peer, p50);
        let mut rows = vec![own("floor", self.floor.p50()).asked(self.asked(Bound::AtMost(FLOOR_RATIO)))];
        if let Some(without) = without {
            let target = Target::ratio(Bound::AtMost(NETWORK_RATIO));
            rows.push(own("berth without network", without.berth.p50()).asked(target));
        }
        rows.extend(self.peers.iter().filter(|(peer, _)| peer.command_exists(self.network)).map(
            |(peer, _)| {
                let row = own(peer.name(), self.peer_p50(*peer))
                    .asked(peer_target(*peer).and_then(|b| self.asked(b)));
                peer.note().into_iter().fold(row, Row::noted)
            },
        ));
        rows.push(self.floor.in_turn(format!("{}/floor", self.figure())));
        rows.extend(self.peers.iter().map(|(peer, samples)| self.peer_row(*peer, samples)));
        rows.extend(self.parts());
        rows
    }

    /// Targets are those of the figure without network.
    fn asked(&self, bound: Bound) -> Option<Target> {
        (!self.network).then(|| Target::ratio(bound)).flatten()
    }

    fn peer_row(&self, peer: Peer, samples: &Result<Samples, String>) -> Row {
        let figure = format!("{}/{}", self.figure(), peer.name());
        match samples {
            Ok(samples) => peer.note().into_iter().fold(samples.in_turn(figure), Row::noted),
            Err(why) => Row::not_measured(figure, "ms", why),
        }
    }

    fn parts(&self) -> Vec<Row> {
        let figure = self.figure();
        let own = [("create", &self.create), ("exec", &self.exec), ("delete", &self.delete)];
        let mut rows: Vec<_> =
            own.iter().map(|(name, samples)| samples.row(format!("{figure}.{name}"), "ms")).collect();
        if self.phases.is_empty() {
            let why = "the API's answer to a create has no phases";
            rows.push(Row::not_measured(format!("{figure}.create.phases"), "ms", why));
        }
        let phases = self.phases.iter();
        rows.extend(phases.map(|(name, samples)| samples.row(format!("{figure}.create.{name}"), "ms")));
        let floor = self.floor_phases.iter();
        rows.extend(floor.map(|(name, samples)| samples.row(format!("{figure}/floor.{name}"), "ms")));
        rows
    }
}

/// What is asked beside a peer.
fn peer_target(peer: Peer) -> Option<Bound> {
    match peer {
        Peer::PodmanRunc | Peer::PodmanCrun => Some(Bound::AtMost(PODMAN_RATIO)),
        Peer::Runc => Some(Bound::Below(1.0)),
        Peer::Bwrap => Some(Bound::AtMost(LEVEL_RATIO)),
        Peer::Crun => None,
    }
}

async fn floor(world: &World, rounds: u32, network: bool) -> anyhow::Result<FloorRounds> {
    let path = |path: std::path::PathBuf| path.display().to_string();
    let (rootfs, dir) = (path(world.place.rootfs()), path(world.place.dir.join("floor")));
    let mut argv = vec![path(world.floor.clone()), rounds.to_string(), rootfs, dir];
    argv.extend(network.then(|| "network".to_owned()));
    let (_, output) = timed(argv, None).await?;
    serde_json::from_str(&output).context("the floor program's figures")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequential(network: bool) -> Sequential {
        let of = |value| Samples::of(vec![value; 4]);
        Sequential {
            network,
            berth: of(4.0),
            create: of(2.0),
            exec: of(0.5),
            delete: of(1.5),
            phases: BTreeMap::new(),
            floor: of(2.5),
            floor_phases: [("layer".to_owned(), of(0.1))].into(),
            peers: vec![
                (Peer::PodmanRunc, Ok(of(150.0))),
                (Peer::Crun, Err("cgroups in hybrid mode not supported".to_owned())),
                (
                    Peer::Bwrap,
                    if network { Err("it makes no networks by itself".into()) } else { Ok(of(4.1)) },
                ),
            ],
        }
    }

    #[test]
    fn everybody_has_a_row() {
        let rows = sequential(false).rows(None);
        insta::assert_snapshot!(super::super::super::rows::markdown(&rows));
    }

    #[test]
    fn the_network_is_compared_with_none() {
        let rows = sequential(true).rows(Some(&sequential(false)));
        insta::assert_snapshot!(super::super::super::rows::markdown(&rows));
    }
}
