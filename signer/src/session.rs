//! One session, from the first nonce to the signature.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tss_common::backoff::Backoff;
use tss_common::bus::{Address, Bus, BusError};
use tss_common::session::{Nonce, SessionContext};
use tss_common::wire::{Attempt, Body, Envelope};
use tss_mpc::{
    Abort, Incoming, Machine, Outgoing, Recipient, SessionId, SignSetup, Signature, SignerIndex,
    SigningShare, Step,
};

use crate::compute::Compute;
use crate::metrics::{Dropped, SignerMetrics, Stage};

/// How long the other parties have to show their nonces. They answer at once or are not there.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a session needs of its signer.
pub struct Party {
    /// Which signer it is.
    pub index: SignerIndex,
    /// Its share.
    pub share: Arc<dyn SigningShare>,
    /// How it reaches the others.
    pub bus: Arc<dyn Bus>,
    /// Where it computes.
    pub compute: Compute,
    /// What it counts.
    pub metrics: SignerMetrics,
}

type SignMachine = Box<dyn Machine<Output = Signature>>;

/// Takes part in an attempt until it ends. Every wait is bounded by the attempt's expiry.
///
/// # Errors
/// The [`Abort`] that ended it.
pub async fn run(
    party: &Party,
    attempt: &Attempt,
    mut messages: mpsc::Receiver<Envelope>,
) -> Result<Signature, Abort> {
    let began = Instant::now();
    let session = Session { party, attempt, deadline: began + remaining(attempt) };
    let (id, early) = session.join(&mut messages).await?;
    tracing::debug!(session = ?id, "all parties are there");
    party.metrics.stage(Stage::Join, began.elapsed().as_secs_f64());
    let joined = Instant::now();
    let signature = session.rounds(id, early, &mut messages).await?;
    party.metrics.stage(Stage::Rounds, joined.elapsed().as_secs_f64());
    Ok(signature)
}

/// How long an attempt has still to run.
pub fn remaining(attempt: &Attempt) -> Duration {
    attempt.expires.duration_since(Timestamp::now()).try_into().unwrap_or_default()
}

struct Session<'a> {
    party: &'a Party,
    attempt: &'a Attempt,
    deadline: Instant,
}

