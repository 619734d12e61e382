//! Expansion of variables against a model: words are made together with what they come to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use berth_build::expand::{Rules, expand, expand_noting};
use proptest::prelude::*;

/// A part of a word.
#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Escaped(char),
    Single(String),
    Double(Vec<Part>),
    Plain(&'static str),
    Braced(&'static str),
    Form(&'static str, &'static str, Vec<Part>),
    Trim(&'static str, &'static str, String),
    Replace(&'static str, bool, String, String),
}

const NAMES: [&str; 4] = ["SET", "EMPTY", "UNSET", "PATHS"];

fn value(name: &str) -> Option<String> {
    match name {
        "SET" => Some("value".to_owned()),
        "EMPTY" => Some(String::new()),
        "PATHS" => Some("/a/b/a.tar.gz".to_owned()),
        _ => None,
    }
}

fn leaf() -> impl Strategy<Value = Part> {
    let name = || prop::sample::select(NAMES.to_vec());
    prop_oneof![
        "[a-c/ .]{1,4}".prop_map(Part::Text),
        prop::sample::select(vec!['$', '"', '\'', '\\', 'x']).prop_map(Part::Escaped),
        "[a-c$\" ]{0,4}".prop_map(Part::Single),
        name().prop_map(Part::Plain),
        name().prop_map(Part::Braced),
        (name(), prop::sample::select(vec!["#", "##", "%", "%%"]), "[a/.]{1,2}")
            .prop_map(|(name, form, text)| Part::Trim(name, form, text)),
        (name(), any::<bool>(), "[a.]{1,2}", "[xy]{0,2}")
            .prop_map(|(name, all, from, to)| Part::Replace(name, all, from, to)),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    leaf().prop_recursive(3, 24, 4, |inner| {
        let forms = prop::sample::select(vec![":-", "-", ":+", "+"]);
        let words = prop::collection::vec(inner.clone(), 0..3);
        prop_oneof![
            prop::collection::vec(inner, 0..3).prop_map(Part::Double),
            (prop::sample::select(NAMES.to_vec()), forms, words)
                .prop_map(|(name, form, word)| Part::Form(name, form, word)),
        ]
    })
}

/// How parts are written. Within double quotes only what means the same there stands.
fn written(parts: &[Part], quoted: bool) -> String {
    parts.iter().map(|part| write(part, quoted)).collect()
}

fn write(part: &Part, quoted: bool) -> String {
    match part {
        Part::Text(text) => text.clone(),
        // Quotes and plain letters are not escaped there.
        Part::Escaped('x' | '\'') if quoted => String::new(),
        Part::Escaped(c) => format!("\\{c}"),
        Part::Single(_) | Part::Double(_) if quoted => String::new(),
        Part::Single(text) => format!("'{text}'"),
        Part::Double(parts) => format!("\"{}\"", written(parts, true)),
        // What follows must not become part of the name.
        Part::Plain(name) => format!("${name}."),
        Part::Braced(name) => format!("${{{name}}}"),
        Part::Form(name, form, word) => format!("${{{name}{form}{}}}", written(word, false)),
        Part::Trim(name, form, text) => format!("${{{name}{form}{text}}}"),
        Part::Replace(name, all, from, to) => {
            format!("${{{name}{}{from}/{to}}}", if *all { "//" } else { "/" })
        }
    }
}

fn meant(parts: &[Part], quoted: bool) -> String {
    parts.iter().map(|part| mean(part, quoted)).collect()
}

fn mean(part: &Part, quoted: bool) -> String {
    match part {
        Part::Text(text) => text.clone(),
        Part::Escaped('x' | '\'') if quoted => String::new(),
        Part::Escaped(c) => c.to_string(),
        Part::Single(_) | Part::Double(_) if quoted => String::new(),
        Part::Single(text) => text.clone(),
        Part::Double(parts) => meant(parts, true),
        Part::Plain(name) => format!("{}.", value(name).unwrap_or_default()),
        Part::Braced(name) => value(name).unwrap_or_default(),
        Part::Form(name, form, word) => {
            let value = value(name).filter(|value| !form.starts_with(':') || !value.is_empty());
            match (value, form.ends_with('+')) {
                (Some(_), true) | (None, false) => meant(word, false),
                (Some(value), false) => value,
                (None, true) => String::new(),
            }
        }
        // Without wildcards the shortest and the longest match are the same.
        Part::Trim(name, form, text) => {
            let value = value(name).unwrap_or_default();
            let trimmed =
                if form.starts_with('#') { value.strip_prefix(text) } else { value.strip_suffix(text) };
            trimmed.unwrap_or(&value).to_owned()
        }
        Part::Replace(name, all, from, to) => {
            let value = value(name).unwrap_or_default();
            if *all { value.replace(from, to) } else { value.replacen(from, to, 1) }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn words_come_to_what_the_model_says(parts in prop::collection::vec(part(), 0..5)) {
        let word = written(&parts, false);
        let expanded = expand(&word, Rules { escape: '\\', quotes: true }, &value);
        prop_assert_eq!(expanded, Ok(meant(&parts, false)), "{}", word);
    }

    #[test]
    fn no_word_makes_it_panic(word in "[a$\\{\\}\"'\\\\`:+?#%/*-]{0,24}", escape in prop::sample::select(vec!['\\', '`']), quotes: bool) {
        let _ = expand(&word, Rules { escape, quotes }, &value);
    }
}

#[test]
fn only_values_that_are_used_are_noted_as_unset() {
    let table: [(&str, &[&str]); 8] = [
        ("$SET$UNSET", &["UNSET"]),
        ("${UNSET}", &["UNSET"]),
        ("${UNSET:-a}", &[]),
        ("${UNSET-a}${UNSET+a}${UNSET:+a}", &[]),
        ("${UNSET%a}", &["UNSET"]),
        ("${SET:-$UNSET}", &["UNSET"]),
        ("'$UNSET' \\$UNSET", &[]),
        ("$1 $? $EMPTY", &[]),
    ];
    for (word, wanted) in table {
        let mut unset = Vec::new();
        expand_noting(word, Rules { escape: '\\', quotes: true }, &value, &mut unset).unwrap();
        assert_eq!(unset, wanted, "{word}");
    }
}

#[test]
fn forms_within_forms_have_an_end() {
    let rules = Rules { escape: '\\', quotes: true };
    let nested = |levels: usize| format!("{}x{}", "${A:-".repeat(levels), "}".repeat(levels));
    assert_eq!(expand(&nested(60), rules, &|_| None).as_deref(), Ok("x"));
    for levels in [100, 100_000] {
        let error = expand(&nested(levels), rules, &|_| None).unwrap_err();
        assert_eq!(error.to_string(), "`${…}` within `${…}` goes deeper than 64 levels");
        assert!(expand(&format!("\"{}\"", nested(levels)), rules, &|_| None).is_err());
    }
}

#[test]
fn values_have_an_end_however_they_come_about() {
    let rules = Rules { escape: '\\', quotes: true };
    let lookup = |name: &str| Some(if name == "LONG" { "a".repeat(1 << 20) } else { "a".repeat(4 << 10) });
    assert_eq!(expand("$LONG", rules, &lookup).unwrap().len(), 1 << 20);
    for word in
        ["$LONG$LONG", "\"$LONG$LONG\"", "${X:+$LONG$LONG}", "${X//a/$X}", "${LONG#a}", "${LONG//a/b}"]
    {
        let error = expand(word, rules, &lookup).unwrap_err();
        assert!(error.to_string().starts_with("the value is longer than"), "{word}: {error}");
    }
    assert_eq!(expand("${X%a}", rules, &lookup).unwrap().len(), (4 << 10) - 1);
}
