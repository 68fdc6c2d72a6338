//! A manager, and signers that come and go.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tss_common::bus::Bus;
use tss_common::bus::memory::MemoryBus;
use tss_common::config::{Config, StoreKind};
use tss_common::identity::{Identity, Roster};
use tss_manager::{Manager, ManagerOptions, store};
use tss_mpc::{Dkls23, ShareDocument, SignerIndex, Threshold};
use tss_signer::compute::Compute;
use tss_signer::metrics::Metrics;
use tss_signer::{Signer, SignerOptions};

use crate::SOON;

/// How long a signer gets to stop.
const STOP: Duration = Duration::from_secs(20);

/// The shares of a 2-of-3 key, as JSON.
static SHARES: LazyLock<BTreeMap<SignerIndex, Vec<u8>>> = LazyLock::new(|| {
    let config = Config::default();
    let threshold = Threshold::new(config.threshold, config.total_parties).unwrap();
    let shares = tssctl::keygen::generate(&Dkls23, &config.cluster, &config.key, threshold).unwrap();
    shares.iter().map(|(&index, share)| (index, share.to_json().unwrap().to_vec())).collect()
});

/// A 2-of-3 network.
pub(crate) struct Network {
    pub(crate) url: String,
    http: reqwest::Client,
    manager: Arc<Manager>,
    /// None once the manager is stopped.
    server: Option<JoinHandle<anyhow::Result<()>>>,
    stop: CancellationToken,
    bus: Arc<dyn Bus>,
    /// As JSON: each is used again when its signer is started again.
    identities: BTreeMap<SignerIndex, Vec<u8>>,
    roster: Roster,
    compute: Compute,
    metrics: Metrics,
    signers: BTreeMap<SignerIndex, Signer>,
    folder: TempDir,
}

impl Network {
    /// A network that signs.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// The same with a configuration that is changed, for which there is a folder.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config {
            manager_port: 0,
            data_dir: folder.path().to_owned(),
            store: StoreKind::Embedded,
            signing_timeout: 180,
            ..Config::default()
        };
        change(&mut config, folder.path());
        let identities = tssctl::keygen::identities(Threshold::new(2, 3).unwrap());
        let roster = Roster::of(&identities).unwrap();
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry);
        let bus: Arc<dyn Bus> = MemoryBus::new();
        let options = ManagerOptions {
            store: store::open(&config).unwrap(),
            config,
            roster: roster.clone(),
            bus: bus.clone(),
            registry,
        };
        let manager = Arc::new(Manager::start(options).await.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let server = tokio::spawn({
            let (manager, stop) = (manager.clone(), stop.clone());
            async move { manager.serve(listener, None, stop).await }
        });
        let mut network = Self {
            url,
            http: reqwest::Client::builder().timeout(SOON * 2).build().unwrap(),
            manager,
            server: Some(server),
            stop,
            bus,
            identities: identities
                .iter()
                .map(|(&index, own)| (index, own.to_json().unwrap().to_vec()))
                .collect(),
            roster,
            compute: Compute::new().unwrap(),
            metrics,
            signers: BTreeMap::new(),
            folder,
        };
        for signer in [1, 2, 3] {
            network.start_signer(signer).await;
        }
        network.until_live(3).await;
        network
    }

    async fn until_live(&self, signers: usize) {
        let shared = self.manager.shared();
        let began = Instant::now();
        while !tss_manager::api::health::is_well(&shared) || shared.presence.live().len() < signers {
            assert!(began.elapsed() < SOON, "the network does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn start_signer(&mut self, signer: u8) {
        let index = SignerIndex::new(signer).unwrap();
        let options = SignerOptions {
            share: ShareDocument::from_json(&SHARES[&index]).unwrap(),
            share_file: None,
            refresh_pause: Duration::ZERO,
            identity: Identity::from_json(&self.identities[&index]).unwrap(),
            roster: self.roster.clone(),
            engine: Arc::new(Dkls23),
            bus: self.bus.clone(),
            compute: self.compute.clone(),
            data_dir: self.folder.path().join(format!("signer{signer}")),
            max_sessions: 64,
            policy_file: None,
            metrics: self.metrics.clone(),
        };
        self.signers.insert(index, Signer::start(options).await.unwrap());
    }

    pub(crate) async fn stop_signer(&mut self, signer: u8) {
        self.signers.remove(&SignerIndex::new(signer).unwrap()).expect("it runs").stop(STOP).await;
    }

    /// Has a message signed some time, and returns the request's id.
    pub(crate) async fn accepted(&self, message: &str) -> String {
        let body = json!({ "message": message });
        let answer = self.http.post(format!("{}/sign", self.url)).json(&body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 201);
        let answer: Value = answer.json().await.unwrap();
        answer["request_id"].as_str().unwrap().to_owned()
    }

    /// Has a message signed, and returns the request's id.
    pub(crate) async fn signed(&self, message: &str) -> String {
        let id = self.accepted(message).await;
        let answer = self.http.get(format!("{}/signature/{id}?wait=60s", self.url)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{message} is signed");
        id
    }

    /// Ends the manager. Nobody answers at its address any more.
    pub(crate) async fn stop_manager(&mut self) {
        let Some(server) = self.server.take() else { return };
        self.stop.cancel();
        tokio::time::timeout(SOON, server).await.expect("the server ends").unwrap().unwrap();
        self.manager.stop().await;
    }

    pub(crate) async fn stop(mut self) {
        self.stop_manager().await;
        for signer in self.signers.into_values() {
            signer.stop(STOP).await;
        }
        self.bus.close().await;
    }
}
