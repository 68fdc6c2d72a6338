//! What a signer listens to, and what it answers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use tss_common::backoff::Backoff;
use tss_common::bus::{Address, Bus, BusError, BusState, Delivery};
use tss_common::wire::{
    self, Attempt, Ending, Envelope, HEARTBEAT, Heartbeat, KeyAnnouncement, Notice, Outcome,
};
use tss_mpc::{Engine, EngineId, ShareDocument, SignerIndex};
use uuid::Uuid;

use crate::bans::BanList;
use crate::compute::Compute;
use crate::metrics::{Dropped, Metrics, SignerMetrics};
use crate::policy::PolicyFile;
use crate::router::Router;
use crate::session::{self, Party};

/// How many protocol messages may be on their way into the process at once.
const ROUNDS_IN_FLIGHT: u16 = 512;

/// The longest protocol message, in bytes.
const MAX_ENVELOPE: usize = 512 << 10;

/// For how long a signer tries to report an outcome while the bus is away. Then the manager has given
/// the attempt up.
const REPORT_FOR: Duration = Duration::from_secs(120);

/// What a signer starts from.
pub struct SignerOptions {
    /// Its share.
    pub share: ShareDocument,
    /// The protocol.
    pub engine: Arc<dyn Engine>,
    /// How it reaches managers and signers.
    pub bus: Arc<dyn Bus>,
    /// Where it computes.
    pub compute: Compute,
    /// Where it keeps its own database, `signer{index}.redb`.
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
    key: KeyAnnouncement,
    engine: EngineId,
    instance: Uuid,
    party: Party,
    router: Router,
    bans: BanList,
    policy: PolicyFile,
}

