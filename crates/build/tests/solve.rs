//! Builds against a machine in memory: what ends up in the image, what is cached and what is not, how it fails.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fake;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;

use berth_build::context::Digests;
use berth_build::runner::LayerId;
use berth_build::{ContextSource, Digest, Outcome, Request, content_key};
use berth_types::error::Kind;
use berth_types::image::{BuildFailure, DockerfileFault};
use berth_types::progress::Progress;
use fake::Tree;
use fake::world::World;
use serde_json::json;

async fn failure(dockerfile: &str) -> String {
    World::new(dockerfile).failure().await
}

#[tokio::test]
async fn an_unchanged_build_opens_no_sandbox() {
    let world = World::new("FROM debian\nWORKDIR /app\nCOPY a .\nRUN write /b 1\nCMD [\"x\"]");
    world.write("a", "A");
    let first = world.build().await;
    assert_eq!(first.cached_steps, 0);
    assert_eq!(first.steps, 5);
    world.machine.take_log();
    let second = world.build().await;
    assert_eq!(second, Outcome { cached_steps: 5, ..first });
    assert_eq!(world.machine.take_log(), ["base debian"]);
}

#[tokio::test]
async fn only_content_decides_what_is_built_again() {
    let world = World::new("FROM debian\nCOPY dir /dir/\nRUN write /b 1");
    world.write("dir/a", "A");
    world.write("other", "not copied");
    symlink("a", world.path().join("dir/link")).unwrap();
    let first = world.build().await;

    let same = async |what: &str| assert_eq!(world.build().await.image, first.image, "{what}");
    let file = fs::File::options().write(true).open(world.path().join("dir/a")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    same("time").await;
    world.write("other", "changed");
    same("a file that is not copied").await;
    world.write("Dockerfile", "# comment\nFROM debian\nCOPY   dir  /dir/\nRUN write /b 1");
    same("blanks and comments").await;

    let differs = async |what: &str| {
        let outcome = world.build().await;
        assert_ne!(outcome.content_key, first.content_key, "{what}");
        assert_eq!(outcome.cached_steps, 0, "{what}");
    };
    world.chmod("dir/a", 0o755);
    differs("mode").await;
    world.chmod("dir/a", 0o644);
    same("mode set back").await;
    fs::remove_file(world.path().join("dir/link")).unwrap();
    symlink("b", world.path().join("dir/link")).unwrap();
    differs("link target").await;
    fs::remove_file(world.path().join("dir/link")).unwrap();
    symlink("a", world.path().join("dir/link")).unwrap();
    world.write("dir/a", "B");
    differs("bytes").await;
    world.write("dir/a", "A");
    world.write("dir/new", "");
    differs("one more file").await;
    fs::remove_file(world.path().join("dir/new")).unwrap();
    fs::create_dir(world.path().join("dir/empty")).unwrap();
    differs("an empty directory").await;
}

#[tokio::test]
async fn the_name_of_the_context_does_not_matter() {
    let [one, two] = [World::new("FROM debian\nCOPY . /x"), World::new("FROM debian\nCOPY . /x")];
    let key = |outcome: Outcome| outcome.content_key;
    assert_eq!(key(one.build().await), key(two.build().await));
}

#[tokio::test]
async fn a_changed_last_step_runs_alone() {
    let world = World::new("FROM debian\nRUN write /a 1\nCOPY f /f\nLABEL v=1");
    world.write("f", "1");
    world.build().await;
    world.machine.take_log();
    world.write("f", "2");
    let outcome = world.build().await;
    assert_eq!((outcome.steps, outcome.cached_steps), (4, 1));
    assert_eq!(world.machine.take_log(), ["base debian", "open"]);
    world.write("Dockerfile", "FROM debian\nLABEL v=2\nRUN write /a 1\nCOPY f /f");
    world.build().await;
    assert_eq!(world.machine.take_log(), ["base debian"]);
}

#[tokio::test]
async fn args_and_env_change_the_steps_that_see_them() {
    let mut world = World::new("FROM debian\nRUN write /a 1\nARG V=1\nRUN write /b $V\nARG W");
    world.build().await;
    world.machine.take_log();
    world.args.insert("V".into(), "2".into());
    world.build().await;
    assert_eq!(world.machine.take_log(), ["base debian", "open", "run /bin/sh -c write /b $V"]);
    world.args.insert("W".into(), "unseen by any step".into());
    world.build().await;
    assert_eq!(world.machine.take_log(), ["base debian"]);
    world.args.insert("https_proxy".into(), "http://proxy".into());
    world.build().await;
    assert_eq!(world.machine.take_log(), ["base debian"]);
}

#[tokio::test]
async fn no_cache_runs_everything_and_asks_for_bases_anew() {
    let mut world = World::new("FROM debian\nRUN write /a 1");
    let first = world.build().await;
    world.machine.take_log();
    world.no_cache = true;
    let second = world.build().await;
    assert_eq!(first.content_key, second.content_key);
    assert_eq!(second.cached_steps, 0);
    assert_eq!(world.machine.take_log(), ["base debian", "open", "run /bin/sh -c write /a 1"]);
}

#[tokio::test]
async fn a_new_base_builds_everything_again() {
    let world = World::new("FROM debian\nRUN write /a 1");
    let first = world.build().await;
    {
        let mut state = world.machine.0.lock().unwrap();
        let layer = LayerId("sha256:newer-layer".into());
        state.layers.insert(layer.clone(), Tree::new());
        let base = state.bases.get_mut("debian").unwrap();
        (base.id, base.layers) = ("sha256:newer".into(), vec![layer]);
    }
    let second = world.build().await;
    assert_ne!(first.content_key, second.content_key);
    assert_eq!(second.cached_steps, 0);
}

#[tokio::test]
async fn a_base_with_other_metadata_alone_runs_nothing_again() {
    let world = World::new("FROM debian\nRUN write /a 1");
    let first = world.build().await;
    world.machine.take_log();
    world.machine.0.lock().unwrap().bases.get_mut("debian").unwrap().id = "sha256:relabelled".into();
    let second = world.build().await;
    assert_ne!(first.content_key, second.content_key);
    assert_eq!(world.machine.take_log(), ["base debian"]);
}

#[tokio::test]
async fn stages_that_nobody_needs_are_not_built() {
    let mut world = World::new(
        "FROM debian AS a\nRUN write /a 1\nFROM missing AS unused\nRUN write /u 1\nFROM debian AS b\nCOPY --from=a /a /from-a\n\
         FROM debian AS c\nRUN write /c 1",
    );
    world.target = Some("B".into());
    let outcome = world.build().await;
    let log = world.machine.take_log();
    assert_eq!(log, ["base debian", "open", "run /bin/sh -c write /a 1", "open", "open"]);
    assert_eq!(world.machine.tree(&outcome.image)["/from-a"].content, "1");
    world.target = Some("d".into());
    insta::assert_snapshot!(world.failure().await, @"Dockerfile has no stage `d`; did you mean stage `a`?");
}

#[tokio::test]
async fn a_lending_stage_is_not_built_for_a_cached_copy() {
    let world = World::new("FROM debian AS a\nRUN write /a 1\nFROM scratch\nCOPY --from=0 /a /\nCOPY f /f");
    world.write("f", "1");
    world.build().await;
    world.machine.0.lock().unwrap().steps.retain(|_, step| {
        // The lending stage's layer was collected.
        step.layer.as_ref().is_none_or(|layer| layer.0 != "sha256:layer-2")
    });
    world.machine.take_log();
    world.write("f", "2");
    let outcome = world.build().await;
    assert_eq!(world.machine.take_log(), ["base debian", "open"]);
    assert_eq!(outcome.steps - outcome.cached_steps, 2);
}

#[tokio::test]
async fn files_are_copied_as_docker_copies_them() {
    let world = World::new(
        "FROM debian\n\
         COPY one /file\n\
         COPY one /dir/\n\
         COPY one dir/two /several\n\
         COPY dir /tree\n\
         COPY --chown=app:staff --chmod=750 dir/two /made/by/chown\n\
         COPY *.txt /wild/\n\
         COPY link /followed\n\
         WORKDIR /work\n\
         COPY one .\n\
         COPY [\"with blank\", \"/with blank\"]\n\
         COPY --chmod=0600 dir /tree",
    );
    world.write("one", "1");
    world.chmod("one", 0o4755);
    world.write("dir/two", "2");
    world.write("dir/sub/three", "3");
    world.write("a.txt", "a");
    world.write("b.txt", "b");
    world.write("with blank", "blank");
    symlink("dir/two", world.path().join("link")).unwrap();
    symlink("two", world.path().join("dir/link")).unwrap();
    world.chmod("dir/sub", 0o700);
    insta::assert_snapshot!(world.listing().await);
}

#[tokio::test]
async fn stages_lend_files_with_their_owners() {
    let world = World::new(
        "FROM debian AS one\nWORKDIR /out/sub\nCOPY --chown=5:6 f /out/sub/f\nCOPY --chown=5:6 f /out/g\n\
         FROM scratch\nCOPY --from=one /out /all\nCOPY --from=one --chown=7:8 /out/sub/f /renamed\n\
         COPY --from=0 /out/*/f /globbed/\nCOPY --from=debian /bin/sh /shell",
    );
    world.write("f", "F");
    insta::assert_snapshot!(world.listing().await);
}

#[tokio::test]
async fn local_archives_are_unpacked_by_add_only() {
    let world = World::new("FROM scratch\nADD a.tar.gz /x\nADD text.gz /y/\nCOPY a.tar.gz /z/");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o640);
    header.set_uid(12);
    header.set_gid(34);
    builder.append_data(&mut header, "in/side", &b"hi"[..]).unwrap();
    let tar = builder.into_inner().unwrap();
    world.write("a.tar.gz", zstd::encode_all(&tar[..], 1).unwrap());
    world.write("text.gz", "no archive");
    let tree = world.tree().await;
    assert_eq!((tree["/x/in/side"].content.as_str(), tree["/x/in/side"].owner.as_str()), ("hi", "12:34"));
    assert_eq!(tree["/y/text.gz"].content, "no archive");
    assert!(tree.contains_key("/z/a.tar.gz"));
}

