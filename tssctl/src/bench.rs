//! A network under load, against its engine's own ceiling.
//!
//! The ceiling is what the machine could do if signing were nothing but the engine's arithmetic: cores
//! divided by the CPU seconds that all parties of a signature take. Both are measured in one run, the
//! ceiling before and after the load, so that their ratio holds on a machine whose speed drifts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};
use tss_client::Client;
use tss_client::types::SignRequest;
use tss_common::config::Config;
use tss_common::process;
use tss_mpc::local::run_local_sequential;
use tss_mpc::{Payload, Quorum, SessionId, ShareDocument, SignSetup, SignerIndex, SigningShare, Threshold};

use crate::keygen;
use crate::network::{Network, NetworkOptions};

/// How many signatures each measurement of the ceiling takes.
const CEILING_SIGNATURES: u32 = 40;

/// How long one signature may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// What a benchmark runs with.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
    /// How many requests are made.
    pub requests: usize,
    /// How many of them at the same time.
    pub concurrency: usize,
    /// RabbitMQ instead of the bus within the process.
    pub rabbitmq_uri: Option<String>,
    /// MongoDB instead of the embedded store.
    pub mongodb_uri: Option<String>,
}

/// What a benchmark found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Signatures a second through the REST API.
    pub rate: f64,
    /// Seconds from `POST /sign` to the signature in hand: median, 95th and 99th percentile.
    pub latency: [f64; 3],
    /// CPU seconds of all parties for one signature.
    pub engine_seconds: f64,
    /// Cores of the machine.
    pub cores: usize,
}

impl Report {
    /// Signatures a second if there were nothing but the engine.
    pub fn ceiling(&self) -> f64 {
        self.cores as f64 / self.engine_seconds
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p95, p99] = self.latency.map(|seconds| seconds * 1e3);
        let engine = self.engine_seconds * 1e3;
        writeln!(f, "signatures/s: {:.1}", self.rate)?;
        writeln!(f, "latency ms:   p50 {p50:.1}  p95 {p95:.1}  p99 {p99:.1}")?;
        writeln!(f, "engine:       {engine:.2} ms CPU of all parties a signature")?;
        writeln!(f, "p50/engine:   {:.2}", p50 / engine)?;
        writeln!(f, "ceiling:      {:.1} signatures/s on {} cores", self.ceiling(), self.cores)?;
        write!(f, "of-ceiling: {:.2}", self.rate / self.ceiling())
    }
}

/// Runs a benchmark on a network of its own, in a temporary folder.
///
/// # Errors
/// When the network does not start, or a request does not end with a signature.
pub async fn run(options: &BenchOptions) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir()?;
    // A name of its own: nothing of an earlier run waits in its queues.
    let cluster = format!("bench-{:08x}", rand::random::<u32>());
    let config = Config {
        cluster: cluster.clone(),
        threshold: options.threshold.t(),
        total_parties: options.threshold.n(),
        manager_port: 0,
        signing_timeout: 600,
        data_dir: folder.path().to_owned(),
        mongodb_database: cluster.clone(),
        limits: tss_common::config::Limits { pending: 1_000_000, rate: 0, ..Default::default() },
        ..Config::default()
    };
    let engine = process::engine(config.engine);
    let (key, threshold) = (config.key.clone(), options.threshold);
    let shares = {
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || keygen::generate(&*engine, &cluster, &key, threshold)).await??
    };
    let opened: Arc<BTreeMap<SignerIndex, Arc<dyn SigningShare>>> = Arc::new(
        shares
            .iter()
            .map(|(&index, share)| Ok((index, engine.open(share)?)))
            .collect::<anyhow::Result<_>>()?,
    );
    let network = Network::start(NetworkOptions {
        identities: keygen::identities(options.threshold),
        config: config.clone(),
        shares: duplicate(&shares)?,
        share_files: BTreeMap::new(),
        rabbitmq_uri: options.rabbitmq_uri.clone(),
        mongodb_uri: options.mongodb_uri.clone(),
    })
    .await?;

    let before = measure_engine(opened.clone(), threshold, &config).await?;
    let (seconds, mut latencies) = load(&network.url(), options).await?;
    let after = measure_engine(opened, threshold, &config).await?;
    network.stop().await?;

    latencies.sort();
    Ok(Report {
        rate: options.requests as f64 / seconds,
        latency: [0.50, 0.95, 0.99].map(|share| percentile(&latencies, share).as_secs_f64()),
        engine_seconds: f64::midpoint(before, after),
        cores: std::thread::available_parallelism()?.get(),
    })
}

/// Share documents are not to be copied by accident; here it is meant.
fn duplicate(
    shares: &BTreeMap<SignerIndex, ShareDocument>,
) -> anyhow::Result<BTreeMap<SignerIndex, ShareDocument>> {
    shares.iter().map(|(&index, share)| Ok((index, ShareDocument::from_json(&share.to_json()?)?))).collect()
}

/// CPU seconds of all parties of one signature, on one thread.
async fn measure_engine(
    shares: Arc<BTreeMap<SignerIndex, Arc<dyn SigningShare>>>,
    threshold: Threshold,
    config: &Config,
) -> anyhow::Result<f64> {
    let path = config.path.clone();
    let measure = move || -> anyhow::Result<f64> {
        let quorum = Quorum::new(threshold.signers().take(threshold.t().into()))?;
        let sign = || -> anyhow::Result<()> {
            let setup = SignSetup {
                session: SessionId(rand::random()),
                quorum: quorum.clone(),
                payload: Payload::Digest(rand::random()),
                path: path.clone(),
            };
            let machines = quorum
                .iter()
                .map(|index| Ok((index, shares[&index].sign(setup.clone())?)))
                .collect::<anyhow::Result<_>>()?;
            run_local_sequential(machines).map_err(|(_, abort)| abort)?;
            Ok(())
        };
        sign()?;
        let began = thread_cpu();
        for _ in 0..CEILING_SIGNATURES {
            sign()?;
        }
        Ok((thread_cpu() - began).as_secs_f64() / f64::from(CEILING_SIGNATURES))
    };
    tokio::task::spawn_blocking(measure).await.context("the measurement panicked")?
}

/// CPU time that the calling thread has used.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Makes the requests; yields the seconds it took and each request's latency.
async fn load(url: &str, options: &BenchOptions) -> anyhow::Result<(f64, Vec<Duration>)> {
    let client = Client::builder(url).build()?;
    // Connections are opened and caches filled before the clock starts.
    one(&client, usize::MAX).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let workers: Vec<_> = (0..options.concurrency)
        .map(|_| {
            let (client, next, requests) = (client.clone(), next.clone(), options.requests);
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return anyhow::Ok(latencies);
                    }
                    let began = Instant::now();
                    one(&client, number).await?;
                    latencies.push(began.elapsed());
                }
            })
        })
        .collect();
    let mut latencies = Vec::with_capacity(options.requests);
    for worker in workers {
        latencies.extend(worker.await.context("a client panicked")??);
    }
    Ok((began.elapsed().as_secs_f64(), latencies))
}

async fn one(client: &Client, number: usize) -> anyhow::Result<()> {
    let request = SignRequest::text(format!("benchmark {number}"));
    client.sign_and_wait(&request, PATIENCE).await?;
    Ok(())
}

/// The value below which this share of the sorted values lies.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let values: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 0.50), Duration::from_millis(50));
        assert_eq!(percentile(&values, 0.99), Duration::from_millis(99));
        assert_eq!(percentile(&values[..1], 0.99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }
}
