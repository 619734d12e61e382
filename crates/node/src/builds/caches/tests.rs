//! Caches on a real disk, without sandboxes.

use std::time::Duration;

use super::*;

const ROOT: Attributes = Attributes { uid: 0, gid: 0, mode: 0o755 };

fn want(id: &str, sharing: Sharing) -> Want {
    // Nobody else's files can be made without privilege.
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Want { id: id.to_owned(), sharing, new: Attributes { uid, gid, ..ROOT } }
}

fn shared(id: &str) -> Want {
    want(id, Sharing::Shared)
}

async fn take(caches: &Caches, wants: &[Want]) -> Vec<Lease> {
    let mut leases = caches.take(wants, |_| ()).await.unwrap();
    leases.iter_mut().for_each(|lease| lease.made().unwrap());
    leases
}

/// Gives them back and waits until they were measured.
async fn give_back(caches: &Caches, leases: Vec<Lease>) {
    drop(leases);
    let settled = async {
        while caches.0.settling.load(std::sync::atomic::Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), settled).await.expect("they are not measured");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_in_a_cache_is_there_for_the_next_step_and_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let leases = take(&caches, &[shared("/root/.cache")]).await;
    std::fs::write(leases[0].dir().join("wheel"), [1u8; 10_000]).unwrap();
    give_back(&caches, leases).await;
    let info = &caches.list()[0];
    assert_eq!((info.id.as_str(), info.in_use), ("/root/.cache", false));
    assert!(info.bytes >= 10_000, "{info:?}");
    drop(caches);

    let again = Caches::open(dir.path(), None).unwrap();
    assert_eq!(again.list()[0].id, "/root/.cache");
    let leases = again.take(&[shared("/root/.cache"), shared("other")], |_| ()).await.unwrap();
    assert_eq!((leases[0].is_new(), leases[1].is_new()), (false, true));
    assert!(leases[0].dir().join("wheel").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cache_has_the_mode_that_was_asked_for() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let mut wanted = shared("x");
    wanted.new.mode = 0o1770;
    let leases = take(&caches, &[wanted]).await;
    let mode = leases[0].dir().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1770);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_not_finished_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let leases = caches.take(&[shared("x")], |_| ()).await.unwrap();
    std::fs::write(leases[0].dir().join("half"), "").unwrap();
    assert_eq!(caches.list(), []);
    give_back(&caches, leases).await;
    let leases = caches.take(&[shared("x")], |_| ()).await.unwrap();
    assert!(leases[0].is_new() && !leases[0].dir().join("half").exists());
    // As after a daemon that was killed meanwhile.
    let left = leases[0].dir();
    let _other = Caches::open(dir.path(), None).unwrap();
    assert!(!left.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_that_lock_two_caches_in_different_order_both_end() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let (a, b) = (want("a", Sharing::Locked), want("b", Sharing::Locked));
    let steps = (0..20).map(|number| {
        let caches = caches.clone();
        let wants = if number % 2 == 0 { [a.clone(), b.clone()] } else { [b.clone(), a.clone()] };
        tokio::spawn(async move {
            let leases = take(&caches, &wants).await;
            let marker = leases[0].dir().with_file_name("alone");
            std::fs::File::create_new(&marker).expect("two have it alone at a time");
            tokio::time::sleep(Duration::from_millis(1)).await;
            std::fs::remove_file(&marker).unwrap();
        })
    });
    let all = futures_util::future::join_all(steps);
    let ended = tokio::time::timeout(Duration::from_secs(60), all).await.expect("steps wait for each other");
    ended.into_iter().for_each(|step| step.unwrap());
    assert_eq!(caches.list().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_for_which() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let wants = [shared("free"), want("taken", Sharing::Locked)];
    let first = take(&caches, &wants).await;
    let (waiting, told) = (caches.clone(), Arc::new(Mutex::new(Vec::new())));
    let heard = told.clone();
    let second = tokio::spawn(async move {
        let hear = |id: &str| heard.lock().unwrap().push(id.to_owned());
        waiting.take(&wants, hear).await.unwrap().len()
    });
    while told.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    drop(first);
    assert_eq!(second.await.unwrap(), 2);
    assert_eq!(*told.lock().unwrap(), ["taken"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_gives_up_waiting_keeps_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let locked = [want("x", Sharing::Locked)];
    let first = take(&caches, &locked).await;
    {
        let gives_up = caches.take(&locked, |_| ());
        assert!(tokio::time::timeout(Duration::from_millis(5), gives_up).await.is_err());
    }
    drop(first);
    tokio::time::timeout(Duration::from_secs(60), take(&caches, &locked)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn private_ones_are_apart_and_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let wants = [want("x", Sharing::Private)];
    let (first, second) = (take(&caches, &wants).await, take(&caches, &wants).await);
    assert_ne!(first[0].dir(), second[0].dir());
    let dirs = [first[0].dir(), second[0].dir()];
    drop((first, second));
    let third = take(&caches, &wants).await;
    assert!(dirs.contains(&third[0].dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_a_step_names_twice_is_one_cache() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let leases = take(&caches, &[want("x", Sharing::Shared), want("x", Sharing::Locked)]).await;
    assert_eq!(leases.len(), 1);
    assert!(caches.try_take(0, &[want("x", Sharing::Locked)]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_longest_ago_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), Some(300_000)).unwrap();
    for (age, id) in [(30, "oldest"), (20, "older"), (10, "old")] {
        let leases = take(&caches, &[shared(id)]).await;
        std::fs::write(leases[0].dir().join("file"), vec![7u8; 80_000]).unwrap();
        give_back(&caches, leases).await;
        let used = Timestamp::now().as_second() - age;
        caches.lock().known.values_mut().filter(|cache| cache.about.id == id).for_each(|cache| {
            cache.about.used = used;
        });
    }
    let in_use = take(&caches, &[shared("oldest")]).await;
    let leases = take(&caches, &[shared("new")]).await;
    std::fs::write(leases[0].dir().join("file"), vec![7u8; 150_000]).unwrap();
    give_back(&caches, leases).await;
    let mut left: Vec<_> = caches.list().into_iter().map(|info| info.id).collect();
    left.sort();
    assert_eq!(left, ["new", "oldest"], "what is in use stays, and what was used last");
    drop(in_use);
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_takes_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let all = take(&caches, &[shared("a"), shared("b")]).await;
    give_back(&caches, all).await;
    let busy = take(&caches, &[shared("b")]).await;
    let unused_for = |seconds| PruneCaches { unused_for: Some(seconds), ..PruneCaches::default() };
    assert_eq!(caches.prune(unused_for(3600)), []);
    let dry = PruneCaches { dry_run: true, ..unused_for(0) };
    let ids = |gone: Vec<(String, u64)>| gone.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(caches.prune(dry)), ["a"]);
    assert_eq!(caches.list().len(), 2);
    assert_eq!(ids(caches.prune(PruneCaches::default())), ["a"]);
    assert!(!caches.list().is_empty() && busy[0].dir().exists());
    assert!(take(&caches, &[shared("a")]).await[0].dir().read_dir().unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_says_not_what_it_is_goes_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let leases = take(&caches, &[shared("a"), shared("b")]).await;
    let (broken, newer) = (leases[0].dir(), leases[1].dir());
    give_back(&caches, leases).await;
    std::fs::write(broken.with_file_name("about.json"), "{").unwrap();
    let about = newer.with_file_name("about.json");
    let text = std::fs::read_to_string(&about).unwrap();
    std::fs::write(&about, text.replace("\"version\":1", "\"version\":2")).unwrap();
    let again = Caches::open(dir.path(), None).unwrap();
    assert_eq!(again.list(), []);
    assert!(!broken.exists() && !newer.exists());
}

#[test]
fn the_first_form_on_disk_is_still_read() {
    let dir = tempfile::tempdir().unwrap();
    let caches = Caches::open(dir.path(), None).unwrap();
    let path = caches.0.place.path(&Key { id: "pip".into(), number: 3 });
    assert!(path.ends_with("build-caches/fed5038bf2f427ab2ec84f85881f103c/3"));
    std::fs::create_dir_all(path.join("data")).unwrap();
    let text = r#"{"version":1,"id":"pip","created":1,"used":2,"bytes":3}"#;
    std::fs::write(path.join("about.json"), text).unwrap();
    let again = Caches::open(dir.path(), None).unwrap();
    let known = CacheInfo { id: "pip".into(), created: 1, used: 2, bytes: 3, in_use: false };
    assert_eq!(again.list(), [known]);
}
