//! How long a controller waits before it tries an object again: longer each time it fails.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The pause after a first failure.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// How often each object has failed in a row. Holds only those that do.
#[derive(Debug)]
pub struct Backoff<K>(Mutex<HashMap<K, u32>>);

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self(Mutex::new(HashMap::new()))
    }
}

impl<K: Hash + Eq> Backoff<K> {
    /// The object failed: yields when to try again.
    pub fn failed(&self, object: K) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(object).or_default();
        let pause = FIRST.saturating_mul(1 << (*count).min(10)).min(LONGEST);
        *count = count.saturating_add(1);
        // So that those that failed together do not try again together.
        pause.mul_f64(rand::random_range(0.75..1.25))
    }

    /// The object is well, or gone.
    pub fn succeeded(&self, object: &K) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_success() {
        let backoff = Backoff::default();
        let pauses: Vec<f64> = (0..12).map(|_| backoff.failed("a").as_secs_f64()).collect();
        assert!((0.75..1.25).contains(&pauses[0]) && (1.5..2.5).contains(&pauses[1]), "{pauses:?}");
        assert!(pauses.iter().all(|&pause| pause <= 75.0), "{pauses:?}");
        backoff.succeeded(&"a");
        assert!(backoff.failed("a").as_secs_f64() < 1.25);
    }
}
