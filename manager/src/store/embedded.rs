//! A store in one file of this process, on redb: for the devnet and for a single manager.
//!
//! All writes go through one thread. It takes every write that waits, applies them in one
//! transaction, commits once (one fsync), and then answers each: the more callers write at once,
//! the less each of them costs. Reads see the last commit and go around the thread.
//!
//! What a request is signed for stands in one table and is written once; its progress stands in
//! another. The unfinished ones have a table of their own with a short row each, which is all
//! that [`Store::renew`] and [`Store::take_over`] look through.

use std::fmt;
use std::fs::File;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageError, Table,
    TableDefinition, WriteTransaction,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tss_common::approval::Approval;
use tss_common::intent::Intent;
use uuid::Uuid;

use super::{
    Filter, Idempotency, Inserted, KeyRecord, Lease, Listed, OPERATION_TIMEOUT, Place, Progress, Request,
    State, Store, StoreError, not_an_end,
};

/// What a request asks for, by its id: [`Asked`] in JSON. Never rewritten.
const REQUESTS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("requests");
/// How far it is, by its id: [`Status`] in JSON.
const STATUS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("status");
/// The requests that have not ended, by id: [`Unfinished`].
const UNFINISHED: TableDefinition<'_, u128, (i128, u128, i128)> = TableDefinition::new("unfinished");
/// The requests that have ended: when, in nanoseconds since 1970, and their id.
const FINISHED: TableDefinition<'_, (i128, u128), ()> = TableDefinition::new("finished");
/// All requests, as they are listed: when they were accepted, in nanoseconds since 1970, and their id.
const LIST: TableDefinition<'_, (i128, u128), ()> = TableDefinition::new("list");
/// When the webhook of a request is due, in nanoseconds since 1970, by the request's id.
const WEBHOOKS: TableDefinition<'_, u128, i128> = TableDefinition::new("webhooks");
/// The id of the request under an idempotency key.
const IDEMPOTENCY: TableDefinition<'_, &str, u128> = TableDefinition::new("idempotency");
/// The keys, by id: [`KeyRecord`] in JSON.
const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
/// Facts on the file itself.
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");

/// The row of [`ABOUT`] that tells how the other tables are to be read.
const FORMAT_ROW: &str = "format";
/// The format this code writes.
const FORMAT: u64 = 1;

/// Memory for pages of the file.
const CACHE_BYTES: usize = 128 << 20;
/// How many writes may wait; more callers wait to be let in.
const QUEUE: usize = 512;
/// How many writes are committed together at most.
const BATCH: usize = 512;
/// How many bytes of requests are committed together at most, but for the last one.
const BATCH_BYTES: usize = 8 << 20;
/// How many requests are removed at a time, so that other writes need not wait for long.
const EXPIRE_BATCH: usize = 500;

/// A store in one file. Dropping it waits until all that was asked of it is written.
pub struct EmbeddedStore {
    database: Arc<Database>,
    /// Ends the thread by being dropped; present until then.
    writes: Option<mpsc::Sender<Write>>,
    writer: Option<JoinHandle<()>>,
}

/// A write on its way to the writer thread.
struct Write {
    /// About how much it writes.
    bytes: usize,
    apply: Box<dyn FnOnce(&mut Tables<'_>) -> Applied + Send>,
}

/// Tells a caller what came of its write, given what came of the commit.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A write after it was applied: what remains is to tell the caller whether it was committed, and
/// whether others can be committed with it.
struct Applied {
    answer: Answer,
    broken: ControlFlow<StoreError>,
}

/// Why a write was not applied.
enum Fault {
    /// The file; the whole transaction is in doubt.
    Storage(StoreError),
    /// A record that cannot be read, found before anything was changed.
    Record(StoreError),
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        Self::Storage(failure(error))
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Record(error)
    }
}

