//! Slots that outlive the daemon that made them, in worlds made for each test. A sandbox is a descriptor of its namespace
//! here, or a process in it where the daemon is killed.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use berth_sys::netns;
use serde::{Deserialize, Serialize};

use crate::world_tests::{NO_POOL, UPSTREAM, World, address, ask, chain, eventually, options, plain, serve};
use crate::{Error, KeptIds, KeptSlot, Mode, Network, Options, PoolSizes, Slot, Unfit, UserNamespace};

const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Set for the process that [`a_killed_daemons_sandboxes_are_taken_over_amid_their_connections`] kills.
const VICTIM: &str = "BERTH_NET_TEST_TAKEN_OVER";

/// A sandbox whose daemon is gone.
struct Orphan {
    kept: KeptSlot,
    netns: OwnedFd,
}

impl Orphan {
    fn of(slot: &Slot) -> Self {
        Self { kept: slot.kept(), netns: slot.netns().try_clone_to_owned().unwrap() }
    }

    fn link(&self) -> &str {
        &self.kept.link.as_ref().unwrap().name
    }

    async fn adopted_by(self, network: &Network) -> Result<Slot, Error> {
        network.adopt(self.kept, self.netns, None).await
    }
}

async fn start(instance: &str, keep: Vec<KeptSlot>) -> Network {
    Network::start(Options { pool: NO_POOL, keep, ..options(instance) }).await.unwrap()
}

/// Sandboxes of a daemon that has stopped and left them. It had this range, or chose one.
async fn orphans<const N: usize>(instance: &str, range: Option<&str>) -> [Orphan; N] {
    let range = range.map(|range| range.parse().unwrap());
    let network = Network::start(Options { pool: NO_POOL, range, ..options(instance) }).await.unwrap();
    let mut slots = Vec::new();
    for _ in 0..N {
        slots.push(network.attach(plain(Mode::Public)).await.unwrap());
    }
    network.leave().await.unwrap();
    let orphans: Vec<_> = slots.iter().map(Orphan::of).collect();
    orphans.try_into().ok().unwrap()
}

