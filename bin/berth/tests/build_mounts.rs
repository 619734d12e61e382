//! `RUN` and what it asks for: mounts, caches, secrets, network, limits, certificates; through the API, in real sandboxes.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::builds::{Built, send};
use support::{Daemon, SMALL_POOL, text, write_tree};

/// A certificate of nobody's.
const AUTHORITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crates/node/src/trust/authority.pem");

fn build_with(daemon: &Daemon, options: &Value, dockerfile: &str) -> Built {
    let files = [("Dockerfile", 0o644, dockerfile), ("hello.txt", 0o640, "hello from the context\n")];
    send(daemon, "/v1/images/build", options, &files)
}

fn build(daemon: &Daemon, dockerfile: &str) -> Built {
    build_with(daemon, &json!({}), dockerfile)
}

/// A line's output in a sandbox of an image.
#[track_caller]
fn look(daemon: &Daemon, built: &Built, line: &str) -> String {
    let image = built.result()["image"]["id"].as_str().unwrap();
    let name = format!("look-{}", uuid::Uuid::now_v7().simple());
    daemon.ok(&["sandbox", "create", image, "--name", &name, "--network", "no-network"]);
    let (_, out, err) = daemon.sh(&name, line);
    daemon.ok(&["sandbox", "rm", &name]);
    format!("{out}{err}")
}

/// Files below `dir` that hold these bytes.
fn holding(dir: &Path, needle: &str) -> String {
    let found = Command::new("grep").args(["-rlaF", "--", needle]).arg(dir).output().unwrap();
    assert!(found.status.code().is_some_and(|code| code < 2), "{}", text(&found.stderr));
    text(&found.stdout)
}

#[test]
fn every_kind_of_mount_shows_what_it_should_and_leaves_nothing() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test AS lib\n\
        RUN mkdir -p /out/sub && echo from the stage > /out/file && ln -s file /out/link && chown alice /out/file\n\
        FROM busybox:test\n\
        RUN --mount=target=/ctx cat /ctx/hello.txt > /seen && ! touch /ctx/new\n\
        RUN --mount=from=lib,source=/out,target=/lib/of/it \
            cat /lib/of/it/link >> /seen && stat -c %U /lib/of/it/file >> /seen\n\
        RUN --mount=from=lib,source=/out,target=/lib,rw echo x > /lib/file && cat /lib/file >> /seen\n\
        RUN --mount=from=lib,source=/out,target=/lib cat /lib/file >> /seen\n\
        RUN --mount=type=tmpfs,target=/scratch,size=1m \
            echo x > /scratch/x && grep -c ' /scratch tmpfs .*size=1024k' /proc/mounts >> /seen; \
            head -c 2000000 /dev/zero > /scratch/big || echo full >> /seen\n\
        RUN --mount=type=secret,id=token cat /run/secrets/token | tr a-z A-Z >> /seen && stat -c '%a %u' /run/secrets/token >> /seen\n\
        RUN --mount=type=secret,id=token,target=/s,uid=1000,gid=50,mode=0440 stat -c '%a %U %G' /s >> /seen\n\
        RUN --mount=type=secret,id=token,env=TOKEN echo $TOKEN | tr a-z A-Z >> /seen\n\
        RUN --mount=type=cache,target=/var/c,uid=1000,gid=50,mode=0750 stat -c '%a %U %G' /var/c >> /seen && echo y > /var/c/y\n\
        RUN echo ${TOKEN:-none} >> /seen; find / -xdev \\( -path /ctx -o -path '/lib*' -o -path /scratch -o -path '/run*' -o -path /s \
            -o -path '/var*' \\) >> /seen\n";
    let secret = STANDARD.encode("hush\n");
    let built = build_with(&daemon, &json!({"secrets": {"token": secret}}), dockerfile);
    let seen = look(&daemon, &built, "cat /seen");
    assert_eq!(
        seen,
        "hello from the context\nfrom the stage\nalice\nx\nfrom the stage\n1\nfull\nHUSH\n400 0\n440 alice staff\nHUSH\n\
         750 alice staff\nnone\n"
    );
}

