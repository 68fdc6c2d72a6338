//! A cluster under attack: signers, perhaps an honest manager, and what a dishonest one can do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use prometheus::Registry;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tss_common::audit::{self, Event, Evidence, Finish};
use tss_common::bus::{Address, Bus as _};
use tss_common::config::{Config, StoreKind};
use tss_common::ed25519;
use tss_common::envelope::{Endpoint, Reader, Signed};
use tss_common::identity::{Identity, Roster};
use tss_common::intent::{HashAlgorithm, Intent};
use tss_common::telemetry::render_metrics;
use tss_common::wire::{
    self, Attempt, Ending, Heartbeat, Notice, Outcome, Refresh, RefreshOrder, RefreshStep, Refreshing,
};
use tss_manager::{Manager, ManagerOptions, store};
use tss_mpc::{
    Abort, Dkls23, Engine, EngineId, PublicKey, Quorum, SessionId, ShareDocument, Signature, SignerIndex,
    Threshold,
};
use tss_signer::compute::Compute;
use tss_signer::metrics::Metrics;
use tss_signer::secret_file::Protection;
use tss_signer::share_file::{self, ShareFile};
use tss_signer::{Signer, SignerOptions};
use uuid::Uuid;

use crate::tampering_bus::TamperingBus;

/// How long what must happen may take. Test programs share two cores, and a disk.
pub(crate) const SOON: Duration = Duration::from_secs(180);

/// How long a signer gets to stop.
const STOP: Duration = Duration::from_secs(20);

/// The cluster and the key that the shares here are of.
pub(crate) const CLUSTER: &str = "attacked";
pub(crate) const KEY: &str = "default";

/// A key: every signer's share, as JSON.
pub(crate) struct Key {
    pub(crate) threshold: Threshold,
    shares: BTreeMap<SignerIndex, Vec<u8>>,
}

pub(crate) static TWO_OF_THREE: LazyLock<Key> = LazyLock::new(|| Key::generate(2, 3));
pub(crate) static THREE_OF_FOUR: LazyLock<Key> = LazyLock::new(|| Key::generate(3, 4));

/// Another key of the same signers, under the same name.
pub(crate) static ANOTHER_TWO_OF_THREE: LazyLock<Key> = LazyLock::new(|| Key::generate(2, 3));

/// Where all signers compute.
static COMPUTE: LazyLock<Compute> = LazyLock::new(|| Compute::new().unwrap());

impl Key {
    fn generate(t: u8, n: u8) -> Self {
        let threshold = Threshold::new(t, n).unwrap();
        let shares = tssctl::keygen::generate(&Dkls23, CLUSTER, KEY, threshold).unwrap();
        let shares = shares.iter().map(|(&index, share)| (index, share.to_json().unwrap().to_vec()));
        Self { threshold, shares: shares.collect() }
    }

    /// A signer's share, as JSON.
    pub(crate) fn json(&self, signer: u8) -> &[u8] {
        &self.shares[&index(signer)]
    }

    /// A signer's share.
    pub(crate) fn share(&self, signer: u8) -> ShareDocument {
        ShareDocument::from_json(self.json(signer)).unwrap()
    }

    /// The public key at a path.
    pub(crate) fn public_key(&self, intent: &Intent) -> PublicKey {
        let core = self.share(1).core;
        core.secp256k1().unwrap().public_key.derive(&core.chain_code, &intent.path).unwrap()
    }
}

pub(crate) fn index(signer: u8) -> SignerIndex {
    SignerIndex::new(signer).unwrap()
}

pub(crate) fn indices(signers: &[u8]) -> BTreeSet<SignerIndex> {
    signers.iter().copied().map(index).collect()
}

pub(crate) fn quorum(signers: &[u8]) -> Quorum {
    Quorum::new(indices(signers)).unwrap()
}

/// That a signature is one of this digest by this key, for a library of others.
pub(crate) fn assert_signs(signature: &Signature, key: &PublicKey, digest: [u8; 32]) {
    let compact = secp256k1::ecdsa::Signature::from_compact(&signature.to_compact()).unwrap();
    let key = secp256k1::PublicKey::from_slice(&key.to_compressed()).unwrap();
    let message = secp256k1::Message::from_digest(digest);
    secp256k1::Secp256k1::verification_only().verify_ecdsa(message, &compact, &key).unwrap();
}

