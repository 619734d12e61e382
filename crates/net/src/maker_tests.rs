//! Slots with a user namespace, in worlds made for each test. Their namespaces are made by unshare(1) here.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use berth_sys::netns;

use crate::world_tests::{NO_POOL, UPSTREAM, World, address, ask, chain, eventually, options, plain, serve};
use crate::{
    Error, Mode, NamespaceMaker, Namespaces, Network, Options, PoolSizes, Slot, SlotSpec, UserNamespace,
};

const COUNT: u32 = 65536;
const FIRST: u32 = 1_879_048_192;
const MODES: [Mode; 2] = [Mode::NoNetwork, Mode::Public];

/// Makes namespaces with ranges that nobody else has, and remembers which are out.
#[derive(Default)]
struct Unshare {
    made: AtomicU32,
    out: Arc<Mutex<BTreeSet<u32>>>,
    fails: AtomicBool,
    forgets_user: AtomicBool,
}

struct Lease(u32, Arc<Mutex<BTreeSet<u32>>>);

impl Drop for Lease {
    fn drop(&mut self) {
        assert!(self.1.lock().unwrap().remove(&self.0));
    }
}

impl NamespaceMaker for Unshare {
    fn make(&self) -> io::Result<Namespaces> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("no more ids"));
        }
        let first = FIRST + COUNT * self.made.fetch_add(1, Ordering::SeqCst);
        let mut child = Command::new("unshare")
            .args(["--user", "--net", "sh", "-c", "echo; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let opened = open_namespaces(&mut child, first);
        child.kill()?;
        child.wait()?;
        let (net, fd) = opened?;
        if self.forgets_user.load(Ordering::SeqCst) {
            return Ok(Namespaces { net, user: None });
        }
        self.out.lock().unwrap().insert(first);
        let lease = Box::new(Lease(first, Arc::clone(&self.out)));
        Ok(Namespaces { net, user: Some(UserNamespace { fd, first, count: COUNT, lease }) })
    }
}

fn open_namespaces(child: &mut Child, first: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    child.stdout.take().expect("a pipe").read_exact(&mut [0])?;
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    for map in ["uid_map", "gid_map"] {
        fs::write(proc.join(map), format!("0 {first} {COUNT}"))?;
    }
    let open = |name| fs::File::open(proc.join("ns").join(name)).map(OwnedFd::from);
    Ok((open("net")?, open("user")?))
}

fn maker() -> Option<Arc<Unshare>> {
    let maker = Unshare::default();
    match maker.make() {
        Ok(_) => Some(Arc::new(Unshare::default())),
        Err(error) => {
            println!("SKIP: no user namespaces here: {error}");
            None
        }
    }
}

async fn start(instance: &str, pool: PoolSizes, maker: &Arc<Unshare>) -> Network {
    let maker: Arc<dyn NamespaceMaker> = maker.clone();
    Network::start(Options { pool, maker: Some(maker), ..options(instance) }).await.unwrap()
}

fn with_user(mode: Mode) -> SlotSpec {
    SlotSpec { mode, user_namespace: true }
}

fn is_full(network: &Network, mode: Mode) -> bool {
    network.pool(mode).ready == network.pool(mode).target
}

fn inode(namespace: BorrowedFd<'_>) -> u64 {
    fs::metadata(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap().ino()
}

/// How many descriptors of this process are of the namespace.
fn descriptors_of(inode: u64) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|fd| fd.as_ref().is_ok_and(|fd| fs::metadata(fd.path()).is_ok_and(|m| m.ino() == inode)))
        .count()
}

