use super::packet::{Reply, kind};
use super::*;

use proptest::prelude::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// A packet of `kind`, numbered 7 where it has a number.
fn packet(kind: u8, fill: impl FnOnce(&mut Reply<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut packet = Reply::begin(&mut bytes, kind);
    if kind != kind::INIT {
        packet.number(7);
    }
    fill(&mut packet);
    packet.finish();
    bytes
}

fn init() -> Vec<u8> {
    packet(kind::INIT, |packet| {
        packet.number(3);
    })
}

/// Goes where nobody can make a file, and stays: a request whose path is none of the test's own (made-up bytes, the
/// name of an extension) leads there and not into the directory that the tests are started in.
fn away() {
    std::env::set_current_dir("/proc").unwrap();
}

/// What is answered to `requests`, and how the session ended. The greeting is left out.
fn talk(requests: &[Vec<u8>]) -> (Vec<Vec<u8>>, Result<(), Error>) {
    away();
    let mut output = Vec::new();
    let input = [init(), requests.concat()].concat();
    let ended = serve(&input[..], &mut output);
    let mut answers = cut(&output);
    assert_eq!(answers.remove(0)[..5], [kind::VERSION, 0, 0, 0, 3]);
    (answers, ended)
}

fn cut(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while let Some(packet) = first_packet(bytes).unwrap() {
        packets.push(packet.to_vec());
        bytes = &bytes[LENGTH + packet.len()..];
    }
    assert!(bytes.is_empty());
    packets
}

/// The code of the status that `answer` is.
fn status(answer: &[u8]) -> u32 {
    assert_eq!(answer[0], kind::STATUS, "{answer:?}");
    u32::from_be_bytes(answer[5..9].try_into().unwrap())
}

fn string(kind: u8, text: &str) -> Vec<u8> {
    packet(kind, |packet| {
        packet.string(text.as_bytes());
    })
}

fn open(path: &str, flags: u32) -> Vec<u8> {
    packet(kind::OPEN, |packet| {
        packet.string(path.as_bytes()).number(flags).number(0);
    })
}

/// The handle that is given as the `n`th.
fn handle(n: u64) -> [u8; 8] {
    n.to_be_bytes()
}

fn read(n: u64, offset: u64, length: u32) -> Vec<u8> {
    packet(kind::READ, |packet| {
        packet.string(&handle(n)).long(offset).number(length);
    })
}

fn write(n: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    packet(kind::WRITE, |packet| {
        packet.string(&handle(n)).long(offset).string(data);
    })
}

fn close(n: u64) -> Vec<u8> {
    packet(kind::CLOSE, |packet| {
        packet.string(&handle(n));
    })
}

fn path(dir: &tempfile::TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn requests_are_answered_in_order_however_many_come_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(&dir, "file");
    let mut requests = vec![open(&file, 2 | 8 | 16)];
    for block in 0..64_u64 {
        requests.push(write(1, block * 4096, &[block as u8; 4096]));
    }
    requests.extend([close(1), open(&file, 1), read(2, 4095, 2), read(2, 64 * 4096, 1), close(2)]);
    let (answers, ended) = talk(&requests);
    ended.unwrap();
    assert_eq!(answers.len(), requests.len());
    assert!(answers[1..66].iter().all(|answer| status(answer) == 0));
    assert_eq!(answers[67], [&[kind::DATA, 0, 0, 0, 7, 0, 0, 0, 2][..], &[0, 1]].concat());
    assert_eq!(status(&answers[68]), 1);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 64 * 4096);
}

#[test]
fn a_handle_is_for_what_it_was_given_and_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "a").unwrap();
    let (answers, ended) = talk(&[
        open(&path(&dir, "a"), 1),
        close(1),
        read(1, 0, 1),
        close(1),
        open(&path(&dir, "a"), 1),
        read(1, 0, 1),
        string(kind::OPENDIR, dir.path().to_str().unwrap()),
        read(3, 0, 1),
        string(kind::READDIR, "nonsense"),
        packet(kind::READDIR, |packet| {
            packet.string(&handle(2));
        }),
    ]);
    ended.unwrap();
    assert_eq!(answers[4][9..], handle(2));
    for refused in [2, 3, 5, 7, 8, 9] {
        assert_eq!(status(&answers[refused]), 4, "{refused}");
    }
}

