//! The operator as a process, against a real API server: `KUBECONFIG` names it.
//!
//! ```sh
//! tests/kubernetes/cluster start /tmp/tss control-plane
//! KUBECONFIG=/tmp/tss/kubeconfig cargo test --package tss-operator --test process -- --ignored
//! tests/kubernetes/cluster stop /tmp/tss
//! ```

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    TypeMeta,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tss_operator::crd;

const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace of a test's own, and a folder.
struct Stage {
    client: Client,
    namespace: String,
    folder: TempDir,
}

impl Stage {
    async fn new(name: &str) -> Self {
        // An error means that another test was faster.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        assert!(
            std::env::var_os("KUBECONFIG").is_some(),
            "KUBECONFIG is not set: expected an API server to test with"
        );
        let client = Client::try_from(Config::infer().await.unwrap()).unwrap();
        let namespace = format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let object = json!({"metadata": {"name": namespace}});
        let object: Namespace = serde_json::from_value(object).unwrap();
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
        Self { client, namespace, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name).display().to_string()
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn create<K>(&self, object: Value) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        self.api().create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap()
    }

    /// A kubeconfig with the token of a ServiceAccount of the namespace.
    async fn kubeconfig_of(&self, account: &str) -> PathBuf {
        let request = self
            .api::<ServiceAccount>()
            .create_token_request(account, &PostParams::default(), &TokenRequest::default())
            .await
            .unwrap();
        let mut config = serde_json::to_value(Kubeconfig::read().unwrap()).unwrap();
        let cluster = config["clusters"][0]["name"].clone();
        config["users"] = json!([{"name": account, "user": {"token": request.status.unwrap().token}}]);
        let context = json!({"cluster": cluster, "user": account, "namespace": self.namespace});
        config["contexts"] = json!([{"name": account, "context": context}]);
        config["current-context"] = account.into();
        PathBuf::from(self.file(&format!("{account}.kubeconfig"), config.to_string()))
    }

    async fn end(self) {
        Api::<Namespace>::all(self.client.clone())
            .delete(&self.namespace, &DeleteParams::background())
            .await
            .unwrap();
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_operator"));
    command.kill_on_drop(true).env("RUST_LOG", "info");
    command
}

/// A running operator.
struct Operator {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Operator {
    fn start(stage: &Stage, name: &str, kubeconfig: Option<&Path>, arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let log = stage.path(&format!("{name}.log"));
        let mut command = program();
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let child = command
            .args(["--manager-image", "manager", "--signer-image", "signer", "--operator-image", "operator"])
            .args(["--watch-namespace", &stage.namespace, "--namespace", &stage.namespace])
            .args(["--pod-name", name, "--http-address", &address])
            .args(arguments)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, address, log }
    }

    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let url = format!("http://{}{path}", self.address);
        let client =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(300)).build().unwrap();
        let response = client.get(url).send().await.ok()?;
        Some((response.status().as_u16(), response.text().await.ok()?))
    }

    /// Whether it says that it leads.
    async fn leads(&self) -> bool {
        self.get("/metrics")
            .await
            .is_some_and(|(_, text)| text.lines().any(|line| line == "tss_operator_leader 1"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn signal(&self, signal: &str) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().await.unwrap().success());
    }

    async fn ended(&mut self) -> i32 {
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        status.code().unwrap_or_else(|| panic!("{status}: {}", self.log()))
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) -> Duration {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(50)).await;
    }
    started.elapsed()
}

async fn definitions(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("tests").force();
    for definition in crd::definitions() {
        api.patch(&definition.name_any(), &params, &Patch::Apply(&definition)).await.unwrap();
    }
}

