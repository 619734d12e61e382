//! Dockerfiles replayed in sandboxes that run.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::builds::{Built, send};
use support::{Daemon, write_tree};

const FILES: [(&str, u32, &str); 2] = [("hello.txt", 0o640, "hello\n"), ("dir/a", 0o644, "a\n")];

fn files(dockerfile: &str) -> Vec<(&str, u32, &str)> {
    let mut files = FILES.to_vec();
    files.push(("Dockerfile", 0o644, dockerfile));
    files
}

fn replay_with(daemon: &Daemon, sandbox: &str, options: &Value, dockerfile: &str) -> Built {
    send(daemon, &format!("/v1/sandboxes/{sandbox}/replay"), options, &files(dockerfile))
}

fn replay(daemon: &Daemon, sandbox: &str, dockerfile: &str) -> Built {
    replay_with(daemon, sandbox, &json!({}), dockerfile)
}

#[test]
fn a_replayed_sandbox_is_what_one_of_the_image_would_be() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test AS lib\nRUN mkdir /out && echo lent > /out/lent\n\
        FROM busybox:test AS first\nENV A=1 PATH=/opt/bin:/bin\nRUN mkdir -p /srv && echo $A > /srv/env\n\
        FROM first\nARG WHO=nobody\nWORKDIR /srv/app\nCOPY --chown=alice:staff . .\nCOPY --from=lib /out /from\n\
        ADD hello.txt /added/\nRUN echo \"$WHO $(id -u) $(pwd)\" > who\nUSER alice\nENV B=\"two words\"\nRUN id -un > /tmp/user\n";
    let options = json!({"build_args": {"WHO": "me"}});
    let built = send(&daemon, "/v1/images/build", &options, &files(dockerfile));
    let image = built.result()["image"]["id"].as_str().unwrap().to_owned();
    daemon.ok(&["sandbox", "create", &image, "--name", "built", "--network", "no-network"]);

    let base = send(&daemon, "/v1/images/build?base=true", &options, &files(dockerfile));
    assert_eq!(base.result()["steps"], 0, "{}", base.result());
    let base = base.result()["image"]["id"].as_str().unwrap().to_owned();
    daemon.ok(&["sandbox", "create", &base, "--name", "replayed", "--network", "no-network"]);
    let replayed = replay_with(&daemon, "replayed", &options, dockerfile);
    let result = replayed.result();
    assert_eq!(result["content_key"], built.result()["content_key"]);
    assert_eq!(result["config"]["working_dir"], "/srv/app");
    assert_eq!(result["config"]["user"], "alice");

    let line = "env | grep -v -e HOSTNAME -e BERTH | sort; pwd; id; cat who /srv/env /from/lent /tmp/user /added/hello.txt; \
        find /srv /from /added /tmp -exec stat -c '%n %a %U:%G' {} + | sort";
    let (_, of_image, _) = daemon.sh("built", line);
    let (_, of_replay, _) = daemon.sh("replayed", line);
    assert_eq!(of_replay, of_image);
    assert!(of_image.contains("me 0 /srv/app") && of_image.contains("B=two words"), "{of_image}");
    let shown = daemon.show("replayed");
    assert_eq!((shown["workdir"].as_str(), shown["user"].as_str()), (Some("/srv/app"), Some("alice")));

    // Another daemon knows it too.
    daemon.kill();
    daemon.restart(&[]);
    assert_eq!(daemon.sh("replayed", line).1, of_image);
}

#[test]
fn what_was_asked_for_when_it_was_made_goes_before_the_dockerfile() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let args = ["--env", "A=mine", "--workdir", "/etc", "--user", "root"];
    daemon.sandbox("box", &args);
    replay(
        &daemon,
        "box",
        "FROM busybox:test\nENV A=its B=its\nWORKDIR /w\nUSER alice\nRUN echo $A > /tmp/a\n",
    )
    .result();
    assert_eq!(daemon.sh("box", "echo $A $B; pwd; id -un; cat /tmp/a").1, "mine its\n/etc\nroot\nits\n");
}

#[test]
fn a_step_that_fails_leaves_the_sandbox_running_and_says_so() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &[]);
    let failed =
        replay(&daemon, "box", "FROM busybox:test\nENV A=1\nRUN echo done > /done\nRUN echo why; exit 7\n");
    let error = failed.error();
    assert_eq!((error["code"].as_str(), error["kind"].as_str()), (Some("build_failed"), Some("user")));
    assert_eq!((&error["details"]["exit_code"], &error["details"]["line"]), (&json!(7), &json!(4)));
    assert!(error["message"].as_str().unwrap().ends_with("runs on with what was done in it"), "{error}");
    assert_eq!(daemon.sh("box", "cat /done; echo ${A:-unset}").1, "done\nunset\n");
    let nonsense = replay(&daemon, "box", "FROM busybox:test\nRUNN x\n");
    assert_eq!(nonsense.error()["code"], "dockerfile_invalid");
}

