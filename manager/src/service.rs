//! A manager as a whole: its parts, started and stopped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tss_common::approval::MAX_APPROVALS;
use tss_common::backoff::Backoff;
use tss_common::bus::{Address, Bus, BusState, Subscription};
use tss_common::config::Config;
use tss_common::envelope::{Reader, Signed};
use tss_common::identity::Roster;
use tss_common::wire::{
    self, Ending, Heartbeat, Notice, Outcome, RefreshStep, Refreshing, Rehearsed, Verdict, WireError,
};
use tss_mpc::{Abort, Threshold};

use crate::api;
use crate::auth::Gate;
use crate::coordinator::{Coordinator, CoordinatorOptions};
use crate::keys::{Keys, Unrecorded};
use crate::metrics::{Metrics, Part};
use crate::presence::Presence;
use crate::refresh::{self, Refreshes};
use crate::rehearsal::Rehearsals;
use crate::server;
use crate::store::Store;
use crate::tls::Certificate;
use crate::webhooks::Webhooks;

/// How many connections those who only watch a manager may have.
const WATCHERS: u32 = 256;

/// How many outcomes and notices may be on their way into the process at once.
const IN_FLIGHT: u16 = 256;

/// How often the store is asked whether it is there.
const STORE_ROUND: Duration = Duration::from_secs(2);

/// How often the live signers are counted.
const PRESENCE_ROUND: Duration = Duration::from_secs(1);

/// How often old requests are removed.
const EXPIRY_ROUND: Duration = Duration::from_secs(600);

/// How often it is looked whether shares are to be made anew; when they are and signers are missing; and when it has been
/// ordered, which may fail.
const REFRESH_ROUND: Duration = Duration::from_secs(60);
const REFRESH_WAIT: Duration = Duration::from_secs(5);
const REFRESH_PAUSE: Duration = Duration::from_secs(900);

/// How far a heartbeat's time may be from this manager's: an older one is somebody's repetition.
const HEARTBEAT_AGE: SignedDuration = SignedDuration::from_secs(30);

/// How much is kept of a signer's reason, in bytes.
const MAX_REASON: usize = 1024;

/// How long requests under way get when the manager stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a manager starts from.
pub struct ManagerOptions {
    /// The configuration.
    pub config: Config,
    /// The signers' public identities: what somebody else says in their name does not count.
    pub roster: Roster,
    /// How it reaches the signers.
    pub bus: Arc<dyn Bus>,
    /// Where it keeps requests.
    pub store: Arc<dyn Store>,
    /// Where its metrics are registered, and those of whatever else runs in the process.
    pub registry: Registry,
}

/// A running manager.
pub struct Manager {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What the parts of a manager share.
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// Checks what signers have signed.
    reader: Reader,
    /// Where metrics are registered.
    pub registry: Registry,
    /// What is counted.
    pub metrics: Metrics,
    /// How the signers are reached.
    pub bus: Arc<dyn Bus>,
    /// The keys on record.
    pub keys: Arc<Keys>,
    /// Which signers are alive.
    pub presence: Arc<Presence>,
    /// Drives requests.
    pub coordinator: Arc<Coordinator>,
    /// Lets callers in.
    pub gate: Gate,
    /// The dry runs under way.
    pub rehearsals: Rehearsals,
    /// The refreshes that were ordered.
    pub refreshes: Refreshes,
    /// One for each request that may be followed.
    pub streams: Arc<Semaphore>,
    /// Connections are about to end: nobody waits for anything any more.
    pub closing: CancellationToken,
    /// What the configuration says of how many sign.
    configured: Threshold,
    store: Arc<dyn Store>,
}

