//! A running job on stderr: a spinner for each running trial, or plain lines.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_harbor::{Event, Observer, Phase};
use indicatif::{MultiProgress, ProgressBar};

use super::report::verdict;
use crate::output::Output;
use crate::progress::{ProgressView, can_draw, style};

/// Shows what a job tells.
pub(super) struct JobView {
    output: Output,
    /// Absent where stderr is no terminal.
    bars: Option<MultiProgress>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    total: usize,
    finished: usize,
    spinners: HashMap<String, ProgressBar>,
    /// Views of images being made, by the trial that asked for them.
    images: HashMap<String, ProgressView>,
}

impl JobView {
    pub(super) fn new(output: &Output) -> Self {
        let bars = (!output.is_quiet() && can_draw()).then(MultiProgress::new);
        Self { output: *output, bars, state: Mutex::default() }
    }

    /// A line for the user, above the spinners.
    pub(super) fn tell(&self, text: &str) {
        match &self.bars {
            // Fails only when the terminal is gone, and then there is nobody to tell.
            Some(bars) => drop(bars.println(text)),
            None => self.output.note(text),
        }
    }

    fn enter(&self, state: &mut State, trial: &str, phase: Phase) {
        state.images.remove(trial);
        match state.spinners.get(trial) {
            Some(spinner) => spinner.set_message(format!("{trial}: {}", phase_name(phase))),
            None => self.tell(&format!("{trial}: {}", phase_name(phase))),
        }
    }

    fn start(&self, state: &mut State, trial: &str) {
        let Some(bars) = &self.bars else { return };
        let spinner = bars.add(ProgressBar::new_spinner());
        spinner.set_style(style("{spinner} {msg} ({elapsed})"));
        spinner.set_message(trial.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        state.spinners.insert(trial.to_owned(), spinner);
    }
}

impl Observer for JobView {
    fn event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::JobStarted { job, dir, trials } => {
                state.total = trials;
                self.tell(&format!("job {job}: {trials} trials, results in {}", dir.display()));
            }
            Event::TrialStarted { trial, .. } => self.start(&mut state, trial),
            Event::PhaseStarted { trial, phase } => self.enter(&mut state, trial, phase),
            Event::Image { trial, progress } => {
                let new = || ProgressView::among(&self.output, "image", self.bars.as_ref());
                state.images.entry(trial.to_owned()).or_insert_with(new).show(progress);
            }
            Event::Queued { trial, place } => {
                let text = format!(
                    "{trial}: waits for room, place {} of the queue, for {}",
                    place.position,
                    place.waits_for.words()
                );
                match state.spinners.get(trial) {
                    Some(spinner) => spinner.set_message(text),
                    None => self.tell(&text),
                }
            }
            Event::TrialFinished { outcome } => {
                state.finished += 1;
                state.images.remove(&outcome.name);
                if let Some(spinner) = state.spinners.remove(&outcome.name) {
                    spinner.finish_and_clear();
                }
                let (done, total) = (state.finished, state.total);
                let seconds = outcome.duration.as_secs_f64();
                self.tell(&format!(
                    "[{done}/{total}] {}: {} ({seconds:.2} s)",
                    outcome.name,
                    verdict(outcome)
                ));
            }
            _ => {}
        }
    }
}

impl Drop for JobView {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.images.clear();
        state.spinners.values().for_each(ProgressBar::finish_and_clear);
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::EnvironmentSetup => "environment",
        Phase::Healthcheck => "healthcheck",
        Phase::AgentExecution => "agent",
        Phase::Collecting => "collecting",
        Phase::Verifier => "verifier",
        Phase::Cleanup => "cleaning up",
    }
}
