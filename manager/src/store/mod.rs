//! Where requests are kept: one trait, two stores.
//!
//! [`embedded`] is a file of this process, for the devnet; [`mongo`] is shared by any number of
//! managers. Both keep the same promises, and the same tests run against both. Once a call has
//! returned, what it did survives a crash.
//!
//! A signature costs three operations: [`Store::insert`], [`Store::begin_attempt`] and
//! [`Store::finish`]; with an idempotency key, [`Store::find`] before them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tss_common::approval::Approval;
use tss_common::config::{Config, StoreKind};
use tss_common::intent::Intent;
use tss_mpc::{PublicKey, Quorum, Signature, Threshold};
use uuid::Uuid;

pub mod embedded;
pub mod mongo;

/// A request as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Its id.
    pub id: Uuid,
    /// What is to be signed.
    pub intent: Intent,
    /// The message as it was given, decoded to bytes.
    #[serde(with = "tss_common::encoding::base64")]
    pub message: Vec<u8>,
    /// Who approved the intent.
    #[serde(default)]
    pub approvals: Vec<Approval>,
    /// Whose request it is, where callers have to say who they are.
    #[serde(default)]
    pub requester: Option<String>,
    /// What the caller named it by, so that asking twice signs once.
    pub idempotency: Option<Idempotency>,
    /// Where to tell that it has ended.
    #[serde(default)]
    pub webhook: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// By when it ends.
    pub deadline: Timestamp,
    /// How far it is.
    pub progress: Progress,
    /// Which manager drives it.
    pub lease: Lease,
}

/// What a caller names a request by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The caller's key; unique within a store.
    pub key: String,
    /// Tells whether a second request under the same key asks for the same.
    #[serde(with = "hex::serde")]
    pub body_hash: [u8; 32],
}

/// How far a request is. A finished one never changes again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// How many attempts were begun.
    pub attempts: u32,
    /// The signers of the last attempt.
    pub quorum: Option<Quorum>,
    /// When it began.
    #[serde(default)]
    pub begun_at: Option<Timestamp>,
    /// Its state.
    pub state: State,
}

/// The state of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status")]
pub enum State {
    /// Accepted; no attempt has begun.
    Pending,
    /// An attempt has begun.
    InProgress,
    /// Signed.
    Completed {
        /// The signature.
        signature: Signature,
        /// The public key that verifies it: the key's, derived along the intent's path.
        public_key: PublicKey,
        /// When it was signed.
        finished_at: Timestamp,
    },
    /// Ended without a signature.
    Failed {
        /// Why, for the caller.
        reason: String,
        /// When it ended.
        finished_at: Timestamp,
    },
}

impl State {
    /// All of their names.
    pub const NAMES: [&str; 4] = ["Pending", "InProgress", "Completed", "Failed"];

    /// The name, as it stands in answers.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::InProgress => "InProgress",
            Self::Completed { .. } => "Completed",
            Self::Failed { .. } => "Failed",
        }
    }

    /// Whether the request has ended.
    pub fn is_finished(&self) -> bool {
        self.finished_at().is_some()
    }

    /// Why it failed, if it did.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Failed { reason, .. } => Some(reason),
            _ => None,
        }
    }

    /// When the request ended, if it has.
    pub fn finished_at(&self) -> Option<Timestamp> {
        match self {
            Self::Completed { finished_at, .. } | Self::Failed { finished_at, .. } => Some(*finished_at),
            Self::Pending | Self::InProgress => None,
        }
    }
}

/// Which manager drives a request, and until when it may without renewing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The manager's id, fresh at each start.
    pub holder: Uuid,
    /// When another manager may take over.
    pub until: Timestamp,
}

/// What became of an insertion.
#[derive(Clone, Debug, PartialEq)]
pub enum Inserted {
    /// The request is stored.
    New,
    /// A request under the same idempotency key was there before; this is it, and nothing was
    /// stored.
    Existing(Box<Request>),
}

/// Which requests are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Those in the state of this name.
    pub status: Option<&'static str>,
    /// Those of this key.
    pub key: Option<String>,
    /// Those accepted then or later.
    pub from: Option<Timestamp>,
    /// Those accepted earlier.
    pub until: Option<Timestamp>,
    /// Those that come after this place.
    pub after: Option<Place>,
    /// So many of them, at least one.
    pub limit: usize,
}

impl Filter {
    /// The newest requests of all.
    pub fn newest(limit: usize) -> Self {
        Self { status: None, key: None, from: None, until: None, after: None, limit }
    }

    /// Whether it lets a request through, wherever in the list that is.
    pub fn lets_through(&self, request: &Request) -> bool {
        self.status.is_none_or(|status| status == request.progress.state.name())
            && self.key.as_ref().is_none_or(|key| *key == request.intent.key)
            && self.from.is_none_or(|from| request.created_at >= from)
            && self.until.is_none_or(|until| request.created_at < until)
    }
}

/// A place in the list of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// When the request there was accepted.
    pub created_at: Timestamp,
    /// Its id.
    pub id: Uuid,
}

