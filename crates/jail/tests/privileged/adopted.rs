//! What outlives the process that started it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use berth_jail::cgroup::{self, Cgroup, Facts, Limits, Survivor, remove_others};
use berth_jail::{AdoptError, Exit, IdRange, Identity, LaunchRequest, Process, Spec, plan};

use crate::rig::{Groups, Rig, Sandbox, guest, launcher};

/// First argument with which this binary plays a daemon that starts the container of its second one, and is then killed.
pub const DAEMON_ARG: &str = "daemon-to-be-killed";

/// Number of the descriptor that the first process has been handed under this argument.
fn handed(sandbox: &Sandbox, argument: &str) -> u32 {
    let arguments = sandbox.ask("args");
    let mut numbers = arguments.split(' ').filter_map(|word| word.strip_prefix(argument)?.strip_prefix('='));
    numbers.next().expect(&arguments).parse().unwrap()
}

pub fn has_a_spool() {
    for mapped in [false, true] {
        let mut rig = Rig::usual();
        let spool = rig.dir.path().join("spool");
        fs::create_dir(&spool).unwrap();
        rig.spec.spool = Some(spool.clone());
        let sandbox = if mapped { rig.launch_mapped() } else { rig.launch() };
        let fd = handed(&sandbox, "--spool-fd");
        assert_eq!(sandbox.ask(&format!("put /proc/self/fd/{fd}/output")), "ok");
        assert_eq!(sandbox.ask(&format!("look /proc/self/fd/{fd}/output")), "0:0");
        assert_eq!(fs::metadata(spool.join("output")).unwrap().uid(), 0);
        // Nothing is above it, the upper directory that lies beside it least of all.
        assert_eq!(sandbox.ask(&format!("list /proc/self/fd/{fd}/..")), "output\n");
        assert_eq!(sandbox.ask(&format!("cat {}", spool.join("output").display())), "errno 2");
    }
}

