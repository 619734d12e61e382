//! Dockerfile builds, through the command line: real steps in real sandboxes, cached by content.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::process::Stdio;

use support::{Daemon, text, write_tree};

fn build(daemon: &Daemon, dir: &str, args: &[&str]) -> serde_json::Value {
    let context = daemon.path().join(dir);
    let mut all = vec!["image", "build", context.to_str().unwrap(), "--json"];
    all.extend(args);
    serde_json::from_str(&daemon.ok(&all)).unwrap()
}

fn cached(result: &serde_json::Value) -> (u64, u64) {
    (result["cached_steps"].as_u64().unwrap(), result["steps"].as_u64().unwrap())
}

#[test]
fn a_dockerfile_becomes_an_image() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = r#"ARG BASE=busybox:test
FROM ${BASE} AS builder
RUN mkdir -p /out && echo "built by $(id -u)" > /out/result && ln -s result /out/link
FROM busybox:test
ENV GREETING="hello world" EMPTY=
WORKDIR /srv/app
COPY --from=builder /out/ ./built/
COPY --chown=alice:staff --chmod=640 data/*.txt data/
COPY run.sh /usr/local/bin/
RUN ["/bin/sh", "-c", "echo exec form > made && rm /bin/vi"]
USER alice
LABEL kind=test
CMD ["/bin/sh"]
"#;
    write_tree(
        &daemon.path().join("context"),
        &[
            ("Dockerfile", 0o644, dockerfile),
            ("run.sh", 0o755, "#!/bin/sh\necho ran\n"),
            ("data/a.txt", 0o644, "a"),
            ("data/b.txt", 0o644, "b"),
            ("data/skipped.txt", 0o644, "s"),
            (".dockerignore", 0o644, "**/skipped*\n"),
        ],
    );
    let first = build(&daemon, "context", &["-t", "app:1"]);
    assert_eq!(cached(&first).0, 0);
    daemon.ok(&["sandbox", "create", "app:1", "--name", "app", "--network", "no-network"]);
    let line = "id -un; pwd; echo $GREETING; cat built/result built/link; ls data; stat -c '%U:%G %a' data/a.txt; run.sh; cat made; ls /bin/vi";
    let (_, out, err) = daemon.sh("app", line);
    assert_eq!(
        out,
        "alice\n/srv/app\nhello world\nbuilt by 0\nbuilt by 0\na.txt\nb.txt\nalice:staff 640\nran\nexec form\n"
    );
    assert!(err.contains("/bin/vi"), "a removed file came back: {err}");

    let again = build(&daemon, "context", &["-t", "app:2"]);
    assert_eq!(again["image"]["id"], first["image"]["id"]);
    assert_eq!(cached(&again).0, cached(&again).1);
}

#[test]
fn content_decides_what_is_built_again() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let files = |mode, content: &'static str| {
        [
            ("Dockerfile", 0o644, "FROM busybox:test\nCOPY file /file\nRUN cat /file\n"),
            ("file", mode, content),
        ]
    };
    let dir = daemon.path().join("context");
    write_tree(&dir, &files(0o644, "one"));
    let first = build(&daemon, "context", &[]);

    std::fs::File::open(dir.join("file")).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let touched = build(&daemon, "context", &[]);
    assert_eq!(touched["image"]["id"], first["image"]["id"], "a time is no content");

    write_tree(&dir, &files(0o600, "one"));
    let moded = build(&daemon, "context", &[]);
    assert_ne!(moded["image"]["id"], first["image"]["id"], "a mode is content");
    write_tree(&dir, &files(0o600, "two"));
    let changed = build(&daemon, "context", &[]);
    assert_ne!(changed["image"]["id"], moded["image"]["id"]);
    write_tree(&dir, &files(0o644, "one"));
    let back = build(&daemon, "context", &[]);
    assert_eq!(back["image"]["id"], first["image"]["id"]);
    let forced = build(&daemon, "context", &["--no-cache"]);
    assert_eq!(cached(&forced).0, 0);
}

