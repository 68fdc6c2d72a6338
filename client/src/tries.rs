//! When a call is made again.

use std::time::Duration;

use tokio::time::Instant;

use crate::Error;

/// The wait before the second try; it doubles with each one.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait between two tries, unless the manager asks for a longer one.
const LONGEST: Duration = Duration::from_secs(5);

/// The tries of one call: how many have failed in a row, and until when there may be more.
#[derive(Debug)]
pub(crate) struct Tries {
    failed: u32,
    time: Duration,
    /// Known once one has failed; `None` in it is later than all times.
    until: Option<Option<Instant>>,
}

impl Tries {
    /// For this long after the first one has failed.
    pub(crate) fn new(time: Duration) -> Self {
        Self { failed: 0, time, until: None }
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The same error, when another try is of no use or would come too late.
    pub(crate) async fn after(&mut self, error: Error) -> Result<(), Error> {
        let Some(asked) = error.retry_after() else { return Err(error) };
        let until = *self.until.get_or_insert_with(|| Instant::now().checked_add(self.time));
        let wait = asked.max(backoff(self.failed).mul_f64(rand::random_range(0.5..=1.0)));
        let next = Instant::now().checked_add(wait);
        if next.is_none_or(|next| until.is_some_and(|until| next > until)) {
            return Err(error);
        }
        self.failed = self.failed.saturating_add(1);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

fn backoff(failed: u32) -> Duration {
    2_u32
        .checked_pow(failed)
        .and_then(|factor| FIRST.checked_mul(factor))
        .map_or(LONGEST, |wait| wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ProblemKind;

    fn busy(retry_after: Option<Duration>) -> Error {
        Error::Problem {
            status: reqwest::StatusCode::TOO_MANY_REQUESTS,
            kind: ProblemKind::RateLimited,
            title: String::new(),
            detail: None,
            retry_after,
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits = [0, 1, 5, 6, 31, u32::MAX].map(|failed| backoff(failed).as_millis());
        assert_eq!(waits, [100, 200, 3200, 5000, 5000, 5000]);
    }

    #[tokio::test(start_paused = true)]
    async fn tries_end_with_their_time_and_wait_as_long_as_the_manager_asks() {
        let mut tries = Tries::new(Duration::from_secs(10));
        let began = Instant::now();
        tries.after(busy(Some(Duration::from_secs(7)))).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(7));
        tries.after(busy(Some(Duration::from_secs(7)))).await.unwrap_err();
        let mut count = 0;
        while tries.after(busy(None)).await.is_ok() {
            count += 1;
        }
        assert!((3..100).contains(&count), "{count}");
        assert!(began.elapsed() <= Duration::from_secs(10));
    }
}
