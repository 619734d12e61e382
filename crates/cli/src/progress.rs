//! Progress on stderr: bars on a terminal, plain lines elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IsTerminal};
use std::time::Duration;

use berth_types::progress::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::{Output, size};

/// Shows what a long call tells.
pub(crate) struct ProgressView {
    lines: Lines,
    display: Display,
}

enum Display {
    Quiet,
    Plain,
    Bars { all: MultiProgress, bars: HashMap<(String, String), ProgressBar>, spinner: ProgressBar },
}

impl ProgressView {
    /// A view for something called `what`.
    pub(crate) fn new(output: &Output, what: &str) -> Self {
        let all = (!output.is_quiet() && can_draw()).then(MultiProgress::new);
        Self::among(output, what, all.as_ref())
    }

    /// The same among the bars of something larger; plain lines where there are none.
    pub(crate) fn among(output: &Output, what: &str, bars: Option<&MultiProgress>) -> Self {
        let display = if output.is_quiet() {
            Display::Quiet
        } else if let Some(all) = bars {
            let all = all.clone();
            let spinner = all.add(ProgressBar::new_spinner());
            spinner.set_style(style("{spinner} {msg} ({elapsed})"));
            spinner.set_message(what.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(120));
            Display::Bars { all, bars: HashMap::new(), spinner }
        } else {
            Display::Plain
        };
        Self { lines: Lines::default(), display }
    }

    /// Shows one thing that went on.
    pub(crate) fn show(&mut self, progress: &Progress) {
        match &mut self.display {
            Display::Quiet => {}
            Display::Plain => self.lines.read(progress).iter().for_each(|line| anstream::eprintln!("{line}")),
            Display::Bars { all, bars, spinner } => match progress {
                Progress::Transfer { item, action, current, total } => {
                    let bar = bars
                        .entry((item.clone(), action.clone()))
                        .or_insert_with(|| all.insert_before(spinner, transfer_bar(item, action, *total)));
                    if let Some(total) = total {
                        bar.set_length(*total);
                    }
                    bar.set_position(*current);
                    if total.is_some_and(|total| *current >= total) {
                        bar.finish();
                    }
                }
                other => {
                    if let Progress::Step { step, steps, instruction, .. } = other {
                        spinner.set_message(format!("[{step}/{steps}] {}", first_line(instruction)));
                    }
                    for line in self.lines.read(other) {
                        // Fails only when the terminal is gone, and then there is nobody to tell.
                        let _ = all.println(line);
                    }
                }
            },
        }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        let rest = self.lines.flush();
        match &self.display {
            Display::Quiet => {}
            Display::Plain => rest.iter().for_each(|line| anstream::eprintln!("{line}")),
            Display::Bars { all, bars, spinner } => {
                rest.into_iter().for_each(|line| drop(all.println(line)));
                bars.values().for_each(ProgressBar::finish);
                spinner.finish_and_clear();
            }
        }
    }
}

/// Whether stderr is a terminal on which a line can be drawn over.
pub(crate) fn can_draw() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

pub(crate) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn transfer_bar(item: &str, action: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{prefix:30!} [{bar:30}] {bytes}/{total_bytes}"),
        None => (ProgressBar::no_length(), "{prefix:30!} {bytes}"),
    };
    bar.set_style(style(template));
    bar.set_prefix(printable(&format!("{action} {item}")));
    bar
}

fn first_line(text: &str) -> String {
    printable(text.lines().next().unwrap_or_default())
}

/// The text without control characters: what runs in a sandbox shall not steer the user's terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// Makes lines of progress: whole ones of output that comes in pieces, and two of a transfer's many reports.
#[derive(Debug, Default)]
struct Lines {
    /// Output of each step after its last line's end.
    unfinished: BTreeMap<u32, String>,
    /// Transfers that were announced, and whether their end was.
    transfers: HashMap<(String, String), bool>,
}