#[test]
fn a_cache_is_there_for_the_next_build_and_the_next_daemon_and_part_of_no_layer() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test\nRUN --mount=type=cache,target=/c echo x >> /c/lines && wc -l < /c/lines > /count\n";
    let again = json!({"no_cache": true});
    for count in 1..=2 {
        let built = build_with(&daemon, &again, dockerfile);
        assert_eq!(
            look(&daemon, &built, "cat /count; ls /c"),
            format!("{count}\nls: /c: No such file or directory\n")
        );
    }
    // A step that fails leaves what it wrote.
    let failing = "FROM busybox:test\nRUN --mount=type=cache,target=/c echo x >> /c/lines && exit 3\n";
    assert_eq!(build(&daemon, failing).error()["code"], "build_failed");
    assert!(daemon.terminate().success());
    daemon.restart(&[]);
    let built = build_with(&daemon, &again, dockerfile);
    assert_eq!(look(&daemon, &built, "cat /count"), "4\n");
    // Another id is another cache, the same id at another place the same.
    let other = "FROM busybox:test\nRUN --mount=type=cache,id=/c,target=/d --mount=type=cache,id=e,target=/e \
        wc -l < /d/lines > /count; ls /e >> /count\n";
    assert_eq!(look(&daemon, &build(&daemon, other), "cat /count"), "4\n");
}

#[test]
fn a_cache_begins_with_what_a_stage_has() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test AS seed\n\
        RUN mkdir -p /s/dir && echo seeded > /s/dir/file && ln -s dir/file /s/link && chown -R alice:staff /s && chmod 2770 /s\n\
        FROM busybox:test\n\
        RUN --mount=type=cache,from=seed,source=/s,target=/c \
            cat /c/link >> /seen; stat -c '%a %U %G' /c /c/dir/file >> /seen; rm /c/link; echo mine > /c/mine\n\
        RUN --mount=type=cache,from=seed,source=/s,target=/c ls /c >> /seen\n";
    let built = build(&daemon, dockerfile);
    let seen = look(&daemon, &built, "cat /seen");
    assert_eq!(seen, "seeded\n2770 alice staff\n644 alice staff\ndir\nmine\n", "seeded once, and then kept");
}

/// Two builds that run at a time, each with one `RUN` of a cache.
fn two_at_a_time(daemon: &Daemon, sharing: &str, lines: [&str; 2]) -> [Built; 2] {
    let dockerfile = |line: &str| {
        format!(
            "FROM busybox:test\nRUN --mount=type=cache,id=two-{sharing},target=/c,sharing={sharing} {line}\n"
        )
    };
    std::thread::scope(|scope| {
        let [first, second] = lines.map(|line| scope.spawn(move || build(daemon, &dockerfile(line))));
        [first.join().unwrap(), second.join().unwrap()]
    })
}

#[test]
fn steps_share_a_cache_or_wait_for_it_or_have_one_each() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let meet = |own: &str, other: &str| {
        format!(
            "touch /c/{own}; for i in $(seq 600); do test -e /c/{other} && exit 0; sleep 0.1; done; exit 1"
        )
    };
    let shared = two_at_a_time(&daemon, "shared", [&meet("a", "b"), &meet("b", "a")]);
    shared.iter().for_each(Built::succeeded);

    let alone =
        |name: &str| format!("mkdir /c/alone || exit 9; sleep 1; rmdir /c/alone; echo {name} >> /c/who");
    let locked = two_at_a_time(&daemon, "locked", [&alone("a"), &alone("b")]);
    locked.iter().for_each(Built::succeeded);
    let told: String = locked.iter().map(Built::messages).collect();
    assert!(told.contains("waiting for the cache mount `two-locked`"), "{told}");
    let both = "FROM busybox:test\nRUN --mount=type=cache,id=two-locked,target=/c sort /c/who > /who\n";
    assert_eq!(look(&daemon, &build(&daemon, both), "cat /who"), "a\nb\n");

    let alone =
        |name: &str| format!("test ! -e /c/in || exit 9; touch /c/in; sleep 2; rm /c/in; echo {name}");
    let private = two_at_a_time(&daemon, "private", [&alone("a"), &alone("b")]);
    private.iter().for_each(Built::succeeded);
    assert!(!private.iter().any(|built| built.messages().contains("waiting for the cache mount")));
}