impl Signer {
    /// Starts a signer. It takes part in sessions until [`Signer::stop`].
    ///
    /// # Errors
    /// When the share has no part for the engine, the policy is bad, or the signer's database cannot be
    /// used.
    pub async fn start(options: SignerOptions) -> anyhow::Result<Self> {
        let SignerOptions { share, engine, bus, compute, data_dir, max_sessions, policy_file, metrics } =
            options;
        let core = &share.core;
        let index = core.index;
        let metrics = metrics.of(index);
        let policy = PolicyFile::open(policy_file, metrics.clone())?;
        std::fs::create_dir_all(&data_dir).with_context(|| format!("the folder {}", data_dir.display()))?;
        let bans = BanList::open(
            &data_dir.join(format!("signer{index}.redb")),
            &share.key,
            &core.public_key.to_string(),
        )?;
        let key = KeyAnnouncement {
            id: share.key.clone(),
            epoch: share.epoch,
            scheme: share.scheme,
            threshold: core.threshold,
            public_key: core.public_key,
            chain_code: core.chain_code,
        };
        metrics.key(&key.id, key.epoch);
        metrics.banned(bans.banned().len());
        let inner = Arc::new(Inner {
            cluster: share.cluster.clone(),
            key,
            engine: engine.id(),
            instance: Uuid::new_v4(),
            party: Party { index, share: engine.open(&share)?, bus, compute, metrics },
            router: Router::default(),
            bans,
            policy,
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
        tracing::info!(
            signer = %index, key = %signer.inner.key.id, epoch = signer.inner.key.epoch,
            public_key = %signer.inner.key.public_key, threshold = %signer.inner.key.threshold,
            "signer started; {}", signer.inner.policy
        );
        Ok(signer)
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(Arc<Inner>, CancellationToken) -> F,
    ) {
        let task = task(self.inner.clone(), self.stop.clone());
        self.tasks.spawn(task.instrument(tracing::info_span!("signer", index = %self.inner.party.index)));
    }

    /// Whether the signer is connected to the bus.
    pub fn bus_state(&self) -> BusState {
        self.inner.party.bus.state().borrow().clone()
    }

    /// Which signer it is.
    pub fn index(&self) -> SignerIndex {
        self.inner.party.index
    }

    /// Takes nothing new, ends the running sessions, and stops; at the latest after `patience`.
    pub async fn stop(self, patience: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(signer = %self.index(), "sessions were still running");
        }
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
                tracing::debug!(?reason, "a protocol message was dropped");
                self.metrics().dropped(reason);
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

    fn route(&self, bytes: &[u8]) -> Result<(), Dropped> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(Dropped::Malformed);
        }
        let envelope = Envelope::from_bytes(bytes).map_err(|_| Dropped::Malformed)?;
        if envelope.to != self.party.index {
            return Err(Dropped::Misrouted);
        }
        self.router.deliver(envelope)
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
            match wire::from_json::<Attempt>(&delivery.body) {
                Ok(attempt) => {
                    let span = tracing::info_span!(
                        "session", signer = %self.party.index, request = %attempt.request, attempt = attempt.attempt
                    );
                    tasks.spawn(self.clone().serve(attempt, delivery).instrument(span));
                }
                Err(error) => {
                    tracing::warn!(%error, "an attempt that cannot be read was set aside");
                    delivery.reject();
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, attempt: Attempt, delivery: Delivery) {
        let key = (attempt.request, attempt.attempt);
        if attempt.expires <= Timestamp::now() {
            // It waited while this signer was away, or the clocks differ.
            tracing::info!(expired = %attempt.expires, "an attempt came after its time");
            self.metrics().session_ended("expired");
            return delivery.ack();
        }
        let ending = match self.check(&attempt) {
            Err(ending) => ending,
            Ok(approvers) => {
                let Some(messages) = self.router.open(key) else {
                    tracing::debug!("an attempt came twice");
                    return delivery.ack();
                };
                tracing::debug!(?approvers, "taking part");
                self.metrics().sessions_active(self.router.active());
                let result = session::run(&self.party, &attempt, messages).await;
                self.router.close(key);
                self.metrics().sessions_active(self.router.active());
                match result {
                    Ok(signature) => Ending::Signed(signature),
                    Err(abort) => Ending::Aborted(abort),
                }
            }
        };
        self.conclude(&attempt, ending).await;
        delivery.ack();
    }

    /// Whether this signer takes part in an attempt; yields whose approvals the policy counted. The
    /// manager is not trusted with the digest: it is computed here, from the message. The policy comes
    /// last: what is of no use does not count for its rate.
    fn check(&self, attempt: &Attempt) -> Result<Vec<String>, Ending> {
        let (intent, key) = (&attempt.intent, &self.key);
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
            || !quorum.contains(self.party.index)
            || !quorum.iter().all(|index| key.threshold.contains(index))
        {
            return unable(format!("quorum {quorum:?} does not fit a {} key", key.threshold));
        }
        let banned: BTreeSet<SignerIndex> =
            self.bans.banned().into_iter().filter(|&index| quorum.contains(index)).collect();
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
        Ok(self.policy.check(attempt, Timestamp::now())?)
    }

    /// Keeps what must be kept of an ending, and reports it.
    async fn conclude(&self, attempt: &Attempt, ending: Ending) {
        let me = self.party.index;
        let outcome = match &ending {
            Ending::Signed(_) => "signed",
            Ending::Aborted(_) => "aborted",
            Ending::Refused(_) => "refused",
            Ending::Unable(_) => "unable",
        };
        self.metrics().session_ended(outcome);
        match &ending {
            Ending::Signed(_) => {
                tracing::info!(quorum = ?attempt.quorum, "signed");
                // All t have the signature; one of them reports it.
                if attempt.quorum.iter().next() != Some(me) {
                    return;
                }
            }
            Ending::Aborted(abort) => {
                tracing::warn!(quorum = ?attempt.quorum, %abort, "aborted");
                self.metrics().aborted(abort.blame.kind());
                let banned = abort.banned();
                if !banned.is_empty() {
                    tracing::error!(?banned, reason = %abort.reason, "a signer cheated and is banned for good");
                    if let Err(error) = self.bans.ban(&banned, &abort.reason) {
                        tracing::error!(%error, "the ban could not be written: it ends with this process");
                    }
                    self.metrics().banned(self.bans.banned().len());
                    self.announce(false).await;
                }
            }
            Ending::Refused(reason) | Ending::Unable(reason) => tracing::warn!(%reason, "{outcome}"),
        }
        let outcome = Outcome { request: attempt.request, attempt: attempt.attempt, signer: me, ending };
        match wire::to_json(&outcome) {
            Ok(bytes) => self.report(bytes).await,
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

    /// Says that this signer is alive: regularly, and at once when the bus comes back.
    async fn send_heartbeats(self: Arc<Self>, stop: CancellationToken) {
        let mut state = self.party.bus.state();
        let mut ticks = interval(HEARTBEAT);
        loop {
            self.metrics().bus_up(*state.borrow_and_update() == BusState::Up);
            self.announce(false).await;
            tokio::select! {
                _ = ticks.tick() => {}
                changed = state.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return self.announce(true).await,
            }
        }
    }

    async fn announce(&self, stopping: bool) {
        let heartbeat = Heartbeat {
            signer: self.party.index,
            instance: self.instance,
            key: self.key.clone(),
            engines: vec![self.engine],
            sessions: u32::try_from(self.router.active()).unwrap_or(u32::MAX),
            banned: self.bans.banned(),
            stopping,
        };
        let sent = match wire::to_json(&Notice::Heartbeat(heartbeat)) {
            Ok(bytes) => {
                self.party.bus.publish(Address::Presence, bytes).await.map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "no heartbeat was sent");
        }
    }
}
