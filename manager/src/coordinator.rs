//! Drives each request to its end.
//!
//! A request is stored before it is acknowledged, and driven by one manager at a time, which holds a
//! lease on it. Driving means: choose a quorum, begin an attempt, wait for its outcome, try another
//! quorum if there is none; until there is a signature, or the deadline has passed. Whatever part is
//! away meanwhile is waited for.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, field};
use tss_common::backoff::Backoff;
use tss_common::bus::{Address, Bus, BusError, BusState};
use tss_common::telemetry::Label as _;
use tss_common::trace::TraceParent;
use tss_common::wire::{self, Attempt, Ending, Notice, Outcome};
use tss_mpc::{Abort, Blame, EngineId, PublicKey, Quorum, SessionId, Signature, SignerIndex, Threshold};
use uuid::Uuid;

use crate::keys::Keys;
use crate::metrics::{AttemptEnd, Finish, Metrics, Part, Stage};
use crate::presence::Presence;
use crate::pulse::Pulse;
use crate::store::{Filter, Inserted, KeyRecord, Lease, Listed, Progress, Request, State, Store, StoreError};
use crate::window::Window;

/// For how long a lease holds without being renewed.
const LEASE: SignedDuration = SignedDuration::from_secs(3);

/// How often leases are renewed, and lapsed ones looked for.
const LEASE_ROUND: Duration = Duration::from_secs(1);

/// How long all managers have to find that the store is back, and to renew their leases, before lapsed
/// ones say that a manager has died.
const RETURN: Duration = Duration::from_secs(5);

/// How long requests are stored under one holder of leases.
const HOLDER: Duration = Duration::from_secs(10);

/// How many requests are taken over at once.
const TAKE_OVER: usize = 100;

/// How much longer than the signers a manager waits for an attempt's outcome: they say themselves who
/// did not answer.
const GRACE: Duration = Duration::from_millis(500);

/// How long the other signers of a quorum have to refuse, too, before another quorum is tried.
const REFUSAL: Duration = Duration::from_millis(250);

/// Why a request was not signed that did not come to its turn.
const IN_FRONT: &str = "other requests were in front of it";

/// How many signatures are kept of requests that are not driven here.
const STRAYS: usize = 1024;

/// How many outcomes wait for one request.
const OUTCOMES: usize = 64;

/// How many bytes the messages of requests that have not ended may have together.
const PENDING_BYTES: usize = 256 << 20;

/// How many finished requests are kept in memory, and up to which message size.
const RECENT: usize = 8192;
const RECENT_MESSAGE: usize = 4096;

/// What bounds a coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    /// The protocol that signs.
    pub engine: EngineId,
    /// How long an attempt may take.
    pub attempt_timeout: Duration,
    /// How many requests are driven at the same time.
    pub active: u16,
    /// How many accepted requests may wait.
    pub pending: u32,
}

/// Why a request was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The store or the bus is away.
    #[error("{0}")]
    Unavailable(&'static str),
    /// Too many requests are waiting.
    #[error("{0} requests are waiting already")]
    Overloaded(u32),
}

/// Drives requests.
pub struct Coordinator {
    /// Who holds the leases of requests that are stored now; see [`Coordinator::lease`].
    holder: Mutex<(Uuid, Instant)>,
    options: CoordinatorOptions,
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    keys: Arc<Keys>,
    presence: Arc<Presence>,
    metrics: Metrics,
    pulse: Pulse,
    requests: Mutex<Requests>,
    slots: Semaphore,
    window: Window,
    finished: broadcast::Sender<Uuid>,
    store_up: watch::Sender<bool>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct Requests {
    /// Those driven here, and some that ended.
    known: HashMap<Uuid, Known>,
    /// The ended ones of `known`, oldest first.
    ended: VecDeque<Uuid>,
    /// How many have not ended, and how many bytes of messages they have.
    driven: u32,
    bytes: usize,
    /// Signatures of requests that are not driven here, oldest first. If their manager has died, they
    /// need not be made again.
    strays: VecDeque<Outcome>,
}

impl Requests {
    fn keep_stray(&mut self, outcome: &Outcome) {
        if self.strays.len() >= STRAYS {
            self.strays.pop_front();
        }
        self.strays.push_back(outcome.clone());
    }

    fn release(&mut self, bytes: usize) {
        self.driven = self.driven.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Room for a request while it is being stored.
struct Reservation {
    coordinator: Arc<Coordinator>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.coordinator.requests().release(self.bytes);
    }
}

struct Known {
    latest: watch::Sender<Arc<Request>>,
    /// `None` once it has ended.
    outcomes: Option<mpsc::Sender<Outcome>>,
}

/// How an attempt ended, for the request.
enum Verdict {
    Signed(Signature, PublicKey),
    /// Another attempt may do better.
    Retry(String),
    /// No other attempt will.
    Failed(String),
    /// Another manager drives the request, or it has ended.
    Lost,
}

/// What attempts so far have shown of the signers.
#[derive(Default)]
struct Experience {
    /// Those who cheated.
    excluded: BTreeSet<SignerIndex>,
    /// How many thousandths of a failed attempt each is charged with; see [`Experience::charge`].
    charged: BTreeMap<SignerIndex, u32>,
    /// Those who will not sign it, and why.
    refused: BTreeMap<SignerIndex, String>,
    /// The key's epoch at the last attempt.
    epoch: u64,
}

impl Experience {
    /// Why the request can not be signed any more, once too few are left who might: up to t - 1 signers
    /// may be malicious, so that one's refusal alone says nothing.
    fn refusal(&self, threshold: Threshold) -> Option<String> {
        let needed = usize::from(threshold.n() - threshold.t()) + 1;
        if self.refused.len() < needed {
            return None;
        }
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (signer, reason) in &self.refused {
            reasons.entry(reason).or_default().push(signer.to_string());
        }
        let texts = reasons.iter().map(|(reason, signers)| {
            let who = if signers.len() == 1 { "signer" } else { "signers" };
            format!("{who} {} refused: {reason}", signers.join(", "))
        });
        Some(texts.collect::<Vec<_>>().join("; "))
    }

