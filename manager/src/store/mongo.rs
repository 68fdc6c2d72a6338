//! A store in MongoDB, shared by any number of managers.
//!
//! Every operation is one command, or a command and a look at what it did; each changes single
//! documents, under a condition that the database checks as it changes them. So no transactions
//! are needed. Writes are acknowledged by the journals of a majority; reads go to the primary and
//! see what a majority has.
//!
//! Times are text with nine decimals: exact, readable, and in order when compared as text.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::TryStreamExt;
use jiff::Timestamp;
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{self, Binary, Bson, Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::{
    Acknowledgment, ClientOptions, ConnectionString, IndexOptions, ReadConcern, ReadPreference,
    SelectionCriteria, WriteConcern,
};
use mongodb::{Client, Collection, Database, IndexModel};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::{Mutex, OnceCell};
use tokio::time::{sleep, timeout};
use tss_common::approval::Approval;
use tss_common::intent::Intent;
use tss_mpc::{PublicKey, Quorum, Threshold};
use uuid::Uuid;

use super::{
    Filter, Idempotency, Inserted, KeyRecord, Lease, Listed, OPERATION_TIMEOUT, Place, Progress, Request,
    State, Store, StoreError, not_an_end,
};

/// How long a server is looked for, and waited for when it is found; less than
/// [`OPERATION_TIMEOUT`], so that the error tells what was missing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the server waits for a majority; also less.
const MAJORITY_TIMEOUT: Duration = Duration::from_secs(4);
/// How many connections there are at most.
const CONNECTIONS: u32 = 64;
/// How many requests are removed at a time, more only when they ended at the same moment.
const EXPIRE_BATCH: u64 = 1000;
/// How long to wait for a document that is in the way of an insertion to reach a majority.
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);
/// What the server calls an insertion that a unique index forbids.
const DUPLICATE_KEY: i32 = 11000;
/// What it calls a question about a collection that is not there.
const NAMESPACE_NOT_FOUND: i32 = 26;

/// A store in MongoDB: the collections `signing_requests` and `keys` of one database.
pub struct MongoStore {
    address: ConnectionString,
    database: String,
    collections: OnceCell<Collections>,
    /// Whether the indexes are there, as far as is known: not before they were seen to, nor after the server was away,
    /// for another may be in its place.
    prepared: AtomicBool,
    /// Held by whoever sees to them; the others wait.
    preparing: Mutex<()>,
}

struct Collections {
    database: Database,
    requests: Collection<Stored>,
    /// The same, to look at ids alone.
    ids: Collection<Id>,
    /// The same, to look at times alone.
    ends: Collection<End>,
    keys: Collection<StoredKey>,
}

/// A request as a document.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(rename = "_id")]
    id: bson::Uuid,
    intent: Intent,
    message: Binary,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    approvals: Vec<Approval>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requester: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    webhook: Option<StoredWebhook>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency: Option<Idempotency>,
    created_at: Time,
    /// Where it stands in the list of all requests: see [`place`].
    place: String,
    deadline: Time,
    attempts: u32,
    quorum: Option<Quorum>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    begun_at: Option<Time>,
    state: State,
    /// Whether it has ended; the indexes hold only the one kind, or only the other.
    finished: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished_at: Option<Time>,
    lease: StoredLease,
}

#[derive(Serialize, Deserialize)]
struct StoredWebhook {
    url: String,
    /// Absent once it is never due again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<Time>,
    /// Which round of which manager took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    taken: Option<bson::Uuid>,
}

#[derive(Serialize, Deserialize)]
struct StoredLease {
    holder: bson::Uuid,
    until: Time,
}

/// The id of a document.
#[derive(Deserialize)]
struct Id {
    #[serde(rename = "_id")]
    id: bson::Uuid,
}

/// When the request of a document ended.
#[derive(Deserialize)]
struct End {
    finished_at: Time,
}

