//! What every benchmark gives: rows of one form, as a table, as JSON and as verdicts.
//!
//! A row is one figure of Berth's, alone or beside a peer's in the same run. What a peer took by itself is a row too,
//! its name behind the figure's (`sandbox/podman-runc`), so that nothing is told as a ratio alone. A peer that could not
//! be measured is a row with a note and without numbers.

use std::fmt;
use std::fmt::Write as _;

use serde::{Serialize, Serializer};

/// One line of the result; the form of the JSON, where all keys but `note` are always there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// What was measured.
    pub(super) figure: String,
    /// Of `p50` to `p99` and of `peer_p50`.
    pub(super) unit: &'static str,
    /// How many values.
    pub(super) n: usize,
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
    pub(super) p99: Option<f64>,
    /// How many tries did not do their work; they are not among the values.
    pub(super) failures: usize,
    /// What it is compared with.
    pub(super) peer: Option<String>,
    pub(super) peer_p50: Option<f64>,
    /// `p50` ÷ `peer_p50`.
    pub(super) ratio: Option<f64>,
    pub(super) target: Option<Target>,
    /// Nothing where there is no target, or nothing was measured.
    pub(super) met: Option<bool>,
    /// How many of them a second; in the table alone.
    #[serde(skip)]
    pub(super) per_second: Option<f64>,
    /// What a reader must know of it: why it was not measured, what the peer does less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) note: Option<String>,
}

/// What is asked of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Target {
    /// Of the ratio, or of the middle value itself.
    pub(super) of: Of,
    pub(super) bound: Bound,
}

/// What a target is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Ratio,
    Value,
}

/// Where it must lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bound {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
}

impl Target {
    pub(super) fn ratio(bound: Bound) -> Option<Self> {
        Some(Self { of: Of::Ratio, bound })
    }

    pub(super) fn value(bound: Bound) -> Option<Self> {
        Some(Self { of: Of::Value, bound })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.of {
            Of::Ratio => "ratio",
            Of::Value => "p50",
        };
        match self.bound {
            Bound::AtMost(most) => write!(f, "{of} ≤ {most}"),
            Bound::Below(limit) => write!(f, "{of} < {limit}"),
            Bound::AtLeast(least) => write!(f, "{of} ≥ {least}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::Below(limit) => value < limit,
            Self::AtLeast(least) => value >= least,
        }
    }
}

/// Values of one kind, and what failed on the way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples {
    pub(super) values: Vec<f64>,
    pub(super) failures: usize,
    /// What the first failure said.
    pub(super) error: Option<String>,
}

impl Samples {
    /// Of values alone.
    pub(super) fn of(values: Vec<f64>) -> Self {
        Self { values, ..Self::default() }
    }

    /// Adds a value, or a failure.
    pub(super) fn add(&mut self, done: anyhow::Result<f64>) {
        match done {
            Ok(value) => self.values.push(value),
            Err(error) => self.fail(&error),
        }
    }

    /// Adds a failure.
    pub(super) fn fail(&mut self, error: &anyhow::Error) {
        self.failures += 1;
        self.error.get_or_insert_with(|| format!("{error:#}"));
    }

    /// The smallest value that so many per cent of all do not exceed; nothing of nothing.
    pub(super) fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied()
    }

    pub(super) fn p50(&self) -> Option<f64> {
        self.percentile(50)
    }

    /// A row of these, compared with nothing.
    pub(super) fn row(&self, figure: impl Into<String>, unit: &'static str) -> Row {
        let note = self.error.as_ref().map(|error| format!("first failure: {error}"));
        Row {
            figure: figure.into(),
            unit,
            n: self.values.len(),
            p50: self.p50(),
            p95: self.percentile(95),
            p99: self.percentile(99),
            failures: self.failures,
            peer: None,
            peer_p50: None,
            ratio: None,
            target: None,
            met: None,
            per_second: None,
            note,
        }
    }

    /// A row of milliseconds that followed each other, and how many a second that makes.
    #[expect(clippy::cast_precision_loss, reason = "never so many values")]
    pub(super) fn in_turn(&self, figure: impl Into<String>) -> Row {
        let sum: f64 = self.values.iter().sum();
        let per_second = (sum > 0.0).then(|| self.values.len() as f64 * 1000.0 / sum);
        Row { per_second, ..self.row(figure, "ms") }
    }
}

impl Row {
    /// Nothing was measured, and why.
    pub(super) fn not_measured(
        figure: impl Into<String>,
        unit: &'static str,
        why: impl fmt::Display,
    ) -> Self {
        Self { note: Some(format!("not measured: {why}")), ..Samples::default().row(figure, unit) }
    }

    /// The same beside a peer, whose middle value may be unknown.
    pub(super) fn beside(mut self, peer: impl Into<String>, peer_p50: Option<f64>) -> Self {
        self.peer = Some(peer.into());
        self.peer_p50 = peer_p50;
        self.ratio = self.p50.zip(peer_p50).map(|(own, peer)| own / peer);
        self
    }

