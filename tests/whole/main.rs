//! The whole network on a real node: the operator as people install it, and what they do with `kubectl`.
//!
//! `tests/run kubernetes` starts the node, RabbitMQ and the MongoDB-wire server, loads the images of the programs just
//! built, and runs this in the node's network. The tests use `kubectl` and nothing else of Kubernetes, as their users do.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

mod kubectl;
mod loss;
mod operations;
mod renewal;
mod verify;

use kubectl::{Namespace, kubectl, operator, operator_metric};
use verify::{assert_signs, ethereum_address};

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(180);

fn cluster(name: &str) -> Value {
    json!({
        "apiVersion": "tss.network/v1alpha1",
        "kind": "TssCluster",
        "metadata": {"name": name},
        "spec": {
            "threshold": 2,
            "signers": 3,
            "auth": {"type": "None"},
            "rabbitmq": {"uriSecret": {"name": "rabbitmq"}},
            "mongodb": {"uriSecret": {"name": "mongodb"}},
        },
    })
}

fn request(name: &str, cluster: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "tss.network/v1alpha1",
        "kind": "SigningRequest",
        "metadata": {"name": name},
        "spec": {"clusterRef": {"name": cluster}},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

/// The condition of an object.
fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default()
}

fn ready(namespace: &Namespace, name: &str) -> Value {
    namespace.wait(&format!("tsscluster/{name}"), "Ready", PATIENCE);
    namespace.get(&format!("tsscluster/{name}"))
}

/// Has a message signed and checked; yields how long it took from `kubectl apply` on.
fn sign(namespace: &Namespace, name: &str, cluster: &Value, message: &str) -> Duration {
    let started = Instant::now();
    let of = cluster["metadata"]["name"].as_str().unwrap();
    namespace.apply(&request(name, of, &json!({"message": message})));
    namespace.wait(&format!("signingrequest/{name}"), "Complete", PATIENCE);
    let took = started.elapsed();
    assert_signs(&namespace.get(&format!("signingrequest/{name}")), cluster, message);
    took
}

#[test]
fn an_applied_cluster_signs_what_is_applied_loses_pods_and_comes_back_with_its_key() {
    operator();
    let namespace = Namespace::new("wallets");
    let started = Instant::now();
    namespace.apply(&cluster("demo"));
    let demo = ready(&namespace, "demo");
    println!("from `kubectl apply` to Ready: {:.1} s", started.elapsed().as_secs_f64());
    let status = &demo["status"];
    let derived = status["addresses"]["publicKey"].as_str().unwrap();
    assert_eq!(status["addresses"]["ethereum"], ethereum_address(derived));
    assert_eq!((&status["epoch"], &status["threshold"]), (&json!(1), &json!("2-of-3")));
    // All three signers are on one node.
    assert_eq!(condition(&demo, "ThresholdResilient")["reason"], "NodeLossStopsSigning");

    // One at a time, and many at once.
    let mut times: Vec<Duration> =
        (0..5).map(|i| sign(&namespace, &format!("one-{i}"), &demo, "hello")).collect();
    times.sort();
    println!("a SigningRequest on an idle cluster, from `kubectl apply` to Complete: {times:.2?}");
    let started = Instant::now();
    let message = |i: usize| format!("message {i}");
    let many: Vec<Value> =
        (0..50).map(|i| request(&format!("many-{i}"), "demo", &json!({"message": message(i)}))).collect();
    namespace.apply(&json!({"apiVersion": "v1", "kind": "List", "items": many}));
    for i in 0..50 {
        namespace.wait(&format!("signingrequest/many-{i}"), "Complete", PATIENCE);
    }
    println!("50 SigningRequests at once: {:.1} s", started.elapsed().as_secs_f64());
    for i in 0..50 {
        assert_signs(&namespace.get(&format!("signingrequest/many-{i}")), &demo, &message(i));
    }

    // A signer dies: two of three go on, and it comes back.
    namespace.run(&["delete", "pod", "demo-signer-1-0", "--grace-period=0", "--force", "--wait=false"]);
    let took = sign(&namespace, "without-signer-1", &demo, "two are enough");
    println!("while a signer is away: {:.2} s", took.as_secs_f64());
    namespace.until("all signers are ready again", PATIENCE, || {
        namespace.get("tsscluster/demo")["status"]["readySigners"] == "3/3"
    });

    // Every manager dies, with a request that one of them has accepted.
    namespace.apply(&request("orphan", "demo", &json!({"message": "who has me?"})));
    namespace.wait("signingrequest/orphan", "Accepted", PATIENCE);
    namespace.run(&[
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/component=manager",
        "--grace-period=0",
        "--force",
    ]);
    namespace.wait("signingrequest/orphan", "Complete", PATIENCE);
    assert_signs(&namespace.get("signingrequest/orphan"), &demo, "who has me?");

    // The operator dies while a request is on its way.
    namespace.apply(&request("restarted", "demo", &json!({"message": "once"})));
    kubectl(&["-n", "tss-network", "delete", "pod", "--all", "--grace-period=0", "--force"]);
    namespace.wait("signingrequest/restarted", "Complete", PATIENCE);
    assert_signs(&namespace.get("signingrequest/restarted"), &demo, "once");

    // The cluster goes; what must not be lost stays; it comes back with the same key.
    let kept = namespace.secrets();
    assert_eq!(
        kept.len(),
        6 + 2,
        "a share and an identity for each signer, RabbitMQ's and MongoDB's: {kept:?}"
    );
    ready(&namespace, "demo");
    namespace.run(&["delete", "tsscluster", "demo", "--cascade=foreground"]);
    namespace.until("its Pods are gone", PATIENCE, || namespace.count("pods") == 0);
    assert_eq!(namespace.secrets(), kept);
    assert_eq!(namespace.count("persistentvolumeclaims"), 3);
    for gone in
        ["statefulsets", "deployments", "services", "networkpolicies", "roles", "rolebindings", "jobs"]
    {
        assert_eq!(namespace.count(gone), 0, "{gone}");
    }
    namespace.apply(&cluster("demo"));
    let again = ready(&namespace, "demo");
    assert_eq!(again["status"]["addresses"], status["addresses"]);
    assert_eq!(namespace.secrets(), kept, "no share was made");
    sign(&namespace, "again", &again, "the same key");
}