/// A key as a document.
#[derive(Serialize, Deserialize)]
struct StoredKey {
    #[serde(rename = "_id")]
    id: String,
    epoch: u64,
    #[serde(flatten)]
    threshold: Threshold,
    public_key: PublicKey,
    #[serde(with = "hex::serde")]
    chain_code: [u8; 32],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Time>,
}

/// A time as text of a fixed width, so that the order of the texts is that of the times.
#[derive(Clone, Copy)]
struct Time(Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.9}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Timestamp::deserialize(deserializer).map(Self)
    }
}

impl From<Time> for Bson {
    fn from(time: Time) -> Self {
        Self::String(time.to_string())
    }
}

impl From<&Request> for Stored {
    fn from(request: &Request) -> Self {
        Self {
            id: uuid(request.id),
            intent: request.intent.clone(),
            message: Binary { subtype: BinarySubtype::Generic, bytes: request.message.clone() },
            approvals: request.approvals.clone(),
            requester: request.requester.clone(),
            webhook: request.webhook.as_ref().map(|url| StoredWebhook {
                url: url.clone(),
                due: Some(Time(request.created_at)),
                taken: None,
            }),
            idempotency: request.idempotency.clone(),
            created_at: Time(request.created_at),
            place: place(Place { created_at: request.created_at, id: request.id }),
            deadline: Time(request.deadline),
            attempts: request.progress.attempts,
            quorum: request.progress.quorum.clone(),
            begun_at: request.progress.begun_at.map(Time),
            finished: request.progress.state.is_finished(),
            finished_at: request.progress.state.finished_at().map(Time),
            state: request.progress.state.clone(),
            lease: StoredLease { holder: uuid(request.lease.holder), until: Time(request.lease.until) },
        }
    }
}

impl From<Stored> for Request {
    fn from(stored: Stored) -> Self {
        Self {
            id: Uuid::from_bytes(stored.id.bytes()),
            intent: stored.intent,
            message: stored.message.bytes,
            approvals: stored.approvals,
            requester: stored.requester,
            webhook: stored.webhook.map(|webhook| webhook.url),
            idempotency: stored.idempotency,
            created_at: stored.created_at.0,
            deadline: stored.deadline.0,
            progress: Progress {
                attempts: stored.attempts,
                quorum: stored.quorum,
                begun_at: stored.begun_at.map(|time| time.0),
                state: stored.state,
            },
            lease: Lease {
                holder: Uuid::from_bytes(stored.lease.holder.bytes()),
                until: stored.lease.until.0,
            },
        }
    }
}

impl From<&KeyRecord> for StoredKey {
    fn from(key: &KeyRecord) -> Self {
        Self {
            id: key.id.clone(),
            epoch: key.epoch,
            threshold: key.threshold,
            public_key: key.public_key,
            chain_code: key.chain_code,
            since: key.since.map(Time),
        }
    }
}

impl From<StoredKey> for KeyRecord {
    fn from(stored: StoredKey) -> Self {
        Self {
            id: stored.id,
            epoch: stored.epoch,
            threshold: stored.threshold,
            public_key: stored.public_key,
            chain_code: stored.chain_code,
            since: stored.since.map(|time| time.0),
        }
    }
}

impl MongoStore {
    /// The store in the database `database` at `uri`. Returns at once and works without the
    /// server, which is sought when it is first needed.
    ///
    /// # Errors
    /// [`StoreError::Down`] when the URI is malformed.
    pub fn connect(uri: &str, database: &str) -> Result<Self, StoreError> {
        let address = ConnectionString::parse(uri)
            .map_err(|error| StoreError::Down(format!("malformed MongoDB URI: {}", error.kind)))?;
        Ok(Self {
            address,
            database: database.to_owned(),
            collections: OnceCell::new(),
            prepared: AtomicBool::new(false),
            preparing: Mutex::new(()),
        })
    }

    /// The collections, with their indexes. Without those the store is slow, and lets an idempotency key be used twice:
    /// nothing is read or written before.
    async fn ready(&self) -> Result<&Collections, StoreError> {
        let collections = self.collections().await?;
        if !self.prepared.load(Ordering::Acquire) {
            let _only_one = self.preparing.lock().await;
            if !self.prepared.load(Ordering::Acquire) {
                Self::create_indexes(&collections.requests).await?;
                self.prepared.store(true, Ordering::Release);
            }
        }
        Ok(collections)
    }