fn reason(outcome: Result<Slot, Error>) -> Unfit {
    match outcome {
        Err(Error::Adopt { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_network_that_leaves_keeps_what_is_in_use_and_nothing_else() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    serve(world.upstream.as_fd(), (UPSTREAM, 7000));
    world.on_host(async || {
        let network = Network::start(options("k1")).await.unwrap();
        let slot = network.attach(plain(Mode::Public)).await.unwrap();
        let given_back = network.attach(plain(Mode::Public)).await.unwrap();
        eventually("slots are ready", || network.pool(Mode::Public).ready > 1);
        let orphan = Orphan::of(&slot);
        drop(given_back);
        network.leave().await.unwrap();
        let left: Vec<_> = world.host_links().into_iter().filter(|link| !links.contains(link)).collect();
        assert_eq!(left, [orphan.link()]);
        assert!(matches!(network.attach(plain(Mode::Public)).await, Err(Error::Stopped)));
        network.leave().await.unwrap();
        network.shutdown().await.unwrap();
        drop((slot, network));
        assert_eq!(ask(orphan.netns.as_fd(), UPSTREAM, 7000).unwrap(), HOST.to_string());

        // Its namespace ends while there is no daemon: the next one removes the rest.
        let Orphan { kept, netns } = orphan;
        drop(netns);
        eventually("the link goes with its namespace", || world.host_links() == links);
        let network = start("k1", vec![kept.clone()]).await;
        let (other, ()) = netns::create(|| Ok(())).unwrap();
        assert_eq!(reason(network.adopt(kept, other, None).await), Unfit::Gone);
        let last = network.attach(plain(Mode::Public)).await.unwrap();
        drop(last);
        // Nothing is in use, so nothing stays.
        network.leave().await.unwrap();
        assert_eq!((world.host_links(), world.tables()), (links.clone(), String::new()));
    });
}

#[test]
fn an_adopted_slot_is_like_any_other_in_the_range_that_it_had() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    serve(world.upstream.as_fd(), (UPSTREAM, 7000));
    world.on_host(async || {
        let [a, b, c, d] = orphans("k2", Some("172.29.0.0/24")).await;
        let keep: Vec<_> = [&a, &b, &c, &d].map(|orphan| orphan.kept.clone()).into();
        let taken: Vec<_> = keep.iter().filter_map(|kept| Some(kept.link.as_ref()?.address)).collect();
        // Nothing is configured any more, but addresses cannot change.
        let network = start("k2", keep).await;
        assert_eq!(network.public().unwrap().to_string(), "172.29.0.0/24");
        assert_eq!(network.warnings(), [""; 0]);
        let (kept_a, kept_d) = (a.kept.clone(), d.kept.clone());
        let before = a.kept.link.as_ref().unwrap().address;
        let slot = a.adopted_by(&network).await.unwrap();
        assert_eq!((slot.mode(), address(&slot), slot.kept()), (Mode::Public, before, kept_a.clone()));
        assert_eq!(slot.resolv_conf(), format!("nameserver {METADATA}\n"));
        assert_eq!(ask(slot.netns(), UPSTREAM, 7000).unwrap(), HOST.to_string());

        let fresh = network.attach(plain(Mode::Public)).await.unwrap();
        assert!(!taken.contains(&address(&fresh)), "an address is handed out twice");
        serve(b.netns.as_fd(), (Ipv4Addr::UNSPECIFIED, 7002));
        let of_b = b.kept.link.as_ref().unwrap().address;
        assert!(ask(world.host.as_fd(), of_b, 7002).is_ok());
        for from in [&slot, &fresh] {
            assert!(ask(from.netns(), of_b, 7002).is_err(), "sandboxes of two daemons reach each other");
        }

        // Once is enough.
        let netns = slot.netns().try_clone_to_owned().unwrap();
        assert_eq!(reason(network.adopt(kept_a.clone(), netns, None).await), Unfit::Unknown);
        network.abandon(&kept_a);
        assert!(world.host_links().contains(&slot.link().unwrap().to_owned()));
        let link = slot.link().unwrap().to_owned();
        drop(slot);
        eventually("the link goes with its slot", || !world.host_links().contains(&link));

        // One that is given up goes, though something holds its namespace.
        let of_c = c.link().to_owned();
        network.abandon(&c.kept);
        eventually("what is given up goes", || !world.host_links().contains(&of_c));

        // What nobody has asked for yet is left again, and is gone after a shutdown.
        drop(fresh);
        network.leave().await.unwrap();
        assert!([b.link(), d.link()].iter().all(|link| world.host_links().contains(&(*link).to_owned())));
        let network = start("k2", vec![kept_d.clone()]).await;
        assert!(!world.host_links().contains(&b.link().to_owned()));
        drop(network.adopt(kept_d, d.netns, None).await.unwrap());
        network.shutdown().await.unwrap();
        assert_eq!((world.host_links(), world.tables()), (links.clone(), String::new()));
    });
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason_and_its_link_is_removed() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let [a, b, c] = orphans("k3", None).await;
        let (kept, netns) = (a.kept.clone(), a.netns.try_clone().unwrap());
        let network = start("k3", [&a, &b].map(|orphan| orphan.kept.clone()).into()).await;
        assert!(!world.host_links().contains(&c.link().to_owned()), "nobody asked for it to be kept");
        assert_eq!(reason(c.adopted_by(&network).await), Unfit::Unknown);
        // The right namespace of the wrong sandbox.
        assert_eq!(reason(network.adopt(kept.clone(), b.netns.try_clone().unwrap(), None).await), Unfit::Elsewhere);
        eventually("its link is removed", || !world.host_links().contains(&a.link().to_owned()));
        assert_eq!(reason(network.adopt(kept, netns, None).await), Unfit::Unknown);

        let ids = KeptIds { first: 100_000, count: 65_536 };
        let wrong = KeptSlot { ids: Some(ids), ..b.kept.clone() };
        assert_eq!(reason(network.adopt(wrong, b.netns.try_clone().unwrap(), None).await), Unfit::Unknown);
        let user = UserNamespace { fd: b.netns.try_clone().unwrap(), first: 1, count: 2, lease: Box::new(()) };
        let error = network.adopt(b.kept.clone(), b.netns.try_clone().unwrap(), Some(user)).await.unwrap_err();
        insta::assert_snapshot!(chain(&error).replace(&b.kept.link.as_ref().unwrap().address.to_string(), "ADDRESS"), @"could not take over the sandbox link bthk3-002 with address ADDRESS: its ids are none, those of the user namespace given are 1-2");
        eventually("its link is removed", || world.host_links() == links);
        network.shutdown().await.unwrap();
        assert_eq!(world.tables(), "");
    });
}

