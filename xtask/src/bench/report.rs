//! The figures as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::figures::{Figure, Subject, trials};

/// What issue and specification ask of Berth: one trial at most so many seconds, twelve so many times podman's speed.
const ONE_TRIAL_SECONDS: f64 = 1.5;
const TWELVE_RATIO: f64 = 20.0;

/// Where it was measured.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) kernel: String,
    /// Processes that wanted to run in the minute before.
    pub(super) load: f64,
}

impl Machine {
    /// This one. What cannot be told is told so: nothing depends on it.
    pub(super) fn read() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: cpu.map_or("unknown", |(_, model)| model).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(f64::NAN),
        }
    }

    /// Whether others compete for its cores.
    #[expect(clippy::cast_precision_loss, reason = "nobody has so many cores")]
    pub(super) fn busy(&self) -> bool {
        self.load > self.cores as f64 / 4.0
    }
}

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
        let Machine { cpu, cores, kernel, load } = &self.machine;
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

    /// The same as JSON: every value, not only the middle.
    pub(super) fn json(&self) -> Value {
        let spread = |values: &[f64]| {
            Spread::of(values)
                .map(|s| json!({"median": s.median, "min": s.min, "max": s.max, "values": values}))
        };
        let figures = self.measured.iter().map(|measured| {
            json!({
                "subject": measured.figure.subject.name(),
                "trials": measured.figure.trials,
                "at_once": measured.figure.at_once,
                "wall_seconds": spread(&measured.seconds),
                "podman_ratio": self.ratio(measured),
                "verdict_seconds": spread(&measured.verdicts),
            })
        });
        let sandboxes = self.sandboxes.iter().map(|sandboxes| {
            json!({"subject": sandboxes.subject.name(), "milliseconds": spread(&sandboxes.milliseconds)})
        });
        let Machine { cpu, cores, kernel, load } = &self.machine;
        json!({
            "machine": {"cpu": cpu, "cores": cores, "kernel": kernel, "load": load, "busy": self.machine.busy()},
            "versions": self.versions,
            "rounds": self.rounds,
            "figures": figures.collect::<Vec<_>>(),
            "sandboxes": sandboxes.collect::<Vec<_>>(),
        })
    }

    /// What was asked for, and whether it was reached; nothing of what was not measured.
    pub(super) fn verdicts(&self) -> Vec<String> {
        let word = |met: bool| if met { "reached" } else { "MISSED" };
        let mut lines = Vec::new();
        if let Some(one) = self.median(Subject::Berth, 1) {
            let met = word(one <= ONE_TRIAL_SECONDS);
            lines.push(format!(
                "{met}: Harbor on Berth, 1 trial in {one:.2} s, asked for {ONE_TRIAL_SECONDS} s"
            ));
        }
        let twelve = self.median(Subject::Berth, 12);
        if let (Some(podman), Some(berth)) = (self.median(Subject::Podman, 12), twelve) {
            let (ratio, met) = (podman / berth, word(podman / berth >= TWELVE_RATIO));
            lines.push(format!(
                "{met}: Harbor on Berth, 12 trials {ratio:.1}× faster than podman, asked for {TWELVE_RATIO}×"
            ));
        }
        if let (Some(berth), Some(native)) = (twelve, self.median(Subject::BerthRun, 12)) {
            let met = word(native < berth);
            lines.push(format!(
                "{met}: berth run, 12 trials in {native:.2} s, asked for less than Harbor's {berth:.2} s"
            ));
        }
        lines
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
    use super::*;

    fn measured(subject: Subject, trials: usize, seconds: &[f64]) -> Measured {
        let mut measured = Measured::new(Figure { subject, trials, at_once: 4 });
        for seconds in seconds {
            measured.add(Sample { seconds: *seconds, verdicts: vec![seconds / 2.0] });
        }
        measured
    }

    fn report() -> Report {
        let machine = Machine { cpu: "a CPU".into(), cores: 2, kernel: "6.1".into(), load: 0.1 };
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
        insta::assert_snapshot!(report().verdicts().join("\n"), @r"
        reached: Harbor on Berth, 1 trial in 1.25 s, asked for 1.5 s
        MISSED: Harbor on Berth, 12 trials 17.5× faster than podman, asked for 20×
        reached: berth run, 12 trials in 1.00 s, asked for less than Harbor's 3.55 s
        ");
    }

    #[test]
    fn json_has_every_value() {
        let json = report().json();
        assert_eq!(json["figures"][2]["wall_seconds"]["values"], json!([1.25, 1.0, 1.5]));
        assert_eq!(json["figures"][2]["podman_ratio"], json!(16.0 / 1.25));
        assert_eq!(json["figures"][0]["podman_ratio"], Value::Null);
        assert_eq!(json["sandboxes"][0]["milliseconds"]["median"], json!(360.0));
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
