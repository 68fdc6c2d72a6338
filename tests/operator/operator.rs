//! An operator inside of a test.

use std::sync::Arc;
use std::time::Instant;

use kube::client::ClientBuilder;
use kube::runtime::events::Recorder;
use kube::{Client, Config};
use prometheus::Registry;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tss_operator::cluster;
use tss_operator::condition::is_true;
use tss_operator::context::{Context, FIELD_MANAGER, Options};
use tss_operator::crd::TssClusterStatus;
use tss_operator::metrics::Metrics;

use crate::server::{Namespace, OFTEN, SOON, config};
use crate::wire::{Fault, Wire};

/// An operator that looks after one namespace, or all.
pub(crate) struct Operator {
    pub(crate) context: Arc<Context>,
    pub(crate) wire: Wire,
    namespace: Namespace,
}

impl Operator {
    /// An operator that may do everything.
    pub(crate) async fn new(namespace: &Namespace) -> Self {
        Self::with(namespace, config().await, Wire::default())
    }

    /// One to which something happens at one of its requests.
    pub(crate) async fn with_fault(namespace: &Namespace, fault: Fault) -> Self {
        Self::with(namespace, config().await, Wire::breaking(fault))
    }

    pub(crate) fn with(namespace: &Namespace, config: Config, wire: Wire) -> Self {
        let client = client(config, &wire);
        let context = Arc::new(context(client, Some(namespace.name.clone())));
        Self { context, wire, namespace: namespace.clone() }
    }

    /// One pass over a TssCluster. It may fail: the API server, or the controllers, were quicker.
    pub(crate) async fn pass(&self, name: &str) -> Result<(), cluster::Error> {
        cluster::reconcile(&self.context, &self.namespace.name, name).await.map(drop)
    }

    /// Passes until the status is as it is wanted, or the line is cut: yields whether it is.
    pub(crate) async fn pass_until(
        &self,
        name: &str,
        what: &str,
        reached: impl Fn(&TssClusterStatus) -> bool,
    ) -> bool {
        let began = Instant::now();
        let mut last = None;
        loop {
            let result = self.pass(name).await;
            if self.wire.is_cut() {
                return false;
            }
            let status = self.namespace.status(name).await;
            match result {
                Ok(()) if reached(&status) => return true,
                Ok(()) => {}
                Err(error) => last = Some(error.to_string()),
            }
            assert!(
                began.elapsed() < SOON,
                "not within {SOON:?}: {what}; the last error: {last:?}; status: {status:#?}"
            );
            tokio::time::sleep(OFTEN).await;
        }
    }

    /// Passes until the cluster signs and nothing is left to do, or the line is cut: yields whether it is.
    pub(crate) async fn settle(&self, name: &str) -> bool {
        self.pass_until(name, "the cluster is ready", is_settled).await
    }

    /// Runs the controller, as the program does.
    pub(crate) fn run(&self) -> Running {
        let stop = CancellationToken::new();
        let task = tokio::spawn(cluster::run(self.context.clone(), stop.clone()));
        Running { stop, task }
    }
}

/// A controller that runs.
pub(crate) struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Stops it in good order.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Whether a cluster signs, and nothing is left to do.
pub(crate) fn is_settled(status: &TssClusterStatus) -> bool {
    is_true(&status.conditions, "Ready")
        && status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Progressing" && condition.status == "False")
}

pub(crate) fn client(config: Config, wire: &Wire) -> Client {
    ClientBuilder::try_from(config).unwrap().with_layer(wire).build()
}

pub(crate) fn context(client: Client, watch_namespace: Option<String>) -> Context {
    Context {
        events: Recorder::new(client.clone(), FIELD_MANAGER.into()),
        client,
        metrics: Metrics::new(&Registry::new()),
        options: Arc::new(Options {
            manager_image: "tss/manager:test".into(),
            signer_image: "tss/signer:test".into(),
            operator_image: "tss/operator:test".into(),
            watch_namespace,
            namespace: "tss-network".into(),
            manager_ca: None,
            manager_url: None,
        }),
    }
}