#[test]
fn handles_are_bounded_and_come_free() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let mut requests = vec![string(kind::OPENDIR, dir); files::MAX_HANDLES + 1];
    requests.extend([close(1), string(kind::OPENDIR, dir)]);
    let (answers, ended) = talk(&requests);
    ended.unwrap();
    assert_eq!(status(&answers[files::MAX_HANDLES]), 4);
    assert!(answers[..files::MAX_HANDLES].iter().all(|answer| answer[0] == kind::HANDLE));
    assert_eq!(answers.last().unwrap()[0], kind::HANDLE);
}

#[test]
fn nothing_is_waited_for_at_a_fifo() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = path(&dir, "fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let cut = packet(kind::SETSTAT, |packet| {
        packet.string(fifo.as_bytes()).number(1).long(0);
    });
    let (answers, ended) =
        talk(&[open(&fifo, 1), read(1, 0, 10), cut.clone(), close(1), open(&fifo, 2), cut]);
    ended.unwrap();
    assert_eq!([1, 2, 4, 5].map(|index| status(&answers[index])), [4; 4]);
}

#[test]
fn links_have_their_target_first_and_renames_replace_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let two = |kind: u8, first: &str, second: &str| {
        packet(kind, |packet| {
            packet.string(first.as_bytes()).string(second.as_bytes());
        })
    };
    let extended = |name: &str, first: &str, second: &str| {
        packet(kind::EXTENDED, |packet| {
            packet.string(name.as_bytes()).string(first.as_bytes()).string(second.as_bytes());
        })
    };
    let [a, b, link] = ["a", "b", "link"].map(|name| path(&dir, name));
    std::fs::write(&a, "a").unwrap();
    std::fs::write(&b, "b").unwrap();
    let (answers, ended) = talk(&[
        two(kind::SYMLINK, "nowhere/at all", &link),
        string(kind::READLINK, &link),
        string(kind::STAT, &link),
        string(kind::LSTAT, &link),
        two(kind::RENAME, &a, &b),
        extended("posix-rename@openssh.com", &a, &b),
        extended("hardlink@openssh.com", &b, &a),
        extended("no-such@berth", &b, &a),
        string(kind::REALPATH, &format!("{}/./x/../b", dir.path().display())),
        string(kind::REMOVE, &path(&dir, "not there")),
    ]);
    ended.unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), Some("nowhere/at all"));
    assert!(String::from_utf8_lossy(&answers[1]).contains("nowhere/at all"));
    assert_eq!(status(&answers[2]), 2);
    assert_eq!(answers[3][0], kind::ATTRS);
    assert_eq!(status(&answers[4]), 4);
    assert_eq!([status(&answers[0]), status(&answers[5]), status(&answers[6])], [0; 3]);
    assert_eq!(std::fs::read(&a).unwrap(), b"a");
    assert_eq!(std::fs::metadata(&a).unwrap().nlink(), 2);
    assert_eq!(status(&answers[7]), 8);
    assert_eq!(status(&answers[8]), 2, "x is not there");
    assert_eq!(status(&answers[9]), 2);
}

#[test]
fn attributes_are_set_as_they_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(&dir, "file");
    std::fs::write(&file, "longer").unwrap();
    let set = packet(kind::SETSTAT, |packet| {
        packet.string(file.as_bytes()).number(1 | 4 | 8).long(3).number(0o100_4711).number(11).number(12);
    });
    let cut_fields = packet(kind::SETSTAT, |packet| {
        packet.string(file.as_bytes()).number(1 | 4).long(1);
    });
    let (answers, ended) = talk(&[set, cut_fields, string(77, "?")]);
    ended.unwrap();
    assert_eq!([0, 1, 2].map(|index| status(&answers[index])), [0, 5, 8]);
    let stat = std::fs::metadata(&file).unwrap();
    assert_eq!((stat.len(), stat.permissions().mode() & 0o7777), (3, 0o4711));
    assert_eq!((stat.atime(), stat.mtime()), (11, 12));
}

