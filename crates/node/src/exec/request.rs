//! What a request for an exec asks of the guest, and whether it can be honoured. Pure.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_sandbox::guest::{self, ExecSpec};
use berth_types::exec::{
    Command, ExecOffsets, ExecRequest, KeepOutput, Signal, SignalRequest, Stdin, WhenFull,
};
use sha2::{Digest, Sha256};

use crate::Error;

/// Longest id of an exec.
const MAX_ID: usize = 64;

/// Most bytes of input that come with a request.
const MAX_INPUT: usize = 1 << 20;

/// How much output may be asked to be kept, in bytes.
const KEEP: std::ops::RangeInclusive<u64> = (64 << 10)..=(1 << 30);

/// Names of signals by number, from 1 on. signal(7).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The same signals by other names.
const ALIASES: [(&str, &str); 3] = [("IOT", "ABRT"), ("CLD", "CHLD"), ("POLL", "IO")];

/// Highest number of a signal.
const MAX_SIGNAL: i32 = 64;

/// What of a sandbox every exec starts from.
pub(super) struct Defaults {
    pub(super) env: std::collections::BTreeMap<String, String>,
    pub(super) cwd: String,
    pub(super) user: String,
    pub(super) no_new_privileges: bool,
}

/// A request as the guest gets it.
pub(super) struct Asked {
    pub(super) spec: ExecSpec,
    /// What is written to its input, and then the end.
    pub(super) input: Option<Vec<u8>>,
}

/// Turns a request that has an id by now into what the guest is asked.
///
/// # Errors
/// [`Error::BadRequest`].
pub(super) fn ask(id: String, request: ExecRequest, defaults: Defaults) -> Result<Asked, Error> {
    let timeout = timeout(request.timeout_seconds)?;
    let keep = keep(request.keep)?;
    check_terminal(&request)?;
    let input = match &request.stdin {
        Some(Stdin::Data(text)) => Some(decode(text)?),
        Some(Stdin::Stream) | None => None,
    };
    let fingerprint = fingerprint(&request, input.as_deref());
    let mut env = defaults.env;
    env.extend(request.env);
    let spec = ExecSpec {
        id,
        fingerprint: Some(fingerprint),
        command: request.command,
        env,
        cwd: request.cwd.unwrap_or(defaults.cwd),
        user: Some(request.user.unwrap_or(defaults.user)).filter(|user| !user.is_empty()),
        timeout,
        no_new_privileges: defaults.no_new_privileges,
        plain_env: false,
        stdin: if request.stdin.is_some() { guest::Stdin::Stream } else { guest::Stdin::Null },
        terminal: request.terminal,
        keep: Some(keep),
        on_detach: request.on_disconnect,
        from: request.from,
    };
    Ok(Asked { spec, input })
}

