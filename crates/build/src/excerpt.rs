//! A few lines of a Dockerfile with a marker: what a message shows of the place that it is about.

use std::fmt;

use berth_types::image::DockerfileFault;
use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    SourceCode, SourceSpan, SpanContents,
};

use crate::source::{Source, Span};

/// Most lines shown of one instruction; the lines before and after it come on top.
const LINES: usize = 10;
/// Most characters shown of a line; what is cut off is marked.
const COLUMNS: usize = 160;
/// Characters shown before the marker where a line is cut there.
const BEFORE: usize = 60;
const CUT: char = '…';

/// The lines around a place, its label, and where that is.
#[derive(Debug)]
pub(crate) struct Excerpt {
    file: String,
    /// Line of the place, from 1.
    line: usize,
    /// Column of the place, from 1, in characters.
    column: usize,
    /// The lines, the first of them `first`, counted from 0.
    text: String,
    first: usize,
    /// Where the marker is in the text.
    marked: Span,
    label: String,
}

impl Excerpt {
    /// The lines around a place of a file. For a trigger, those around the `FROM` that brought it.
    pub(crate) fn new(source: &Source, span: Span, label: &str) -> Self {
        let trigger = source.brought_by.is_some().then(|| source.text.lines().next().unwrap_or_default());
        let label = match trigger {
            Some(trigger) => format!("brings `ONBUILD {trigger}`: {label}"),
            None => label.to_owned(),
        };
        let (file, span) = source.in_file(span);
        let ends = file.text.len();
        let (start, end) = (span.start.min(ends), span.end.min(ends));
        let from = file.text[..floor(&file.text, start)].rfind('\n').map_or(0, |at| at + 1);
        let line = file.text[..from].matches('\n').count();
        let spanned =
            file.text[from..floor(&file.text, end.max(from))].trim_end_matches('\n').matches('\n').count();
        let (first, last) = (line.saturating_sub(1), line + spanned.min(LINES) + 1);
        let mut excerpt = Self {
            file: file.name.clone(),
            line: line + 1,
            column: 1,
            text: String::new(),
            first,
            marked: Span::default(),
            label,
        };
        for (number, text) in file.text.lines().enumerate().skip(first).take(last + 1 - first) {
            match number == line {
                true => excerpt.push_marked(text, start - from, end - from),
                false => excerpt.push(text),
            }
        }
        if excerpt.text.is_empty() {
            excerpt.text.push('\n');
        }
        excerpt
    }

    fn push(&mut self, line: &str) {
        self.text.extend(line.chars().take(COLUMNS).map(shown));
        if line.chars().nth(COLUMNS).is_some() {
            self.text.push(CUT);
        }
        self.text.push('\n');
    }

    /// The line of the place, which begins and ends at these bytes of it, or further down.
    fn push_marked(&mut self, line: &str, start: usize, end: usize) {
        let marked = line.char_indices().filter(|(at, _)| (start..end).contains(at)).count().max(1);
        let before = line.char_indices().filter(|(at, _)| *at < start).count();
        self.column = before + 1;
        let all = line.chars().count();
        let skipped = if all > COLUMNS { before.saturating_sub(BEFORE) } else { 0 };
        if skipped > 0 {
            self.text.push(CUT);
        }
        for (at, c) in line.chars().enumerate().skip(skipped).take(COLUMNS) {
            if at == before {
                self.marked.start = self.text.len();
            }
            self.text.push(shown(c));
            if (before..before + marked).contains(&at) {
                self.marked.end = self.text.len();
            }
        }
        if before >= all {
            // Behind the line's end, as where something is missing.
            self.marked = Span::new(self.text.len(), self.text.len());
        }
        if all > skipped + COLUMNS {
            self.text.push(CUT);
        }
        self.text.push('\n');
    }

    pub(crate) fn labels(&self) -> LabeledSpan {
        let length = self.marked.end.saturating_sub(self.marked.start);
        LabeledSpan::new(Some(self.label.clone()), self.marked.start, length)
    }

    /// The same for clients.
    pub(crate) fn to_api(&self, hint: Option<String>) -> DockerfileFault {
        let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
        DockerfileFault {
            file: self.file.clone(),
            line: number(self.line),
            column: number(self.column),
            excerpt: self.draw(),
            label: self.label.clone(),
            hint,
        }
    }

