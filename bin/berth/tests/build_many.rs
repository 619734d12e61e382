//! Many builds at once: equal ones are one, whatever process asks, and different ones do not starve each other.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::builds::{Built, send};
use support::registry::Registry;
use support::{Daemon, SMALL_POOL, busybox_rootfs, text, write_tree};

/// As Harbor asks: several processes, each with several trials of one new task.
const PROCESSES: usize = 4;
const EACH: usize = 10;

#[test]
fn one_new_task_of_many_trials_in_several_processes_is_pulled_and_built_once() {
    require_busybox!();
    let daemon = Daemon::start();
    let registry = Registry::of(busybox_rootfs());
    let dockerfile = format!(
        "FROM {}/base:1\nCOPY data /data\n\
        RUN --mount=type=cache,target=/c echo x >> /c/runs; sleep 1; head -c 16 /dev/urandom > /stamp\n",
        registry.host
    );
    write_tree(
        &daemon.path().join("context"),
        &[("Dockerfile", 0o644, &dockerfile), ("data", 0o644, "content\n")],
    );
    let line = "n=0; pids=; while [ $n -lt $1 ]; do n=$((n+1)); \"$2\" image build context --json > out.$3.$n 2> err.$3.$n & \
        pids=\"$pids $!\"; done; for pid in $pids; do wait $pid || exit 1; done";
    let clients: Vec<_> = (0..PROCESSES)
        .map(|process| {
            Command::new("sh")
                .args([
                    "-c",
                    line,
                    "sh",
                    &EACH.to_string(),
                    env!("CARGO_BIN_EXE_berth"),
                    &process.to_string(),
                ])
                .env("BERTH_HOST", daemon.host())
                .current_dir(daemon.path())
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let ended: Vec<bool> = clients.into_iter().map(|mut client| client.wait().unwrap().success()).collect();
    let mut results: Vec<Value> = Vec::new();
    for (process, number) in (0..PROCESSES).flat_map(|p| (1..=EACH).map(move |n| (p, n))) {
        let read =
            |kind: &str| std::fs::read_to_string(daemon.path().join(format!("{kind}.{process}.{number}")));
        let out = read("out").unwrap();
        results
            .push(serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}\n{}", read("err").unwrap())));
    }
    assert!(ended.iter().all(|success| *success));
    let ids: Vec<&Value> = results.iter().map(|result| &result["image"]["id"]).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!((registry.manifests_asked(), registry.layers_asked()), (1, 1), "one pull");
    assert_eq!(daemon.log().matches("built an image").count(), 1, "one build\n{}", daemon.log());
    daemon.ok(&["sandbox", "create", ids[0].as_str().unwrap(), "--name", "box", "--network", "no-network"]);
    assert_eq!(daemon.sh("box", "cat /data; wc -c < /stamp").1, "content\n16\n");
    let counting =
        format!("FROM {}/base:1\nRUN --mount=type=cache,target=/c wc -l < /c/runs\n", registry.host);
    let counted = build(&daemon, &json!({}), &counting);
    assert_eq!(counted.output(), "1\n", "the step ran once");
    assert_eq!(registry.manifests_asked(), 1);
}

fn build(daemon: &Daemon, options: &Value, dockerfile: &str) -> Built {
    send(daemon, "/v1/images/build", options, &[("Dockerfile", 0o644, dockerfile), ("data", 0o644, "x")])
}

#[test]
fn builds_with_one_place_for_all_steps_come_to_their_ends() {
    require_busybox!();
    let daemon = Daemon::configured_with_busybox(&format!("{SMALL_POOL}[builds]\nparallel_steps = 1\n"));
    // Lenders, seeds, caches that only one has: all that a step may wait for, or have beside its own sandbox.
    let dockerfile = |n: usize| {
        format!(
            "FROM busybox:test AS one\nRUN mkdir /out && echo one {n} > /out/file\n\
            FROM busybox:test AS two\nRUN --mount=type=cache,target=/lock,sharing=locked echo two {n} > /two; echo $(cat /two) >> /lock/all\n\
            FROM busybox:test\nCOPY --from=one /out /one\nCOPY --from=two /two /two\n\
            RUN --mount=from=one,source=/out,target=/m --mount=type=cache,id=seeded{n},from=one,source=/out,target=/c \
                --mount=type=cache,target=/lock,sharing=locked cat /m/file /c/file /one/file /two > /all\n"
        )
    };
    let built: Vec<Built> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..5)
            .map(|n| {
                scope.spawn({
                    let daemon = &daemon;
                    move || build(daemon, &json!({}), &dockerfile(n))
                })
            })
            .collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (n, built) in built.iter().enumerate() {
        let name = format!("box{n}");
        let image = built.result()["image"]["id"].as_str().unwrap();
        daemon.ok(&["sandbox", "create", image, "--name", &name, "--network", "no-network"]);
        let one = format!("one {n}\n");
        assert_eq!(daemon.sh(&name, "cat /all").1, format!("{one}{one}{one}two {n}\n"));
    }
    let waited = built.iter().filter(|built| built.messages().contains("1 steps run at a time")).count();
    assert!(waited > 0, "nobody had to wait");
}

#[test]
fn replays_with_one_place_for_all_steps_come_to_their_ends() {
    require_busybox!();
    let daemon = Daemon::configured_with_busybox(&format!("{SMALL_POOL}[builds]\nparallel_steps = 1\n"));
    let dockerfile = "FROM busybox:test AS lib\nRUN mkdir /out && echo lent > /out/file\n\
        FROM busybox:test\nCOPY --from=lib /out /copied\n\
        RUN --mount=from=lib,source=/out,target=/m cat /m/file /copied/file > /all\n";
    std::thread::scope(|scope| {
        for n in 0..3 {
            let daemon = &daemon;
            scope.spawn(move || {
                let name = format!("box{n}");
                daemon.sandbox(&name, &["--network", "no-network"]);
                let path = format!("/v1/sandboxes/{name}/replay");
                send(daemon, &path, &json!({}), &[("Dockerfile", 0o644, dockerfile)]).succeeded();
                assert_eq!(daemon.sh(&name, "cat /all").1, "lent\nlent\n");
            });
        }
    });
}

#[test]
fn the_log_and_the_node_tell_of_builds_and_nothing_that_is_secret() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let options = json!({"build_args": {"TOKEN": "hush-hush"}});
    let dockerfile = "FROM busybox:test\nARG TOKEN\nCOPY data /$TOKEN\nRUN echo $TOKEN\n";
    let built = build(&daemon, &options, dockerfile);
    let image = built.result()["image"]["id"].as_str().unwrap().to_owned();
    build(&daemon, &options, &format!("{dockerfile}RUN echo $TOKEN; exit 3\n")).error();
    let told = |name: &str| {
        let (_, node) = daemon.json("GET", "/v1/node", &Value::Null);
        node["tasks"].as_array().unwrap().iter().find(|task| task["name"] == name).unwrap().clone()
    };
    let builds = told("builds");
    assert_eq!((&builds["runs"], &builds["failed"]), (&json!(2), &json!(false)), "{builds}");
    assert!(builds["last_result"].as_str().unwrap().contains("build_failed"), "{builds}");
    support::eventually("the tidying", || told("unused layers")["runs"].as_u64() > Some(0));
    let log = daemon.log();
    assert!(
        log.contains("built an image") && log.contains(&image) && log.contains("a build failed"),
        "{log}"
    );
    let shown = text(&daemon.run(&["node"]).stdout);
    assert!(shown.contains("builds"), "{shown}");
    for told in [log, shown, builds.to_string()] {
        assert!(!told.contains("hush"), "{told}");
    }
}
