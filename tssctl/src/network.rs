//! A manager and all signers in one process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tss_common::bus::Bus;
use tss_common::bus::memory::MemoryBus;
use tss_common::bus::rabbitmq::{RabbitBus, RabbitOptions};
use tss_common::config::{Config, StoreKind};
use tss_common::identity::{Identity, Roster};
use tss_common::{process, telemetry};
use tss_manager::{Manager, ManagerOptions, store};
use tss_mpc::{ShareDocument, SignerIndex};
use tss_signer::compute::Compute;
use tss_signer::metrics::Metrics;
use tss_signer::share_file::ShareFile;
use tss_signer::{Signer, SignerOptions};

/// How long the parts get to find each other.
const START: Duration = Duration::from_secs(60);

/// What a network in one process starts from.
pub struct NetworkOptions {
    /// The configuration of manager and signers; `manager_port` 0 takes any free one.
    pub config: Config,
    /// Every signer's share.
    pub shares: BTreeMap<SignerIndex, ShareDocument>,
    /// The files that they are in, if they are in files: a refresh needs them.
    pub share_files: BTreeMap<SignerIndex, PathBuf>,
    /// Every signer's identity; the roster is made of them.
    pub identities: BTreeMap<SignerIndex, Identity>,
    /// RabbitMQ instead of the bus within the process.
    pub rabbitmq_uri: Option<String>,
    /// MongoDB instead of the embedded store.
    pub mongodb_uri: Option<String>,
}

/// A running network.
pub struct Network {
    address: SocketAddr,
    manager: Arc<Manager>,
    signers: Vec<Signer>,
    bus: Arc<dyn Bus>,
    server: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Network {
    /// Starts the parts, and returns once a signature can be made.
    ///
    /// # Errors
    /// When a part cannot be started, or does not come up within a minute.
    pub async fn start(options: NetworkOptions) -> anyhow::Result<Self> {
        let NetworkOptions { mut config, shares, mut share_files, mut identities, rabbitmq_uri, mongodb_uri } =
            options;
        let data_dir: PathBuf = config.data_dir.clone();
        std::fs::create_dir_all(&data_dir).with_context(|| data_dir.display().to_string())?;
        config.store = if mongodb_uri.is_some() { StoreKind::Mongodb } else { StoreKind::Embedded };
        if let Some(uri) = mongodb_uri {
            config.mongodb_uri = uri.into();
        }
        let bus: Arc<dyn Bus> = match rabbitmq_uri {
            Some(uri) => RabbitBus::connect(RabbitOptions {
                uri,
                cluster: config.cluster.clone(),
                connection_name: "devnet".into(),
            })?,
            None => MemoryBus::new(),
        };
        let address = SocketAddr::new(config.manager_address, config.manager_port);
        let listener = tss_manager::listen(address)
            .with_context(|| format!("cannot listen on {address} (--port names another port)"))?;
        let address = listener.local_addr()?;

        let registry = telemetry::registry("tssctl");
        let metrics = Metrics::new(&registry);
        let engine = process::engine(config.engine);
        let compute = Compute::new()?;
        let (max_sessions, policy_file) = (config.limits.sessions, config.policy_file.clone());
        let refresh_pause = config.refresh_pause();
        let roster = Roster::of(&identities).map_err(anyhow::Error::msg)?;
        let manager = Manager::start(ManagerOptions {
            store: store::open(&config)?,
            config,
            roster: roster.clone(),
            bus: bus.clone(),
            registry,
        });
        let manager = Arc::new(manager.await?);
        let mut signers = Vec::with_capacity(shares.len());
        for share in shares.into_values() {
            let identity = identities.remove(&share.core.index).context("an identity for each share")?;
            let share_file = share_files.remove(&share.core.index).map(|file| ShareFile::new(file, None));
            let options = SignerOptions {
                share,
                share_file,
                refresh_pause,
                identity,
                roster: roster.clone(),
                engine: engine.clone(),
                bus: bus.clone(),
                compute: compute.clone(),
                data_dir: data_dir.clone(),
                max_sessions,
                policy_file: policy_file.clone(),
                metrics: metrics.clone(),
            };
            signers.push(Signer::start(options).await?);
        }
        let stop = CancellationToken::new();
        let server = tokio::spawn({
            let (manager, stop) = (manager.clone(), stop.clone());
            async move { manager.serve(listener, None, stop).await }
        });
        let network = Self { address, manager, signers, bus, server, stop };
        network.wait_until_well().await?;
        Ok(network)
    }

    async fn wait_until_well(&self) -> anyhow::Result<()> {
        let shared = self.manager.shared();
        let well = async {
            while !tss_manager::api::health::is_well(&shared) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(START, well)
            .await
            .with_context(|| format!("the network did not come up within {} s", START.as_secs()))
    }

    /// Where the manager listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The manager.
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Stops all parts.
    ///
    /// # Errors
    /// When the server had failed.
    pub async fn stop(self) -> anyhow::Result<()> {
        let Self { manager, signers, bus, server, stop, .. } = self;
        stop.cancel();
        // Connections that clients keep open do not hold the end up.
        let served = tokio::time::timeout(Duration::from_secs(2), server).await;
        manager.stop().await;
        futures::future::join_all(signers.into_iter().map(|signer| signer.stop(Duration::from_secs(5))))
            .await;
        bus.close().await;
        match served {
            Ok(result) => result.context("the server panicked")?,
            Err(_) => Ok(()),
        }
    }
}
