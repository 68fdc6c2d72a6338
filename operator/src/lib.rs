//! The Kubernetes operator of the TSS network.
//!
//! | module | holds |
//! |---|---|
//! | [`crd`] | the custom resources |
//! | [`cluster`] | the controller of `TssCluster` |
//! | [`signing_request`] | the controller of `SigningRequest` |
//! | [`backoff`] | when a controller tries again |
//! | [`context`] | what both controllers have |
//! | [`condition`] | conditions of a status |
//! | [`metrics`] | what the operator counts |

pub mod backoff;
pub mod cluster;
pub mod condition;
pub mod context;
pub mod crd;
pub mod metrics;
pub mod signing_request;