/// Looks again and again until there is something to see.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Identities of so many signers, as JSON: each is used again when its signer is started again.
fn identities(threshold: Threshold) -> BTreeMap<SignerIndex, Vec<u8>> {
    threshold.signers().map(|index| (index, Identity::generate().to_json().unwrap().to_vec())).collect()
}

/// A cluster under attack.
pub(crate) struct Cluster {
    pub(crate) key: &'static Key,
    pub(crate) bus: Arc<TamperingBus>,
    pub(crate) roster: Roster,
    pub(crate) registry: Registry,
    identities: BTreeMap<SignerIndex, Vec<u8>>,
    engines: BTreeMap<SignerIndex, Arc<dyn Engine>>,
    policy: Option<PathBuf>,
    /// How long signers that are still to be started take no part in another refresh.
    pub(crate) refresh_pause: Duration,
    metrics: Metrics,
    folder: TempDir,
    running: BTreeMap<SignerIndex, Signer>,
    managing: Option<Managing>,
}

/// An honest manager.
struct Managing {
    manager: Arc<Manager>,
    url: String,
    server: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Cluster {
    /// A cluster whose signers are still to be started.
    pub(crate) fn new(key: &'static Key) -> Self {
        let identities = identities(key.threshold);
        let public = identities
            .iter()
            .map(|(&index, json)| (index, Identity::from_json(json).unwrap().public()))
            .collect();
        let registry = Registry::new();
        Self {
            key,
            bus: TamperingBus::new(),
            roster: Roster::new(public).unwrap(),
            metrics: Metrics::new(&registry),
            registry,
            identities,
            engines: BTreeMap::new(),
            policy: None,
            refresh_pause: Duration::ZERO,
            folder: tempfile::tempdir().unwrap(),
            running: BTreeMap::new(),
            managing: None,
        }
    }

    /// A cluster of honest signers.
    pub(crate) async fn start(key: &'static Key) -> Self {
        let mut cluster = Self::new(key);
        cluster.start_all().await;
        cluster
    }

    /// A cluster in which one signer has another engine.
    pub(crate) async fn with_rogue(key: &'static Key, rogue: u8, engine: Arc<dyn Engine>) -> Self {
        let mut cluster = Self::new(key);
        cluster.engines.insert(index(rogue), engine);
        cluster.start_all().await;
        cluster
    }

    /// Gives all signers that are still to be started a policy.
    pub(crate) fn set_policy(&mut self, policy: &str) {
        let file = self.folder.path().join("policy.toml");
        std::fs::write(&file, policy).unwrap();
        self.policy = Some(file);
    }

    pub(crate) async fn start_all(&mut self) {
        for signer in self.key.threshold.signers() {
            self.start_signer(signer.get()).await;
        }
    }

    /// A signer's identity.
    pub(crate) fn identity(&self, signer: u8) -> Identity {
        Identity::from_json(&self.identities[&index(signer)]).unwrap()
    }

    /// The end of a signer that has fallen into wrong hands.
    pub(crate) fn endpoint(&self, signer: u8) -> Endpoint {
        Endpoint::new(CLUSTER, index(signer), self.identity(signer), self.roster.clone()).unwrap()
    }

    /// Where a signer keeps its own files.
    pub(crate) fn data_dir(&self, signer: u8) -> PathBuf {
        self.folder.path().join(format!("signer{signer}"))
    }

    /// The file of a signer's share, which has the key's at first.
    pub(crate) fn share_file(&self, signer: u8) -> PathBuf {
        let file = self.folder.path().join(format!("signer{signer}.store"));
        if !file.exists() {
            share_file::save(&file, &self.key.share(signer), &Protection::None).unwrap();
        }
        file
    }

    /// The share in it.
    pub(crate) fn stored_share(&self, signer: u8) -> ShareDocument {
        ShareDocument::from_json(&std::fs::read(self.share_file(signer)).unwrap()).unwrap()
    }

    /// What a signer starts from.
    pub(crate) fn options(&self, signer: u8) -> SignerOptions {
        SignerOptions {
            share: self.stored_share(signer),
            share_file: Some(ShareFile::new(self.share_file(signer), None)),
            refresh_pause: self.refresh_pause,
            identity: self.identity(signer),
            roster: self.roster.clone(),
            engine: self.engines.get(&index(signer)).cloned().unwrap_or_else(|| Arc::new(Dkls23)),
            bus: self.bus.clone(),
            compute: COMPUTE.clone(),
            data_dir: self.data_dir(signer),
            max_sessions: 64,
            policy_file: self.policy.clone(),
            metrics: self.metrics.clone(),
        }
    }

    pub(crate) async fn start_signer(&mut self, signer: u8) {
        let running = Signer::start(self.options(signer)).await.unwrap();
        assert!(self.running.insert(index(signer), running).is_none(), "signer {signer} runs");
    }

    pub(crate) async fn stop_signer(&mut self, signer: u8) {
        self.running.remove(&index(signer)).expect("it runs").stop(STOP).await;
    }

    pub(crate) async fn restart_signer(&mut self, signer: u8) {
        self.stop_signer(signer).await;
        self.start_signer(signer).await;
    }

    /// The configuration of a manager.
    pub(crate) fn config(&self) -> Config {
        Config {
            cluster: CLUSTER.into(),
            key: KEY.into(),
            threshold: self.key.threshold.t(),
            total_parties: self.key.threshold.n(),
            manager_port: 0,
            data_dir: self.folder.path().to_owned(),
            store: StoreKind::Embedded,
            signing_timeout: u32::try_from(SOON.as_secs()).unwrap(),
            ..Config::default()
        }
    }

    /// Starts an honest manager, and returns once it knows of enough signers.
    pub(crate) async fn start_manager(&mut self, config: Config) {
        let manager = self.manager(config, self.roster.clone()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let server = tokio::spawn({
            let (manager, stop) = (manager.clone(), stop.clone());
            async move { manager.serve(listener, None, stop).await }
        });
        let shared = manager.shared();
        // All of them, so that every quorum can be chosen.
        let n = usize::from(self.key.threshold.n());
        until("the manager is well", || {
            (tss_manager::api::health::is_well(&shared) && shared.presence.live().len() == n).then_some(())
        })
        .await;
        self.managing = Some(Managing { manager, url, server, stop });
    }

    /// A manager that knows the signers by this roster.
    pub(crate) async fn manager(&self, config: Config, roster: Roster) -> Arc<Manager> {
        let options = ManagerOptions {
            store: store::open(&config).unwrap(),
            config,
            roster,
            bus: self.bus.clone(),
            registry: self.registry.clone(),
        };
        Arc::new(Manager::start(options).await.unwrap())
    }

    /// The honest manager.
    pub(crate) fn managing(&self) -> &Manager {
        &self.managing.as_ref().expect("there is a manager").manager
    }

    /// Status and body of a POST to the manager's `/sign`.
    pub(crate) async fn post(&self, body: &Value, idempotency_key: Option<&str>) -> (u16, Value) {
        let mut request = reqwest::Client::new().post(format!("{}/sign", self.url())).json(body);
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// A request that the manager has accepted.
    pub(crate) async fn submit(&self, message: &str) -> Uuid {
        let (status, body) = self.post(&serde_json::json!({ "message": message }), None).await;
        assert_eq!(status, 201, "{body}");
        body["request_id"].as_str().unwrap().parse().unwrap()
    }

    /// A request's status once it has ended; its signature, if there is one, has been checked.
    pub(crate) async fn ended(&self, request: Uuid) -> Value {
        let client = reqwest::Client::builder().timeout(SOON * 2).build().unwrap();
        let get = |path: String| client.get(format!("{}{path}", self.url())).send();
        let began = Instant::now();
        let answer = loop {
            let answer = get(format!("/signature/{request}?wait=60s")).await.unwrap();
            // 202 while it has not ended.
            if answer.status().as_u16() != 202 || began.elapsed() > SOON {
                break answer;
            }
        };
        if answer.status().as_u16() == 200 {
            let body: Value = answer.json().await.unwrap();
            let bytes = |name: &str| hex::decode(body[name].as_str().unwrap()).unwrap();
            let key = secp256k1::PublicKey::from_slice(&bytes("public_key")).unwrap();
            let intent: Intent = serde_json::from_value(body["intent"].clone()).unwrap();
            assert_eq!(key.serialize(), self.key.public_key(&intent).to_compressed());
            let signature = secp256k1::ecdsa::Signature::from_compact(&bytes("compact")).unwrap();
            let digest = secp256k1::Message::from_digest(intent.digest);
            secp256k1::Secp256k1::verification_only().verify_ecdsa(digest, &signature, &key).unwrap();
        }
        get(format!("/status/{request}")).await.unwrap().json().await.unwrap()
    }

    /// That the manager has a message signed; yields the request's status.
    pub(crate) async fn completes(&self, message: &str) -> Value {
        let status = self.ended(self.submit(message).await).await;
        assert_eq!(status["status"], "Completed", "{status}");
        status
    }

    fn url(&self) -> &str {
        &self.managing.as_ref().expect("there is a manager").url
    }

    // ---- What a dishonest manager can do. ----

    /// An attempt as a manager writes it: the first one of a new request.
    pub(crate) fn attempt(&self, signers: &[u8], message: &[u8]) -> Attempt {
        Attempt {
            request: Uuid::new_v4(),
            attempt: 1,
            intent: Intent {
                cluster: CLUSTER.into(),
                key: KEY.into(),
                path: "0/1/2".parse().unwrap(),
                hash: HashAlgorithm::Sha256,
                digest: HashAlgorithm::Sha256.digest(message).unwrap(),
                not_after: None,
            },
            message: message.to_vec(),
            approvals: Vec::new(),
            engine: EngineId::Dkls23,
            epoch: 1,
            quorum: quorum(signers),
            expires: from_now(30),
            traceparent: None,
        }
    }

    /// Tells one signer of an attempt.
    pub(crate) async fn tell(&self, signer: u8, attempt: &Attempt) {
        let bytes = wire::to_json(attempt).unwrap();
        self.bus.publish(Address::Requests(index(signer)), bytes).await.unwrap();
    }

    /// Tells all signers to refresh the key; yields by what name.
    pub(crate) async fn refresh(&self, refresh: Refresh) -> Uuid {
        for signer in self.key.threshold.signers() {
            let bytes = wire::to_json(&RefreshOrder { refresh: refresh.clone() }).unwrap();
            self.bus.publish(Address::Requests(signer), bytes).await.unwrap();
        }
        refresh.id
    }

    /// A refresh as a manager orders it.
    pub(crate) fn new_refresh(&self, epoch: u64) -> Refresh {
        Refresh { id: Uuid::new_v4(), cluster: CLUSTER.into(), key: KEY.into(), epoch, expires: from_now(60) }
    }

    /// What a signer said last of itself.
    pub(crate) fn heartbeat(&self, signer: u8) -> Option<Heartbeat> {
        let reader = Reader::new(CLUSTER, self.roster.clone());
        let record = self.bus.record();
        record.iter().rev().filter(|(to, _)| *to == Address::Presence).find_map(|(_, body)| {
            let Notice::Heartbeat(signed) = wire::from_json(body).ok()? else { return None };
            if signed.signer == index(signer) { reader.open(&signed).ok() } else { None }
        })
    }

    /// Waits until a signer says that a refresh has come so far.
    pub(crate) async fn until_step(&self, signer: u8, id: Uuid, is_it: impl Fn(&RefreshStep) -> bool) {
        until(&format!("a step of signer {signer}'s"), || {
            let Refreshing { id: of, step } = self.heartbeat(signer)?.refresh?;
            (of == id && is_it(&step)).then_some(())
        })
        .await;
    }

    /// Waits until all signers sign with the shares of an epoch, and have no others.
    pub(crate) async fn until_epoch(&self, epoch: u64) {
        for signer in self.key.threshold.signers().map(SignerIndex::get) {
            until(&format!("signer {signer} is at epoch {epoch}"), || {
                let heartbeat = self.heartbeat(signer)?;
                (heartbeat.key.epoch == epoch && heartbeat.next.is_none()).then_some(())
            })
            .await;
            let share = self.stored_share(signer);
            assert_eq!((share.epoch, share.core.public_key()), (epoch, self.key.share(1).core.public_key()));
        }
    }

    /// Tells the whole quorum of an attempt.
    pub(crate) async fn ask(&self, attempt: &Attempt) {
        for signer in attempt.quorum.iter() {
            self.tell(signer.get(), attempt).await;
        }
    }

    /// What the signers have reported so far.
    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let reader = Reader::new(CLUSTER, self.roster.clone());
        let results = self.bus.record().into_iter().filter(|(to, _)| *to == Address::Results);
        results.map(|(_, body)| reader.open(&wire::from_json::<Signed>(&body).unwrap()).unwrap()).collect()
    }

    /// How an attempt ended at a signer, once the signer has reported it.
    pub(crate) async fn ending(&self, attempt: &Attempt, signer: u8) -> Ending {
        let of = |outcome: &Outcome| {
            (outcome.request, outcome.attempt, outcome.signer)
                == (attempt.request, attempt.attempt, index(signer))
        };
        let what = format!("an outcome of signer {signer}");
        until(&what, || self.outcomes().into_iter().find(of)).await.ending
    }

    /// Why an attempt was aborted at a signer.
    pub(crate) async fn abort(&self, attempt: &Attempt, signer: u8) -> Abort {
        match self.ending(attempt, signer).await {
            Ending::Aborted(abort) => abort,
            ending => panic!("not aborted: {ending:?}"),
        }
    }

    /// That an attempt ends with a signature, which is right.
    pub(crate) async fn is_signed(&self, attempt: &Attempt) -> Signature {
        let reporter = attempt.quorum.iter().next().unwrap();
        match self.ending(attempt, reporter.get()).await {
            Ending::Signed(signature) => {
                let intent = &attempt.intent;
                assert_signs(&signature, &self.key.public_key(intent), intent.digest);
                signature
            }
            ending => panic!("not signed: {ending:?}"),
        }
    }

    /// That these signers sign.
    pub(crate) async fn signs(&self, signers: &[u8]) -> Attempt {
        self.signs_at(1, signers).await
    }

    /// That these signers sign with shares of an epoch.
    pub(crate) async fn signs_at(&self, epoch: u64, signers: &[u8]) -> Attempt {
        let attempt = Attempt { epoch, ..self.attempt(signers, Uuid::new_v4().as_bytes()) };
        self.ask(&attempt).await;
        self.is_signed(&attempt).await;
        // The others of the quorum have it too, a moment sooner or later.
        for &signer in signers {
            until("the audit log tells of the signature", || {
                let signed = self.finished(signer).into_iter();
                signed.map(|(of, ..)| of).find(|&of| of == (attempt.request, attempt.attempt))
            })
            .await;
        }
        attempt
    }

    // ---- What is left of it all. ----

    /// The value of a metric, named with its labels; 0 where there is none.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let (text, _) = (render_metrics(&self.registry).1, ());
        let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        values.map(|value| value.parse::<u64>().unwrap()).sum()
    }

    /// How many envelopes a signer has dropped for a reason.
    pub(crate) fn dropped(&self, signer: u8, reason: &str) -> u64 {
        self.metric(&format!("tss_signer_envelopes_dropped_total{{reason=\"{reason}\",signer=\"{signer}\"}}"))
    }

    /// How many sessions ended so at a signer.
    pub(crate) fn sessions(&self, signer: u8, outcome: &str) -> u64 {
        self.metric(&format!("tss_signer_sessions_total{{outcome=\"{outcome}\",signer=\"{signer}\"}}"))
    }

    /// How many others a signer never signs with again.
    pub(crate) fn banned(&self, signer: u8) -> u64 {
        self.metric(&format!("tss_signer_banned{{signer=\"{signer}\"}}"))
    }

    /// How many messages the manager did not believe for a reason.
    pub(crate) fn disbelieved(&self, reason: &str) -> u64 {
        self.metric(&format!("tss_messages_dropped_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until a count is at least what is expected; some things are counted a moment late.
    pub(crate) async fn until_at_least(&self, what: &str, least: u64, count: impl Fn(&Self) -> u64) {
        until(&format!("{what}: at least {least}"), || (count(self) >= least).then_some(())).await;
    }

    /// What a signer has written down. The log is whole.
    pub(crate) fn audit(&self, signer: u8) -> Vec<Event> {
        audit_of(&self.data_dir(signer), signer)
    }

    /// The attempts that ended at a signer: request and attempt, session, whether with a signature.
    pub(crate) fn finished(&self, signer: u8) -> Vec<((Uuid, u32), Option<SessionId>, bool)> {
        finished_in(&self.audit(signer))
    }

    /// That no signer has blamed another: for what a broker or a stranger does, none is to blame.
    pub(crate) fn assert_nobody_is_blamed(&self) {
        for signer in self.key.threshold.signers().map(SignerIndex::get) {
            assert_eq!(self.banned(signer), 0, "signer {signer} bans somebody");
            let kinds: Vec<&str> = self.audit(signer).iter().map(Event::kind).collect();
            assert!(!kinds.contains(&"cheating"), "signer {signer} blames somebody");
            for kind in ["cheating", "unattributed", "local"] {
                let aborts = format!("tss_signer_aborts_total{{kind=\"{kind}\",signer=\"{signer}\"}}");
                assert_eq!(self.metric(&aborts), 0, "{aborts}");
            }
        }
    }

    /// That the evidence in a signer's log holds a culprit to what it sent: anybody who has the roster
    /// can check that.
    pub(crate) fn assert_evidence(&self, witness: u8, culprit: u8) {
        let log = self.audit(witness);
        let cheating = log.iter().find_map(|event| match event {
            Event::Cheating { culprits, banned, evidence, .. } => Some((culprits, banned, evidence)),
            _ => None,
        });
        let (culprits, banned, evidence) = cheating.expect("the log tells of the cheating");
        assert_eq!((culprits, *banned), (&indices(&[culprit]), true));
        assert!(!evidence.is_empty());
        for Evidence { from, digest, signature, .. } in evidence {
            assert_eq!(*from, index(culprit));
            let (r, s) = signature.split_at(32);
            let signature = ed25519::Signature::from([r.try_into().unwrap(), s.try_into().unwrap()]);
            self.roster.get(*from).unwrap().verifying_key.verify(digest, &signature).unwrap();
        }
    }

    /// Ends all parts in order.
    pub(crate) async fn stop(mut self) {
        if let Some(Managing { manager, server, stop, .. }) = self.managing.take() {
            stop.cancel();
            server.abort();
            manager.stop().await;
        }
        let stops = std::mem::take(&mut self.running).into_values().map(|signer| signer.stop(STOP));
        futures::future::join_all(stops).await;
        self.bus.close().await;
    }
}

/// What stands in the audit log of a folder.
pub(crate) fn audit_of(folder: &Path, signer: u8) -> Vec<Event> {
    let file = std::fs::File::open(folder.join(format!("signer{signer}.audit.jsonl"))).unwrap();
    audit::entries(BufReader::new(file), None).map(|entry| entry.unwrap().event).collect()
}

/// The attempts that ended according to a log.
pub(crate) fn finished_in(log: &[Event]) -> Vec<((Uuid, u32), Option<SessionId>, bool)> {
    let finished = |event: &Event| match event {
        Event::Finished { request, attempt, session, outcome, .. } => {
            Some(((*request, *attempt), *session, *outcome == Finish::Signed))
        }
        _ => None,
    };
    log.iter().filter_map(finished).collect()
}

/// The sessions that were taken part in according to a log.
pub(crate) fn sessions_in(log: &[Event]) -> Vec<SessionId> {
    let session = |event: &Event| match event {
        Event::Accepted { session, .. } => Some(*session),
        _ => None,
    };
    log.iter().filter_map(session).collect()
}

/// A time so many seconds from now.
pub(crate) fn from_now(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}
