//! One session, from the first nonce to the output, whatever its protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{Instrument as _, field};
use tss_common::audit::Evidence;
use tss_common::backoff::Backoff;
use tss_common::bus::{Address, Bus, BusError};
use tss_common::ed25519::Signature;
use tss_common::envelope::{Endpoint, Header, Letter};
use tss_common::session::{Nonce, SessionContext};
use tss_common::wire::{self, Notice, WireError};
use tss_mpc::rounds::{decode, encode};
use tss_mpc::{Abort, Incoming, Machine, Outgoing, Recipient, SessionId, SetupError, SignerIndex, Step};

use crate::compute::Compute;
use crate::journal::JournalError;
use crate::metrics::{Dropped, SignerMetrics, Stage};

/// How many messages of a quicker party are kept while others are still to join. It can send those of one
/// round: a broadcast and a direct message.
const EARLY: usize = 2;

/// What a session needs of its signer.
pub struct Party {
    /// Its identity, and whom it knows.
    pub endpoint: Arc<Endpoint>,
    /// How it reaches the others.
    pub bus: Arc<dyn Bus>,
    /// Where they listen.
    pub inbox: fn(SignerIndex) -> Address,
    /// Where it computes.
    pub compute: Compute,
    /// What it counts.
    pub metrics: SignerMetrics,
}

impl Party {
    /// Which signer it is.
    pub fn index(&self) -> SignerIndex {
        self.endpoint.index()
    }

    /// Tells all who listen something, once; `lost` is what is logged if that cannot be.
    pub async fn tell(&self, notice: Result<Notice, WireError>, lost: &'static str) {
        let sent = match notice.and_then(|notice| wire::to_json(&notice)) {
            Ok(bytes) => self.bus.publish(Address::Presence, bytes).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, lost);
        }
    }
}

/// How long a session may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// By when the others have to show their nonces.
    pub join: Instant,
    /// By when it ends.
    pub end: Instant,
    /// How often the own nonce is shown again, to parties that were not there yet. `None` for once.
    pub rejoin: Option<Duration>,
    /// How long nobody may say anything once all are there. `None` for as long as it takes.
    pub silence: Option<Duration>,
}

impl Patience {
    /// Until when a message is waited for.
    fn until(&self) -> Instant {
        self.silence.map_or(self.end, |silence| self.end.min(Instant::now() + silence))
    }
}

/// A session that ended without an output.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Why.
    pub abort: Abort,
    /// Its id, if it had one.
    pub session: Option<SessionId>,
    /// What those to blame had signed in it.
    pub evidence: Vec<Evidence>,
}

/// A session's output.
pub struct Done<T> {
    /// The output.
    pub output: T,
    /// The session's id.
    pub session: SessionId,
}

/// Runs a session until it ends: shows a fresh nonce to the others and collects theirs, which determine
/// the session's id; makes sure with `claim` that the id was never used and never will be; then drives
/// the machine that `begin` makes. Nothing of the machine leaves before `claim` has returned. Every wait
/// is bounded by `patience`.
///
/// # Errors
/// The [`Failure`] that ended it.
pub async fn run<T: Send + 'static, C: Future<Output = Result<(), JournalError>>>(
    party: &Party,
    context: &SessionContext<'_>,
    patience: Patience,
    mut messages: mpsc::Receiver<Letter>,
    claim: impl FnOnce(SessionId) -> C,
    begin: impl FnOnce(SessionId) -> Result<Box<dyn Machine<Output = T>>, SetupError> + Send + 'static,
) -> Result<Done<T>, Failure> {
    let began = Instant::now();
    let mut session = Session { party, context, patience, id: context.hash(), heard: BTreeMap::new() };
    let (nonces, early) = match session.join(&mut messages).instrument(tracing::debug_span!("join")).await {
        Ok(joined) => joined,
        Err(abort) => return Err(Failure { abort, session: None, evidence: Vec::new() }),
    };
    session.id = context.id(&nonces);
    let id = session.id;
    tracing::Span::current().record("session", field::display(id));
    tracing::debug!("all parties are there");
    party.metrics.stage(Stage::Join, began.elapsed().as_secs_f64());
    let joined = Instant::now();
    let claimed = claim(id).instrument(tracing::debug_span!("claim"));
    let rounds = session.rounds(early, &mut messages, claimed, move || begin(id));
    match rounds.instrument(tracing::debug_span!("rounds")).await {
        Ok(output) => {
            party.metrics.stage(Stage::Rounds, joined.elapsed().as_secs_f64());
            Ok(Done { output, session: id })
        }
        Err(abort) => {
            let evidence = session.evidence(&abort.culprits());
            Err(Failure { abort, session: Some(id), evidence })
        }
    }
}

/// Parties' nonces.
type Nonces = BTreeMap<SignerIndex, Nonce>;

type Driven<T> = Box<dyn Machine<Output = T>>;

/// What came of a step: letters to send, and the output.
struct Turn<T> {
    send: Vec<(Vec<SignerIndex>, Bytes)>,
    output: Option<T>,
}

