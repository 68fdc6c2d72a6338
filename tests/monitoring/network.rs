//! The network that is looked at: a manager, three signers and an operator, each a process, as in Kubernetes.
//!
//! There is no node here, so the Pods of the TssCluster that the operator looks after do not run, though they are said to.
//! The processes have its shares, and the operator is told to find its managers here. So its canary goes the whole way.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::PostParams;
use serde_json::{Value, json};
use tss_operator::cluster::names;
use tss_operator::condition::is_true;

use crate::installation::{Installation, Process};
use crate::kubelet::Kubelet;
use crate::monitors;
use crate::prometheus::Target;
use crate::server::{Namespace, cluster, until};

/// The signers' indices.
pub(crate) const SIGNERS: [u8; 3] = [1, 2, 3];

/// The TssCluster.
pub(crate) const NAME: &str = "demo";

/// What the signers sign: nothing with keccak256, so that there is something to refuse.
const POLICY: &str = r#"hashes = ["sha256"]"#;

/// A running network.
pub(crate) struct Network {
    signers: BTreeMap<u8, Process>,
    _manager: Process,
    _operator: Process,
    _kubelet: Kubelet,
    installation: Installation,
    targets: Vec<Target>,
}

impl Network {
    /// Starts all of it, and waits until the canary has been signed.
    pub(crate) async fn start(namespace: &Namespace) -> Self {
        let mut installation = Installation::new();
        installation.keygen();
        let policy = installation.folder().join("policy.toml");
        std::fs::write(&policy, POLICY).unwrap();
        installation.set("TSS_POLICY_FILE", policy.to_str().unwrap());
        installation.set("TSS_PATH", "0/1/2");
        let manager = installation.start("manager", &[]);
        let mut targets = vec![target(namespace, &installation.url(), "manager", "demo-manager-0")];
        let mut signers = BTreeMap::new();
        for index in SIGNERS {
            let port = free_port();
            let settings = [("TSS_DATA_DIR", format!("data{index}")), ("TSS_SIGNER_PORT", port.to_string())];
            let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
            let name = format!("{NAME}-signer-{index}-0");
            let process = installation.start_as(&name, "signer", &["--index", &index.to_string()], &settings);
            signers.insert(index, process);
            targets.push(target(namespace, &format!("http://127.0.0.1:{port}"), "signer", &name));
        }

        let kubelet = Kubelet::start(namespace);
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let url = installation.url();
        let settings = [
            ("MANAGER_URL", url.as_str()),
            ("MANAGER_IMAGE", "tss/manager:test"),
            ("SIGNER_IMAGE", "tss/signer:test"),
            ("OPERATOR_IMAGE", "tss/operator:test"),
            ("WATCH_NAMESPACE", &namespace.name),
            ("HTTP_ADDRESS", &address),
        ];
        let operator = installation.start_as("operator", "operator", &[], &settings);
        targets.push(target(namespace, &format!("http://{address}"), "operator", "operator-0"));
        define(namespace, &installation).await;
        let parts: Vec<&Process> = signers.values().chain([&manager, &operator]).collect();
        installation.until_healthy(&parts).await;
        until("the TssCluster is ready", async || {
            is_true(&namespace.status(NAME).await.conditions, "Ready").then_some(())
        })
        .await;
        Self { signers, _manager: manager, _operator: operator, _kubelet: kubelet, installation, targets }
    }

    pub(crate) fn url(&self) -> String {
        self.installation.url()
    }

    pub(crate) fn cluster(&self) -> &str {
        self.installation.cluster()
    }

    /// Where metrics are, with the labels that they get.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Sends these signers a signal, as `kill` calls it.
    pub(crate) fn signal(&self, signers: &[u8], signal: &str) {
        for index in signers {
            self.signers[index].signal(signal);
        }
    }

