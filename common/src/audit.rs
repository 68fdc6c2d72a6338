//! The audit log: what a signer did, in a file that shows whether it was changed.
//!
//! One JSON object a line, and a hash chain over the lines' exact bytes:
//!
//! ```text
//! {"seq":17,"prev":"ab12…","time":"2026-01-02T03:04:05.678Z","signer":1,"event":{…},"hash":"cd34…"}
//! ```
//!
//! `hash` is SHA-256 over a domain and the line up to `,"hash":"` (see [`hash_fields`]); `prev` is the
//! hash of the line before, 64 zeros in the first; `seq` counts from 1. As bytes are hashed and not
//! values, nobody needs to agree on how JSON is written. A line that was changed, removed, inserted or
//! moved is found. Lines missing at the end are found only by whoever kept a [`Head`], and a chain that
//! was written anew from some line on likewise: whoever has the file can do both.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tss_mpc::{PublicKey, Quorum, SessionId, Signature, SignerIndex, Threshold};
use uuid::Uuid;

use crate::intent::{Intent, hash_fields};

/// The domain of a line's hash.
const DOMAIN: &str = "tss.network/audit/v1";

/// The longest line, in bytes, without its end.
pub const MAX_LINE: usize = 1 << 20;

/// What stands between a line's content and its hash.
const SEAL: &[u8] = b",\"hash\":\"";

/// How much of a file is read at once.
const BUFFER: usize = 256 << 10;

/// Something that a signer did or saw. Holds nothing secret: no message, no share, no nonce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The signer started.
    Opened {
        /// The version of its program.
        version: String,
        /// The cluster it belongs to.
        cluster: String,
        /// The id of the key it holds a share of.
        key: String,
        /// The key's epoch.
        epoch: u64,
        /// The root public key.
        public_key: PublicKey,
    },
    /// It loaded a policy, which holds from here on.
    Policy {
        /// The policy's hash.
        #[serde(with = "hex::serde")]
        hash: [u8; 32],
        /// How many approvers it asks for.
        approvers: u32,
        /// What it says, for a person.
        summary: String,
    },
    /// It will take part in an attempt.
    Accepted {
        /// The request.
        request: Uuid,
        /// The attempt.
        attempt: u32,
        /// The session's id.
        #[serde(with = "session")]
        session: SessionId,
        /// What is to be signed.
        intent: Intent,
        /// The intent's hash.
        #[serde(with = "hex::serde")]
        intent_hash: [u8; 32],
        /// Who takes part.
        quorum: Quorum,
        /// Who approved it.
        approvers: Vec<String>,
    },
    /// It will not take part in an attempt.
    Refused {
        /// The request.
        request: Uuid,
        /// The attempt.
        attempt: u32,
        /// What was to be signed, as the manager stated it.
        intent: Intent,
        /// The intent's hash.
        #[serde(with = "hex::serde")]
        intent_hash: [u8; 32],
        /// Who would have taken part.
        quorum: Quorum,
        /// Why not.
        reason: String,
    },
    /// An attempt ended at this signer.
    Finished {
        /// The request.
        request: Uuid,
        /// The attempt.
        attempt: u32,
        /// The session's id, once there was one.
        #[serde(with = "optional_session")]
        session: Option<SessionId>,
        /// The intent's hash.
        #[serde(with = "hex::serde")]
        intent_hash: [u8; 32],
        /// How it ended.
        outcome: Finish,
        /// What was made.
        signature: Option<Signature>,
        /// Why nothing was.
        reason: Option<String>,
    },
    /// Somebody sent what no honest signer sends.
    Cheating {
        /// Who.
        culprits: BTreeSet<SignerIndex>,
        /// Whether this signer never again signs with them.
        banned: bool,
        /// The request.
        request: Uuid,
        /// The attempt.
        attempt: u32,
        /// The session's id.
        #[serde(with = "session")]
        session: SessionId,
        /// What was wrong.
        reason: String,
        /// What the culprits had signed.
        evidence: Vec<Evidence>,
    },
    /// A key generation ended with a share for this signer.
    Keygen(NewShare),
    /// The taking over of a key that was made elsewhere did.
    Import(NewShare),
    /// A key's signers made new shares of it, one of them for this signer.
    Renew(NewShare),
    /// It signs with its new share from here on; the one before is gone.
    Settled {
        /// The key's id.
        key: String,
        /// The new share's epoch.
        epoch: u64,
    },
}

/// A share that a signer has been given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewShare {
    /// The id of the session that made it.
    #[serde(with = "session")]
    pub session: SessionId,
    /// The cluster the key is for.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// The share's epoch; not written for the first.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub epoch: u64,
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
    /// The root public key.
    pub public_key: PublicKey,
}

fn first() -> u64 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_first(epoch: &u64) -> bool {
    *epoch == first()
}

/// How an attempt ended that a signer took part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// With a signature.
    Signed,
    /// Without one.
    Aborted,
}

/// A message that its sender had signed, so that a third party can hold the sender to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The round.
    pub round: u8,
    /// Who sent it.
    pub from: SignerIndex,
    /// SHA-256 of what the signature covers.
    #[serde(with = "hex::serde")]
    pub digest: [u8; 32],
    /// The sender's signature.
    #[serde(with = "hex::serde")]
    pub signature: [u8; 64],
}

