//! The figures as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::figures::{Figure, Subject, trials};
use super::machine::Machine;
use super::rows::{Bound, Row, Samples, Target};

/// What issue and specification ask of Berth: one trial at most so many seconds, twelve so many times podman's speed.
const ONE_TRIAL_SECONDS: f64 = 1.5;
const TWELVE_RATIO: f64 = 20.0;

/// One run of one job.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Wall time of the command.
    pub(super) seconds: f64,
    /// Of each trial: from its start to its verdict.
    pub(super) verdicts: Vec<f64>,
}

/// A figure and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) figure: Figure,
    seconds: Vec<f64>,
    verdicts: Vec<f64>,
}

impl Measured {
    pub(super) fn new(figure: Figure) -> Self {
        Self { figure, seconds: Vec::new(), verdicts: Vec::new() }
    }

    pub(super) fn add(&mut self, sample: Sample) {
        self.seconds.push(sample.seconds);
        self.verdicts.extend(sample.verdicts);
    }
}

/// Sandboxes made and ended one after the other.
#[derive(Clone, Debug)]
pub(super) struct Sandboxes {
    pub(super) subject: Subject,
    pub(super) milliseconds: Vec<f64>,
}

/// The value in the middle and those at the ends.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// None of nothing.
    fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// Everything that was measured in one run.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) machine: Machine,
    /// Of the programs that took part, the peers' and ours.
    pub(super) versions: BTreeMap<String, String>,
    pub(super) rounds: u32,
    pub(super) measured: Vec<Measured>,
    pub(super) sandboxes: Vec<Sandboxes>,
}

