//! What docs/operations.md says of parts that are lost: RabbitMQ, MongoDB, a node, everything. They are really
//! lost, by the command in `TEST_OUTAGE`.

use std::process::Command;
use std::time::{Duration, Instant};

use mongodb::bson::Document;
use serde_json::{Value, json};

use crate::kubectl::{Namespace, kubectl, variable};
use crate::operations::{Desk, charts};
use crate::verify::assert_signs;
use crate::{PATIENCE, condition, request};

/// How long an accepted request has, by the TssCluster's `signingTimeoutSeconds`.
const SIGNING_TIMEOUT: Duration = Duration::from_secs(60);

/// Has parts fail that are not Kubernetes' to stop, and come back.
struct Outage(String);

impl Outage {
    fn new() -> Self {
        Self(std::env::var("TEST_OUTAGE").unwrap_or_else(|_| {
            panic!(
                "TEST_OUTAGE is not set: expected a command that stops and starts RabbitMQ, MongoDB and the node, as \
                 tests/kubernetes/README.md tells; `tests/run chart` sets it for the node that it starts"
            )
        }))
    }

    fn try_to(&self, part: &str, change: &str) -> Result<(), String> {
        let command = format!("{} \"$@\"", self.0);
        let output = Command::new("timeout")
            .args(["180", "bash", "-c", &command, "TEST_OUTAGE", part, change])
            .output()
            .expect("there is a bash");
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("{} {part} {change}: {}", self.0, String::from_utf8_lossy(&output.stderr)))
        }
    }

    /// Has a part be so.
    fn set(&self, part: &str, change: &str) {
        self.try_to(part, change).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Outage {
    /// A test that failed leaves nothing broken to the next.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for part in ["rabbitmq", "mongodb", "node"] {
                if let Err(error) = self.try_to(part, "back") {
                    eprintln!("{error}");
                }
            }
            let usable = "kubectl taint nodes --all node.kubernetes.io/out-of-service-; \
                          kubectl uncordon --selector=kubernetes.io/os";
            let _ = Command::new("bash").args(["-c", usable]).status();
        }
    }
}

/// A network whose parts are lost.
struct Scene {
    desk: Desk,
    outage: Outage,
    namespace: Namespace,
    demo: Value,
}

impl Scene {
    fn ask(&self, name: &str, deadline: Duration) {
        let spec = json!({"message": name, "deadlineSeconds": deadline.as_secs()});
        self.namespace.apply(&request(name, "demo", &spec));
    }

    /// Asks for a signature while RabbitMQ is frozen: it is accepted, and not signed as long as that is so.
    fn accepted_only(&self, name: &str, deadline: Duration) -> Instant {
        self.outage.set("rabbitmq", "frozen");
        self.ask(name, deadline);
        self.namespace.wait(&format!("signingrequest/{name}"), "Accepted", PATIENCE);
        Instant::now()
    }

    /// Asks for a signature while the network does not sign: no manager hears of it.
    fn waits(&self, name: &str) {
        self.ask(name, PATIENCE * 2);
        self.namespace.until("it waits for the network", PATIENCE, || {
            let object = self.namespace.get(&format!("signingrequest/{name}"));
            condition(&object, "Accepted")["reason"] == "ClusterNotReady"
        });
    }

    fn assert_signed(&self, name: &str) {
        self.namespace.wait(&format!("signingrequest/{name}"), "Complete", PATIENCE);
        assert_signs(&self.namespace.get(&format!("signingrequest/{name}")), &self.demo, name);
    }

    /// What was accepted is signed, unless the outage took longer than it may wait.
    fn assert_not_lost(&self, name: &str, accepted: Instant) {
        let object = format!("signingrequest/{name}");
        self.namespace.until("an accepted request has ended", PATIENCE, || {
            let phase = self.namespace.get(&object)["status"]["phase"].clone();
            phase == "Complete" || phase == "Failed"
        });
        let failed = condition(&self.namespace.get(&object), "Failed");
        if failed["status"] == "True" {
            assert_eq!(failed["reason"], "TimedOut", "{failed}");
            assert!(accepted.elapsed() >= SIGNING_TIMEOUT, "{failed}");
            println!("{name}: the outage took longer than it may wait");
        } else {
            self.assert_signed(name);
        }
    }

    fn condition(&self, kind: &str) -> Value {
        condition(&self.namespace.get("tsscluster/demo"), kind)
    }