    /// Charges a failed attempt: as much to the one who says whose fault it was as to all those together
    /// whom it blames. One signer's word against another's is no proof, and up to t - 1 signers may be
    /// malicious: one that blames others again and again pays as much as they do in sum, and as the honest
    /// are more, a quorum of them is soon the cheapest.
    fn charge(&mut self, reporter: SignerIndex, blamed: &BTreeSet<SignerIndex>, quorum: &Quorum) {
        self.add([reporter], 1000);
        // Whoever took no part is not to blame, whatever the reporter says.
        self.share(quorum.iter().filter(|signer| *signer != reporter && blamed.contains(signer)).collect());
    }

    /// Charges one failed attempt to all of these together.
    fn share(&mut self, blamed: Vec<SignerIndex>) {
        let each = 1000 / u32::try_from(blamed.len().max(1)).unwrap_or(u32::MAX);
        self.add(blamed, each);
    }

    fn add(&mut self, signers: impl IntoIterator<Item = SignerIndex>, thousandths: u32) {
        for signer in signers {
            let charged = self.charged.entry(signer).or_default();
            *charged = charged.saturating_add(thousandths);
        }
    }

    /// Forgets what signers are charged with when the key's epoch is another one: not all of them begin it at the same
    /// moment, and an attempt in between fails for the fault of none. As a later epoch takes t signers, fewer cannot clear
    /// themselves.
    fn enter(&mut self, epoch: u64) {
        if std::mem::replace(&mut self.epoch, epoch) != epoch {
            self.charged.clear();
        }
    }

