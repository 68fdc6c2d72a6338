//! Parts of one process.
//!
//! Nothing is written anywhere: what is kept is kept as long as the [`MemoryBus`] lives. Messages
//! are handed on, never copied.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Address, Bus, BusError, BusState, DURABLE_BYTES, DURABLE_CAPACITY, Delivery, MAX_DELIVERIES, MAX_MESSAGE,
    ROUNDS_BYTES, ROUNDS_CAPACITY, ROUNDS_TTL, Settlement, Subscription,
};

/// How many dead letters are kept before the oldest is dropped.
const DEAD_LETTERS: usize = 1000;

/// A bus whose subscribers live in this process.
#[derive(Debug)]
pub struct MemoryBus {
    /// What is kept for each address but `Presence`.
    queues: Mutex<HashMap<Address, Arc<Queue>>>,
    /// Who listens for presence.
    presence: Mutex<Vec<mpsc::Sender<Delivery>>>,
    /// What nobody could deal with, oldest first.
    dead: Arc<Mutex<VecDeque<DeadLetter>>>,
    /// Up until the bus is closed.
    state: watch::Sender<BusState>,
    /// Cancelled when the bus is closed or dropped: ends its subscriptions.
    closed: CancellationToken,
}

/// A message that was set aside.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Where it was to go.
    pub to: Address,
    /// What was published.
    pub body: Bytes,
    /// Why it was set aside.
    pub reason: DeadReason,
}

/// Why a message was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadReason {
    /// A subscriber rejected it.
    Rejected,
    /// It was delivered [`MAX_DELIVERIES`] times and never acknowledged.
    TooManyDeliveries,
}

