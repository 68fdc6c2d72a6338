//! The operator as a process: all controllers, health, metrics.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Api, Client, Config};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tss_common::config::{LogConfig, LogFormat};
use tss_common::{process, telemetry, version};

use crate::context::{Context, FIELD_MANAGER, Options};
use crate::http::{self, Health};
use crate::lease::{Election, Fence};
use crate::metrics::Metrics;
use crate::{canary, cluster, signing_request};

/// As it names itself, in metrics too.
pub const PROGRAM: &str = "operator";

/// How long controllers may take to come to an end, within the 30 seconds that Kubernetes gives a Pod.
const GRACE: Duration = Duration::from_secs(20);
/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The names of the controllers, in metrics and in `/readyz`.
const CLUSTER: &str = "tsscluster";
const SIGNING_REQUEST: &str = "signingrequest";
const CONTROLLERS: [&str; 3] = [CLUSTER, SIGNING_REQUEST, canary::CONTROLLER];

/// How the operator runs.
#[derive(Clone, Debug, clap::Args)]
pub struct RunOptions {
    /// What the controllers are told.
    #[command(flatten)]
    pub options: Options,
    /// Of several operators only one works, the others stand by. Needed with more than one replica.
    #[arg(long, env = "LEADER_ELECTION")]
    pub leader_election: bool,
    /// For how many seconds a leader that is heard of no more is waited for.
    #[arg(long, env = "LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(3..=3600))]
    pub lease_seconds: u16,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "0.0.0.0:8081")]
    pub http_address: SocketAddr,
    /// The name of this operator's Pod.
    #[arg(long, env = "POD_NAME", default_value = "operator")]
    pub pod_name: String,
    /// How logs are written.
    #[command(flatten)]
    pub log: LogOptions,
}

/// How logs are written.
#[derive(Clone, Debug, clap::Args)]
pub struct LogOptions {
    /// A level (info) or a filter (info,tss_operator=debug).
    #[arg(long, env = "LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// How the lines look.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogLines::Text)]
    pub log_format: LogLines,
}

/// How the lines of a log look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLines {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl LogOptions {
    /// Starts logging.
    pub fn init(&self) {
        let format = match self.log_format {
            LogLines::Text => LogFormat::Text,
            LogLines::Json => LogFormat::Json,
        };
        telemetry::init_logs(&LogConfig { level: self.log_level.clone(), format });
    }
}

/// Where the API server is: as a kubeconfig says or, in a Pod, its ServiceAccount.
///
/// # Errors
/// When neither is there.
pub async fn config() -> anyhow::Result<Config> {
    let mut config = Config::infer().await.context("expected a kubeconfig, or to run in a Pod")?;
    config.connect_timeout = Some(CONNECT);
    Ok(config)
}

/// A client that asks once: what to do about an error is decided by who asks.
///
/// # Errors
/// When the configuration's certificates or keys are of no use.
pub fn client_without_retries(mut config: Config) -> anyhow::Result<Client> {
    config.default_retry = false;
    Client::try_from(config).context("there is no client of the API server")
}

/// Runs the operator until SIGINT or SIGTERM.
///
/// # Errors
/// When it cannot start, a controller ends, or it leads no more.
pub async fn run(arguments: RunOptions) -> anyhow::Result<()> {
    arguments.log.init();
    let stop = process::stop_on_signal()?;
    let config = config().await?;
    let registry = telemetry::registry(PROGRAM);
    let metrics = Metrics::new(&registry);
    let plain = client_without_retries(config.clone())?;
    let health = Health::new(plain.clone(), &CONTROLLERS);
    let listener = http::listen(arguments.http_address).await?;
    tracing::info!(address = %arguments.http_address, version = version::FULL, "the operator listens");
    // Until the controllers have ended: they are looked at while they do.
    let served = CancellationToken::new();
    let server = tokio::spawn(http::serve(listener, registry, health.clone(), served.clone()));

    let work = |client: Client| {
        let (metrics, health) = (metrics.clone(), health.clone());
        let reporter =
            Reporter { controller: FIELD_MANAGER.into(), instance: Some(arguments.pod_name.clone()) };
        let context = Arc::new(Context {
            events: Recorder::new(client.clone(), reporter),
            client,
            metrics: metrics.clone(),
            options: Arc::new(arguments.options.clone()),
        });
        move |stop| async move {
            metrics.leads(true);
            let result = control(context, &health, stop).await;
            metrics.leads(false);
            result
        }
    };
    let result = if arguments.leader_election {
        let fence = Fence::default();
        let leases = Api::namespaced(plain, &arguments.options.namespace);
        let election = Election::new(leases, &arguments.pod_name, arguments.lease_seconds, fence.clone());
        let builder = ClientBuilder::try_from(config).context("there is no client of the API server")?;
        election.lead(stop, work(builder.with_layer(&fence).build())).await
    } else {
        work(Client::try_from(config).context("there is no client of the API server")?)(stop).await
    };
    tracing::info!("stopping");
    served.cancel();
    // A slow reader of metrics does not keep the process.
    if let Ok(ended) = timeout(Duration::from_secs(2), server).await {
        ended.context("health and metrics")??;
    }
    result
}