/// The tables within a write transaction.
struct Tables<'t> {
    requests: Table<'t, u128, &'static [u8]>,
    status: Table<'t, u128, &'static [u8]>,
    unfinished: Table<'t, u128, (i128, u128, i128)>,
    finished: Table<'t, (i128, u128), ()>,
    list: Table<'t, (i128, u128), ()>,
    webhooks: Table<'t, u128, i128>,
    idempotency: Table<'t, &'static str, u128>,
    keys: Table<'t, &'static str, &'static [u8]>,
    /// Whether there is anything to commit.
    changed: bool,
}

/// What never changes in a request.
#[derive(Serialize, Deserialize)]
struct Asked {
    intent: Intent,
    #[serde(with = "tss_common::encoding::base64")]
    message: Vec<u8>,
    #[serde(default)]
    approvals: Vec<Approval>,
    #[serde(default)]
    requester: Option<String>,
    #[serde(default)]
    webhook: Option<String>,
    idempotency: Option<Idempotency>,
    created_at: Timestamp,
    deadline: Timestamp,
}

/// The part of [`Asked`] that the removal of a request needs.
#[derive(Deserialize)]
struct Named {
    idempotency: Option<Idempotency>,
    created_at: Timestamp,
}

/// What changes in a request.
#[derive(Serialize, Deserialize)]
struct Status {
    progress: Progress,
    /// The last lease; only of a finished request, else it stands in [`UNFINISHED`].
    lease: Option<Lease>,
}

/// A row of [`UNFINISHED`].
struct Unfinished {
    created_at: i128,
    lease: Lease,
}

impl Unfinished {
    fn read((created_at, holder, until): (i128, u128, i128)) -> Result<Self, StoreError> {
        let until = Timestamp::from_nanosecond(until)
            .map_err(|error| StoreError::Corrupt(format!("a lease's end: {error}")))?;
        Ok(Self { created_at, lease: Lease { holder: Uuid::from_u128(holder), until } })
    }

    fn row(created_at: i128, lease: &Lease) -> (i128, u128, i128) {
        (created_at, lease.holder.as_u128(), lease.until.as_nanosecond())
    }
}

/// A request as its tables hold it.
struct Rows {
    id: u128,
    asked: Vec<u8>,
    status: Vec<u8>,
    lease: Option<Lease>,
}

impl Rows {
    /// The rows of a request, if it is there.
    fn find(
        id: u128,
        requests: &impl ReadableTable<u128, &'static [u8]>,
        status: &impl ReadableTable<u128, &'static [u8]>,
        unfinished: &impl ReadableTable<u128, (i128, u128, i128)>,
    ) -> Result<Option<Self>, Fault> {
        let Some(asked) = requests.get(id)? else { return Ok(None) };
        let Some(status) = status.get(id)? else {
            return Err(StoreError::Corrupt(format!("request {} has no status", Uuid::from_u128(id))).into());
        };
        let lease =
            unfinished.get(id)?.map(|row| Unfinished::read(row.value())).transpose()?.map(|row| row.lease);
        Ok(Some(Self { id, asked: asked.value().to_vec(), status: status.value().to_vec(), lease }))
    }

    fn decode(self) -> Result<Request, StoreError> {
        let id = Uuid::from_u128(self.id);
        let asked: Asked = decode("request", id, &self.asked)?;
        let status: Status = decode("status of request", id, &self.status)?;
        let Some(lease) = self.lease.or(status.lease) else {
            return Err(StoreError::Corrupt(format!("request {id} has no lease")));
        };
        Ok(Request {
            id,
            intent: asked.intent,
            message: asked.message,
            approvals: asked.approvals,
            requester: asked.requester,
            webhook: asked.webhook,
            idempotency: asked.idempotency,
            created_at: asked.created_at,
            deadline: asked.deadline,
            progress: status.progress,
            lease,
        })
    }
}

