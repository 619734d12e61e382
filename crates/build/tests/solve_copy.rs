//! `COPY` and `ADD`: links, parents, excludes, modes, what comes from elsewhere, what is in the way.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod fake;

use std::fs;
use std::os::unix::fs::symlink;

use berth_build::runner::Remote;
use berth_types::progress::Progress;
use fake::world::World;
use fake::{Thing, Tree};

/// Paths of a tree, and what stands there.
fn lines(tree: &Tree) -> Vec<String> {
    let line = |(path, node): (&String, &fake::Node)| {
        format!("{} {:04o} {} {path} {}", node.kind, node.mode, node.owner, node.content)
            .trim_end()
            .to_owned()
    };
    tree.iter().map(line).collect()
}

fn url(url: &str) -> Remote {
    Remote::Url { url: url.to_owned(), checksum: None }
}

/// Puts something elsewhere, with its bytes beside the context.
fn put_elsewhere(
    world: &World,
    remote: Remote,
    name: Option<&str>,
    bytes: &[u8],
    modified: Option<i64>,
) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bytes");
    fs::write(&path, bytes).unwrap();
    let digest = format!("sha256:{}", bytes.len());
    let thing = Thing { path, digest, name: name.map(str::to_owned), modified };
    world.machine.0.lock().unwrap().remotes.insert(remote, thing);
    dir
}

#[tokio::test]
async fn a_linked_copy_is_found_on_another_base() {
    let world = World::new("FROM debian\nRUN write /a 1\nCOPY --link f /deep/f\nRUN write /b 1");
    world.write("f", "F");
    let first = world.build().await;
    world.machine.add_base("other", &[("x", "")], serde_json::json!({}));
    world.write("Dockerfile", "FROM other\nRUN write /a 1\nCOPY --link f /deep/f\nRUN write /b 1");
    world.machine.take_log();
    let second = world.build().await;
    assert_ne!(first.content_key, second.content_key);
    assert_eq!(second.cached_steps, 1);
    let layers = |image: &str| world.machine.config(image)["rootfs"]["diff_ids"].clone();
    let (one, two) = (layers(&first.image), layers(&second.image));
    assert_eq!(one[2], two[2], "{one} {two}");
    assert_ne!(one[3], two[3]);
    let tree = world.machine.tree(&second.image);
    assert!(tree.contains_key("/x") && tree.contains_key("/deep/f") && tree.contains_key("/b"));
}

#[tokio::test]
async fn a_linked_copy_follows_no_link_of_the_base() {
    let world = World::new("FROM debian\nRUN link /real /dest\nCOPY --link f /dest/f\nCOPY f /dest/g");
    world.write("f", "F");
    let tree = world.tree().await;
    assert_eq!(tree["/dest"].kind, 'd');
    assert!(tree.contains_key("/dest/f") && tree.contains_key("/dest/g"), "{tree:?}");
}

#[tokio::test]
async fn destinations_that_are_links_are_followed() {
    let world = World::new("FROM debian\nWORKDIR /real\nRUN link /real /dest\nCOPY f /dest\nCOPY dir /dest");
    world.write("f", "F");
    world.write("dir/g", "G");
    let tree = world.tree().await;
    assert!(tree.contains_key("/real/f") && tree.contains_key("/real/g"), "{tree:?}");
    assert_eq!(tree["/dest"].kind, 'l');
}

#[tokio::test]
async fn files_are_in_the_way_of_directories() {
    for copy in ["COPY dir /file", "COPY f /file/", "COPY f f2 /file/", "COPY --from=debian /bin /file"] {
        let world = World::new(&format!("FROM debian\nRUN write /file 1\n{copy}"));
        world.write("dir/g", "");
        world.write("f", "");
        world.write("f2", "");
        let error = world.try_build().await.unwrap_err();
        assert_eq!(error.kind(), berth_types::error::Kind::User);
        let message = error.to_api().message;
        assert!(message.ends_with("`/file` is there and is no directory"), "{copy}: {message}");
    }
}

