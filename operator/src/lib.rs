//! The Kubernetes operator of the TSS network.
//!
//! | module | holds |
//! |---|---|
//! | [`crd`] | the custom resources |
//! | [`cluster`] | the controller of `TssCluster` |
//! | [`signing_request`] | the controller of `SigningRequest` |
//! | [`canary`] | the controller of canaries: a fixed message signed on a schedule |
//! | [`backoff`] | when a controller tries again |
//! | [`context`] | what every controller has |
//! | [`condition`] | conditions of a status |
//! | [`program`] | the operator as a process: all controllers, health, metrics |
//! | [`shutdown`] | how a controller comes to its end |
//! | [`lease`] | leader election |
//! | [`http`] | health and metrics |
//! | [`metrics`] | what the operator counts |
//! | [`sign_test`] | `operator sign-test`: whether a network signs |
//! | [`store`] | `operator store`: the end of key generation, in a Pod of its own |

pub mod backoff;
pub mod canary;
pub mod cluster;
pub mod condition;
pub mod context;
pub mod crd;
pub mod http;
pub mod lease;
pub mod metrics;
pub mod program;
pub mod shutdown;
pub mod sign_test;
pub mod signing_request;
pub mod store;