    /// RabbitMQ is killed, and another one, which is empty, starts in its place.
    fn rabbitmq(&self) {
        let heading = "RabbitMQ is lost";
        let accepted = self.accepted_only("before-rabbitmq", PATIENCE);
        self.outage.set("rabbitmq", "lost");
        let said = self.desk.step(heading, 1, 2);
        assert!(said.contains("no connection to RabbitMQ"), "{said}");
        self.waits("without-rabbitmq");
        self.outage.set("rabbitmq", "new");
        self.desk.step(heading, 2, 2);
        self.assert_signed("without-rabbitmq");
        self.assert_not_lost("before-rabbitmq", accepted);
    }

    /// MongoDB is killed, and starts again with its data.
    fn mongodb(&self) {
        let heading = "MongoDB is lost";
        let accepted = self.accepted_only("before-mongodb", PATIENCE);
        self.outage.set("mongodb", "lost");
        self.outage.set("rabbitmq", "back");
        let said = self.desk.step(heading, 1, 3);
        assert!(said.contains("the store"), "{said}");
        assert_eq!(self.condition("QuorumAvailable")["status"], "True", "signers do without it");
        assert_eq!(self.condition("Ready")["reason"], "ManagerNotReady");
        self.waits("without-mongodb");
        self.outage.set("mongodb", "back");
        self.desk.step(heading, 2, 3);
        self.assert_signed("without-mongodb");
        self.assert_not_lost("before-mongodb", accepted);
    }

    /// MongoDB is killed, and another one, which is empty, starts in its place. What was accepted before is looked at
    /// later: see [`Scene::results_are_unknown`].
    fn data_of_mongodb(&self) {
        let heading = "MongoDB is lost";
        self.accepted_only("forgotten", Duration::from_secs(20));
        self.outage.set("mongodb", "lost");
        self.outage.set("rabbitmq", "back");
        self.desk.step(heading, 1, 3);
        let managers = || {
            let label = "app.kubernetes.io/component=manager";
            let uids = self.namespace.list("pods", label).into_iter().map(|pod| {
                let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
                (pod["metadata"]["uid"].to_string(), restarts.to_string())
            });
            uids.collect::<Vec<_>>()
        };
        let before = managers();
        self.outage.set("mongodb", "new");
        self.desk.step(heading, 2, 3);
        let indexes = indexes(&self.database());
        assert!(indexes.contains(&"idempotency_keys".to_owned()), "nothing is signed twice: {indexes:?}");
        assert_eq!(managers(), before, "no manager was started anew");
        self.ask("after-mongodb", PATIENCE);
        self.assert_signed("after-mongodb");

        // Nor do those that start now lack anything.
        self.namespace.run(&["rollout", "restart", "deployment/demo-manager"]);
        self.namespace.run(&["rollout", "status", "deployment/demo-manager", "--timeout=3m"]);
        self.ask("other-managers", PATIENCE);
        self.assert_signed("other-managers");
        assert_eq!(
            self.namespace.get("tsscluster/demo")["status"]["addresses"],
            self.demo["status"]["addresses"]
        );
    }

    fn database(&self) -> String {
        let map = self.namespace.get("configmap/demo-manager-config");
        let text = map["data"]["default.toml"].as_str().unwrap();
        let config: toml::Table = text.parse().unwrap();
        config["mongodb_database"].as_str().unwrap().to_owned()
    }

    /// Whom the lost database knew: what was signed stays so, and of what was not, nobody knows.
    fn results_are_unknown(&self) {
        self.namespace.wait("signingrequest/forgotten", "Failed", PATIENCE);
        let failed = condition(&self.namespace.get("signingrequest/forgotten"), "Failed");
        assert_eq!(failed["reason"], "ResultUnknown", "{failed}");
        let unknown = self.desk.step("MongoDB is lost", 3, 3);
        assert_eq!(unknown.lines().count(), 1, "{unknown}");
        assert!(unknown.starts_with("forgotten "), "{unknown}");
        self.assert_signed("without-mongodb");
    }

    /// The only node is emptied as far as the quorum allows, and used again.
    fn node_is_emptied(&self) {
        let heading = "Empty a node";
        let refused = self.desk.attempt(heading, 1, 2).expect_err("there is no other node");
        assert!(refused.contains("would violate the pod's disruption budget"), "{refused}");
        self.namespace.until("one signer has no node", PATIENCE, || {
            let demo = self.namespace.get("tsscluster/demo");
            let signers = demo["status"]["signers"].as_array().unwrap();
            demo["status"]["readySigners"] == "2/3"
                && signers.iter().any(|signer| signer["state"].as_str().unwrap().contains("no node for it"))
        });
        assert_eq!(self.condition("QuorumAvailable")["status"], "True");
        self.ask("emptied", PATIENCE);
        self.assert_signed("emptied");
        self.desk.step(heading, 2, 2);
    }