impl Manager {
    /// Starts a manager. It drives requests until [`Manager::stop`]; [`Manager::serve`] lets them in.
    ///
    /// # Errors
    /// When the bus has been closed, the threshold is impossible, or a file that the configuration names is of no use.
    pub async fn start(options: ManagerOptions) -> anyhow::Result<Self> {
        let ManagerOptions { config, roster, bus, store, registry } = options;
        let threshold = Threshold::new(config.threshold, config.total_parties)?;
        let metrics = Metrics::new(&registry);
        let gate = Gate::open(&config, metrics.turned_away.clone()).await?;
        let webhooks = Webhooks::open(&config.webhooks).await?;
        let told = config.public_key.map(|public_key| (config.key.clone(), public_key));
        let keys = Arc::new(Keys::new(threshold, told, store.clone()));
        let presence = Arc::new(Presence::default());
        let limits = CoordinatorOptions {
            engine: config.engine,
            attempt_timeout: config.attempt_timeout(),
            active: config.limits.active,
            pending: config.limits.pending,
        };
        let coordinator = Coordinator::new(
            limits,
            store.clone(),
            bus.clone(),
            keys.clone(),
            presence.clone(),
            metrics.clone(),
        );
        let results = bus.subscribe(Address::Results, IN_FLIGHT).await?;
        let notices = bus.subscribe(Address::Presence, IN_FLIGHT).await?;
        let streams = Arc::new(Semaphore::new(api::events::MAX_STREAMS));
        let reader = Reader::new(&config.cluster, roster);
        let shared = Arc::new(Shared {
            config,
            reader,
            registry,
            metrics,
            bus,
            keys,
            presence,
            coordinator,
            gate,
            rehearsals: Rehearsals::default(),
            refreshes: Refreshes::default(),
            streams,
            closing: CancellationToken::new(),
            configured: threshold,
            store,
        });
        let manager = Self { shared, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        manager.spawn(Shared::watch_store);
        manager.spawn(Shared::watch_signers);
        manager.spawn(Shared::expire);
        manager.spawn(Shared::refresh_keys);
        manager.spawn(|shared| async move { shared.gate.follow().await });
        if let Some(webhooks) = webhooks {
            manager.spawn(|shared| webhooks.deliver(shared.store.clone(), shared.metrics.clone()));
        }
        manager.spawn(|shared| shared.take_results(results));
        manager.spawn(|shared| shared.take_notices(notices));
        manager.spawn(|shared| shared.coordinator.clone().keep_leases());
        Ok(manager)
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Arc<Shared>) -> F) {
        let task = task(self.shared.clone());
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// What its parts share.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Serves the REST API until `stop`, over TLS where the configuration names a certificate; and health and metrics to
    /// those who only watch, where they have a listener of their own (`manager_metrics_port`).
    ///
    /// # Errors
    /// When the certificate is of no use, or a listener fails.
    pub async fn serve(
        &self,
        api: TcpListener,
        watchers: Option<TcpListener>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let expiry = self.shared.metrics.certificate_expiry.clone();
        let certificate = Certificate::open(&self.shared.config, expiry).await?;
        let tls = certificate.as_ref().map(Certificate::served);
        if let Some(certificate) = certificate {
            self.spawn(|_| certificate.follow());
        }
        // Whoever waits is answered, and does not hold up the end.
        let (closing, stopped) = (self.shared.closing.clone(), stop.clone());
        self.spawn(|_| async move {
            stopped.cancelled().await;
            closing.cancel();
        });
        // The API's end is the other's: until then somebody may want to know how it is.
        let over = CancellationToken::new();
        let watch = async {
            let Some(watchers) = watchers else { return Ok(()) };
            let connections = server::Connections::new(WATCHERS);
            server::serve(watchers, None, connections, api::watchers(self.shared()), over.clone()).await
        };
        let serve = async {
            let connections = server::Connections::new(self.shared.config.limits.connections);
            let result = server::serve(api, tls, connections, api::router(self.shared()), stop).await;
            over.cancel();
            result
        };
        tokio::try_join!(serve, watch)?;
        Ok(())
    }

    /// Lets requests under way end, for a few seconds, and stops.
    pub async fn stop(&self) {
        self.shared.coordinator.stop(PATIENCE).await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Shared {
    /// How many signers there are, and how many of them sign: as the key on record has it, which new shares can have
    /// changed; as the configuration has it until there is one.
    pub fn threshold(&self) -> Threshold {
        self.keys.get(&self.config.key).map_or(self.configured, |key| key.threshold)
    }

    /// Asks now and then whether the store is there. Whenever it was not, it is prepared, until that succeeds: another
    /// may be in its place, with nothing in it.
    async fn watch_store(self: Arc<Self>) {
        let mut loaded = false;
        let mut backoff = Backoff::new(Duration::from_millis(200), STORE_ROUND);
        loop {
            let was_up = self.coordinator.store_is_up();
            let answer = async {
                if was_up {
                    return self.store.ping().await;
                }
                self.store.prepare().await?;
                // Once: a key that is known is not changed for what another store has on record.
                if !loaded {
                    self.keys.load().await?;
                    loaded = true;
                }
                Ok(())
            };
            let pause = match answer.await {
                // It was away while this waited for it.
                Ok(()) if was_up && !self.coordinator.store_is_up() => continue,
                Ok(()) => {
                    self.coordinator.set_store_up(true);
                    backoff = Backoff::new(Duration::from_millis(200), STORE_ROUND);
                    STORE_ROUND
                }
                Err(error) => {
                    let delay = backoff.delay();
                    if was_up {
                        tracing::warn!(%error, "the store does not answer");
                    } else {
                        tracing::warn!(%error, ?delay, "the store is not ready; trying again");
                    }
                    self.coordinator.set_store_up(false);
                    delay
                }
            };
            sleep(pause).await;
        }
    }

    /// Counts the live signers, and puts their key on record.
    async fn watch_signers(self: Arc<Self>) {
        let mut changes = self.presence.changes();
        let mut complained = BTreeMap::new();
        loop {
            let live = self.presence.live();
            self.metrics.live_signers.set(i64::try_from(live.len()).unwrap_or(i64::MAX));
            let threshold = self.threshold();
            self.metrics.signers.set(threshold.n().into());
            self.metrics.threshold.set(threshold.t().into());
            let bus_is_up = *self.bus.state().borrow() == BusState::Up;
            self.metrics.up(Part::Bus, bus_is_up);
            let announced = live.into_iter().map(|heartbeat| (heartbeat.signer, heartbeat.key)).collect();
            if self.coordinator.store_is_up() {
                let considered = self.keys.consider(&announced).await;
                let epoch = self.keys.get(&self.config.key).map_or(0, |key| key.epoch);
                self.metrics.key_epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
                match considered {
                    Ok(unrecorded) => {
                        for (signer, reason) in unrecorded {
                            if let Unrecorded::Conflict(reason) = reason
                                && complained.insert(signer, reason.clone()).as_ref() != Some(&reason)
                            {
                                tracing::error!(%signer, %reason, "this signer is not used");
                            }
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the key was not put on record"),
                }
            }
            tokio::select! {
                () = sleep(PRESENCE_ROUND) => {}
                // The sender lives as long as `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// Has the shares of keys made anew that are as old as the configuration lets them become.
    async fn refresh_keys(self: Arc<Self>) {
        let Config { engine, cluster, refresh_hours, .. } = &self.config;
        let Some(age) = refresh::longest_age(*refresh_hours) else { return };
        let (mut complaint, mut changes) = (None, self.keys.changes());
        loop {
            let mut pause = REFRESH_ROUND;
            for key in self.keys.all().into_iter().filter(|key| refresh::is_due(key, age, Timestamp::now())) {
                match self.refreshes.order(&self.bus, &self.presence, *engine, cluster, &key).await {
                    Ok((refresh, epoch)) => {
                        tracing::info!(key = %key.id, epoch, %refresh, "the key's shares are due");
                        pause = REFRESH_PAUSE;
                    }
                    Err(error) => {
                        pause = REFRESH_WAIT;
                        // Once is enough to know.
                        if complaint.as_ref() != Some(&error) {
                            tracing::warn!(key = %key.id, %error, "the key's shares are due, and not made anew yet");
                            complaint = Some(error);
                        }
                    }
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                // One has been found. The sender lives as long as `self`.
                _ = changes.changed() => {}
            }
        }
    }

    /// Removes requests that ended long ago.
    async fn expire(self: Arc<Self>) {
        loop {
            sleep(EXPIRY_ROUND).await;
            let age = SignedDuration::from_hours(self.config.retention_hours.into());
            let Ok(before) = Timestamp::now().checked_sub(age) else { continue };
            match self.store.expire(before).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "old requests were removed"),
                Err(error) => tracing::warn!(%error, "old requests were not removed"),
            }
        }
    }

    /// Hands outcomes to the requests they belong to; those of another manager go to all.
    async fn take_results(self: Arc<Self>, mut results: Subscription) {
        while let Some(delivery) = results.recv().await {
            let signed = wire::from_json::<Signed>(&delivery.body);
            let (signed, outcome) = match signed.and_then(|signed| Ok((self.outcome(&signed)?, signed))) {
                Ok((outcome, signed)) => (signed, outcome),
                Err(error) => {
                    tracing::warn!(%error, "an outcome that cannot be believed was set aside");
                    self.metrics.dropped.inc((&error).into());
                    delivery.reject();
                    continue;
                }
            };
            if !self.coordinator.deliver(&outcome) {
                let forwarded = match wire::to_json(&Notice::Outcome(signed)) {
                    Ok(bytes) => {
                        self.bus.publish(Address::Presence, bytes).await.map_err(|error| error.to_string())
                    }
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = forwarded {
                    tracing::debug!(%error, "an outcome was not forwarded");
                    // Dropped, it comes again.
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            }
            delivery.ack();
        }
    }

    async fn take_notices(self: Arc<Self>, mut notices: Subscription) {
        while let Some(delivery) = notices.recv().await {
            if let Err(error) = wire::from_json(&delivery.body).and_then(|notice| self.take_notice(notice)) {
                tracing::debug!(%error, "a notice cannot be believed");
                self.metrics.dropped.inc((&error).into());
            }
            delivery.ack();
        }
    }

    fn take_notice(&self, notice: Notice) -> Result<(), WireError> {
        match notice {
            Notice::Heartbeat(signed) => {
                let mut heartbeat: Heartbeat = self.reader.open(&signed)?;
                if heartbeat.signer != signed.signer {
                    return Err(WireError::Forged(heartbeat.signer));
                }
                if Timestamp::now().duration_since(heartbeat.at).abs() > HEARTBEAT_AGE {
                    return Err(WireError::Stale(heartbeat.at));
                }
                if let Some(Refreshing { step: RefreshStep::Failed(reason), .. }) = &mut heartbeat.refresh {
                    clip(reason);
                }
                let at = heartbeat.at;
                self.refreshes.heard(&heartbeat);
                if !self.presence.heard(heartbeat) {
                    return Err(WireError::Stale(at));
                }
            }
            Notice::Outcome(signed) => {
                self.coordinator.deliver(&self.outcome(&signed)?);
            }
            Notice::Rehearsed(signed) => {
                let mut rehearsed: Rehearsed = self.reader.open(&signed)?;
                if rehearsed.signer != signed.signer {
                    return Err(WireError::Forged(rehearsed.signer));
                }
                match &mut rehearsed.verdict {
                    Verdict::Willing(approvers) => {
                        approvers.truncate(MAX_APPROVALS);
                        approvers.iter_mut().for_each(clip);
                    }
                    Verdict::Refused(reason) | Verdict::Unable(reason) => clip(reason),
                }
                self.rehearsals.deliver(rehearsed);
            }
            // Among signers.
            Notice::Stored(_) => {}
            // Whoever waits looks for itself: a lie costs a question to the store.
            Notice::Finished(request) => self.coordinator.note_finished(request),
        }
        Ok(())
    }

    fn outcome(&self, signed: &Signed) -> Result<Outcome, WireError> {
        let mut outcome: Outcome = self.reader.open(signed)?;
        if outcome.signer != signed.signer {
            return Err(WireError::Forged(outcome.signer));
        }
        // It may be a malicious signer's, and callers are told of it.
        match &mut outcome.ending {
            Ending::Signed(_) => {}
            Ending::Aborted(Abort { reason, .. }) | Ending::Refused(reason) | Ending::Unable(reason) => {
                clip(reason);
            }
        }
        Ok(outcome)
    }
}

/// Keeps a signer's words short.
fn clip(reason: &mut String) {
    if reason.len() > MAX_REASON {
        *reason = reason.chars().take(MAX_REASON / 4).collect();
    }
}