struct Session<'a> {
    party: &'a Party,
    context: &'a SessionContext<'a>,
    patience: Patience,
    /// The context's hash, then the session's id.
    id: SessionId,
    /// What the others have signed in this session.
    heard: BTreeMap<Said, Signature>,
}

/// Round, sender, and the digest of what it signed.
type Said = (u8, SignerIndex, [u8; 32]);

impl Session<'_> {
    /// Shows a fresh nonce to the others and collects theirs. Also yields messages of quicker parties,
    /// whose turn comes later.
    ///
    /// Parties that need not all be there at once (`rejoin`) show all nonces they know, again and again,
    /// and go on when every other one has shown the same: what a party showed that has died since, and
    /// that still lies in a queue, never has this party's nonce in it.
    async fn join(&self, messages: &mut mpsc::Receiver<Letter>) -> Result<(Nonces, Vec<Letter>), Abort> {
        let Self { party, context, patience, .. } = self;
        let me = party.index();
        let waits = patience.rejoin.is_some();
        let mut nonces = Nonces::from([(me, Nonce::random())]);
        // What each other party has shown last.
        let mut shown: BTreeMap<SignerIndex, Nonces> = BTreeMap::new();
        let mut early = Vec::new();
        self.show(&nonces).await?;
        let mut again = patience.rejoin.map(|every| Instant::now() + every);
        loop {
            let is_there = |index: &SignerIndex| match shown.get(index) {
                Some(theirs) => !waits || *theirs == nonces,
                None => false,
            };
            let missing: BTreeSet<_> = context.quorum.others(me).filter(|index| !is_there(index)).collect();
            if missing.is_empty() {
                return Ok((nonces, early));
            }
            let until = again.map_or(patience.join, |again| again.min(patience.join));
            let Some(letter) = receive(messages, until).await else {
                // Those who have shown nothing hold up the others, who wait for them as well.
                let silent: BTreeSet<_> =
                    missing.iter().copied().filter(|index| !shown.contains_key(index)).collect();
                let missing = if silent.is_empty() { missing } else { silent };
                if Instant::now() >= patience.join {
                    return Err(Abort::timeout(missing));
                }
                tracing::info!(?missing, "waiting for signers");
                self.show(&nonces).await?;
                again = patience.rejoin.map(|every| Instant::now() + every);
                continue;
            };
            let Header { round, from, session, .. } = letter.header;
            let dropped = match round {
                _ if !context.quorum.contains(from) => Some(Dropped::Stranger),
                0 if session != self.id => Some(Dropped::WrongSession),
                0 if shown.contains_key(&from) && !waits => Some(Dropped::Duplicate),
                0 => match party.endpoint.open(&letter).ok().and_then(|body| read_nonces(&body, from)) {
                    Some((nonce, theirs)) => {
                        shown.insert(from, theirs);
                        if nonces.insert(from, nonce) != Some(nonce) && waits {
                            self.show(&nonces).await?;
                        }
                        None
                    }
                    None => Some(Dropped::Malformed),
                },
                // Of each its own few, so that none crowds out another's.
                _ if early.iter().filter(|early: &&Letter| early.header.from == from).count() < EARLY => {
                    early.push(letter);
                    None
                }
                _ => Some(Dropped::Overflow),
            };
            if let Some(reason) = dropped {
                party.metrics.dropped(reason);
            }
        }
    }

    /// Sends a join.
    async fn show(&self, nonces: &Nonces) -> Result<(), Abort> {
        let body = encode(nonces)?;
        let join = self.party.endpoint.write(self.header(0, None), &body);
        let join = join.map_err(|error| Abort::local(format!("a join: {error}")))?;
        let others = self.context.quorum.others(self.party.index()).collect();
        self.send(vec![(others, join)], self.patience.join).await
    }

    /// Runs the protocol.
    async fn rounds<T: Send + 'static>(
        &mut self,
        early: Vec<Letter>,
        messages: &mut mpsc::Receiver<Letter>,
        claim: impl Future<Output = Result<(), JournalError>>,
        begin: impl FnOnce() -> Result<Driven<T>, SetupError> + Send + 'static,
    ) -> Result<T, Abort> {
        let writer = self.writer();
        let started = self.compute(move || {
            let mut machine = begin().map_err(|error| match error {
                SetupError::Abort(abort) => abort,
                error => Abort::local(error.to_string()),
            })?;
            let step = machine.start()?;
            Ok((machine, writer.write(step)?))
        });
        // The disk and the first round's arithmetic take their time together.
        let (claimed, started) = tokio::join!(claim, started);
        claimed.map_err(|error| Abort::local(error.to_string()))?;
        let (mut machine, mut turn) = started?;
        let mut early = early.into_iter();
        loop {
            self.send(turn.send, self.patience.end).await?;
            if let Some(output) = turn.output {
                return Ok(output);
            }
            let letter = loop {
                let letter = match early.next() {
                    Some(letter) => letter,
                    None => {
                        receive(messages, self.patience.until()).await.ok_or_else(|| machine.timed_out())?
                    }
                };
                match self.accept(&letter) {
                    None => break letter,
                    Some(reason) => self.party.metrics.dropped(reason),
                }
            };
            (machine, turn) = self.advance(machine, letter).await?;
        }
    }

    /// Why a letter is not for the machine, if it is not.
    fn accept(&mut self, letter: &Letter) -> Option<Dropped> {
        let Header { round, from, session, .. } = letter.header;
        if !self.context.quorum.contains(from) {
            return Some(Dropped::Stranger);
        }
        if round == 0 {
            return Some(Dropped::Duplicate);
        }
        if session != self.id {
            return Some(Dropped::WrongSession);
        }
        // The middle may repeat a message: that is not its sender's fault. Another one in the same place
        // is, and the machine says so.
        let said = (round, from, letter.digest);
        self.heard.insert(said, letter.signature).map(|_| Dropped::Duplicate)
    }

    async fn advance<T: Send + 'static>(
        &self,
        mut machine: Driven<T>,
        letter: Letter,
    ) -> Result<(Driven<T>, Turn<T>), Abort> {
        let (endpoint, writer, metrics) =
            (self.party.endpoint.clone(), self.writer(), self.party.metrics.clone());
        self.compute(move || {
            let Ok(mut body) = endpoint.open(&letter) else {
                // The sender's roster may be an old one: it is as if nothing had come.
                metrics.dropped(Dropped::Sealed);
                return Ok((machine, Turn { send: Vec::new(), output: None }));
            };
            let Header { round, from, to, .. } = letter.header;
            let body = std::mem::take(&mut *body);
            let step = machine.receive(Incoming { round, from, broadcast: to.is_none(), body })?;
            Ok((machine, writer.write(step)?))
        })
        .await
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Abort> + Send + 'static,
    ) -> Result<T, Abort> {
        let result = self.party.compute.run(work).await;
        result.unwrap_or_else(|| Err(Abort::local("the engine panicked; this is an error in the software")))
    }

    fn header(&self, round: u8, to: Option<SignerIndex>) -> Header {
        let SessionContext { request, attempt, .. } = *self.context;
        Header { request, attempt, session: self.id, round, from: self.party.index(), to }
    }

    fn writer(&self) -> Writer {
        Writer {
            endpoint: self.party.endpoint.clone(),
            header: self.header(0, None),
            others: self.context.quorum.others(self.party.index()).collect(),
        }
    }

    /// Sends letters, each again while the bus is away.
    async fn send(&self, letters: Vec<(Vec<SignerIndex>, Bytes)>, deadline: Instant) -> Result<(), Abort> {
        let sends = letters
            .into_iter()
            .flat_map(|(to, bytes)| to.into_iter().map(move |to| (to, bytes.clone())).collect::<Vec<_>>());
        join_all(sends.map(|(to, bytes)| self.send_one(to, bytes, deadline))).await.into_iter().collect()
    }

    async fn send_one(&self, to: SignerIndex, bytes: Bytes, deadline: Instant) -> Result<(), Abort> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            match self.party.bus.publish((self.party.inbox)(to), bytes.clone()).await {
                Ok(()) => return Ok(()),
                Err(error @ BusError::TooLong(_)) => return Err(Abort::local(error.to_string())),
                Err(error) => {
                    let delay = backoff.delay();
                    if Instant::now() + delay >= deadline {
                        return Err(Abort::local(error.to_string()));
                    }
                    sleep(delay).await;
                }
            }
        }
    }

    /// What these parties have signed in this session.
    fn evidence(&self, culprits: &BTreeSet<SignerIndex>) -> Vec<Evidence> {
        let theirs = self.heard.iter().filter(|((_, from, _), _)| culprits.contains(from));
        theirs
            .map(|(&(round, from, digest), signature)| Evidence {
                round,
                from,
                digest,
                signature: *signature.as_bytes(),
            })
            .collect()
    }
}