#[test]
fn a_failing_step_says_where_and_what() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test\n\nRUN for i in $(seq 100); do echo line $i; done; exit 3\n";
    write_tree(&daemon.path().join("context"), &[("Dockerfile", 0o644, dockerfile)]);
    let context = daemon.path().join("context");
    let (code, error) = daemon.fails(&["image", "build", context.to_str().unwrap()]);
    assert_eq!(code, 64, "{error}");
    for part in ["Dockerfile:3", "exit code 3", "RUN for i in", "line 100", "line 60"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    assert!(!daemon.ok(&["sandbox", "ls", "--json"]).contains("running"), "a step's sandbox stayed");
}

#[test]
fn what_is_not_supported_is_refused_with_its_place() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    for (line, part) in [
        ("RUN --mount=type=ssh true", "ssh"),
        ("RUN --network=host true", "host"),
        ("RUN --security=insecure true", "insecure"),
        ("ADD ftp://127.0.0.1/x /x", "ftp"),
        ("RUNN true", "RUN"),
        ("COPY ../secret /x", "secret"),
        ("COPY missing /x", "missing"),
        ("FROM nothing:here", "nothing:here"),
    ] {
        write_tree(
            &daemon.path().join("context"),
            &[("Dockerfile", 0o644, &format!("FROM busybox:test\n{line}\n"))],
        );
        let context = daemon.path().join("context");
        let (_, error) = daemon.fails(&["image", "build", context.to_str().unwrap()]);
        assert!(error.contains("Dockerfile:2") || error.contains(":2:"), "no place in {error}");
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let (code, error) = daemon.fails(&["image", "build", daemon.path().join("nowhere").to_str().unwrap()]);
    assert_ne!(code, 70, "{error}");
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn an_empty_image_runs_one_static_program() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    std::fs::create_dir_all(daemon.path().join("context")).unwrap();
    std::fs::copy("/bin/busybox", daemon.path().join("context/busybox")).unwrap();
    write_tree(&daemon.path().join("context"), &[("Dockerfile", 0o644, "FROM scratch\nCOPY busybox /\n")]);
    build(&daemon, "context", &["-t", "static:1"]);
    daemon.ok(&["sandbox", "create", "static:1", "--name", "box", "--network", "no-network"]);
    let output = daemon.run(&["sandbox", "exec", "box", "--", "/busybox", "echo", "alone"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "alone\n"));
    let shell = daemon.run(&["sandbox", "exec", "box", "--shell", "--", "true"]);
    assert_eq!(shell.status.code(), Some(127), "{}", text(&shell.stderr));
    // Mount points are not left in the image.
    let listing = daemon.run(&["sandbox", "exec", "box", "--", "/busybox", "ls", "/"]);
    assert_eq!(text(&listing.stdout), "busybox\ndev\netc\nproc\nsys\n");
}

#[test]
fn equal_builds_at_once_are_one() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test\nRUN sleep 1; head -c 16 /dev/urandom > /stamp\n";
    write_tree(&daemon.path().join("context"), &[("Dockerfile", 0o644, dockerfile)]);
    let ids: Vec<String> = std::thread::scope(|scope| {
        let builds: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| build(&daemon, "context", &[])["image"]["id"].as_str().unwrap().to_owned())
            })
            .collect();
        builds.into_iter().map(|build| build.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[test]
fn a_daemon_that_ends_takes_its_builds_along() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test\nRUN sleep 6666666\n";
    write_tree(&daemon.path().join("context"), &[("Dockerfile", 0o644, dockerfile)]);
    let mut client = daemon.command(&["image", "build", "context"]).spawn().unwrap();
    support::eventually("the step", || support::process_with("6666666"));
    assert!(daemon.terminate().success());
    assert_eq!(client.wait().unwrap().code(), Some(69));
    assert!(!support::process_with("6666666"), "a step outlived the daemon");
    assert!(!daemon.log().contains("stay behind"), "{}", daemon.log());
    daemon.restart(&[]);
}