impl Event {
    /// The kind, as it stands in the file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "opened",
            Self::Policy { .. } => "policy",
            Self::Accepted { .. } => "accepted",
            Self::Refused { .. } => "refused",
            Self::Finished { .. } => "finished",
            Self::Cheating { .. } => "cheating",
            Self::Keygen(_) => "keygen",
            Self::Import(_) => "import",
            Self::Renew(_) => "renew",
            Self::Settled { .. } => "settled",
        }
    }

    /// The request and the attempt that it is about, if any.
    pub fn attempt(&self) -> Option<(Uuid, u32)> {
        match self {
            Self::Accepted { request, attempt, .. }
            | Self::Refused { request, attempt, .. }
            | Self::Finished { request, attempt, .. }
            | Self::Cheating { request, attempt, .. } => Some((*request, *attempt)),
            Self::Opened { .. }
            | Self::Policy { .. }
            | Self::Keygen(_)
            | Self::Import(_)
            | Self::Renew(_)
            | Self::Settled { .. } => None,
        }
    }
}

/// Where a log ends: how many entries it has, and the hash of the last. Whoever keeps it elsewhere can
/// tell later whether the log up to there is still the same.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Head {
    /// How many entries.
    pub entries: u64,
    /// The last one's hash; zeros when there is none.
    pub hash: [u8; 32],
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.entries, hex::encode(self.hash))
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no [`Head`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no head of an audit log: expected ENTRIES:HASH, a number and 64 hexadecimal digits")]
pub struct InvalidHead(String);

impl FromStr for Head {
    type Err = InvalidHead;
    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let parse = || {
            let (entries, digits) = text.split_once(':')?;
            let mut hash = [0; 32];
            hex::decode_to_slice(digits, &mut hash).ok()?;
            let entries = entries.parse().ok()?;
            (entries > 0 || hash == [0; 32]).then_some(Self { entries, hash })
        };
        parse().ok_or_else(|| InvalidHead(text.to_owned()))
    }
}

/// Why an audit log cannot be used. Says which file, what is wrong and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("audit log {}: {problem}", file.display())]
pub struct AuditError {
    /// The log.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an audit log.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Another process writes it.
    #[error("it is in use by another process")]
    InUse,
    /// A line is not what was written.
    #[error("line {line}: {damage}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Lines are missing at its end.
    #[error("line {written} is missing: the log ends at line {end}, but {written} entries were written")]
    Short {
        /// Where it ends.
        end: u64,
        /// How many entries were written.
        written: u64,
    },
    /// The chain is whole, but another than was written.
    #[error(
        "line {line} was replaced: its hash is {}, but {} was written; this line or one before it is not the \
         original",
        hex::encode(found),
        hex::encode(written)
    )]
    Replaced {
        /// The line of the expected head.
        line: u64,
        /// Its hash.
        found: [u8; 32],
        /// The hash it had.
        written: [u8; 32],
    },
    /// There is no file.
    #[error("there is no such file, but {0} entries were written to it")]
    Gone(u64),
    /// While it was in use, somebody put another file in its place, or removed it.
    #[error("it was moved, removed or replaced while it was in use")]
    Moved,
    /// While it was in use, somebody else wrote to it or cut it.
    #[error("it was changed while it was in use: it has {found} bytes, but {expected} were written")]
    Resized {
        /// How long it is.
        found: u64,
        /// How long it should be.
        expected: u64,
    },
    /// An event is too long to be written. Nothing was.
    #[error("an entry of kind {kind} would have {length} bytes: expected at most {MAX_LINE}")]
    TooLong {
        /// The event's kind.
        kind: &'static str,
        /// How long its line would be.
        length: usize,
    },
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It is longer than [`MAX_LINE`].
    #[error("it has more than {MAX_LINE} bytes")]
    TooLong,
    /// It is no entry, or one of a kind that this version does not know.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// It has no end, and is not the beginning of what would come next.
    #[error("it is cut short, and it does not begin as entry {0} would")]
    CutShort(u64),
    /// It was changed.
    #[error("its hash is not that of its content")]
    Changed,
    /// Lines were removed, inserted or moved.
    #[error("it is entry {found}: expected entry {expected}; lines were removed, inserted or moved")]
    Sequence {
        /// The entry that stands there.
        found: u64,
        /// The entry that belongs there.
        expected: u64,
    },
    /// It was written after another line than the one before it.
    #[error("it does not follow the line before it, which has another hash than its `prev`")]
    Chain,
    /// It is another signer's.
    #[error("it is of signer {found}: expected signer {expected}")]
    Signer {
        /// Whose it is.
        found: SignerIndex,
        /// Whose log it is.
        expected: SignerIndex,
    },
}

impl Problem {
    /// The error that names the file.
    pub fn at(self, file: &Path) -> AuditError {
        AuditError { file: file.to_owned(), problem: self }
    }
}

/// One line of a log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number, from 1.
    pub seq: u64,
    /// When it was written, by the signer's clock.
    pub time: Timestamp,
    /// Whose log it is in.
    pub signer: SignerIndex,
    /// What happened.
    pub event: Event,
    /// The line itself, without its end.
    pub line: String,
}

/// A line's content as it is written.
#[derive(Serialize)]
struct Content<'a> {
    seq: u64,
    prev: &'a str,
    time: Timestamp,
    signer: SignerIndex,
    event: &'a Event,
}

