//! What a signer must not forget: the sessions it has taken part in, whom it never signs with again,
//! which key it holds, and its audit log.
//!
//! All of it is durable before the act that it guards: a session's id before the session's first message
//! leaves, a ban before the abort is reported, an accepted request's audit entry before the signer does
//! anything for it. One thread writes for all sessions. What waits while it writes goes out together
//! next, so that one sync of the disk serves many.
//!
//! A ban: when a check on the reused oblivious transfers fails, one bit of them has leaked to the party
//! that failed it; enough such bits are the key. The engine therefore demands that the two never meet
//! again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use jiff::Timestamp;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::sync::{mpsc, oneshot};
use tss_common::audit::{AuditError, AuditLog, Event, Head, Problem};
use tss_mpc::{PublicKey, SessionId, SignerIndex};

/// (key id, public key in hex, signer) → why. Bound to the public key, so that a new key starts anew.
const BANS: TableDefinition<'_, (&str, &str, u8), &str> = TableDefinition::new("bans");

/// The id of a session → when it began, in seconds since 1970. Never removed.
const SESSIONS: TableDefinition<'_, [u8; 32], i64> = TableDefinition::new("sessions");

/// (key id, public key in hex) → the highest epoch that this signer has held a share of.
const EPOCHS: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("epochs");

/// () → how many entries the audit log has, and the hash of the last.
const AUDIT: TableDefinition<'_, (), (u64, [u8; 32])> = TableDefinition::new("audit");

/// How many entries wait to be written.
const WAITING: usize = 4096;

/// How many are written together at most.
const BATCH: usize = 256;

/// How many events that could not be written are kept to be written later.
const UNNOTED: usize = 4096;

/// The key that a signer signs with.
#[derive(Clone, Debug)]
pub struct HeldKey {
    /// Its id.
    pub id: String,
    /// The root public key.
    pub public_key: PublicKey,
    /// Its epoch.
    pub epoch: u64,
}

/// Why nothing was written, or must not be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The session has been taken part in before.
    #[error("session {0} was taken part in before")]
    Used(SessionId),
    /// It is not durable.
    #[error("the signer's disk: {0}")]
    Disk(String),
}

/// A signer's journal. Clones share it.
#[derive(Clone)]
pub struct Journal {
    work: mpsc::Sender<Work>,
    banned: Arc<Mutex<BTreeSet<SignerIndex>>>,
}

struct Work {
    kind: Kind,
    events: Vec<Event>,
    done: oneshot::Sender<Result<(), JournalError>>,
}

enum Kind {
    /// Take part in a session.
    Begin(SessionId),
    /// Never again sign with these, and why.
    Ban(BTreeSet<SignerIndex>, String),
    /// Hold a share of this epoch from now on, and none of an earlier one.
    Hold(u64),
    /// Only the events.
    Note,
    /// No more after this.
    Close,
}

/// A ban that is not durable yet.
struct Ban {
    signers: BTreeSet<SignerIndex>,
    reason: String,
    /// What the audit log does not have of it yet.
    events: Vec<Event>,
}

type Answer = (oneshot::Sender<Result<(), JournalError>>, Result<(), JournalError>);