#[tokio::test]
async fn heredocs_run_and_copy() {
    let world = World::new(
        "FROM debian\nARG name=world\nRUN <<EOF\nwrite /one 1\nEOF\n\
         COPY <<greeting <<-'raw' /docs/\nhello $name\ngreeting\n\thello $name\n\traw\n\
         RUN <<script\n#!/usr/bin/env python3\nprint(1)\nscript\n\
         RUN cat <<A > /x && write /two 2\nbody\nA\n",
    );
    let tree = world.tree().await;
    assert_eq!(tree["/docs/greeting"].content, "hello world\n");
    assert_eq!(tree["/docs/raw"].content, "hello $name\n");
    assert_eq!(tree["/docs/raw"].mode, 0o644);
    assert!(!tree.contains_key("/dev/pipes/script"));
    let log = world.machine.take_log();
    assert!(log.contains(&"run /usr/bin/env python3 /dev/pipes/script".to_owned()), "{log:?}");
    assert!(log.contains(&"run /bin/sh -c cat <<A > /x && write /two 2\nbody\nA".to_owned()), "{log:?}");
}

#[tokio::test]
async fn a_run_sees_its_environment() {
    let mut world = World::new(
        "ARG global=G\nFROM debian\nENV A=1 B=\"two words\"\nENV OLD old form\nARG global\nARG none\nARG TARGETARCH\n\
         ENV C=$A$global\nUSER app\nWORKDIR /w\nWORKDIR ${A}\nRUN env",
    );
    world.args.insert("http_proxy".into(), "http://p".into());
    world.args.insert("mistyped".into(), "x".into());
    world.build().await;
    insta::assert_snapshot!(world.output(), @r"
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    A=1
    B=two words
    OLD=old form
    global=G
    TARGETARCH=amd64
    C=1G
    http_proxy=http://p
    cwd=/w/1 user=app
    ");
    let progress = world.progress.lock().unwrap();
    let told = |line: &Progress| matches!(line, Progress::Warning(warning) if warning.message == "no ARG takes the build arguments mistyped");
    assert!(progress.iter().any(told));
}

#[tokio::test]
async fn the_config_is_dockers() {
    let world = World::new(
        "FROM base AS one\nENV A=1\nWORKDIR /w\nUSER u:g\nCMD echo hi\nSHELL [\"/bin/bash\", \"-c\"]\nENTRYPOINT run\n\
         LABEL a=b \"c d\"='e f'\nEXPOSE 80 53/udp 8000-8001\nVOLUME /v1 /v2\nSTOPSIGNAL SIGINT\n\
         HEALTHCHECK --interval=30s --retries=3 CMD check it\nMAINTAINER me\nONBUILD RUN write /t 1\nRUN write /r 1",
    );
    world.machine.add_base("base", &[("x", "")], json!({
        "Env": ["PATH=/p", "X=y"], "Cmd": ["old"], "Labels": { "kept": "yes" }, "Domainname": "unknown field",
    }));
    let outcome = world.build().await;
    let mut config = world.machine.config(&outcome.image);
    assert!(config["created"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    config["created"] = json!("now");
    for entry in config["history"].as_array_mut().unwrap() {
        entry["created"] = json!("now");
    }
    insta::assert_json_snapshot!(config);
}

#[tokio::test]
async fn triggers_of_the_base_run() {
    let world = World::new("FROM parent\nRUN write /own 1");
    world.machine.add_base(
        "parent",
        &[("x", "")],
        json!({ "OnBuild": ["RUN write /trigger 1", "COPY f /f"] }),
    );
    world.write("f", "F");
    let outcome = world.build().await;
    assert_eq!(outcome.steps, 4);
    assert_eq!(world.machine.tree(&outcome.image)["/f"].content, "F");
    assert_eq!(world.machine.config(&outcome.image)["config"].get("OnBuild"), None);
    world.machine.add_base(
        "parent",
        &[("x", "")],
        json!({ "OnBuild": ["RUN --mount=type=cahce,target=/x y"] }),
    );
    insta::assert_snapshot!(world.failure().await, @"Dockerfile:1: in `ONBUILD RUN --mount=type=cahce,target=/x y`: `RUN`: expected `cache` after `type=`, found `cahce`");
}

#[tokio::test]
async fn a_failed_command_is_reported_whole() {
    let world = World::new("FROM debian\n\nRUN echo before && \\\n    fail 3\nRUN write /never 1");
    let error = world.try_build().await.unwrap_err();
    let api = error.to_api();
    assert_eq!((api.kind, api.code.as_str()), (Kind::User, "build_failed"));
    insta::assert_json_snapshot!(api, @r#"
    {
      "code": "build_failed",
      "kind": "user",
      "message": "Dockerfile:3: step 2 of 3 failed with exit code 3: RUN echo before && fail 3",
      "details": {
        "excerpt": "   ╭─[Dockerfile:3:1]\n 2 │\n 3 │ RUN echo before && \\\n   · ──────────┬─────────\n   ·           ╰── ended with exit code 3\n 4 │     fail 3\n 5 │ RUN write /never 1\n   ╰────",
        "exit_code": 3,
        "file": "Dockerfile",
        "instruction": "RUN echo before && fail 3",
        "line": 3,
        "output_tail": [
          "before"
        ],
        "step": 2,
        "steps": 3
      }
    }
    "#);
    assert!(world.machine.0.lock().unwrap().steps.is_empty());
}

#[tokio::test]
async fn what_cannot_be_built_is_named() {
    let table = [
        "FROM missing",
        "FROM debian AS build\nFROM buidl",
        "FROM debian\nCOPY nothing /x",
        "FROM debian\nCOPY ../up /x",
        "FROM debian\nCOPY sub/../../up /x",
        "FROM debian\nCOPY [\"a[\", \"/x\"]",
        "FROM debian\nRUN --mount=type=ssh x",
        "FROM debian\nRUN --network=host x",
        "FROM debian\nCOPY --chwon=a a b",
        "FROM debian\nADD git@example.org:x.git /x",
        "FROM debian\nCOPY https://example.org/x /x",
        "FROM debian\nCOPY --chmod=u+z a b",
        "FROM debian\nCOPY --chmod=999 a b",
        "FROM debian\nCOPY --from=3 a b",
        "FROM debian\nCOPY --from=$x a b",
        "FROM debian\nCOPY --from=debian /nothing b",
        "FROM --platform=linux/s390x debian",
        "FROM debian\nENV a=${b:}",
        "FROM ${none}",
        "# syntax=example.org/other\nFROM debian",
    ];
    let mut report = String::new();
    for dockerfile in table {
        report.push_str(&format!("{}\n    {}\n", dockerfile.replace('\n', " ⏎ "), failure(dockerfile).await));
    }
    insta::assert_snapshot!(report);
}

#[tokio::test]
async fn links_out_of_the_context_are_refused() {
    let world = World::new("FROM debian\nCOPY out /x");
    for target in ["/etc/passwd", "../up", "sub/../../up"] {
        let link = world.path().join("out");
        let _ = fs::remove_file(&link);
        symlink(target, &link).unwrap();
        let failure = world.failure().await;
        assert!(
            failure.starts_with("Dockerfile:2: source `out` leaves the build context"),
            "{target}: {failure}"
        );
    }
    // Within a copied directory a link is only a link.
    world.write("Dockerfile", "FROM debian\nCOPY . /all");
    assert_eq!(world.tree().await["/all/out"].content, "sub/../../up");
}

#[tokio::test]
async fn a_dockerfile_may_not_be_a_link_out_of_the_context() {
    let world = World::new("");
    fs::remove_file(world.path().join("Dockerfile")).unwrap();
    symlink("/etc/hostname", world.path().join("Dockerfile")).unwrap();
    let error = world.try_build().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::User, "build_context_unusable"));
    fs::remove_file(world.path().join("Dockerfile")).unwrap();
    let error = world.try_build().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::NotFound, "dockerfile_not_found"));
}