#[test]
fn equal_layers_stand_in_one_image() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    // As `RUN` steps that change nothing leave them, and as images of registries hold them.
    let dockerfile = "FROM scratch\nCOPY busybox /bin/\nCOPY file /\nCOPY file /\nRUN [\"/bin/busybox\", \"rm\", \"/file\"]\n\
        COPY file /\nRUN [\"/bin/busybox\", \"cat\", \"/file\"]\n";
    write_tree(
        &daemon.path().join("context"),
        &[("Dockerfile", 0o644, dockerfile), ("file", 0o644, "content")],
    );
    std::fs::copy("/bin/busybox", daemon.path().join("context/busybox")).unwrap();
    build(&daemon, "context", &["-t", "twice:1"]);
    daemon.ok(&["sandbox", "create", "twice:1", "--name", "twice", "--network", "no-network"]);
    assert_eq!(daemon.ok(&["sandbox", "exec", "twice", "--", "/bin/busybox", "cat", "/file"]), "content");
}

#[test]
fn a_stage_is_copied_without_what_is_mounted_in_it() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test AS whole\nRUN mkdir -p /run/own && echo kept > /run/own/file\n\
        FROM scratch AS bare\nCOPY file /file\n\
        FROM busybox:test\nCOPY --from=whole / /whole\nCOPY --from=bare / /bare\n\
        RUN find /whole/dev /whole/proc /whole/sys /whole/run /whole/etc/hosts /bare | sort > /found; true\n";
    write_tree(
        &daemon.path().join("context"),
        &[("Dockerfile", 0o644, dockerfile), ("file", 0o644, "content")],
    );
    build(&daemon, "context", &["-t", "copied:1"]);
    daemon.ok(&["sandbox", "create", "copied:1", "--name", "copied", "--network", "no-network"]);
    let (_, out, _) = daemon.sh("copied", "cat /found");
    assert_eq!(out, "/bare\n/bare/file\n/whole/run\n/whole/run/own\n/whole/run/own/file\n");
}

#[test]
fn a_step_has_the_surroundings_that_dockerfiles_are_written_for() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test\nRUN env | cut -d= -f1 | sort > /env\n\
        COPY --chown=4242 file /number\nCOPY --chown=alice file /name\nUSER 4243\nWORKDIR /made\n";
    write_tree(&daemon.path().join("context"), &[("Dockerfile", 0o644, dockerfile), ("file", 0o644, "x")]);
    build(&daemon, "context", &["-t", "surroundings:1"]);
    daemon.ok(&["sandbox", "create", "surroundings:1", "--name", "s", "--network", "no-network"]);
    let (_, out, _) = daemon.sh("s", "cat /env; stat -c '%u:%g' /number /made; stat -c '%U' /name");
    assert_eq!(out, "HOME\nPATH\nPWD\nSHLVL\n4242:4242\n4243:4243\nalice\n");
}

#[test]
fn a_build_keeps_its_layers_when_an_image_that_shares_them_is_removed() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let shared = "FROM busybox:test\nRUN echo shared > /shared\n";
    let slow = format!("{shared}RUN sh -c 'sleep 2; true' 7777777\nRUN cat /shared\n");
    write_tree(&daemon.path().join("slow"), &[("Dockerfile", 0o644, &slow)]);
    write_tree(&daemon.path().join("fast"), &[("Dockerfile", 0o644, shared)]);
    let mut client = daemon.command(&["image", "build", "slow"]);
    let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    support::eventually("the second step", || support::process_with("7777777"));
    build(&daemon, "fast", &["-t", "fast:1"]);
    daemon.ok(&["image", "rm", "fast:1"]);
    let slow = client.wait_with_output().unwrap();
    assert!(slow.status.success(), "{}", text(&slow.stderr));
}