    /// Those who are not to be asked.
    fn excluded(&self) -> BTreeSet<SignerIndex> {
        self.excluded.iter().chain(self.refused.keys()).copied().collect()
    }
}

impl Coordinator {
    /// A coordinator that drives nothing yet.
    pub fn new(
        options: CoordinatorOptions,
        store: Arc<dyn Store>,
        bus: Arc<dyn Bus>,
        keys: Arc<Keys>,
        presence: Arc<Presence>,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            holder: Mutex::new((Uuid::new_v4(), Instant::now())),
            slots: Semaphore::new(options.active.into()),
            window: Window::new(options.active),
            options,
            store,
            bus,
            keys,
            presence,
            metrics,
            pulse: Pulse::default(),
            requests: Mutex::default(),
            finished: broadcast::Sender::new(1024),
            store_up: watch::Sender::new(false),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the store answered when it was last asked.
    pub fn store_is_up(&self) -> bool {
        *self.store_up.borrow()
    }

    /// Records whether the store answers.
    pub fn set_store_up(&self, up: bool) {
        self.metrics.up(Part::Store, up);
        let changed = self.store_up.send_if_modified(|was| std::mem::replace(was, up) != up);
        if changed && up {
            tracing::info!("the store answers");
        }
    }

    fn note_store_error(&self, error: &StoreError) {
        if matches!(error, StoreError::Down(_)) && self.store_is_up() {
            tracing::warn!(%error, "the store does not answer");
            self.set_store_up(false);
        }
    }

    /// The lease of a request that is about to be stored.
    ///
    /// The holder changes every now and then, and a holder's leases are renewed only while requests of
    /// it are driven here. So a request that was stored, though the store's answer was lost and it was not there yet
    /// when this manager looked ([`Coordinator::find_out`]), lapses when those that were stored along with it have
    /// ended, and is taken over.
    pub fn lease(&self) -> Lease {
        let mut holder = self.holder.lock().unwrap_or_else(PoisonError::into_inner);
        if holder.1.elapsed() > HOLDER {
            *holder = (Uuid::new_v4(), Instant::now());
        }
        lease_of(holder.0)
    }

    /// The holders of the requests that are driven here.
    fn holders(&self) -> BTreeSet<Uuid> {
        let requests = self.requests();
        let driven = requests.known.values().filter(|known| known.outcomes.is_some());
        driven.map(|known| known.latest.borrow().lease.holder).collect()
    }

    /// Stores a request and begins to drive it. What it returns is safe.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was then promised.
    pub async fn submit(self: &Arc<Self>, request: Request) -> Result<Inserted, SubmitError> {
        // Whoever hangs up meanwhile takes nothing back: what is stored is driven at once, and not when its lease has lapsed.
        let coordinator = self.clone();
        let stored = async move { coordinator.store_and_drive(request).await };
        let stored = self.tasks.spawn(stored.in_current_span()).await;
        stored.unwrap_or(Err(SubmitError::Unavailable("the manager is stopping")))
    }

    async fn store_and_drive(self: &Arc<Self>, request: Request) -> Result<Inserted, SubmitError> {
        if *self.bus.state().borrow() != BusState::Up {
            return Err(SubmitError::Unavailable("the message bus is unreachable"));
        }
        if !self.store_is_up() {
            return Err(SubmitError::Unavailable("the store is unreachable"));
        }
        let room = self.reserve(request.message.len())?;
        let began = Instant::now();
        let insertion = self.store.insert(&request).instrument(tracing::debug_span!("insert"));
        let inserted = match insertion.await {
            Ok(inserted) => inserted,
            Err(error) => {
                self.note_store_error(&error);
                tracing::warn!(%error, "whether a request was stored is not known");
                self.tasks.spawn(self.clone().find_out(request, room).in_current_span());
                return Err(SubmitError::Unavailable("the store is unreachable"));
            }
        };
        self.metrics.stage(Stage::Insert, began);
        if inserted == Inserted::New {
            self.metrics.accepted.inc();
            drop(room);
            self.adopt(request);
        }
        Ok(inserted)
    }

    /// Drives a request that may have been stored, if it was, once the store answers again. Its caller was told to come
    /// back, and will find it; nobody else drives it before its lease has lapsed, which is long after.
    async fn find_out(self: Arc<Self>, request: Request, room: Reservation) {
        let mut store_up = self.store_up.subscribe();
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let stored = loop {
            tokio::select! {
                up = store_up.wait_for(|up| *up) => if up.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            match self.store.get(request.id).await {
                Ok(stored) => break stored,
                Err(error) => {
                    self.note_store_error(&error);
                    sleep(backoff.delay()).await;
                }
            }
        };
        drop(room);
        let ours = |stored: &Request| {
            stored.lease.holder == request.lease.holder && !stored.progress.state.is_finished()
        };
        if let Some(stored) = stored.filter(ours) {
            tracing::info!("the request was stored");
            self.metrics.accepted.inc();
            self.adopt(stored);
        }
    }

    /// Room for a request that is being stored.
    fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation, SubmitError> {
        let mut requests = self.requests();
        if requests.driven >= self.options.pending || requests.bytes.saturating_add(bytes) > PENDING_BYTES {
            return Err(SubmitError::Overloaded(requests.driven));
        }
        requests.driven += 1;
        requests.bytes += bytes;
        Ok(Reservation { coordinator: self.clone(), bytes })
    }

    /// Drives a request in the background. Does nothing if it is driven here already.
    fn adopt(self: &Arc<Self>, request: Request) {
        let (sender, outcomes) = mpsc::channel(OUTCOMES);
        {
            let mut requests = self.requests();
            if requests.known.get(&request.id).is_some_and(|known| known.outcomes.is_some()) {
                return;
            }
            for stray in requests.strays.iter().filter(|stray| stray.request == request.id) {
                // More than there is room for would say the same.
                let _ = sender.try_send(stray.clone());
            }
            requests.strays.retain(|stray| stray.request != request.id);
            let latest = watch::Sender::new(Arc::new(request.clone()));
            requests.known.insert(request.id, Known { latest, outcomes: Some(sender) });
            requests.driven += 1;
            requests.bytes += request.message.len();
        }
        self.metrics.unfinished.inc();
        // No child of the call that brought the request, which ends before it; but part of its trace.
        let span =
            tracing::info_span!(parent: None, "request", request = %request.id, outcome = field::Empty);
        TraceParent::adopt(TraceParent::current(), &span);
        let coordinator = self.clone();
        self.tasks.spawn(
            async move {
                let (id, bytes) = (request.id, request.message.len());
                let finished = coordinator.drive(request, outcomes).await;
                coordinator.dismiss(id, bytes, finished);
            }
            .instrument(span),
        );
    }

    /// Stops driving a request; keeps it for a while if it has ended.
    fn dismiss(&self, id: Uuid, bytes: usize, finished: Option<Arc<Request>>) {
        self.metrics.unfinished.dec();
        let mut requests = self.requests();
        requests.release(bytes);
        match finished {
            Some(request) => {
                let Some(known) = requests.known.get_mut(&id) else { return };
                known.outcomes = None;
                let small = request.message.len() <= RECENT_MESSAGE;
                known.latest.send_replace(request);
                if small {
                    requests.ended.push_back(id);
                } else {
                    requests.known.remove(&id);
                }
                while requests.ended.len() > RECENT {
                    if let Some(oldest) = requests.ended.pop_front() {
                        requests.known.remove(&oldest);
                    }
                }
            }
            None => {
                requests.known.remove(&id);
            }
        }
    }

    /// The request under this idempotency key, whatever else this manager can do now.
    ///
    /// # Errors
    /// [`SubmitError::Unavailable`] when the store does not answer.
    pub async fn find(&self, idempotency_key: &str) -> Result<Option<Request>, SubmitError> {
        let unavailable = SubmitError::Unavailable("the store is unreachable");
        if !self.store_is_up() {
            return Err(unavailable);
        }
        self.store.find(idempotency_key).await.map_err(|error| {
            self.note_store_error(&error);
            tracing::warn!(%error, "an idempotency key was not looked up");
            unavailable
        })
    }

    /// The request of this id, as far as it is now.
    ///
    /// # Errors
    /// [`StoreError`] when it is not in memory and the store does not answer.
    pub async fn get(&self, id: Uuid) -> Result<Option<Arc<Request>>, StoreError> {
        if let Some(known) = self.requests().known.get(&id) {
            return Ok(Some(known.latest.borrow().clone()));
        }
        let request = self.store.get(id).await.inspect_err(|error| self.note_store_error(error))?;
        Ok(request.map(Arc::new))
    }

    /// The request of this id once it has ended, or as far as it is after `patience`.
    ///
    /// # Errors
    /// [`StoreError`] when it is not in memory and the store does not answer.
    pub async fn wait(&self, id: Uuid, patience: Duration) -> Result<Option<Arc<Request>>, StoreError> {
        self.wait_until(id, patience, |progress| progress.state.is_finished()).await
    }

    /// The request of this id once it is as far as `there` says, or as far as it is after `patience`.
    ///
    /// # Errors
    /// [`StoreError`] when it is not in memory and the store does not answer.
    pub async fn wait_until(
        &self,
        id: Uuid,
        patience: Duration,
        there: impl Fn(&Progress) -> bool,
    ) -> Result<Option<Arc<Request>>, StoreError> {
        let deadline = Instant::now() + patience;
        let mut notices = self.finished.subscribe();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let here = self.requests().known.get(&id).map(|known| known.latest.subscribe());
            match here {
                Some(mut latest) => {
                    // An error means that another manager took the request over: then ask the store.
                    if let Ok(Ok(request)) =
                        timeout(left, latest.wait_for(|request| there(&request.progress))).await
                    {
                        return Ok(Some(request.clone()));
                    }
                }
                None => {
                    let request = self.get(id).await?;
                    if request.as_ref().is_none_or(|request| there(&request.progress)) {
                        return Ok(request);
                    }
                    // Another manager drives it, and says when it has ended; should that be lost, the
                    // store is asked again.
                    let _ = timeout(left.min(Duration::from_secs(1)), async {
                        while notices.recv().await.is_ok_and(|finished| finished != id) {}
                    })
                    .await;
                }
            }
            if Instant::now() >= deadline {
                return self.get(id).await;
            }
        }
    }

    /// Some of the requests that are kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, filter: &Filter) -> Result<Listed, StoreError> {
        self.store.list(filter).await.inspect_err(|error| self.note_store_error(error))
    }

