//! What docs/operations.md says, done as it stands there: its blocks of commands are read and run.
//!
//! There is no earlier release to upgrade from, so the chart before is made of this one: an older number, and
//! definitions without two of their fields.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::kubectl::{Namespace, kubectl, variable};
use crate::verify::assert_signs;
use crate::{condition, request};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder in which a person stands who has the project's files and a `values.yaml`.
pub(crate) struct Desk {
    folder: TempDir,
    /// The node that something is done with.
    node: String,
}

impl Desk {
    /// With these charts. The images are those of the programs just built, which the node has.
    pub(crate) fn new(charts: &Path) -> Self {
        let node = kubectl(&["get", "nodes", "-o=jsonpath={.items[0].metadata.name}"]);
        let desk = Self { folder: tempfile::tempdir().unwrap(), node };
        let image = |program: &str| json!({"repository": format!("tss/{program}"), "tag": "test"});
        let images = json!({
            "registry": "", "operator": image("operator"), "manager": image("manager"), "signer": image("signer"),
        });
        std::fs::write(desk.path("values.yaml"), json!({ "image": images }).to_string()).unwrap();
        symlink(root().join("config"), desk.path("config")).unwrap();
        symlink(charts, desk.path("charts")).unwrap();
        desk
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn take(&self, charts: &Path) {
        std::fs::remove_file(self.path("charts")).unwrap();
        symlink(charts, self.path("charts")).unwrap();
    }

    /// Does what stands under a heading.
    pub(crate) fn procedure(&self, heading: &str) -> String {
        self.run(&blocks(heading).concat()).unwrap_or_else(|error| panic!("{heading}: {error}"))
    }

    /// Does what stands in one block under a heading that has so many.
    pub(crate) fn step(&self, heading: &str, step: usize, of: usize) -> String {
        self.attempt(heading, step, of).unwrap_or_else(|error| panic!("{heading}, block {step}: {error}"))
    }

    /// The same for what may fail.
    pub(crate) fn attempt(&self, heading: &str, step: usize, of: usize) -> Result<String, String> {
        let blocks = blocks(heading);
        assert_eq!(blocks.len(), of, "each block under `{heading}` is run");
        self.run(&blocks[step - 1])
    }

    /// Runs commands, for five minutes at most.
    pub(crate) fn run(&self, commands: &str) -> Result<String, String> {
        let output = Command::new("timeout")
            .args(["300", "bash", "-euxo", "pipefail", "-c", commands])
            .current_dir(self.folder.path())
            .env("RABBITMQ_URI", variable("POD_RABBITMQ_URI"))
            .env("MONGODB_URI", variable("POD_MONGODB_URI"))
            .env("NODE", &self.node)
            .output()
            .expect("there is a bash");
        let (said, failed) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(said.into_owned()) } else { Err(format!("{said}\n{failed}")) }
    }
}

/// The blocks of commands under a heading of docs/operations.md.
fn blocks(heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let start = format!("\n## {heading} ✓\n");
    let (_, section) =
        text.split_once(&start).unwrap_or_else(|| panic!("`{start}` is not in docs/operations.md"));
    let section = section.split("\n## ").next().unwrap();
    let blocks: Vec<String> =
        section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect();
    assert!(!blocks.is_empty(), "there are no commands under `{heading}`");
    blocks
}

/// This project's charts.
pub(crate) fn charts() -> PathBuf {
    root().join("charts")
}

