//! `RUN --mount` and `--network`: what commands find, what stays of it, and where secrets are not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fake;

use berth_build::runner::{MountSource, Sharing};
use berth_types::progress::Progress;
use fake::world::World;

const SECRET: &str = "hunter2-of-the-build";

fn output_of(world: &World) -> String {
    world.output()
}

#[tokio::test]
async fn the_context_can_be_mounted_and_is_no_part_of_the_image() {
    let world = World::new(
        "FROM debian\nWORKDIR /src\nRUN --mount=target=. ls /src && copy /src/dir/f /out\n\
         RUN --mount=type=bind,source=dir/f,target=/one cat /one\nRUN --mount=target=/all,source=dir ls /all",
    );
    world.write("dir/f", "F");
    let outcome = world.build().await;
    assert_eq!(output_of(&world), "Dockerfile dir dir/f\nF\nf\n");
    let tree = world.machine.tree(&outcome.image);
    let paths: Vec<&str> = tree.keys().map(String::as_str).filter(|path| !path.starts_with("/bin")).collect();
    assert_eq!(paths, ["/out", "/src"]);
}

#[tokio::test]
async fn what_is_mounted_of_the_context_is_copied_once() {
    let world = World::new(
        "FROM debian\nRUN --mount=target=/c,source=dir cat /c/f\nRUN --mount=target=/c,source=dir ls /c",
    );
    world.write("dir/f", "F");
    world.build().await;
    let opened = |world: &World| world.machine.take_log().iter().filter(|line| *line == "open").count();
    assert_eq!(opened(&world), 3);
    world.write("Dockerfile", "FROM debian\nRUN --mount=target=/elsewhere,source=dir cat /elsewhere/f");
    world.build().await;
    assert_eq!(opened(&world), 1);
    world.write("dir/f", "changed");
    world.build().await;
    assert_eq!(opened(&world), 2);
    assert!(output_of(&world).ends_with("changed\n"));
}

#[tokio::test]
async fn stages_and_images_can_be_mounted() {
    let world = World::new(
        "FROM debian AS made\nRUN write /dir/f 1\nFROM debian\n\
         RUN --mount=from=made,source=/dir,target=/m cat /m/f\n\
         RUN --mount=from=other,target=/o cat /o/file\n\
         RUN --mount=from=made,target=/m,rw write /m/new 1 && ls /m\n\
         RUN --mount=from=made,target=/m ls /m",
    );
    world.machine.add_base("other", &[("file", "O")], serde_json::json!({}));
    let tree = world.tree().await;
    assert_eq!(output_of(&world), "1\nO\nbin bin/sh dir/f new\nbin bin/sh dir/f\n");
    assert!(tree.is_empty(), "{tree:?}");
    world.write(
        "Dockerfile",
        "FROM debian AS made\nRUN write /a 1\nFROM debian\nRUN --mount=from=made,target=/m write /m/x 1",
    );
    assert!(world.failure().await.contains("exit code 30"));
}

#[tokio::test]
async fn a_lending_stage_is_not_built_for_a_cached_run() {
    let world = World::new(
        "FROM debian AS a\nRUN write /a 1\nFROM debian\nRUN --mount=from=a,target=/m cat /m/a\nRUN write /b 1",
    );
    world.build().await;
    world.machine.take_log();
    world.write("Dockerfile", "FROM debian AS a\nRUN write /a 1\nFROM debian\nRUN --mount=from=a,target=/m cat /m/a\nRUN write /b 2");
    world
        .machine
        .0
        .lock()
        .unwrap()
        .steps
        .retain(|_, step| step.layer.as_ref().is_none_or(|layer| layer.0 != "sha256:layer-2"));
    world.build().await;
    let runs: Vec<String> =
        world.machine.take_log().into_iter().filter(|line| line.starts_with("run")).collect();
    assert_eq!(runs, ["run /bin/sh -c write /b 2"]);
}

#[tokio::test]
async fn caches_stay_between_builds() {
    let world = World::new(
        "FROM debian\nRUN --mount=type=cache,target=/c,id=mine,sharing=locked,mode=0700,uid=5 write /c/f 1",
    );
    let tree = world.tree().await;
    assert!(tree.is_empty());
    let mounts = world.machine.0.lock().unwrap().settings[0].mounts.clone();
    assert!(matches!(
        &mounts[0].source,
        MountSource::Cache { id, sharing: Sharing::Locked, seed: None, uid: 5, gid: 0, mode: 0o700 } if id == "mine"
    ));
    world.write("Dockerfile", "FROM debian\nRUN --mount=type=cache,target=/other,id=mine ls /other");
    world.build().await;
    assert_eq!(output_of(&world), "f\n");
}

#[tokio::test]
async fn a_new_cache_holds_what_it_is_to_hold_at_first() {
    let world = World::new(
        "FROM debian AS seed\nRUN write /s/f 1\nFROM debian\nRUN --mount=type=cache,target=/c,from=seed,source=/s ls /c",
    );
    world.build().await;
    assert_eq!(output_of(&world), "f\n");
}