/// A party's nonce and all nonces it has shown.
fn read_nonces(body: &[u8], from: SignerIndex) -> Option<(Nonce, Nonces)> {
    let nonces: Nonces = decode(body)?;
    Some((*nonces.get(&from)?, nonces))
}

/// Writes what a machine wants sent.
struct Writer {
    endpoint: Arc<Endpoint>,
    /// But for the round and the addressee.
    header: Header,
    others: Vec<SignerIndex>,
}

impl Writer {
    fn write<T>(&self, step: Step<T>) -> Result<Turn<T>, Abort> {
        let send = step.send.into_iter().map(|Outgoing { round, to, body }| {
            let body = zeroize::Zeroizing::new(body);
            let (to, all) = match to {
                Recipient::One(index) => (Some(index), vec![index]),
                Recipient::All => (None, self.others.clone()),
            };
            let header = Header { round, to, ..self.header.clone() };
            let bytes = self.endpoint.write(header, &body);
            bytes.map(|bytes| (all, bytes)).map_err(|error| Abort::local(format!("round {round}: {error}")))
        });
        Ok(Turn { send: send.collect::<Result<_, Abort>>()?, output: step.output })
    }
}

/// The next message, unless the deadline passes first.
async fn receive(messages: &mut mpsc::Receiver<Letter>, deadline: Instant) -> Option<Letter> {
    timeout(deadline.saturating_duration_since(Instant::now()), messages.recv()).await.ok().flatten()
}