#[test]
fn nothing_is_replayed_where_commands_run_or_nothing_does() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &[]);
    let mut busy =
        daemon.command(&["sandbox", "exec", "box", "--", "sh", "-c", "exec sleep 44$((44400 + 44))"]);
    let mut busy = busy.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn().unwrap();
    support::eventually("the command", || support::process_with("4444444"));
    let refused = replay(&daemon, "box", "FROM busybox:test\nRUN touch /never\n");
    assert_eq!(refused.error()["code"], "sandbox_in_use", "{}", refused.error());
    busy.kill().unwrap();
    busy.wait().unwrap();
    assert_ne!(daemon.sh("box", "ls /never").0, 0);
    let gone = replay(&daemon, "nowhere", "FROM busybox:test\n");
    assert_eq!(gone.error()["code"], "sandbox_not_found");
    let tagged = replay_with(&daemon, "box", &json!({"tags": ["x:1"]}), "FROM busybox:test\n");
    assert!(tagged.error()["message"].as_str().unwrap().contains("tags"), "{}", tagged.error());
}

#[test]
fn no_command_begins_while_a_dockerfile_is_replayed() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &[]);
    std::thread::scope(|scope| {
        let line = "FROM busybox:test\nRUN sh -c 'while ! test -e /go; do sleep 0.1; done' 5544332\nRUN touch /end\n";
        let replaying = scope.spawn(|| replay(&daemon, "box", line));
        support::eventually("the step", || support::process_with("5544332"));
        let exec = json!({"command": {"shell": "ls /end"}});
        let (status, answer) = daemon.json("POST", "/v1/sandboxes/box/exec", &exec);
        let error = &answer["error"];
        assert_eq!((status, &error["code"]), (409, &json!("sandbox_in_use")), "{answer}");
        assert!(error["message"].as_str().unwrap().contains("being replayed"), "{error}");
        let again = replay(&daemon, "box", "FROM busybox:test\n");
        assert_eq!(again.error()["code"], "sandbox_in_use");
        // Files may be looked at and sent meanwhile.
        write_tree(daemon.path(), &[("go", 0o644, "")]);
        let go = daemon.path().join("go");
        daemon.ok(&["sandbox", "cp", go.to_str().unwrap(), "box:/go"]);
        replaying.join().unwrap().succeeded();
    });
    assert_eq!(daemon.sh("box", "ls /end").1, "/end\n");
}

#[test]
fn a_sandbox_of_another_image_is_not_replayed_in() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &[]);
    let own = daemon.show("box")["image"].as_str().unwrap().to_owned();
    let other = send(
        &daemon,
        "/v1/images/build",
        &json!({"tags": ["other:1"]}),
        &files("FROM busybox:test\nLABEL a=b\n"),
    );
    let other = other.result()["image"]["id"].as_str().unwrap().to_owned();
    for (dockerfile, part) in [
        ("FROM other:1\nRUN touch /never\n", other.as_str()),
        ("FROM busybox:test AS first\nFROM scratch\nCOPY hello.txt /never\n", "scratch"),
    ] {
        let refused = replay(&daemon, "box", dockerfile);
        let error = refused.error();
        assert_eq!((&error["code"], &error["kind"]), (&json!("replay_base"), &json!("conflict")), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part) && message.contains(&own), "{message}");
    }
    assert_ne!(daemon.sh("box", "ls /never").0, 0);
    // It is not asked for again what it stands on: there is no registry to ask.
    replay_with(&daemon, "box", &json!({"pull": "refresh"}), "FROM busybox:test\nRUN touch /done\n")
        .succeeded();
    // The name means another one now.
    daemon.ok(&["image", "tag", &other, "busybox:test"]);
    let refused = replay(&daemon, "box", "FROM busybox:test\nRUN touch /never\n");
    assert_eq!(refused.error()["code"], "replay_base");
}

/// A package manager that installs a file for each package, and knows none that is called `missing`.
const APK: &[u8] = b"#!/bin/sh\ntest \"$1 $2\" = 'add --no-cache' || exit 9\nshift 2\nfor name; do\n\
    test $name != missing || { echo \"$name: unable to select packages\"; exit 1; }\n\
    echo \"installed by $(id -u)\" > /installed-$name\necho \"OK: $name\"\ndone\n";

