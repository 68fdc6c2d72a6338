//! The operator against a real control plane: API server, etcd, controller manager and scheduler, but no node.
//!
//! `KUBECONFIG` names it; `tests/run kubernetes` starts one. By hand:
//!
//! ```sh
//! tests/kubernetes/cluster start /tmp/tss control-plane
//! KUBECONFIG=/tmp/tss/kubeconfig cargo test --package tss_network --test operator
//! tests/kubernetes/cluster stop /tmp/tss
//! ```
//!
//! | module | shows |
//! |---|---|
//! | [`definitions`] | what the API server accepts as custom resources, and what a person reads when it does not |
//! | [`fixpoint`] | a TssCluster becomes ready, and then nothing is written any more |
//! | [`drift`] | what somebody changes by hand is changed back |
//! | [`fields`] | what each field of a TssCluster does |
//! | [`rollout`] | signers are changed one at a time |
//! | [`key_generation`] | one key or none |
//! | [`renewal`] | the key gets new shares, for the same signers or for others |
//! | [`crashes`] | an operator that is killed anywhere leaves nothing that the next one cannot go on from |
//! | [`deletion`] | what goes with a TssCluster, and what stays |
//! | [`permissions`] | what operator, managers, signers and key generation may do |
//! | [`scale`] | hundreds of clusters |
//!
//! Made for them:
//!
//! | module | is |
//! |---|---|
//! | [`server`] | the API server, and a namespace for each test |
//! | [`operator`] | an operator inside of the test |
//! | [`wire`] | between an operator and the API server: counts requests, and breaks |
//! | [`history`] | what happened, in the order in which it did |
//! | [`kubelet`] | what runs Pods here: nothing does, it says that they ran |

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod history;
mod kubelet;
mod operator;
mod server;
mod wire;

mod crashes;
mod definitions;
mod deletion;
mod drift;
mod fields;
mod fixpoint;
mod key_generation;
mod permissions;
mod renewal;
mod rollout;
mod scale;
