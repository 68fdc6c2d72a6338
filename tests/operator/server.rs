//! The API server, and a namespace for each test.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace as KubeNamespace, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tss_operator::cluster::dereference::kinds;
use tss_operator::cluster::names;
use tss_operator::crd::{TssCluster, TssClusterStatus};
use uuid::Uuid;

/// How long what must happen may take. The control plane shares two cores with the tests.
pub(crate) const SOON: Duration = Duration::from_secs(300);
/// How often it is looked whether it has.
pub(crate) const OFTEN: Duration = Duration::from_millis(200);

/// How to reach the cluster of `KUBECONFIG`, as its administrator.
pub(crate) async fn config() -> Config {
    let file = std::env::var_os("KUBECONFIG").filter(|file| !file.is_empty()).expect(
        "KUBECONFIG is not set, and these tests need a Kubernetes control plane: `tests/run kubernetes` starts one, or by \
         hand `tests/kubernetes/cluster start DIR control-plane`, then KUBECONFIG=DIR/kubeconfig",
    );
    let kubeconfig = Kubeconfig::read_from(&file)
        .unwrap_or_else(|error| panic!("KUBECONFIG names {}, which cannot be read: {error}", file.display()));
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap_or_else(|error| panic!("KUBECONFIG names {}: {error}", file.display()));
    config.connect_timeout = Some(Duration::from_secs(10));
    config
}

/// An administrator's client of a cluster that knows the custom resources.
pub(crate) async fn connect() -> Client {
    static DEFINED: OnceCell<()> = OnceCell::const_new();
    let client = Client::try_from(config().await).expect("the cluster of KUBECONFIG has an address");
    client.apiserver_version().await.expect("the cluster of KUBECONFIG answers: is it still running?");
    DEFINED.get_or_init(|| define(&client)).await;
    client
}

/// Applies the definitions, and waits until the API server knows them.
async fn define(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in tss_operator::crd::definitions() {
        let name = definition.name_any();
        let parameters = PatchParams::apply("tests").force();
        api.patch(&name, &parameters, &Patch::Apply(&definition)).await.expect("a definition is accepted");
        until(&format!("{name} is established"), async || {
            let conditions = api.get(&name).await.unwrap().status?.conditions?;
            let established = |condition: &&_| {
                let condition: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionCondition = condition;
                condition.type_ == "Established" && condition.status == "True"
            };
            conditions.iter().find(established).map(drop)
        })
        .await;
    }
    // Established is not yet served.
    let clusters: Api<TssCluster> = Api::all(client.clone());
    until("TssClusters are served", async || clusters.list(&ListParams::default().limit(1)).await.ok()).await;
}

/// Looks again and again until there is something to see.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(OFTEN).await;
    }
}

/// A namespace of one test's own.
#[derive(Clone)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    /// An administrator's.
    pub(crate) client: Client,
}

