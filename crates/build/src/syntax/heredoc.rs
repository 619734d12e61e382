//! Heredocs: which ones a statement announces, and what was in them.

use std::ops::Range;

use super::{Statement, words};

/// `<<NAME` of a statement, with the lines up to `NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it, quotes removed.
    pub name: String,
    /// Whether variables are expanded in it: true unless the word was quoted.
    pub expand: bool,
    /// `<<-`: leading tabs are dropped from every line.
    pub chomp: bool,
    /// The lines as they stand in the file.
    pub content: String,
}

impl Heredoc {
    /// The content with leading tabs dropped where `<<-` asks for it.
    pub fn body(&self) -> String {
        if !self.chomp {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// The heredocs that a statement announces, with the places of their words in its text.
pub(super) fn announced(statement: &Statement, keywords: &[&str]) -> Vec<(Heredoc, Range<usize>)> {
    let (mut arguments, mut at) = statement.arguments();
    let mut keyword = statement.keyword.clone();
    if keyword == "ONBUILD" {
        let inner = arguments.split_whitespace().next().unwrap_or_default();
        let rest = arguments[inner.len()..].trim_start();
        at += arguments.len() - rest.len();
        (keyword, arguments) = (inner.to_uppercase(), rest);
    }
    if !keywords.contains(&keyword.as_str()) || words::json_strings(words::after_flags(arguments)).is_some() {
        return Vec::new();
    }
    let found = words::split_quoted(arguments, '\\');
    found
        .into_iter()
        .filter_map(|(word, range)| Some((heredoc(&word)?, range.start + at..range.end + at)))
        .collect()
}

/// A word taken for a heredoc's announcement: `[fd]<<[-]NAME`.
pub(crate) fn heredoc(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name: String = rest.chars().filter(|c| !matches!(c, '\'' | '"' | '\\')).collect();
    let expand = name == rest;
    (!name.is_empty()).then(|| Heredoc { name, expand, chomp, content: String::new() })
}
