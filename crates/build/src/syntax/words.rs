//! Cutting a statement's arguments into words, with their places.

use std::ops::Range;

use crate::source::Span;

/// A word and where it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word, quotes and escapes still in it where they mean something.
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// Words between blanks; quotes mean nothing here.
pub(crate) fn split_blanks(text: &str) -> Vec<(String, Range<usize>)> {
    let begin = |word: &str| word.as_ptr() as usize - text.as_ptr() as usize;
    text.split_whitespace().map(|word| (word.to_owned(), begin(word)..begin(word) + word.len())).collect()
}

/// Words between blanks that are neither quoted nor escaped. Quotes and escapes stay in the words.
pub(crate) fn split_quoted(text: &str, escape: char) -> Vec<(String, Range<usize>)> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if let Some(begin) = start.take() {
                words.push((text[begin..at].to_owned(), begin..at));
            }
            continue;
        }
        start.get_or_insert(at);
        match quote {
            // Nothing can be escaped between single quotes.
            _ if c == escape && quote != Some('\'') => {
                chars.next();
            }
            Some(open) if c == open => quote = None,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ => {}
        }
    }
    if let Some(begin) = start {
        words.push((text[begin..].to_owned(), begin..text.len()));
    }
    words
}

/// A flag as written: its name, its value with quotes and escapes removed, and the place of the whole.
pub(crate) struct RawFlag {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    pub(crate) range: Range<usize>,
}

/// The `--name[=value]` words that a text begins with, and where the rest begins. A lone `--` ends them.
pub(crate) fn split_flags(text: &str) -> (Vec<RawFlag>, usize) {
    let mut flags = Vec::new();
    for (word, range) in split_quoted(text, '\\') {
        if !word.starts_with("--") {
            return (flags, range.start);
        }
        if word == "--" {
            let rest = text[range.end..].trim_start();
            return (flags, text.len() - rest.len());
        }
        let word = unquote(&word[2..]);
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        flags.push(RawFlag { name, value, range });
    }
    (flags, text.len())
}

/// What follows the flags.
pub(crate) fn after_flags(text: &str) -> &str {
    &text[split_flags(text).1..]
}

/// A JSON array of strings, if the text is one. As in Docker, anything else is taken for plain words.
pub(crate) fn json_strings(text: &str) -> Option<Vec<String>> {
    if !text.trim_start().starts_with('[') {
        return None;
    }
    serde_json::from_str(text).ok()
}

/// Whether the text is a JSON array that holds something else than strings, which Docker refuses.
pub(crate) fn json_of_other_things(text: &str) -> bool {
    text.trim_start().starts_with('[')
        && serde_json::from_str::<Vec<serde_json::Value>>(text)
            .is_ok_and(|values| values.iter().any(|value| !value.is_string()))
}

fn unquote(word: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (_, '\\') => out.extend(chars.next()),
            (Some(open), _) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            _ => out.push(c),
        }
    }
    out
}
