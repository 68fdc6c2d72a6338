//! How long to wait before trying again.

use std::time::Duration;

/// Exponential backoff with jitter: each delay is drawn between half and all of a bound that doubles
/// from `first` to `most`, so that parts that failed together do not return together.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    bound: Duration,
    most: Duration,
}

impl Backoff {
    /// Delays that begin at `first` and grow to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, bound: first, most }
    }

    /// The next delay.
    pub fn delay(&mut self) -> Duration {
        let delay = self.bound.mul_f64(0.5 + 0.5 * rand::random::<f64>());
        self.bound = self.bound.saturating_mul(2).min(self.most);
        delay
    }

    /// After something was well for so long: begins again at the first delay if that was longer than the
    /// longest.
    pub fn reset_after(&mut self, well: Duration) {
        if well > self.most {
            self.bound = self.first;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_most_and_start_again_after_a_good_while() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, most);
        for bound in [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis) {
            let delay = backoff.delay();
            assert!(delay >= bound / 2 && delay <= bound, "{delay:?} for {bound:?}");
        }
        backoff.reset_after(most);
        assert!(backoff.delay() > first);
        backoff.reset_after(most + first);
        assert!(backoff.delay() <= first);
    }
}
