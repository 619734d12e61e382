//! From text to statements: parser directives, comments, continuation lines, heredocs.
//!
//! A statement is one instruction's text with continuation lines joined. It remembers where each part came from,
//! so that whatever is found wrong with it later points into the file.

mod heredoc;
pub(crate) use heredoc::heredoc;
pub(crate) mod words;

use std::ops::Range;
use std::sync::Arc;

use crate::fault::{Fault, Problem};
use crate::source::{Source, Span};

pub use heredoc::Heredoc;
pub use words::Word;

/// Instructions whose text may hold heredocs.
const WITH_HEREDOCS: [&str; 3] = ["RUN", "COPY", "ADD"];

/// A Dockerfile cut into statements.
#[derive(Clone, Debug)]
pub struct Syntax {
    /// The file.
    pub source: Arc<Source>,
    /// The escape character: a backslash, or a backtick by `# escape=`.
    pub escape: char,
    /// Value of `# syntax=`, with its place.
    pub frontend: Option<Word>,
    /// Value of `# check=`, with its place.
    pub check: Option<Word>,
    /// Last lines of the statements that are continued over empty lines: where BuildKit sees these, too.
    pub empty_continuations: Vec<Span>,
    /// The instructions in order.
    pub statements: Vec<Statement>,
}

/// One instruction's text.
#[derive(Clone, Debug)]
pub struct Statement {
    /// The file it stands in.
    pub source: Arc<Source>,
    /// Its first word, in upper case.
    pub keyword: String,
    /// Its text with continuation lines joined and outer blanks removed, heredoc bodies not included.
    pub text: String,
    /// Line of its first character, from 1.
    pub line: u32,
    /// Heredocs, in order.
    pub heredocs: Vec<Heredoc>,
    /// The comment lines directly above it, without `#` and outer blanks.
    pub comment: Vec<String>,
    /// The file's escape character.
    pub escape: char,
    pieces: Vec<Piece>,
}

/// A part of a statement's text that is contiguous in the file as well.
#[derive(Clone, Copy, Debug)]
struct Piece {
    at: usize,
    from: usize,
}

impl Statement {
    /// A statement that does not stand in a file of its own: an `ONBUILD` trigger.
    pub fn detached(source: &Arc<Source>, escape: char) -> Result<Self, Box<Fault>> {
        let mut reader = Reader::new(source);
        reader.escape = escape;
        reader.directives_done = true;
        let mut statements = reader.statements()?;
        match statements.len() {
            1 => Ok(statements.remove(0)),
            _ => Err(Fault::new(source, Span::new(0, source.text.len()), Problem::Empty)),
        }
    }

    /// The text after the keyword, and where it begins in [`Statement::text`].
    pub fn arguments(&self) -> (&str, usize) {
        let after = &self.text[self.keyword_len()..];
        let rest = after.trim_start();
        (rest, self.text.len() - rest.len())
    }

    /// Where a part of [`Statement::text`] stands in the file.
    pub fn span(&self, range: Range<usize>) -> Span {
        let end = match range.end > range.start {
            true => self.locate(range.end - 1) + 1,
            false => self.locate(range.end),
        };
        Span::new(self.locate(range.start), end)
    }

    /// Where the keyword stands.
    pub fn keyword_span(&self) -> Span {
        self.span(0..self.keyword_len())
    }

    /// Where the statement stands.
    pub fn whole_span(&self) -> Span {
        self.span(0..self.text.len())
    }

    /// A problem with a part of the text.
    pub fn fault(&self, span: Span, problem: Problem) -> Box<Fault> {
        Fault::new(&self.source, span, problem)
    }

    /// The text on one line, as progress and failures show it.
    pub fn one_line(&self) -> String {
        let (arguments, _) = self.arguments();
        let words: Vec<&str> = arguments.split_whitespace().collect();
        format!("{} {}", self.keyword, words.join(" ")).trim_end().to_owned()
    }

    fn keyword_len(&self) -> usize {
        self.text.find(char::is_whitespace).unwrap_or(self.text.len())
    }

    fn locate(&self, at: usize) -> usize {
        let piece = self.pieces.iter().rev().find(|piece| piece.at <= at);
        piece.map_or(0, |piece| piece.from + (at - piece.at))
    }
}

/// Cuts a Dockerfile into statements.
pub fn parse(source: &Arc<Source>) -> Result<Syntax, Box<Fault>> {
    let mut reader = Reader::new(source);
    let statements = reader.statements()?;
    if statements.is_empty() {
        return Err(Fault::new(source, Span::new(0, source.text.len().min(1)), Problem::Empty));
    }
    let Reader { escape, frontend, check, empty_continuations, .. } = reader;
    Ok(Syntax { source: source.clone(), escape, frontend, check, empty_continuations, statements })
}

/// One line of the file: its bytes with and without the line's end.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: u32,
    start: usize,
    text: &'a str,
    raw: &'a str,
}

