//! Stages side by side: what runs at a time, what runs once, what a failure ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fake;

use std::time::Duration;

use berth_build::Error;
use berth_types::progress::Progress;
use fake::world::World;

/// Two stages that need nothing of each other, and a third that takes from both.
fn two(one: &str, other: &str) -> World {
    World::new(&format!(
        "FROM debian AS one\nRUN {one} && write /one 1\nFROM debian AS other\nRUN {other} && write /other 2\n\
         FROM scratch\nCOPY --from=one /one /\nCOPY --from=other /other /"
    ))
}

fn runs(world: &World) -> Vec<String> {
    world.machine.take_log().into_iter().filter(|line| line.starts_with("run ")).collect()
}

#[tokio::test]
async fn independent_stages_run_at_a_time() {
    // Each command waits for the other: one after the other they would never end.
    let world = two("meet here 2", "meet here 2");
    let tree = world.tree().await;
    assert_eq!((tree["/one"].content.as_str(), tree["/other"].content.as_str()), ("1", "2"));
    assert_eq!(world.machine.0.lock().unwrap().open, 0);
}

#[tokio::test]
async fn no_more_steps_run_at_a_time_than_asked_for() {
    let mut world = World::new(
        "FROM debian AS a\nRUN write /a 1\nFROM debian AS b\nRUN write /b 2\nFROM debian AS c\nRUN write /c 3\n\
         FROM debian\nRUN --mount=from=a,target=/a --mount=from=b,target=/b --mount=from=c,target=/c write /x 1",
    );
    world.parallel = 1;
    world.build().await;
    assert_eq!(world.machine.0.lock().unwrap().peak, 1);
}

#[tokio::test]
async fn the_result_does_not_depend_on_who_was_faster() {
    let mut keys = Vec::new();
    for parallel in [1, 2, 8] {
        let mut world = two("echo a", "echo b");
        world.parallel = parallel;
        let outcome = world.build().await;
        let config = world.machine.config(&outcome.image);
        keys.push((
            outcome.content_key,
            outcome.steps,
            outcome.cached_steps,
            config["history"].as_array().unwrap().len(),
        ));
    }
    assert!(keys.windows(2).all(|pair| pair[0] == pair[1]), "{keys:?}");
}

#[tokio::test]
async fn a_step_that_two_stages_share_runs_once() {
    let world = World::new(
        "FROM debian AS one\nRUN write /shared 1\nRUN write /one 1\n\
         FROM debian AS other\nRUN write /shared 1\nRUN write /other 1\n\
         FROM scratch\nCOPY --from=one / /one\nCOPY --from=other / /other",
    );
    let outcome = world.build().await;
    assert_eq!(runs(&world).iter().filter(|line| line.contains("/shared")).count(), 1);
    assert_eq!(outcome.cached_steps, 1);
    let tree = world.machine.tree(&outcome.image);
    assert!(tree.contains_key("/one/shared") && tree.contains_key("/other/shared"));
    let cached = |line: &&Progress| matches!(line, Progress::Step { cached: true, .. });
    assert_eq!(world.progress.lock().unwrap().iter().filter(cached).count(), 1);
}

#[tokio::test]
async fn the_first_failure_ends_the_others_and_is_the_one_that_is_told() {
    for world in [
        two("echo mine && meet here 2 && fail 3", "echo theirs && meet here 2 && hang"),
        two("echo theirs && meet here 2 && hang", "echo mine && meet here 2 && fail 3"),
    ] {
        let ended = tokio::time::timeout(Duration::from_secs(60), world.try_build()).await.unwrap();
        let Err(Error::StepFailed(failure)) = ended else { panic!("{ended:?}") };
        assert_eq!((failure.exit_code, failure.output_tail), (Some(3), vec!["mine".to_owned()]));
        let state = world.machine.0.lock().unwrap();
        assert_eq!((state.open, state.steps.len(), state.images.len()), (0, 0, 0));
    }
}

#[tokio::test]
async fn a_build_that_is_dropped_leaves_no_sandbox() {
    let world = two("meet here 3 && hang", "meet here 3 && hang");
    tokio::select! {
        ended = world.try_build() => panic!("{ended:?}"),
        met = world.machine.meet("here", 3) => assert!(met),
    }
    assert_eq!(world.machine.0.lock().unwrap().open, 0);
}

#[tokio::test]
async fn every_step_that_begins_is_told_to_be_over() {
    let world = two("meet here 2", "meet here 2");
    let outcome = world.build().await;
    let progress = world.progress.lock().unwrap();
    for number in 1..=outcome.steps {
        let begin = |line: &Progress| matches!(line, Progress::Step { step, .. } if *step == number);
        let done = |line: &Progress| matches!(line, Progress::StepDone { step, .. } if *step == number);
        let (begin, done) =
            (progress.iter().position(begin).unwrap(), progress.iter().position(done).unwrap());
        assert!(begin < done, "{number}: {progress:?}");
    }
}

#[tokio::test]
async fn a_stage_that_is_made_from_another_waits_for_it() {
    let world = World::new(
        "FROM debian AS base\nRUN write /base 1\nFROM base AS left\nRUN cat /base && meet here 2 && write /left 1\n\
         FROM base AS right\nRUN cat /base && meet here 2 && write /right 1\n\
         FROM left\nCOPY --from=right /right /right",
    );
    let tree = world.tree().await;
    assert!(["/base", "/left", "/right"].iter().all(|path| tree.contains_key(*path)));
    assert_eq!(runs(&world).len(), 3);
}

#[tokio::test]
async fn without_the_cache_every_step_runs_again_and_is_replaced() {
    let mut world = two("echo a", "echo b");
    let first = world.build().await;
    assert_eq!(runs(&world).len(), 2);
    world.no_cache = true;
    let second = world.build().await;
    assert_eq!((runs(&world).len(), second.cached_steps), (2, 0));
    assert_eq!(first.content_key, second.content_key);
    assert_ne!(first.image, second.image);
    world.no_cache = false;
    assert_eq!(world.build().await.image, second.image);
    // Another image of the same steps has the layers that were made last, and no other.
    let dockerfile = std::fs::read_to_string(world.path().join("Dockerfile")).unwrap();
    world.write("Dockerfile", format!("{dockerfile}\nLABEL a=b"));
    let third = world.build().await;
    assert!(runs(&world).is_empty());
    let layers = |image: &str| world.machine.config(image)["rootfs"]["diff_ids"].clone();
    assert_eq!(layers(&third.image), layers(&second.image));
    assert_ne!(layers(&third.image), layers(&first.image));
}

#[tokio::test]
async fn a_build_without_the_cache_that_fails_replaces_nothing() {
    let mut world = World::new("FROM debian\nRUN write /a 1\nRUN meet here 1 && echo b");
    world.build().await;
    let before = world.machine.0.lock().unwrap().steps.clone();
    world.no_cache = true;
    world.write("Dockerfile", "FROM debian\nRUN write /a 1\nRUN fail 1");
    world.failure().await;
    assert_eq!(world.machine.0.lock().unwrap().steps, before);
}