#[tokio::test]
async fn memory_can_be_mounted() {
    let world =
        World::new("FROM debian\nRUN --mount=type=tmpfs,target=/t,size=1048576 write /t/f 1 && cat /t/f");
    assert!(world.tree().await.is_empty());
    let state = world.machine.0.lock().unwrap();
    assert_eq!(state.settings[0].mounts[0].source, MountSource::Tmpfs { size: Some(1_048_576) });
}

#[tokio::test]
async fn a_run_may_have_no_network() {
    let world = World::new("FROM debian\nRUN --network=none echo a\nRUN echo b");
    world.build().await;
    let opened: Vec<String> =
        world.machine.take_log().into_iter().filter(|line| line.starts_with("open")).collect();
    assert_eq!(opened, ["open without network", "open"]);
}

/// A build with secrets, as a file and as a variable.
fn secretive(run: &str) -> World {
    let world = World::new(&format!(
        "FROM debian\nRUN --mount=type=secret,id=file --mount=type=secret,id=token,env=TOKEN {run}\nRUN write /after 1"
    ));
    let mut state = world.machine.0.lock().unwrap();
    state.secrets.insert("file".to_owned(), format!("{SECRET}\n").into_bytes());
    state.secrets.insert("token".to_owned(), format!("{SECRET}-token").into_bytes());
    drop(state);
    world
}

#[tokio::test]
async fn commands_see_secrets_and_nobody_else_does() {
    let world = secretive("cat /run/secrets/file && env");
    let outcome = world.build().await;
    let output = output_of(&world);
    assert!(output.starts_with("[secret file]\n"), "{output}");
    assert!(output.contains("TOKEN=[secret token]\n"), "{output}");
    let state = world.machine.0.lock().unwrap();
    let config = state.configs[&outcome.image].to_string();
    let told = format!("{:?}", world.progress.lock().unwrap());
    for (what, text) in [
        ("config", config),
        ("progress", told),
        ("settings", format!("{:?}", state.settings)),
        ("keys", format!("{:?} {:?}", state.steps, state.images)),
        ("layers", format!("{:?}", state.layers)),
        ("log", state.log.join("\n")),
        ("outcome", format!("{outcome:?}")),
    ] {
        assert!(!text.contains("hunter2"), "{what}: {text}");
    }
}

#[tokio::test]
async fn a_secrets_value_decides_no_key() {
    let [one, two] = [secretive("echo a"), secretive("echo a")];
    two.machine.0.lock().unwrap().secrets.insert("file".to_owned(), b"another".to_vec());
    assert_eq!(one.build().await.content_key, two.build().await.content_key);
}

#[tokio::test]
async fn secrets_in_a_failures_output_are_masked() {
    let world = secretive(&format!("chunks before {SECRET} after && cat /run/secrets/file && fail 2"));
    let error = world.try_build().await.unwrap_err();
    let api = serde_json::to_value(error.to_api()).unwrap();
    assert_eq!(
        api["details"]["output_tail"],
        serde_json::json!(["before [secret file] after", "[secret file]", ""])
    );
    let told: String = output_of(&world);
    assert!(!told.contains("hunter2"), "{told}");
}

#[tokio::test]
async fn a_secret_that_a_command_left_in_a_file_is_masked_later_too() {
    let world =
        World::new("FROM debian\nRUN --mount=type=secret,id=s copy /run/secrets/s /left\nRUN cat /left");
    world.machine.0.lock().unwrap().secrets.insert("s".to_owned(), SECRET.as_bytes().to_vec());
    world.build().await;
    assert_eq!(output_of(&world), "[secret s]\n");
}

#[tokio::test]
async fn a_secret_that_is_required_and_missing_is_named() {
    let world = World::new("FROM debian\nRUN --mount=type=secret,id=pw,required=true cat /run/secrets/pw");
    let error = world.try_build().await.unwrap_err();
    assert_eq!(error.kind(), berth_types::error::Kind::User);
    let message = error.to_api().message;
    assert!(message.contains("`pw`") && message.contains("--secret id=pw"), "{message}");
    world.write("Dockerfile", "FROM debian\nRUN --mount=type=secret,id=pw ls /run");
    world.build().await;
    let told = |line: &Progress| matches!(line, Progress::Message { text } if text.contains("`pw`"));
    assert!(world.progress.lock().unwrap().iter().any(told));
}

#[tokio::test]
async fn a_secret_variable_is_no_file_unless_it_is_given_a_place() {
    let world = World::new(
        "FROM debian\nRUN --mount=type=secret,id=a,env=A env\nRUN --mount=type=secret,id=a,env=A,target=/a cat /a",
    );
    world.machine.0.lock().unwrap().secrets.insert("a".to_owned(), b"value-of-a".to_vec());
    world.build().await;
    let mounts: Vec<usize> = {
        let state = world.machine.0.lock().unwrap();
        state.settings.iter().map(|setting| setting.mounts.len()).collect()
    };
    assert_eq!(mounts, [0, 1]);
    assert!(output_of(&world).contains("A=[secret a]"));
    world.machine.0.lock().unwrap().secrets.insert("a".to_owned(), vec![0xff, 0]);
    world.write("Dockerfile", "FROM debian\nRUN --mount=type=secret,id=a,env=A echo changed");
    assert!(world.failure().await.contains("it is not text"));
}