    /// How many requests have ended here lately, and how fast.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// An outcome for a request that is driven here: `false` if it is not.
    pub fn deliver(&self, outcome: &Outcome) -> bool {
        let mut requests = self.requests();
        match requests.known.get(&outcome.request) {
            Some(Known { outcomes: Some(outcomes), .. }) => {
                // A full channel means a signer that says the same again and again.
                let _ = outcomes.try_send(outcome.clone());
                true
            }
            Some(Known { outcomes: None, .. }) => true,
            None => {
                if matches!(outcome.ending, Ending::Signed(_)) {
                    requests.keep_stray(outcome);
                }
                false
            }
        }
    }

    /// Another manager has ended a request.
    pub fn note_finished(&self, id: Uuid) {
        // Nobody may be waiting.
        let _ = self.finished.send(id);
    }

    /// Renews leases and takes over lapsed ones, until stopped.
    pub async fn keep_leases(self: Arc<Self>) {
        let mut was_up = false;
        let mut away = None;
        loop {
            tokio::select! {
                () = sleep(LEASE_ROUND) => {}
                () = self.stop.cancelled() => return,
            }
            if !self.store_is_up() {
                away = was_up.then(Instant::now);
                continue;
            }
            was_up = true;
            let driven = self.requests().driven;
            let room = self.options.pending.saturating_sub(driven);
            let round = async {
                for holder in self.holders() {
                    self.store.renew(&lease_of(holder)).await?;
                }
                // While the store was away, leases lapsed that nobody could renew.
                if away.is_some_and(|away: Instant| away.elapsed() < RETURN) {
                    return Ok(Vec::new());
                }
                // A holder of its own: should the answer be lost, its leases lapse.
                let lease = lease_of(Uuid::new_v4());
                let limit = TAKE_OVER.min(usize::try_from(room).unwrap_or(TAKE_OVER));
                self.store.take_over(Timestamp::now(), &lease, limit).await
            };
            match round.await {
                Ok(requests) => {
                    for request in requests {
                        tracing::info!(request = %request.id, "request taken over");
                        self.metrics.taken_over.inc();
                        self.adopt(request);
                    }
                }
                Err(error) => self.note_store_error(&error),
            }
        }
    }

    /// Stops: requests under way get `patience` to end; the others stay in the store.
    pub async fn stop(&self, patience: Duration) {
        self.stop.cancel();
        self.tasks.close();
        // A timeout leaves requests to whoever takes them over.
        let _ = timeout(patience, self.tasks.wait()).await;
    }

    /// Drives a request to its end; yields it as it ended, or nothing if it is not ours any more.
    async fn drive(
        &self,
        mut request: Request,
        mut outcomes: mpsc::Receiver<Outcome>,
    ) -> Option<Arc<Request>> {
        let queued = Instant::now();
        let slot = async {
            tokio::select! {
                slot = self.slots.acquire() => slot.map(Some).map_err(drop),
                () = sleep(left(&request)) => Ok(None),
                () = self.stop.cancelled() => Err(()),
            }
        };
        let slot = slot.instrument(tracing::debug_span!("queue")).await.ok()?;
        self.metrics.stage(Stage::Queue, queued);
        self.metrics.active.inc();
        let mut experience = Experience::default();
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let mut problem = String::from(IN_FRONT);
        let verdict = loop {
            if self.stop.is_cancelled() {
                break Verdict::Lost;
            }
            if left(&request).is_zero() {
                break Verdict::Failed(format!("not signed in time: {problem}"));
            }
            match self.attempt(&mut request, &mut outcomes, &mut experience).await {
                Verdict::Retry(reason) => {
                    tracing::warn!(attempt = request.progress.attempts, %reason, "attempt failed");
                    problem = reason;
                    sleep(backoff.delay().min(left(&request))).await;
                }
                verdict => break verdict,
            }
        };
        self.metrics.active.dec();
        drop(slot);
        let finished_at = Timestamp::now();
        let state = match verdict {
            Verdict::Signed(signature, public_key) => State::Completed { signature, public_key, finished_at },
            Verdict::Failed(reason) => State::Failed { reason, finished_at },
            Verdict::Lost | Verdict::Retry(_) => return None,
        };
        self.conclude(request, state).await
    }