#[test]
fn what_cannot_be_signed_fails_with_a_reason_and_policy_is_the_signers() {
    operator();
    let namespace = Namespace::new("strict");
    namespace.apply(&json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "policy"},
        "data": {"policy.toml": "paths = [\"0/1/*\"]\nhashes = [\"sha256\"]\n"},
    }));
    let mut strict = cluster("strict");
    strict["spec"]["policy"] = json!({"configMap": "policy"});
    strict["spec"]["manager"] = json!({"replicas": 1});
    strict["spec"]["canary"] = json!({"intervalSeconds": 10});
    // Asked for before there is a key: signed when there is one.
    namespace.apply(&request("early", "strict", &json!({"message": "early", "deadlineSeconds": 300})));
    namespace.apply(&strict);
    let strict = ready(&namespace, "strict");
    namespace.wait("signingrequest/early", "Complete", PATIENCE);
    assert_signs(&namespace.get("signingrequest/early"), &strict, "early");

    // The canary goes the same way, again and again.
    let canaries = |phase: &str| {
        let found = namespace.list("signingrequests", "tss.network/canary=strict");
        found.into_iter().filter(|canary| canary["status"]["phase"] == phase).collect::<Vec<_>>()
    };
    namespace.until("two canaries are signed", PATIENCE, || canaries("Complete").len() >= 2);
    assert_signs(&canaries("Complete")[0], &strict, tss_operator::canary::MESSAGE);
    let counted = |outcome: &str| {
        operator_metric(&format!(
            "tss_canary_total{{cluster=\"strict\",namespace=\"{}\",outcome=\"{outcome}\"}}",
            namespace.name()
        ))
    };
    namespace.until("they are counted", PATIENCE, || counted("completed") >= 2.0);
    assert_eq!(counted("failed"), 0.0);
    namespace.patch("tsscluster/strict", &json!({"canary": {"derivationPath": "7"}}));
    namespace.until("one that the policy forbids has failed", PATIENCE, || {
        !canaries("Failed").is_empty() && counted("failed") >= 1.0
    });
    namespace.patch("tsscluster/strict", &json!({"canary": null}));

    for (name, of, spec, reason, part) in [
        ("other-path", "strict", json!({"message": "m", "derivationPath": "7"}), "PolicyRefused", "path"),
        ("other-hash", "strict", json!({"message": "m", "hash": "keccak256"}), "PolicyRefused", "hash"),
        ("digest", "strict", json!({"digest": "ab".repeat(32)}), "PolicyRefused", "hash"),
        ("not-hex", "strict", json!({"message": "xyz", "encoding": "hex"}), "InvalidRequest", "hex"),
        ("nobody", "missing", json!({"message": "m", "deadlineSeconds": 2}), "DeadlineExceeded", "missing"),
    ] {
        namespace.apply(&request(name, of, &spec));
        namespace.wait(&format!("signingrequest/{name}"), "Failed", PATIENCE);
        let object = namespace.get(&format!("signingrequest/{name}"));
        let failed = condition(&object, "Failed");
        assert_eq!(failed["reason"], reason, "{name}: {failed}");
        assert!(failed["message"].as_str().unwrap().contains(part), "`{part}` is missing in: {failed}");
        assert!(object["status"].get("signature").is_none());
    }
    // What is finished stays as it is, and goes after its time.
    namespace.apply(&request("short", "strict", &json!({"message": "m", "ttlSecondsAfterFinished": 1})));
    namespace.until("it is deleted after its time", PATIENCE, || !namespace.has("signingrequest/short"));
}