#[test]
fn a_configured_range_that_changed_is_an_error_for_sandboxes_of_the_old_one() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let [orphan] = orphans("k4", Some("172.29.0.0/24")).await;
        let (range, keep) = (Some("172.29.1.0/24".parse().unwrap()), vec![orphan.kept.clone()]);
        let network =
            Network::start(Options { range, keep, pool: NO_POOL, ..options("k4") }).await.unwrap();
        assert_eq!(network.public().unwrap().to_string(), "172.29.1.0/24");
        assert_eq!(world.host_links(), links, "its rules are gone, so its link must be");
        let error = orphan.adopted_by(&network).await.unwrap_err();
        insta::assert_snapshot!(chain(&error), @"could not take over the sandbox link bthk4-001 with address 172.29.0.1: its range 172.29.0.0/24 is not the network's, 172.29.1.0/24");
        insta::assert_snapshot!(error.hint().unwrap(), @"sandboxes cannot change their address: configure the range 172.29.0.0/24 until they have ended");
        network.shutdown().await.unwrap();
    });
}

#[test]
fn a_range_that_something_overlaps_by_now_is_used_on_and_warned_of() {
    let Some(world) = World::new() else { return };
    world.on_host(async || {
        let [orphan] = orphans("k5", Some("172.29.0.0/24")).await;
        let mut netlink = netns::run_in(world.host.as_fd(), crate::netlink::Netlink::open).unwrap();
        let index = netlink.index_of("up0").unwrap();
        netlink.add_address(index, "172.29.0.200/32".parse().unwrap()).unwrap();
        let network = start("k5", vec![orphan.kept.clone()]).await;
        insta::assert_snapshot!(network.warnings().join("\n"), @"the range 172.29.0.0/24 of sandboxes that live on overlaps the route to 172.29.0.200/32: it is used on until a start without them");
        drop(orphan.adopted_by(&network).await.unwrap());
        network.shutdown().await.unwrap();
    });
}

#[test]
fn where_public_is_refused_by_now_nobody_is_left_without_rules() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let [orphan] = orphans("k6", None).await;
        let keep = vec![orphan.kept.clone()];
        let nft = Some("/bin/false".into());
        let network = Network::start(Options { nft, keep, ..options("k6") }).await.unwrap();
        assert_eq!(world.host_links(), links);
        assert!(matches!(orphan.adopted_by(&network).await, Err(Error::PublicRefused(_))));
        network.shutdown().await.unwrap();
        // What it could not replace it could not remove either; a start that can does.
        start("k6", Vec::new()).await.shutdown().await.unwrap();
        assert_eq!(world.tables(), "");
    });
}