/// Applies config/kubernetes/operator.yaml, in a namespace of the test's own and with a name of its own
/// where there are no namespaces. Its Deployment is checked, but not made.
async fn manifests(stage: &Stage) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/kubernetes/operator.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&std::fs::read_to_string(file).unwrap()).unwrap();
    for mut object in objects {
        let own = json!(stage.namespace);
        let kind = object["kind"].as_str().unwrap().to_owned();
        if kind == "Namespace" || kind.starts_with("ClusterRole") {
            object["metadata"]["name"] = own.clone();
        } else {
            object["metadata"]["namespace"] = own.clone();
        }
        if kind == "ClusterRoleBinding" {
            object["roleRef"]["name"] = own.clone();
        }
        if kind.ends_with("Binding") {
            object["subjects"][0]["namespace"] = own;
        }
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        let TypeMeta { api_version, kind } = object.types.clone().unwrap();
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let api: Api<DynamicObject> = match object.namespace() {
            Some(namespace) => Api::namespaced_with(stage.client.clone(), &namespace, &resource),
            None => Api::all_with(stage.client.clone(), &resource),
        };
        let params =
            PatchParams { dry_run: kind == "Deployment", ..PatchParams::apply("tests").validation_strict() };
        api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs an API server: tests/run kubernetes"]
async fn installed_as_its_manifests_say_it_runs_and_sees_no_secret() {
    let stage = Stage::new("install").await;
    definitions(&stage.client).await;
    manifests(&stage).await;
    let kubeconfig = stage.kubeconfig_of("tss-network-operator").await;
    let mut operator = Operator::start(
        &stage,
        "operator",
        Some(&kubeconfig),
        &["--leader-election", "--lease-seconds", "3"],
    );
    eventually("/readyz", || async { operator.get("/readyz").await == Some((200, "ready\n".into())) }).await;
    eventually("it leads", || operator.leads()).await;
    assert_eq!(operator.get("/livez").await, Some((200, "alive\n".into())));
    sleep(Duration::from_secs(5)).await;
    // It watches all that it needs to watch, and renews its Lease.
    assert!(operator.leads().await, "{}", operator.log());
    assert!(!operator.log().to_lowercase().contains("forbidden"), "{}", operator.log());

    let config = Kubeconfig::read_from(&kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    let itself = Client::try_from(config).unwrap();
    let refused = |result: Result<(), kube::Error>| match result {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{status:?}"),
        other => panic!("{other:?}"),
    };
    stage.create::<Secret>(json!({"metadata": {"name": "share"}})).await;
    let secrets: Api<Secret> = Api::namespaced(itself.clone(), &stage.namespace);
    refused(secrets.get("share").await.map(drop));
    refused(secrets.list(&ListParams::default()).await.map(drop));
    refused(secrets.delete("share", &DeleteParams::default()).await.map(drop));
    refused(secrets.patch("share", &PatchParams::default(), &Patch::Merge(json!({}))).await.map(drop));
    // It can give to others what it has, and no more.
    let roles: Api<Role> = Api::namespaced(itself, &stage.namespace);
    for (verb, allowed) in [("create", true), ("get", false)] {
        let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": [verb]}]);
        let role = serde_json::from_value(json!({"metadata": {"name": verb}, "rules": rules})).unwrap();
        let result = roles.create(&PostParams::default(), &role).await.map(drop);
        if allowed { result.unwrap() } else { refused(result) }
    }

    operator.signal("-TERM").await;
    assert_eq!(operator.ended().await, 0, "{}", operator.log());
    let lease = stage.api::<Lease>().get("tss-network-operator").await.unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some(""));
    Api::<ClusterRole>::all(stage.client.clone())
        .delete(&stage.namespace, &DeleteParams::default())
        .await
        .unwrap();
    Api::<ClusterRoleBinding>::all(stage.client.clone())
        .delete(&stage.namespace, &DeleteParams::default())
        .await
        .unwrap();
    stage.end().await;
}

#[tokio::test]
#[ignore = "needs an API server: tests/run kubernetes"]
async fn of_several_operators_one_leads_whatever_becomes_of_it() {
    const LEASE: Duration = Duration::from_secs(6);
    let stage = Stage::new("election").await;
    definitions(&stage.client).await;
    let arguments = ["--leader-election", "--lease-seconds", "6"];
    let start = |name: &str| Operator::start(&stage, name, None, &arguments);
    let mut operators = vec![start("a"), start("b"), start("c")];
    let leader = async |operators: &[Operator]| {
        let started = Instant::now();
        loop {
            let leads = futures::future::join_all(operators.iter().map(Operator::leads)).await;
            assert!(leads.iter().filter(|leads| **leads).count() < 2, "two lead");
            if let Some(at) = leads.iter().position(|leads| *leads) {
                return (at, started.elapsed());
            }
            assert!(started.elapsed() < PATIENCE, "nobody leads");
            sleep(Duration::from_millis(20)).await;
        }
    };

    let (first, _) = leader(&operators).await;
    for operator in &operators {
        // Those that stand by are ready too.
        eventually("/readyz", || async {
            operator.get("/readyz").await.is_some_and(|(code, _)| code == 200)
        })
        .await;
    }
    // Nothing changes while nothing happens.
    let quiet = Instant::now();
    while quiet.elapsed() < LEASE * 2 {
        assert_eq!(leader(&operators).await.0, first);
    }

    // It stands still as a whole: another leads, and when it goes on it notices and ends.
    operators[first].signal("-STOP").await;
    let mut frozen = operators.remove(first);
    let (second, took) = leader(&operators).await;
    println!("after a leader stood still, another led within {took:.1?}");
    assert!(took > LEASE / 2, "{took:?}: the Lease had not lapsed");
    frozen.signal("-CONT").await;
    assert_eq!(frozen.ended().await, 1);
    assert!(frozen.log().contains("this operator leads no more"), "{}", frozen.log());
    assert_eq!(leader(&operators).await.0, second);

    // It is told to end: another leads at once.
    let mut ended = operators.remove(second);
    ended.signal("-TERM").await;
    assert_eq!(ended.ended().await, 0, "{}", ended.log());
    let (_, took) = leader(&operators).await;
    println!("after a leader was told to end, another led within {took:.1?}");
    assert!(took < LEASE * 5 / 6, "{took:?}: the Lease had lapsed");

    // It is killed.
    operators.push(start("d"));
    let (third, _) = leader(&operators).await;
    let mut killed = operators.remove(third);
    killed.child.kill().await.unwrap();
    let (_, took) = leader(&operators).await;
    println!("after a leader was killed, another led within {took:.1?}");

    let lease = stage.api::<Lease>().get("tss-network-operator").await.unwrap();
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(3));
    stage.end().await;
}