impl EmbeddedStore {
    /// Opens the store in the file `path`, which is created if it is not there. The file is
    /// checked from end to end, and locked: nobody else can open it until the store is dropped.
    ///
    /// # Errors
    /// [`StoreError::Down`] when the file cannot be opened, among others because another process
    /// has it open; [`StoreError::Corrupt`] when it holds something else, or is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        // A damaged file can trip an assertion within the database.
        let database = catch_unwind(AssertUnwindSafe(|| Self::open_file(path)))
            .unwrap_or_else(|_| Err(StoreError::Corrupt("the file is damaged".to_owned())))
            .map_err(|error| at(path, error))?;
        let database = Arc::new(database);
        let (writes, queue) = mpsc::channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let database = Arc::clone(&database);
                move || write_all(&database, queue)
            })
            .map_err(|error| StoreError::Down(format!("no thread for the store: {error}")))?;
        Ok(Self { database, writes: Some(writes), writer: Some(writer) })
    }

    fn open_file(path: &Path) -> Result<Database, StoreError> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create(path)
            .map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => {
                    StoreError::Down("another process has the file open: a store has one manager".to_owned())
                }
                DatabaseError::Storage(StorageError::Io(error))
                    if error.kind() == std::io::ErrorKind::InvalidData =>
                {
                    StoreError::Corrupt(error.to_string())
                }
                other => failure(other),
            })?;
        // A new file is only durable once its directory is.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(failure)?;

        let transaction = database.begin_write().map_err(failure)?;
        {
            let mut about = transaction.open_table(ABOUT).map_err(failure)?;
            let format = about.get(FORMAT_ROW).map_err(failure)?.map(|row| row.value());
            match format {
                Some(FORMAT) => {}
                Some(other) => {
                    return Err(StoreError::Corrupt(format!("it has format {other}: expected {FORMAT}")));
                }
                None if transaction.list_tables().map_err(failure)?.count() > 1 => {
                    return Err(StoreError::Corrupt("it is the database of another program".to_owned()));
                }
                None => drop(about.insert(FORMAT_ROW, FORMAT).map_err(failure)?),
            }
        }
        Tables::open(&transaction)?;
        transaction.commit().map_err(failure)?;
        Ok(database)
    }

    /// Has the writer thread do `work`; returns once it is committed.
    async fn write<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Tables<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let apply = Box::new(move |tables: &mut Tables<'_>| {
            let (outcome, broken) = match work(tables) {
                Ok(value) => (Ok(value), ControlFlow::Continue(())),
                Err(Fault::Record(error)) => (Err(error), ControlFlow::Continue(())),
                Err(Fault::Storage(error)) => (Err(error.clone()), ControlFlow::Break(error)),
            };
            // A caller that has given up has dropped the receiver.
            let answer =
                Box::new(move |committed: Result<(), StoreError>| drop(sender.send(committed.and(outcome))));
            Applied { answer, broken }
        });
        let ended = || StoreError::Down("the thread that writes has ended".to_owned());
        let answer = async {
            let writes = self.writes.as_ref().ok_or_else(ended)?;
            writes.send(Write { bytes, apply }).await.map_err(|_| ended())?;
            receiver.await.map_err(|_| StoreError::Down("the write was given up".to_owned()))?
        };
        timeout(OPERATION_TIMEOUT, answer)
            .await
            .map_err(|_| StoreError::Down(format!("no answer within {OPERATION_TIMEOUT:?}")))?
    }

    fn read(&self) -> Result<ReadTransaction, StoreError> {
        self.database.begin_read().map_err(failure)
    }

    fn request(transaction: &ReadTransaction, id: u128) -> Result<Option<Request>, StoreError> {
        let requests = transaction.open_table(REQUESTS).map_err(failure)?;
        let status = transaction.open_table(STATUS).map_err(failure)?;
        let unfinished = transaction.open_table(UNFINISHED).map_err(failure)?;
        let rows = Rows::find(id, &requests, &status, &unfinished).map_err(Fault::into_inner)?;
        rows.map(Rows::decode).transpose()
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(writer) = self.writer.take() {
            // It has told its callers if it panicked.
            drop(writer.join());
        }
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").finish_non_exhaustive()
    }
}

/// The writer thread: ends when all senders are dropped and the queue is empty.
fn write_all(database: &Database, mut queue: mpsc::Receiver<Write>) {
    while let Some(first) = queue.blocking_recv() {
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            bytes = bytes.saturating_add(next.bytes);
            batch.push(next);
        }
        let mut answers = Vec::with_capacity(batch.len());
        let committed = commit_together(database, batch, &mut answers);
        if let Err(error) = &committed {
            tracing::error!(%error, "the store cannot write");
        }
        for answer in answers {
            answer(committed.clone());
        }
    }
}