/// The charts of a version before this one.
fn charts_before(folder: &Path) -> PathBuf {
    let charts = folder.join("charts");
    let copied = Command::new("cp").arg("-rL").arg(root().join("charts")).arg(&charts).status().unwrap();
    assert!(copied.success());
    for chart in ["tss-network", "tss-network-crds"] {
        let path = charts.join(chart).join("Chart.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, after) = text.split_once("\nversion: ").expect("a chart has a version");
        let rest = after.split_once('\n').map_or("", |(_, rest)| rest);
        std::fs::write(&path, format!("{before}\nversion: 0.0.1\n{rest}")).unwrap();
    }
    // Another operator's Pod, so that the upgrade replaces it.
    let path = charts.join("tss-network/values.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let before = text.replace("\npodAnnotations: {}\n", "\npodAnnotations: {version: before}\n");
    assert_ne!(text, before, "the values have no podAnnotations");
    std::fs::write(&path, before).unwrap();
    let path = charts.join("tss-network-crds/files/tssclusters.tss.network.yaml");
    let mut definition: Value = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let spec = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    for newer in NEWER {
        spec.as_object_mut().unwrap().remove(newer).unwrap_or_else(|| panic!("there is no field {newer}"));
    }
    std::fs::write(&path, serde_saphyr::to_string(&definition).unwrap()).unwrap();
    charts
}

/// Fields that the version before had not.
const NEWER: [&str; 2] = ["canary", "traces"];

/// Stops, also when a test fails meanwhile.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Signs all the time, until it is told to stop; yields how many requests it has made.
fn sign_until(stop: &AtomicBool, namespace: &Namespace) -> usize {
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        namespace.apply(&request(
            &format!("steady-{made}"),
            "demo",
            &json!({"message": format!("steady {made}")}),
        ));
        made += 1;
        std::thread::sleep(Duration::from_millis(300));
    }
    made
}

#[test]
fn operations_are_as_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new(&charts_before(folder.path()));
    // Whatever another test has left.
    kubectl(&["wait", "--for=delete", "namespace/wallets", "--timeout=180s"]);
    let _ = desk.run("helm uninstall tss-network --namespace tss-network --wait");

    desk.procedure("Install");
    desk.procedure("Make a network");
    let namespace = Namespace::existing("wallets");
    let demo = namespace.get("tsscluster/demo");
    let sign = |name: &str| {
        namespace.apply(&request(name, "demo", &json!({"message": name})));
        namespace.wait(&format!("signingrequest/{name}"), "Complete", PATIENCE);
        assert_signs(&namespace.get(&format!("signingrequest/{name}")), &demo, name);
    };
    sign("first");
    let canary = json!({"canary": {"intervalSeconds": 10}});
    namespace.patch("tsscluster/demo", &canary);
    assert!(
        namespace.get("tsscluster/demo")["spec"].get("canary").is_none(),
        "the version before had no canary"
    );

    upgraded_while_it_signs(&desk, &namespace, &demo, &canary);
    test_tells_when_nothing_signs(&desk);
    desk.procedure("Serve the API over TLS");
    sign("over-tls");

    desk.procedure("Change the password of RabbitMQ or MongoDB");
    sign("other-password");
    desk.procedure("A signer's volume is lost");
    sign("other-volume");
    desk.procedure("New shares");
    sign("other-shares");

    desk.procedure("Back up");
    for index in 1..=3 {
        let backup = std::fs::read_to_string(desk.path(&format!("backup/signer-{index}.yaml"))).unwrap();
        let kept = backup.matches("kind: Secret").count();
        assert_eq!(kept, 2, "a share and an identity of signer {index}");
    }
    let mut kept = namespace.secrets();
    // In no backup: another one is signed.
    kept.retain(|secret| secret != "demo-manager-tls");
    drop(namespace);
    kubectl(&["wait", "--for=delete", "namespace/wallets", "--timeout=180s"]);

    desk.procedure("Restore");
    let namespace = Namespace::existing("wallets");
    let again = namespace.get("tsscluster/demo");
    assert_eq!(again["status"]["publicKey"], demo["status"]["publicKey"]);
    assert_eq!(namespace.secrets(), kept, "no share was made");
    namespace.apply(&request("restored", "demo", &json!({"message": "restored"})));
    namespace.wait("signingrequest/restored", "Complete", PATIENCE);
    assert_signs(&namespace.get("signingrequest/restored"), &demo, "restored");

    let left = desk.procedure("Uninstall");
    assert_eq!(left.matches("-e2-").count(), 3, "the shares stay, and only those: {left}");
    assert!(!left.contains("-e1-"), "{left}");
    assert_eq!(kubectl(&["get", "deployments", "-n", "tss-network", "-o", "name"]), "");
    let left = namespace.get("tsscluster/demo");
    assert_eq!(left["status"]["publicKey"], again["status"]["publicKey"]);
    assert_eq!(condition(&left, "Ready")["status"], "True", "the network goes on");
}

/// Requests come all the time, while operator, definitions, managers and signers are changed and changed back.
fn upgraded_while_it_signs(desk: &Desk, namespace: &Namespace, demo: &Value, newer: &Value) {
    let stop = AtomicBool::new(false);
    let made = std::thread::scope(|scope| {
        let signing = scope.spawn(|| sign_until(&stop, namespace));
        let stopping = Stop(&stop);
        desk.take(&charts());
        desk.procedure("Upgrade");
        // What is new works; and every Pod is changed.
        namespace.patch("tsscluster/demo", newer);
        namespace.patch("tsscluster/demo", &json!({"logLevel": "debug"}));
        namespace.until("the signers are being changed", PATIENCE, || {
            condition(&namespace.get("tsscluster/demo"), "Progressing")["status"] == "True"
        });
        namespace.wait("tsscluster/demo", "Progressing=False", PATIENCE);
        namespace.until("a canary is signed", PATIENCE, || {
            let canaries = namespace.list("signingrequests", "tss.network/canary=demo");
            canaries.iter().any(|canary| canary["status"]["phase"] == "Complete")
        });
        desk.run("helm rollback tss-network --namespace tss-network --wait").unwrap();
        desk.procedure("Upgrade");
        drop(stopping);
        signing.join().unwrap()
    });
    for number in 0..made {
        namespace.wait(&format!("signingrequest/steady-{number}"), "Complete", PATIENCE);
        let signed = namespace.get(&format!("signingrequest/steady-{number}"));
        assert_signs(&signed, demo, &format!("steady {number}"));
    }
    println!("requests made during upgrade, rollout and rollback, all signed: {made}");
    assert!(made > 20, "{made}");
}

/// `helm test` fails when the network that it is to try does not sign.
fn test_tells_when_nothing_signs(desk: &Desk) {
    let upgrade =
        "helm upgrade tss-network charts/tss-network --namespace tss-network --reuse-values --wait --set";
    desk.run(&format!("{upgrade} test.cluster=nobody,test.namespace=wallets,test.timeout=5s")).unwrap();
    let error = desk
        .run("helm test tss-network --namespace tss-network --logs")
        .expect_err("there is no such network");
    assert!(error.contains("nobody"), "{error}");
}
