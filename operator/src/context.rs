//! What every controller has.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use kube::api::ApiResource;
use kube::core::DynamicResourceScope;
use kube::runtime::events::Recorder;
use kube::{Api, Client, Resource};

use crate::metrics::Metrics;

/// The name under which the operator applies objects, and its Events say that they come from it.
pub const FIELD_MANAGER: &str = "tss-network-operator";

/// What every controller has.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Where Events go.
    pub events: Recorder,
    /// What the operator counts.
    pub metrics: Metrics,
    /// What the operator was told at its start.
    pub options: Arc<Options>,
}

impl Context {
    /// The objects of a kind that the operator looks after.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.options.watch_namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// As [`Context::api`], for a kind that is known only now.
    pub fn api_with<K>(&self, kind: &ApiResource) -> Api<K>
    where
        K: Resource<Scope = DynamicResourceScope, DynamicType = ApiResource>,
    {
        match &self.options.watch_namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, kind),
            None => Api::all_with(self.client.clone(), kind),
        }
    }
}

/// What the operator is told at its start.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The image of managers whose TssCluster names none.
    #[arg(long, env = "MANAGER_IMAGE")]
    pub manager_image: String,
    /// The image of signers whose TssCluster names none.
    #[arg(long, env = "SIGNER_IMAGE")]
    pub signer_image: String,
    /// The operator's own image, which stores shares at the end of key generation.
    #[arg(long, env = "OPERATOR_IMAGE")]
    pub operator_image: String,
    /// The namespace whose objects are looked after; all when absent.
    #[arg(long, env = "WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// The namespace that the operator runs in: managers let its Pods in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "tss-network")]
    pub namespace: String,
    /// A file with the certificates, in PEM, of the authorities that vouch for managers with `spec.manager.tls`. Read again
    /// when it changes. The system's own without it.
    #[arg(long, env = "MANAGER_CA")]
    pub manager_ca: Option<PathBuf>,
    /// Where the managers are, when the operator runs outside of the cluster's network: a URL in which `{scheme}`,
    /// `{cluster}` and `{namespace}` stand for a TssCluster's.
    #[arg(long, env = "MANAGER_URL", hide = true)]
    pub manager_url: Option<String>,
}