    /// The lines with the marker, as text.
    pub(crate) fn draw(&self) -> String {
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
        let mut drawn = String::new();
        // Writing to a String cannot fail.
        let _ = handler.render_report(&mut drawn, &Alone(self));
        // Before the drawing stands the message, which is none here.
        let lines = drawn.lines().skip_while(|line| !line.trim_start().starts_with('╭'));
        lines.map(str::trim_end).collect::<Vec<_>>().join("\n")
    }
}

/// What comes before a byte, cut where a character begins.
fn floor(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A character as terminals may have it.
fn shown(c: char) -> char {
    if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }
}

impl SourceCode for Excerpt {
    /// All of it, for there is but one place; with no lines around it, only where that is.
    fn read_span<'a>(
        &'a self,
        _: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (line, column) = match (before, after) {
            (0, 0) => (self.line - 1, self.column - 1),
            _ => (self.first, 0),
        };
        let (data, whole) = (self.text.as_bytes(), (0, self.text.len()).into());
        let lines = self.text.lines().count();
        Ok(Box::new(MietteSpanContents::new_named(self.file.clone(), data, whole, line, column, lines)))
    }
}

/// An excerpt without a message.
#[derive(Debug)]
struct Alone<'a>(&'a Excerpt);

impl fmt::Display for Alone<'_> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl std::error::Error for Alone<'_> {}

impl Diagnostic for Alone<'_> {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.0)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(self.0.labels())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn drawn(text: &str, marked: &str) -> String {
        let start = text.find(marked).unwrap();
        Excerpt::new(&Source::new("Dockerfile", text), Span::new(start, start + marked.len()), "here").draw()
    }

    #[test]
    fn a_place_is_shown_with_its_line_and_those_around_it() {
        insta::assert_snapshot!(drawn("FROM a\nRUN b\nCOPY c d\nRUN e\nRUN f\n", "c"), @r"
          ╭─[Dockerfile:3:6]
        2 │ RUN b
        3 │ COPY c d
          ·      ┬
          ·      ╰── here
        4 │ RUN e
          ╰────
        ");
        insta::assert_snapshot!(drawn("FROM a\nRUN b && \\\n\tc\nRUN e\nRUN f", "RUN b && \\\n\tc"), @r"
          ╭─[Dockerfile:2:1]
        1 │ FROM a
        2 │ RUN b && \
          · ─────┬────
          ·      ╰── here
        3 │     c
        4 │ RUN e
          ╰────
        ");
        insta::assert_snapshot!(drawn("FROM é ü", "ü"), @r"
          ╭─[Dockerfile:1:8]
        1 │ FROM é ü
          ·        ┬
          ·        ╰── here
          ╰────
        ");
    }

    #[test]
    fn what_terminals_obey_is_not_drawn_and_long_lines_are_cut() {
        let long =
            format!("FROM a\nRUN {} there {}\nRUN {}", "x ".repeat(400), "y ".repeat(400), "z".repeat(999));
        let text = drawn(&long, "there");
        assert!(
            text.contains("there") && text.lines().all(|line| line.chars().count() < COLUMNS + 20),
            "{text}"
        );
        assert!(!drawn("FROM \u{1b}[31ma", "a").contains('\u{1b}'));
        let many = "RUN a \\\n".repeat(500);
        assert!(drawn(&many, many.trim_end()).lines().count() < LINES + 8);
    }

    #[test]
    fn places_at_the_end_of_a_file_or_of_none_are_shown() {
        for text in ["", "\n", "FROM", "FROM\n", "é"] {
            for (start, end) in [(0, 0), (0, 1), (4, 4), (5, 5), (1, 1), (90, 99)] {
                let shown = Excerpt::new(&Source::new("Dockerfile", text), Span::new(start, end), "here");
                assert!(shown.draw().contains("here"), "{text:?} {start} {end}: {}", shown.draw());
            }
        }
    }

    #[test]
    fn triggers_are_shown_by_the_from_that_brought_them() {
        let file = Arc::new(Source::new("Dockerfile", "FROM a\nFROM b"));
        let trigger =
            Source { brought_by: Some((file, Span::new(7, 13))), ..Source::new("trigger", "RUNN c") };
        insta::assert_snapshot!(Excerpt::new(&trigger, Span::new(0, 4), "no such instruction").draw(), @r"
          ╭─[Dockerfile:2:1]
        1 │ FROM a
        2 │ FROM b
          · ───┬──
          ·    ╰── brings `ONBUILD RUNN c`: no such instruction
          ╰────
        ");
    }
}