#[tokio::test]
async fn symbolic_modes_are_applied_to_each_file() {
    let world = World::new(
        "FROM debian AS from\nCOPY --chmod=0640 dir/plain /d/plain\nCOPY --chmod=0750 dir/run /d/run\n\
         FROM scratch\nCOPY --chmod=u=rwX,go=rX dir /ctx\nCOPY --from=from --chmod=go-rwx /d /stage\n\
         COPY --from=from --chmod=a+x /d/plain /one\nCOPY --chmod=g=u <<EOF /here\ntext\nEOF\n",
    );
    world.write("dir/plain", "");
    world.chmod("dir/plain", 0o600);
    world.write("dir/run", "");
    world.chmod("dir/run", 0o700);
    let tree = world.tree().await;
    let modes =
        ["/ctx/plain", "/ctx/run", "/stage/plain", "/stage/run", "/one", "/here"].map(|path| tree[path].mode);
    assert_eq!(modes, [0o644, 0o755, 0o600, 0o700, 0o751, 0o664]);
}

#[tokio::test]
async fn parents_of_files_of_the_context_are_kept() {
    let world = World::new("FROM scratch\nCOPY --parents a/b/f a/./c/g /x/\nCOPY --parents a/**/h /y/");
    for name in ["a/b/f", "a/c/g", "a/b/deep/h", "a/other"] {
        world.write(name, name);
    }
    world.chmod("a/b", 0o700);
    let tree = world.tree().await;
    let paths: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "/x",
            "/x/a",
            "/x/a/b",
            "/x/a/b/f",
            "/x/c",
            "/x/c/g",
            "/y",
            "/y/a",
            "/y/a/b",
            "/y/a/b/deep",
            "/y/a/b/deep/h"
        ]
    );
    assert_eq!(tree["/x/a/b"].mode, 0o700);
}

#[tokio::test]
async fn parents_of_files_of_a_stage_are_kept() {
    let world = World::new(
        "FROM debian AS from\nRUN write /a/b/f 1 && write /a/b/deep/h 2 && write /a/c/g 3\nCOPY --chmod=0700 --chown=5:6 <<EOF /a/b/deep/i\nI\nEOF\nCOPY top /s\n\
         FROM scratch\nCOPY --from=from --parents /a/b/f /a/./c/g /x/\n\
         COPY --from=from --parents /a/**/h /y/\nCOPY --from=from --parents /a/./b/deep /z/\n\
         COPY --from=from --parents --exclude=**/h /a/b/deep /w\nCOPY --from=from --parents /s/private/f /v/",
    );
    world.write("top/private/f", "");
    world.chmod("top/private", 0o700);
    let tree = world.tree().await;
    let files: Vec<&str> =
        tree.iter().filter(|(_, node)| node.kind == 'f').map(|(path, _)| path.as_str()).collect();
    let wanted = [
        "/v/s/private/f",
        "/w/a/b/deep/i",
        "/x/a/b/f",
        "/x/c/g",
        "/y/a/b/deep/h",
        "/z/b/deep/h",
        "/z/b/deep/i",
    ];
    assert_eq!(files, wanted);
    // The directories are what they are in the stage.
    assert_eq!(tree["/v/s/private"].mode, 0o700);
    for dir in ["/w/a/b/deep", "/x/a/b", "/y/a", "/y/a/b/deep"] {
        assert_eq!(tree[dir].owner, "5:6", "{dir}");
    }
}

#[tokio::test]
async fn what_is_excluded_is_left_out_of_stages_too() {
    let world = World::new(
        "FROM debian AS from\nCOPY . /src\nFROM scratch\nCOPY --from=from --exclude=*.log --exclude=cache /src /out\n\
         COPY --from=from --exclude=*.log /src/* /wild/\nCOPY --exclude=*.log --exclude=cache . /ctx",
    );
    for name in ["keep", "a.log", "sub/b.log", "sub/keep", "cache/x"] {
        world.write(name, "");
    }
    world.write(".dockerignore", "Dockerfile\n.dockerignore");
    let tree = world.tree().await;
    let paths = |dir: &str| -> Vec<String> {
        tree.keys().filter_map(|path| path.strip_prefix(dir)).map(str::to_owned).collect()
    };
    assert_eq!(paths("/out/"), ["keep", "sub", "sub/b.log", "sub/keep"]);
    assert_eq!(paths("/ctx/"), ["keep", "sub", "sub/b.log", "sub/keep"]);
    assert!(!paths("/wild/").iter().any(|path| path == "a.log"), "{:?}", paths("/wild/"));
    assert!(paths("/wild/").iter().any(|path| path == "keep"));
}