    /// Ends it, and removes what it left in the servers.
    pub(crate) async fn stop(self) {
        let Self { signers, _manager: manager, _operator: operator, installation, .. } = self;
        drop((signers, manager, operator));
        installation.clean_up().await;
    }
}

/// The TssCluster, with the key that the processes have.
async fn define(namespace: &Namespace, installation: &Installation) {
    let read = |name: &str| std::fs::read(installation.folder().join(name)).unwrap();
    for index in SIGNERS {
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": format!("key-{index}")},
            "data": {
                "share": ByteString(read(&format!("signer{index}.store"))),
                "identity": ByteString(read(&format!("signer{index}.identity"))),
            },
        }))
        .unwrap();
        namespace.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    }
    let roster = String::from_utf8(read("roster.toml")).unwrap();
    namespace
        .create::<ConfigMap>(json!({"metadata": {"name": "key-roster"}, "data": {"roster.toml": roster}}))
        .await;
    let mut wanted = cluster(NAME, 2, 3);
    let more = json!({
        "networkName": installation.cluster(),
        "keySource": {"type": "ExistingSecrets", "existingSecrets": {
            "secrets": SIGNERS.map(|index| format!("key-{index}")),
            "rosterConfigMap": "key-roster",
        }},
        "canary": {"intervalSeconds": 10},
    });
    let (Value::Object(spec), Value::Object(more)) = (&mut wanted["spec"], more) else { unreachable!() };
    spec.extend(more);
    namespace.apply(wanted).await;
}

/// A part of the network, as Prometheus finds its Pod: with the labels that Kubernetes says the Pod has. What becomes of
/// them is for the chart's monitors to say.
fn target(namespace: &Namespace, url: &str, component: &'static str, pod: &str) -> Target {
    let mut labels = BTreeMap::from([
        ("namespace".to_owned(), namespace.name.clone()),
        ("pod".to_owned(), pod.to_owned()),
        ("container".to_owned(), component.to_owned()),
    ]);
    // The operator is of no TssCluster: those that its canaries are of it tells itself.
    let monitor = if component == "operator" { "ServiceMonitor" } else { "PodMonitor" };
    if monitor == "PodMonitor" {
        for (label, value) in names::labels(NAME, component) {
            labels.insert(
                format!("__meta_kubernetes_pod_label_{}", label.replace(['.', '/', '-'], "_")),
                value,
            );
        }
    }
    let address = url.strip_prefix("http://").expect("plain HTTP").to_owned();
    Target { address, labels, scrape: monitors::of_kind(monitor) }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Requests, one after the other begins, until it is dropped: most are signed, one in ten is refused by the policy, one in
/// ten is no request.
pub(crate) struct Load {
    task: tokio::task::JoinHandle<()>,
}

impl Load {
    pub(crate) fn start(url: String) -> Self {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(200));
            for number in 0_u64.. {
                ticks.tick().await;
                let body = match number % 10 {
                    3 => json!({"message": format!("refused {number}"), "hash": "keccak256"}),
                    7 => json!({"message": number}),
                    _ => json!({"message": format!("signed {number}")}),
                };
                let request = http.post(format!("{url}/sign")).json(&body);
                // What becomes of it is what the dashboards tell.
                tokio::spawn(async move { drop(request.send().await) });
            }
        });
        Self { task }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Something that is no message comes to signer 1, and to the managers.
pub(crate) async fn garble(cluster: &str) {
    use lapin::{BasicProperties, Connection, ConnectionProperties, options::BasicPublishOptions};
    let uri = crate::installation::rabbitmq_uri();
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    for (exchange, key) in [("rounds", "1"), ("presence", "")] {
        let exchange = format!("tss.{cluster}.{exchange}");
        let options = BasicPublishOptions::default();
        channel
            .basic_publish(exchange.into(), key.into(), options, b"?", BasicProperties::default())
            .await
            .unwrap();
    }
    connection.close(200, "done".into()).await.unwrap();
}
