//! Reads the verifier's reward by Harbor's rules.
//!
//! The directory comes out of a sandbox, so nothing in it is trusted: a reward file that is a symlink would make this
//! process read a file of the host, and is refused.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde_json::{Number, Value};

use crate::verdict::{Exception, Failure, Rewards};

/// Longest reward file that is read.
const MAX_REWARD: u64 = 1 << 20;

/// The rewards in a downloaded verifier directory: `reward.json` before `reward.txt`.
///
/// `note` is added when there is none: what is known about why.
pub(crate) fn read(dir: &Path, note: Option<&str>) -> Result<Rewards, Exception> {
    let (json, text) = (dir.join("reward.json"), dir.join("reward.txt"));
    if let Some(content) = content(&json)? {
        return parse_json(&json, &content);
    }
    if let Some(content) = content(&text)? {
        return parse_text(&text, &content);
    }
    let mut message = format!("no reward file found at {} or {}", text.display(), json.display());
    if let Some(note) = note {
        message.push_str(": ");
        message.push_str(note);
    }
    Err(Exception::new(Failure::RewardFileNotFound, message))
}

fn content(path: &Path) -> Result<Option<Vec<u8>>, Exception> {
    let unreadable = |source: &io::Error| {
        let doing = format!("cannot read {}", path.display());
        Exception::caused(Failure::VerifierOutputParse, doing, source)
    };
    let facts = match fs::symlink_metadata(path) {
        Ok(facts) => facts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    let bad = |what: &str| parse_error(path, what);
    if !facts.is_file() {
        return Err(bad("is not a regular file"));
    }
    if facts.len() == 0 {
        let message = format!("reward file is empty at {}", path.display());
        return Err(Exception::new(Failure::RewardFileEmpty, message));
    }
    if facts.len() > MAX_REWARD {
        return Err(bad("is longer than 1 MiB"));
    }
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_REWARD).read_to_end(&mut bytes));
    read.map_err(|error| unreadable(&error))?;
    Ok(Some(bytes))
}

fn parse_text(path: &Path, content: &[u8]) -> Result<Rewards, Exception> {
    let text = std::str::from_utf8(content).map_err(|_| parse_error(path, "is not UTF-8"))?;
    let number = python_float(text).ok_or_else(|| parse_error(path, "holds no number"))?;
    let number = Number::from_f64(number).ok_or_else(|| parse_error(path, "holds a non-finite number"))?;
    Ok(Rewards::from([("reward".to_owned(), number)]))
}

fn parse_json(path: &Path, content: &[u8]) -> Result<Rewards, Exception> {
    let value: Value = serde_json::from_slice(content).map_err(|source| {
        let doing = format!("failed to parse rewards from {}", path.display());
        Exception::caused(Failure::VerifierOutputParse, doing, &source)
    })?;
    let Value::Object(entries) = value else {
        return Err(parse_error(path, "is not an object of numbers"));
    };
    let mut rewards = Rewards::new();
    for (name, value) in entries {
        let number = match value {
            Value::Number(number) => number,
            // Python counts booleans as numbers, and Harbor stores them as floats.
            Value::Bool(truth) => Number::from_f64(f64::from(u8::from(truth))).unwrap_or_else(|| 0.into()),
            other => return Err(parse_error(path, &format!("holds a non-numeric reward {name}: {other}"))),
        };
        rewards.insert(name, number);
    }
    Ok(rewards)
}

/// What Python's `float()` takes: underscores between digits are fine, surrounding blanks too.
fn python_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let bytes = text.as_bytes();
    let underscores_are_inside =
        bytes.iter().enumerate().filter(|(_, byte)| **byte == b'_').all(|(at, _)| {
            is_digit(at.checked_sub(1).and_then(|before| bytes.get(before))) && is_digit(bytes.get(at + 1))
        });
    if !underscores_are_inside {
        return None;
    }
    text.replace('_', "").parse().ok()
}

fn parse_error(path: &Path, what: &str) -> Exception {
    Exception::new(Failure::VerifierOutputParse, format!("reward file {} {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(files: &[(&str, &[u8])]) -> String {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        match read(dir.path(), None) {
            Ok(rewards) => serde_json::to_string(&rewards).unwrap(),
            Err(exception) => exception.failure.harbor_name().to_owned(),
        }
    }

    #[test]
    fn rewards_are_read_as_harbor_reads_them() {
        type Case<'a> = (&'a [(&'a str, &'a [u8])], &'a str);
        let table: &[Case] = &[
            (&[("reward.txt", b"1\n")], r#"{"reward":1.0}"#),
            (&[("reward.txt", b"  0.5 ")], r#"{"reward":0.5}"#),
            (&[("reward.txt", b"-1e-3")], r#"{"reward":-0.001}"#),
            (&[("reward.txt", b"1_0")], r#"{"reward":10.0}"#),
            (&[("reward.txt", b".5")], r#"{"reward":0.5}"#),
            (&[("reward.txt", b"_1")], "VerifierOutputParseError"),
            (&[("reward.txt", b"1__0")], "VerifierOutputParseError"),
            (&[("reward.txt", b"")], "RewardFileEmptyError"),
            (&[("reward.txt", b"\n")], "VerifierOutputParseError"),
            (&[("reward.txt", b"yes")], "VerifierOutputParseError"),
            (&[("reward.txt", b"nan")], "VerifierOutputParseError"),
            (&[("reward.txt", b"inf")], "VerifierOutputParseError"),
            (&[("reward.txt", b"1e309")], "VerifierOutputParseError"),
            (&[("reward.txt", b"\xff1")], "VerifierOutputParseError"),
            (&[("reward.json", br#"{"a": 1, "b": 0.5}"#)], r#"{"a":1,"b":0.5}"#),
            (&[("reward.json", br#"{"a": true}"#)], r#"{"a":1.0}"#),
            (&[("reward.json", b"{}")], "{}"),
            (&[("reward.json", b"")], "RewardFileEmptyError"),
            (&[("reward.json", b"0.5")], "VerifierOutputParseError"),
            (&[("reward.json", br#"{"a": "1"}"#)], "VerifierOutputParseError"),
            (&[("reward.json", br#"{"a": null}"#)], "VerifierOutputParseError"),
            (&[("reward.json", br#"{"a": NaN}"#)], "VerifierOutputParseError"),
            (&[("reward.json", br#"{"a": 1e309}"#)], "VerifierOutputParseError"),
            (&[("reward.json", b"{")], "VerifierOutputParseError"),
            (&[("reward.json", br#"{"a": 1}"#), ("reward.txt", b"0")], r#"{"a":1}"#),
            (&[("reward.json", b""), ("reward.txt", b"1")], "RewardFileEmptyError"),
            (&[], "RewardFileNotFoundError"),
        ];
        for (files, expected) in table {
            assert_eq!(outcome(files), *expected, "{files:?}");
        }
    }

    #[test]
    fn a_reward_file_that_points_at_the_host_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let host_file = dir.path().join("host");
        fs::write(&host_file, "1").unwrap();
        let verifier = dir.path().join("verifier");
        fs::create_dir(&verifier).unwrap();
        std::os::unix::fs::symlink(&host_file, verifier.join("reward.txt")).unwrap();
        let exception = read(&verifier, None).unwrap_err();
        assert_eq!(exception.failure, Failure::VerifierOutputParse);
    }

    #[test]
    fn a_missing_reward_says_why_where_that_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let exception = read(dir.path(), Some("the test script did not start")).unwrap_err();
        assert!(exception.message.ends_with(": the test script did not start"), "{}", exception.message);
    }
}
