//! A broker that nobody should trust: it remembers everything, and does with each message as it likes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tss_common::bus::memory::{DeadLetter, MemoryBus};
use tss_common::bus::{Address, Bus, BusError, BusState, Subscription};

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) to: Address,
    pub(crate) body: Bytes,
    /// How long the broker sits on it.
    pub(crate) after: Duration,
}

impl Passed {
    pub(crate) fn now(to: Address, body: Bytes) -> Self {
        Self { to, body, after: Duration::ZERO }
    }
}

/// What the broker makes of a message.
type Tamper = Box<dyn FnMut(Passed) -> Vec<Passed> + Send>;

/// The bus within the process, with such a broker in the middle.
pub(crate) struct TamperingBus {
    inner: Arc<MemoryBus>,
    tamper: Mutex<Tamper>,
    record: Mutex<Vec<(Address, Bytes)>>,
}

impl TamperingBus {
    /// A broker that does its work, and listens.
    pub(crate) fn new() -> Arc<Self> {
        let tamper: Tamper = Box::new(|message| vec![message]);
        Arc::new(Self { inner: MemoryBus::new(), tamper: Mutex::new(tamper), record: Mutex::default() })
    }

    /// What becomes of every message from now on.
    pub(crate) fn tamper(&self, tamper: impl FnMut(Passed) -> Vec<Passed> + Send + 'static) {
        *lock(&self.tamper) = Box::new(tamper);
    }

    /// From now on it does its work again.
    pub(crate) fn behave(&self) {
        self.tamper(|message| vec![message]);
    }

    /// Everything that was published, as it was.
    pub(crate) fn record(&self) -> Vec<(Address, Bytes)> {
        lock(&self.record).clone()
    }

    /// What was set aside because nobody could make anything of it.
    pub(crate) fn dead_letters(&self) -> Vec<DeadLetter> {
        self.inner.dead_letters()
    }

    /// Brings a message of its own.
    pub(crate) async fn inject(&self, to: Address, body: impl Into<Bytes>) {
        self.inner.publish(to, body.into()).await.expect("the bus is open");
    }
}

#[async_trait]
impl Bus for TamperingBus {
    async fn publish(&self, to: Address, body: Bytes) -> Result<(), BusError> {
        lock(&self.record).push((to, body.clone()));
        let passed = lock(&self.tamper)(Passed::now(to, body));
        for Passed { to, body, after } in passed {
            if after.is_zero() {
                self.inner.publish(to, body).await?;
            } else {
                let inner = self.inner.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    // The test may be over.
                    let _ = inner.publish(to, body).await;
                });
            }
        }
        Ok(())
    }

    async fn subscribe(&self, at: Address, capacity: u16) -> Result<Subscription, BusError> {
        self.inner.subscribe(at, capacity).await
    }

    fn state(&self) -> watch::Receiver<BusState> {
        self.inner.state()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
