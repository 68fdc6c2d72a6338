//! `helm` and other programs, as a person runs them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) const CHARTS: [&str; 3] = ["tss-network-crds", "tss-network", "backing"];

/// What Kubernetes knows once tss-network-crds is there.
pub(crate) const TSS_CLUSTER: &str = "tss.network/v1alpha1/TssCluster";

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every object of a YAML text.
pub(crate) fn objects(yaml: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    all.into_iter().filter(|object| !object.is_null()).collect()
}

/// What a program that ran printed.
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program of the PATH.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Only what is in the repository: no cluster of the person who runs this, and no settings.
    command.env("KUBECONFIG", "/dev/null").current_dir(root());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("{program}: {error}; `tests/run chart` installs it and puts it on the PATH")
    });
    let mut stdin = child.stdin.take().unwrap();
    // It may end before it has read everything; then it says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A chart with values, under a release's name.
#[derive(Clone)]
pub(crate) struct Chart {
    folder: PathBuf,
    release: String,
    namespace: String,
    values: String,
    apis: Vec<&'static str>,
}

impl Chart {
    /// As the README installs it.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            folder: root().join("charts").join(name),
            release: name.into(),
            namespace: "tss-network".into(),
            values: "{}".into(),
            apis: Vec::new(),
        }
    }

    /// A copy of it elsewhere.
    pub(crate) fn at(self, folder: &TempDir) -> Self {
        Self { folder: folder.path().into(), ..self }
    }

    /// With these values, as YAML.
    pub(crate) fn values(self, yaml: impl Into<String>) -> Self {
        Self { values: yaml.into(), ..self }
    }

    /// Under another name, in another namespace.
    pub(crate) fn release(self, name: &str, namespace: &str) -> Self {
        Self { release: name.into(), namespace: namespace.into(), ..self }
    }

    /// Where Kubernetes knows these kinds as well.
    pub(crate) fn apis(self, apis: &[&'static str]) -> Self {
        Self { apis: apis.into(), ..self }
    }

    fn helm(&self, command: &[&str]) -> Result<String, String> {
        let folder = self.folder.display().to_string();
        let mut arguments = command.to_vec();
        arguments.extend([self.release.as_str(), &folder, "--namespace", &self.namespace, "--values", "-"]);
        for api in &self.apis {
            arguments.extend(["--api-versions", api]);
        }
        let output = run("helm", &arguments, &self.values);
        if output.success { Ok(output.stdout) } else { Err(output.stderr) }
    }

    /// What is made of it, as text, or what Helm says against it.
    pub(crate) fn render(&self) -> Result<String, String> {
        self.helm(&["template"])
    }

    /// The objects that are made of it.
    pub(crate) fn objects(&self) -> Vec<Value> {
        objects(&self.render().unwrap_or_else(|error| panic!("{error}\nvalues:\n{}", self.values)))
    }

    /// What a person reads after it was installed. `--api-versions` has no part in it.
    pub(crate) fn notes(&self) -> String {
        let all = self.helm(&["install", "--dry-run=client"]).unwrap_or_else(|error| panic!("{error}"));
        all.split_once("\nNOTES:\n").unwrap_or_else(|| panic!("no notes in {all}")).1.into()
    }
}

/// The objects of a kind.
pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// The one object of a kind.
pub(crate) fn the<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    match of_kind(objects, kind)[..] {
        [one] => one,
        ref others => panic!("expected one {kind}, there are {}", others.len()),
    }
}

/// The chart tss-network with an alert and a dashboard that use what charts and Prometheus both write in braces.
pub(crate) fn with_files() -> TempDir {
    let copy = TempDir::new().unwrap();
    let from = root().join("charts/tss-network/.").display().to_string();
    let done = run("cp", &["-r", &from, &copy.path().display().to_string()], "");
    assert!(done.success, "{}", done.stderr);
    for folder in ["alerts", "dashboards"] {
        let folder = copy.path().join(folder);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
    }
    std::fs::write(copy.path().join("alerts/test.yaml"), ALERTS).unwrap();
    std::fs::write(copy.path().join("dashboards/overview.json"), DASHBOARD).unwrap();
    copy
}

pub(crate) const ALERTS: &str = r#"groups:
  - name: tss
    rules:
      - alert: TssSignerDown
        expr: sum by (cluster) (tss_live_signers) < 2
        for: 5m
        labels: {severity: critical}
        annotations:
          summary: "{{ $labels.cluster }} has {{ $value | humanize }} signers"
"#;

pub(crate) const DASHBOARD: &str = "{\n  \"title\": \"TSS\",\n  \"legendFormat\": \"{{instance}}\"\n}\n";
