//! Servers in a network namespace of the test's own, and fetching by it. Needs root, and git for its part.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;

/// What may take milliseconds, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request, as far as the tests look at it.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    headers: HashMap<String, String>,
}

type Answer = Box<dyn Fn(usize, &Asked) -> Vec<u8> + Send>;

struct World {
    netns: OwnedFd,
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
    dir: tempfile::TempDir,
    fetcher: Fetcher,
}

impl World {
    /// With a server that answers the n-th request, from 0, so. `None` where the test cannot run.
    fn new(answer: impl Fn(usize, &Asked) -> Vec<u8> + Send + 'static) -> Option<World> {
        World::with(answer, |_| {})
    }

    fn with(
        answer: impl Fn(usize, &Asked) -> Vec<u8> + Send + 'static,
        change: impl FnOnce(&mut Options),
    ) -> Option<World> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: not root");
            return None;
        }
        let made = berth_sys::netns::create(|| {
            berth_sys::netdev::loopback_up()?;
            Ok((TcpListener::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:53")?))
        });
        let (netns, (listener, names)) = made.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        std::thread::spawn(move || serve(&listener, &heard, Box::new(answer)));
        std::thread::spawn(move || name(&names));
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path().join("fetched"));
        change(&mut options);
        let fetcher = Fetcher::open(options).unwrap();
        Some(World { netns, port, asked, dir, fetcher })
    }

    fn door(&self) -> NetworkDoor {
        let netns = self.netns.try_clone().unwrap();
        NetworkDoor { netns, resolv_conf: "nameserver 127.0.0.1\n".to_owned() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://files.test:{}{path}", self.port)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    fn fetch(&self, remote: &Remote) -> Result<Fetched, RunnerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (proxies, sink): (Proxies, Sink) = (Proxies::default(), Arc::new(|_| {}));
        runtime.block_on(self.fetcher.fetch_by(self.door(), &proxies, remote, sink))
    }

    fn get(&self, path: &str) -> Result<Fetched, RunnerError> {
        self.fetch(&Remote::Url { url: self.url(path), checksum: None })
    }

    /// Nothing half-done is left.
    fn assert_clear(&self) {
        let left: Vec<_> = fs::read_dir(self.dir.path().join("fetched/tmp")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn serve(listener: &TcpListener, asked: &Mutex<Vec<Asked>>, answer: Answer) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let Some(request) = read_head(&stream) else {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            continue;
        };
        let number = {
            let mut all = asked.lock().unwrap();
            all.push(request.clone());
            all.len() - 1
        };
        let answer = answer(number, &request);
        if answer.is_empty() {
            // Says nothing until the other side has gone.
            let _ = stream.read(&mut [0; 1]);
            asked.lock().unwrap().push(Asked { path: "gone".into(), headers: HashMap::new() });
            continue;
        }
        let _ = stream.write_all(&answer);
    }
}

fn read_head(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Asked { path, headers })
}

/// Every name that ends in `.test` is this one.
fn name(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let query = &buffer[..length];
        let mut end = 12;
        while query[end] != 0 {
            end += usize::from(query[end]) + 1;
        }
        let question = &query[12..end + 5];
        let known = question.windows(6).any(|window| window == b"\x04test\0");
        let address = known && question[question.len() - 3] == 1;
        let code = if known { 0x80 } else { 0x83 };
        let mut answer = vec![query[0], query[1], 0x81, code, 0, 1, 0, u8::from(address), 0, 0, 0, 0];
        answer.extend(question);
        if address {
            answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        }
        let _ = socket.send_to(&answer, from);
    }
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}")
        .into_bytes()
}

fn is_user(error: &RunnerError) -> bool {
    matches!(error, RunnerError::User { .. })
}

fn text(fetched: &Fetched) -> String {
    fs::read_to_string(&fetched.path).unwrap()
}

/// SHA-256 of "hello".
const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

#[test]
fn a_file_comes_by_the_sandboxes_network_and_names() {
    let modified = "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n";
    let Some(world) = World::new(move |_, _| answer("200 OK", modified, "hello")) else { return };
    let fetched = world.get("/dir/a.txt?token=1").unwrap();
    assert_eq!(text(&fetched), "hello");
    assert_eq!((fetched.digest.as_str(), fetched.name.as_deref()), (HELLO, Some("a.txt")));
    assert_eq!(fetched.modified, Some(1_445_412_480));
    assert_eq!(world.asked()[0].path, "/dir/a.txt?token=1");
    drop(fetched);
    world.assert_clear();
    let error =
        world.fetch(&Remote::Url { url: "http://nowhere.invalid/".into(), checksum: None }).unwrap_err();
    assert!(!is_user(&error) && error.to_string().starts_with("cannot find the host of"), "{error:?}");
}

