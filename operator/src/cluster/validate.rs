//! Step 2: is what a TssCluster asks for possible? Its schema has been checked by the API server.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _};
use tss_common::config::check_name;
use tss_mpc::{DerivationPath, Threshold};

use super::names;
use crate::crd::{KeySourceKind, TssCluster, TssClusterSpec};

/// A TssCluster that can be built.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The object itself, as long as it is not deleted.
    pub uid: String,
    /// The reference by which objects go when it goes.
    pub owner: OwnerReference,
    /// How many of how many signers sign.
    pub threshold: Threshold,
    /// The network's name on the bus, in the shares and in what is signed.
    pub network: String,
    /// The port that traces are sent to.
    pub traces_port: Option<u16>,
    /// What it asks for.
    pub spec: TssClusterSpec,
}

/// Why a TssCluster cannot be built: what is wrong, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// The cluster that an object asks for.
///
/// # Errors
/// [`Invalid`], for a person.
pub fn validate(object: &TssCluster) -> Result<Cluster, Invalid> {
    let spec = &object.spec;
    let name = object.name_any();
    let namespace = object.namespace().ok_or_else(|| Invalid("it has no namespace".into()))?;
    let uid = object.uid().ok_or_else(|| Invalid("it has no uid".into()))?;
    let owner = object.controller_owner_ref(&()).ok_or_else(|| Invalid("it has no uid".into()))?;
    let count = |number: i32| u8::try_from(number).unwrap_or(0);
    let threshold = Threshold::new(count(spec.threshold), count(spec.signers))
        .map_err(|error| Invalid(format!("threshold, signers: {error}")))?;
    let network = spec.network_name.clone().unwrap_or_else(|| format!("{namespace}-{name}"));
    check_name(&network).map_err(|expected| {
        Invalid(format!(
            "the network's name would be {network}: {expected}: set networkName to a shorter one"
        ))
    })?;
    spec.derivation_path
        .parse::<DerivationPath>()
        .map_err(|error| Invalid(format!("derivationPath: {error}")))?;
    let named = spec.key_source.existing_secrets.as_ref();
    match (spec.key_source.kind, named) {
        (KeySourceKind::Generate, None) => {}
        (KeySourceKind::ExistingSecrets, Some(named))
            if named.secrets.len() == usize::from(threshold.n()) => {}
        _ => {
            return Err(Invalid(format!(
                "keySource: expected either Generate, or ExistingSecrets with the names of {} Secrets",
                threshold.n()
            )));
        }
    }
    let traces_port = spec.traces.as_ref().map(|traces| port_of(&traces.otlp_endpoint)).transpose()?;
    Ok(Cluster { name, namespace, uid, owner, threshold, network, traces_port, spec: spec.clone() })
}

/// The port that a URL leads to.
fn port_of(url: &str) -> Result<u16, Invalid> {
    let port = reqwest::Url::parse(url).map(|url| url.port_or_known_default());
    port.ok().flatten().ok_or_else(|| Invalid(format!("traces.otlpEndpoint: expected a URL, not {url}")))
}

impl Cluster {
    /// The indices of its signers.
    pub fn indices(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.threshold.n()
    }

    /// Where programs in the Kubernetes cluster find the manager.
    pub fn manager_url(&self) -> String {
        names::manager_url(self.spec.manager.scheme(), &self.namespace, &self.name)
    }
}