    /// Runs an operation, which must not take longer than [`OPERATION_TIMEOUT`].
    async fn within<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let result = within(operation).await;
        if matches!(result, Err(StoreError::Down(_))) {
            self.prepared.store(false, Ordering::Release);
        }
        result
    }

    /// Creates the indexes that are not there. What there is is asked first: after each failure this comes between the
    /// writes of other managers, and to say again what shall be there can make a server hold them up. An index that is
    /// to become another one needs another name.
    async fn create_indexes(requests: &Collection<Stored>) -> Result<(), StoreError> {
        let there = match requests.list_index_names().await {
            Ok(names) => names,
            Err(error) if is_no_such_collection(&error) => Vec::new(),
            Err(error) => return Err(failure(error)),
        };
        let index = |name: &str, keys, unique, only: Option<Document>| {
            let options =
                IndexOptions::builder().name(name.to_owned()).unique(unique).partial_filter_expression(only);
            IndexModel::builder().keys(keys).options(options.build()).build()
        };
        let indexes = [
            index(
                "idempotency_keys",
                doc! { "idempotency.key": 1 },
                Some(true),
                Some(doc! { "idempotency.key": some_text() }),
            ),
            index("unfinished_by_lease", doc! { "lease.until": 1 }, None, Some(doc! { "finished": false })),
            index("webhooks_due", doc! { "webhook.due": 1 }, None, Some(doc! { "webhook.due": some_text() })),
            index("list", doc! { "place": -1 }, None, None),
            index("finished_by_time", doc! { "finished_at": 1 }, None, Some(doc! { "finished": true })),
        ];
        let is_there = |index: &IndexModel| {
            let name = index.options.as_ref().and_then(|options| options.name.as_ref());
            name.is_some_and(|name| there.contains(name))
        };
        let missing: Vec<IndexModel> = indexes.into_iter().filter(|index| !is_there(index)).collect();
        if !missing.is_empty() {
            requests.create_indexes(missing).await.map_err(failure)?;
        }
        Ok(())
    }

    async fn collections(&self) -> Result<&Collections, StoreError> {
        self.collections
            .get_or_try_init(|| async {
                let mut options = ClientOptions::parse(self.address.clone()).await.map_err(failure)?;
                options.app_name.get_or_insert_with(|| "tss-manager".to_owned());
                options.server_selection_timeout = Some(CONNECT_TIMEOUT);
                options.connect_timeout = Some(CONNECT_TIMEOUT);
                options.max_pool_size.get_or_insert(CONNECTIONS);
                options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
                options.read_concern = Some(ReadConcern::majority());
                let majority = WriteConcern::builder().w(Acknowledgment::Majority).journal(true);
                options.write_concern = Some(majority.w_timeout(MAJORITY_TIMEOUT).build());
                let database = Client::with_options(options).map_err(failure)?.database(&self.database);
                let requests = database.collection("signing_requests");
                let (ids, ends) = (requests.clone_with_type(), requests.clone_with_type());
                let keys = database.collection("keys");
                Ok(Collections { database, requests, ids, ends, keys })
            })
            .await
    }

    /// Inserts a request; `None` when a unique index forbids it, but what was in the way is gone,
    /// or has not reached a majority yet.
    async fn try_insert(
        requests: &Collection<Stored>,
        request: &Request,
    ) -> Result<Option<Inserted>, StoreError> {
        match requests.insert_one(Stored::from(request)).await {
            Ok(_) => return Ok(Some(Inserted::New)),
            Err(error) if is_duplicate(&error) => {}
            Err(error) => return Err(failure(error)),
        }
        if requests.find_one(doc! { "_id": uuid(request.id) }).await.map_err(failure)?.is_some() {
            return Ok(Some(Inserted::New));
        }
        let Some(Idempotency { key, .. }) = &request.idempotency else { return Ok(None) };
        Ok(Self::named(requests, key).await?.map(|existing| Inserted::Existing(Box::new(existing))))
    }

    async fn named(requests: &Collection<Stored>, key: &str) -> Result<Option<Request>, StoreError> {
        let stored = requests.find_one(doc! { "idempotency.key": key }).await.map_err(failure)?;
        Ok(stored.map(Request::from))
    }
}