    /// One attempt: a quorum, its sessions, their outcome.
    async fn attempt(
        &self,
        request: &mut Request,
        outcomes: &mut mpsc::Receiver<Outcome>,
        experience: &mut Experience,
    ) -> Verdict {
        let mut changes = (self.presence.changes(), self.keys.changes());
        let Some(key) = self.keys.get(&request.intent.key) else {
            self.wait_for_signers(&mut changes, request).await;
            return Verdict::Retry("no signer holds the key".into());
        };
        let _place = tokio::select! {
            place = self.window.enter() => place,
            () = sleep(left(request)) => return Verdict::Retry(IN_FRONT.into()),
        };
        if let Some((signature, public_key)) = self.heard_meanwhile(request, &key, outcomes, experience) {
            return Verdict::Signed(signature, public_key);
        }
        if let Some(reason) = experience.refusal(key.threshold) {
            return Verdict::Failed(reason);
        }
        experience.enter(key.epoch);
        let (excluded, charged) = (experience.excluded(), &experience.charged);
        let Some(assignment) = self.presence.choose(&key, self.options.engine, &excluded, charged) else {
            self.wait_for_signers(&mut changes, request).await;
            let mut reason = format!("fewer than {} usable signers were alive", key.threshold.t());
            if let Some((signer, why)) = experience.refused.first_key_value() {
                reason = format!("{reason}; signer {signer} refused: {why}");
            }
            return Verdict::Retry(reason);
        };
        let quorum = &assignment.quorum;
        let number = request.progress.attempts.saturating_add(1);
        let began = Instant::now();
        let begun = Progress {
            attempts: number,
            quorum: Some(quorum.clone()),
            begun_at: Some(Timestamp::now()),
            state: State::InProgress,
        };
        let beginning = self.store.begin_attempt(request.id, request.lease.holder, &begun);
        match beginning.instrument(tracing::debug_span!("begin")).await {
            Ok(true) => {}
            Ok(false) => return Verdict::Lost,
            Err(error) => {
                self.note_store_error(&error);
                return Verdict::Retry("the store was unreachable".into());
            }
        }
        self.metrics.stage(Stage::Begin, began);
        request.progress = begun;
        self.publish_progress(request);

        let patience = self.options.attempt_timeout.min(left(request));
        let expires = Timestamp::now()
            .saturating_add(SignedDuration::try_from(patience).unwrap_or(SignedDuration::MAX))
            .unwrap_or(Timestamp::MAX);
        let span =
            tracing::info_span!("attempt", attempt = number, session = field::Empty, outcome = field::Empty);
        let message = Attempt {
            request: request.id,
            attempt: number,
            intent: request.intent.clone(),
            message: request.message.clone(),
            approvals: request.approvals.clone(),
            engine: self.options.engine,
            epoch: key.epoch,
            quorum: quorum.clone(),
            expires,
            traceparent: TraceParent::of(&span),
        };
        let began = Instant::now();
        let verdict = async {
            tracing::debug!(?quorum, "attempt begins");
            if let Err(verdict) = self.send_attempt(&message).await {
                self.metrics.attempts.inc(AttemptEnd::Bus);
                tracing::Span::current().record("outcome", AttemptEnd::Bus.as_str());
                return verdict;
            }
            let deadline = began + patience + GRACE;
            let outcome = self.await_outcome(request, &key, &message, deadline, outcomes, experience);
            let outcome = outcome.await;
            let verdict = self.judge(outcome, &key, quorum, experience);
            match &verdict {
                Verdict::Signed(..) => self.window.open(),
                Verdict::Retry(_) if began.elapsed() >= self.options.attempt_timeout => {
                    self.window.halve(began);
                }
                _ => {}
            }
            verdict
        }
        .instrument(span)
        .await;
        self.metrics.stage(Stage::Sign, began);
        verdict
    }

    /// What was said of the request while no attempt of it was waited for: by the signers of one that was
    /// given up, or that a manager began which has died.
    fn heard_meanwhile(
        &self,
        request: &Request,
        key: &KeyRecord,
        outcomes: &mut mpsc::Receiver<Outcome>,
        experience: &mut Experience,
    ) -> Option<(Signature, PublicKey)> {
        while let Ok(Outcome { signer, ending, .. }) = outcomes.try_recv() {
            match ending {
                Ending::Signed(signature) => match check_signature(&signature, key, request) {
                    Ok(public_key) => return Some((signature, public_key)),
                    Err(error) => {
                        tracing::error!(%signer, %error, "a signer reported a wrong signature");
                        self.metrics.attempts.inc(AttemptEnd::Invalid);
                        experience.excluded.insert(signer);
                    }
                },
                Ending::Refused(reason) if key.threshold.contains(signer) => {
                    experience.refused.insert(signer, reason);
                }
                _ => {}
            }
        }
        None
    }

    /// Waits until it may be worth another look at the signers and their key.
    async fn wait_for_signers(
        &self,
        (presence, keys): &mut (watch::Receiver<()>, watch::Receiver<()>),
        request: &Request,
    ) {
        // A timeout means to look again, and so does an error.
        tokio::select! {
            () = sleep(left(request).min(Duration::from_secs(1))) => {}
            _ = presence.changed() => {}
            _ = keys.changed() => {}
        }
    }

    async fn send_attempt(&self, attempt: &Attempt) -> Result<(), Verdict> {
        let bytes = wire::to_json(attempt).map_err(|error| Verdict::Failed(error.to_string()))?;
        let sends =
            attempt.quorum.iter().map(|index| self.bus.publish(Address::Requests(index), bytes.clone()));
        let sent = join_all(sends).await.into_iter().collect::<Result<(), BusError>>();
        sent.map_err(|error| match error {
            BusError::TooLong(_) => Verdict::Failed(error.to_string()),
            error => Verdict::Retry(error.to_string()),
        })
    }

    /// The first outcome that decides the attempt: a signature that verifies, of this or an earlier
    /// attempt, or whatever else the attempt's signers say. `None` when nobody says anything.
    async fn await_outcome(
        &self,
        request: &Request,
        key: &KeyRecord,
        attempt: &Attempt,
        mut deadline: Instant,
        outcomes: &mut mpsc::Receiver<Outcome>,
        experience: &mut Experience,
    ) -> Option<Result<(Signature, PublicKey), (SignerIndex, Ending)>> {
        let mut refused = None;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            let Some(outcome) = timeout(wait, outcomes.recv()).await.ok().flatten() else {
                return refused.map(Err);
            };
            let signer = outcome.signer;
            // Only those who take part can know. What others say can be true, or refuse for themselves,
            // but it does not end the attempt.
            let takes_part = outcome.attempt == attempt.attempt && attempt.quorum.contains(signer);
            match outcome.ending {
                Ending::Signed(signature) => match check_signature(&signature, key, request) {
                    Ok(public_key) => {
                        record_session(outcome.session);
                        return Some(Ok((signature, public_key)));
                    }
                    Err(error) => {
                        tracing::error!(%signer, %error, "a signer reported a wrong signature");
                        if takes_part {
                            self.metrics.attempts.inc(AttemptEnd::Invalid);
                            return Some(Err((signer, Ending::Aborted(Abort::cheating(signer, error)))));
                        }
                    }
                },
                // It holds for every attempt. The others of the quorum, who are of the same mind or wait
                // in vain, are heard for a moment.
                Ending::Refused(reason) if key.threshold.contains(signer) => {
                    tracing::warn!(%signer, %reason, "a signer refuses the request");
                    experience.refused.insert(signer, reason.clone());
                    if takes_part || experience.refusal(key.threshold).is_some() {
                        refused = Some((signer, Ending::Refused(reason)));
                        deadline = deadline.min(Instant::now() + REFUSAL);
                    }
                    if experience.refusal(key.threshold).is_some() {
                        return refused.map(Err);
                    }
                }
                ending if takes_part => {
                    record_session(outcome.session);
                    if refused.is_none() {
                        return Some(Err((signer, ending)));
                    }
                }
                _ => {}
            }
        }
    }