#[test]
fn a_slot_has_a_user_namespace_that_lives_as_long_as_its_link() {
    use std::os::fd::AsFd as _;
    let (Some(world), Some(maker)) = (World::new(), maker()) else { return };
    let links = world.host_links();
    serve(world.upstream.as_fd(), (UPSTREAM, 7000));
    for pool in [NO_POOL, PoolSizes::default()] {
        world.on_host(async || {
            let network = start("m1", pool, &maker).await;
            for mode in MODES.repeat(3) {
                let slot = network.attach(with_user(mode)).await.unwrap();
                let user = slot.user().unwrap();
                assert!(maker.out.lock().unwrap().contains(&user.first));
                assert_eq!(user.count, COUNT);
                for namespace in [user.fd.as_fd(), slot.netns()] {
                    assert_eq!(descriptors_of(inode(namespace)), 1);
                }
                assert_eq!(ask(slot.netns(), UPSTREAM, 7000).is_ok(), mode == Mode::Public);
                if pool != NO_POOL {
                    eventually("the shelf is full", || is_full(&network, mode));
                }
            }
            network.shutdown().await.unwrap();
            assert_eq!(world.host_links(), links);
            eventually("all ids are back", || maker.out.lock().unwrap().is_empty());
        });
    }
}

#[test]
fn the_ids_come_back_when_the_link_has_gone() {
    let (Some(world), Some(maker)) = (World::new(), maker()) else { return };
    let links = world.host_links();
    world.on_host(async || {
        let network = start("m2", NO_POOL, &maker).await;
        for round in 0..10 {
            let slot = network.attach(with_user(Mode::Public)).await.unwrap();
            // Every other time something else holds the namespace, so that the link does not go with it.
            let holder = (round % 2 == 0).then(|| slot.netns().try_clone_to_owned().unwrap());
            let link = slot.link().unwrap().to_owned();
            drop(slot);
            eventually("the ids are back", || {
                let out = !maker.out.lock().unwrap().is_empty();
                assert!(out || !world.host_links().contains(&link), "ids back before the link is gone");
                !out
            });
            drop(holder);
        }
        assert_eq!(world.host_links(), links);
        drop(network.attach(with_user(Mode::NoNetwork)).await.unwrap());
        assert!(maker.out.lock().unwrap().is_empty());
        network.shutdown().await.unwrap();
    });
}

#[test]
fn a_maker_that_fails_fails_the_attach_and_nothing_takes_its_place() {
    let (Some(world), Some(maker)) = (World::new(), maker()) else { return };
    let links = world.host_links();
    world.on_host(async || {
        let network = start("m3", PoolSizes::default(), &maker).await;
        maker.fails.store(true, Ordering::SeqCst);
        for mode in MODES {
            let error = network.attach(with_user(mode)).await.unwrap_err();
            assert!(matches!(error, Error::MakePair(_)));
            insta::allow_duplicates! {
                insta::assert_snapshot!(chain(&error), @"could not make the user namespace and the network namespace of a sandbox: no more ids");
            }
            let slot = network.attach(plain(mode)).await.unwrap();
            assert!(slot.user().is_none());
        }
        maker.fails.store(false, Ordering::SeqCst);
        maker.forgets_user.store(true, Ordering::SeqCst);
        let error = network.attach(with_user(Mode::Public)).await.unwrap_err();
        insta::assert_snapshot!(error, @"a sandbox was to have a user namespace, and a network namespace without one was made for it");
        maker.forgets_user.store(false, Ordering::SeqCst);
        assert!(network.attach(with_user(Mode::Public)).await.unwrap().user().is_some());
        network.shutdown().await.unwrap();
        assert_eq!(world.host_links(), links);
    });
}

#[test]
fn slots_without_a_user_namespace_are_made_beside_those_with_one_and_never_for_them() {
    let (Some(world), Some(maker)) = (World::new(), maker()) else { return };
    world.on_host(async || {
        let network = start("m4", PoolSizes::default(), &maker).await;
        for mode in MODES {
            drop(network.attach(with_user(mode)).await.unwrap());
            eventually("the shelf is full", || is_full(&network, mode));
            let before = network.pool(mode);
            assert!(network.attach(plain(mode)).await.unwrap().user().is_none());
            assert_eq!(network.pool(mode), before);
            assert!(network.attach(with_user(mode)).await.unwrap().user().is_some());
        }
        network.shutdown().await.unwrap();

        let network = Network::start(options("m4")).await.unwrap();
        let error = network.attach(with_user(Mode::Public)).await.unwrap_err();
        insta::assert_snapshot!(error, @"this network makes sandboxes without user namespaces only");
        network.shutdown().await.unwrap();
    });
}