#[async_trait]
impl Store for MongoStore {
    async fn prepare(&self) -> Result<(), StoreError> {
        self.prepared.store(false, Ordering::Release);
        self.within(async { self.ready().await.map(|_| ()) }).await
    }

    async fn insert(&self, request: &Request) -> Result<Inserted, StoreError> {
        self.within(async {
            let requests = &self.ready().await?.requests;
            loop {
                if let Some(inserted) = Self::try_insert(requests, request).await? {
                    return Ok(inserted);
                }
                sleep(CONFLICT_PAUSE).await;
            }
        })
        .await
    }

    async fn get(&self, id: Uuid) -> Result<Option<Request>, StoreError> {
        self.within(async {
            let requests = &self.ready().await?.requests;
            let stored = requests.find_one(doc! { "_id": uuid(id) }).await.map_err(failure)?;
            Ok(stored.map(Request::from))
        })
        .await
    }

    async fn find(&self, idempotency_key: &str) -> Result<Option<Request>, StoreError> {
        self.within(async { Self::named(&self.ready().await?.requests, idempotency_key).await }).await
    }

    async fn begin_attempt(&self, id: Uuid, holder: Uuid, begun: &Progress) -> Result<bool, StoreError> {
        let filter = doc! { "_id": uuid(id), "finished": false, "lease.holder": uuid(holder) };
        let change = doc! { "$set": {
            "attempts": i64::from(begun.attempts),
            "quorum": to_bson(&begun.quorum)?,
            "begun_at": begun.begun_at.map(Time),
            "state": to_bson(&begun.state)?,
        } };
        self.within(async {
            let requests = &self.ready().await?.requests;
            let outcome = requests.update_one(filter, change).await.map_err(failure)?;
            Ok(outcome.matched_count > 0)
        })
        .await
    }

    async fn finish(&self, id: Uuid, state: &State) -> Result<bool, StoreError> {
        let Some(time) = state.finished_at() else { return Err(not_an_end(id)) };
        let filter = doc! { "_id": uuid(id), "finished": false };
        let change =
            doc! { "$set": { "state": to_bson(state)?, "finished": true, "finished_at": Time(time) } };
        self.within(async {
            let requests = &self.ready().await?.requests;
            let outcome = requests.update_one(filter, change).await.map_err(failure)?;
            Ok(outcome.matched_count > 0)
        })
        .await
    }

