//! What a signer listens to, and what it answers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use tss_common::audit::{Event, Finish};
use tss_common::backoff::Backoff;
use tss_common::bus::{Address, Bus, BusError, BusState, Delivery};
use tss_common::config::check_name;
use tss_common::envelope::{Endpoint, Header, Letter, Signed};
use tss_common::identity::{Identity, Roster};
use tss_common::session::{Operation, SessionContext};
use tss_common::telemetry::Label as _;
use tss_common::trace::TraceParent;
use tss_common::wire::{
    self, Attempt, Ending, HEARTBEAT, Heartbeat, KeyAnnouncement, Notice, Order, Outcome, Rehearsed, Verdict,
};
use tss_mpc::{
    Abort, Engine, EngineId, Payload, SessionId, ShareDocument, SignSetup, Signature, SignerIndex,
};
use uuid::Uuid;

use crate::compute::Compute;
use crate::holding::{Held, Holding, Next};
use crate::journal::{HeldKey, Journal};
use crate::metrics::{Dropped, Metrics, SessionEnd, SignerMetrics};
use crate::policy::{PolicyFile, PolicyInfo};
use crate::refresh::Refresher;
use crate::router::Router;
use crate::session::{self, Done, Failure, Party, Patience};
use crate::share_file::{Expected, ShareFile};

/// How many protocol messages may be on their way into the process at once.
const ROUNDS_IN_FLIGHT: u16 = 512;

/// How many orders for refreshes may wait while one is dealt with.
const REFRESHES_WAITING: usize = 4;

/// How long the other parties have to show their nonces. They answer at once or are not there.
const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a session may take, whatever the manager says: the longest `attempt_timeout`.
const MAX_ATTEMPT: Duration = Duration::from_secs(600);

/// For how long a signer tries to report an outcome while the bus is away. Then the manager has given
/// the attempt up.
const REPORT_FOR: Duration = Duration::from_secs(120);

/// What a signer starts from.
pub struct SignerOptions {
    /// Its share.
    pub share: ShareDocument,
    /// Where the share is, if it is in a file: a refresh needs that.
    pub share_file: Option<ShareFile>,
    /// How long it takes no part in another refresh.
    pub refresh_pause: Duration,
    /// Its identity.
    pub identity: Identity,
    /// Everybody's.
    pub roster: Roster,
    /// The protocol.
    pub engine: Arc<dyn Engine>,
    /// How it reaches managers and signers.
    pub bus: Arc<dyn Bus>,
    /// Where it computes.
    pub compute: Compute,
    /// Where it keeps its own files, `signer{index}.redb` and `signer{index}.audit.jsonl`.
    pub data_dir: PathBuf,
    /// How many sessions it takes part in at the same time.
    pub max_sessions: u16,
    /// What it signs; without it, whatever a manager asks for.
    pub policy_file: Option<PathBuf>,
    /// What it counts.
    pub metrics: Metrics,
}

