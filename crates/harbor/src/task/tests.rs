//! The format: what is taken, what is refused and in which words.

use std::fs;
use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<(TaskConfig, Vec<Warning>), Error> {
    parse::parse(Path::new("task.toml"), text)
}

fn config(text: &str) -> TaskConfig {
    parse(text).unwrap_or_else(|error| panic!("{error}: {text}")).0
}

fn example() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/tasks/square-2")
}

#[test]
fn the_seeds_task_is_read() {
    let (task, warnings) = Task::load(&example()).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!((task.name.as_str(), task.dir_name.as_str()), ("demo/square-2", "square-2"));
    task.check(Solver::Oracle).unwrap();
    insta::assert_debug_snapshot!(task.config);
}

#[test]
fn an_empty_file_has_harbors_defaults() {
    let config = config("");
    assert_eq!(config.schema_version, "1.4");
    assert_eq!((config.agent.timeout_sec, config.verifier.timeout_sec), (None, 600.0));
    assert_eq!(config.environment, EnvironmentSection::default());
    assert_eq!(config.environment.build_timeout_sec, 600.0);
}

#[test]
fn older_spellings_are_read() {
    let memory = |text: &str| config(text).environment.memory_mb;
    assert_eq!(memory("[environment]\nmemory = \"2G\""), Some(2048));
    assert_eq!(memory("[environment]\nmemory = \" 512m \""), Some(512));
    assert_eq!(memory("[environment]\nmemory = \"0.5G\"\nmemory_mb = 512"), Some(512));
    assert_eq!(memory("[environment]\nmemory = \"2048K\""), Some(2));
    assert_eq!(config("[environment]\nstorage = \"10G\"").environment.storage_mb, Some(10240));
    assert_eq!(config("version = \"1.0\"").schema_version, "1.0");
    let network = |text: &str| config(text).environment.network;
    use berth_types::sandbox::NetworkMode::{NoNetwork, Public};
    assert_eq!(network("[environment]\nallow_internet = false"), NoNetwork);
    assert_eq!(network("[environment]\nallow_internet = true"), Public);
    assert_eq!(network("[environment]\nallow_internet = false\nnetwork_mode = \"public\""), Public);
    assert_eq!(network("[environment]\nnetwork_mode = \"no-network\""), NoNetwork);
}

#[test]
fn numbers_may_be_whole_or_not() {
    assert_eq!(config("[environment]\ncpus = 0.5").environment.cpus, Some(0.5));
    assert_eq!(config("[environment]\ncpus = 2").environment.cpus, Some(2.0));
    assert_eq!(config("[environment]\nmemory_mb = 64.0").environment.memory_mb, Some(64));
    assert_eq!(config("[environment]\nmemory_mb = 0x40").environment.memory_mb, Some(64));
    assert_eq!(config("[agent]\ntimeout_sec = 90").agent.timeout_sec, Some(90.0));
    assert_eq!(config("[agent]\nuser = 1000").agent.user.as_deref(), Some("1000"));
}