    /// Says what is asked for, and whether that was reached. With failures nothing is.
    pub(super) fn asked(mut self, target: Option<Target>) -> Self {
        self.target = target;
        let value = target.and_then(|target| match target.of {
            Of::Ratio => self.ratio,
            Of::Value => self.p50,
        });
        let holds = target.zip(value).map(|(target, value)| target.bound.holds(value));
        self.met = holds.map(|holds| holds && self.failures == 0);
        self
    }

    /// Adds to what a reader must know.
    pub(super) fn noted(mut self, note: impl fmt::Display) -> Self {
        self.note = Some(match self.note.take() {
            Some(before) => format!("{before}; {note}"),
            None => note.to_string(),
        });
        self
    }
}

/// A table for people and for `SPECIFICATION.md`, notes below it.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| figure | unit | n | p50 | p95 | p99 | per second | failures | vs | its p50 | ratio | target | met |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut notes: Vec<&str> = Vec::new();
    for row in rows {
        let mark =
            row.note.as_deref().map_or(String::new(), |note| format!(" [{}]", number_of(&mut notes, note)));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {}{mark} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.figure,
            row.unit,
            row.n,
            shown(row.p50),
            shown(row.p95),
            shown(row.p99),
            shown(row.per_second),
            row.failures,
            row.peer.as_deref().unwrap_or("–"),
            shown(row.peer_p50),
            row.ratio.map_or("–".to_owned(), |ratio| format!("{}×", significant(ratio))),
            row.target.map_or("–".to_owned(), |target| target.to_string()),
            met(row.met),
        );
    }
    for (index, note) in (1..).zip(notes) {
        let _ = write!(text, "\n[{index}] {note}");
    }
    text + "\n"
}

/// The same note is told once.
fn number_of<'a>(notes: &mut Vec<&'a str>, note: &'a str) -> usize {
    match notes.iter().position(|known| *known == note) {
        Some(index) => index + 1,
        None => {
            notes.push(note);
            notes.len()
        }
    }
}

fn met(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "–",
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), significant)
}

/// Three digits that count, or all before the point.
fn significant(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// One line for each thing that was asked for.
pub(super) fn verdicts(rows: &[Row]) -> Vec<String> {
    let asked = rows.iter().filter_map(|row| row.target.map(|target| (row, target)));
    asked
        .map(|(row, target)| {
            let word = match row.met {
                Some(true) => "reached",
                Some(false) => "MISSED",
                None => "NOT MEASURED",
            };
            let peer = row.peer.as_ref().map_or(String::new(), |peer| format!(" vs {peer}"));
            let found = match target.of {
                Of::Ratio => row.ratio.map(|ratio| format!("{}×", significant(ratio))),
                Of::Value => row.p50.map(|p50| format!("{} {}", significant(p50), row.unit)),
            };
            let found = found.map_or(String::new(), |found| format!(": {found}"));
            let failed = match row.failures {
                0 => String::new(),
                failures => format!(", {failures} failed"),
            };
            format!("{word}: {}{peer}{found}{failed}, asked for {target}", row.figure)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let berth = Samples::of((1..=100).map(f64::from).collect());
        let mut failing = Samples::of(vec![0.5]);
        failing.add(Err(anyhow::anyhow!("no room")));
        vec![
            berth.in_turn("sandbox").beside("floor", Some(25.0)).asked(Target::ratio(Bound::AtMost(2.0))),
            berth
                .row("sandbox", "ms")
                .beside("podman", Some(2000.0))
                .asked(Target::ratio(Bound::AtMost(0.05))),
            Row::not_measured("sandbox/crun", "ms", "it refuses"),
            Row::not_measured("sandbox", "ms", "it refuses")
                .beside("crun", None)
                .asked(Target::ratio(Bound::Below(1.0))),
            failing.row("burst", "s").asked(Target::value(Bound::AtMost(1.0))),
            Samples::of(vec![612.25])
                .row("rate", "1/s")
                .beside("empty host", Some(1000.0))
                .noted("two at once"),
        ]
    }

    #[test]
    fn the_table_has_a_line_for_each_and_notes_below() {
        insta::assert_snapshot!(markdown(&rows()));
    }

    #[test]
    fn verdicts_tell_what_was_asked_for() {
        insta::assert_snapshot!(verdicts(&rows()).join("\n"));
    }

    #[test]
    fn json_has_every_key() {
        let rows = rows();
        insta::assert_snapshot!(serde_json::to_string_pretty(&[&rows[0], &rows[3], &rows[4]]).unwrap());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let samples = Samples::of(vec![4.0, 1.0, 3.0, 2.0]);
        let of = |percent| samples.percentile(percent);
        assert_eq!((of(50), of(75), of(95), of(99)), (Some(2.0), Some(3.0), Some(4.0), Some(4.0)));
        assert_eq!(Samples::default().p50(), None);
        assert_eq!(Samples::of(vec![7.0]).percentile(1), Some(7.0));
    }

    #[test]
    fn failures_miss_every_target() {
        let row = Samples { failures: 1, ..Samples::of(vec![1.0]) };
        assert_eq!(row.row("x", "s").asked(Target::value(Bound::AtMost(2.0))).met, Some(false));
    }
}