#[tokio::test]
#[ignore = "needs an API server: tests/run kubernetes"]
async fn an_account_that_may_only_create_secrets_stores_a_share() {
    let stage = Stage::new("store").await;
    stage.create::<ServiceAccount>(json!({"metadata": {"name": "keygen"}})).await;
    let rules = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]);
    stage.create::<Role>(json!({"metadata": {"name": "keygen"}, "rules": rules})).await;
    stage
        .create::<RoleBinding>(json!({
            "metadata": {"name": "keygen"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "keygen"},
            "subjects": [{"kind": "ServiceAccount", "name": "keygen", "namespace": stage.namespace}],
        }))
        .await;
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "keygen", "image": "none"}]});
    let job: Job = stage
        .create(
            json!({"metadata": {"name": "keygen-1"}, "spec": {"suspend": true, "template": {"spec": pod}}}),
        )
        .await;
    let kubeconfig = stage.kubeconfig_of("keygen").await;
    let share = stage.file("share", b"a share \xff\x00");
    let report = stage.file("report", r#"{"publicKey":"02ab"}"#);
    let said = stage.path("said");
    let store = async |secret: &str, more: &[&str]| -> Output {
        let output = program()
            .env("KUBECONFIG", &kubeconfig)
            .args(["store", "--secret", secret, "--entry", &format!("share={share}"), "--report", &report])
            .args(["--label", "tss.network/cluster=demo", "--termination-log"])
            .arg(&said)
            .args(more)
            .output()
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("a share"), "{text}");
        output
    };
    let error = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();

    let output = store("kept", &[]).await;
    assert!(output.status.success(), "{}", error(&output));
    assert_eq!(std::fs::read_to_string(&said).unwrap(), r#"{"publicKey":"02ab"}"#);
    let secret = stage.api::<Secret>().get("kept").await.unwrap();
    assert_eq!((secret.immutable, secret.type_.as_deref()), (Some(true), Some("Opaque")));
    assert_eq!(secret.data.as_ref().unwrap()["share"].0, b"a share \xff\x00");
    assert_eq!(secret.labels()["tss.network/cluster"], "demo");
    assert!(secret.owner_references().is_empty());

    // The Job runs again: without its mount, and with it.
    std::fs::remove_file(&said).unwrap();
    let output = store("kept", &[]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error(&output).contains("is there already, made by another run of the Job"),
        "{}",
        error(&output)
    );
    assert!(!said.exists());
    let output = store("kept", &["--unless", &share]).await;
    assert!(output.status.success(), "{}", error(&output));
    assert!(said.exists());

    // With its Job as the owner it goes when the Job goes.
    let output = store("goes", &["--owner-job", "keygen-1", "--owner-uid", &job.uid().unwrap()]).await;
    assert!(output.status.success(), "{}", error(&output));
    assert_eq!(stage.api::<Secret>().get("goes").await.unwrap().owner_references().len(), 1);
    stage.api::<Job>().delete("keygen-1", &DeleteParams::background()).await.unwrap();
    eventually("the Secret goes", || async {
        stage.api::<Secret>().get_opt("goes").await.unwrap().is_none()
    })
    .await;
    assert!(stage.api::<Secret>().get_opt("kept").await.unwrap().is_some());
    stage.end().await;
}