#[test]
fn two_steps_that_lock_two_caches_in_different_order_both_end() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = |first: &str, second: &str| {
        format!(
            "FROM busybox:test\nRUN --mount=type=cache,target=/{first},sharing=locked \
             --mount=type=cache,target=/{second},sharing=locked sleep 0.5 # {first}\n"
        )
    };
    let (ab, ba) = (dockerfile("a", "b"), dockerfile("b", "a"));
    std::thread::scope(|scope| {
        let builds = [&ab, &ba, &ab, &ba].map(|dockerfile| {
            let daemon = &daemon;
            scope.spawn(move || build_with(daemon, &json!({"no_cache": true}), dockerfile))
        });
        builds.into_iter().for_each(|build| build.join().unwrap().succeeded());
    });
}

#[test]
fn a_step_without_network_has_loopback_alone() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile =
        "FROM busybox:test\nRUN ls /sys/class/net > /with\nRUN --network=none ls /sys/class/net > /without\n";
    let seen = look(&daemon, &build(&daemon, dockerfile), "cat /with; echo; cat /without");
    assert!(seen.contains("eth0") && seen.ends_with("\n\nlo\n"), "{seen:?}");
    let offline = json!({"network": "no-network", "no_cache": true});
    let seen = look(&daemon, &build_with(&daemon, &offline, dockerfile), "cat /with /without");
    assert_eq!(seen, "lo\nlo\n");
}

#[test]
fn a_configuration_without_network_holds_for_all_builds() {
    require_busybox!();
    let daemon =
        Daemon::configured_with_busybox(&format!("{SMALL_POOL}[builds]\nnetwork = \"no-network\"\n"));
    let dockerfile = "FROM busybox:test\nRUN ls /sys/class/net > /with\n";
    let asked = json!({"network": "public"});
    assert_eq!(look(&daemon, &build_with(&daemon, &asked, dockerfile), "cat /with"), "lo\n");
}

#[test]
fn a_step_that_meets_its_limit_of_memory_says_so() {
    require_busybox!();
    let daemon = Daemon::configured_with_busybox(&format!("{SMALL_POOL}[builds]\nmemory_mb = 48\n"));
    let dockerfile =
        "FROM busybox:test\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\nRUN test -e /never\n";
    let built = build(&daemon, dockerfile);
    let error = built.error();
    assert_eq!((&error["code"], &error["kind"]), (&json!("build_failed"), &json!("user")), "{error}");
    let tail = error["details"]["output_tail"].to_string();
    assert!(tail.contains("for want of memory: the step's limit is 48 MB"), "{tail}");
    assert!(!daemon.ok(&["sandbox", "ls", "--json"]).contains("running"));
    let more = json!({"resources": {"memory_mb": 600}});
    assert_eq!(
        build_with(&daemon, &more, dockerfile).error()["details"]["line"],
        3,
        "with more it gets there"
    );
}

#[test]
fn a_step_that_meets_its_limit_of_processes_or_disk_fails() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let limits = json!({"resources": {"pids": 16}});
    let forks = "FROM busybox:test\nRUN for i in $(seq 40); do sleep 5 & done; wait\n";
    assert_eq!(build_with(&daemon, &limits, forks).error()["code"], "build_failed");
    let limits = json!({"resources": {"storage_mb": 20}});
    let writes = "FROM busybox:test\nRUN head -c 100000000 /dev/urandom > /big && sync\n";
    let failed = build_with(&daemon, &limits, writes);
    if failed.error()["code"] == "storage_unenforced" {
        println!("SKIP: this disk engine limits no storage");
        return;
    }
    assert_eq!(failed.error()["code"], "build_failed", "{}", failed.error());
    let tail = failed.error()["details"]["output_tail"].to_string();
    assert!(tail.contains("this step's disk is full: its limit is 20 MB"), "{tail}");
    // What is in a cache is on another account.
    let cached = "FROM busybox:test\nRUN --mount=type=cache,target=/c head -c 50000000 /dev/urandom > /c/big && rm /c/big\n";
    build_with(&daemon, &limits, cached).result();
}