struct Reader<'a> {
    source: &'a Arc<Source>,
    at: usize,
    /// Lines read so far.
    lines: u32,
    escape: char,
    directives_done: bool,
    seen: Vec<String>,
    frontend: Option<Word>,
    check: Option<Word>,
    empty_continuations: Vec<Span>,
    comment: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a Arc<Source>) -> Self {
        let at = if source.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self {
            source,
            at,
            lines: 0,
            escape: '\\',
            directives_done: false,
            seen: Vec::new(),
            frontend: None,
            check: None,
            empty_continuations: Vec::new(),
            comment: Vec::new(),
        }
    }

    fn next_line(&mut self) -> Option<Line<'a>> {
        let rest = &self.source.text[self.at..];
        if rest.is_empty() {
            return None;
        }
        let raw = &rest[..rest.find('\n').map_or(rest.len(), |newline| newline + 1)];
        let text = raw.strip_suffix('\n').unwrap_or(raw);
        let text = text.strip_suffix('\r').unwrap_or(text);
        self.lines = self.lines.saturating_add(1);
        let line = Line { number: self.lines, start: self.at, text, raw };
        self.at += raw.len();
        Some(line)
    }

    fn statements(&mut self) -> Result<Vec<Statement>, Box<Fault>> {
        let mut statements = Vec::new();
        while let Some(line) = self.next_line() {
            let trimmed = line.text.trim_start();
            if let Some(comment) = trimmed.strip_prefix('#') {
                if !self.directive(line)? {
                    self.comment.push(comment.trim().to_owned());
                }
                continue;
            }
            self.directives_done = true;
            if trimmed.is_empty() {
                self.comment.clear();
                continue;
            }
            if let Some(statement) = self.statement(line)? {
                statements.push(statement);
            }
        }
        Ok(statements)
    }

    /// Takes a comment line for a parser directive, as long as only directives stood before it. Says whether it was
    /// one.
    fn directive(&mut self, line: Line<'_>) -> Result<bool, Box<Fault>> {
        if self.directives_done {
            return Ok(false);
        }
        let Some((name, value)) = directive(line.text) else {
            self.directives_done = true;
            return Ok(false);
        };
        let from = line.start + (value.as_ptr() as usize - line.text.as_ptr() as usize);
        let span = Span::new(from, from + value.len());
        if self.seen.contains(&name) {
            return Err(Fault::new(self.source, span, Problem::DirectiveRepeated { name }));
        }
        match (name.as_str(), value) {
            ("escape", "\\") => self.escape = '\\',
            ("escape", "`") => self.escape = '`',
            ("escape", _) => {
                return Err(Fault::new(self.source, span, Problem::BadEscape { value: value.to_owned() }));
            }
            ("syntax", _) => self.frontend = Some(Word { text: value.to_owned(), span }),
            _ => self.check = Some(Word { text: value.to_owned(), span }),
        }
        self.seen.push(name);
        Ok(true)
    }

    fn statement(&mut self, first: Line<'a>) -> Result<Option<Statement>, Box<Fault>> {
        let indent = first.text.len() - first.text.trim_start().len();
        let mut text = String::new();
        let mut pieces = vec![Piece { at: 0, from: first.start + indent }];
        let (part, mut continues) = continuation(&first.text[indent..], self.escape);
        text.push_str(part);
        let (mut over_empty, mut last) = (false, first);
        while continues {
            let Some(line) = self.next_line() else { break };
            last = line;
            let trimmed = line.text.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                over_empty = true;
                continue;
            }
            let (part, more) = continuation(line.text, self.escape);
            pieces.push(Piece { at: text.len(), from: line.start });
            text.push_str(part);
            continues = more;
        }
        if over_empty {
            self.empty_continuations.push(Span::new(last.start, last.start + last.text.len()));
        }
        text.truncate(text.trim_end().len());
        let Some(keyword) = text.split_whitespace().next().map(str::to_uppercase) else { return Ok(None) };
        let line = first.number;
        let (source, escape) = (self.source.clone(), self.escape);
        let (comment, heredocs) = (std::mem::take(&mut self.comment), Vec::new());
        let mut statement = Statement { source, keyword, text, line, heredocs, comment, escape, pieces };
        self.heredocs(&mut statement)?;
        Ok(Some(statement))
    }

    fn heredocs(&mut self, statement: &mut Statement) -> Result<(), Box<Fault>> {
        for (mut heredoc, range) in heredoc::announced(statement, &WITH_HEREDOCS) {
            loop {
                let Some(line) = self.next_line() else {
                    let problem = Problem::HeredocUnterminated { name: heredoc.name };
                    return Err(statement.fault(statement.span(range), problem));
                };
                let end = if heredoc.chomp { line.text.trim_start_matches('\t') } else { line.text };
                if end == heredoc.name {
                    break;
                }
                heredoc.content.push_str(line.raw);
            }
            statement.heredocs.push(heredoc);
        }
        Ok(())
    }
}

/// The name and value of `# name = value`, if the comment has that form and a known name.
fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim().to_lowercase(), value.trim());
    let known = matches!(name.as_str(), "syntax" | "escape" | "check");
    (known && !value.is_empty()).then_some((name, value))
}

/// A line without its continuation mark, and whether it had one.
fn continuation(line: &str, escape: char) -> (&str, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        // Two escape characters are one literal one, not a continuation.
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}
