//! What is measured: who, how many trials, by which command.

use std::fmt;

use clap::ValueEnum;

/// Paths inside the benchmark's root; see `world` for what they are outside.
pub(super) const JOBS: &str = "/bench/jobs";
pub(super) const TASKS: &str = "/bench/tasks";

/// How many trials, and how many at once.
const SIZES: [(usize, usize); 2] = [(1, 4), (12, 4)];

/// Whose sandboxes are measured by themselves, and how many.
pub(super) const SANDBOXES: [(Subject, u32); 2] = [(Subject::Podman, 20), (Subject::Berth, 50)];

/// Who runs the trials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Subject {
    /// Harbor with an environment that does nothing
    Nothing,
    /// Harbor with its own podman provider
    Podman,
    /// Harbor with Berth
    Berth,
    /// berth run
    BerthRun,
}

impl Subject {
    /// As on the command line and in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Podman => "podman",
            Self::Berth => "berth",
            Self::BerthRun => "berth-run",
        }
    }

    /// As in the table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Nothing => "Harbor, environment that does nothing",
            Self::Podman => "Harbor, its podman provider",
            Self::Berth => "Harbor, Berth",
            Self::BerthRun => "`berth run`",
        }
    }

    /// Whether it takes a daemon of Berth.
    pub(super) fn is_berth(self) -> bool {
        matches!(self, Self::Berth | Self::BerthRun)
    }

    /// Times per round: what is over in a moment is measured more often than what takes a minute.
    pub(super) fn repeats(self) -> u32 {
        match self {
            Self::Podman => 1,
            Self::Nothing | Self::Berth | Self::BerthRun => 2,
        }
    }
}

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Figure {
    pub(super) subject: Subject,
    pub(super) trials: usize,
    pub(super) at_once: usize,
}

/// Everything, in the order of measurement.
pub(super) fn all() -> Vec<Figure> {
    let figures = Subject::value_variants()
        .iter()
        .flat_map(|subject| SIZES.map(|(trials, at_once)| Figure { subject: *subject, trials, at_once }));
    figures.collect()
}

impl Figure {
    /// The command whose time is the figure; its results go to the job `job`.
    pub(super) fn command(&self, job: &str) -> Vec<String> {
        let task = format!("{TASKS}/square-2");
        let (trials, at_once) = (self.trials.to_string(), self.at_once.to_string());
        let common = ["-a", "oracle", "-k", &trials, "-n", &at_once, "--job-name", job];
        let harbor = |environment: &'static str| {
            ["harbor", "run", "-p", &task, "-o", JOBS, "--yes", "-e", environment].map(str::to_owned).to_vec()
        };
        let mut command = match self.subject {
            Subject::Nothing => harbor("nothing:NothingEnvironment"),
            Subject::Podman => harbor("podman"),
            Subject::Berth => harbor("berth.harbor:BerthEnvironment"),
            Subject::BerthRun => ["berth", "run", &task, "--jobs-dir", JOBS].map(str::to_owned).to_vec(),
        };
        command.extend(common.map(str::to_owned));
        command
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.subject.title(), trials(self.trials, self.at_once))
    }
}

/// One trial, or so many and how many at once.
pub(super) fn trials(trials: usize, at_once: usize) -> String {
    match trials {
        1 => "1 trial".to_owned(),
        _ => format!("{trials} trials, {at_once} at once"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_runs_one_trial_and_twelve() {
        let commands: Vec<_> = all().iter().map(|f| format!("{f}\n  {}", f.command("j").join(" "))).collect();
        insta::assert_snapshot!(commands.join("\n"), @r"
        Harbor, environment that does nothing, 1 trial
          harbor run -p /bench/tasks/square-2 -o /bench/jobs --yes -e nothing:NothingEnvironment -a oracle -k 1 -n 4 --job-name j
        Harbor, environment that does nothing, 12 trials, 4 at once
          harbor run -p /bench/tasks/square-2 -o /bench/jobs --yes -e nothing:NothingEnvironment -a oracle -k 12 -n 4 --job-name j
        Harbor, its podman provider, 1 trial
          harbor run -p /bench/tasks/square-2 -o /bench/jobs --yes -e podman -a oracle -k 1 -n 4 --job-name j
        Harbor, its podman provider, 12 trials, 4 at once
          harbor run -p /bench/tasks/square-2 -o /bench/jobs --yes -e podman -a oracle -k 12 -n 4 --job-name j
        Harbor, Berth, 1 trial
          harbor run -p /bench/tasks/square-2 -o /bench/jobs --yes -e berth.harbor:BerthEnvironment -a oracle -k 1 -n 4 --job-name j
        Harbor, Berth, 12 trials, 4 at once
          harbor run -p /bench/tasks/square-2 -o /bench/jobs --yes -e berth.harbor:BerthEnvironment -a oracle -k 12 -n 4 --job-name j
        `berth run`, 1 trial
          berth run /bench/tasks/square-2 --jobs-dir /bench/jobs -a oracle -k 1 -n 4 --job-name j
        `berth run`, 12 trials, 4 at once
          berth run /bench/tasks/square-2 --jobs-dir /bench/jobs -a oracle -k 12 -n 4 --job-name j
        ");
    }
}
