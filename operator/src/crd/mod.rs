//! The custom resources, group `tss.network`, version `v1alpha1`. `crds/` holds what [`definitions`]
//! makes of them.
//!
//! Every text is bounded, since the API server estimates what a rule costs from the lengths.

// `KubeSchema` repeats each type inside of a function.
#![allow(unreachable_pub)]

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod cluster;
pub mod signing_request;

pub use cluster::*;
pub use signing_request::*;

/// Every definition, in the order in which they are applied.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![TssCluster::crd(), SigningRequest::crd()]
}

/// An entry of a Secret in the namespace of the object that names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretEntry {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Which of its entries.
    #[serde(default = "uri_entry")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn uri_entry() -> String {
    "uri".into()
}

/// A default derivation path, as `signer` and `manager` have it.
fn derivation_path() -> String {
    "0/1/2".into()
}

/// What a derivation path may look like: up to 16 steps without hardening, or `m` for the root key.
const DERIVATION_PATH: &str = r"^(m|(m/)?[0-9]{1,10}(/[0-9]{1,10}){0,15})$";

/// A definition as it stands in `crds/`.
///
/// # Errors
/// When it cannot be written as YAML: an error in this software.
pub fn yaml(definition: &CustomResourceDefinition) -> anyhow::Result<String> {
    let yaml = serde_saphyr::to_string(definition).context("a definition cannot be written as YAML")?;
    Ok(format!("# Made by `cargo run --bin operator -- crds --out crds` from operator/src/crd.\n{yaml}"))
}