#[tokio::test]
async fn ignored_files_are_not_there() {
    let world = World::new("FROM debian\nCOPY . /x");
    world.write(".dockerignore", "*\n!keep\n!deep/down/kept\n.dockerignore");
    world.write("keep", "");
    world.write("gone", "");
    world.write("deep/down/kept", "");
    world.write("deep/down/gone", "");
    let tree = world.tree().await;
    let paths: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(paths, ["/x", "/x/deep", "/x/deep/down", "/x/deep/down/kept", "/x/keep"]);
    world.write("Dockerfile", "FROM debian\nCOPY gone /x");
    insta::assert_snapshot!(world.failure().await,
        @"Dockerfile:2: source `gone` is not in the build context [it is excluded by `*` (.dockerignore, line 1)]");
    world.write("Dockerfile.dockerignore", "");
    world.build().await;
}

#[tokio::test]
async fn a_pattern_may_match_nothing() {
    let world = World::new("FROM debian\nCOPY nothing* /x/");
    world.build().await;
    let told = |line: &Progress| matches!(line, Progress::Warning(warning) if warning.message == "COPY: `nothing*` matches nothing");
    assert!(world.progress.lock().unwrap().iter().any(told));
}

#[tokio::test]
async fn special_files_are_refused() {
    let world = World::new("FROM debian\nCOPY dir /x");
    world.write("dir/a", "");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        world.path().join("dir/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_eq!(
        world.failure().await,
        "Dockerfile:2: `dir/fifo` in the build context is a FIFO, which cannot be copied"
    );
}