#[test]
fn errors_name_the_line_and_what_would_be_right() {
    let table = [
        "[environment\ncpus = 1",
        "a = 1\na = 2",
        "[environment]\n\ncpus = \"two\"",
        "[environment]\ncpus = 0",
        "[environment]\ncpus = nan",
        "[environment]\nmemory_mb = 1.5",
        "[environment]\nmemory_mb = -1",
        "[environment]\nmemory = 2048",
        "[environment]\nmemory = \"2 gigs\"",
        "[environment]\nmemory = \"2G\"\nmemory_mb = 1024",
        "[environment]\nstorage = \"1.5M\"",
        "[environment]\nbuild_timeout_sec = inf",
        "[environment]\nos = \"plan9\"",
        "[environment]\nworkdir = \"app\"",
        "[environment]\ndocker_image = \"\"",
        "[environment]\nnetwork_mode = \"offline\"",
        "[environment]\nallowed_hosts = [\"example.com\"]",
        "[environment]\nallow_internet = \"no\"",
        "[environment.env]\nPORT = 80",
        "[environment.env]\n\"A=B\" = \"c\"",
        "[environment.healthcheck]\nretries = 3",
        "[environment.healthcheck]\ncommand = \"true\"\ninterval_sec = -1",
        "[agent]\ntimeout_sec = 0",
        "[agent]\ntimeout_sec = [1]",
        "[agent]\nuser = -1",
        "agent = 3",
        "[verifier]\nenvironment_mode = \"twin\"",
        "[verifier]\nenvironment_mode = \"shared\"\n[verifier.environment]\ncpus = 1",
        "[task]\nname = \"square\"",
        "[task]\nname = \"a/../b\"",
        "[task]\ndescription = \"nameless\"",
        "schema_version = 1.1",
        "schema_version = \"2.0\"",
        "steps = \"one\"",
        "artifacts = [3]",
        "artifacts = [\"/a/../b\"]",
        "artifacts = [{ destination = \"a\" }]",
        "artifacts = [{ source = \"/a\", destination = \"/b\" }]",
        "artifacts = [{ source = \"/a\", destination = \"manifest.json\" }]",
        "artifacts = [{ source = \"/a\", exclude = \"*.o\" }]",
    ];
    let told: Vec<String> = table
        .iter()
        .map(|text| {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), Kind::User);
            let cause = std::error::Error::source(&error).map(|cause| format!("\n{cause}"));
            format!("{text}\n  => {error}{}\n", cause.unwrap_or_default())
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn oddities_are_warnings() {
    let text = "schema_version = \"1.7\"\nauthor = \"me\"\nartefacts = []\n\n[agent]\ntimeout = 30\ntimeout_sec = \"30\"\n\n\
                [verifier]\ntimeout_secs = 5\n\n[environment]\nmemory = \"1G\"\ncpu = 1\nallow_internet = true\n\n\
                [environment.healthcheck]\ncommand = \"true\"\nretry = 3\n\n[metadata]\nanything = \"goes\"\n";
    let (config, warnings) = parse(text).unwrap();
    assert_eq!(config.agent.timeout_sec, Some(30.0));
    let told: Vec<String> = warnings.iter().map(Warning::to_string).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn what_the_runner_does_not_do_is_refused() {
    let table = [
        "[[steps]]\nname = \"one\"",
        "[verifier]\nenvironment_mode = \"separate\"",
        "[verifier.environment]\ncpus = 1",
        "[[verifier.collect]]\ncommand = \"dump\"",
        "[environment]\nos = \"Windows\"",
        "[environment]\ngpus = 1",
        "[environment.tpu]\ntype = \"v6e\"\ntopology = \"2x4\"",
        "[[environment.mcp_servers]]\nname = \"x\"\nurl = \"http://x\"",
        "[environment]\nnetwork_mode = \"allowlist\"\nallowed_hosts = [\"example.com\"]",
        "[agent]\nnetwork_mode = \"no-network\"",
        "[verifier]\nnetwork_mode = \"no-network\"",
        "artifacts = [{ source = \"/a\", service = \"db\" }]",
        "artifacts = [\"a\"]",
    ];
    let told: Vec<String> = table
        .iter()
        .map(|text| {
            let unsupported = config(text).unsupported;
            assert_eq!(unsupported.len(), 1, "{text}");
            format!("line {}: {}", unsupported[0].line, unsupported[0].what)
        })
        .collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn what_asks_for_nothing_special_is_not_refused() {
    let table = [
        "steps = []",
        "[verifier]\nenvironment_mode = \"shared\"\ncollect = []",
        "[environment]\nos = \"linux\"\ngpus = 0\ngpu_types = [\"H100\"]\nmcp_servers = []",
        "[environment]\nnetwork_mode = \"no-network\"\n[agent]\nnetwork_mode = \"no-network\"",
        "[verifier]\nnetwork_mode = \"public\"",
        "artifacts = [{ source = \"/a\", service = \"main\" }]",
    ];
    for text in table {
        assert_eq!(config(text).unsupported, [], "{text}");
    }
}

/// A copy of the example in which one thing is changed.
fn changed(change: impl FnOnce(&Path)) -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let task = dir.path().join("square-2");
    for part in ["environment", "solution", "tests"] {
        fs::create_dir_all(task.join(part)).unwrap();
    }
    for file in
        ["task.toml", "instruction.md", "environment/Dockerfile", "solution/solve.sh", "tests/test.sh"]
    {
        fs::copy(example().join(file), task.join(file)).unwrap();
    }
    change(&task);
    let (task, _) = Task::load(&task)?;
    task.check(Solver::Oracle)
}

#[test]
fn a_directory_must_hold_what_a_task_needs() {
    let remove = |file: &'static str| move |task: &Path| fs::remove_file(task.join(file)).unwrap();
    assert!(matches!(changed(remove("task.toml")), Err(Error::NotATask { .. })));
    assert!(matches!(changed(remove("environment/Dockerfile")), Err(Error::NoEnvironment { .. })));
    for file in ["instruction.md", "solution/solve.sh", "tests/test.sh"] {
        let error = changed(remove(file)).unwrap_err();
        assert!(matches!(&error, Error::Missing { path, .. } if path.ends_with(file)), "{error}");
    }
    let compose = |task: &Path| fs::write(task.join("environment/docker-compose.yaml"), "").unwrap();
    assert!(matches!(changed(compose), Err(Error::Unsupported { .. })));
    let ignore = |task: &Path| fs::write(task.join("tests/.harborignore"), "*.o").unwrap();
    assert!(matches!(changed(ignore), Err(Error::Unsupported { .. })));
    let link = |task: &Path| std::os::unix::fs::symlink("/etc/passwd", task.join("tests/users")).unwrap();
    assert!(matches!(changed(link), Err(Error::Escapes { .. })));
    let inner = |task: &Path| std::os::unix::fs::symlink("test.sh", task.join("tests/link")).unwrap();
    changed(inner).unwrap();
}

#[test]
fn host_variables_are_put_in() {
    let (mut task, _) = Task::load(&example()).unwrap();
    let host = |name: &str| (name == "HOME_OF_TASK").then(|| "/srv".to_owned());
    let table = [
        ("${HOME_OF_TASK}", Some("/srv")),
        ("${HOME_OF_TASK:-x}", Some("/srv")),
        ("${UNSET:-x:-y}", Some("x:-y")),
        ("${UNSET:-}", Some("")),
        ("${UNSET}", None),
        ("$HOME_OF_TASK", Some("$HOME_OF_TASK")),
        ("a ${HOME_OF_TASK}", Some("a ${HOME_OF_TASK}")),
        ("${}", Some("${}")),
        ("plain", Some("plain")),
    ];
    for (value, expected) in table {
        let entry = EnvEntry { name: "X".to_owned(), value: value.to_owned(), line: 7 };
        task.config.environment.env = EnvTable { entries: vec![entry] };
        let resolved = task.resolve_env(&task.config.environment.env, host);
        assert_eq!(resolved.ok().map(|mut env| env.remove("X").unwrap()).as_deref(), expected, "{value}");
    }
}

#[test]
fn a_canary_is_not_shown_to_the_agent() {
    let table = [
        ("<!-- task canary 123 -->\n\nDo it.\n", "Do it.\n"),
        ("# CANARY GUID\n# more canary\nDo it.", "Do it."),
        ("# Heading\ncanary\n", "# Heading\ncanary\n"),
        ("Do it.\n# canary\n", "Do it.\n# canary\n"),
    ];
    for (text, expected) in table {
        assert_eq!(strip_canary(text), expected);
    }
}

/// Fixed by Harbor: computed with its own code over these very files.
#[test]
fn the_hashes_are_harbors() {
    let dir = tempfile::tempdir().unwrap();
    for (file, content) in [
        ("task.toml", "schema_version = \"1.1\"\n"),
        ("instruction.md", "Do it.\n"),
        ("environment/Dockerfile", "FROM debian:bookworm\n"),
        ("tests/test.sh", "exit 0\n"),
        ("tests/__pycache__/x.pyc", "cache"),
        ("tests/.harborignore", "*.o\n"),
        ("notes/draft.txt", "unpublished"),
    ] {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::create_dir(dir.path().join("solution")).unwrap();
    assert_eq!(
        digest::content_digest(dir.path()).unwrap(),
        "sha256:dfec536a65b34377085cdb61ce4361898b9b80536887e6d2be0f9895397add73"
    );
    assert_eq!(
        digest::directory_checksum(dir.path()).unwrap(),
        "952c2787bf1d82ee3a9165703e478cd35e33c90920316c021716861f83072c22"
    );
}