/// Some requests of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The newest first.
    pub requests: Vec<Request>,
    /// Where to go on, if there may be more.
    pub next: Option<Place>,
}

/// A key of the cluster, as the managers know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its id.
    pub id: String,
    /// Its epoch.
    pub epoch: u64,
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
    /// The root public key.
    pub public_key: PublicKey,
    /// The BIP-32 chain code of the root key.
    #[serde(with = "hex::serde")]
    pub chain_code: [u8; 32],
    /// When this epoch was put on record; not known of records that were written before managers noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

impl KeyRecord {
    /// Whether this is a later epoch of the same key.
    pub fn succeeds(&self, earlier: &Self) -> bool {
        let Self { id, epoch, threshold: _, public_key, chain_code, since: _ } = earlier;
        (&self.id, &self.public_key, &self.chain_code) == (id, public_key, chain_code) && self.epoch > *epoch
    }
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached now, or did not answer in time: what was asked may or may not have
    /// happened. Every operation can be tried again.
    #[error("the store is unreachable: {0}")]
    Down(String),
    /// It answered, but not with what this code writes: a damaged or foreign record.
    #[error("the store holds a record that cannot be read: {0}")]
    Corrupt(String),
}

/// What [`Store::finish`] says to a state that is no end.
fn not_an_end(id: Uuid) -> StoreError {
    StoreError::Corrupt(format!("request {id} cannot end in a state that is no end"))
}

/// How long an operation may take before it counts as [`StoreError::Down`].
pub const OPERATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps requests and keys.
#[async_trait]
pub trait Store: Send + Sync {
    /// Makes the store ready for the first request: indexes, and whatever else it needs. Called at
    /// start, again until it succeeds.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prepare(&self) -> Result<(), StoreError>;

    /// Stores a new request. A request whose id is there already (a retry) counts as stored.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn insert(&self, request: &Request) -> Result<Inserted, StoreError>;

    /// The request of this id.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn get(&self, id: Uuid) -> Result<Option<Request>, StoreError>;

    /// The request under this idempotency key, as far as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn find(&self, idempotency_key: &str) -> Result<Option<Request>, StoreError>;

    /// Marks an attempt as begun: the request is then as far as `begun` says. `false` when the
    /// request has ended, or is driven by another manager than `holder`; nothing is then changed.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn begin_attempt(&self, id: Uuid, holder: Uuid, begun: &Progress) -> Result<bool, StoreError>;

    /// Ends a request in the finished state `state`. `false` when it had ended before (or is not there);
    /// nothing is then changed.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn finish(&self, id: Uuid, state: &State) -> Result<bool, StoreError>;

    /// Takes over up to `limit` unfinished requests whose lease lapsed before `now`, oldest first:
    /// their lease is then `lease`. No two managers get the same one.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn take_over(
        &self,
        now: Timestamp,
        lease: &Lease,
        limit: usize,
    ) -> Result<Vec<Request>, StoreError>;

    /// Prolongs the lease of every unfinished request that `lease.holder` drives. One that ends later
    /// already stays as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn renew(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Removes finished requests that ended before `before`; yields how many. What takes longer than
    /// [`OPERATION_TIMEOUT`] is left for the next call.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn expire(&self, before: Timestamp) -> Result<u64, StoreError>;

    /// Up to `limit` requests that have ended, with a webhook that is due at `now`; it is then due again at `until`. No two
    /// managers get the same one. A new request's is due at once, and then when [`Store::put_off`] says.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn take_due(
        &self,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Request>, StoreError>;

    /// Says when a request's webhook is due again; never, without a time.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn put_off(&self, id: Uuid, due: Option<Timestamp>) -> Result<(), StoreError>;

    /// Some of the requests that a filter lets through, the newest first. What takes longer than
    /// [`OPERATION_TIMEOUT`] is left for the next call.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list(&self, filter: &Filter) -> Result<Listed, StoreError>;

    /// Records a key unless one of its id is there; yields the one that stands. A later epoch of the same key, which is
    /// one with the same public key and chain code, takes the place of an earlier one.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn pin_key(&self, key: &KeyRecord) -> Result<KeyRecord, StoreError>;

    /// The keys on record.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Returns when the store answers.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn ping(&self) -> Result<(), StoreError>;
}

/// The store that the configuration names.
///
/// # Errors
/// [`StoreError`] when the URI is malformed or the file cannot be used.
pub fn open(config: &Config) -> Result<Arc<dyn Store>, StoreError> {
    Ok(match config.store {
        StoreKind::Mongodb => {
            Arc::new(mongo::MongoStore::connect(config.mongodb_uri.expose(), &config.mongodb_database)?)
        }
        StoreKind::Embedded => {
            std::fs::create_dir_all(&config.data_dir)
                .map_err(|error| StoreError::Down(format!("{}: {error}", config.data_dir.display())))?;
            Arc::new(embedded::EmbeddedStore::open(&config.data_dir.join("manager.redb"))?)
        }
    })
}