#[test]
fn packages_are_the_last_step_of_a_replay() {
    require_busybox!();
    let daemon = Daemon::with_busybox_and(&[("bin/apk", 0o755, APK)]);
    daemon.sandbox("box", &[]);
    let options = json!({"packages": ["jq", "git", "jq"]});
    let dockerfile = "FROM busybox:test\nRUN touch /before\nWORKDIR /w\nUSER alice\n";
    let replayed = replay_with(&daemon, "box", &options, dockerfile);
    assert_eq!(replayed.output(), "OK: git\nOK: jq\n");
    let built = send(&daemon, "/v1/images/build", &options, &files(dockerfile));
    let image = built.result()["image"]["id"].as_str().unwrap();
    daemon.ok(&["sandbox", "create", image, "--name", "built", "--network", "no-network"]);
    let line = "cat /installed-git /installed-jq; ls /before; id -un; pwd";
    let (_, out, _) = daemon.sh("box", line);
    assert_eq!(out, "installed by 0\ninstalled by 0\n/before\nalice\n/w\n");
    assert_eq!(daemon.sh("built", line).1, out, "as in an image");
    assert_eq!(replayed.result()["steps"], built.result()["steps"]);

    let failed = replay_with(&daemon, "box", &json!({"packages": ["missing"]}), "FROM busybox:test\n");
    let error = failed.error();
    assert_eq!(
        (&error["code"], &error["details"]["exit_code"]),
        (&json!("build_failed"), &json!(1)),
        "{error}"
    );
    assert!(error["details"]["output_tail"].to_string().contains("unable to select packages"), "{error}");
    let refused = replay_with(&daemon, "box", &json!({"packages": ["a;b"]}), "FROM busybox:test\n");
    assert_eq!(refused.error()["code"], "bad_request");
}

#[test]
fn what_a_step_mounts_is_there_for_it_and_gone_after_it() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &[]);
    let secret = format!("hush-{}", uuid::Uuid::now_v7().simple());
    let options = json!({"secrets": {"token": STANDARD.encode(&secret)}});
    let dockerfile = "FROM busybox:test AS lib\nRUN mkdir /out && echo lent > /out/lent && chown alice /out/lent\n\
        FROM busybox:test\nWORKDIR /w\n\
        RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN,target=/s \
            test \"$(cat /run/secrets/token)\" = \"$TOKEN\" && test \"$(cat /s)\" = \"$TOKEN\" && cp /s /dev/null && echo same > /same\n\
        RUN --mount=type=bind,target=. cat hello.txt dir/a > /seen\n\
        RUN --mount=type=bind,source=hello.txt,target=/one cat /one >> /seen\n\
        RUN --mount=from=lib,source=/out,target=/deep/er/lib cat /deep/er/lib/lent >> /seen; stat -c %U /deep/er/lib/lent >> /seen\n\
        RUN --mount=type=cache,target=/root/.cache/x --mount=type=tmpfs,target=/scratch echo x > /root/.cache/x/y && echo y > /scratch/y\n";
    let replayed = replay_with(&daemon, "box", &options, dockerfile);
    replayed.result();
    let (_, out, _) = daemon
        .sh("box", "cat /same /seen; ls /w /dev/shm; ls -d /run /s /one /deep /root/.cache /scratch 2>&1");
    assert!(out.starts_with("same\nhello\na\nhello\nlent\nalice\n/dev/shm:\n\n/w:\n"), "{out}");
    for gone in ["/s", "/one", "/deep", "/root/.cache", "/scratch"] {
        assert!(out.contains(&format!("{gone}: No such file")), "{gone} stayed: {out}");
    }
    let told: String = replayed.lines.iter().map(Value::to_string).collect();
    assert!(!told.contains(&secret) && told.contains("cache mount"), "{told}");

    for (line, part) in
        [("RUN --network=none true", "network"), ("RUN --mount=type=cache,target=/etc true", "/etc")]
    {
        let refused = replay(&daemon, "box", &format!("FROM busybox:test\n{line}\n"));
        let error = refused.error();
        assert_eq!(error["code"], "build_step_impossible", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(part) && message.contains("Dockerfile:2") && message.contains(line),
            "{message}"
        );
    }
    assert_eq!(daemon.sh("box", "cat /etc/passwd | head -c 5").1, "root:");
}