/// A running signer.
pub struct Signer {
    inner: Arc<Inner>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Inner {
    cluster: String,
    engine: EngineId,
    instance: Uuid,
    holding: Arc<Holding>,
    party: Arc<Party>,
    router: Arc<Router>,
    journal: Journal,
    policy: PolicyFile,
    refresher: Arc<Refresher>,
}

impl Signer {
    /// Starts a signer. It takes part in sessions until [`Signer::stop`].
    ///
    /// # Errors
    /// When the share has no part for the engine, the roster knows the signer by another identity, the
    /// policy is bad, or the signer's own files cannot be used.
    pub async fn start(options: SignerOptions) -> anyhow::Result<Self> {
        let SignerOptions {
            share,
            share_file,
            refresh_pause,
            identity,
            roster,
            engine,
            bus,
            compute,
            data_dir,
            max_sessions,
            policy_file,
            metrics,
        } = options;
        let core = &share.core;
        let index = core.index;
        let metrics = metrics.of(index);
        let policy = PolicyFile::open(policy_file, metrics.clone())?;
        let endpoint = Endpoint::new(&share.cluster, index, identity, roster).map_err(anyhow::Error::msg)?;
        let held =
            HeldKey { id: share.key.clone(), public_key: core.secp256k1()?.public_key, epoch: share.epoch };
        let journal = Journal::open(&data_dir, index, Some(held))?;
        let next = share_file.as_ref().map(|file| next_share(file, &share)).transpose()?.flatten();
        let next = next.map(|(next, frozen)| {
            let held = Arc::new(Held::open(&*engine, &next)?);
            anyhow::Ok(Next { held, frozen })
        });
        let (next, held) = (next.transpose()?, Held::open(&*engine, &share)?);
        let stored = share_file.as_ref().and_then(ShareFile::load_stored);
        let key = held.key.clone();
        metrics.key(&key.id, key.epoch);
        metrics.banned(journal.banned().len());
        let opened = Event::Opened {
            version: env!("CARGO_PKG_VERSION").into(),
            cluster: share.cluster.clone(),
            key: key.id.clone(),
            epoch: key.epoch,
            public_key: key.public_key,
        };
        journal.note(vec![opened]).await.context("the signer cannot write its audit log")?;
        let holding = Arc::new(Holding::new(held, next));
        let party =
            Arc::new(Party { endpoint: Arc::new(endpoint), bus, inbox: Address::Rounds, compute, metrics });
        let router = Arc::new(Router::default());
        let inner = Arc::new(Inner {
            cluster: share.cluster.clone(),
            engine: engine.id(),
            instance: Uuid::new_v4(),
            holding: holding.clone(),
            party: party.clone(),
            router: router.clone(),
            journal: journal.clone(),
            policy,
            refresher: Arc::new(Refresher {
                cluster: share.cluster.clone(),
                engine,
                party,
                router,
                journal,
                holding,
                file: share_file,
                pause: refresh_pause,
                turn: Mutex::default(),
                orders: Semaphore::new(REFRESHES_WAITING),
                stored: watch::Sender::new(
                    stored.and_then(|words| serde_json::from_slice(&words).ok()).unwrap_or_default(),
                ),
            }),
        });
        let signer = Self { inner, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        let (bus, me) = (&signer.inner.party.bus, index);
        let rounds = bus.subscribe(Address::Rounds(me), ROUNDS_IN_FLIGHT).await?;
        let requests = bus.subscribe(Address::Requests(me), max_sessions).await?;
        signer.spawn(|inner, stop| inner.take_rounds(rounds, stop));
        let tasks = signer.tasks.clone();
        signer.spawn(|inner, stop| inner.take_requests(requests, stop, tasks));
        signer.spawn(Inner::send_heartbeats);
        signer.spawn(|inner, stop| async move { inner.policy.watch(&stop).await });
        signer.spawn(Inner::note_policies);
        signer.spawn(|inner, stop| inner.refresher.clone().watch(stop));
        signer.spawn(|inner, stop| inner.refresher.clone().pass_on(stop));
        tracing::info!(
            signer = %index, key = %key.id, epoch = key.epoch, public_key = %key.public_key,
            threshold = %key.threshold, "signer started; {}", signer.inner.policy
        );
        Ok(signer)
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(Arc<Inner>, CancellationToken) -> F,
    ) {
        let task = task(self.inner.clone(), self.stop.clone());
        self.tasks.spawn(task.instrument(tracing::info_span!("signer", index = %self.index())));
    }

    /// Whether the signer is connected to the bus.
    pub fn bus_state(&self) -> BusState {
        self.inner.party.bus.state().borrow().clone()
    }

    /// Which signer it is.
    pub fn index(&self) -> SignerIndex {
        self.inner.party.index()
    }

    /// Takes nothing new, ends the running sessions, and stops; at the latest after `patience`.
    pub async fn stop(self, patience: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(signer = %self.index(), "sessions were still running");
        }
        self.inner.journal.close().await;
    }
}

impl Inner {
    fn metrics(&self) -> &SignerMetrics {
        &self.party.metrics
    }