    /// What an outcome means for the request and for the choice of the next quorum.
    fn judge(
        &self,
        outcome: Option<Result<(Signature, PublicKey), (SignerIndex, Ending)>>,
        key: &KeyRecord,
        quorum: &Quorum,
        experience: &mut Experience,
    ) -> Verdict {
        let (end, verdict) = match outcome {
            Some(Ok((signature, public_key))) => (AttemptEnd::Signed, Verdict::Signed(signature, public_key)),
            None => {
                experience.share(quorum.iter().collect());
                (AttemptEnd::Silent, Verdict::Retry(format!("signers {quorum:?} did not report an outcome")))
            }
            Some(Err((signer, Ending::Refused(reason)))) => {
                let verdict = match experience.refusal(key.threshold) {
                    Some(reason) => Verdict::Failed(reason),
                    None => Verdict::Retry(format!("signer {signer} refused: {reason}")),
                };
                (AttemptEnd::Refused, verdict)
            }
            Some(Err((signer, Ending::Unable(reason)))) => {
                experience.charge(signer, &BTreeSet::new(), quorum);
                (AttemptEnd::Unable, Verdict::Retry(format!("signer {signer}: {reason}")))
            }
            Some(Err((signer, Ending::Aborted(abort)))) => {
                let nobody = BTreeSet::new();
                let blamed = match &abort.blame {
                    Blame::Timeout { missing } => {
                        self.presence.penalise(missing.iter().filter(|missing| quorum.contains(**missing)));
                        missing
                    }
                    Blame::Cheating { culprits, .. } => {
                        tracing::error!(%signer, %abort, "a signer says that another cheated");
                        if culprits.contains(&signer) {
                            experience.excluded.insert(signer);
                        }
                        culprits
                    }
                    Blame::Unattributed { suspects } => suspects,
                    Blame::Local => &nobody,
                };
                experience.charge(signer, blamed, quorum);
                ((&abort.blame).into(), Verdict::Retry(format!("signer {signer}: {abort}")))
            }
            // `await_outcome` has turned every signature into one that verifies, or into an abort.
            Some(Err((_, Ending::Signed(_)))) => {
                (AttemptEnd::Invalid, Verdict::Retry("a wrong signature".into()))
            }
        };
        self.metrics.attempts.inc(end);
        tracing::Span::current().record("outcome", end.as_str());
        verdict
    }

    fn publish_progress(&self, request: &Request) {
        if let Some(known) = self.requests().known.get(&request.id) {
            known.latest.send_replace(Arc::new(request.clone()));
        }
    }

    /// Stores how a request ended, however long that takes: `false` when another end stands there, nothing when
    /// this manager stops before.
    async fn store_end(&self, id: Uuid, state: &State) -> Option<bool> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            match self.store.finish(id, state).await {
                Ok(stands) => return Some(stands),
                Err(error) => {
                    self.note_store_error(&error);
                    tokio::select! {
                        () = sleep(backoff.delay()) => {}
                        // Whoever takes the request over has it signed again.
                        () = self.stop.cancelled() => return None,
                    }
                }
            }
        }
    }

    /// Stores how a request ended; yields what stands in the store.
    async fn conclude(&self, mut request: Request, state: State) -> Option<Arc<Request>> {
        let began = Instant::now();
        let storing = self.store_end(request.id, &state).instrument(tracing::debug_span!("finish"));
        let stands = storing.await?;
        self.metrics.stage(Stage::Finish, began);
        if !stands {
            tracing::info!("another manager has ended the request");
            return None;
        }
        let mut seconds = None;
        let finish = match &state {
            State::Failed { reason, .. } => {
                tracing::warn!(attempts = request.progress.attempts, %reason, "request failed");
                Finish::Failed
            }
            _ => {
                tracing::info!(attempts = request.progress.attempts, "request completed");
                let taken = Timestamp::now().duration_since(request.created_at).as_secs_f64().max(0.0);
                self.metrics.signing_seconds.observe(taken);
                seconds = Some(taken);
                Finish::Completed
            }
        };
        self.metrics.finished.inc(finish);
        self.pulse.beat(seconds);
        tracing::Span::current().record("outcome", finish.as_str());
        request.progress.state = state;
        let request = Arc::new(request);
        if let Some(known) = self.requests().known.get(&request.id) {
            known.latest.send_replace(request.clone());
        }
        if let Ok(bytes) = wire::to_json(&Notice::Finished(request.id))
            && let Err(error) = self.bus.publish(Address::Presence, bytes).await
        {
            tracing::debug!(%error, "the other managers were not told");
        }
        Some(request)
    }
}

/// Has the lines of an attempt carry its session's id from now on.
fn record_session(session: Option<SessionId>) {
    if let Some(session) = session {
        tracing::Span::current().record("session", field::display(session));
    }
}

/// A lease from now on.
fn lease_of(holder: Uuid) -> Lease {
    Lease { holder, until: Timestamp::now().saturating_add(LEASE).unwrap_or(Timestamp::MAX) }
}

/// How long a request has left.
fn left(request: &Request) -> Duration {
    request.deadline.duration_since(Timestamp::now()).try_into().unwrap_or_default()
}