impl Journal {
    /// Opens a signer's journal in `folder`, or makes it: `signer{index}.redb` and
    /// `signer{index}.audit.jsonl`. Without a key, as while one is made, nobody can be banned.
    ///
    /// # Errors
    /// When a file cannot be used, is in use by another process, or is not what this signer wrote; or
    /// when the signer held a later epoch of the key before.
    pub fn open(folder: &Path, signer: SignerIndex, key: Option<HeldKey>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("the folder {}", folder.display()))?;
        let file = folder.join(format!("signer{signer}.redb"));
        let open = || -> anyhow::Result<_> {
            let database = open_database(&file)?;
            let banned = key.as_ref().map(|key| take_up(&database, key)).transpose()?.unwrap_or_default();
            let head = {
                let table = database.begin_read()?.open_table(AUDIT)?;
                table.get(())?.map(|head| Head { entries: head.value().0, hash: head.value().1 })
            };
            Ok((database, banned, head))
        };
        let (database, banned, head) =
            open().with_context(|| format!("the signer's database {}", file.display()))?;
        let audit = AuditLog::open(&folder.join(format!("signer{signer}.audit.jsonl")), signer, head)?;
        let banned = Arc::new(Mutex::new(banned));
        let (work, waiting) = mpsc::channel(WAITING);
        let writer = Writer {
            file,
            signer,
            key,
            database: Some(database),
            audit,
            unwritten: Vec::new(),
            unnoted: Vec::new(),
            noted: head,
        };
        std::thread::Builder::new()
            .name(format!("journal-{signer}"))
            .spawn(move || writer.run(waiting))
            .context("the system gives no thread to write with")?;
        Ok(Self { work, banned })
    }

    /// Everybody banned.
    pub fn banned(&self) -> BTreeSet<SignerIndex> {
        self.banned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a session's id for good, with the events that go with it; durable when it returns.
    ///
    /// # Errors
    /// [`JournalError`]: the signer must then not take part.
    pub async fn begin(&self, session: SessionId, events: Vec<Event>) -> Result<(), JournalError> {
        self.write(Kind::Begin(session), events).await
    }

    /// Bans signers for good, with the events that go with it; durable when it returns. They count as
    /// banned in this process even when that fails, and it is tried again with whatever comes next.
    ///
    /// # Errors
    /// [`JournalError::Disk`].
    pub async fn ban(
        &self,
        signers: BTreeSet<SignerIndex>,
        reason: String,
        events: Vec<Event>,
    ) -> Result<(), JournalError> {
        self.banned.lock().unwrap_or_else(PoisonError::into_inner).extend(&signers);
        self.write(Kind::Ban(signers, reason), events).await
    }

    /// The signer signs with a share of this epoch from now on, and with none of an earlier one; durable when it returns,
    /// with the events that go with it.
    ///
    /// # Errors
    /// [`JournalError::Disk`]: the next start finds the epoch in the share.
    pub async fn hold(&self, epoch: u64, events: Vec<Event>) -> Result<(), JournalError> {
        self.write(Kind::Hold(epoch), events).await
    }

    /// Writes events to the audit log; durable when it returns. When that fails, it is tried again with
    /// whatever comes next.
    ///
    /// # Errors
    /// [`JournalError::Disk`].
    pub async fn note(&self, events: Vec<Event>) -> Result<(), JournalError> {
        self.write(Kind::Note, events).await
    }

    /// Writes what waits and lets the files go. Whatever comes later is not written.
    pub async fn close(&self) {
        // An error means that it was closed before.
        let _ = self.write(Kind::Close, Vec::new()).await;
    }

    async fn write(&self, kind: Kind, events: Vec<Event>) -> Result<(), JournalError> {
        let (done, result) = oneshot::channel();
        let ended = || JournalError::Disk("its writer has ended".into());
        self.work.send(Work { kind, events, done }).await.map_err(|_| ended())?;
        result.await.map_err(|_| ended())?
    }
}

fn open_database(file: &Path) -> anyhow::Result<Database> {
    let database = Database::create(file)?;
    let write = database.begin_write()?;
    write.open_table(BANS)?;
    write.open_table(SESSIONS)?;
    write.open_table(EPOCHS)?;
    write.open_table(AUDIT)?;
    write.commit()?;
    Ok(database)
}

/// Checks and records the epoch; yields who is banned under the key.
fn take_up(database: &Database, held: &HeldKey) -> anyhow::Result<BTreeSet<SignerIndex>> {
    let public_key = held.public_key.to_string();
    let key = (held.id.as_str(), public_key.as_str());
    let write = database.begin_write()?;
    {
        let mut epochs = write.open_table(EPOCHS)?;
        let highest = epochs.get(key)?.map_or(0, |epoch| epoch.value());
        anyhow::ensure!(
            held.epoch >= highest,
            "the share is of epoch {}, but this signer has held epoch {highest} of key {}: expected no earlier one",
            held.epoch,
            held.id
        );
        epochs.insert(key, held.epoch)?;
    }
    let mut banned = BTreeSet::new();
    for entry in write.open_table(BANS)?.iter()? {
        let (id, _) = entry?;
        let (of_key, of_public_key, signer) = id.value();
        if (of_key, of_public_key) == key {
            banned.insert(SignerIndex::new(signer)?);
        }
    }
    write.commit()?;
    Ok(banned)
}