impl Lines {
    fn read(&mut self, progress: &Progress) -> Vec<String> {
        match progress {
            Progress::Message { text } => text.lines().map(printable).collect(),
            Progress::Step { step, steps, instruction, cached } => {
                let mut lines = self.flush();
                let mark = if *cached { " (cached)" } else { "" };
                lines
                    .push(format!("[{step}/{steps}] {}{mark}", printable(&instruction.replace("\\\n", " "))));
                lines
            }
            Progress::Output { step, text } => self.output(*step, text),
            Progress::StepDone { step, .. } => self
                .unfinished
                .remove(step)
                .filter(|rest| !rest.is_empty())
                .map(|rest| output_line(&rest))
                .into_iter()
                .collect(),
            Progress::Warning(warning) => vec![printable(&format!(
                "warning: {}:{}: {} ({})",
                warning.file, warning.line, warning.message, warning.check
            ))],
            Progress::Transfer { item, action, current, total } => {
                let is_done = total.is_some_and(|total| *current >= total);
                self.transfer(item, action, *total, is_done).into_iter().collect()
            }
        }
    }

    fn output(&mut self, step: u32, text: &str) -> Vec<String> {
        let unfinished = self.unfinished.entry(step).or_default();
        unfinished.push_str(text);
        let Some(end) = unfinished.rfind('\n') else { return Vec::new() };
        let rest = unfinished.split_off(end + 1);
        let whole = std::mem::replace(unfinished, rest);
        whole.lines().map(output_line).collect()
    }

    fn transfer(&mut self, item: &str, action: &str, total: Option<u64>, is_done: bool) -> Option<String> {
        let key = (item.to_owned(), action.to_owned());
        let size = total.map(|total| format!(" ({})", size(total))).unwrap_or_default();
        match self.transfers.get(&key) {
            Some(true) => None,
            Some(false) if !is_done => None,
            known => {
                let end = if is_done { ": done" } else { "" };
                let line =
                    (known.is_none() || is_done).then(|| printable(&format!("{action} {item}{size}{end}")));
                self.transfers.insert(key, is_done);
                line
            }
        }
    }

    /// What is left of output without a line's end.
    fn flush(&mut self) -> Vec<String> {
        let unfinished = std::mem::take(&mut self.unfinished);
        unfinished.into_values().filter(|text| !text.is_empty()).map(|text| output_line(&text)).collect()
    }
}

/// One line of a step's output: of what was drawn over itself with carriage returns, the last.
fn output_line(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    format!("  | {}", printable(line.rsplit('\r').next().unwrap_or(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(text: &str) -> Progress {
        Progress::Output { step: 2, text: text.into() }
    }

    fn transfer(current: u64, total: Option<u64>) -> Progress {
        Progress::Transfer { item: "abc".into(), action: "download".into(), current, total }
    }

    #[test]
    fn output_becomes_whole_lines_and_nothing_is_lost() {
        let mut lines = Lines::default();
        assert_eq!(lines.read(&output("one\ntw")), ["  | one"]);
        assert_eq!(lines.read(&output("o\r\n10%\r20%\nend")), ["  | two", "  | 20%"]);
        let step = Progress::Step { step: 3, steps: 4, instruction: "RUN a && \\\n  b".into(), cached: true };
        assert_eq!(lines.read(&step), ["  | end", "[3/4] RUN a &&    b (cached)"]);
        assert!(lines.flush().is_empty());
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(Lines::default().read(&output("\u{1b}]0;x\u{7}a\tb\n")), ["  | ]0;xa\tb"]);
    }

    #[test]
    fn a_transfer_is_told_at_its_start_and_end() {
        let mut lines = Lines::default();
        let told: Vec<_> =
            [0, 10, 2048, 2048].into_iter().flat_map(|at| lines.read(&transfer(at, Some(2048)))).collect();
        assert_eq!(told, ["download abc (2.0 KiB)", "download abc (2.0 KiB): done"]);
        let told: Vec<_> =
            [0, 9].into_iter().flat_map(|at| Lines::default().read(&transfer(at, None))).collect();
        assert_eq!(told, ["download abc", "download abc"]);
    }
}
