//! What goes to stdout (data) and to stderr (notes).

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::Global;
use crate::failure::Failure;

/// Where a command's words go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(global: Global) -> Self {
        Self { json: global.json, quiet: global.quiet }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// A result: as JSON where that was asked for, else as `text` has it.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let text =
            if self.json { serde_json::to_string_pretty(value).map_err(Failure::Json)? } else { text(value) };
        self.line(&text)
    }

    /// A line of data.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(Failure::Output)
    }

    /// A note for a person.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && !text.is_empty() {
            anstream::eprintln!("{text}");
        }
    }

    /// Something that a person should know, also one who wants it quiet.
    pub(crate) fn warning(&self, text: &str) {
        anstream::eprintln!("warning: {text}");
    }

    /// Asks for a yes, unless it was given.
    pub(crate) fn confirm(&self, question: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        let refused = || Failure::Unconfirmed { question: question.to_owned() };
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(refused());
        }
        anstream::eprint!("{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(Failure::Stdin)?;
        if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(refused()) }
    }
}

/// A table without lines, as it can also be cut by `awk`.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A size as a person reads it; at most three digits.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// How long ago an RFC 3339 time was; what cannot be read is shown as it is.
pub(crate) fn age(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else { return time.to_owned() };
    let seconds = now.duration_since(then).as_secs();
    match seconds {
        ..0 => time.to_owned(),
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// The first digits of a digest, as a person compares them.
pub(crate) fn short_digest(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10_188, "9.9 KiB"),
            (216_006_656, "206 MiB"),
            (1 << 30, "1.0 GiB"),
            (1023 << 20, "1.0 GiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn ages_are_rough_and_what_is_no_past_time_is_shown() {
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        assert_eq!(age("2026-01-01T23:59:30Z", now), "30 s");
        assert_eq!(age("2026-01-01T22:10:00Z", now), "1 h");
        assert_eq!(age("2025-12-01T00:00:00Z", now), "32 d");
        assert_eq!(age("2027-12-01T00:00:00Z", now), "2027-12-01T00:00:00Z");
        assert_eq!(age("soon", now), "soon");
    }

    #[test]
    fn tables_are_aligned_and_end_without_blanks() {
        let text = table(
            &["NAME", "STATE"],
            [vec!["a-long-name".into(), "running".into()], vec!["b".into(), "lost".into()]],
        );
        assert_eq!(text, "NAME         STATE\na-long-name  running\nb            lost");
    }

    #[test]
    fn digests_are_cut_and_other_texts_are_left() {
        assert_eq!(short_digest("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_digest("x"), "x");
    }
}