#[tokio::test]
async fn steps_are_told_as_they_come() {
    let world = World::new("FROM debian\nRUN echo one\nENV a=b");
    world.build().await;
    let step = |step, instruction: &str| Progress::Step {
        step,
        steps: 3,
        instruction: instruction.into(),
        cached: false,
    };
    let output = Progress::Output { step: 2, text: "one\n".into() };
    let done = |step| Progress::StepDone { step, elapsed_ms: 0 };
    let steps = [step(1, "FROM debian"), done(1), step(2, "RUN echo one"), output, done(2)];
    let wanted = [steps.to_vec(), vec![step(3, "ENV a=b"), done(3)]].concat();
    let told: Vec<Progress> = world
        .progress
        .lock()
        .unwrap()
        .iter()
        .map(|line| match line {
            // How long it took is its own affair.
            Progress::StepDone { step, .. } => done(*step),
            line => line.clone(),
        })
        .collect();
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn the_content_key_is_known_without_building() {
    let world = World::new("FROM debian\nCOPY Dockerfile /x");
    let quiet = |_| {};
    let key = content_key(&world.request(&quiet), &world.machine).await.unwrap();
    assert_eq!(world.machine.take_log(), ["base debian"]);
    assert_eq!(world.build().await.content_key, key);
}

#[tokio::test]
async fn tags_point_at_found_images_too() {
    let world = World::new("FROM debian");
    let outcome = world.build().await;
    world.machine.0.lock().unwrap().tags.clear();
    world.build().await;
    assert_eq!(world.machine.0.lock().unwrap().tags["t:1"], outcome.image);
}

#[tokio::test]
async fn a_damaged_archive_makes_no_layer() {
    let world = World::new("FROM scratch\nADD a.tar.gz /x");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 20);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, "a", std::io::repeat(7).take(1 << 20)).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(&builder.into_inner().unwrap()).unwrap();
    let whole = gzip.finish().unwrap();
    world.write("a.tar.gz", &whole[..whole.len() / 2]);
    let error = world.try_build().await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::User, "build_step_impossible"), "{}", error.to_api());
    assert!(world.machine.0.lock().unwrap().steps.is_empty());
}