impl Session<'_> {
    /// Shows a fresh nonce to the others and collects theirs: that determines the session's id. Also
    /// yields messages of quicker parties, whose turn comes later.
    async fn join(
        &self,
        messages: &mut mpsc::Receiver<Envelope>,
    ) -> Result<(SessionId, Vec<Envelope>), Abort> {
        let Self { party, attempt, deadline } = self;
        let me = party.index;
        let nonce = Nonce::random();
        let joins = attempt.quorum.others(me).map(|to| self.send(to, Body::Join(nonce)));
        join_all(joins).await.into_iter().collect::<Result<Vec<()>, Abort>>()?;

        let deadline = (*deadline).min(Instant::now() + JOIN_TIMEOUT);
        let mut nonces = BTreeMap::from([(me, nonce)]);
        let mut early = Vec::new();
        while nonces.len() < attempt.quorum.len() {
            let missing = || attempt.quorum.iter().filter(|index| !nonces.contains_key(index)).collect();
            let Some(envelope) = receive(messages, deadline).await else {
                return Err(Abort::timeout(missing()));
            };
            match envelope.body {
                _ if !attempt.quorum.contains(envelope.from) || envelope.from == me => {
                    party.metrics.dropped(Dropped::Stranger);
                }
                Body::Join(nonce) if !nonces.contains_key(&envelope.from) => {
                    nonces.insert(envelope.from, nonce);
                }
                Body::Join(_) => party.metrics.dropped(Dropped::Duplicate),
                Body::Round { .. } if early.len() < attempt.quorum.len() => early.push(envelope),
                Body::Round { .. } => party.metrics.dropped(Dropped::Overflow),
            }
        }
        let context = SessionContext {
            cluster: &attempt.intent.cluster,
            key: &attempt.intent.key,
            epoch: attempt.epoch,
            engine: attempt.engine,
            request: attempt.request,
            attempt: attempt.attempt,
            quorum: &attempt.quorum,
            intent: attempt.intent.hash(),
        };
        Ok((context.id(&nonces), early))
    }

    /// Runs the protocol.
    async fn rounds(
        &self,
        id: SessionId,
        early: Vec<Envelope>,
        messages: &mut mpsc::Receiver<Envelope>,
    ) -> Result<Signature, Abort> {
        let Self { party, attempt, deadline } = self;
        let setup = SignSetup {
            session: id,
            quorum: attempt.quorum.clone(),
            digest: attempt.intent.digest,
            path: attempt.intent.path.clone(),
        };
        let share = party.share.clone();
        let begin = move || -> Result<_, Abort> {
            let mut machine = share.sign(setup).map_err(|error| Abort::local(error.to_string()))?;
            let step = machine.start()?;
            Ok((machine, step))
        };
        let (mut machine, mut step) = self.compute(begin).await?;
        let mut early = early.into_iter();
        loop {
            if let Some(signature) = self.perform(id, step).await? {
                return Ok(signature);
            }
            let incoming = loop {
                let envelope = match early.next() {
                    Some(envelope) => envelope,
                    None => receive(messages, *deadline).await.ok_or_else(|| machine.timed_out())?,
                };
                if let Some(incoming) = self.accept(id, envelope) {
                    break incoming;
                }
            };
            (machine, step) = self.advance(machine, incoming).await?;
        }
    }

    async fn advance(
        &self,
        mut machine: SignMachine,
        incoming: Incoming,
    ) -> Result<(SignMachine, Step<Signature>), Abort> {
        self.compute(move || {
            let step = machine.receive(incoming)?;
            Ok((machine, step))
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

    /// Sends what the machine wants sent; yields its output.
    async fn perform(&self, id: SessionId, step: Step<Signature>) -> Result<Option<Signature>, Abort> {
        let sends = step.send.into_iter().flat_map(|outgoing| self.address(id, outgoing));
        join_all(sends.map(|(to, body)| self.send(to, body)))
            .await
            .into_iter()
            .collect::<Result<Vec<()>, Abort>>()?;
        Ok(step.output)
    }

    fn address(&self, session: SessionId, outgoing: Outgoing) -> Vec<(SignerIndex, Body)> {
        let Outgoing { round, to, body: payload } = outgoing;
        match to {
            Recipient::One(index) => vec![(index, Body::Round { session, round, broadcast: false, payload })],
            Recipient::All => {
                let others = self.attempt.quorum.others(self.party.index);
                others
                    .map(|index| {
                        (index, Body::Round { session, round, broadcast: true, payload: payload.clone() })
                    })
                    .collect()
            }
        }
    }

    /// What a message says to the machine; `None` if it is not for this session.
    fn accept(&self, id: SessionId, envelope: Envelope) -> Option<Incoming> {
        let (me, quorum) = (self.party.index, &self.attempt.quorum);
        let reason = match envelope.body {
            _ if !quorum.contains(envelope.from) || envelope.from == me => Dropped::Stranger,
            Body::Join(_) => Dropped::Duplicate,
            Body::Round { session, .. } if session != id => Dropped::WrongSession,
            Body::Round { round, broadcast, payload, .. } => {
                return Some(Incoming { round, from: envelope.from, broadcast, body: payload });
            }
        };
        self.party.metrics.dropped(reason);
        None
    }

    /// Sends to one party, and again while the bus is away.
    async fn send(&self, to: SignerIndex, body: Body) -> Result<(), Abort> {
        let Self { party, attempt, deadline } = self;
        let envelope =
            Envelope { request: attempt.request, attempt: attempt.attempt, from: party.index, to, body };
        let bytes = envelope.to_bytes().map_err(|error| Abort::local(error.to_string()))?;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            match party.bus.publish(Address::Rounds(to), bytes.clone()).await {
                Ok(()) => return Ok(()),
                Err(error @ BusError::TooLong(_)) => return Err(Abort::local(error.to_string())),
                Err(error) => {
                    let delay = backoff.delay();
                    if Instant::now() + delay >= *deadline {
                        return Err(Abort::local(error.to_string()));
                    }
                    sleep(delay).await;
                }
            }
        }
    }
}

/// The next message, unless the deadline passes first.
async fn receive(messages: &mut mpsc::Receiver<Envelope>, deadline: Instant) -> Option<Envelope> {
    timeout(deadline.saturating_duration_since(Instant::now()), messages.recv()).await.ok().flatten()
}