/// What a repeated request is known by: all of it but what names it, and what only its answer depends on.
fn fingerprint(request: &ExecRequest, input: Option<&[u8]>) -> String {
    let normal = ExecRequest {
        id: None,
        detach: false,
        from: ExecOffsets::default(),
        // The same bytes can be written in more than one way.
        stdin: match &request.stdin {
            Some(Stdin::Data(_)) => Some(Stdin::Data(hex(&Sha256::digest(input.unwrap_or_default())))),
            other => other.clone(),
        },
        keep: request.keep.filter(|keep| *keep != default_keep()),
        timeout_seconds: request.timeout_seconds.filter(|seconds| *seconds != 0.0),
        ..request.clone()
    };
    // A request came as JSON, so it has such a form; its maps are sorted.
    hex(&Sha256::digest(serde_json::to_vec(&normal).unwrap_or_default()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str) -> Result<Vec<u8>, Error> {
    let bad = |problem| Error::BadRequest { field: "stdin.data", problem };
    // Four characters for three bytes; what is longer need not be looked at.
    if text.len() > MAX_INPUT.div_ceil(3) * 4 {
        return Err(bad(format!("it is longer than {MAX_INPUT} bytes; stream it")));
    }
    let bytes = STANDARD.decode(text).map_err(|error| bad(format!("it is not base64: {error}")))?;
    if bytes.len() > MAX_INPUT {
        return Err(bad(format!("{} bytes are more than {MAX_INPUT}; stream it", bytes.len())));
    }
    Ok(bytes)
}

fn check_terminal(request: &ExecRequest) -> Result<(), Error> {
    if request.terminal.is_some() && matches!(request.command, Command::Sftp) {
        let problem = "the SFTP server has no use for a terminal".to_owned();
        return Err(Error::BadRequest { field: "terminal", problem });
    }
    Ok(())
}

fn default_keep() -> KeepOutput {
    KeepOutput { bytes: berth_wire::DEFAULT_KEEP, when_full: WhenFull::Wait }
}

fn keep(asked: Option<KeepOutput>) -> Result<KeepOutput, Error> {
    let keep = asked.unwrap_or_else(default_keep);
    if KEEP.contains(&keep.bytes) {
        return Ok(keep);
    }
    let problem = format!("{} is not {} to {}", keep.bytes, KEEP.start(), KEEP.end());
    Err(Error::BadRequest { field: "keep.bytes", problem })
}

pub(super) fn check_id(id: String) -> Result<String, Error> {
    let fits = (1..=MAX_ID).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if fits {
        return Ok(id);
    }
    Err(Error::BadRequest { field: "id", problem: format!("{id:?} is not 1 to {MAX_ID} of [A-Za-z0-9_-]") })
}

fn timeout(seconds: Option<f64>) -> Result<Option<Duration>, Error> {
    match seconds {
        None => Ok(None),
        Some(0.0) => Ok(None),
        Some(seconds) => Duration::try_from_secs_f64(seconds).map(Some).map_err(|error| Error::BadRequest {
            field: "timeout_seconds",
            problem: format!("{seconds}: {error}"),
        }),
    }
}

/// The number of a signal that is given by number or by name.
///
/// # Errors
/// [`Error::BadRequest`] that names it.
pub(super) fn signal(request: &SignalRequest) -> Result<i32, Error> {
    let bad = |problem| Err(Error::BadRequest { field: "signal", problem });
    match &request.signal {
        Signal::Number(number) if (1..=MAX_SIGNAL).contains(number) => Ok(*number),
        Signal::Number(number) => bad(format!("{number} is not 1 to {MAX_SIGNAL}")),
        Signal::Name(name) => match by_name(name) {
            Some(number) => Ok(number),
            None => {
                bad(format!("there is no signal {name:?}; TERM, INT, KILL, HUP and the like are signals"))
            }
        },
    }
}

fn by_name(name: &str) -> Option<i32> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let short = ALIASES.iter().find(|(alias, _)| *alias == short).map_or(short, |(_, name)| *name);
    let index = SIGNALS.iter().position(|known| *known == short)?;
    i32::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_types::exec::{OnDisconnect, TerminalSize};

    fn shell(change: impl FnOnce(&mut ExecRequest)) -> ExecRequest {
        let mut request = ExecRequest::new(Command::Shell("true".into()));
        change(&mut request);
        request
    }

    fn asked(request: ExecRequest) -> Result<Asked, Error> {
        let defaults = Defaults {
            env: [("A".to_owned(), "1".to_owned())].into(),
            cwd: "/w".into(),
            user: String::new(),
            no_new_privileges: true,
        };
        ask("id".into(), request, defaults)
    }

    fn print_of(change: impl FnOnce(&mut ExecRequest)) -> String {
        asked(shell(change)).unwrap().spec.fingerprint.unwrap()
    }

    #[test]
    fn what_names_a_request_or_only_shapes_its_answer_is_not_in_its_fingerprint() {
        let plain = print_of(|_| ());
        assert_eq!(plain.len(), 64);
        assert_eq!(plain, print_of(|r| r.id = Some("x".into())));
        assert_eq!(plain, print_of(|r| r.detach = true));
        assert_eq!(plain, print_of(|r| r.from = ExecOffsets { stdout: 1, stderr: 2 }));
        assert_eq!(plain, print_of(|r| r.timeout_seconds = Some(0.0)));
        assert_eq!(plain, print_of(|r| r.keep = Some(default_keep())));
    }

    #[test]
    fn every_other_part_of_a_request_is_in_its_fingerprint() {
        let mut prints = vec![print_of(|_| ())];
        let changes: [fn(&mut ExecRequest); 9] = [
            |r| r.command = Command::Argv(vec!["true".into()]),
            |r| drop(r.env.insert("A".into(), "2".into())),
            |r| r.cwd = Some("/".into()),
            |r| r.user = Some("nobody".into()),
            |r| r.timeout_seconds = Some(1.0),
            |r| r.stdin = Some(Stdin::Data("YQ==".into())),
            |r| r.stdin = Some(Stdin::Data("Yg==".into())),
            |r| r.terminal = Some(TerminalSize { rows: 1, cols: 1 }),
            |r| r.on_disconnect = OnDisconnect::Kill,
        ];
        prints.extend(changes.map(print_of));
        prints.push(print_of(|r| r.stdin = Some(Stdin::Stream)));
        prints.push(print_of(|r| {
            r.keep = Some(KeepOutput { bytes: 1 << 20, when_full: WhenFull::DropOldest });
        }));
        let count = prints.len();
        prints.sort();
        prints.dedup();
        assert_eq!(prints.len(), count);
    }

    #[test]
    fn the_sandboxs_own_fills_what_a_request_leaves_open() {
        let spec = asked(shell(|r| drop(r.env.insert("B".into(), "2".into())))).unwrap().spec;
        assert_eq!((spec.cwd.as_str(), spec.user, spec.env.len()), ("/w", None, 2));
        assert!(spec.no_new_privileges);
        assert_eq!(spec.on_detach, OnDisconnect::Keep);
        assert_eq!(spec.stdin, guest::Stdin::Null);
    }

    #[test]
    fn input_is_decoded_and_has_a_limit() {
        let with = |data: String| asked(shell(|r| r.stdin = Some(Stdin::Data(data))));
        assert_eq!(with("aGk=".into()).unwrap().input.unwrap(), b"hi");
        assert_eq!(with(String::new()).unwrap().input.unwrap(), b"");
        let most = with(STANDARD.encode(vec![7; MAX_INPUT])).unwrap();
        assert_eq!(most.input.unwrap().len(), MAX_INPUT);
        for bad in ["a".to_owned(), STANDARD.encode(vec![7; MAX_INPUT + 1]), "A".repeat(MAX_INPUT * 2)] {
            assert!(matches!(with(bad), Err(Error::BadRequest { field: "stdin.data", .. })));
        }
    }

    #[test]
    fn what_is_kept_has_limits() {
        let with = |bytes| {
            asked(shell(|r| r.keep = Some(KeepOutput { bytes, when_full: WhenFull::Wait })))
                .map(|asked| asked.spec.keep.unwrap().bytes)
        };
        assert_eq!(with(64 << 10).unwrap(), 64 << 10);
        assert_eq!(with(1 << 30).unwrap(), 1 << 30);
        for bad in [0, (64 << 10) - 1, (1 << 30) + 1] {
            assert!(matches!(with(bad), Err(Error::BadRequest { field: "keep.bytes", .. })));
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let number = |signal| super::signal(&SignalRequest { signal, tree: false });
        let name = |name: &str| number(Signal::Name(name.into()));
        assert_eq!(name("TERM").unwrap(), 15);
        assert_eq!(name("SIGTERM").unwrap(), 15);
        assert_eq!(name("sigkill").unwrap(), 9);
        assert_eq!(name("SYS").unwrap(), 31);
        assert_eq!(name("CLD").unwrap(), 17);
        assert_eq!(number(Signal::Number(64)).unwrap(), 64);
        for bad in
            [name("TREM"), name(""), name("SIG"), number(Signal::Number(0)), number(Signal::Number(65))]
        {
            assert!(matches!(bad, Err(Error::BadRequest { field: "signal", .. })));
        }
        assert!(name("TREM").unwrap_err().to_string().contains("TREM"));
    }

    #[test]
    fn timeouts() {
        assert_eq!(timeout(None).unwrap(), None);
        assert_eq!(timeout(Some(0.0)).unwrap(), None);
        assert_eq!(timeout(Some(0.5)).unwrap(), Some(Duration::from_millis(500)));
        assert!(timeout(Some(-1.0)).is_err());
        assert!(timeout(Some(f64::NAN)).is_err());
    }

    #[test]
    fn ids() {
        assert!(check_id("a-b_1".into()).is_ok());
        for bad in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(check_id(bad.into()).is_err(), "{bad:?}");
        }
    }
}