/// As much of a line as the chain and a [`Report`] need. Reading no more is what makes checking a long
/// log fast, and independent of the kinds of events that a version knows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outline<'a> {
    seq: u64,
    prev: &'a str,
    time: Timestamp,
    signer: SignerIndex,
    event: EventOutline<'a>,
    #[serde(rename = "hash")]
    _hash: &'a str,
}

#[derive(Deserialize)]
struct EventOutline<'a> {
    kind: &'a str,
    outcome: Option<&'a str>,
}

/// Reads a log line by line and follows its chain. Yields entries up to the first problem, and ends
/// with that. Holds no more than one line in memory.
pub struct Entries<R> {
    reader: R,
    line: Vec<u8>,
    head: Head,
    signer: Option<SignerIndex>,
    expected: Option<Head>,
    /// The length of the lines read so far.
    length: u64,
    torn: usize,
    ended: bool,
}

/// The entries of a log. `expected` is a head that it must contain.
pub fn entries<R: BufRead>(reader: R, expected: Option<Head>) -> Entries<R> {
    Entries {
        reader,
        line: Vec::new(),
        head: Head::default(),
        signer: None,
        expected,
        length: 0,
        torn: 0,
        ended: false,
    }
}

impl<R: BufRead> Entries<R> {
    /// The head of what has been read so far.
    pub fn head(&self) -> Head {
        self.head
    }

    /// How many bytes without a line end follow the last line: a crash cut them short, or they are
    /// being written right now. They were never acknowledged. Known at the end.
    pub fn torn(&self) -> usize {
        self.torn
    }

    /// Reads a line and checks that it follows the one before. Nothing at the end.
    fn advance(&mut self) -> Result<Option<Outline<'_>>, Problem> {
        let number = self.head.entries + 1;
        let damaged = |damage| Problem::Line { line: number, damage };
        self.line.clear();
        (&mut self.reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut self.line)?;
        if self.line.pop_if(|last| *last == b'\n').is_none() {
            if self.line.len() > MAX_LINE {
                return Err(damaged(Damage::TooLong));
            }
            return self.end().map(|()| None);
        }
        let malformed = |problem: &dyn fmt::Display| damaged(Damage::Malformed(problem.to_string()));
        let (content, written) =
            split(&self.line).ok_or_else(|| malformed(&"expected it to end with its hash"))?;
        let hash = hash_fields(DOMAIN, &[content]);
        if written != hex::encode(hash).as_bytes() {
            return Err(damaged(Damage::Changed));
        }
        let outline: Outline<'_> = serde_json::from_slice(&self.line).map_err(|error| malformed(&error))?;
        if outline.seq != number {
            return Err(damaged(Damage::Sequence { found: outline.seq, expected: number }));
        }
        if outline.prev != hex::encode(self.head.hash) {
            return Err(damaged(Damage::Chain));
        }
        let signer = *self.signer.get_or_insert(outline.signer);
        if outline.signer != signer {
            return Err(damaged(Damage::Signer { found: outline.signer, expected: signer }));
        }
        if let Some(expected) = self.expected
            && expected.entries == number
            && expected.hash != hash
        {
            return Err(Problem::Replaced { line: number, found: hash, written: expected.hash });
        }
        self.head = Head { entries: number, hash };
        self.length += self.line.len() as u64 + 1;
        Ok(Some(outline))
    }

    /// The log ends here, with whatever is in `line`.
    fn end(&mut self) -> Result<(), Problem> {
        let number = self.head.entries + 1;
        // Only what this module began to write is taken for a torn line: `AuditLog::open` cuts it off,
        // and must not do that to a file that is no audit log.
        let begin = format!("{{\"seq\":{number},\"prev\":\"{}\",", hex::encode(self.head.hash));
        if !self.line.iter().zip(begin.as_bytes()).all(|(found, expected)| found == expected) {
            return Err(Problem::Line { line: number, damage: Damage::CutShort(number) });
        }
        self.torn = self.line.len();
        match self.expected {
            Some(Head { entries, .. }) if entries > self.head.entries => {
                Err(Problem::Short { end: self.head.entries, written: entries })
            }
            _ => Ok(()),
        }
    }

    fn entry(&mut self) -> Result<Option<Entry>, Problem> {
        #[derive(Deserialize)]
        struct Full {
            event: Event,
        }
        let Some(Outline { seq, time, signer, .. }) = self.advance()? else { return Ok(None) };
        let malformed = |error: String| Problem::Line { line: seq, damage: Damage::Malformed(error) };
        let line = String::from_utf8(std::mem::take(&mut self.line))
            .map_err(|error| malformed(error.to_string()))?;
        let Full { event } = serde_json::from_str(&line).map_err(|error| malformed(error.to_string()))?;
        Ok(Some(Entry { seq, time, signer, event, line }))
    }
}

impl<R: BufRead> Iterator for Entries<R> {
    type Item = Result<Entry, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let entry = self.entry().transpose();
        self.ended = !matches!(entry, Some(Ok(_)));
        entry
    }
}

/// A line's content and the digits of its hash.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    const END: &[u8] = b"\"}";
    let (content, seal) = line.split_at_checked(line.len().checked_sub(SEAL.len() + 64 + END.len())?)?;
    Some((content, seal.strip_prefix(SEAL)?.strip_suffix(END)?))
}