#[test]
fn a_secret_is_in_no_file_and_no_log() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    assert!(daemon.terminate().success());
    daemon.restart_logging(&[], "trace");
    let value = format!("hush-{}", uuid::Uuid::now_v7().simple());
    let options = json!({"tags": ["kept:1"], "secrets": {"token": STANDARD.encode(&value)}});
    let uses = "RUN --mount=type=secret,id=token,required=true --mount=type=secret,id=token,env=TOKEN \
        test \"$(cat /run/secrets/token)\" = \"$TOKEN\" && test ${#TOKEN} = 37 && sleep 1\n";
    let cached = build_with(&daemon, &options, &format!("FROM busybox:test\n{uses}"));
    let image = cached.result()["image"]["id"].as_str().unwrap().to_owned();
    let failing = build_with(&daemon, &options, &format!("FROM busybox:test\n{uses}RUN exit 4\n"));
    assert_eq!(failing.error()["details"]["exit_code"], 4);
    // It decides nothing: another value finds the same.
    let other = json!({"secrets": {"token": STANDARD.encode("x".repeat(37))}});
    let found = build_with(&daemon, &other, &format!("FROM busybox:test\n{uses}"));
    assert_eq!(found.result()["image"]["id"], image.as_str());
    let told: String = cached.lines.iter().chain(&failing.lines).map(Value::to_string).collect();
    assert!(!told.contains(&value));
    assert!(daemon.terminate().success());
    assert!(holding(daemon.path(), "kept:1").contains("berth-e2e"), "nothing is found at all");
    for needle in [value.clone(), STANDARD.encode(&value)] {
        assert_eq!(holding(daemon.path(), &needle), "", "a secret stayed");
    }
    daemon.restart(&[]);

    let bad = json!({"secrets": {"token": "not base64!"}});
    let refused = build_with(&daemon, &bad, "FROM busybox:test\n");
    let message = refused.error()["message"].to_string();
    assert!(
        message.contains("token") && message.contains("base64") && !message.contains("not base64!"),
        "{message}"
    );
    let missing = build(&daemon, &format!("FROM busybox:test\nRUN true\n{uses}"));
    assert!(missing.error()["message"].to_string().contains("token"), "{}", missing.error());
}

#[test]
fn certificates_of_ones_own_are_offered_and_part_of_nothing() {
    require_busybox!();
    let dockerfile = "FROM busybox:test\nENV PIP_CERT=/own\n\
        RUN env | sort | grep -e CERT -e CA -e SSL; tail -n 1 ${SSL_CERT_FILE:-/dev/null}; touch $SSL_CERT_FILE; true\n";
    let plain = Daemon::with_busybox();
    let without = build(&plain, dockerfile);
    assert_eq!(without.output().lines().next(), Some("PIP_CERT=/own"));
    let config = format!(
        "{SMALL_POOL}[builds]\nca_bundle = \"{AUTHORITY}\"\n[sandboxes]\nca_bundle = \"{AUTHORITY}\"\n"
    );
    let daemon = Daemon::configured_with_busybox(&config);
    let with = build(&daemon, dockerfile);
    let output = with.output();
    for line in [
        "PIP_CERT=/own\n",
        "CURL_CA_BUNDLE=/run/berth/ca-bundle.pem\n",
        "-----END CERTIFICATE-----\n",
        "Read-only",
    ] {
        assert!(output.contains(line), "no {line:?} in {output}");
    }
    assert_eq!(with.result()["content_key"], without.result()["content_key"]);
    assert_eq!(with.result()["image"]["config"], without.result()["image"]["config"]);
    // The layer of the step is as empty as without.
    assert_eq!(with.result()["image"]["layers"], without.result()["image"]["layers"]);

    daemon.sandbox("box", &["--env", "GIT_SSL_CAINFO=/mine"]);
    let (_, out, _) = daemon.sh("box", "echo $GIT_SSL_CAINFO $NODE_EXTRA_CA_CERTS; tail -n 1 $SSL_CERT_FILE");
    assert_eq!(out, "/mine /run/berth/ca-bundle.pem\n-----END CERTIFICATE-----\n");
    plain.sandbox("box", &[]);
    assert_eq!(plain.sh("box", "ls -d /run/berth; env | grep -c CERT").1, "0\n");
}