    async fn take_over(
        &self,
        now: Timestamp,
        lease: &Lease,
        limit: usize,
    ) -> Result<Vec<Request>, StoreError> {
        // The database takes a limit of 0 for none.
        if limit == 0 {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let lapsed = doc! { "finished": false, "lease.until": { "$lt": Time(now) } };
        let oldest_first = doc! { "created_at": 1, "_id": 1 };
        self.within(async {
            let Collections { requests, ids, .. } = self.ready().await?;
            let found = ids.find(lapsed.clone()).projection(doc! { "_id": 1 });
            let found = found.sort(oldest_first.clone()).limit(limit).await.map_err(failure)?;
            let ids: Vec<_> = found.map_ok(|found| found.id).try_collect().await.map_err(failure)?;
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            // Other managers found the same ones; each of them changes for the first to come.
            let mut filter = lapsed;
            filter.insert("_id", doc! { "$in": &ids });
            let (holder, until) = (uuid(lease.holder), Time(lease.until));
            let change = doc! { "$set": { "lease.holder": holder, "lease.until": until } };
            if requests.update_many(filter, change).await.map_err(failure)?.matched_count == 0 {
                return Ok(Vec::new());
            }
            let taken = doc! {
                "_id": { "$in": ids }, "finished": false, "lease.holder": holder, "lease.until": until,
            };
            let taken = requests.find(taken).sort(oldest_first).await.map_err(failure)?;
            taken.map_ok(Request::from).try_collect().await.map_err(failure)
        })
        .await
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let until = Time(lease.until);
        let held =
            doc! { "finished": false, "lease.until": { "$lt": until }, "lease.holder": uuid(lease.holder) };
        self.within(async {
            let requests = &self.ready().await?.requests;
            let longer = doc! { "$set": { "lease.until": until } };
            requests.update_many(held, longer).await.map_err(failure)?;
            Ok(())
        })
        .await
    }

    async fn expire(&self, before: Timestamp) -> Result<u64, StoreError> {
        let start = Instant::now();
        let old = doc! { "finished": true, "finished_at": { "$lt": Time(before) } };
        let mut removed = 0;
        while start.elapsed() < OPERATION_TIMEOUT {
            let (deleted, last) = self
                .within(async {
                    let Collections { requests, ends, .. } = self.ready().await?;
                    // Up to the end of the last of a batch, or all when there are fewer.
                    let end = ends.find_one(old.clone()).projection(doc! { "finished_at": 1 });
                    let end =
                        end.sort(doc! { "finished_at": 1 }).skip(EXPIRE_BATCH - 1).await.map_err(failure)?;
                    let some = match &end {
                        Some(end) => doc! { "finished": true, "finished_at": { "$lte": end.finished_at } },
                        None => old.clone(),
                    };
                    let outcome = requests.delete_many(some).await.map_err(failure)?;
                    Ok((outcome.deleted_count, end.is_none()))
                })
                .await?;
            removed += deleted;
            if last {
                break;
            }
        }
        Ok(removed)
    }

    async fn take_due(
        &self,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Request>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let due = doc! { "webhook.due": { "$gte": "", "$lte": Time(now) }, "finished": true };
        self.within(async {
            let Collections { requests, ids, .. } = self.ready().await?;
            let found = ids.find(due.clone()).projection(doc! { "_id": 1 }).limit(limit);
            let found = found.await.map_err(failure)?;
            let ids: Vec<_> = found.map_ok(|found| found.id).try_collect().await.map_err(failure)?;
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            // Other managers found the same ones; each of them changes for the first to come.
            let mut filter = due;
            filter.insert("_id", doc! { "$in": &ids });
            let round = bson::Uuid::new();
            let change = doc! { "$set": { "webhook.due": Time(until), "webhook.taken": round } };
            requests.update_many(filter, change).await.map_err(failure)?;
            let taken = doc! { "_id": { "$in": ids }, "webhook.taken": round };
            let taken = requests.find(taken).await.map_err(failure)?;
            taken.map_ok(Request::from).try_collect().await.map_err(failure)
        })
        .await
    }

    async fn put_off(&self, id: Uuid, due: Option<Timestamp>) -> Result<(), StoreError> {
        let change = match due {
            Some(due) => doc! { "$set": { "webhook.due": Time(due) } },
            None => doc! { "$unset": { "webhook.due": "" } },
        };
        let known = doc! { "_id": uuid(id), "webhook.due": { "$exists": true } };
        self.within(async {
            self.ready().await?.requests.update_one(known, change).await.map_err(failure)?;
            Ok(())
        })
        .await
    }

    async fn list(&self, filter: &Filter) -> Result<Listed, StoreError> {
        let mut all = Vec::new();
        if let Some(status) = filter.status {
            all.push(doc! { "state.status": status });
        }
        if let Some(key) = &filter.key {
            all.push(doc! { "intent.key": key });
        }
        if let Some(from) = filter.from {
            all.push(doc! { "place": { "$gte": Time(from).to_string() } });
        }
        if let Some(until) = filter.until {
            all.push(doc! { "place": { "$lt": Time(until).to_string() } });
        }
        if let Some(after) = filter.after {
            all.push(doc! { "place": { "$lt": place(after) } });
        }
        let matching = if all.is_empty() {
            doc! {}
        } else {
            doc! { "$and": all }
        };
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        self.within(async {
            let requests = &self.ready().await?.requests;
            let found = requests.find(matching).sort(doc! { "place": -1 }).limit(limit);
            let found = found.await.map_err(failure)?;
            let requests: Vec<Request> = found.map_ok(Request::from).try_collect().await.map_err(failure)?;
            let last = requests.last().filter(|_| requests.len() >= filter.limit);
            let next = last.map(|last| Place { created_at: last.created_at, id: last.id });
            Ok(Listed { requests, next })
        })
        .await
    }

    async fn pin_key(&self, key: &KeyRecord) -> Result<KeyRecord, StoreError> {
        self.within(async {
            let keys = &self.ready().await?.keys;
            loop {
                match keys.insert_one(StoredKey::from(key)).await {
                    Ok(_) => return Ok(key.clone()),
                    Err(error) if is_duplicate(&error) => {}
                    Err(error) => return Err(failure(error)),
                }
                // The one in the way may not have reached a majority yet.
                if let Some(standing) = keys.find_one(doc! { "_id": &key.id }).await.map_err(failure)? {
                    let epoch = to_bson(&standing.epoch)?;
                    let standing = KeyRecord::from(standing);
                    if !key.succeeds(&standing) {
                        return Ok(standing);
                    }
                    // If it is still the one that stands; otherwise there is another to look at.
                    let replaced = doc! { "_id": &key.id, "epoch": epoch };
                    let outcome = keys.replace_one(replaced, StoredKey::from(key)).await.map_err(failure)?;
                    if outcome.matched_count > 0 {
                        return Ok(key.clone());
                    }
                }
                sleep(CONFLICT_PAUSE).await;
            }
        })
        .await
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.within(async {
            let keys = &self.ready().await?.keys;
            let found = keys.find(doc! {}).sort(doc! { "_id": 1 }).await.map_err(failure)?;
            found.map_ok(KeyRecord::from).try_collect().await.map_err(failure)
        })
        .await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.within(async {
            let database = &self.ready().await?.database;
            database.run_command(doc! { "ping": 1 }).await.map_err(failure)?;
            Ok(())
        })
        .await
    }
}

impl fmt::Debug for MongoStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The address may hold a password.
        f.debug_struct("MongoStore").field("database", &self.database).finish_non_exhaustive()
    }
}