#[test]
fn the_daemons_own_network_is_out_of_reach() {
    let Some(world) = World::new(|_, _| answer("200 OK", "", "inside")) else { return };
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    own.set_nonblocking(true).unwrap();
    let port = own.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "rebound.test"] {
        // Another port than the server's inside, which is another one by chance.
        let url = format!("http://{host}:{port}/");
        match world.fetch(&Remote::Url { url, checksum: None }) {
            Err(error) => assert!(!is_user(&error), "{error:?}"),
            Ok(fetched) => assert_eq!(text(&fetched), "inside"),
        }
    }
    assert!(own.accept().is_err(), "somebody came");
    let door = NetworkDoor { resolv_conf: String::new(), ..world.door() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let remote = Remote::Url { url: world.url("/"), checksum: None };
    let proxies = Proxies::default();
    let without = world.fetcher.fetch_by(door, &proxies, &remote, Arc::new(|_| {}));
    let error = runtime.block_on(without).unwrap_err();
    assert!(is_user(&error), "{error:?}");
}

#[test]
fn what_is_unchanged_is_not_fetched_again() {
    let Some(world) = World::new(|number, asked| match (number, asked.headers.get("if-none-match")) {
        (1, Some(_)) => answer("304 Not Modified", "", ""),
        (0, None) => answer("200 OK", "ETag: \"one\"\r\n", "hello"),
        (2, Some(_)) => answer("200 OK", "ETag: \"two\"\r\nCache-Control: no-store\r\n", "other"),
        (3, Some(_)) => answer("200 OK", "", "third"),
        _ => answer("400 Bad Request", "", ""),
    }) else {
        return;
    };
    assert_eq!(text(&world.get("/x").unwrap()), "hello");
    let again = world.get("/x").unwrap();
    assert_eq!((text(&again).as_str(), again.digest.as_str()), ("hello", HELLO));
    assert_eq!(world.asked()[1].headers["if-none-match"], "\"one\"");
    assert_eq!(text(&world.get("/x").unwrap()), "other");
    // What is not to be stored was not: it is still asked by the first.
    assert_eq!(text(&world.get("/x").unwrap()), "third");
    assert_eq!(world.asked()[3].headers["if-none-match"], "\"one\"");
}

#[test]
fn a_checksum_is_held_to_and_saves_asking() {
    let Some(world) = World::new(|_, _| answer("200 OK", "ETag: \"1\"\r\n", "hello")) else { return };
    let with = |sum: &str| world.fetch(&Remote::Url { url: world.url("/x"), checksum: Some(sum.to_owned()) });
    let wrong = format!("sha256:{}", "0".repeat(64));
    let error = with(&wrong).unwrap_err();
    assert!(is_user(&error) && error.to_string().contains(HELLO), "{error}");
    assert_eq!(text(&with(HELLO).unwrap()), "hello");
    let asked = world.asked().len();
    assert_eq!(text(&with(HELLO).unwrap()), "hello");
    assert_eq!(world.asked().len(), asked);
    assert!(is_user(&with("md5:1").unwrap_err()));
    world.assert_clear();
}