#[test]
fn killing_pods_of_key_generation_at_any_time_leaves_one_key_or_none() {
    operator();
    let namespace = Namespace::new("killed");
    let mut killed = cluster("killed");
    killed["spec"]["manager"] = json!({"replicas": 1});
    namespace.apply(&killed);
    // Each kill comes later than the one before: identities, the protocol, storing, keeping.
    let mut kills = 0;
    for round in 0..8_u64 {
        std::thread::sleep(Duration::from_millis(700 + 450 * round));
        let pods = namespace.names("pods", "app.kubernetes.io/component=key-generation");
        if let Some(pod) = pods.get(usize::try_from(round).unwrap() % pods.len().max(1)) {
            namespace.run(&[
                "delete",
                pod,
                "--grace-period=0",
                "--force",
                "--wait=false",
                "--ignore-not-found",
            ]);
            kills += 1;
        }
    }
    assert!(kills > 2, "key generation was over before it was disturbed");
    namespace.wait("tsscluster/killed", "Ready", PATIENCE * 2);
    let killed = namespace.get("tsscluster/killed");
    println!("Pods of key generation killed: {kills}");
    // What unfinished tries had stored goes with their Jobs.
    namespace.until("one share and one identity for each signer are left", PATIENCE, || {
        namespace.secrets().len() == 6 + 2
    });
    let secrets = namespace.secrets();
    let mut key: Vec<&str> =
        secrets.iter().filter_map(|name| name.split_once("-e1-")).map(|(_, key)| key).collect();
    key.dedup();
    let public_key = killed["status"]["publicKey"].as_str().unwrap();
    assert_eq!(key, [&public_key[2..12]], "{secrets:?}");
    sign(&namespace, "after", &killed, "one key");
}

#[test]
fn shares_made_elsewhere_are_taken_over() {
    operator();
    let namespace = Namespace::new("existing");
    let folder = tempfile::tempdir().unwrap();
    let made = kubectl::tssctl_keygen(folder.path(), "elsewhere");
    let file = |name: String| folder.path().join(name).display().to_string();
    for index in 1..=3 {
        let share = format!("--from-file=share={}", file(format!("signer{index}.store")));
        let identity = format!("--from-file=identity={}", file(format!("signer{index}.identity")));
        namespace.run(&["create", "secret", "generic", &format!("share-{index}"), &share, &identity]);
    }
    let roster = format!("--from-file=roster.toml={}", file("roster.toml".into()));
    namespace.run(&["create", "configmap", "roster", &roster]);
    let mut existing = cluster("existing");
    existing["spec"]["networkName"] = json!("elsewhere");
    existing["spec"]["manager"] = json!({"replicas": 1});
    existing["spec"]["keySource"] = json!({
        "type": "ExistingSecrets",
        "existingSecrets": {"secrets": ["share-1", "share-3", "share-2"], "rosterConfigMap": "roster"},
    });
    // In the wrong order first: every signer is told apart from the others.
    namespace.apply(&existing);
    namespace.until("the wrong order is refused", PATIENCE, || {
        let failed = condition(&namespace.get("tsscluster/existing"), "KeyGenerated");
        failed["message"].as_str().unwrap_or_default().contains("inspect of signer 2")
    });
    assert_eq!(namespace.count("statefulsets"), 0, "no signer starts");
    namespace.run(&["delete", "tsscluster", "existing"]);
    existing["spec"]["keySource"]["existingSecrets"]["secrets"] = json!(["share-1", "share-2", "share-3"]);
    namespace.apply(&existing);
    let existing = ready(&namespace, "existing");
    assert_eq!(existing["status"]["publicKey"], made);
    sign(&namespace, "taken-over", &existing, "made elsewhere");
}