#[tokio::test]
async fn the_machines_failure_is_not_the_dockerfiles() {
    let world = World::new("FROM debian\nRUN write /a 1");
    world.machine.0.lock().unwrap().broken = true;
    let error = world.try_build().await.unwrap_err();
    assert!(error.kind().is_infrastructure());
    insta::assert_snapshot!(error.to_api(),
        @"Dockerfile:2: cannot open a sandbox for step 2: RUN write /a 1: the machine is out of sandboxes");
    world.machine.0.lock().unwrap().broken = false;
    world.build().await;
}

#[tokio::test]
async fn files_whose_digests_are_known_are_not_read_for_their_keys() {
    let world = World::new("FROM debian\nCOPY f /f");
    world.write("f", "one");
    let key = async |known: &Digests| {
        let quiet = |_| {};
        let request =
            Request { context: ContextSource::Hashed(world.path(), known), ..world.request(&quiet) };
        content_key(&request, &world.machine).await.unwrap()
    };
    let read = key(&Digests::default()).await;
    // SHA-256 of `one`, and of something else.
    let digest = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    let known = |digest: &str| Digests::new([("f".to_owned(), Digest::read(digest).unwrap())].into());
    assert_eq!(key(&known(digest)).await, read);
    assert_ne!(key(&known(&"0".repeat(64))).await, read);
}