impl MemoryBus {
    /// A bus with nothing on it.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            queues: Mutex::default(),
            presence: Mutex::default(),
            dead: Arc::default(),
            state: watch::Sender::new(BusState::Up),
            closed: CancellationToken::new(),
        })
    }

    /// The messages that were set aside, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        lock(&self.dead).iter().cloned().collect()
    }

    /// The queue of an address, made when first asked for.
    fn queue(&self, address: Address) -> Arc<Queue> {
        Arc::clone(lock(&self.queues).entry(address).or_insert_with(|| Arc::new(Queue::new(address))))
    }

    /// An error once the bus is closed.
    fn open(&self) -> Result<(), BusError> {
        if self.closed.is_cancelled() { Err(closed()) } else { Ok(()) }
    }

    /// Hands a message to everyone who listens for presence and has room for it.
    fn announce(&self, body: &Bytes) {
        lock(&self.presence).retain(|listener| match listener.try_send(Delivery::transient(body.clone())) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Bus for MemoryBus {
    async fn publish(&self, to: Address, body: Bytes) -> Result<(), BusError> {
        if body.len() > MAX_MESSAGE {
            return Err(BusError::TooLong(body.len()));
        }
        self.open()?;
        match to {
            Address::Presence => {
                self.announce(&body);
                Ok(())
            }
            Address::Requests(_) | Address::Rounds(_) | Address::Ceremonies(_) | Address::Results => {
                self.queue(to).push(body)
            }
        }
    }

    async fn subscribe(&self, at: Address, capacity: u16) -> Result<Subscription, BusError> {
        self.open()?;
        let capacity = usize::from(capacity.max(1));
        let (deliveries, subscription) = mpsc::channel(capacity);
        match at {
            Address::Presence => {
                let mut listeners = lock(&self.presence);
                // Those who left are also forgotten when nothing is announced.
                listeners.retain(|listener| !listener.is_closed());
                listeners.push(deliveries);
                // Closing takes the lock to end the subscriptions: one made since then would stay.
                drop(listeners);
                if self.closed.is_cancelled() {
                    lock(&self.presence).clear();
                }
            }
            Address::Requests(_) | Address::Results => {
                let serving = serve_durable(
                    self.queue(at),
                    deliveries,
                    capacity,
                    Arc::clone(&self.dead),
                    self.closed.clone(),
                );
                tokio::spawn(serving);
            }
            Address::Rounds(_) | Address::Ceremonies(_) => {
                tokio::spawn(serve_rounds(self.queue(at), deliveries, self.closed.clone()));
            }
        }
        Ok(subscription)
    }

    fn state(&self) -> watch::Receiver<BusState> {
        self.state.subscribe()
    }

    async fn close(&self) {
        self.closed.cancel();
        self.state.send_replace(BusState::Down("closed".into()));
        lock(&self.presence).clear();
    }
}

/// What publishing and subscribing say on a closed bus.
fn closed() -> BusError {
    BusError::Down("the bus is closed".into())
}

/// Locks. Nothing here panics while it holds a lock, and what a lock guards is never half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The messages of one address.
#[derive(Debug)]
struct Queue {
    /// Whose they are.
    address: Address,
    /// Those that no subscriber holds.
    waiting: Mutex<Waiting>,
    /// Wakes one subscriber for each message that is added.
    added: Notify,
}

/// The messages of one address that no subscriber holds.
#[derive(Debug, Default)]
struct Waiting {
    /// By the order in which they were published, so that one that comes back takes its place.
    messages: BTreeMap<u64, Message>,
    /// The place of the next message.
    next: u64,
    /// The sum of the bodies' lengths.
    bytes: usize,
}

/// One message.
#[derive(Debug)]
struct Message {
    /// Its place.
    place: u64,
    /// What was published.
    body: Bytes,
    /// When.
    published: Instant,
    /// How often it was delivered.
    deliveries: u32,
}

impl Waiting {
    /// Adds a message at its place.
    fn insert(&mut self, message: Message) {
        self.bytes += message.body.len();
        self.messages.insert(message.place, message);
    }

    /// Takes the oldest message.
    fn take(&mut self) -> Option<Message> {
        let (_, message) = self.messages.pop_first()?;
        self.bytes -= message.body.len();
        Some(message)
    }

    /// Drops messages for rounds that nobody wants any more.
    fn expire(&mut self, now: Instant) {
        let lapsed = |m: &Message| now.duration_since(m.published) > ROUNDS_TTL;
        while self.messages.first_key_value().is_some_and(|(_, message)| lapsed(message)) {
            self.take();
        }
    }
}

impl Queue {
    /// An empty one.
    fn new(address: Address) -> Self {
        Self { address, waiting: Mutex::default(), added: Notify::new() }
    }

    /// Adds a message at the end.
    fn push(&self, body: Bytes) -> Result<(), BusError> {
        let mut waiting = lock(&self.waiting);
        if !self.address.is_durable() {
            waiting.expire(Instant::now());
            while waiting.messages.len() >= ROUNDS_CAPACITY || waiting.bytes + body.len() > ROUNDS_BYTES {
                waiting.take();
            }
        } else if waiting.messages.len() >= DURABLE_CAPACITY || waiting.bytes + body.len() > DURABLE_BYTES {
            return Err(BusError::Unconfirmed(format!("{:?} is full", self.address)));
        }
        let place = waiting.next;
        waiting.next += 1;
        waiting.insert(Message { place, body, published: Instant::now(), deliveries: 0 });
        drop(waiting);
        self.added.notify_one();
        Ok(())
    }

    /// Takes the oldest message.
    fn take(&self) -> Option<Message> {
        let mut waiting = lock(&self.waiting);
        if !self.address.is_durable() {
            waiting.expire(Instant::now());
        }
        waiting.take()
    }

    /// Waits for a message and takes it. When this is dropped, no message is lost and no wake-up.
    async fn next(&self) -> Message {
        loop {
            let added = self.added.notified();
            if let Some(message) = self.take() {
                return message;
            }
            added.await;
        }
    }

    /// Puts a message back in its place.
    fn give_back(&self, message: Message) {
        lock(&self.waiting).insert(message);
        self.added.notify_one();
    }
}

/// Hands the messages of one inbox for rounds to one subscriber, until it leaves.
async fn serve_rounds(queue: Arc<Queue>, deliveries: mpsc::Sender<Delivery>, closed: CancellationToken) {
    loop {
        let next = async {
            let room = deliveries.reserve().await.ok()?;
            Some((room, queue.next().await))
        };
        tokio::select! {
            biased;
            () = closed.cancelled() => break,
            () = deliveries.closed() => break,
            next = next => match next {
                Some((room, message)) => room.send(Delivery::transient(message.body)),
                None => break,
            },
        }
    }
    // A wake-up that this subscriber took may have been meant for a message it did not.
    queue.added.notify_one();
}

/// Hands the messages of one durable address to one subscriber, at most `capacity` at once, until
/// it leaves; then waits for what it still holds.
async fn serve_durable(
    queue: Arc<Queue>,
    deliveries: mpsc::Sender<Delivery>,
    capacity: usize,
    dead: Arc<Mutex<VecDeque<DeadLetter>>>,
    closed: CancellationToken,
) {
    let mut held = FuturesUnordered::new();
    let mut serving = true;
    while serving || !held.is_empty() {
        tokio::select! {
            biased;
            () = closed.cancelled() => break,
            () = deliveries.closed(), if serving => {
                serving = false;
                queue.added.notify_one();
            }
            Some((message, settlement)) = held.next() => queue.settle(message, settlement, &dead),
            message = queue.next(), if serving && held.len() < capacity => {
                let mut message: Message = message;
                let (delivery, settled) = Delivery::new(message.body.clone());
                // There is room: what waits in the channel is held, and that is less than its capacity.
                if deliveries.try_send(delivery).is_err() {
                    queue.give_back(message);
                    continue;
                }
                message.deliveries += 1;
                held.push(settled.map(move |settled| (message, settled.unwrap_or(Settlement::Requeue))));
            }
        }
    }
}

impl Queue {
    /// Does with a delivered message what its subscriber said.
    fn settle(&self, message: Message, settlement: Settlement, dead: &Mutex<VecDeque<DeadLetter>>) {
        let reason = match settlement {
            Settlement::Ack => return,
            Settlement::Requeue if message.deliveries < MAX_DELIVERIES => return self.give_back(message),
            Settlement::Requeue => DeadReason::TooManyDeliveries,
            Settlement::Reject => DeadReason::Rejected,
        };
        tracing::warn!(address = ?self.address, bytes = message.body.len(), ?reason, "a message was set aside");
        let mut dead = lock(dead);
        if dead.len() >= DEAD_LETTERS {
            dead.pop_front();
        }
        dead.push_back(DeadLetter { to: self.address, body: message.body, reason });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_that_nobody_fetched_lapse() {
        let queue = Queue::new(Address::Rounds(tss_mpc::SignerIndex::MIN));
        queue.push(Bytes::from("stale")).unwrap();
        let mut waiting = lock(&queue.waiting);
        waiting.expire(Instant::now());
        assert_eq!((waiting.messages.len(), waiting.bytes), (1, 5));
        waiting.expire(Instant::now() + ROUNDS_TTL + std::time::Duration::from_secs(1));
        assert_eq!((waiting.messages.len(), waiting.bytes), (0, 0));
    }
}
