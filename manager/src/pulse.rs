//! How a manager has done lately: requests that ended, and how long they took, in steps of a few seconds. For a reader
//! who has no Prometheus at hand; what counts in the long run is in the metrics.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a step is.
pub const STEP: Duration = Duration::from_secs(5);

/// How many steps are remembered.
const STEPS: usize = 120;

/// How many times of one step are remembered.
const TIMES: usize = 4096;

/// The steps of the last ten minutes.
#[derive(Default)]
pub struct Pulse(Mutex<Steps>);

#[derive(Default)]
struct Steps {
    /// When the last of them began; `None` before the first.
    since: Option<Instant>,
    steps: VecDeque<Step>,
}

#[derive(Clone, Default)]
struct Step {
    completed: u64,
    failed: u64,
    seconds: Vec<f64>,
}

/// What happened in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Beat {
    /// How long ago it began.
    pub age: Duration,
    /// How many requests were signed.
    pub completed: u64,
    /// How many ended otherwise.
    pub failed: u64,
    /// The median of the seconds from acceptance to signature.
    pub p50: Option<f64>,
    /// The 99th percentile of the same.
    pub p99: Option<f64>,
}

impl Pulse {
    /// A request has ended: signed after so many seconds, or not.
    pub fn beat(&self, seconds: Option<f64>) {
        let mut steps = self.steps();
        steps.advance(Instant::now());
        let Some(step) = steps.steps.back_mut() else { return };
        match seconds {
            None => step.failed = step.failed.saturating_add(1),
            Some(seconds) => {
                step.completed = step.completed.saturating_add(1);
                if step.seconds.len() < TIMES {
                    step.seconds.push(seconds);
                }
            }
        }
    }

    /// The steps, the oldest first. The last is not over.
    pub fn beats(&self) -> Vec<Beat> {
        let now = Instant::now();
        let mut steps = self.steps();
        steps.advance(now);
        let Some(since) = steps.since else { return Vec::new() };
        let last = now.saturating_duration_since(since);
        let ages = (0..u32::try_from(steps.steps.len()).unwrap_or(u32::MAX)).rev();
        let beat = |(step, back): (&Step, u32)| {
            let mut seconds = step.seconds.clone();
            seconds.sort_unstable_by(f64::total_cmp);
            Beat {
                age: last.saturating_add(STEP.saturating_mul(back)),
                completed: step.completed,
                failed: step.failed,
                p50: quantile(&seconds, 50),
                p99: quantile(&seconds, 99),
            }
        };
        steps.steps.iter().zip(ages).map(beat).collect()
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steps {
    /// Begins the steps that time has brought.
    fn advance(&mut self, now: Instant) {
        let Some(mut since) = self.since else {
            self.since = Some(now);
            self.steps.push_back(Step::default());
            return;
        };
        let missed = now.saturating_duration_since(since).as_millis() / STEP.as_millis();
        if missed >= STEPS as u128 {
            self.steps = std::iter::repeat_n(Step::default(), STEPS).collect();
            self.since = Some(now);
            return;
        }
        for _ in 0..missed {
            since += STEP;
            self.steps.push_back(Step::default());
        }
        self.since = Some(since);
        let over = self.steps.len().saturating_sub(STEPS);
        self.steps.drain(..over);
    }
}

/// The nearest-rank percentile of sorted values.
fn quantile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = sorted.len().saturating_mul(percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_its_own_counts_and_percentiles() {
        let pulse = Pulse::default();
        for hundredths in 1..=100 {
            pulse.beat(Some(f64::from(hundredths) / 100.0));
        }
        pulse.beat(None);
        let [beat] = &pulse.beats()[..] else { panic!("one step") };
        assert_eq!((beat.completed, beat.failed, beat.p50, beat.p99), (100, 1, Some(0.5), Some(0.99)));
        assert!(beat.age < STEP);
    }

    #[test]
    fn time_brings_empty_steps_and_the_oldest_are_forgotten() {
        let (mut steps, start) = (Steps::default(), Instant::now());
        steps.advance(start);
        steps.steps[0].completed = 7;
        steps.advance(start + STEP * 3 + STEP / 2);
        assert_eq!(steps.steps.iter().map(|step| step.completed).collect::<Vec<_>>(), [7, 0, 0, 0]);
        assert_eq!(steps.since, Some(start + STEP * 3));
        steps.advance(start + STEP * 122);
        assert_eq!(steps.steps.len(), STEPS);
        assert!(steps.steps.iter().all(|step| step.completed == 0));
        steps.advance(start + STEP * 100_000);
        assert_eq!((steps.steps.len(), steps.since), (STEPS, Some(start + STEP * 100_000)));
    }

    #[test]
    fn nothing_has_no_percentiles() {
        assert_eq!(quantile(&[], 50), None);
        assert_eq!(quantile(&[3.0], 99), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0], 50), Some(1.0));
    }
}