/// Runs a test in a namespace of its own, which is deleted afterwards.
pub(crate) async fn in_namespace(test: impl AsyncFnOnce(&Namespace)) {
    let namespace = Namespace::new(connect().await).await;
    let result = AssertUnwindSafe(test(&namespace)).catch_unwind().await;
    if result.is_err() {
        namespace.print().await;
    }
    namespace.delete().await;
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

impl Namespace {
    async fn new(client: Client) -> Self {
        let name = format!("tss-test-{}", &Uuid::new_v4().simple().to_string()[..8]);
        let namespace: KubeNamespace = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }))
        .unwrap();
        let api: Api<KubeNamespace> = Api::all(client.clone());
        api.create(&PostParams::default(), &namespace).await.unwrap();
        Self { name, client }
    }

    async fn delete(&self) {
        let api: Api<KubeNamespace> = Api::all(self.client.clone());
        let _ = api.delete(&self.name, &DeleteParams::default()).await;
    }

    /// What there is to see when a test has failed.
    async fn print(&self) {
        for cluster in self.list::<TssCluster>().await {
            eprintln!("{}: {:#?}", cluster.name_any(), cluster.status);
        }
        for pod in self.list::<Pod>().await {
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
            eprintln!("Pod {}: {phase:?}", pod.name_any());
        }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub(crate) fn dynamic(&self, kind: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.name, kind)
    }

    pub(crate) async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        self.api::<K>().list(&ListParams::default()).await.unwrap().items
    }

    pub(crate) async fn get<K>(&self, name: &str) -> Option<K>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        self.api::<K>().get_opt(name).await.unwrap()
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug,
        K::DynamicType: Default,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api().create(&PostParams::default(), &object).await.unwrap()
    }

    /// Deletes an object, and yields whether it was there.
    pub(crate) async fn remove<K>(&self, name: &str) -> bool
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        match self.api::<K>().delete(name, &DeleteParams::background()).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code == 404 => false,
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// As [`Namespace::remove`], of a kind that is known only now.
    pub(crate) async fn remove_any(&self, kind: &ApiResource, name: &str) {
        self.dynamic(kind).delete(name, &DeleteParams::background()).await.unwrap();
        until(&format!("{} {name} is gone", kind.kind), async || {
            let left = self.dynamic(kind).get_opt(name).await.unwrap();
            left.is_none_or(|left| left.metadata.deletion_timestamp.is_some()).then_some(())
        })
        .await;
    }

    /// Applies a TssCluster.
    pub(crate) async fn apply(&self, cluster: Value) -> TssCluster {
        let name = cluster["metadata"]["name"].as_str().unwrap().to_owned();
        let parameters = PatchParams::apply("a-person").force();
        self.api::<TssCluster>().patch(&name, &parameters, &Patch::Apply(&cluster)).await.unwrap()
    }

    /// Changes the spec of a TssCluster.
    pub(crate) async fn change(&self, name: &str, spec: Value) -> TssCluster {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.api::<TssCluster>().patch(name, &PatchParams::default(), &patch).await.unwrap()
    }

    pub(crate) async fn status(&self, name: &str) -> TssClusterStatus {
        self.get::<TssCluster>(name).await.and_then(|cluster| cluster.status).unwrap_or_default()
    }

    /// The record of a cluster's key at its first epoch, as it stands in its ConfigMap.
    pub(crate) async fn record(&self, name: &str) -> Option<Value> {
        self.record_of(name, 1).await
    }

    /// The same, at any epoch.
    pub(crate) async fn record_of(&self, name: &str, epoch: i64) -> Option<Value> {
        let map = self.get::<ConfigMap>(&names::key(name, epoch)).await?;
        Some(serde_json::from_str(&map.data.unwrap()["key.json"]).unwrap())
    }

    /// The names of the Secrets with shares of the first epoch that are kept for good.
    pub(crate) async fn kept_shares(&self) -> Vec<String> {
        self.kept_shares_of(1).await
    }

    /// The same, of any epoch.
    pub(crate) async fn kept_shares_of(&self, epoch: i64) -> Vec<String> {
        let secrets = self.list::<Secret>().await.into_iter();
        let kept = secrets.filter(|secret| secret.owner_references().is_empty());
        kept.map(|secret| secret.name_any()).filter(|name| name.contains(&format!("-e{epoch}-"))).collect()
    }

    /// Every object of the kinds that a TssCluster is made of, and itself, its Secrets and volumes: their kinds and names,
    /// and their versions.
    pub(crate) async fn everything(&self) -> std::collections::BTreeMap<String, String> {
        let others = [
            ApiResource::erase::<TssCluster>(&()),
            ApiResource::erase::<Secret>(&()),
            ApiResource::erase::<Pod>(&()),
            ApiResource::erase::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(&()),
            ApiResource::erase::<k8s_openapi::api::events::v1::Event>(&()),
        ];
        let mut all = std::collections::BTreeMap::new();
        for kind in kinds().into_iter().chain(others) {
            for object in self.dynamic(&kind).list(&ListParams::default()).await.unwrap() {
                // The control plane's own tell of themselves.
                let by_operator = kind.kind != "Event"
                    || object.data["reportingController"] == tss_operator::context::FIELD_MANAGER;
                if by_operator {
                    let version = object.resource_version().unwrap();
                    all.insert(format!("{} {}", kind.kind, object.name_any()), version);
                }
            }
        }
        all
    }
}

/// A TssCluster as a person writes it: t of n signers sign.
pub(crate) fn cluster(name: &str, threshold: i32, signers: i32) -> Value {
    json!({
        "apiVersion": "tss.network/v1alpha1",
        "kind": "TssCluster",
        "metadata": {"name": name},
        "spec": {
            "threshold": threshold,
            "signers": signers,
            "auth": {"type": "None"},
            "rabbitmq": {"uriSecret": {"name": "rabbitmq"}},
            "mongodb": {"uriSecret": {"name": "mongodb"}},
        },
    })
}