/// Runs the controllers until `stop`.
async fn control(context: Arc<Context>, health: &Health, stop: CancellationToken) -> anyhow::Result<()> {
    let ours = stop.child_token();
    let mut controllers = JoinSet::new();
    let mut begin = |name, controller: BoxFuture<'static, ()>| {
        let running = health.running(name);
        controllers.spawn(async move {
            controller.await;
            drop(running);
            name
        });
    };
    begin(CLUSTER, cluster::run(context.clone(), ours.clone()).boxed());
    begin(SIGNING_REQUEST, signing_request::run(context.clone(), ours.clone()).boxed());
    begin(canary::CONTROLLER, canary::run(context, ours.clone()).boxed());
    join(controllers, CONTROLLERS.into(), ours).await
}

/// Waits until all controllers have ended. One that ends without being told to is an error, and the others
/// are told to end then.
async fn join(
    mut controllers: JoinSet<&'static str>,
    mut names: BTreeSet<&'static str>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut result = Ok(());
    let first = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        ended = controllers.join_next() => ended,
    };
    if let Some(ended) = first {
        result = Err(match ended {
            Ok(name) => {
                names.remove(name);
                anyhow!("the controller {name} has ended on its own")
            }
            Err(error) => anyhow!("a controller has failed: {error}"),
        });
        stop.cancel();
    }
    let rest = async {
        while let Some(ended) = controllers.join_next().await {
            match ended {
                Ok(name) => {
                    names.remove(name);
                }
                Err(error) if result.is_ok() => result = Err(anyhow!("a controller has failed: {error}")),
                Err(_) => {}
            }
        }
    };
    match timeout(GRACE, rest).await {
        Ok(()) => result,
        Err(_) => {
            result.and(Err(anyhow!("not ended within {GRACE:?}: {}", Vec::from_iter(names).join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(set: &mut JoinSet<&'static str>, name: &'static str, stop: &CancellationToken) {
        let stop = stop.clone();
        set.spawn(async move {
            stop.cancelled().await;
            name
        });
    }

    #[tokio::test]
    async fn controllers_that_are_told_to_end_do() {
        let stop = CancellationToken::new();
        let mut set = JoinSet::new();
        controller(&mut set, "a", &stop);
        controller(&mut set, "b", &stop);
        stop.cancel();
        join(set, ["a", "b"].into(), stop).await.expect("they end");
    }

    #[tokio::test]
    async fn a_controller_that_ends_on_its_own_ends_the_others_and_is_an_error() {
        let stop = CancellationToken::new();
        let mut set = JoinSet::new();
        controller(&mut set, "a", &stop);
        set.spawn(async { "b" });
        let error = join(set, ["a", "b"].into(), stop.clone()).await.expect_err("an error");
        assert_eq!(error.to_string(), "the controller b has ended on its own");
        assert!(stop.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_does_not_end_is_not_waited_for_for_ever() {
        let stop = CancellationToken::new();
        let mut set: JoinSet<&'static str> = JoinSet::new();
        set.spawn(std::future::pending());
        stop.cancel();
        let error = join(set, ["a"].into(), stop).await.expect_err("an error");
        assert_eq!(error.to_string(), "not ended within 20s: a");
    }
}