#[tokio::test]
async fn a_trigger_that_fails_is_shown_by_its_from_and_its_stage_is_named() {
    let world = World::new("FROM debian AS other\n\nFROM parent AS tools\nRUN write /never 1");
    world.machine.add_base("parent", &[("x", "")], json!({ "OnBuild": ["RUN fail 4"] }));
    let details = world.try_build().await.unwrap_err().to_api().details.unwrap();
    let failure: BuildFailure = serde_json::from_value(details).unwrap();
    assert_eq!((failure.file.as_str(), failure.line, failure.step), ("Dockerfile", 3, 2));
    assert_eq!((failure.stage.as_deref(), failure.instruction.as_str()), (Some("tools"), "RUN fail 4"));
    let excerpt = failure.excerpt.unwrap();
    assert!(excerpt.contains("3 │ FROM parent AS tools\n"), "{excerpt}");
    assert!(excerpt.contains("brings `ONBUILD RUN fail 4`: ended with exit code 4"), "{excerpt}");
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_shown_where_it_is_named() {
    let world = World::new("FROM debian\nCOPY --from=nowhere /a /b");
    let api = world.try_build().await.unwrap_err().to_api();
    let place: DockerfileFault = serde_json::from_value(api.details.unwrap()).unwrap();
    assert_eq!((place.file.as_str(), place.line, place.column), ("Dockerfile", 2, 6));
    assert!(place.excerpt.contains("2 │ COPY --from=nowhere /a /b\n"), "{}", place.excerpt);
}