/// What is text, and not none. An index of these alone is one that a search for a text can use: that the field then
/// exists, which would be the plainer condition, is more than every server concludes.
fn some_text() -> Document {
    doc! { "$gte": "" }
}

/// Gives an operation [`OPERATION_TIMEOUT`].
async fn within<T>(operation: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(OPERATION_TIMEOUT, operation)
        .await
        .map_err(|_| StoreError::Down(format!("no answer within {OPERATION_TIMEOUT:?}")))?
}

/// A place in the list as text, so that the order of the texts is that of the list: by time, then by id.
fn place(Place { created_at, id }: Place) -> String {
    format!("{} {id}", Time(created_at))
}

fn uuid(id: Uuid) -> bson::Uuid {
    bson::Uuid::from_bytes(id.into_bytes())
}

fn to_bson(value: &impl Serialize) -> Result<Bson, StoreError> {
    bson::serialize_to_bson(value)
        .map_err(|error| StoreError::Corrupt(format!("a record cannot be written: {error}")))
}

fn is_no_such_collection(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Command(error) if error.code == NAMESPACE_NOT_FOUND)
}

fn is_duplicate(error: &Error) -> bool {
    matches!(&*error.kind, ErrorKind::Write(WriteFailure::WriteError(error)) if error.code == DUPLICATE_KEY)
}

/// What the driver reports, in the store's terms.
fn failure(error: Error) -> StoreError {
    match *error.kind {
        kind @ (ErrorKind::Bson(_) | ErrorKind::InvalidResponse { .. }) => {
            StoreError::Corrupt(kind.to_string())
        }
        kind => StoreError::Down(kind.to_string()),
    }
}
