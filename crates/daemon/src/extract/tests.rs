//! Every type of request against JSON that is almost right.

use berth_types::error::Kind;
use berth_types::exec::ExecRequest;
use berth_types::files::{ArchiveIn, ArchiveOut, FsRequest};
use berth_types::image::{BootstrapImage, BuildImage, ImportImage, PullImage, PushImage};
use berth_types::sandbox::{CreateSandbox, LeaseRequest, SetLease, SetTtl};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn error<T: DeserializeOwned>(body: &str) -> berth_types::error::ApiError {
    match parse::<T>(body.as_bytes()) {
        Ok(_) => panic!("{body} was accepted"),
        Err(Failure(error)) => error,
    }
}

#[test]
fn an_unknown_field_is_refused_with_the_nearest_name() {
    let body = r#"{"image": "x", "resources": {"memroy_mb": 5}}"#;
    let error = error::<CreateSandbox>(body);
    assert_eq!((error.kind, error.code.as_str()), (Kind::User, "bad_body"));
    assert!(error.message.contains("memroy_mb"), "{}", error.message);
    assert_eq!(error.hint.as_deref(), Some("did you mean \"memory_mb\"?"));
    let far = super::tests::error::<CreateSandbox>(r#"{"image": "x", "qqqqqqqqqqq": 1}"#);
    assert_eq!(far.hint, None);
    let variant = super::tests::error::<CreateSandbox>(r#"{"image": "x", "network": "no-networks"}"#);
    assert_eq!(variant.hint.as_deref(), Some("did you mean \"no-network\"?"));
}

#[test]
fn what_would_be_lost_in_silence_is_refused() {
    for body in [
        r#"{"image": "x", "image": "y"}"#,
        r#"{"image": "x", "env": {"A": "1", "A": "2"}}"#,
        r#"{"image": "x", "labels": {"A": "1", "A": "2"}}"#,
        r#"{"image": "x", "resources": {"cpus": 1e999}}"#,
        r#"{"image": "x", "resources": {"cpus": NaN}}"#,
        r#"{"image": "x", "resources": {"memory_mb": -1}}"#,
        r#"{"image": "x", "resources": {"memory_mb": 1.5}}"#,
        r#"{"image": "x", "resources": {"memory_mb": "512"}}"#,
        r#"{"image": "x", "ttl_seconds": 18446744073709551616}"#,
        r#"{"image": "x", "capabilities": "all"}"#,
        r#"{"image": "x", "capabilities": [1]}"#,
        r#"{"image": "x"} {}"#,
        r#"{"image": null}"#,
        "",
        "[]",
        "null",
    ] {
        assert_eq!(error::<CreateSandbox>(body).kind, Kind::User, "{body}");
    }
    let deep = format!(r#"{{"image": {}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(error::<CreateSandbox>(&deep).kind, Kind::User);
    assert_eq!(parse::<CreateSandbox>(&[b'"', 0xff, b'"']).map(drop).unwrap_err().0.kind, Kind::User);
}

#[test]
fn capabilities_are_a_word_or_names() {
    use berth_types::sandbox::{Capabilities, CapabilitySet};
    let read = |value: &str| {
        parse::<CreateSandbox>(format!(r#"{{"image": "x", "capabilities": {value}}}"#).as_bytes())
            .map(|request| request.capabilities)
            .ok()
    };
    assert_eq!(read(r#""none""#), Some(Capabilities::Set(CapabilitySet::None)));
    assert_eq!(read(r#""default""#), Some(Capabilities::default()));
    assert_eq!(read(r#"["NET_RAW"]"#), Some(Capabilities::Only(vec!["NET_RAW".into()])));
    assert_eq!(read("[]"), Some(Capabilities::Only(Vec::new())));
}

/// The names that requests have, and some that none has.
const NAMES: &[&str] = &[
    "image",
    "name",
    "labels",
    "lease",
    "resources",
    "network",
    "env",
    "workdir",
    "user",
    "mounts",
    "cpus",
    "memory_mb",
    "storage_mb",
    "pids",
    "ttl_seconds",
    "wait_seconds",
    "capabilities",
    "user_namespace",
    "storage_unenforced",
    "command",
    "argv",
    "shell",
    "cwd",
    "timeout_seconds",
    "id",
    "op",
    "path",
    "paths",
    "mode",
    "reference",
    "policy",
    "auth",
    "tags",
    "source",
    "target",
    "read_only",
    "",
    "\u{0}",
    "memroy_mb",
    "memory_request_mb",
    "cpu_request",
    "storage_inodes",
    "idempotency_key",
    "no_new_privileges",
    "limits",
    "ttl",
    "dockerfile",
    "build_args",
    "no_cache",
    "format",
    "username",
    "password",
    "suite",
    "mirror",
    "keep_ids",
    "exclude",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|value| json!(value)),
        any::<String>().prop_map(Value::from),
        proptest::sample::select(NAMES).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(NAMES), inner), 0..6).prop_map(|entries| {
                let entries = entries.into_iter().map(|(name, value)| (name.to_owned(), value));
                Value::Object(entries.collect::<Map<_, _>>())
            }),
        ]
    })
}

/// Whatever comes, it is a request or the client's mistake; never a panic.
fn meet<T: DeserializeOwned>(body: &[u8]) {
    if let Err(Failure(error)) = parse::<T>(body) {
        assert_eq!(error.kind, Kind::User);
        assert!(!error.message.is_empty());
    }
}

fn meet_all(body: &[u8]) {
    meet::<CreateSandbox>(body);
    meet::<SetLease>(body);
    meet::<SetTtl>(body);
    meet::<LeaseRequest>(body);
    meet::<ExecRequest>(body);
    meet::<FsRequest>(body);
    meet::<ArchiveIn>(body);
    meet::<ArchiveOut>(body);
    meet::<PullImage>(body);
    meet::<PushImage>(body);
    meet::<ImportImage>(body);
    meet::<BootstrapImage>(body);
    meet::<BuildImage>(body);
}

proptest! {
    #[test]
    fn any_json_is_a_request_or_a_mistake(value in any_json()) {
        meet_all(value.to_string().as_bytes());
    }

    #[test]
    fn any_bytes_are_a_request_or_a_mistake(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        meet_all(&bytes);
    }

    #[test]
    fn a_request_comes_back_as_it_was_sent(eighths in 1u32..1_000_000, memory in any::<u64>(), ttl in any::<Option<u64>>(),
                                           env in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..4)) {
        let mut request = CreateSandbox { image: "x".into(), ttl_seconds: ttl, env, ..Default::default() };
        // Such fractions are exact; of others the last bit may differ, as with any JSON.
        request.resources.cpus = Some(f64::from(eighths) / 8.0);
        request.resources.memory_mb = Some(memory);
        let body = serde_json::to_vec(&request).unwrap();
        prop_assert_eq!(parse::<CreateSandbox>(&body).map_err(|failure| failure.0.message), Ok(request));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_to_its_end_is_not_waited_for() {
    let begun = futures_util::stream::iter([Ok::<_, std::io::Error>("{")]);
    let stalled = futures_util::StreamExt::chain(begun, futures_util::stream::pending());
    let request = Request::new(axum::body::Body::from_stream(stalled));
    let Err(Failure(error)) = body(request).await else { panic!("it was read") };
    assert_eq!((error.kind, error.code.as_str()), (Kind::User, "bad_body"));
}