#[test]
fn a_daemon_does_not_start_with_certificates_that_are_none() {
    let dir = tempfile::tempdir_in(support::test_root()).unwrap();
    write_tree(
        dir.path(),
        &[("bad.pem", 0o644, "hello\n"), ("berth.toml", 0o644, "[builds]\nca_bundle = \"bad.pem\"\n")],
    );
    let serve = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["serve", "--config", "berth.toml", "--data-dir", "data", "--host"])
        .arg(format!("unix://{}/sock", dir.path().display()))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = text(&serve.stderr);
    assert_eq!(serve.status.code(), Some(78), "{error}");
    assert!(error.contains("ca_bundle") && error.contains("bad.pem holds no certificate"), "{error}");
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_a_build_leaves_nothing_of_it() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test\nRUN echo first > /first\n\
        RUN --mount=type=cache,target=/c --mount=type=cache,target=/d,sharing=locked \
            echo x >> /c/x; echo half > /half; sleep 8888888\n";
    write_tree(&daemon.path().join("context"), &[("Dockerfile", 0o644, dockerfile)]);
    let mut client = daemon.command(&["image", "build", "context"]);
    let client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    support::eventually("the second step", || support::process_with("8888888"));
    daemon.kill();
    client.wait_with_output().unwrap();
    daemon.restart(&[]);
    support::eventually("the step's end", || !support::process_with("8888888"));
    let (status, body) = daemon.request("POST", "/v1/images/verify", r#"{"deep":true}"#);
    let verified: Value = serde_json::from_str(body.lines().last().unwrap()).unwrap();
    let report = if verified["result"].is_null() { &verified } else { &verified["result"] };
    assert_eq!((status, &report["problems"]), (200, &json!([])), "{body}");
    let next = "FROM busybox:test\nRUN echo first > /first\n\
        RUN --mount=type=cache,target=/c --mount=type=cache,target=/d,sharing=locked cat /c/x > /x; ls /half; true\n";
    let built = build(&daemon, next);
    assert_eq!(built.result()["cached_steps"], 1, "the first step was kept");
    assert!(built.output().contains("No such file"), "{}", built.output());
    assert_eq!(look(&daemon, &built, "cat /x"), "x\n");
}

#[test]
fn a_full_disk_is_the_machines_failure_and_passes() {
    require_busybox!();
    let Some(daemon) = Daemon::on_small_disk(96) else { return };
    let again = json!({"no_cache": true});
    for mount in ["", "--mount=type=cache,target=/c"] {
        let dir = if mount.is_empty() { "" } else { "/c" };
        let fills = format!("FROM busybox:test\nRUN {mount} head -c 400000000 /dev/zero > {dir}/big\n");
        let failed = build(&daemon, &fills);
        let error = failed.error();
        assert_eq!(error["kind"], "unavailable", "{error}");
        assert!(error["message"].to_string().contains("the machine's disk is full"), "{error}");
        support::eventually("room", || {
            // What a cache holds stays until somebody asks for its room.
            let (status, body) = daemon.request("POST", "/v1/images/prune", r#"{"cache_mounts":true}"#);
            assert_eq!(status, 200, "{body}");
            let built = build_with(&daemon, &again, "FROM busybox:test\nRUN echo small > /small\n");
            built.lines.last().unwrap()["result"].is_object()
        });
    }
    let (_, body) = daemon.request("POST", "/v1/images/verify", r#"{"deep":true}"#);
    assert!(body.contains("\"problems\":[]"), "{body}");
}
