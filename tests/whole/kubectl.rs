//! `kubectl`, as a person uses it.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::operations::{Desk, charts};

/// A variable that `tests/run kubernetes` sets.
pub(crate) fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: these tests are run by `tests/run kubernetes`"))
}

fn run(arguments: &[&str], input: Option<&str>) -> Result<String, String> {
    variable("KUBECONFIG");
    let mut command = Command::new("kubectl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("kubectl is installed by tests/kubernetes/install");
    child.stdin.take().unwrap().write_all(input.unwrap_or_default().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(format!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }
}

/// Runs `kubectl`, which must succeed; yields what it prints.
pub(crate) fn kubectl(arguments: &[&str]) -> String {
    run(arguments, None).unwrap_or_else(|error| panic!("{error}"))
}

/// Installs the operator as docs/operations.md says, with the images of the programs just built.
pub(crate) fn operator() {
    Desk::new(&charts()).procedure("Install");
}

/// A metric of the operator, with its labels; 0 when it is not there.
pub(crate) fn operator_metric(series: &str) -> f64 {
    let name = "-o=jsonpath={.items[0].metadata.name}";
    let pod = kubectl(&[
        "-n",
        "tss-network",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=tss-network-operator",
        name,
    ]);
    let all =
        kubectl(&["get", "--raw", &format!("/api/v1/namespaces/tss-network/pods/{pod}:8081/proxy/metrics")]);
    let line = all.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// Runs `tssctl` in a folder; yields what it prints.
pub(crate) fn tssctl(folder: &Path, arguments: &[&str]) -> String {
    tssctl_of("tss", folder, arguments)
}

fn tssctl_of(network: &str, folder: &Path, arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join("target/debug/tssctl"))
        .args(arguments)
        .env("TSS_CLUSTER", network)
        .env("CONFIG_DIR", root.join("config"))
        .current_dir(folder)
        .output()
        .expect("tests/run has built tssctl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the files of a 2-of-3 key with `tssctl keygen`; yields its public key.
pub(crate) fn tssctl_keygen(folder: &Path, network: &str) -> String {
    let said = tssctl_of(network, folder, &["keygen", "--out", "."]);
    let key = said
        .split_whitespace()
        .find(|word| word.len() == 66 && word.bytes().all(|byte| byte.is_ascii_hexdigit()));
    key.unwrap_or_else(|| panic!("no public key in: {said}")).to_owned()
}

/// A namespace of one test, in which only restricted Pods run; deleted at its end.
pub(crate) struct Namespace(String);

impl Namespace {
    /// The namespace, with the Secrets that say where RabbitMQ and MongoDB are.
    pub(crate) fn new(name: &str) -> Self {
        let namespace = Self(name.to_owned());
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        run(&["apply", "-f", "-"], Some(&object.to_string())).unwrap_or_else(|error| panic!("{error}"));
        for (secret, uri) in [("rabbitmq", "POD_RABBITMQ_URI"), ("mongodb", "POD_MONGODB_URI")] {
            let literal = format!("--from-literal=uri={}", variable(uri));
            namespace.run(&["create", "secret", "generic", secret, &literal]);
        }
        namespace
    }

    /// One that is there; deleted, too.
    pub(crate) fn existing(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// `kubectl` in this namespace.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        kubectl(&[&["-n", &self.0], arguments].concat())
    }

    /// `kubectl apply`.
    pub(crate) fn apply(&self, object: &Value) {
        let applied = run(&["-n", &self.0, "apply", "-f", "-"], Some(&object.to_string()));
        applied.unwrap_or_else(|error| panic!("{error}"));
    }

    /// `kubectl patch` of a spec.
    pub(crate) fn patch(&self, object: &str, spec: &Value) {
        self.run(&["patch", object, "--type=merge", "-p", &json!({ "spec": spec }).to_string()]);
    }

    /// `kubectl wait --for=condition=…`.
    pub(crate) fn wait(&self, object: &str, condition: &str, patience: Duration) {
        let condition = format!("--for=condition={condition}");
        let timeout = format!("--timeout={}s", patience.as_secs());
        if let Err(error) = run(&["-n", &self.0, "wait", object, &condition, &timeout], None) {
            panic!("{error}\n{}", self.tell(object));
        }
    }

    /// What a person would look at.
    fn tell(&self, object: &str) -> String {
        let looks: [&[&str]; 4] = [
            &["get", object, "-o", "yaml"],
            &["get", "pods,jobs,statefulsets,deployments", "-o", "wide"],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "-n", "tss-network", "deployment/tss-network-operator", "--tail=50"],
        ];
        let look = |arguments: &[&str]| {
            run(&[&["-n", &self.0], arguments].concat(), None).unwrap_or_else(|error| error)
        };
        looks.map(look).join("\n")
    }

    /// An object as it is.
    pub(crate) fn get(&self, object: &str) -> Value {
        serde_json::from_str(&self.run(&["get", object, "-o", "json"])).unwrap()
    }

    /// The objects of a kind with a label.
    pub(crate) fn list(&self, kind: &str, label: &str) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.run(&["get", kind, "-l", label, "-o", "json"])).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Whether there is such an object.
    pub(crate) fn has(&self, object: &str) -> bool {
        !self.run(&["get", object, "--ignore-not-found", "-o", "name"]).is_empty()
    }

    /// The names of objects of a kind with a label.
    pub(crate) fn names(&self, kind: &str, label: &str) -> Vec<String> {
        self.run(&["get", kind, "-l", label, "-o", "name"]).lines().map(str::to_owned).collect()
    }

    /// How many objects of a kind there are.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.run(&["get", kind, "-o", "name"]).lines().count()
    }

    /// The names of all Secrets, with the uids that tell whether one was made anew.
    pub(crate) fn secrets(&self) -> Vec<String> {
        let columns = "-o=jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}";
        self.run(&["get", "secrets", columns]).lines().map(str::to_owned).collect()
    }

    /// Waits until something is so.
    pub(crate) fn until(&self, what: &str, patience: Duration, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + patience;
        while !is_so() {
            assert!(Instant::now() < end, "not within {patience:?}: {what}\n{}", self.tell("tsscluster"));
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tell("tsscluster"));
        }
        let _ = run(&["delete", "namespace", &self.0, "--wait=false"], None);
    }
}
