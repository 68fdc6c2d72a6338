//! How often somebody may call.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::time::sleep;
use tss_common::config::Limits;

use super::{Refusal, TurnedAway};

/// How often those who have not called for long are forgotten.
const ROUND: Duration = Duration::from_secs(30);

/// A limit for each subject by itself, as a leaky bucket (GCRA).
pub(crate) struct Rate {
    limiter: DefaultKeyedRateLimiter<Option<String>>,
    clock: DefaultClock,
}

impl Rate {
    /// `None` if there is no limit.
    pub(crate) fn new(limits: &Limits) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(limits.rate)?)
            .allow_burst(NonZeroU32::new(limits.burst).unwrap_or(NonZeroU32::MIN));
        Some(Self { limiter: RateLimiter::keyed(quota), clock: DefaultClock::default() })
    }

    /// Counts calls of a subject.
    pub(crate) fn spend(&self, subject: Option<&str>, calls: u32) -> Result<(), TurnedAway> {
        let Some(calls) = NonZeroU32::new(calls) else { return Ok(()) };
        match self.limiter.check_key_n(&subject.map(str::to_owned), calls) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(later)) => {
                let wait = later.wait_time_from(self.clock.now());
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
                Err(TurnedAway { refusal: Refusal::Rate, retry_after: Some(seconds) })
            }
            // More than can ever be had at once.
            Err(_) => Err(Refusal::Rate.into()),
        }
    }

    pub(crate) async fn forget_the_idle(&self) {
        loop {
            sleep(ROUND).await;
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
    }
}