/// The thread that writes.
struct Writer {
    file: PathBuf,
    signer: SignerIndex,
    key: Option<HeldKey>,
    /// `None` after an error: redb has to be opened anew then.
    database: Option<Database>,
    audit: AuditLog,
    /// Bans that could not be written yet.
    unwritten: Vec<Ban>,
    /// What else happened that could not be written yet.
    unnoted: Vec<Event>,
    /// The audit log's head as the database knows it.
    noted: Option<Head>,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Work>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut closing = false;
        let mut answers = Vec::new();
        while !closing && waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
            closing = batch.iter().any(|work| matches!(work.kind, Kind::Close));
            answers = self.write(std::mem::take(&mut batch));
            if !closing {
                answer(std::mem::take(&mut answers));
            }
        }
        if let Err(error) = self.note_head() {
            tracing::warn!(signer = %self.signer, %error, "the audit log's last head was not recorded");
        }
        // Whoever closed it may open the files again at once.
        drop(self);
        answer(answers);
    }

    /// Writes a batch; yields what to tell each.
    fn write(&mut self, batch: Vec<Work>) -> Vec<Answer> {
        let (mut answers, mut events, mut notes) = (Vec::with_capacity(batch.len()), Vec::new(), Vec::new());
        let (mut sessions, mut epoch) = (BTreeSet::new(), None);
        for Work { kind, events: own, done } in batch {
            let result = match kind {
                Kind::Begin(session) => match self.is_used(session) {
                    Ok(false) if sessions.insert(session) => {
                        events.extend(own);
                        Ok(())
                    }
                    Ok(_) => Err(JournalError::Used(session)),
                    Err(error) => Err(JournalError::Disk(error)),
                },
                Kind::Ban(signers, reason) => {
                    self.unwritten.push(Ban { signers, reason, events: own });
                    Ok(())
                }
                Kind::Hold(held) => {
                    epoch = epoch.max(Some(held));
                    notes.extend(own);
                    Ok(())
                }
                Kind::Note | Kind::Close => {
                    notes.extend(own);
                    Ok(())
                }
            };
            answers.push((done, result));
        }
        let of_bans = self.unwritten.iter().flat_map(|ban| ban.events.iter().cloned());
        let events: Vec<Event> =
            of_bans.chain(self.unnoted.iter().chain(&notes).cloned()).chain(events).collect();
        let written = match self.audit.append(&events) {
            Ok(head) => {
                self.unnoted.clear();
                self.commit(&sessions, epoch, head)
            }
            Err(error) => {
                self.keep(notes, &error);
                Err(error.to_string())
            }
        };
        if let Err(error) = written {
            tracing::error!(signer = %self.signer, %error, "the signer's journal could not be written");
            for (_, result) in answers.iter_mut().filter(|(_, result)| result.is_ok()) {
                *result = Err(JournalError::Disk(error.clone()));
            }
        }
        answers
    }

    /// Keeps what happened, to write it when the disk takes it.
    fn keep(&mut self, notes: Vec<Event>, error: &AuditError) {
        // What can never be written would be in the way of all that can.
        if !matches!(error.problem, Problem::TooLong { .. }) {
            let room = UNNOTED.saturating_sub(self.unnoted.len());
            self.unnoted.extend(notes.into_iter().take(room));
        }
    }

    fn is_used(&mut self, session: SessionId) -> Result<bool, String> {
        self.with_database(|database, _| {
            let table = database.begin_read()?.open_table(SESSIONS)?;
            Ok(table.get(session.0)?.is_some())
        })
    }

    /// Commits sessions, bans, the epoch and the audit log's head, if there is anything to guard.
    fn commit(
        &mut self,
        sessions: &BTreeSet<SessionId>,
        epoch: Option<u64>,
        head: Head,
    ) -> Result<(), String> {
        if sessions.is_empty() && epoch.is_none() && self.unwritten.is_empty() {
            return Ok(());
        }
        let mut unwritten = std::mem::take(&mut self.unwritten);
        // The audit log has them now.
        unwritten.iter_mut().for_each(|ban| ban.events.clear());
        let committed = self.with_database(|database, held| {
            let (id, public_key) = match held {
                Some(held) => (held.id.as_str(), held.public_key.to_string()),
                None => ("", String::new()),
            };
            let write = database.begin_write()?;
            {
                let mut table = write.open_table(SESSIONS)?;
                for session in sessions {
                    table.insert(session.0, Timestamp::now().as_second())?;
                }
                let mut bans = write.open_table(BANS)?;
                for ban in &unwritten {
                    for signer in &ban.signers {
                        bans.insert((id, public_key.as_str(), signer.get()), ban.reason.as_str())?;
                    }
                }
                if let Some(epoch) = epoch {
                    write.open_table(EPOCHS)?.insert((id, public_key.as_str()), epoch)?;
                }
                write.open_table(AUDIT)?.insert((), (head.entries, head.hash))?;
            }
            write.commit()?;
            Ok(())
        });
        match &committed {
            Ok(()) => self.noted = Some(head),
            Err(_) => self.unwritten = unwritten,
        }
        committed
    }

    /// Records the audit log's head, so that the next start knows how long the log has to be.
    fn note_head(&mut self) -> Result<(), String> {
        let head = self.audit.head();
        if self.noted == Some(head) {
            return Ok(());
        }
        self.with_database(|database, _| {
            let write = database.begin_write()?;
            write.open_table(AUDIT)?.insert((), (head.entries, head.hash))?;
            write.commit()?;
            Ok(())
        })
    }

    fn with_database<T>(
        &mut self,
        run: impl FnOnce(&Database, Option<&HeldKey>) -> anyhow::Result<T>,
    ) -> Result<T, String> {
        let database = match self.database.take() {
            Some(database) => database,
            None => open_database(&self.file).map_err(|error| format!("{error:#}"))?,
        };
        let result = run(&database, self.key.as_ref()).map_err(|error| format!("{error:#}"))?;
        self.database = Some(database);
        Ok(result)
    }
}