pub fn is_given_a_socket() {
    let rig = Rig::usual();
    let path = rig.dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let plan = plan(&rig.spec, &berth_jail::Facts::detect().unwrap()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let process = launcher().launch(LaunchRequest {
        plan: &plan,
        netns: None,
        user_namespace: None,
        control: theirs.into(),
        listen: Some(listener.into()),
        guest: guest(),
        stderr: None,
    });
    let sandbox = Sandbox { process: process.unwrap(), control: ours };
    assert_eq!(handed(&sandbox, "--listen-fd"), 4);
    drop(UnixStream::connect(&path).unwrap());
    drop(sandbox);
    let refused = UnixStream::connect(&path).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// The daemon's life: starts a container, says which it is, and waits for its end.
pub fn daemon() -> ExitCode {
    let file = std::env::args().nth(2).expect("the file of the spec");
    let spec: Spec = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let plan = plan(&spec, &berth_jail::Facts::detect().unwrap()).unwrap();
    let pair = spec.ids.map(|ids| launcher().make_namespaces(ids).unwrap());
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let process = launcher().launch(LaunchRequest {
        plan: &plan,
        netns: pair.as_ref().map(|pair| pair.net.as_fd()),
        user_namespace: pair.as_ref().map(|pair| pair.user.as_fd()),
        control: theirs.into(),
        listen: None,
        guest: guest(),
        stderr: None,
    });
    let process = process.unwrap();
    ours.write_all(b"linger\n").unwrap();
    println!("{}", serde_json::to_string(&process.identity().unwrap()).unwrap());
    loop {
        std::thread::park();
    }
}

/// A container whose daemon was killed.
fn orphan(rig: &Rig) -> Identity {
    let file = rig.dir.path().join("spec.json");
    fs::write(&file, serde_json::to_vec(&rig.spec).unwrap()).unwrap();
    let mut daemon =
        Command::new("/proc/self/exe").arg(DAEMON_ARG).arg(&file).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    serde_json::from_str(&line).unwrap()
}

/// This machine's, and version 2 alone where that is mounted beside version 1: without a controller, but the rest works.
fn versions() -> Vec<(Facts, Limits)> {
    let facts = Facts::detect().unwrap();
    let limits = Limits { memory_bytes: Some(64 << 20), pids: Some(20), ..Limits::default() };
    let mut versions = vec![(facts.clone(), limits)];
    let mut second = facts;
    let Some(unified) = second.v2.as_mut().filter(|_| !second.v1.is_empty()) else { return versions };
    if !unified.delegated {
        unified.controllers.clear();
        second.v1.clear();
        versions.push((second, Limits::default()));
    }
    versions
}

pub fn survives() {
    for (facts, limits) in versions() {
        for ids in [None, Some(crate::rig::IDS)] {
            // Each in groups of its own: those of version 2 take no second first process.
            let (identity, groups) = orphan_in(ids, &facts, limits);
            is_taken_over(&identity, &groups.cgroup);
            drop(groups);
            let (identity, groups) = orphan_in(ids, &facts, limits);
            drop(Process::adopt(&identity, &groups.cgroup, Vec::new()).unwrap());
            assert!(Process::adopt(&identity, &groups.cgroup, Vec::new()).is_err());
        }
    }
}

fn orphan_in(ids: Option<IdRange>, facts: &Facts, limits: Limits) -> (Identity, Groups) {
    let groups = Groups::make_for(limits, facts, ids.map(|ids| ids.first));
    let mut rig = Rig::usual();
    rig.spec.ids = ids;
    rig.spec.cgroups = groups.membership.clone();
    (orphan(&rig), groups)
}

fn is_taken_over(identity: &Identity, cgroup: &Cgroup) {
    refuses_all_but(identity, cgroup);
    let stubs = vec!["proc".into()];
    let process = Process::adopt(identity, cgroup, stubs.clone()).unwrap();
    assert_eq!((process.pid(), process.stubs()), (identity.pid, &stubs[..]));
    assert_eq!(process.identity().unwrap(), *identity);
    process.leave();
    let mut process = Process::adopt(identity, cgroup, stubs).unwrap();
    assert_eq!(process.try_wait().unwrap(), None);
    process.kill().unwrap();
    // Nobody is told who is not its parent, and nothing is made up.
    assert_eq!(process.wait().unwrap(), Exit::Unknown);
    assert_eq!(process.try_wait().unwrap(), Some(Exit::Unknown));
    drop(process);
    let gone = Process::adopt(identity, cgroup, Vec::new()).unwrap_err();
    assert!(matches!(gone, AdoptError::Ended { .. }), "{gone}");
}

fn refuses_all_but(identity: &Identity, cgroup: &Cgroup) {
    let refused = |identity: &Identity| Process::adopt(identity, cgroup, Vec::new()).unwrap_err();
    let later = Identity { started: identity.started + 1, ..identity.clone() };
    assert!(matches!(refused(&later), AdoptError::OtherProcess { .. }));
    let before = Identity { boot: "another".to_owned(), ..identity.clone() };
    assert!(matches!(refused(&before), AdoptError::OtherBoot));
    let nobody = Identity { pid: i32::MAX, ..identity.clone() };
    assert!(matches!(refused(&nobody), AdoptError::Ended { .. }));
    // One that is there, since the time that is told, and is no sandbox's.
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(other.id()).unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let outside = refused(&Identity { pid, started, ..identity.clone() });
    assert!(matches!(outside, AdoptError::OutsideGroup { .. }), "{outside}");
    other.kill().unwrap();
    // Dead, but not reaped.
    let dead = loop {
        let error = refused(&Identity { pid, started, ..identity.clone() });
        if !matches!(error, AdoptError::OutsideGroup { .. }) {
            break error;
        }
    };
    assert!(matches!(dead, AdoptError::Ended { .. }), "{dead}");
    other.wait().unwrap();
}

pub fn others_are_removed() {
    versions().into_iter().for_each(|(facts, limits)| others_are_removed_of(&facts, &limits));
}

fn others_are_removed_of(facts: &Facts, limits: &Limits) {
    let instance = format!("keep{}", std::process::id());
    let start = |id: &str| {
        let plan = cgroup::plan(limits, facts, &format!("berth/{instance}/{id}"), None).unwrap();
        let mut rig = Rig::usual();
        rig.spec.cgroups = plan.membership();
        let group = plan.create().unwrap();
        let sandbox = rig.launch();
        assert_eq!(sandbox.ask("group x-1"), "mkdir 0 move 0");
        (group, sandbox, rig)
    };
    let (group, kept, _rig) = start("kept");
    let (other_group, mut other, _other_rig) = start("other");
    let (_, mut third, _third_rig) = start("third");
    // In none of its own groups: where the first process of a sandbox is with version 1 anyway.
    let survivor = Survivor { id: "kept".to_owned(), pid: kept.process.pid() };
    remove_others(facts, &instance, &[survivor]).unwrap();
    assert_eq!(other.process.wait().unwrap(), Exit::Signal(9));
    assert_eq!(third.process.wait().unwrap(), Exit::Signal(9));
    assert!(other_group.dirs.iter().all(|dir| !dir.exists()));
    assert_eq!(kept.ask("forks 3"), "3");
    assert_eq!(group.usage().unwrap().pids.unwrap_or(4), 4);

    remove_others(facts, &instance, &[]).unwrap();
    assert!(group.dirs.iter().all(|dir| !dir.parent().unwrap().exists()));
    let mut kept = kept;
    assert_eq!(kept.process.wait().unwrap(), Exit::Signal(9));
    assert!(!Path::new(&format!("/proc/{}", kept.process.pid())).exists());
}
