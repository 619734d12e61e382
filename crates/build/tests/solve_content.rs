//! Steps that are found again by what they find: the layers below them and the bytes that are lent to them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fake;

use berth_types::progress::Progress;
use fake::world::World;

fn runs(world: &World) -> Vec<String> {
    let log = world.machine.take_log();
    log.into_iter().filter_map(|line| line.strip_prefix("run /bin/sh -c ").map(str::to_owned)).collect()
}

/// Builds one Dockerfile, then another; the commands that the second runs.
async fn then(first: &str, second: &str) -> (World, Vec<String>) {
    let world = World::new(first);
    world.build().await;
    world.machine.take_log();
    world.write("Dockerfile", second);
    world.build().await;
    let ran = runs(&world);
    (world, ran)
}

#[tokio::test]
async fn a_copy_of_the_same_bytes_is_found_whatever_made_them() {
    let of = |made: &str, flags: &str| {
        format!(
            "FROM debian AS one\nRUN {made}\nFROM debian\nCOPY --from=one {flags} /x /x\nRUN write /after 1"
        )
    };
    for flags in ["", "--link", "--chown=7", "--chmod=u+x", "--parents", "--exclude=*.o"] {
        let second = "echo hi && write /x same && write /other 2";
        let (world, ran) = then(&of("write /x same", flags), &of(second, flags)).await;
        assert_eq!(ran, [second], "{flags}");
        // What was found is known by its place from here on.
        world.write("Dockerfile", format!("{}\nRUN write /more 1", of(second, flags)));
        world.build().await;
        assert_eq!(
            world.machine.take_log(),
            ["base debian", "open", "run /bin/sh -c write /more 1"],
            "{flags}"
        );
    }
}

#[tokio::test]
async fn a_copy_of_other_bytes_or_in_another_way_is_made_again() {
    let of = |made: &str, copy: &str| {
        format!("FROM debian AS one\nRUN {made}\nFROM debian\n{copy}\nRUN write /after 1")
    };
    let table = [
        ("write /x one", "COPY --from=one /x /x", "write /x two", "COPY --from=one /x /x"),
        ("write /x same", "COPY --from=one /x /x", "write /x same", "COPY --from=one /x /y"),
        ("write /x same", "COPY --from=one /x /x", "write /x same", "COPY --from=one --chmod=600 /x /x"),
        ("write /x same", "COPY --from=one /x /d/", "write /y same", "COPY --from=one /y /d/"),
        (
            "write /x a && link /x /l",
            "COPY --from=one /l* /d/",
            "write /x b && link /x /l",
            "COPY --from=one /l* /d/",
        ),
    ];
    for (made, copy, other_made, other_copy) in table {
        let (_, ran) = then(&of(made, copy), &of(other_made, other_copy)).await;
        assert_eq!(ran.last().map(String::as_str), Some("write /after 1"), "{other_made} {other_copy}");
    }
}

#[tokio::test]
async fn a_mount_of_the_same_bytes_is_no_other_mount() {
    let of = |made: &str, mount: &str| {
        format!("FROM debian AS one\nRUN {made}\nFROM debian\nRUN --mount={mount} write /after 1")
    };
    for mount in ["from=one,source=/x,target=/m", "type=cache,from=one,source=/x,target=/m"] {
        let again = "echo hi && write /x same";
        let (_, ran) = then(&of("write /x same", mount), &of(again, mount)).await;
        assert_eq!(ran, [again], "{mount}");
        let (_, ran) = then(&of("write /x one", mount), &of("write /x two", mount)).await;
        assert_eq!(ran, ["write /x two", "write /after 1"], "{mount}");
    }
    // Nobody reads a whole root for this.
    let mount = "from=one,target=/m";
    let (_, ran) = then(&of("write /x same", mount), &of("echo hi && write /x same", mount)).await;
    assert_eq!(ran.len(), 2);
}

#[tokio::test]
async fn steps_on_the_same_layers_are_found_whatever_stood_between() {
    let (_, ran) = then(
        "FROM debian\nRUN write /a 1\nRUN write /b 2\nWORKDIR /w",
        "FROM debian\nRUN write /a 1\nRUN echo changes nothing\nRUN write /b 2\nWORKDIR /w",
    )
    .await;
    assert_eq!(ran, ["echo changes nothing"]);
}

#[tokio::test]
async fn without_the_cache_what_is_known_by_content_is_replaced_too() {
    let of = |made: &str| format!("FROM debian AS one\nRUN {made}\nFROM debian\nCOPY --from=one /x /x");
    let mut world = World::new(&of("write /x same"));
    let first = world.build().await;
    world.no_cache = true;
    let second = world.build().await;
    world.no_cache = false;
    world.write("Dockerfile", of("echo hi && write /x same"));
    let third = world.build().await;
    let layers = |image: &str| world.machine.config(image)["rootfs"]["diff_ids"].clone();
    assert_ne!(layers(&first.image), layers(&second.image));
    assert_eq!(layers(&third.image), layers(&second.image));
}

#[tokio::test]
async fn what_is_missing_in_a_stage_is_told_by_the_step_that_wants_it() {
    let world = World::new("FROM debian AS one\nFROM debian\nCOPY --from=one /nothing /x");
    assert_eq!(world.failure().await, "Dockerfile:3: source `/nothing` is not in stage `one`");
    let begun = |line: &Progress| matches!(line, Progress::Step { instruction, cached: false, .. } if instruction.contains("/nothing"));
    assert!(world.progress.lock().unwrap().iter().any(begun));
    assert_eq!(world.machine.0.lock().unwrap().open, 0);
}