fn answer(answers: Vec<Answer>) {
    for (done, result) in answers {
        // The session may be over.
        let _ = done.send(result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(i: u8) -> SignerIndex {
        SignerIndex::new(i).unwrap()
    }

    /// Public keys of nobody: the generator, and twice it.
    const KEYS: [&str; 2] = [
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
        "02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5",
    ];

    fn open(folder: &Path, key: usize, epoch: u64) -> anyhow::Result<Journal> {
        let public_key = KEYS[key].parse().unwrap();
        Journal::open(folder, index(1), Some(HeldKey { id: "default".into(), public_key, epoch }))
    }

    fn event() -> Event {
        Event::Opened {
            version: "1".into(),
            cluster: "c".into(),
            key: "default".into(),
            epoch: 1,
            public_key: KEYS[0].parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn a_ban_outlives_a_restart_and_is_bound_to_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let two = BTreeSet::from([index(2)]);
        let journal = open(dir.path(), 0, 1).unwrap();
        assert!(journal.banned().is_empty());
        journal.ban(two.clone(), "bad transfer".into(), vec![event()]).await.unwrap();
        assert_eq!(journal.banned(), two);
        journal.close().await;
        let other_key = open(dir.path(), 1, 1).unwrap();
        assert!(other_key.banned().is_empty());
        other_key.close().await;
        assert_eq!(open(dir.path(), 0, 1).unwrap().banned(), two);
    }

    #[tokio::test]
    async fn a_session_is_begun_once_whatever_happens_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path(), 0, 1).unwrap();
        let (a, b) = (SessionId([1; 32]), SessionId([2; 32]));
        let both = tokio::join!(journal.begin(a, vec![event()]), journal.begin(a, vec![event()]));
        assert_eq!(both, (Ok(()), Err(JournalError::Used(a))));
        assert_eq!(journal.begin(b, vec![]).await, Ok(()));
        journal.close().await;
        assert!(matches!(journal.begin(SessionId([3; 32]), vec![]).await, Err(JournalError::Disk(_))));
        let journal = open(dir.path(), 0, 1).unwrap();
        for session in [a, b] {
            assert_eq!(journal.begin(session, vec![event()]).await, Err(JournalError::Used(session)));
        }
        // What was refused has no entry.
        let log = std::fs::read_to_string(dir.path().join("signer1.audit.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 1);
    }

    #[tokio::test]
    async fn what_happened_while_nothing_could_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path(), 0, 1).unwrap();
        let (file, elsewhere) = (dir.path().join("signer1.audit.jsonl"), dir.path().join("elsewhere"));
        std::fs::rename(&file, &elsewhere).unwrap();
        for _ in 0..3 {
            assert!(matches!(journal.note(vec![event()]).await, Err(JournalError::Disk(_))));
        }
        let session = SessionId([1; 32]);
        assert!(matches!(journal.begin(session, vec![event()]).await, Err(JournalError::Disk(_))));
        std::fs::rename(&elsewhere, &file).unwrap();
        let entries = || std::fs::read_to_string(&file).unwrap().lines().count();
        assert_eq!(entries(), 0);
        assert_eq!(journal.begin(session, vec![event()]).await, Ok(()));
        // What was begun in vain did not happen.
        assert_eq!(entries(), 4);
        journal.note(vec![event()]).await.unwrap();
        assert_eq!(entries(), 5);
    }

    #[tokio::test]
    async fn an_epoch_that_is_held_from_some_time_on_ends_those_before() {
        let dir = tempfile::tempdir().unwrap();
        let journal = open(dir.path(), 0, 1).unwrap();
        journal.hold(2, vec![event()]).await.unwrap();
        journal.close().await;
        let error = format!("{:#}", open(dir.path(), 0, 1).err().expect("it is refused"));
        assert!(error.contains("epoch 1, but this signer has held epoch 2"), "{error}");
        assert!(open(dir.path(), 0, 2).is_ok());
    }

    #[tokio::test]
    async fn an_earlier_epoch_a_second_process_and_a_shortened_log_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |epoch| format!("{:#}", open(dir.path(), 0, epoch).err().expect("it is refused"));
        let journal = open(dir.path(), 0, 2).unwrap();
        journal.note(vec![event(), event()]).await.unwrap();
        assert!(refused(2).contains("signer1.redb"), "two journals in one folder");
        journal.close().await;
        let error = refused(1);
        assert!(error.contains("epoch 1, but this signer has held epoch 2"), "{error}");
        let file = dir.path().join("signer1.audit.jsonl");
        let log = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{}\n", log.lines().next().unwrap())).unwrap();
        let error = refused(2);
        assert!(error.contains("signer1.audit.jsonl") && error.contains("line 2"), "{error}");
    }
}