#[test]
fn rules_that_another_version_made_are_replaced_and_the_guard_goes() {
    let Some(world) = World::new() else { return };
    serve(world.upstream.as_fd(), (UPSTREAM, 7000));
    serve(world.host.as_fd(), (Ipv4Addr::UNSPECIFIED, 7001));
    world.on_host(async || {
        let [orphan] = orphans("kb", None).await;
        world.nft(&["delete", "table", "inet", "berth_kb"]);
        world.nft(&["add", "table", "inet", "berth_kb"]);
        let hook = "{ type filter hook forward priority 7 ; policy drop ; }";
        world.nft(&["add", "chain", "inet", "berth_kb", "forward", hook]);
        let network = start("kb", vec![orphan.kept.clone()]).await;
        assert_eq!(world.tables().trim(), "table inet berth_kb");
        let slot = orphan.adopted_by(&network).await.unwrap();
        assert_eq!(ask(slot.netns(), UPSTREAM, 7000).unwrap(), HOST.to_string());
        assert!(ask(slot.netns(), HOST, 7001).is_err());
        network.shutdown().await.unwrap();

        // A daemon that died in between leaves its guard.
        world.nft(&["add", "table", "inet", "berth_kb_guard"]);
        start("kb", Vec::new()).await.shutdown().await.unwrap();
        assert_eq!(world.tables(), "");
    });
}

#[test]
fn rules_that_somebody_flushed_are_back_before_a_sandbox_is_taken_over() {
    let Some(world) = World::new() else { return };
    serve(world.host.as_fd(), (Ipv4Addr::UNSPECIFIED, 7001));
    world.on_host(async || {
        let [orphan] = orphans("kc", None).await;
        world.nft(&["flush", "ruleset"]);
        assert!(ask(orphan.netns.as_fd(), HOST, 7001).is_ok(), "the flush is what is tested");
        let network = start("kc", vec![orphan.kept.clone()]).await;
        assert!(ask(orphan.netns.as_fd(), HOST, 7001).is_err());
        drop(orphan.adopted_by(&network).await.unwrap());
        network.shutdown().await.unwrap();
    });
}

#[test]
fn a_sandbox_without_a_network_is_taken_over_by_its_namespaces_alone() {
    let Some(world) = World::new() else { return };
    world.on_host(async || {
        let network = start("k7", Vec::new()).await;
        let slot = network.attach(plain(Mode::NoNetwork)).await.unwrap();
        let orphan = Orphan::of(&slot);
        network.leave().await.unwrap();
        drop((slot, network));
        assert_eq!(world.tables(), "", "nobody needs rules");
        let network = start("k7", vec![orphan.kept.clone()]).await;
        let slot = orphan.adopted_by(&network).await.unwrap();
        assert_eq!((slot.mode(), slot.address(), slot.resolv_conf()), (Mode::NoNetwork, None, ""));
        assert!(ask(slot.netns(), UPSTREAM, 7000).is_err());
        network.shutdown().await.unwrap();
    });
}

#[test]
fn ids_of_an_adopted_slot_go_back_when_its_link_is_gone() {
    struct Lease(Arc<AtomicBool>);
    impl Drop for Lease {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let Some(world) = World::new() else { return };
    world.on_host(async || {
        let [Orphan { mut kept, netns }] = orphans("k8", None).await;
        // Which namespace it is does not matter here, only its ids do.
        let (first, count) = (1_879_048_192, 65_536);
        kept.ids = Some(KeptIds { first, count });
        let network = start("k8", vec![kept.clone()]).await;
        let returned = Arc::new(AtomicBool::new(false));
        let lease = Box::new(Lease(Arc::clone(&returned)));
        let user = UserNamespace { fd: netns.try_clone().unwrap(), first, count, lease };
        let link = kept.link.as_ref().unwrap().name.clone();
        let slot = network.adopt(kept, netns, Some(user)).await.unwrap();
        assert_eq!(slot.user().map(|user| user.first), Some(first));
        assert!(!returned.load(Ordering::SeqCst));
        drop(slot);
        eventually("the ids go back", || returned.load(Ordering::SeqCst));
        assert!(!world.host_links().contains(&link), "the ids went back before the link was gone");
        network.shutdown().await.unwrap();
    });
}

/// Sends datagrams from `netns` to each of `to`, each from a port of its own, until told to stop.
fn hammer(netns: OwnedFd, to: Vec<(Ipv4Addr, u16)>, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let send = || {
            let mut sent = 0;
            while !stop.load(Ordering::SeqCst) {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                for to in &to {
                    // A refusal is what is hoped for.
                    sent += u64::from(socket.send_to(b"x", to).is_ok());
                }
            }
            Ok(sent)
        };
        netns::run_in(netns.as_fd(), send).unwrap()
    })
}