#[tokio::test]
async fn a_file_whose_first_name_is_excluded_comes_by_its_next() {
    let world = World::new(
        "FROM debian AS from\nWORKDIR /d\nRUN write /d/a.log 1 && hardlink /d/a.log /d/b && hardlink /d/a.log /d/c\n\
         FROM scratch\nCOPY --from=from --exclude=*.log /d /out\nCOPY --from=from /d /all",
    );
    let tree = world.tree().await;
    assert_eq!(
        lines(&tree),
        [
            "d 0755 0:0 /all",
            "f 0644 0:0 /all/a.log 1",
            "h 0644 0:0 /all/b /all/a.log",
            "h 0644 0:0 /all/c /all/a.log",
            "d 0755 0:0 /out",
            "f 0644 0:0 /out/b 1",
            "h 0644 0:0 /out/c /out/b",
        ]
    );
}

#[tokio::test]
async fn hard_links_of_the_context_stay_links() {
    let world = World::new("FROM scratch\nCOPY dir /d\nCOPY dir/a dir/z /two/\nCOPY dir/z /alone");
    world.write("dir/a", "A");
    fs::hard_link(world.path().join("dir/a"), world.path().join("dir/z")).unwrap();
    let tree = world.tree().await;
    let kinds = ["/d/a", "/d/z", "/two/a", "/two/z", "/alone"].map(|path| tree[path].kind);
    assert_eq!(kinds, ['f', 'h', 'f', 'h', 'f']);
    assert_eq!(tree["/two/z"].content, "/two/a");
}

#[tokio::test]
async fn a_name_that_was_written_over_is_no_target_of_a_link() {
    let world = World::new("FROM scratch\nCOPY one two three /x/");
    world.write("one/a", "first");
    world.write("two/a", "second");
    fs::create_dir(world.path().join("three")).unwrap();
    fs::hard_link(world.path().join("one/a"), world.path().join("three/b")).unwrap();
    let tree = world.tree().await;
    assert_eq!((tree["/x/a"].content.as_str(), tree["/x/b"].content.as_str()), ("second", "first"));
}

#[tokio::test]
async fn fifos_of_a_stage_are_passed_on() {
    let world = World::new(
        "FROM debian AS from\nWORKDIR /d\nRUN mkfifo /f && mkfifo /d/g\nFROM scratch\nCOPY --from=from /f /one\nCOPY --from=from --chmod=a+r /d /dir",
    );
    let tree = world.tree().await;
    assert_eq!((tree["/one"].kind, tree["/dir/g"].kind, tree["/dir/g"].mode), ('p', 'p', 0o644));
}

#[tokio::test]
async fn a_pattern_that_matches_nothing_in_a_stage_is_told() {
    let world = World::new("FROM debian AS from\nFROM scratch\nCOPY --from=from /no*/x /y/");
    let outcome = world.build().await;
    assert!(
        outcome.warnings.iter().any(|warning| warning.check == "CopyNothing" && warning.line == 3),
        "{outcome:?}"
    );
    let told = |line: &Progress| matches!(line, Progress::Warning(warning) if warning.check == "CopyNothing");
    assert!(world.progress.lock().unwrap().iter().any(told));
}

#[tokio::test]
async fn files_from_elsewhere_come_as_documented() {
    let world = World::new(
        "FROM debian\nADD https://host/dir/tool.bin?x=1 /bin/\nADD https://host/dir/tool.bin?x=1 /named\n\
         ADD --chmod=755 --chown=5:6 https://host/dir/tool.bin?x=1 /opt/\nWORKDIR /here\nADD https://host/dir/tool.bin?x=1 .",
    );
    let _kept = put_elsewhere(&world, url("https://host/dir/tool.bin?x=1"), None, b"tool", Some(1_000_000));
    let outcome = world.build().await;
    let tree = world.machine.tree(&outcome.image);
    for path in ["/bin/tool.bin", "/named", "/opt/tool.bin", "/here/tool.bin"] {
        assert_eq!((tree[path].content.as_str(), tree[path].mtime), ("tool", 1_000_000), "{path}");
    }
    assert_eq!((tree["/named"].mode, tree["/named"].owner.as_str()), (0o600, "0:0"));
    assert_eq!((tree["/opt/tool.bin"].mode, tree["/opt/tool.bin"].owner.as_str()), (0o755, "5:6"));
    let fetched = world.machine.take_log().iter().filter(|line| line.starts_with("fetch")).count();
    assert_eq!(fetched, 1);
}

