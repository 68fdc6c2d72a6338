//! Hundreds of clusters: how long, how many requests, how much memory.
//!
//! The operator runs in a process of its own, this test program again, so that its memory can be seen. The keys were
//! made before: what is built are all objects of running clusters, but no Pod ever becomes ready.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{ApiResource, ListParams, PostParams};
use serde_json::{Value, json};
use tss_operator::crd::TssCluster;

use crate::operator::Operator;
use crate::server::{Namespace, cluster, connect, in_namespace};

/// How many clusters; as many as two cores, which the control plane needs most of, can do in two minutes. With
/// OPERATOR_SCALE=500 it takes four: 7,855 writes, then none.
const CLUSTERS: usize = 150;
/// How long nothing may be written.
const QUIET: Duration = Duration::from_secs(20);
/// How long it may take until it is quiet.
const PATIENCE: Duration = Duration::from_secs(600);
/// The most memory, in MiB.
const MEMORY: usize = 200;
/// The namespace that the operator's own process looks after.
const CHILD: &str = "OPERATOR_SCALE_CHILD";

/// The operator in a process of its own.
struct Process {
    child: Child,
    /// How many writes and reads there were.
    said: Arc<Mutex<(usize, usize)>>,
}

impl Process {
    fn start(namespace: &Namespace) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "scale::hundreds_of_clusters", "--nocapture"])
            .env(CHILD, &namespace.name)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new((0, 0)));
        let (lines, shared) = (BufReader::new(child.stdout.take().unwrap()).lines(), said.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let numbers: Vec<usize> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
                if let (true, [writes, reads]) = (line.starts_with("requests "), numbers.as_slice()) {
                    *shared.lock().unwrap() = (*writes, *reads);
                }
            }
        });
        Self { child, said }
    }

    fn requests(&self) -> (usize, usize) {
        *self.said.lock().unwrap()
    }

    /// Its resident memory now, and the most that it ever was, in MiB.
    fn memory(&self) -> (usize, usize) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name: &str| -> usize {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What runs in the operator's own process: it tells what it has asked for, for as long as somebody listens.
async fn operate(namespace: String) {
    let operator = Operator::new(&Namespace { name: namespace, client: connect().await }).await;
    let _running = operator.run();
    loop {
        println!("requests {} {}", operator.wire.written(), operator.wire.reads());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A cluster whose key was made before.
async fn create(namespace: &Namespace, number: usize) {
    let name = format!("wallet-{number}");
    let key = format!("02{number:064x}");
    let share = |index: u8| json!({"identity": format!("{name}-signer-{index}-identity"), "share": format!("{name}-signer-{index}-e1-{}", &key[2..12])});
    let record = json!({
        "version": 1, "networkName": format!("{}-{name}", namespace.name), "threshold": 2, "signers": 2, "protocol": "dkls23",
        "epoch": 1, "publicKey": key, "commitment": "00", "roster": format!("{name}-roster"), "shares": [share(1), share(2)],
        "addresses": {"path": "0/1/2", "publicKey": key, "ethereum": "0x", "bitcoin": "bc1"},
    });
    let map = |suffix: &str, data: Value| json!({"metadata": {"name": format!("{name}-{suffix}"), "labels": {"tss.network/cluster": name}}, "data": data});
    namespace.create::<ConfigMap>(map("key", json!({"key.json": record.to_string()}))).await;
    namespace.create::<ConfigMap>(map("roster", json!({"roster.toml": ""}))).await;
    let mut wanted = cluster(&name, 2, 2);
    wanted["spec"]["manager"] = json!({"replicas": 1});
    let wanted: TssCluster = serde_json::from_value(wanted).unwrap();
    namespace.api().create(&PostParams::default(), &wanted).await.unwrap();
}

#[tokio::test]
async fn hundreds_of_clusters() {
    if let Ok(namespace) = std::env::var(CHILD) {
        return operate(namespace).await;
    }
    let count: usize = std::env::var("OPERATOR_SCALE").map_or(CLUSTERS, |count| count.parse().unwrap());
    in_namespace(async |namespace| {
        futures::stream::iter(0..count).for_each_concurrent(8, |number| create(namespace, number)).await;
        let operator = Process::start(namespace);
        let began = Instant::now();
        let (mut written, mut since, mut reads) = (0, Instant::now(), 0);
        let quiet_from = loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (writes, read) = operator.requests();
            if writes != written {
                (written, since, reads) = (writes, Instant::now(), read);
            }
            if written > 0 && since.elapsed() >= QUIET {
                break since;
            }
            assert!(began.elapsed() < PATIENCE, "still {writes} writes, {read} reads after {PATIENCE:?}");
        };
        let took = quiet_from.duration_since(began);
        let (writes, all_reads) = operator.requests();
        let quiet_reads = all_reads - reads;
        let (memory, most) = operator.memory();
        println!(
            "{count} clusters: everything was written within {:.0} s by {writes} writes and {reads} reads; in {:.0} s after that 0 \
             writes, {quiet_reads} reads; memory {memory} MiB, at most {most} MiB",
            took.as_secs_f64(),
            since.elapsed().as_secs_f64(),
        );

        let sets = namespace.list::<StatefulSet>().await;
        assert_eq!(sets.len(), 2 * count);
        for found in namespace.list::<TssCluster>().await {
            let status = found.status.clone().unwrap_or_default();
            assert_eq!(status.observed_generation, found.metadata.generation, "{}", found.name_any());
            assert_eq!(status.ready_signers.as_deref(), Some("0/2"), "{}", found.name_any());
        }
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for kind in tss_operator::cluster::dereference::kinds() {
            let all = namespace.dynamic(&ApiResource::clone(&kind)).list_metadata(&ListParams::default()).await.unwrap();
            kinds.insert(kind.kind, all.items.len());
        }
        println!("{kinds:?}");
        assert!(most <= MEMORY, "{most} MiB: expected at most {MEMORY}");
        // Pods that cannot be scheduled are looked at again and again by the scheduler; each time costs a pass of 12 reads.
        assert!(quiet_reads <= count * 24, "{quiet_reads} reads in {QUIET:?}");
    })
    .await;
}