    /// The only node is silent, then switched off, given up, and back.
    fn node(&self) {
        let heading = "A node is lost";
        let said = self.desk.step(heading, 1, 4);
        assert!(said.contains("0 of 2 signers would be left"), "{said}");
        self.outage.set("node", "silent");
        let said = self.desk.step(heading, 2, 4);
        assert!(said.contains("condition met"), "{said}");
        // The operator runs on, though nobody knows.
        self.namespace.wait("tsscluster/demo", "QuorumAvailable=False", PATIENCE);
        self.namespace.until("no signer counts", PATIENCE, || {
            self.condition("ThresholdResilient")["reason"] == "NoSigners"
        });
        self.waits("without-node");

        let pods = || {
            let pods = self.namespace.list("pods", "tss.network/cluster=demo");
            pods.into_iter().map(|pod| pod["metadata"]["uid"].to_string()).collect::<Vec<_>>()
        };
        let before = pods();
        self.outage.set("node", "off");
        self.desk.step(heading, 3, 4);
        assert!(pods().iter().all(|pod| !before.contains(pod)), "they were given up");
        self.outage.set("node", "back");
        self.desk.step(heading, 4, 4);
        self.assert_signed("without-node");
    }

    /// Only what t signers need is left of everything; then one more is found.
    fn everything(self) {
        let Self { desk, namespace, demo, .. } = self;
        let shares = namespace.secrets();
        desk.procedure("Back up");
        drop(namespace);
        kubectl(&["wait", "--for=delete", "namespace/wallets", "--timeout=180s"]);
        let (file, elsewhere) = (desk.path("backup/signer-3.yaml"), desk.path("signer-3.yaml"));
        std::fs::rename(&file, &elsewhere).unwrap();

        desk.procedure("Restore");
        let namespace = Namespace::existing("wallets");
        namespace.apply(&request("two-are-left", "demo", &json!({"message": "two-are-left"})));
        namespace.wait("signingrequest/two-are-left", "Complete", PATIENCE);
        assert_signs(&namespace.get("signingrequest/two-are-left"), &demo, "two-are-left");
        namespace.until("it is told what signer 3 waits for", PATIENCE, || {
            let state = &namespace.get("tsscluster/demo")["status"]["signers"][2]["state"];
            state.as_str().is_some_and(|state| state.contains("waits for its volumes"))
        });
        let heading = "All is lost";
        namespace.until("Kubernetes tells what is missing", PATIENCE, || {
            desk.step(heading, 1, 2).contains("secret \"demo-signer-3-identity\" not found")
        });
        let again = namespace.get("tsscluster/demo");
        assert_eq!(again["status"]["addresses"], demo["status"]["addresses"]);
        assert_eq!(condition(&again, "Ready")["status"], "True");
        assert_eq!(namespace.count("jobs"), 0, "no key is made");

        std::fs::rename(&elsewhere, &file).unwrap();
        desk.step(heading, 2, 2);
        assert_eq!(namespace.secrets(), shares);
    }
}

/// The names of the indexes of a database's requests.
fn indexes(database: &str) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = mongodb::Client::with_uri_str(variable("POD_MONGODB_URI")).await.unwrap();
        let requests = client.database(database).collection::<Document>("signing_requests");
        requests.list_index_names().await.unwrap()
    })
}

#[test]
fn what_is_lost_comes_back_as_it_is_written() {
    let outage = Outage::new();
    let nodes = kubectl(&["get", "nodes", "-o", "name"]);
    assert_eq!(nodes.lines().count(), 1, "with one node, things are as this test expects: {nodes}");
    kubectl(&["wait", "--for=delete", "namespace/wallets", "--timeout=180s"]);
    let desk = Desk::new(&charts());
    desk.procedure("Install");
    desk.procedure("Make a network");
    let namespace = Namespace::existing("wallets");
    namespace.wait("tsscluster/demo", "Progressing=False", PATIENCE);
    let demo = namespace.get("tsscluster/demo");
    let scene = Scene { desk, outage, namespace, demo };
    let started = Instant::now();
    let told =
        |what: &str| println!("{what}: {:.0} s after the network was made", started.elapsed().as_secs_f64());
    scene.rabbitmq();
    told("RabbitMQ was lost");
    scene.mongodb();
    told("MongoDB was lost");
    scene.data_of_mongodb();
    told("MongoDB's data were lost");
    scene.node_is_emptied();
    told("the node was emptied");
    scene.node();
    told("the node was lost");
    scene.results_are_unknown();
    told("results were unknown");
    scene.everything();
    told("everything was lost");
}
