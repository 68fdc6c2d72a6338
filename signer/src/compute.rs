//! Where the arithmetic runs: a pool of threads beside the ones that do input and output.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::oneshot;

/// A pool of threads for work that takes milliseconds. Clones share it.
#[derive(Clone)]
pub struct Compute(Arc<rayon::ThreadPool>);

impl Compute {
    /// A pool with one thread for each core.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn new() -> anyhow::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .thread_name(|number| format!("compute-{number}"))
            .build()
            .context("the system gives no threads to compute with")?;
        Ok(Self(Arc::new(pool)))
    }

    /// Runs `work` on the pool, first come first served. `None` if it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        self.0.spawn_fifo(move || {
            // A panic would end the process: the pool has nobody to hand it to.
            if let Ok(value) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
                // Nobody may be waiting any more.
                let _ = done.send(value);
            }
        });
        result.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_yields_nothing_and_the_pool_goes_on() {
        let compute = Compute::new().unwrap();
        assert_eq!(compute.run(|| panic!("no")).await, None::<()>);
        assert_eq!(compute.run(|| 6 * 7).await, Some(42));
    }
}