/// What is in a log whose chain is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many entries it has, and the last one's hash.
    pub head: Head,
    /// Whose log it is; nobody's when it is empty.
    pub signer: Option<SignerIndex>,
    /// When its first and its last entry were written.
    pub times: Option<(Timestamp, Timestamp)>,
    /// How often the signer started.
    pub opened: u64,
    /// How many attempts it refused.
    pub refused: u64,
    /// How many ended with a signature.
    pub signed: u64,
    /// How many ended without one.
    pub aborted: u64,
    /// How often somebody cheated.
    pub cheating: u64,
    /// How many bytes without a line end follow; see [`Entries::torn`].
    pub torn: usize,
}

/// Reads a whole log and checks its chain. `expected` is a head that it must contain.
///
/// # Errors
/// [`Problem`] saying which line is not what was written, and why.
pub fn verify(reader: impl BufRead, expected: Option<Head>) -> Result<Report, Problem> {
    let mut lines = entries(reader, expected);
    let mut report = Report::default();
    while let Some(Outline { time, signer, event, .. }) = lines.advance()? {
        report.signer = Some(signer);
        report.times = Some((report.times.map_or(time, |(first, _)| first), time));
        match (event.kind, event.outcome) {
            ("opened", _) => report.opened += 1,
            ("refused", _) => report.refused += 1,
            ("finished", Some("signed")) => report.signed += 1,
            ("finished", Some("aborted")) => report.aborted += 1,
            ("cheating", _) => report.cheating += 1,
            _ => {}
        }
    }
    Ok(Report { head: lines.head, torn: lines.torn, ..report })
}

/// What a log needs of its file; a trait so that a test can fill the disk.
trait Disk: fmt::Debug + Send + Sync {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

impl Disk for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// A signer's audit log, open for writing. Nobody else can open it meanwhile.
#[derive(Debug)]
pub struct AuditLog {
    file: PathBuf,
    disk: Box<dyn Disk>,
    /// Device and inode, to notice that another file took its place.
    identity: (u64, u64),
    signer: SignerIndex,
    head: Head,
    /// The length of the lines up to `head`.
    length: u64,
    /// A write failed, and what it left behind could not be cut off yet.
    unclean: bool,
}

impl AuditLog {
    /// Opens a signer's log, or makes it, and checks all of it in one pass. A last line that a crash
    /// cut short is removed: it was never acknowledged. `expected` is the head that the signer knows of;
    /// the log may have more entries than that, but not fewer, nor others.
    ///
    /// # Errors
    /// [`AuditError`] when the file cannot be used, is in use, is another signer's, or is not what was
    /// written; then nothing in it is changed.
    pub fn open(file: &Path, signer: SignerIndex, expected: Option<Head>) -> Result<Self, AuditError> {
        Self::open_unnamed(file, signer, expected).map_err(|problem| problem.at(file))
    }

    fn open_unnamed(file: &Path, signer: SignerIndex, expected: Option<Head>) -> Result<Self, Problem> {
        let written = expected.map_or(0, |head| head.entries);
        let opened =
            OpenOptions::new().read(true).append(true).create(written == 0).mode(0o600).open(file).map_err(
                |error| match error.kind() {
                    io::ErrorKind::NotFound if written > 0 => Problem::Gone(written),
                    _ => Problem::Io(error),
                },
            )?;
        opened.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Problem::InUse,
            TryLockError::Error(error) => Problem::Io(error),
        })?;
        // The name of a new file has to be durable, too.
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;

        let mut lines = entries(BufReader::with_capacity(BUFFER, &opened), expected);
        lines.signer = Some(signer);
        while lines.advance()?.is_some() {}
        let Entries { head, length, torn, .. } = lines;
        if torn > 0 {
            tracing::warn!(
                file = %file.display(), line = head.entries + 1, bytes = torn,
                "the audit log's last line was cut short by a crash and is removed: it was never acknowledged"
            );
            opened.set_len(length)?;
        }
        // What was read may not be durable: the process may have died between writing and syncing.
        opened.sync_data()?;
        let metadata = opened.metadata()?;
        Ok(Self {
            file: file.to_owned(),
            disk: Box::new(opened),
            identity: (metadata.dev(), metadata.ino()),
            signer,
            head,
            length,
            unclean: false,
        })
    }

    /// The head of what is durable.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Writes events, all or none of them, and waits until they are durable: one write and one sync,
    /// which block the thread.
    ///
    /// # Errors
    /// [`AuditError`] when they are not durable. What was written of them is then cut off, now or before
    /// the next append; the log stays whole, and a later append works once the cause is gone.
    pub fn append(&mut self, events: &[Event]) -> Result<Head, AuditError> {
        self.append_unnamed(events).map_err(|problem| problem.at(&self.file))
    }

    fn append_unnamed(&mut self, events: &[Event]) -> Result<Head, Problem> {
        if events.is_empty() {
            return Ok(self.head);
        }
        let time = Timestamp::now();
        let mut head = self.head;
        let mut text = Vec::new();
        for event in events {
            head = self.push_line(&mut text, head, time, event)?;
        }
        if self.unclean {
            self.roll_back()?;
        }
        self.check_place()?;
        if let Err(error) = self.disk.append(&text).and_then(|()| self.disk.sync()) {
            self.unclean = true;
            if let Err(error) = self.roll_back() {
                tracing::error!(
                    file = %self.file.display(), %error,
                    "what a failed write left in the audit log is still there: the next one cuts it off"
                );
            }
            return Err(error.into());
        }
        self.head = head;
        self.length += text.len() as u64;
        Ok(head)
    }

    /// Adds an event's line to `text`. Returns the head with it.
    fn push_line(
        &self,
        text: &mut Vec<u8>,
        head: Head,
        time: Timestamp,
        event: &Event,
    ) -> Result<Head, Problem> {
        let (start, seq) = (text.len(), head.entries + 1);
        let prev = hex::encode(head.hash);
        let content = Content { seq, prev: &prev, time, signer: self.signer, event };
        serde_json::to_writer(&mut *text, &content).map_err(io::Error::from)?;
        // The closing brace comes after the hash.
        text.pop();
        let hash = hash_fields(DOMAIN, &[&text[start..]]);
        text.extend_from_slice(SEAL);
        text.extend_from_slice(hex::encode(hash).as_bytes());
        text.extend_from_slice(b"\"}");
        let length = text.len() - start;
        if length > MAX_LINE {
            return Err(Problem::TooLong { kind: event.kind(), length });
        }
        text.push(b'\n');
        Ok(Head { entries: seq, hash })
    }

    /// Cuts off what a failed write left behind.
    fn roll_back(&mut self) -> io::Result<()> {
        self.disk.truncate(self.length)?;
        self.disk.sync()?;
        self.unclean = false;
        Ok(())
    }

    /// That the file is still there under its name, and as long as it was left. A log that is rotated
    /// away or written to by others would otherwise be noticed at the next start only.
    fn check_place(&self) -> Result<(), Problem> {
        let metadata = match std::fs::metadata(&self.file) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Problem::Moved),
            Err(error) => return Err(error.into()),
        };
        if (metadata.dev(), metadata.ino()) != self.identity {
            return Err(Problem::Moved);
        }
        if metadata.len() != self.length {
            return Err(Problem::Resized { found: metadata.len(), expected: self.length });
        }
        Ok(())
    }
}