#[test]
fn refusals_are_the_users_and_failures_the_machines() {
    let Some(world) = World::new(|number, asked| match asked.path.as_str() {
        "/once" if number == 0 => answer("503 Service Unavailable", "Retry-After: 0\r\n", ""),
        "/once" => answer("200 OK", "", "hello"),
        path => answer(&format!("{} Sorry", &path[1..]), "", ""),
    }) else {
        return;
    };
    assert_eq!(text(&world.get("/once").unwrap()), "hello");
    for (status, user, times) in
        [(404, true, 1), (403, true, 1), (410, true, 1), (500, false, 5), (429, false, 5)]
    {
        let before = world.asked().len();
        let error = world.get(&format!("/{status}")).unwrap_err();
        assert_eq!(is_user(&error), user, "{error:?}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert_eq!(world.asked().len() - before, times, "{status}");
    }
    let url = format!("http://u:secret@files.test:{}/404?key=secret", world.port);
    let error = world.fetch(&Remote::Url { url, checksum: None }).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
    let url = format!("https://files.test:{}/", world.port);
    let error = world.fetch(&Remote::Url { url, checksum: None }).unwrap_err();
    assert!(!is_user(&error) && error.to_string().contains("TLS"), "{error:?}");
    for bad in ["ftp://x/y", "file:///etc/passwd", "not a url", "http://"] {
        let error = world.fetch(&Remote::Url { url: bad.into(), checksum: None }).unwrap_err();
        assert!(is_user(&error), "{bad}: {error:?}");
    }
    world.assert_clear();
}

#[test]
fn redirects_are_followed_but_not_in_circles() {
    let Some(world) = World::new(|_, asked| {
        let left: u32 = asked.path[1..].parse().unwrap();
        match left {
            0 => answer("200 OK", "", "hello"),
            left => answer("302 Found", &format!("Location: /{}\r\n", left - 1), ""),
        }
    }) else {
        return;
    };
    let fetched = world.get("/10").unwrap();
    assert_eq!((text(&fetched).as_str(), fetched.name.as_deref()), ("hello", Some("10")));
    let error = world.get("/11").unwrap_err();
    assert!(is_user(&error) && error.to_string().contains("leads on and on"), "{error:?}");
}

#[test]
fn what_broke_off_is_continued_or_begun_anew() {
    fn cut(headers: &str, part: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{headers}\r\n{part}").into_bytes()
    }
    let Some(world) = World::new(|_, asked| match (asked.path.as_str(), asked.headers.get("range")) {
        ("/good", None) => cut("ETag: \"1\"\r\n", "he"),
        ("/good", Some(_)) => {
            answer("206 Partial Content", "ETag: \"1\"\r\nContent-Range: bytes 2-4/5\r\n", "llo")
        }
        // The rest of another place.
        ("/lies", None) => cut("ETag: \"1\"\r\n", "xx"),
        ("/lies", Some(_)) => answer("206 Partial Content", "Content-Range: bytes 0-4/5\r\n", "hello"),
        // Has no ranges.
        ("/whole", None) => cut("Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n", "zz"),
        ("/whole", Some(_)) => answer("200 OK", "", "hello"),
        // Cannot say whether it is the same.
        ("/weak", _) => cut("ETag: W/\"1\"\r\n", "he"),
        _ => answer("404 Not Found", "", ""),
    }) else {
        return;
    };
    assert_eq!(text(&world.get("/good").unwrap()), "hello");
    let second = &world.asked()[1];
    assert_eq!(
        (second.headers["range"].as_str(), second.headers["if-range"].as_str()),
        ("bytes=2-", "\"1\"")
    );
    assert_eq!(text(&world.get("/whole").unwrap()), "hello");
    for never in ["/weak", "/lies"] {
        let before = world.asked().len();
        let error = world.get(never).unwrap_err();
        assert!(!is_user(&error), "{error:?}");
        assert_eq!(world.asked().len() - before, 5);
    }
    assert!(
        world.asked().iter().filter(|asked| asked.path == "/weak").all(|a| !a.headers.contains_key("range"))
    );
    world.assert_clear();
}

#[test]
fn what_is_too_long_is_refused_whatever_is_said_of_its_length() {
    let small = |options: &mut Options| options.max_bytes = 4;
    let Some(world) = World::with(
        |_, asked| match asked.path.as_str() {
            "/said" => answer("200 OK", "", "hello"),
            "/fits" => answer("200 OK", "", "four"),
            _ => b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello".to_vec(),
        },
        small,
    ) else {
        return;
    };
    for path in ["/said", "/unsaid"] {
        let error = world.get(path).unwrap_err();
        assert!(is_user(&error) && error.to_string().contains("more than the 4 bytes"), "{error:?}");
    }
    assert_eq!(text(&world.get("/fits").unwrap()), "four");
    world.assert_clear();
}

#[test]
fn nothing_goes_on_when_nobody_waits() {
    let Some(world) = World::new(|_, _| Vec::new()) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let remote = Remote::Url { url: world.url("/"), checksum: None };
    runtime.block_on(async {
        let proxies = Proxies::default();
        let fetch = world.fetcher.fetch_by(world.door(), &proxies, &remote, Arc::new(|_| {}));
        let begun = async {
            while world.asked().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = fetch => panic!("it has an answer"),
            () = begun => {}
        }
    });
    let until = Instant::now() + PATIENCE;
    while world.asked().len() < 2 {
        assert!(Instant::now() < until, "the connection stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(world.asked()[1].path, "gone");
}

/// Repositories, and a server of them in a world.
struct Repositories {
    world: World,
    dir: PathBuf,
    server: Child,
}

impl Drop for Repositories {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@x", "-c", "protocol.file.allow=always"])
        .args(["-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Repositories {
    fn new() -> Option<Repositories> {
        if Command::new("git").args(["daemon", "--help"]).stdout(Stdio::null()).status().is_err() {
            println!("SKIP: no git");
            return None;
        }
        let world = World::new(|_, _| answer("404 Not Found", "", ""))?;
        let dir = world.dir.path().join("repositories");
        fs::create_dir(&dir).unwrap();
        let server = berth_sys::netns::run_in(world.netns.as_fd(), || {
            let mut server = Command::new("/usr/lib/git-core/git-daemon");
            if !Path::new("/usr/lib/git-core/git-daemon").exists() {
                server = Command::new("git");
                server.arg("daemon");
            }
            let mut server = server
                .args(["--export-all", "--reuseaddr", "--listen=127.0.0.1"])
                .arg(format!("--base-path={}", dir.display()))
                .arg(&dir)
                .stderr(Stdio::null())
                .env("GIT_CONFIG_NOSYSTEM", "1")
                .env("GIT_CONFIG_GLOBAL", "/dev/null")
                .spawn()?;
            let until = Instant::now() + PATIENCE;
            while TcpStream::connect("127.0.0.1:9418").is_err() {
                if Instant::now() > until {
                    let _ = server.kill();
                    panic!("git daemon does not listen: {:?}", server.wait());
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(server)
        });
        Some(Repositories { dir, world, server: server.unwrap() })
    }

    fn repository(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).unwrap();
        git(&dir, &["init", "-q"]);
        dir
    }

    fn commit(dir: &Path, name: &str, text: &str) -> String {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        git(dir, &["add", "-A"]);
        git(dir, &["commit", "-q", "-m", name]);
        git(dir, &["rev-parse", "HEAD"])
    }

    fn remote(name: &str) -> Remote {
        let url = format!("git://git.test/{name}");
        Remote::Git { url, reference: None, subdir: None, keep_git_dir: false, checksum: None }
    }

    fn fetch(&self, name: &str, change: impl FnOnce(&mut Wanted)) -> Result<Fetched, RunnerError> {
        let mut wanted = Wanted::default();
        change(&mut wanted);
        let Wanted { reference, subdir, keep, sum } = wanted;
        let Remote::Git { url, .. } = Repositories::remote(name) else { unreachable!() };
        let own = |text: Option<&str>| text.map(str::to_owned);
        let remote = Remote::Git {
            url,
            reference: own(reference.as_deref()),
            subdir: own(subdir),
            keep_git_dir: keep,
            checksum: sum,
        };
        self.world.fetch(&remote)
    }
}

#[derive(Default)]
struct Wanted {
    reference: Option<String>,
    subdir: Option<&'static str>,
    keep: bool,
    sum: Option<String>,
}

#[test]
fn a_tree_comes_by_branch_tag_and_commit() {
    let Some(world) = Repositories::new() else { return };
    let dir = world.repository("one");
    let first = Repositories::commit(&dir, "sub/file", "first");
    git(&dir, &["tag", "-a", "v1", "-m", "x"]);
    let tag = git(&dir, &["rev-parse", "v1"]);
    Repositories::commit(&dir, "sub/file", "second");
    let third = Repositories::commit(&dir, "run.sh", "third");
    git(&dir, &["checkout", "-q", "-b", "other", &first]);
    let other = Repositories::commit(&dir, "file", "other");
    git(&dir, &["checkout", "-q", "main"]);
    let by = |reference: &str| {
        let reference = Some(reference.to_owned());
        world.fetch("one", |wanted| wanted.reference = reference)
    };

    let fetched = world.fetch("one", |_| {}).unwrap();
    assert_eq!(fetched.digest, third);
    assert_eq!(fs::read_to_string(fetched.path.join("sub/file")).unwrap(), "second");
    assert!(!fetched.path.join(".git").exists());
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(fetched.path.join("run.sh")).unwrap());
    assert_eq!(owner, 0);
    let tree = fetched.path.clone();
    drop(fetched);
    assert!(!tree.exists());

    assert_eq!(by("other").unwrap().digest, other);
    let tagged = by("v1").unwrap();
    assert_eq!(
        (tagged.digest.as_str(), fs::read_to_string(tagged.path.join("sub/file")).unwrap()),
        (&*first, "first".into())
    );
    assert_eq!(by("refs/heads/main").unwrap().digest, third);
    // No tip: the server does not give it by itself.
    assert_eq!(by(&first).unwrap().digest, first);
    let part = world.fetch("one", |wanted| wanted.subdir = Some("sub")).unwrap();
    assert_eq!(part.digest, format!("{third}:sub"));
    assert_eq!(fs::read_to_string(part.path.join("file")).unwrap(), "second");
    drop((tagged, part));

    let summed = |reference: &str, sum: &str| {
        let (reference, sum) = (Some(reference.to_owned()), Some(sum.to_owned()));
        world.fetch("one", |wanted| (wanted.reference, wanted.sum) = (reference, sum))
    };
    assert_eq!(summed("main", &third[..12]).unwrap().digest, third);
    assert_eq!(summed("v1", &tag).unwrap().digest, first);
    for (reference, sum) in [("main", first.as_str()), ("other", "0123456")] {
        let error = summed(reference, sum).unwrap_err();
        assert!(is_user(&error) && error.to_string().contains(sum), "{error:?}");
    }
    for missing in ["nothing", &"0".repeat(40), "--upload-pack=touch x"] {
        let error = by(missing).unwrap_err();
        assert!(is_user(&error), "{error:?}");
    }
    assert!(is_user(&world.fetch("one", |wanted| wanted.subdir = Some("nothing")).unwrap_err()));
    assert!(is_user(&world.fetch("missing", |_| {}).unwrap_err()));
    world.world.assert_clear();
}

#[test]
fn a_git_directory_comes_along_if_asked_for() {
    let Some(world) = Repositories::new() else { return };
    let dir = world.repository("one");
    let commit = Repositories::commit(&dir, "file", "text");
    let fetched = world.fetch("one", |wanted| wanted.keep = true).unwrap();
    assert_eq!(fetched.digest, format!("{commit}+git"));
    assert_eq!(git(&fetched.path, &["rev-parse", "HEAD"]), commit);
    assert_eq!(git(&fetched.path, &["status", "--porcelain"]), "");
    assert_eq!(git(&fetched.path, &["config", "remote.origin.url"]), "git://git.test/one");
    assert!(fs::read_dir(fetched.path.join(".git/hooks")).is_err(), "there are hooks");
}

#[test]
fn submodules_come_along_but_none_of_this_machine() {
    let Some(world) = Repositories::new() else { return };
    let inner = world.repository("inner");
    Repositories::commit(&inner, "file", "inner");
    let outer = world.repository("outer");
    Repositories::commit(&outer, "file", "outer");
    let add = |dir: &Path, url: &str| {
        let local = inner.to_str().unwrap();
        git(dir, &["submodule", "--quiet", "add", local, "module"]);
        git(dir, &["config", "-f", ".gitmodules", "submodule.module.url", url]);
        git(dir, &["commit", "-q", "-a", "-m", "module"]);
    };
    add(&outer, "../inner");
    let fetched = world.fetch("outer", |_| {}).unwrap();
    assert_eq!(fs::read_to_string(fetched.path.join("module/file")).unwrap(), "inner");
    assert!(!fetched.path.join("module/.git").exists());
    let evil = world.repository("evil");
    Repositories::commit(&evil, "file", "evil");
    add(&evil, &format!("file://{}", inner.display()));
    let error = world.fetch("evil", |_| {}).unwrap_err();
    assert!(is_user(&error) && error.to_string().contains("not allowed"), "{error:?}");
}

#[test]
fn what_cannot_be_reached_is_no_fault_of_the_user() {
    let Some(world) = Repositories::new() else { return };
    let closed = |url: &str| Remote::Git {
        url: url.to_owned(),
        reference: None,
        subdir: None,
        keep_git_dir: false,
        checksum: None,
    };
    for url in ["http://u:secret@git.test:1/x", "git://nowhere.invalid/x"] {
        let error = world.world.fetch(&closed(url)).unwrap_err();
        assert!(!is_user(&error) && !error.to_string().contains("secret"), "{error:?}");
    }
    // A server of files that says no.
    let error = world.world.fetch(&closed(&world.world.url("/x.git"))).unwrap_err();
    assert!(is_user(&error), "{error:?}");
    for url in ["ssh://git@git.test/x", "file:///etc", "git@git.test:x"] {
        let error = world.world.fetch(&closed(url)).unwrap_err();
        assert!(is_user(&error), "{error:?}");
    }
}

#[test]
fn git_ends_when_nobody_waits() {
    let Some(world) = World::new(|_, _| Vec::new()) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let url = world.url("/slow.git");
    let remote = Remote::Git { url, reference: None, subdir: None, keep_git_dir: false, checksum: None };
    runtime.block_on(async {
        let proxies = Proxies::default();
        let fetch = world.fetcher.fetch_by(world.door(), &proxies, &remote, Arc::new(|_| {}));
        let begun = async {
            while world.asked().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            answer = fetch => panic!("{answer:?}"),
            () = begun => {}
        }
    });
    let until = Instant::now() + PATIENCE;
    while world.asked().len() < 2 {
        assert!(Instant::now() < until, "the connection stays");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(world.asked()[1].path, "gone");
}