/// Runs a shell in the slot, as root of the user namespace if it has one and as another user there or on the host.
fn shell_as(slot: &Slot, user: u32, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdin(Stdio::null());
    match slot.user() {
        None => drop(command.uid(user).gid(user)),
        Some(namespace) => drop(command.uid(namespace.first + user).gid(namespace.first + user)),
    }
    let output = netns::run_in(slot.netns(), || command.output()).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn low_ports_and_ping_are_for_everybody_in_a_slot_and_the_host_is_left_as_it_was() {
    let (Some(world), Some(maker)) = (World::new(), maker()) else { return };
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
    let host = || [read("ip_unprivileged_port_start"), read("ping_group_range")];
    let before = host();
    world.on_host(async || {
        let network = start("m5", NO_POOL, &maker).await;
        for spec in MODES.into_iter().flat_map(|mode| [plain(mode), with_user(mode)]) {
            let slot = network.attach(spec).await.unwrap();
            let range = match slot.user() {
                Some(user) => format!("{}\t{}", user.first, user.first + COUNT - 1),
                None => "0\t2147483647".to_owned(),
            };
            let settings = "cd /proc/sys/net/ipv4 && cat ip_unprivileged_port_start ping_group_range";
            assert_eq!(shell_as(&slot, 1000, settings), format!("0\n{range}\n"));
            let first = slot.user().map_or(0, |user| user.first);
            netns::run_in(slot.netns(), || unprivileged(first + 1000)).unwrap();
        }
        network.shutdown().await.unwrap();
    });
    assert_eq!(host(), before);
}

/// Binds port 80 and pings the loopback as a user without any privilege, on the calling thread, which is thrown away.
fn unprivileged(id: u32) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with};
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(id))?;
    rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(id))?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, 80))?;
    let socket =
        socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(ipproto::ICMP))?;
    connect(&socket, &std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    // An echo request; the kernel fills in the rest.
    send(&socket, &[8, 0, 0, 0, 0, 0, 0, 1], rustix::net::SendFlags::empty())?;
    let mut reply = [0; 8];
    recv(&socket, &mut reply, rustix::net::RecvFlags::empty())?;
    assert_eq!(reply[0], 0, "no echo reply");
    Ok(())
}

#[test]
fn sizes_of_the_pool_that_cannot_be_are_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let refusal = |pool| {
        let error = runtime.block_on(Network::start(Options { pool, ..options("m6") })).unwrap_err();
        format!("{error}; {}", error.hint().unwrap())
    };
    insta::assert_snapshot!(refusal(PoolSizes { most: 1025, ..PoolSizes::default() }), @"network pool size most = 1025 is above 1024; set most to at most 1024");
    insta::assert_snapshot!(refusal(PoolSizes { connected: 65, ..PoolSizes::default() }), @"network pool size connected = 65 is above most = 64; set most to at least the size of connected, or connected to at most 64");
}

#[test]
fn hundreds_asked_for_at_once_all_come() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let network = Arc::new(Network::start(options("m7")).await.unwrap());
        let calls: Vec<_> = (0..400)
            .map(|_| {
                let network = Arc::clone(&network);
                tokio::spawn(async move { network.attach(plain(Mode::Public)).await })
            })
            .collect();
        let mut slots = Vec::new();
        for call in calls {
            slots.push(call.await.unwrap().unwrap());
        }
        let addresses: BTreeSet<_> = slots.iter().map(address).collect();
        assert_eq!(addresses.len(), 400);
        drop(slots);
        network.shutdown().await.unwrap();
        assert_eq!(world.host_links(), links);
    });
}