fn listen(netns: BorrowedFd<'_>, address: (Ipv4Addr, u16)) -> UdpSocket {
    let socket = netns::run_in(netns, || UdpSocket::bind(address)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Everybody that sent something.
fn senders(socket: &UdpSocket) -> Vec<Ipv4Addr> {
    let mut all = Vec::new();
    while let Ok((_, from)) = socket.recv_from(&mut [0; 8]) {
        if let std::net::IpAddr::V4(from) = from.ip() {
            all.push(from);
        }
    }
    all.sort();
    all.dedup();
    all
}

#[test]
fn what_is_closed_stays_closed_and_what_is_open_stays_translated_while_daemons_change() {
    const CHANGES: usize = 12;
    let Some(world) = World::new() else { return };
    let open = listen(world.upstream.as_fd(), (UPSTREAM, 7010));
    let closed = [listen(world.host.as_fd(), (HOST, 7011)), listen(world.upstream.as_fd(), (METADATA, 80))];
    world.on_host(async || {
        let [mut sandbox, mut other] = orphans("k9", None).await;
        let of_other = other.kept.link.as_ref().unwrap().address;
        let neighbour = listen(other.netns.as_fd(), (of_other, 7012));
        let stop = Arc::new(AtomicBool::new(false));
        let targets = vec![(UPSTREAM, 7010), (HOST, 7011), (METADATA, 80), (of_other, 7012)];
        let sender = hammer(sandbox.netns.try_clone().unwrap(), targets, &stop);
        let mut seen = Vec::new();
        for change in 0..CHANGES {
            let network = start("k9", [&sandbox, &other].map(|orphan| orphan.kept.clone()).into()).await;
            let slots =
                (sandbox.adopted_by(&network).await.unwrap(), other.adopted_by(&network).await.unwrap());
            (sandbox, other) = (Orphan::of(&slots.0), Orphan::of(&slots.1));
            if change + 1 < CHANGES {
                network.leave().await.unwrap();
            } else {
                stop.store(true, Ordering::SeqCst);
            }
            seen.append(&mut senders(&open));
            if change + 1 == CHANGES {
                network.shutdown().await.unwrap();
            }
        }
        assert!(sender.join().unwrap() > 100);
        seen.dedup();
        assert_eq!(seen, [HOST], "something left untranslated, or nothing left at all");
        for socket in closed.iter().chain([&neighbour]) {
            assert_eq!(senders(socket), [] as [Ipv4Addr; 0], "{socket:?}");
        }
    });
}

/// What the victim tells of its sandboxes.
#[derive(Serialize, Deserialize)]
struct Told {
    kept: Vec<KeptSlot>,
    pids: Vec<u32>,
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
        let range = Some("172.29.0.0/24".parse().unwrap());
        let pool = PoolSizes { isolated: 1, connected: 2, most: 2 };
        let network = Network::start(Options { range, pool, ..options("ka") }).await.unwrap();
        let (mut slots, mut told) = (Vec::new(), Told { kept: Vec::new(), pids: Vec::new() });
        for mode in [Mode::Public, Mode::Public, Mode::NoNetwork] {
            let slot = network.attach(plain(mode)).await.unwrap();
            let spawn = || Command::new("sleep").arg("600").stdout(Stdio::null()).spawn();
            told.pids.push(netns::run_in(slot.netns(), spawn).unwrap().id());
            told.kept.push(slot.kept());
            slots.push(slot);
        }
        eventually("slots are ready", || network.pool(Mode::Public).ready == 2);
        eprintln!("{}", serde_json::to_string(&told).unwrap());
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
}

/// Processes of sandboxes, which end with the test.
struct Processes(Vec<u32>);

impl Processes {
    fn netns(&self, at: usize) -> OwnedFd {
        fs::File::open(format!("/proc/{}/ns/net", self.0[at])).unwrap().into()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for pid in &self.0 {
            let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn kill_a_daemon(world: &World) -> (Told, Processes) {
    let mut victim: Child = netns::run_in(world.host.as_fd(), || {
        Command::new(std::env::current_exe()?)
            .args(["--exact", "takeover_tests::victim", "--ignored", "--nocapture"])
            .env(VICTIM, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    })
    .unwrap();
    let lines = BufReader::new(victim.stderr.take().unwrap()).lines();
    let told = lines.map_while(Result::ok).find_map(|line| serde_json::from_str::<Told>(&line).ok());
    victim.kill().unwrap();
    victim.wait().unwrap();
    let told = told.expect("the victim tells of its sandboxes");
    let processes = Processes(told.pids.clone());
    (told, processes)
}

/// Serves one connection from upstream: what comes in goes out again.
fn echo(world: &World) {
    let listener = netns::run_in(world.upstream.as_fd(), || TcpListener::bind((UPSTREAM, 7020))).unwrap();
    thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut byte = [0];
        loop {
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
    });
}

#[test]
fn a_killed_daemons_sandboxes_are_taken_over_amid_their_connections() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    serve(world.host.as_fd(), (Ipv4Addr::UNSPECIFIED, 7021));
    echo(&world);
    let (told, processes) = kill_a_daemon(&world);
    let kept_links: Vec<_> =
        told.kept.iter().filter_map(|kept| Some(kept.link.as_ref()?.name.clone())).collect();
    let new_links =
        || -> Vec<_> { world.host_links().into_iter().filter(|link| !links.contains(link)).collect() };
    eventually("only slots with processes have links", || {
        let (mut left, mut wanted) = (new_links(), kept_links.clone());
        left.sort();
        wanted.sort();
        left == wanted
    });
    // With no daemon at all.
    let connect = || TcpStream::connect((UPSTREAM, 7020));
    let mut stream = netns::run_in(processes.netns(0).as_fd(), connect).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut still_talks = || {
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    };
    still_talks();
    assert!(ask(processes.netns(0).as_fd(), HOST, 7021).is_err());
    world.on_host(async || {
        // The second sandbox is nobody's any more.
        let keep = vec![told.kept[0].clone(), told.kept[2].clone()];
        let network = start("ka", keep.clone()).await;
        assert_eq!(network.public().unwrap().to_string(), "172.29.0.0/24");
        assert_eq!(new_links(), kept_links[..1]);
        still_talks();
        let [connected, alone] = &keep[..] else { panic!("two") };
        let slot = network.adopt(connected.clone(), processes.netns(0), None).await.unwrap();
        let other = network.adopt(alone.clone(), processes.netns(2), None).await.unwrap();
        still_talks();
        assert!(ask(slot.netns(), HOST, 7021).is_err());
        assert!(ask(processes.netns(1).as_fd(), UPSTREAM, 7020).is_err(), "it has no link");
        assert_eq!(other.mode(), Mode::NoNetwork);
        drop(processes);
        drop((slot, other));
        eventually("the link goes with its slot", || world.host_links() == links);
        network.shutdown().await.unwrap();
        assert_eq!(world.tables(), "");
    });
}