/// Applies writes in one transaction. Those it does not come to are dropped, which their callers
/// notice.
fn commit_together(
    database: &Database,
    batch: Vec<Write>,
    answers: &mut Vec<Answer>,
) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(failure)?;
    let mut tables = Tables::open(&transaction)?;
    for write in batch {
        let Applied { answer, broken } = (write.apply)(&mut tables);
        answers.push(answer);
        if let ControlFlow::Break(error) = broken {
            return Err(error);
        }
    }
    let changed = tables.changed;
    drop(tables);
    if changed { transaction.commit().map_err(failure) } else { transaction.abort().map_err(failure) }
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            requests: transaction.open_table(REQUESTS).map_err(failure)?,
            status: transaction.open_table(STATUS).map_err(failure)?,
            unfinished: transaction.open_table(UNFINISHED).map_err(failure)?,
            finished: transaction.open_table(FINISHED).map_err(failure)?,
            list: transaction.open_table(LIST).map_err(failure)?,
            webhooks: transaction.open_table(WEBHOOKS).map_err(failure)?,
            idempotency: transaction.open_table(IDEMPOTENCY).map_err(failure)?,
            keys: transaction.open_table(KEYS).map_err(failure)?,
            changed: false,
        })
    }

    fn rows(&self, id: u128) -> Result<Option<Rows>, Fault> {
        Rows::find(id, &self.requests, &self.status, &self.unfinished)
    }

    fn lease(&self, id: u128) -> Result<Option<Unfinished>, Fault> {
        Ok(self.unfinished.get(id)?.map(|row| Unfinished::read(row.value())).transpose()?)
    }

    fn status(&self, id: u128) -> Result<Option<Status>, Fault> {
        let row = self.status.get(id)?;
        Ok(row.map(|row| decode("status of request", Uuid::from_u128(id), row.value())).transpose()?)
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn insert(&self, request: &Request) -> Result<Inserted, StoreError> {
        let id = request.id.as_u128();
        let key = request.idempotency.as_ref().map(|idempotency| idempotency.key.clone());
        let asked = encode(&Asked {
            intent: request.intent.clone(),
            message: request.message.clone(),
            approvals: request.approvals.clone(),
            requester: request.requester.clone(),
            webhook: request.webhook.clone(),
            idempotency: request.idempotency.clone(),
            created_at: request.created_at,
            deadline: request.deadline,
        })?;
        let finished_at = request.progress.state.finished_at();
        let listed = (request.created_at.as_nanosecond(), id);
        let has_webhook = request.webhook.is_some();
        let lease = finished_at.is_some().then(|| request.lease.clone());
        let status = encode(&Status { progress: request.progress.clone(), lease })?;
        let unfinished = Unfinished::row(request.created_at.as_nanosecond(), &request.lease);
        let existing = self
            .write(asked.len(), move |tables| {
                if tables.requests.get(id)?.is_some() {
                    return Ok(None);
                }
                if let Some(key) = &key {
                    let other = tables.idempotency.get(key.as_str())?.map(|row| row.value());
                    if let Some(other) = other {
                        let rows = tables.rows(other)?;
                        return Ok(Some(rows.ok_or_else(|| {
                            StoreError::Corrupt(format!("request {} is missing", Uuid::from_u128(other)))
                        })?));
                    }
                }
                tables.changed = true;
                if let Some(key) = &key {
                    tables.idempotency.insert(key.as_str(), id)?;
                }
                tables.requests.insert(id, asked.as_slice())?;
                tables.list.insert(listed, ())?;
                if has_webhook {
                    tables.webhooks.insert(id, listed.0)?;
                }
                tables.status.insert(id, status.as_slice())?;
                match finished_at {
                    Some(time) => drop(tables.finished.insert((time.as_nanosecond(), id), ())?),
                    None => drop(tables.unfinished.insert(id, unfinished)?),
                }
                Ok(None)
            })
            .await?;
        match existing {
            None => Ok(Inserted::New),
            Some(rows) => Ok(Inserted::Existing(Box::new(rows.decode()?))),
        }
    }

    async fn get(&self, id: Uuid) -> Result<Option<Request>, StoreError> {
        Self::request(&self.read()?, id.as_u128())
    }

    async fn find(&self, idempotency_key: &str) -> Result<Option<Request>, StoreError> {
        let transaction = self.read()?;
        let names = transaction.open_table(IDEMPOTENCY).map_err(failure)?;
        let Some(id) = names.get(idempotency_key).map_err(failure)?.map(|row| row.value()) else {
            return Ok(None);
        };
        let missing = || StoreError::Corrupt(format!("request {} is missing", Uuid::from_u128(id)));
        Self::request(&transaction, id)?.ok_or_else(missing).map(Some)
    }

    async fn begin_attempt(&self, id: Uuid, holder: Uuid, begun: &Progress) -> Result<bool, StoreError> {
        let id = id.as_u128();
        let status = encode(&Status { progress: begun.clone(), lease: None })?;
        self.write(status.len(), move |tables| {
            let driven = tables.lease(id)?.is_some_and(|row| row.lease.holder == holder);
            if driven {
                tables.changed = true;
                tables.status.insert(id, status.as_slice())?;
            }
            Ok(driven)
        })
        .await
    }

    async fn finish(&self, id: Uuid, state: &State) -> Result<bool, StoreError> {
        let Some(time) = state.finished_at() else { return Err(not_an_end(id)) };
        let id = id.as_u128();
        let state = state.clone();
        self.write(1024, move |tables| {
            let Some(row) = tables.lease(id)? else { return Ok(false) };
            let Some(mut status) = tables.status(id)? else {
                return Err(
                    StoreError::Corrupt(format!("request {} has no status", Uuid::from_u128(id))).into()
                );
            };
            status.progress.state = state;
            status.lease = Some(row.lease);
            let status = encode(&status)?;
            tables.changed = true;
            tables.status.insert(id, status.as_slice())?;
            tables.unfinished.remove(id)?;
            tables.finished.insert((time.as_nanosecond(), id), ())?;
            Ok(true)
        })
        .await
    }

    async fn take_over(
        &self,
        now: Timestamp,
        lease: &Lease,
        limit: usize,
    ) -> Result<Vec<Request>, StoreError> {
        // Nearly always there is none, and then nobody need write.
        let transaction = self.read()?;
        let unfinished = transaction.open_table(UNFINISHED).map_err(failure)?;
        if lapsed(&unfinished, now, limit).map_err(Fault::into_inner)?.is_empty() {
            return Ok(Vec::new());
        }
        drop((unfinished, transaction));
        let lease = lease.clone();
        let taken = self
            .write(1024, move |tables| {
                let lapsed = lapsed(&tables.unfinished, now, limit)?;
                let mut taken = Vec::with_capacity(lapsed.len());
                for &(_, id) in &lapsed {
                    let Some(mut rows) = tables.rows(id)? else {
                        let id = Uuid::from_u128(id);
                        return Err(StoreError::Corrupt(format!("request {id} is missing")).into());
                    };
                    rows.lease = Some(lease.clone());
                    taken.push(rows);
                }
                for (created_at, id) in lapsed {
                    tables.changed = true;
                    tables.unfinished.insert(id, Unfinished::row(created_at, &lease))?;
                }
                Ok(taken)
            })
            .await?;
        taken.into_iter().map(Rows::decode).collect()
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let lease = lease.clone();
        self.write(1024, move |tables| {
            let mut held = Vec::new();
            for row in tables.unfinished.range::<u128>(..)? {
                let (id, row) = row?;
                let row_id = id.value();
                let row = Unfinished::read(row.value())?;
                if row.lease.holder == lease.holder && row.lease.until < lease.until {
                    held.push((row_id, row.created_at));
                }
            }
            for (id, created_at) in held {
                tables.changed = true;
                tables.unfinished.insert(id, Unfinished::row(created_at, &lease))?;
            }
            Ok(())
        })
        .await
    }

    async fn expire(&self, before: Timestamp) -> Result<u64, StoreError> {
        let before = before.as_nanosecond();
        let start = Instant::now();
        let mut removed = 0;
        while start.elapsed() < OPERATION_TIMEOUT {
            let transaction = self.read()?;
            let finished = transaction.open_table(FINISHED).map_err(failure)?;
            if finished.range(..(before, 0)).map_err(failure)?.next().is_none() {
                break;
            }
            drop((finished, transaction));
            removed += self.write(1024, move |tables| expire_some(tables, before)).await?;
        }
        Ok(removed)
    }

    async fn take_due(
        &self,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Request>, StoreError> {
        // As with lapsed leases.
        let transaction = self.read()?;
        let webhooks = transaction.open_table(WEBHOOKS).map_err(failure)?;
        let unfinished = transaction.open_table(UNFINISHED).map_err(failure)?;
        if due(&webhooks, &unfinished, now, limit).map_err(Fault::into_inner)?.is_empty() {
            return Ok(Vec::new());
        }
        drop((webhooks, unfinished, transaction));
        let until = until.as_nanosecond();
        let taken = self
            .write(1024, move |tables| {
                let mut taken = Vec::new();
                for id in due(&tables.webhooks, &tables.unfinished, now, limit)? {
                    tables.changed = true;
                    tables.webhooks.insert(id, until)?;
                    taken.extend(tables.rows(id)?);
                }
                Ok(taken)
            })
            .await?;
        taken.into_iter().map(Rows::decode).collect()
    }

    async fn put_off(&self, id: Uuid, due: Option<Timestamp>) -> Result<(), StoreError> {
        let id = id.as_u128();
        self.write(1024, move |tables| {
            let known = tables.webhooks.get(id)?.is_some();
            match due {
                Some(due) if known => drop(tables.webhooks.insert(id, due.as_nanosecond())?),
                Some(_) => {}
                None => drop(tables.webhooks.remove(id)?),
            }
            tables.changed |= known;
            Ok(())
        })
        .await
    }

    async fn list(&self, filter: &Filter) -> Result<Listed, StoreError> {
        let transaction = self.read()?;
        let filter = filter.clone();
        tokio::task::spawn_blocking(move || list(&transaction, &filter))
            .await
            .map_err(|error| StoreError::Down(format!("the list was given up: {error}")))?
    }

    async fn pin_key(&self, key: &KeyRecord) -> Result<KeyRecord, StoreError> {
        let pinned = key.clone();
        let record = encode(key)?;
        let standing = self
            .write(record.len(), move |tables| {
                let id = pinned.id.as_str();
                let standing = tables.keys.get(id)?.map(|row| row.value().to_vec());
                if let Some(bytes) = standing {
                    // One that cannot be read is not replaced, either.
                    let standing: Result<KeyRecord, StoreError> = decode("key", id, &bytes);
                    if !standing.is_ok_and(|standing| pinned.succeeds(&standing)) {
                        return Ok(Some(bytes));
                    }
                }
                tables.changed = true;
                tables.keys.insert(id, record.as_slice())?;
                Ok(None)
            })
            .await?;
        standing.map_or_else(|| Ok(key.clone()), |bytes| decode("key", &key.id, &bytes))
    }

    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let transaction = self.read()?;
        let keys = transaction.open_table(KEYS).map_err(failure)?;
        let rows = keys.range::<&str>(..).map_err(failure)?;
        rows.map(|row| row.map_err(failure).and_then(|(id, row)| decode("key", id.value(), row.value())))
            .collect()
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.write(0, |_| Ok(())).await
    }
}