#[test]
fn every_entry_of_a_directory_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..300 {
        std::fs::write(dir.path().join(format!("file {number}")), "").unwrap();
    }
    let next = packet(kind::READDIR, |packet| {
        packet.string(&handle(1));
    });
    let (answers, ended) =
        talk(&[vec![string(kind::OPENDIR, dir.path().to_str().unwrap())], vec![next; 5]].concat());
    ended.unwrap();
    let count = |answer: &[u8]| u32::from_be_bytes(answer[5..9].try_into().unwrap());
    let told: u32 =
        answers[1..].iter().filter(|answer| answer[0] == kind::NAME).map(|answer| count(answer)).sum();
    assert_eq!(told, 302, ". and .. are entries");
    assert_eq!(status(answers.last().unwrap()), 1);
    let listed: Vec<u8> = answers[1..].concat();
    let listed = String::from_utf8_lossy(&listed);
    assert!((0..300).all(|number| listed.contains(&format!("file {number}"))));
}

#[test]
fn what_cannot_be_answered_ends_the_session_after_what_can() {
    away();
    let ended = |bytes: &[u8]| serve(bytes, Vec::new());
    ended(b"").unwrap();
    assert!(matches!(ended(&string(kind::STAT, "/")), Err(Error::Unanswerable(kind::STAT))));
    assert!(matches!(ended(&[0, 0, 0, 0]), Err(Error::Length(0))));
    assert!(matches!(ended(&[0, 4, 0, 1]), Err(Error::Length(262_145))));
    assert!(matches!(ended(&init()[..7]), Err(Error::CutOff)));
    let (answers, ended) = talk(&[string(kind::STAT, "/"), init()]);
    assert!(matches!(ended, Err(Error::Unanswerable(kind::INIT))));
    assert_eq!(answers.len(), 1);
}

/// A request of any type. Strings that could be paths lead nowhere or are none, so that nothing of the machine is
/// touched.
fn harmless() -> impl Strategy<Value = Vec<u8>> {
    let field = || {
        prop_oneof![
            any::<u32>().prop_map(|number| number.to_be_bytes().to_vec()),
            any::<u64>().prop_map(|number| number.to_be_bytes().to_vec()),
            Just(sized(b"/nowhere/x")),
            (0_u64..4).prop_map(|n| sized(&handle(n))),
        ]
    };
    let fields = || proptest::collection::vec(field(), 0..6).prop_map(|fields| fields.concat());
    let extension =
        proptest::sample::select(&packet::EXTENSIONS[..]).prop_map(|(name, _)| sized(name.as_bytes()));
    prop_oneof![
        (any::<u8>(), fields()).prop_map(|(kind, fields)| whole(kind, &fields)),
        (1_u8..21, fields()).prop_map(|(kind, fields)| whole(kind, &fields)),
        (extension, fields()).prop_map(|(name, fields)| whole(kind::EXTENDED, &[name, fields].concat())),
    ]
}

/// Bytes with their length before them.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn whole(kind: u8, fields: &[u8]) -> Vec<u8> {
    sized(&[&[kind, 0, 0, 0, 7], fields].concat())
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_end_the_session(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        away();
        let mut output = Vec::new();
        let _ = serve(&[init(), bytes].concat()[..], &mut output);
        cut(&output);
    }

    #[test]
    fn each_request_has_one_answer_whatever_its_fields(requests in proptest::collection::vec(harmless(), 0..20)) {
        let is_greeting = |request: &Vec<u8>| request[LENGTH] == kind::INIT;
        let answerable = requests.iter().take_while(|request| !is_greeting(request)).count();
        let (answers, ended) = talk(&requests);
        prop_assert_eq!(answers.len(), answerable);
        prop_assert_eq!(ended.is_ok(), answerable == requests.len());
        for answer in answers {
            prop_assert_eq!(&answer[1..5], &[0, 0, 0, 7]);
        }
    }
}