impl Report {
    /// Tables for `SPECIFICATION.md`.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::from(
            "| square-2, agent oracle | trials | wall time, median (min–max) | podman ÷ this | trial start to verdict |\n\
             |---|---|---|---|---|\n",
        );
        for measured in &self.measured {
            let Figure { subject, trials: count, at_once } = measured.figure;
            let (Some(wall), Some(verdict)) = (Spread::of(&measured.seconds), Spread::of(&measured.verdicts))
            else {
                continue;
            };
            let ratio = self.ratio(measured).map_or("–".to_owned(), |ratio| format!("{ratio:.1}×"));
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {:.2} s ({:.2}–{:.2}) | {ratio} | {:.2} s |",
                subject.title(),
                trials(count, at_once),
                wall.median,
                wall.min,
                wall.max,
                verdict.median,
            );
        }
        text.push_str(&self.sandbox_table());
        text.push_str(&self.circumstances());
        text
    }

    fn sandbox_table(&self) -> String {
        let mut text = String::new();
        for sandboxes in &self.sandboxes {
            let Some(spread) = Spread::of(&sandboxes.milliseconds) else { continue };
            if text.is_empty() {
                text.push_str(
                    "\n| sandbox made, `true` run, ended | times | median (min–max) |\n|---|---|---|\n",
                );
            }
            let how = match sandboxes.subject {
                Subject::Podman => "`podman run --rm`",
                _ => "Berth, Python client",
            };
            let _ = writeln!(
                text,
                "| {how} | {} | {:.1} ms ({:.1}–{:.1}) |",
                sandboxes.milliseconds.len(),
                spread.median,
                spread.min,
                spread.max
            );
        }
        text
    }

    fn circumstances(&self) -> String {
        let Machine { cpu, cores, kernel, load, .. } = &self.machine;
        let versions: Vec<_> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let busy = if self.machine.busy() { " (busy: these figures are not to be relied on)" } else { "" };
        format!(
            "\n`cargo xtask bench trial`, rounds: {}; {cores} cores of {cpu}, Linux {kernel}, load {load:.1} at the start\
             {busy}; {}.\nImages are cached. Of podman's time per trial, up to 10 s is its wait for the container to end, \
             after the verdict.\n",
            self.rounds,
            versions.join(", ")
        )
    }

    /// The same in the form of every benchmark.
    pub(super) fn rows(&self) -> Vec<Row> {
        let jobs = self.measured.iter().flat_map(|measured| {
            let figure = format!("trial.{}/{}", measured.figure.trials, measured.figure.subject.name());
            let wall = Samples::of(measured.seconds.clone()).row(figure.clone(), "s");
            let verdicts = Samples::of(measured.verdicts.clone()).row(format!("{figure}.verdict"), "s");
            [self.compared(measured, wall), verdicts]
        });
        let sandboxes = self.sandboxes.iter().map(|sandboxes| {
            let figure = format!("trial.sandbox/{}", sandboxes.subject.name());
            Samples::of(sandboxes.milliseconds.clone()).row(figure, "ms")
        });
        jobs.chain(sandboxes).collect()
    }

    /// Beside the peer that it is asked to beat.
    fn compared(&self, measured: &Measured, row: Row) -> Row {
        let Figure { subject, trials, .. } = measured.figure;
        match (subject, trials) {
            (Subject::Berth, 1) => row
                .beside("podman", self.median(Subject::Podman, 1))
                .asked(Target::value(Bound::AtMost(ONE_TRIAL_SECONDS))),
            (Subject::Berth, _) => row
                .beside("podman", self.median(Subject::Podman, trials))
                .asked(Target::ratio(Bound::AtMost(1.0 / TWELVE_RATIO))),
            (Subject::BerthRun, 12) => row
                .beside("berth", self.median(Subject::Berth, trials))
                .asked(Target::ratio(Bound::Below(1.0))),
            _ => row,
        }
    }

    /// How many times faster than podman with as many trials.
    fn ratio(&self, measured: &Measured) -> Option<f64> {
        let own = Spread::of(&measured.seconds)?.median;
        (measured.figure.subject != Subject::Podman)
            .then(|| self.median(Subject::Podman, measured.figure.trials))?
            .map(|podman| podman / own)
    }

    fn median(&self, subject: Subject, trials: usize) -> Option<f64> {
        let mut figures = self.measured.iter();
        let measured = figures.find(|m| m.figure.subject == subject && m.figure.trials == trials)?;
        Spread::of(&measured.seconds).map(|spread| spread.median)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    fn measured(subject: Subject, trials: usize, seconds: &[f64]) -> Measured {
        let mut measured = Measured::new(Figure { subject, trials, at_once: 4 });
        for seconds in seconds {
            measured.add(Sample { seconds: *seconds, verdicts: vec![seconds / 2.0] });
        }
        measured
    }

    fn report() -> Report {
        let machine = Machine {
            cpu: "a CPU".into(),
            cores: 2,
            kernel: "6.1".into(),
            memory_mib: 1024,
            cgroups: "v2",
            load: 0.1,
        };
        let versions = [("harbor", "0.25.0"), ("podman", "5.4.2")];
        Report {
            machine,
            versions: versions.map(|(name, version)| (name.to_owned(), version.to_owned())).into(),
            rounds: 2,
            measured: vec![
                measured(Subject::Podman, 1, &[15.0, 17.0]),
                measured(Subject::Podman, 12, &[60.0, 64.0]),
                measured(Subject::Berth, 1, &[1.25, 1.0, 1.5]),
                measured(Subject::Berth, 12, &[3.1, 4.0]),
                measured(Subject::BerthRun, 12, &[1.0]),
            ],
            sandboxes: vec![
                Sandboxes { subject: Subject::Podman, milliseconds: vec![360.0, 350.0, 400.0] },
                Sandboxes { subject: Subject::Berth, milliseconds: vec![10.0] },
            ],
        }
    }

    #[test]
    fn the_table_shows_spread_and_ratio() {
        insta::assert_snapshot!(report().markdown(), @r"
        | square-2, agent oracle | trials | wall time, median (min–max) | podman ÷ this | trial start to verdict |
        |---|---|---|---|---|
        | Harbor, its podman provider | 1 trial | 16.00 s (15.00–17.00) | – | 8.00 s |
        | Harbor, its podman provider | 12 trials, 4 at once | 62.00 s (60.00–64.00) | – | 31.00 s |
        | Harbor, Berth | 1 trial | 1.25 s (1.00–1.50) | 12.8× | 0.62 s |
        | Harbor, Berth | 12 trials, 4 at once | 3.55 s (3.10–4.00) | 17.5× | 1.77 s |
        | `berth run` | 12 trials, 4 at once | 1.00 s (1.00–1.00) | 62.0× | 0.50 s |

        | sandbox made, `true` run, ended | times | median (min–max) |
        |---|---|---|
        | `podman run --rm` | 3 | 360.0 ms (350.0–400.0) |
        | Berth, Python client | 1 | 10.0 ms (10.0–10.0) |

        `cargo xtask bench trial`, rounds: 2; 2 cores of a CPU, Linux 6.1, load 0.1 at the start; harbor 0.25.0, podman 5.4.2.
        Images are cached. Of podman's time per trial, up to 10 s is its wait for the container to end, after the verdict.
        ");
    }

    #[test]
    fn what_was_asked_for_is_compared() {
        insta::assert_snapshot!(rows::verdicts(&report().rows()).join("\n"));
    }

    #[test]
    fn rows_are_of_the_common_form() {
        let rows = report().rows();
        insta::assert_snapshot!(serde_json::to_string(&rows[4]).unwrap());
        assert_eq!(rows.len(), 12);
    }

    #[test]
    fn the_middle_of_some_values() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn a_busy_machine_is_told() {
        let mut report = report();
        report.machine.load = 1.9;
        assert!(report.markdown().contains("not to be relied on"));
    }
}