/// Up to `limit` requests that have ended with a webhook that is due.
fn due(
    webhooks: &impl ReadableTable<u128, i128>,
    unfinished: &impl ReadableTable<u128, (i128, u128, i128)>,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<u128>, Fault> {
    let now = now.as_nanosecond();
    let mut due = Vec::new();
    for row in webhooks.range::<u128>(..)? {
        let (id, at) = row?;
        if due.len() >= limit {
            break;
        }
        if at.value() <= now && unfinished.get(id.value())?.is_none() {
            due.push(id.value());
        }
    }
    Ok(due)
}

fn list(transaction: &ReadTransaction, filter: &Filter) -> Result<Listed, StoreError> {
    let start = Instant::now();
    let places = transaction.open_table(LIST).map_err(failure)?;
    let earliest = (filter.from.map_or(i128::MIN, Timestamp::as_nanosecond), u128::MIN);
    let until = (filter.until.map_or(i128::MAX, Timestamp::as_nanosecond), u128::MIN);
    let after = filter.after.map(|place| (place.created_at.as_nanosecond(), place.id.as_u128()));
    let end = after.map_or(until, |after| after.min(until));
    let mut requests = Vec::new();
    if earliest >= end {
        return Ok(Listed { requests, next: None });
    }
    for row in places.range(earliest..end).map_err(failure)?.rev() {
        let (_, id) = row.map_err(failure)?.0.value();
        let Some(request) = EmbeddedStore::request(transaction, id)? else { continue };
        let place = Place { created_at: request.created_at, id: request.id };
        if filter.lets_through(&request) {
            requests.push(request);
        }
        if requests.len() >= filter.limit || start.elapsed() > OPERATION_TIMEOUT {
            return Ok(Listed { requests, next: Some(place) });
        }
    }
    Ok(Listed { requests, next: None })
}

impl Fault {
    fn into_inner(self) -> StoreError {
        match self {
            Self::Storage(error) | Self::Record(error) => error,
        }
    }
}

/// Up to `limit` unfinished requests whose lease lapsed before `now`, oldest first: when they were
/// accepted, and their ids.
fn lapsed(
    unfinished: &impl ReadableTable<u128, (i128, u128, i128)>,
    now: Timestamp,
    limit: usize,
) -> Result<Vec<(i128, u128)>, Fault> {
    let mut lapsed = Vec::new();
    for row in unfinished.range::<u128>(..)? {
        let (id, row) = row?;
        let row = Unfinished::read(row.value())?;
        if row.lease.until < now {
            lapsed.push((row.created_at, id.value()));
        }
    }
    lapsed.sort_unstable();
    lapsed.truncate(limit);
    Ok(lapsed)
}

/// Removes some of the requests that ended before a time; yields how many.
fn expire_some(tables: &mut Tables<'_>, before: i128) -> Result<u64, Fault> {
    let mut old = Vec::new();
    for row in tables.finished.range(..(before, 0))?.take(EXPIRE_BATCH) {
        let (time, id) = row?.0.value();
        // A damaged record goes too; only the name it bears then stays taken, and its place in the list.
        let named: Option<Named> =
            tables.requests.get(id)?.and_then(|row| serde_json::from_slice(row.value()).ok());
        old.push((time, id, named));
    }
    let count = old.len() as u64;
    for (time, id, named) in old {
        tables.changed = true;
        tables.finished.remove((time, id))?;
        tables.requests.remove(id)?;
        tables.status.remove(id)?;
        tables.webhooks.remove(id)?;
        let Some(Named { idempotency, created_at }) = named else { continue };
        tables.list.remove((created_at.as_nanosecond(), id))?;
        if let Some(Idempotency { key, .. }) = idempotency {
            tables.idempotency.remove(key.as_str())?;
        }
    }
    Ok(count)
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt(format!("a record cannot be written: {error}")))
}

fn decode<T: DeserializeOwned>(what: &str, id: impl fmt::Display, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Corrupt(format!("{what} {id}: {error}")))
}

fn at(path: &Path, error: StoreError) -> StoreError {
    match error {
        StoreError::Down(reason) => StoreError::Down(format!("{}: {reason}", path.display())),
        StoreError::Corrupt(reason) => StoreError::Corrupt(format!("{}: {reason}", path.display())),
    }
}

/// What the database reports, in the store's terms.
fn failure(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        error @ (redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)) => StoreError::Corrupt(error.to_string()),
        error => StoreError::Down(error.to_string()),
    }
}
