//! Slots that are kept ready, in worlds made for each test. What a slot may reach is tested beside the slots that are
//! made on demand, in [`world_tests`](crate::world_tests).

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use berth_sys::netns;

use crate::world_tests::{World, address, eventually, options, plain};
use crate::{Error, Mode, Network, Options, PoolCounts, PoolSizes, Slot};

const SMALL: PoolSizes = PoolSizes { isolated: 2, connected: 3, most: 6 };
/// Set for the process that [`nothing_but_the_table_stays_after_a_kill`] kills.
const VICTIM: &str = "BERTH_NET_TEST_VICTIM";

async fn start(instance: &str, pool: PoolSizes) -> Network {
    Network::start(Options { pool, ..options(instance) }).await.unwrap()
}

fn is_full(network: &Network, mode: Mode) -> bool {
    let counts = network.pool(mode);
    counts.ready == counts.target
}

/// Attaches `count` times at once.
async fn burst(network: &Arc<Network>, mode: Mode, count: usize) -> Vec<Result<Slot, Error>> {
    let call = |_| {
        let network = Arc::clone(network);
        tokio::spawn(async move { network.attach(plain(mode)).await })
    };
    let calls: Vec<_> = (0..count).map(call).collect();
    let mut slots = Vec::new();
    for call in calls {
        slots.push(call.await.unwrap());
    }
    slots
}

/// Which namespace it is.
fn identity(slot: &Slot) -> String {
    let descriptor = slot.netns().as_raw_fd();
    fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap().display().to_string()
}

#[test]
fn nothing_is_kept_until_a_slot_of_its_kind_was_asked_for() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let network = start("p1", SMALL).await;
        drop(network.attach(plain(Mode::NoNetwork)).await.unwrap());
        eventually("the shelf is full", || is_full(&network, Mode::NoNetwork));
        assert_eq!(network.pool(Mode::Public), PoolCounts::default());
        assert_eq!(world.host_links(), links);
        network.shutdown().await.unwrap();
        assert_eq!(network.pool(Mode::NoNetwork).ready, 0);
    });
}

#[test]
fn a_burst_beyond_the_pool_is_served_and_every_slot_is_another_one() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let network = Arc::new(start("p2", SMALL).await);
        let mut addresses = BTreeSet::new();
        for _ in 0..3 {
            let slots: Vec<_> =
                burst(&network, Mode::Public, 10).await.into_iter().map(Result::unwrap).collect();
            let namespaces: BTreeSet<_> = slots.iter().map(identity).collect();
            assert_eq!(namespaces.len(), slots.len());
            for slot in &slots {
                assert!(addresses.insert(address(slot)), "an address is used again at once");
            }
            drop(slots);
            eventually("the shelf is full", || is_full(&network, Mode::Public));
        }
        let counts = network.pool(Mode::Public);
        assert_eq!((counts.target, counts.hits + counts.misses), (SMALL.most, 30));
        assert!(counts.hits >= SMALL.connected as u64, "{counts:?}");
        eventually("only the kept slots have links", || world.host_links().len() == links.len() + SMALL.most);
        network.shutdown().await.unwrap();
        assert_eq!(world.host_links(), links);
    });
}

#[test]
fn the_pool_leaves_no_request_without_an_address_that_it_could_have() {
    let Some(world) = World::new() else { return };
    world.on_host(async || {
        for round in 0..10 {
            let range = Some("172.29.0.0/29".parse().unwrap());
            let options = Options { range, ..options("p3") };
            let network = Arc::new(Network::start(options).await.unwrap());
            // Sooner or later in the course of filling.
            let first = network.attach(plain(Mode::Public)).await.unwrap();
            tokio::time::sleep(Duration::from_micros(500 * round)).await;
            let (slots, refused): (Vec<_>, Vec<_>) =
                burst(&network, Mode::Public, 7).await.into_iter().partition(Result::is_ok);
            assert_eq!((slots.len(), refused.len()), (5, 2));
            for error in refused.into_iter().map(Result::unwrap_err) {
                assert!(matches!(error, Error::NoFreeAddress { attached: 6, resting: 0, .. }), "{error}");
            }
            // The other kind is made and kept all the same.
            drop(network.attach(plain(Mode::NoNetwork)).await.unwrap());
            eventually("the other shelf is full", || is_full(&network, Mode::NoNetwork));
            drop((first, slots));
            network.shutdown().await.unwrap();
        }
    });
}

#[test]
fn a_shutdown_or_drop_amid_filling_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        for round in 0..12 {
            let network = Arc::new(start("p4", PoolSizes::default()).await);
            let slots = burst(&network, Mode::Public, 2).await;
            let _ = tokio::time::timeout(Duration::ZERO, network.attach(plain(Mode::Public))).await;
            tokio::time::sleep(Duration::from_millis(round)).await;
            if round % 2 == 0 {
                network.shutdown().await.unwrap();
                assert_eq!(world.host_links(), links);
                assert_eq!(world.tables(), "");
                assert!(matches!(network.attach(plain(Mode::Public)).await, Err(Error::Stopped)));
            } else {
                drop((network, slots));
                eventually("the table goes, as the last thing", || world.tables().is_empty());
                assert_eq!(world.host_links(), links);
            }
        }
    });
}

#[test]
fn who_waits_for_a_slot_at_the_end_hears_that_the_network_has_stopped() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let network = Arc::new(start("p5", SMALL).await);
        let calls = tokio::spawn({
            let network = Arc::clone(&network);
            async move { burst(&network, Mode::Public, 50).await }
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
        network.shutdown().await.unwrap();
        for outcome in calls.await.unwrap() {
            assert!(matches!(outcome, Ok(_) | Err(Error::Stopped)));
        }
        assert_eq!(world.host_links(), links);
    });
}

/// No test of its own: the victim of the next one.
#[test]
#[ignore = "waits to be killed"]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let network = start("p6", SMALL).await;
        let _slots = burst(&Arc::new(network), Mode::Public, 4).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}

#[test]
fn nothing_but_the_table_stays_after_a_kill() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    let mut victim = netns::run_in(world.host.as_fd(), || {
        Command::new(std::env::current_exe()?)
            .args(["--exact", "pool_tests::victim", "--ignored"])
            .env(VICTIM, "1")
            .stdout(Stdio::null())
            .spawn()
    })
    .unwrap();
    eventually("it has slots in use and slots ready", || {
        world.host_links().len() == links.len() + 4 + SMALL.connected.max(4)
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("the links go with the namespaces", || world.host_links() == links);
    world.on_host(async || {
        let network = start("p6", SMALL).await;
        network.shutdown().await.unwrap();
        assert_eq!(world.tables(), "");
    });
}