/// The derived public key that verifies the signature, or why none does.
fn check_signature(signature: &Signature, key: &KeyRecord, request: &Request) -> Result<PublicKey, String> {
    let intent = &request.intent;
    let public_key = key
        .public_key
        .derive(&key.chain_code, &intent.path)
        .ok_or_else(|| format!("the path {} derives no key", intent.path))?;
    signature.verify(&public_key, &intent.digest).map_err(|error| error.to_string())?;
    Ok(public_key)
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use prometheus::Registry;
    use tss_common::bus::memory::MemoryBus;
    use tss_common::intent::{HashAlgorithm, Intent};
    use tss_mpc::{DerivationPath, Threshold};

    use super::*;
    use crate::presence::tests::{heartbeat, index};
    use crate::store::Idempotency;
    use crate::store::embedded::EmbeddedStore;

    /// Stores, and loses its first answer.
    struct Forgetful {
        inner: EmbeddedStore,
        forgot: Mutex<bool>,
    }

    #[async_trait]
    impl Store for Forgetful {
        async fn prepare(&self) -> Result<(), StoreError> {
            self.inner.prepare().await
        }
        async fn insert(&self, request: &Request) -> Result<Inserted, StoreError> {
            let inserted = self.inner.insert(request).await?;
            if std::mem::replace(&mut *self.forgot.lock().unwrap(), true) {
                return Ok(inserted);
            }
            Err(StoreError::Down("the answer was lost".into()))
        }
        async fn get(&self, id: Uuid) -> Result<Option<Request>, StoreError> {
            self.inner.get(id).await
        }
        async fn find(&self, idempotency_key: &str) -> Result<Option<Request>, StoreError> {
            self.inner.find(idempotency_key).await
        }
        async fn begin_attempt(&self, id: Uuid, holder: Uuid, begun: &Progress) -> Result<bool, StoreError> {
            self.inner.begin_attempt(id, holder, begun).await
        }
        async fn take_due(
            &self,
            now: Timestamp,
            until: Timestamp,
            limit: usize,
        ) -> Result<Vec<Request>, StoreError> {
            self.inner.take_due(now, until, limit).await
        }
        async fn put_off(&self, id: Uuid, due: Option<Timestamp>) -> Result<(), StoreError> {
            self.inner.put_off(id, due).await
        }
        async fn list(&self, filter: &Filter) -> Result<Listed, StoreError> {
            self.inner.list(filter).await
        }
        async fn finish(&self, id: Uuid, state: &State) -> Result<bool, StoreError> {
            self.inner.finish(id, state).await
        }
        async fn take_over(
            &self,
            now: Timestamp,
            lease: &Lease,
            limit: usize,
        ) -> Result<Vec<Request>, StoreError> {
            self.inner.take_over(now, lease, limit).await
        }
        async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
            self.inner.renew(lease).await
        }
        async fn expire(&self, before: Timestamp) -> Result<u64, StoreError> {
            self.inner.expire(before).await
        }
        async fn pin_key(&self, key: &KeyRecord) -> Result<KeyRecord, StoreError> {
            self.inner.pin_key(key).await
        }
        async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
            self.inner.keys().await
        }
        async fn ping(&self) -> Result<(), StoreError> {
            self.inner.ping().await
        }
    }

    fn coordinator(folder: &tempfile::TempDir) -> Arc<Coordinator> {
        let inner = EmbeddedStore::open(&folder.path().join("manager.redb")).unwrap();
        let store: Arc<dyn Store> = Arc::new(Forgetful { inner, forgot: Mutex::new(false) });
        let options = CoordinatorOptions {
            engine: EngineId::Dkls23,
            attempt_timeout: Duration::from_secs(1),
            active: 1,
            pending: 3,
        };
        let keys = Arc::new(Keys::new(Threshold::new(2, 3).unwrap(), None, store.clone()));
        let metrics = Metrics::new(&Registry::new());
        Coordinator::new(options, store, MemoryBus::new(), keys, Arc::default(), metrics)
    }

    /// A request whose deadline has come.
    fn request(coordinator: &Coordinator) -> Request {
        let now = Timestamp::now();
        Request {
            id: Uuid::new_v4(),
            intent: Intent {
                cluster: "tss".into(),
                key: "default".into(),
                path: DerivationPath::root(),
                hash: HashAlgorithm::Sha256,
                digest: [7; 32],
                not_after: None,
            },
            message: Vec::new(),
            approvals: Vec::new(),
            requester: None,
            webhook: None,
            idempotency: Some(Idempotency { key: "once".into(), body_hash: [7; 32] }),
            created_at: now,
            deadline: now,
            progress: Progress { attempts: 0, quorum: None, begun_at: None, state: State::Pending },
            lease: coordinator.lease(),
        }
    }

    #[test]
    fn what_may_wait_is_bounded_in_number_and_in_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = coordinator(&folder);
        let full = coordinator.reserve(PENDING_BYTES).unwrap();
        assert!(matches!(coordinator.reserve(1), Err(SubmitError::Overloaded(1))));
        drop(full);
        let three: Vec<_> = (0..3).map(|_| coordinator.reserve(1).unwrap()).collect();
        assert!(matches!(coordinator.reserve(1), Err(SubmitError::Overloaded(3))));
        drop(three);
        assert!(coordinator.reserve(1).is_ok());
    }

    #[tokio::test]
    async fn a_caller_that_hangs_up_while_its_request_is_stored_takes_nothing_back() {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = coordinator(&folder);
        coordinator.set_store_up(true);
        // The first answer of this store is lost, which is not what this is about.
        coordinator.store.insert(&request(&coordinator)).await.unwrap_err();
        let request = Request { idempotency: None, ..request(&coordinator) };
        // This thread runs one task at a time: the caller is gone before the request is stored.
        assert!(futures::poll!(Box::pin(coordinator.submit(request.clone()))).is_pending());
        let driven = async {
            while !coordinator.requests().known.contains_key(&request.id) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LEASE.unsigned_abs() * 10, driven).await.expect("it is driven");
        assert_eq!(coordinator.metrics.accepted.get(), 1);
    }

    #[tokio::test]
    async fn signatures_for_other_managers_are_kept_in_bounds_until_the_request_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = coordinator(&folder);
        let request = request(&coordinator);
        let outcome = |request, ending| Outcome {
            request,
            attempt: 1,
            session: None,
            signer: SignerIndex::new(1).unwrap(),
            ending,
        };
        let signed = || Ending::Signed(Signature { r: [1; 32], s: [1; 32], recid: 0 });
        assert!(!coordinator.deliver(&outcome(Uuid::new_v4(), Ending::Unable("no".into()))));
        for _ in 0..2 * STRAYS {
            assert!(!coordinator.deliver(&outcome(Uuid::new_v4(), signed())));
        }
        assert!(!coordinator.deliver(&outcome(request.id, signed())));
        assert_eq!(coordinator.requests().strays.len(), STRAYS);
        coordinator.adopt(request.clone());
        assert_eq!(coordinator.requests().strays.len(), STRAYS - 1);
        assert!(coordinator.deliver(&outcome(request.id, signed())));
    }

    #[test]
    fn what_failed_in_an_epoch_is_charged_to_nobody_in_the_next() {
        let mut experience = Experience::default();
        experience.enter(1);
        experience.charge(index(1), &BTreeSet::new(), &Quorum::new([index(1), index(2)]).unwrap());
        experience.excluded.insert(index(3));
        experience.enter(1);
        assert_eq!(experience.charged, BTreeMap::from([(index(1), 1000)]));
        experience.enter(2);
        assert!(experience.charged.is_empty());
        assert_eq!(experience.excluded(), BTreeSet::from([index(3)]), "who cheated stays one who did");
    }

    #[tokio::test]
    async fn an_attempt_that_meets_the_next_epoch_is_made_again_in_that_one() {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = coordinator(&folder);
        coordinator.set_store_up(true);
        // The first answer of this store is lost, which is not what this is about.
        coordinator.store.insert(&request(&coordinator)).await.unwrap_err();
        let mut inboxes = Vec::new();
        for signer in 1..=3 {
            inboxes.push(coordinator.bus.subscribe(Address::Requests(index(signer)), 8).await.unwrap());
        }
        let mut next = async || {
            let waiting = inboxes.iter_mut().map(|inbox| Box::pin(inbox.recv()));
            let (delivery, ..) =
                timeout(Duration::from_secs(30), futures::future::select_all(waiting)).await.unwrap();
            let delivery = delivery.unwrap();
            let attempt: Attempt = wire::from_json(&delivery.body).unwrap();
            delivery.ack();
            attempt
        };
        let announce = |signer, epoch| {
            let heartbeat = heartbeat(signer, epoch, &[], false);
            let announced = (heartbeat.signer, heartbeat.key.clone());
            assert!(coordinator.presence.heard(heartbeat));
            announced
        };
        let first = (1..=3).map(|signer| announce(signer, 1)).collect();
        coordinator.keys.consider(&first).await.unwrap();
        let deadline = Timestamp::now().checked_add(SignedDuration::from_secs(60)).unwrap();
        let request = Request { deadline, idempotency: None, ..request(&coordinator) };
        coordinator.submit(request.clone()).await.unwrap();

        // Both signers of the attempt have begun the next epoch, and only one that has not is left.
        let attempt = next().await;
        assert_eq!((attempt.attempt, attempt.epoch), (1, 1));
        for signer in attempt.quorum.iter() {
            announce(signer.get(), 2);
        }
        for signer in attempt.quorum.iter() {
            let ending = Ending::Unable("this signer has epoch 2".into());
            let outcome = Outcome { request: request.id, attempt: 1, session: None, signer, ending };
            assert!(coordinator.deliver(&outcome));
        }
        let second = (1..=3).map(|signer| announce(signer, 2)).collect();
        coordinator.keys.consider(&second).await.unwrap();
        let again = loop {
            let attempt = next().await;
            if attempt.attempt > 1 {
                break attempt;
            }
        };
        assert_eq!((again.request, again.attempt, again.epoch), (request.id, 2, 2));
    }

    #[tokio::test]
    async fn a_request_that_was_stored_though_the_answer_was_lost_is_driven_once_the_store_answers() {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = coordinator(&folder);
        coordinator.set_store_up(true);
        let request = request(&coordinator);
        assert!(coordinator.submit(request.clone()).await.is_err());
        assert_eq!(coordinator.requests().driven, 1, "it keeps its place");
        // The caller asks again, and is told that the request is there. Nobody looks for lapsed leases.
        coordinator.set_store_up(true);
        let again = Request { id: Uuid::new_v4(), ..request.clone() };
        assert!(
            matches!(coordinator.submit(again).await, Ok(Inserted::Existing(found)) if found.id == request.id)
        );
        let ended = coordinator.wait(request.id, Duration::from_secs(30)).await.unwrap().unwrap();
        assert!(matches!(ended.progress.state, State::Failed { .. }), "{:?}", ended.progress);
        assert_eq!((coordinator.metrics.accepted.get(), coordinator.requests().driven), (1, 0));
    }

    #[tokio::test]
    async fn a_request_that_was_stored_after_all_and_that_nobody_drives_ends_too() {
        let folder = tempfile::tempdir().unwrap();
        let coordinator = coordinator(&folder);
        coordinator.set_store_up(true);
        let request = request(&coordinator);
        coordinator.store.insert(&request).await.unwrap_err();
        tokio::spawn(coordinator.clone().keep_leases());
        let ended = coordinator.wait(request.id, Duration::from_secs(30)).await.unwrap().unwrap();
        assert!(matches!(ended.progress.state, State::Failed { .. }), "{:?}", ended.progress);
    }
}