    /// Hands protocol messages to their sessions.
    async fn take_rounds(
        self: Arc<Self>,
        mut rounds: tss_common::bus::Subscription,
        stop: CancellationToken,
    ) {
        // Sessions that are still running need their messages: this goes on after `stop`, until they
        // have ended.
        loop {
            let delivery = tokio::select! {
                delivery = rounds.recv() => delivery,
                () = self.drained(&stop) => None,
            };
            let Some(delivery) = delivery else { return };
            if let Err(reason) = self.route(&delivery.body) {
                self.metrics().dropped(reason);
                match Header::peek(&delivery.body) {
                    // Anybody may have written this, unless the reason is another one than the signature.
                    Ok(Header { request, attempt, session, round, from, .. }) => tracing::debug!(
                        ?reason, %request, attempt, %session, round, %from, "a protocol message was dropped"
                    ),
                    Err(_) => tracing::debug!(?reason, "a protocol message was dropped"),
                }
            }
            delivery.ack();
        }
    }

    async fn drained(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        while self.router.active() > 0 {
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn route(&self, bytes: &Bytes) -> Result<(), Dropped> {
        self.router.deliver(self.party.endpoint.read(bytes)?)
    }

    /// Takes part in attempts. A message stays unacknowledged until its session has ended, which
    /// bounds the sessions, and brings the message back if this process dies.
    async fn take_requests(
        self: Arc<Self>,
        mut requests: tss_common::bus::Subscription,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) {
        loop {
            let delivery = tokio::select! {
                delivery = requests.recv() => delivery,
                () = stop.cancelled() => None,
            };
            let Some(delivery) = delivery else { return };
            match Order::read(&delivery.body) {
                Ok(Order::Sign(attempt) | Order::Rehearse(attempt)) if !is_named_well(&attempt) => {
                    tracing::warn!("an attempt for a cluster or key that cannot be was set aside");
                    delivery.reject();
                }
                Ok(Order::Rehearse(attempt)) => {
                    let signer = self.clone();
                    tasks.spawn(async move {
                        signer.rehearse(&attempt).await;
                        delivery.ack();
                    });
                }
                Ok(Order::Sign(attempt)) => {
                    let span = tracing::info_span!(
                        "session", signer = %self.party.index(), request = %attempt.request,
                        attempt = attempt.attempt, session = tracing::field::Empty,
                        outcome = tracing::field::Empty
                    );
                    TraceParent::adopt(attempt.traceparent, &span);
                    tasks.spawn(self.clone().serve(attempt, delivery).instrument(span));
                }
                Ok(Order::Refresh(refresh)) => {
                    // Whoever wants it asks again, should this process end: it does not come back.
                    delivery.ack();
                    let span =
                        tracing::info_span!("refresh", signer = %self.party.index(), refresh = %refresh.id);
                    let refresher = self.refresher.clone();
                    tasks.spawn(async move { refresher.take_part(refresh).await }.instrument(span));
                }
                Err(error) => {
                    tracing::warn!(%error, "an order that cannot be read was set aside");
                    delivery.reject();
                }
            }
        }
    }

    /// Says what it would do in an attempt, and does nothing of it.
    async fn rehearse(&self, attempt: &Attempt) {
        if attempt.expires <= Timestamp::now() {
            return;
        }
        let judged = self.check_terms(attempt, &self.holding.current().key).and_then(|()| {
            let allowed = self.policy.rehearse(attempt, Timestamp::now());
            allowed.map_err(Ending::from)
        });
        let verdict = match judged {
            Ok(approvers) => Verdict::Willing(approvers),
            Err(Ending::Refused(reason)) => Verdict::Refused(reason),
            Err(Ending::Unable(reason)) => Verdict::Unable(reason),
            Err(Ending::Signed(_) | Ending::Aborted(_)) => return,
        };
        let rehearsed = Rehearsed { request: attempt.request, signer: self.party.index(), verdict };
        self.tell(&rehearsed, Notice::Rehearsed, "a rehearsal was not answered").await;
    }

    async fn serve(self: Arc<Self>, attempt: Attempt, delivery: Delivery) {
        let key = (attempt.request, attempt.attempt);
        if attempt.expires <= Timestamp::now() {
            // It waited while this signer was away, or the clocks differ.
            tracing::info!(expired = %attempt.expires, "an attempt came after its time");
            self.ended(SessionEnd::Expired);
            return delivery.ack();
        }
        let mut session = None;
        // The same from the check to the signature, should the next take its place meanwhile.
        let held = self.holding.current();
        let ending = match self.check(&attempt, &held.key) {
            Err(ending) => {
                if let Ending::Refused(reason) = &ending {
                    self.note(vec![refused(&attempt, reason)]).await;
                }
                ending
            }
            Ok(approvers) => {
                let Some(messages) = self.router.open(key) else {
                    tracing::debug!("an attempt came twice");
                    return delivery.ack();
                };
                self.metrics().sessions_active(self.router.active());
                let result = self.sign(&attempt, &held, approvers, messages).await;
                self.router.close(key);
                self.metrics().sessions_active(self.router.active());
                session = match &result {
                    Ok(done) => Some(done.session),
                    Err(failure) => failure.session,
                };
                self.remember(&attempt, &result).await;
                match result {
                    Ok(done) => Ending::Signed(done.output),
                    Err(failure) => Ending::Aborted(failure.abort),
                }
            }
        };
        self.conclude(&attempt, session, ending).await;
        delivery.ack();
    }

    /// Takes part in an attempt.
    async fn sign(
        &self,
        attempt: &Attempt,
        held: &Held,
        approvers: Vec<String>,
        messages: mpsc::Receiver<Letter>,
    ) -> Result<Done<Signature>, Failure> {
        let intent_hash = attempt.intent.hash();
        let context = SessionContext {
            operation: Operation::Sign,
            cluster: &attempt.intent.cluster,
            key: &attempt.intent.key,
            epoch: attempt.epoch,
            engine: attempt.engine,
            request: attempt.request,
            attempt: attempt.attempt,
            quorum: &attempt.quorum,
            intent: intent_hash,
        };
        let now = Instant::now().into_std();
        let end = now + remaining(attempt);
        let patience = Patience { join: end.min(now + JOIN_TIMEOUT), end, rejoin: None, silence: None };
        let claim = |session| {
            let accepted = Event::Accepted {
                request: attempt.request,
                attempt: attempt.attempt,
                session,
                intent: attempt.intent.clone(),
                intent_hash,
                quorum: attempt.quorum.clone(),
                approvers,
            };
            self.journal.begin(session, vec![accepted])
        };
        let share = held.share.clone();
        let (quorum, digest, path) =
            (attempt.quorum.clone(), attempt.intent.digest, attempt.intent.path.clone());
        let payload = Payload::Digest(digest);
        let begin = move |session| share.sign(SignSetup { session, quorum, payload, path });
        let Done { output, session } =
            session::run(&self.party, &context, patience, messages, claim, begin).await?;
        // The share is of an ECDSA key, or it would not have been loaded.
        output.ecdsa().map(|output| Done { output, session }).map_err(|error| Failure {
            abort: Abort::local(error.to_string()),
            session: Some(session),
            evidence: Vec::new(),
        })
    }

    /// Writes down how a session ended, and whom never to meet again: before anybody hears of it.
    async fn remember(&self, attempt: &Attempt, result: &Result<Done<Signature>, Failure>) {
        let finished = |session: Option<SessionId>, signature: Option<Signature>, reason| Event::Finished {
            request: attempt.request,
            attempt: attempt.attempt,
            session,
            intent_hash: attempt.intent.hash(),
            outcome: if signature.is_some() { Finish::Signed } else { Finish::Aborted },
            signature,
            reason,
        };
        let Failure { abort, session, evidence } = match result {
            Ok(done) => {
                return self.note(vec![finished(Some(done.session), Some(done.output), None)]).await;
            }
            Err(failure) => failure,
        };
        let mut events = Vec::new();
        // The engine demands a ban where a failed check guards state that is used again. Everybody else
        // who provably sent what no honest signer sends is not met again either.
        let culprits = abort.culprits();
        if let (false, Some(session)) = (culprits.is_empty(), *session) {
            events.push(Event::Cheating {
                culprits: culprits.clone(),
                banned: true,
                request: attempt.request,
                attempt: attempt.attempt,
                session,
                reason: abort.reason.clone(),
                evidence: evidence.clone(),
            });
        }
        events.push(finished(*session, None, Some(abort.to_string())));
        if culprits.is_empty() {
            return self.note(events).await;
        }
        tracing::error!(?culprits, reason = %abort.reason, "a signer cheated and is banned for good");
        if let Err(error) = self.journal.ban(culprits, abort.reason.clone(), events).await {
            tracing::error!(%error, "the ban is not written yet: it holds while this process runs");
        }
        self.metrics().banned(self.journal.banned().len());
        self.announce(false).await;
    }

    /// Writes down which policy holds, now and at each change.
    async fn note_policies(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.policy.changes();
        loop {
            let PolicyInfo { policy, sha256 } = changes.borrow_and_update().clone();
            if let Some(hash) = sha256 {
                let approvers = u32::try_from(policy.approvals_required()).unwrap_or(u32::MAX);
                let summary = policy.summary();
                self.note(vec![Event::Policy { hash, approvers, summary }]).await;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Writes to the audit log what guards nothing that is still to come.
    async fn note(&self, events: Vec<Event>) {
        if let Err(error) = self.journal.note(events).await {
            tracing::error!(%error, "the audit log lacks an entry until it can be written");
        }
    }

    /// Whether this signer takes part in an attempt; yields whose approvals the policy counted. The
    /// manager is not trusted with the digest: it is computed here, from the message. The policy comes
    /// last: what is of no use does not count for its rate.
    fn check(&self, attempt: &Attempt, key: &KeyAnnouncement) -> Result<Vec<String>, Ending> {
        self.check_terms(attempt, key)?;
        Ok(self.policy.check(attempt, Timestamp::now())?)
    }

    /// The same without the policy.
    fn check_terms(&self, attempt: &Attempt, key: &KeyAnnouncement) -> Result<(), Ending> {
        let intent = &attempt.intent;
        let unable = |reason: String| Err(Ending::Unable(reason));
        let refused = |reason: String| Err(Ending::Refused(reason));
        if intent.cluster != self.cluster || intent.key != key.id {
            return refused(format!(
                "this signer holds key {} of cluster {}, not key {} of cluster {}",
                key.id, self.cluster, intent.key, intent.cluster
            ));
        }
        if attempt.epoch != key.epoch || attempt.engine != self.engine {
            return unable(format!("this signer has epoch {} and engine {}", key.epoch, self.engine));
        }
        let quorum = &attempt.quorum;
        if quorum.len() != usize::from(key.threshold.t())
            || !quorum.contains(self.party.index())
            || !quorum.iter().all(|index| key.threshold.contains(index))
        {
            return unable(format!("quorum {quorum:?} does not fit a {} key", key.threshold));
        }
        let banned: BTreeSet<SignerIndex> =
            self.journal.banned().into_iter().filter(|&index| quorum.contains(index)).collect();
        if !banned.is_empty() {
            return unable(format!("this signer never again signs with {banned:?}"));
        }
        match intent.hash.digest(&attempt.message) {
            Ok(digest) if digest == intent.digest => {}
            Ok(_) => return refused("the digest is not that of the message".into()),
            Err(error) => return refused(error.to_string()),
        }
        if intent.not_after.is_some_and(|time| time < Timestamp::now()) {
            return refused("the request has expired (not_after)".into());
        }
        Ok(())
    }

    /// Counts how an attempt ended, and notes it with the attempt's span.
    fn ended(&self, end: SessionEnd) {
        self.metrics().session_ended(end);
        tracing::Span::current().record("outcome", end.as_str());
    }

    /// Reports an ending.
    async fn conclude(&self, attempt: &Attempt, session: Option<SessionId>, ending: Ending) {
        let me = self.party.index();
        let end = match &ending {
            Ending::Signed(_) => SessionEnd::Signed,
            Ending::Aborted(_) => SessionEnd::Aborted,
            Ending::Refused(_) => SessionEnd::Refused,
            Ending::Unable(_) => SessionEnd::Unable,
        };
        match &ending {
            Ending::Signed(_) => tracing::info!(quorum = ?attempt.quorum, "signed"),
            Ending::Aborted(abort) => {
                tracing::warn!(quorum = ?attempt.quorum, %abort, "aborted");
                self.metrics().aborted((&abort.blame).into());
            }
            Ending::Refused(reason) | Ending::Unable(reason) => tracing::warn!(%reason, "{}", end.as_str()),
        }
        self.ended(end);
        // All t have the signature; one of them reports it.
        if end == SessionEnd::Signed && attempt.quorum.iter().next() != Some(me) {
            return;
        }
        let outcome =
            Outcome { request: attempt.request, attempt: attempt.attempt, session, signer: me, ending };
        match self.party.endpoint.sign(&outcome).and_then(|signed| wire::to_json(&signed)) {
            Ok(bytes) => self.report(bytes).instrument(tracing::debug_span!("report")).await,
            Err(error) => tracing::error!(%error, "an outcome cannot be written"),
        }
    }

    async fn report(&self, bytes: Bytes) {
        let deadline = Instant::now() + REPORT_FOR;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        while let Err(error) = self.party.bus.publish(Address::Results, bytes.clone()).await {
            if matches!(error, BusError::TooLong(_)) || Instant::now() >= deadline {
                return tracing::error!(%error, "an outcome was not reported");
            }
            sleep(backoff.delay()).await;
        }
    }

    /// Says that this signer is alive: regularly, and at once when the bus comes back or its shares change.
    async fn send_heartbeats(self: Arc<Self>, stop: CancellationToken) {
        let mut state = self.party.bus.state();
        let mut shares = self.holding.changes();
        let mut ticks = interval(HEARTBEAT);
        loop {
            self.metrics().bus_up(*state.borrow_and_update() == BusState::Up);
            shares.borrow_and_update();
            self.announce(false).await;
            tokio::select! {
                _ = ticks.tick() => {}
                // The sender lives as long as `self`.
                _ = shares.changed() => {}
                changed = state.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return self.announce(true).await,
            }
        }
    }

    async fn announce(&self, stopping: bool) {
        let held = self.holding.current();
        let heartbeat = Heartbeat {
            signer: self.party.index(),
            instance: self.instance,
            at: Timestamp::now(),
            key: held.key.clone(),
            engines: vec![self.engine],
            sessions: u32::try_from(self.router.active()).unwrap_or(u32::MAX),
            banned: self.journal.banned(),
            stopping,
            shares: Some(held.commitment),
            next: self.holding.next().map(|next| next.held.commitment),
            refresh: self.holding.refresh(),
        };
        self.tell(&heartbeat, Notice::Heartbeat, "no heartbeat was sent").await;
    }

    /// Tells all managers something, once.
    async fn tell<T: Serialize>(&self, what: &T, notice: fn(Signed) -> Notice, lost: &'static str) {
        self.party.tell(self.party.endpoint.sign(what).map(notice), lost).await;
    }
}

/// The share that a refresh has left beside this one, to take its place once all signers have theirs.
fn next_share(file: &ShareFile, share: &ShareDocument) -> anyhow::Result<Option<(ShareDocument, bool)>> {
    let ShareDocument { cluster, key, epoch, core, .. } = share;
    let expected = Expected { cluster, key, index: core.index, threshold: core.threshold };
    let Some((next, frozen)) = file.load_next(&expected)? else { return Ok(None) };
    let (expected, found) = (epoch.checked_add(1), (next.core.public_key(), next.epoch));
    anyhow::ensure!(
        expected.is_some_and(|expected| found == (core.public_key(), expected)),
        "{file} has a share of public key {} at epoch {} waiting beside it: expected the epoch after {epoch} of {}, or none \
         (move it away)",
        next.core.public_key(),
        next.epoch,
        core.public_key()
    );
    Ok(Some((next, frozen)))
}

/// Whether a cluster and a key can have these names: others would be written to the audit log, however
/// long they are.
fn is_named_well(attempt: &Attempt) -> bool {
    [&attempt.intent.cluster, &attempt.intent.key].into_iter().all(|name| check_name(name).is_ok())
}

/// How long an attempt has still to run.
fn remaining(attempt: &Attempt) -> Duration {
    let left = Duration::try_from(attempt.expires.duration_since(Timestamp::now()));
    left.unwrap_or_default().min(MAX_ATTEMPT)
}

fn refused(attempt: &Attempt, reason: &str) -> Event {
    Event::Refused {
        request: attempt.request,
        attempt: attempt.attempt,
        intent: attempt.intent.clone(),
        intent_hash: attempt.intent.hash(),
        quorum: attempt.quorum.clone(),
        reason: reason.to_owned(),
    }
}