#[tokio::test]
async fn what_a_url_holds_decides_and_not_when_it_came() {
    let world = World::new("FROM debian\nADD https://host/f /f");
    let _one = put_elsewhere(&world, url("https://host/f"), None, b"one", Some(1));
    let first = world.build().await;
    let _same = put_elsewhere(&world, url("https://host/f"), None, b"one", Some(2));
    assert_eq!(world.build().await.image, first.image);
    let _other = put_elsewhere(&world, url("https://host/f"), None, b"other", Some(1));
    assert_ne!(world.build().await.content_key, first.content_key);
}

fn tarball() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o640);
    header.set_uid(12);
    header.set_gid(34);
    builder.append_data(&mut header, "in/side", &b"hi"[..]).unwrap();
    zstd::encode_all(&builder.into_inner().unwrap()[..], 1).unwrap()
}

#[tokio::test]
async fn archives_from_elsewhere_are_unpacked_only_when_asked_to() {
    let world = World::new(
        "FROM scratch\nADD https://host/a.tar.zst /plain/\nADD --unpack=true https://host/a.tar.zst /unpacked\n\
         ADD --unpack=true https://host/text /text/",
    );
    let _tar = put_elsewhere(&world, url("https://host/a.tar.zst"), None, &tarball(), None);
    let _text = put_elsewhere(&world, url("https://host/text"), None, b"no archive", None);
    let tree = world.tree().await;
    assert_eq!(tree["/plain/a.tar.zst"].kind, 'f');
    assert_eq!(
        (tree["/unpacked/in/side"].content.as_str(), tree["/unpacked/in/side"].owner.as_str()),
        ("hi", "12:34")
    );
    assert_eq!(tree["/text/text"].content, "no archive");
}

#[tokio::test]
async fn a_repositorys_files_are_copied_with_their_modes() {
    let world = World::new("FROM scratch\nADD --exclude=*.md https://host/repo.git#main /src");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/run"), "R").unwrap();
    fs::set_permissions(dir.path().join("sub/run"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    fs::write(dir.path().join("README.md"), "").unwrap();
    // What a repository would have Docker ignore is no affair of who adds it.
    fs::write(dir.path().join(".dockerignore"), "*").unwrap();
    symlink("sub/run", dir.path().join("link")).unwrap();
    let remote = Remote::Git {
        url: "https://host/repo.git".to_owned(),
        reference: Some("main".to_owned()),
        subdir: None,
        keep_git_dir: false,
        checksum: None,
    };
    let thing =
        Thing { path: dir.path().to_owned(), digest: "c0ffee".to_owned(), name: None, modified: Some(77) };
    world.machine.0.lock().unwrap().remotes.insert(remote, thing);
    let tree = world.tree().await;
    let paths: Vec<&str> = tree.keys().map(String::as_str).collect();
    assert_eq!(paths, ["/src", "/src/.dockerignore", "/src/link", "/src/sub", "/src/sub/run"]);
    assert_eq!((tree["/src/sub/run"].mode, tree["/src/sub/run"].mtime), (0o755, 77));
    assert_eq!(tree["/src/link"].content, "sub/run");
}

#[tokio::test]
async fn what_cannot_be_fetched_is_named_without_its_password() {
    let world = World::new("FROM debian\nADD https://me:hunter2@host/x /x");
    let error = world.try_build().await.unwrap_err();
    assert_eq!(error.code(), "remote_source_unusable");
    let message = error.to_api().message;
    assert!(message.starts_with("Dockerfile:2: cannot fetch `https://host/x`"), "{message}");
    assert!(!message.contains("hunter2"));
}

#[tokio::test]
async fn what_an_onbuild_names_is_brought_when_it_is_known() {
    let world = World::new("FROM parent\nCOPY --from=other /file /own");
    let triggers = serde_json::json!({ "OnBuild": ["COPY --from=third /t /t", "ADD https://host/f /f"] });
    world.machine.add_base("parent", &[("p", "")], triggers);
    world.machine.add_base("other", &[("file", "O")], serde_json::json!({}));
    world.machine.add_base("third", &[("t", "T")], serde_json::json!({}));
    let _kept = put_elsewhere(&world, url("https://host/f"), None, b"F", None);
    let outcome = world.build().await;
    let tree = world.machine.tree(&outcome.image);
    let contents = ["/own", "/t", "/f"].map(|path| tree[path].content.as_str());
    assert_eq!(contents, ["O", "T", "F"]);
    let log = world.machine.take_log();
    for what in ["base parent", "base other", "base third", "fetch https://host/f"] {
        assert_eq!(log.iter().filter(|line| *line == what).count(), 1, "{what}: {log:?}");
    }
}