/// A session's id as 64 hexadecimal digits; its own form in JSON is an array of numbers.
mod session {
    use serde::{Deserializer, Serializer};
    use tss_mpc::SessionId;

    pub(super) fn serialize<S: Serializer>(session: &SessionId, serializer: S) -> Result<S::Ok, S::Error> {
        hex::serde::serialize(session.0, serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SessionId, D::Error> {
        hex::serde::deserialize(deserializer).map(SessionId)
    }
}

/// The same for one that may be missing.
mod optional_session {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use tss_mpc::SessionId;

    #[derive(Serialize, Deserialize)]
    struct Hex(#[serde(with = "super::session")] SessionId);

    pub(super) fn serialize<S: Serializer>(
        session: &Option<SessionId>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        session.map(Hex).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SessionId>, D::Error> {
        Ok(Option::<Hex>::deserialize(deserializer)?.map(|Hex(session)| session))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    fn signer(index: u8) -> SignerIndex {
        SignerIndex::new(index).unwrap()
    }

    fn public_key() -> PublicKey {
        // The generator of secp256k1.
        "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap()
    }

    fn intent() -> Intent {
        Intent {
            cluster: "acme".into(),
            key: "default".into(),
            path: "0/1".parse().unwrap(),
            hash: crate::intent::HashAlgorithm::Sha256,
            digest: [7; 32],
            not_after: Some(Timestamp::UNIX_EPOCH),
        }
    }

    fn finished(outcome: Finish) -> Event {
        let signature = Signature { r: [1; 32], s: [2; 32], recid: 1 };
        let signed = outcome == Finish::Signed;
        Event::Finished {
            request: Uuid::from_u128(7),
            attempt: 2,
            session: signed.then_some(SessionId([9; 32])),
            intent_hash: intent().hash(),
            outcome,
            signature: signed.then_some(signature),
            reason: (!signed).then(|| "no message from \"signer 2\"\nat all".into()),
        }
    }

    /// One event of each kind and shape.
    fn new_share(epoch: u64) -> NewShare {
        NewShare {
            session: SessionId([7; 32]),
            cluster: "acme".into(),
            key: "default".into(),
            epoch,
            threshold: Threshold::new(2, 3).unwrap(),
            public_key: public_key(),
        }
    }

    fn all_events() -> Vec<Event> {
        let quorum = Quorum::new([signer(1), signer(2)]).unwrap();
        let (request, session, intent_hash) = (Uuid::from_u128(7), SessionId([9; 32]), intent().hash());
        vec![
            Event::Opened {
                version: "0.1.0".into(),
                cluster: "acme".into(),
                key: "default".into(),
                epoch: 1,
                public_key: public_key(),
            },
            Event::Policy { hash: [3; 32], approvers: 2, summary: "two of three".into() },
            Event::Accepted {
                request,
                attempt: 2,
                session,
                intent: intent(),
                intent_hash,
                quorum: quorum.clone(),
                approvers: vec!["alice".into()],
            },
            Event::Refused {
                request,
                attempt: 2,
                intent: Intent { not_after: None, ..intent() },
                intent_hash,
                quorum,
                reason: "the digest is not that of the message".into(),
            },
            finished(Finish::Signed),
            finished(Finish::Aborted),
            Event::Cheating {
                culprits: [signer(2)].into(),
                banned: true,
                request,
                attempt: 2,
                session,
                reason: "bad transfer".into(),
                evidence: vec![Evidence { round: 3, from: signer(2), digest: [4; 32], signature: [5; 64] }],
            },
            Event::Keygen(new_share(1)),
            Event::Import(new_share(1)),
            Event::Renew(new_share(2)),
            Event::Settled { key: "default".into(), epoch: 2 },
        ]
    }

    struct Fixture {
        file: PathBuf,
        _dir: TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { file: dir.path().join("signer1.audit.jsonl"), _dir: dir }
        }

        /// A log with these events, one write each.
        fn with(events: &[Event]) -> (Self, Head) {
            let fixture = Self::new();
            let mut log = fixture.open(None).unwrap();
            for event in events {
                log.append(std::slice::from_ref(event)).unwrap();
            }
            (fixture, log.head())
        }

        fn open(&self, expected: Option<Head>) -> Result<AuditLog, AuditError> {
            AuditLog::open(&self.file, signer(1), expected)
        }

        fn bytes(&self) -> Vec<u8> {
            std::fs::read(&self.file).unwrap()
        }

        fn lines(&self) -> Vec<String> {
            String::from_utf8(self.bytes()).unwrap().lines().map(str::to_owned).collect()
        }

        fn write(&self, bytes: impl AsRef<[u8]>) {
            std::fs::write(&self.file, bytes).unwrap();
        }
    }

    fn five() -> (Fixture, Head) {
        Fixture::with(&all_events()[..5])
    }

    fn text(lines: &[String]) -> String {
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The line that a problem names.
    fn line_of(problem: &Problem) -> u64 {
        match problem {
            Problem::Line { line, .. } => *line,
            Problem::Short { end, .. } => end + 1,
            other => panic!("no line: {other}"),
        }
    }

    #[test]
    fn every_event_survives_the_file_and_the_chain_survives_a_reopening() {
        let (fixture, head) = Fixture::with(&all_events());
        let mut log = fixture.open(Some(head)).unwrap();
        assert_eq!(log.head(), head);
        let head = log.append(&all_events()).unwrap();
        assert_eq!((head, log.append(&[]).unwrap()), (log.head(), head));
        drop(log);

        let read: Vec<Entry> = entries(&*fixture.bytes(), Some(head)).collect::<Result<_, _>>().unwrap();
        let numbers = (1..).take(2 * all_events().len());
        assert_eq!(read.iter().map(|entry| entry.seq).collect::<Vec<_>>(), numbers.collect::<Vec<_>>());
        assert_eq!(
            read.iter().map(|entry| entry.event.clone()).collect::<Vec<_>>(),
            [all_events(), all_events()].concat()
        );
        assert_eq!(read.iter().map(|entry| entry.line.clone()).collect::<Vec<_>>(), fixture.lines());
        for entry in &read {
            let json: Value = serde_json::from_str(&entry.line).unwrap();
            assert_eq!(json["event"]["kind"], entry.event.kind());
            let request = json["event"].get("request").map(|id| id.as_str().unwrap().parse().unwrap());
            assert_eq!(entry.event.attempt(), request.map(|id: Uuid| (id, 2)));
        }
        let report = verify(&*fixture.bytes(), Some(head)).unwrap();
        let times = Some((read[0].time, read[19].time));
        assert_eq!(
            report,
            Report {
                head,
                signer: Some(signer(1)),
                times,
                opened: 2,
                refused: 2,
                signed: 2,
                aborted: 2,
                cheating: 2,
                torn: 0
            }
        );
        assert_eq!(std::fs::metadata(&fixture.file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_line_is_what_the_format_says() {
        use sha2::{Digest as _, Sha256};
        let (fixture, head) = five();
        let lines = fixture.lines();
        let zeros = "0".repeat(64);
        assert!(lines[0].starts_with(&format!("{{\"seq\":1,\"prev\":\"{zeros}\",\"time\":\"")));
        assert!(lines[0].contains("Z\",\"signer\":1,\"event\":{\"kind\":\"opened\","));
        let mut prev = zeros;
        for line in &lines {
            let (content, rest) = line.rsplit_once(",\"hash\":\"").unwrap();
            assert!(content.contains(&format!("\"prev\":\"{prev}\"")));
            let hash = Sha256::new()
                .chain_update(20_u64.to_be_bytes())
                .chain_update("tss.network/audit/v1")
                .chain_update((content.len() as u64).to_be_bytes())
                .chain_update(content)
                .finalize();
            prev = hex::encode(hash);
            assert_eq!(rest, format!("{prev}\"}}"));
        }
        assert_eq!(head.to_string(), format!("5:{prev}"));
    }

    #[test]
    fn every_changed_byte_is_found_in_its_line() {
        let (fixture, head) = five();
        let bytes = fixture.bytes();
        let mut line = 1;
        for at in 0..bytes.len() {
            for other in [bytes[at] ^ 1, bytes[at] ^ 0x20, bytes[at] ^ 0x80, b'\n', b'0', 0] {
                if other == bytes[at] {
                    continue;
                }
                let mut changed = bytes.clone();
                changed[at] = other;
                let problem = verify(&*changed, Some(head)).unwrap_err();
                assert_eq!(line_of(&problem), line, "byte {at} as {other}: {problem}");
            }
            line += u64::from(bytes[at] == b'\n');
        }
    }

    #[test]
    fn a_removed_repeated_or_moved_line_is_found() {
        let (fixture, head) = five();
        let lines = fixture.lines();
        let problem = |lines: &[String]| verify(text(lines).as_bytes(), Some(head)).unwrap_err();
        for one in 0..5 {
            let number = one as u64 + 1;
            let mut removed = lines.clone();
            removed.remove(one);
            assert_eq!(line_of(&problem(&removed)), number);
            let mut repeated = lines.clone();
            repeated.insert(one, lines[one].clone());
            assert_eq!(
                problem(&repeated).to_string(),
                format!(
                    "line {}: it is entry {number}: expected entry {}; lines were removed, inserted or moved",
                    number + 1,
                    number + 1
                )
            );
            for two in one + 1..5 {
                let mut swapped = lines.clone();
                swapped.swap(one, two);
                assert_eq!(line_of(&problem(&swapped)), number);
            }
        }
        assert_eq!(
            problem(&lines[..3]).to_string(),
            "line 5 is missing: the log ends at line 3, but 5 entries were written"
        );
        assert_eq!(verify(text(&lines[..3]).as_bytes(), None).unwrap().head.entries, 3);
    }

    #[test]
    fn a_chain_written_anew_or_spliced_is_found() {
        let (fixture, head) = five();
        let lines = fixture.lines();
        // The same events, another time: a whole chain, but not this one.
        let (other, other_head) = five();
        let problem = verify(&*other.bytes(), Some(head)).unwrap_err();
        assert!(matches!(problem, Problem::Replaced { line: 5, .. }), "{problem}");
        assert_eq!(verify(&*other.bytes(), Some(other_head)).unwrap().head, other_head);
        let problem = other.open(Some(head)).unwrap_err();
        assert!(problem.to_string().contains(": line 5 was replaced: its hash is "), "{problem}");
        let spliced = [&lines[..2], &other.lines()[2..]].concat();
        let problem = verify(text(&spliced).as_bytes(), None).unwrap_err();
        assert!(matches!(problem, Problem::Line { line: 3, damage: Damage::Chain }), "{problem}");
        // An earlier head is in it still.
        let earlier = verify(text(&lines[..3]).as_bytes(), None).unwrap().head;
        assert_eq!(verify(&*fixture.bytes(), Some(earlier)).unwrap().head, head);
    }

    #[test]
    fn a_damaged_short_foreign_or_missing_log_is_not_opened_nor_changed() {
        let (fixture, head) = five();
        let lines = fixture.lines();
        let refused = |content: &str, expected: Option<Head>, problem: &str| {
            fixture.write(content);
            let error = fixture.open(expected).unwrap_err();
            assert_eq!(error.to_string(), format!("audit log {}: {problem}", fixture.file.display()));
            assert_eq!(fixture.bytes(), content.as_bytes());
        };
        let whole = text(&lines);
        refused(&whole.replace("alice", "mallo"), None, "line 3: its hash is not that of its content");
        // The last line's end is missing, and that line was acknowledged.
        refused(
            whole.trim_end(),
            Some(head),
            "line 5 is missing: the log ends at line 4, but 5 entries were written",
        );
        refused("", Some(head), "line 5 is missing: the log ends at line 0, but 5 entries were written");
        refused("secret_key = 1", None, "line 1: it is cut short, and it does not begin as entry 1 would");
        refused("[section]\n", None, "line 1: it is malformed: expected it to end with its hash");
        refused(
            &format!("{whole}{}", "x".repeat(MAX_LINE + 1)),
            None,
            "line 6: it has more than 1048576 bytes",
        );
        fixture.write(&whole);
        let error = AuditLog::open(&fixture.file, signer(2), None).unwrap_err();
        assert!(error.to_string().ends_with("line 1: it is of signer 1: expected signer 2"), "{error}");
        std::fs::remove_file(&fixture.file).unwrap();
        let error = fixture.open(Some(head)).unwrap_err();
        assert!(
            error.to_string().ends_with("there is no such file, but 5 entries were written to it"),
            "{error}"
        );
        assert!(!fixture.file.exists());
    }

    #[test]
    fn a_torn_last_line_is_removed_wherever_it_was_torn() {
        let (fixture, head) = five();
        let (whole, end) = (fixture.bytes(), fixture.bytes().len());
        let last = whole[..end - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        for cut in last + 1..end {
            fixture.write(&whole[..cut]);
            assert_eq!(verify(&whole[..cut], None).unwrap().torn, cut - last);
            let mut log = fixture.open(None).unwrap();
            assert_eq!((log.head().entries, fixture.bytes().len()), (4, last));
            log.append(&all_events()[..1]).unwrap();
            assert_eq!(verify(&*fixture.bytes(), Some(log.head())).unwrap().head.entries, 5);
        }
        fixture.write(&whole);
        assert_eq!(fixture.open(Some(head)).unwrap().head(), head);
    }

    /// A disk with room for so many bytes more, which may also refuse to sync or to truncate.
    #[derive(Debug)]
    struct Full {
        file: File,
        room: std::sync::Arc<std::sync::Mutex<Room>>,
    }

    #[derive(Debug, Default)]
    struct Room {
        bytes: usize,
        no_sync: bool,
        no_truncate: bool,
    }

    impl Disk for Full {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            let mut room = self.room.lock().unwrap();
            let fits = bytes.len().min(room.bytes);
            self.file.write_all(&bytes[..fits])?;
            room.bytes -= fits;
            if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
        fn sync(&mut self) -> io::Result<()> {
            if self.room.lock().unwrap().no_sync { Err(io::Error::other("no sync")) } else { Ok(()) }
        }
        fn truncate(&mut self, length: u64) -> io::Result<()> {
            if self.room.lock().unwrap().no_truncate {
                return Err(io::Error::other("no truncate"));
            }
            self.file.set_len(length)
        }
    }

    #[test]
    fn a_full_disk_leaves_the_chain_whole_and_later_events_are_written() {
        let (fixture, head) = five();
        let mut log = fixture.open(Some(head)).unwrap();
        let room = std::sync::Arc::<std::sync::Mutex<Room>>::default();
        let file = OpenOptions::new().append(true).open(&fixture.file).unwrap();
        log.disk = Box::new(Full { file, room: room.clone() });
        let length = fixture.bytes().len();
        let set = |bytes, no_sync, no_truncate| {
            *room.lock().unwrap() = Room { bytes, no_sync, no_truncate };
        };

        // With room for a part of the batch only, be it in the middle of a line or at its end.
        for bytes in [0, 1, 500, 2000] {
            set(bytes, false, false);
            log.append(&all_events()).unwrap_err();
            assert_eq!((log.head(), fixture.bytes().len()), (head, length));
        }
        // Written, but not durable; and it cannot be cut off at first.
        set(usize::MAX, true, true);
        log.append(&all_events()).unwrap_err();
        assert!(fixture.bytes().len() > length);
        log.append(&all_events()).unwrap_err();
        assert_eq!(log.head(), head);
        // Cut off, but not durably so.
        set(usize::MAX, true, false);
        log.append(&all_events()).unwrap_err();
        assert_eq!(log.head(), head);

        set(usize::MAX, false, false);
        let later = log.append(&all_events()[..2]).unwrap();
        assert_eq!(later.entries, 7);
        drop(log);
        assert_eq!(verify(&*fixture.bytes(), Some(later)).unwrap().head, later);
        assert_eq!(fixture.open(Some(later)).unwrap().head(), later);
    }

    #[test]
    fn a_log_has_one_writer_and_stays_in_its_place() {
        let (fixture, head) = five();
        let mut log = fixture.open(Some(head)).unwrap();
        assert!(matches!(fixture.open(None).unwrap_err().problem, Problem::InUse));
        let whole = fixture.bytes();
        fixture.write([&whole[..], b"x"].concat());
        let resized = log.append(&all_events()).unwrap_err();
        assert!(matches!(resized.problem, Problem::Resized { .. }), "{resized}");
        fixture.write(&whole);
        let head = log.append(&all_events()[..1]).unwrap();
        let elsewhere = fixture.file.with_extension("1");
        std::fs::rename(&fixture.file, &elsewhere).unwrap();
        let moved = log.append(&all_events()).unwrap_err();
        assert!(matches!(moved.problem, Problem::Moved), "{moved}");
        fixture.write("");
        assert!(matches!(log.append(&all_events()).unwrap_err().problem, Problem::Moved));
        std::fs::rename(&elsewhere, &fixture.file).unwrap();
        assert_eq!(log.append(&all_events()[..1]).unwrap().entries, head.entries + 1);
    }

    #[test]
    fn an_event_too_long_for_a_line_is_refused_with_its_whole_batch() {
        let (fixture, head) = five();
        let mut log = fixture.open(Some(head)).unwrap();
        let long = |length| Event::Policy { hash: [0; 32], approvers: 1, summary: "x".repeat(length) };
        let error = log.append(&[all_events()[0].clone(), long(MAX_LINE)]).unwrap_err();
        let Problem::TooLong { kind: "policy", length } = error.problem else { panic!("{error}") };
        assert_eq!(log.head(), head);
        // The longest that fits is read again; but for the digits of a second's fraction, of which a time
        // has none to nine.
        let longest = MAX_LINE - (length - MAX_LINE) - 10;
        let head = log.append(&[long(longest)]).unwrap();
        assert_eq!(verify(&*fixture.bytes(), Some(head)).unwrap().head, head);
        assert!(fixture.lines()[5].len() >= MAX_LINE - 20);
    }

    #[test]
    fn a_head_survives_its_text_and_nonsense_is_none() {
        let (_, head) = five();
        assert_eq!(head.to_string().parse(), Ok(head));
        assert_eq!(Head::default().to_string().parse(), Ok(Head::default()));
        let hash = "ab".repeat(32);
        for text in ["", "5", "5:", ":", "5:ab", &hash, &format!("-1:{hash}"), &format!("0:{hash}")] {
            assert_eq!(text.parse::<Head>(), Err(InvalidHead(text.into())), "{text}");
        }
    }

    /// Whoever adds a field to an entry has to look at this list: nothing in it may be secret, and a
    /// message is its caller's own affair.
    #[test]
    fn an_entry_has_these_fields_and_no_others() {
        fn collect(value: &Value, into: &mut BTreeSet<String>) {
            match value {
                Value::Object(fields) => {
                    into.extend(fields.keys().cloned());
                    fields.values().for_each(|value| collect(value, into));
                }
                Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
                _ => {}
            }
        }
        let (fixture, _) = Fixture::with(&all_events());
        let mut found = BTreeSet::new();
        for line in fixture.lines() {
            collect(&serde_json::from_str(&line).unwrap(), &mut found);
        }
        let public = "approvers attempt banned cluster culprits digest epoch event evidence from hash intent \
                      intent_hash key kind not_after outcome path prev public_key quorum r reason recid \
                      request round s seq session signature signer signers summary threshold time version";
        let public: BTreeSet<String> = public.split_whitespace().map(str::to_owned).collect();
        assert_eq!(found, public);
    }
}
