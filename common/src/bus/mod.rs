//! How messages travel between managers and signers: one trait, two buses.
//!
//! [`memory`] joins parts of one process; [`rabbitmq`] joins machines. Both keep the same promises,
//! and the same tests run against both. A bus carries bytes and knows nothing of their meaning.
//!
//! | address | to | kept when nobody listens | delivered |
//! |---|---|---|---|
//! | [`Address::Requests`] | one signer | yes, durably | at least once, until acknowledged |
//! | [`Address::Rounds`] | one signer | briefly, bounded | at most once |
//! | [`Address::Ceremonies`] | one signer's part in a ceremony | briefly, bounded | at most once |
//! | [`Address::Results`] | any one manager | yes, durably | at least once, until acknowledged |
//! | [`Address::Presence`] | every manager | no | at most once |

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tss_mpc::SignerIndex;

pub mod memory;
pub mod rabbitmq;

/// The largest message a bus carries, in bytes: an attempt with the longest message that the API takes
/// (1 MiB, in base64) and some room. The largest protocol message, in key generation, is some 143 KB.
pub const MAX_MESSAGE: usize = 2 << 20;

/// How many messages wait in an inbox for rounds before the oldest is dropped.
pub const ROUNDS_CAPACITY: usize = 8192;

/// How long a message waits in an inbox for rounds before it is dropped.
pub const ROUNDS_TTL: Duration = Duration::from_secs(30);

/// How many bytes wait in an inbox for rounds before the oldest message is dropped.
pub const ROUNDS_BYTES: usize = 256 << 20;

/// How many messages wait at a durable address before further ones are refused.
pub const DURABLE_CAPACITY: usize = 100_000;

/// How many bytes wait at a durable address before further messages are refused.
pub const DURABLE_BYTES: usize = 512 << 20;

/// How often a message is delivered without being acknowledged before it is set aside as a dead
/// letter.
pub const MAX_DELIVERIES: u32 = 20;

/// Where a message goes, and where a subscriber listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// Work for one signer. Publishing returns once the message is stored.
    Requests(SignerIndex),
    /// Protocol messages for one signer.
    Rounds(SignerIndex),
    /// Protocol messages for a program that makes a key or its new shares in a signer's name, while that signer may run
    /// and sign: neither takes the other's.
    Ceremonies(SignerIndex),
    /// Outcomes, each for one of the managers. Publishing returns once the message is stored.
    Results,
    /// Heartbeats and notices for every manager.
    Presence,
}

impl Address {
    /// Whether a message is stored before publishing returns, and kept until it is acknowledged.
    pub fn is_durable(self) -> bool {
        match self {
            Self::Requests(_) | Self::Results => true,
            Self::Rounds(_) | Self::Ceremonies(_) | Self::Presence => false,
        }
    }
}

/// Why a message was not published, or a subscription not made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BusError {
    /// The bus cannot be reached now. It reconnects by itself: try again.
    #[error("the message bus is unreachable: {0}")]
    Down(String),
    /// The bus did not confirm that it stored the message: it may or may not arrive. Try again.
    #[error("the message bus did not confirm the message: {0}")]
    Unconfirmed(String),
    /// The message is longer than [`MAX_MESSAGE`]. Never succeeds.
    #[error("a message of {0} bytes is too long: at most {MAX_MESSAGE}")]
    TooLong(usize),
}

/// Whether the bus can be used now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusState {
    /// Connected.
    Up,
    /// Not connected, and why. It is being re-established.
    Down(String),
}

/// A message that arrived, to be acknowledged once what it asks for is safe.
#[derive(Debug)]
pub struct Delivery {
    /// What was published.
    pub body: Bytes,
    /// What becomes of the message.
    settle: Option<oneshot::Sender<Settlement>>,
}

/// What becomes of a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done: forget it.
    Ack,
    /// Not done: deliver it again, here or to another subscriber. Also what dropping a
    /// [`Delivery`] means.
    Requeue,
    /// Never deliverable: set it aside as a dead letter.
    Reject,
}

impl Delivery {
    /// A delivery whose settlement goes to the returned receiver; a closed one means
    /// [`Settlement::Requeue`].
    pub fn new(body: Bytes) -> (Self, oneshot::Receiver<Settlement>) {
        let (settle, settled) = oneshot::channel();
        (Self { body, settle: Some(settle) }, settled)
    }

    /// A delivery that nobody needs to hear back about.
    pub fn transient(body: Bytes) -> Self {
        Self { body, settle: None }
    }

    /// Says what becomes of the message.
    pub fn settle(mut self, settlement: Settlement) {
        if let Some(settle) = self.settle.take() {
            // The bus may have lost its connection: the message then comes again.
            let _ = settle.send(settlement);
        }
    }

    /// The message has been dealt with.
    pub fn ack(self) {
        self.settle(Settlement::Ack);
    }

    /// The message can never be dealt with.
    pub fn reject(self) {
        self.settle(Settlement::Reject);
    }
}

/// Messages of one address, in order of arrival. It outlives lost connections; dropping it ends the
/// subscription. `None` from it means that the bus was closed.
pub type Subscription = mpsc::Receiver<Delivery>;

/// A message bus for one cluster.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Sends a message. Returns once the bus has taken charge of it: for durable addresses, stored
    /// it; for the others, handed it on.
    ///
    /// # Errors
    /// [`BusError`]; `Down` and `Unconfirmed` may be tried again.
    async fn publish(&self, to: Address, body: Bytes) -> Result<(), BusError>;

    /// Listens. Subscribers of one `Requests`, `Rounds` or `Results` address share its messages;
    /// each subscriber of `Presence` gets all of them. `capacity` bounds how many unacknowledged
    /// messages it holds at once.
    ///
    /// # Errors
    /// [`BusError`] when the bus is closed for good; a bus that is merely down starts the
    /// subscription as soon as it is back.
    async fn subscribe(&self, at: Address, capacity: u16) -> Result<Subscription, BusError>;

    /// Whether the bus can be used, now and at each change.
    fn state(&self) -> watch::Receiver<BusState>;

    /// Whether all subscriptions have started: what is published now reaches them. One that is lost starts
    /// again. A bus within one process starts them at once.
    fn is_listening(&self) -> bool {
        true
    }

    /// Closes the bus: subscriptions end, publishing fails.
    async fn close(&self);
}
