//! The charts, as far as nothing of them has to run: what `helm` makes of them is compared with what the programs expect,
//! and given to programs that know what Kubernetes takes and what is good practice.
//!
//! `tests/run chart` installs what is needed and runs this. By hand:
//!
//! ```sh
//! tools=$(tests/chart/install); kubernetes=$(tests/kubernetes/install control-plane)
//! export PATH=$tools/bin:$kubernetes/bin:$PATH CHART_DEFINITIONS=$tools/definitions
//! cargo test --package tss_network --test chart
//! ```
//!
//! | module | shows |
//! |---|---|
//! | [`matrix`] | every combination of values makes objects that Kubernetes takes |
//! | [`policy`] | what is made passes a policy check, but for the exceptions that are explained |
//! | [`refusals`] | a wrong value is refused, by name |
//! | [`manifest`] | the chart and config/kubernetes/operator.yaml are one; the operator reads no Secret in any mode |
//! | [`definitions`] | the chart of definitions has those of the operator |
//! | [`monitoring`] | monitors, alerts and dashboards |
//! | [`certificates`] | certificates that cert-manager makes, and whom the operator believes |
//! | [`server`] | what is made for other projects is taken by an API server that has their definitions; it needs KUBECONFIG |
//! | [`network`] | the sample network, its test, its servers, and the notes |
//! | [`readmes`] | the READMEs are those of the values |

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod certificates;
mod definitions;
mod helm;
mod manifest;
mod matrix;
mod monitoring;
mod network;
mod policy;
mod readmes;
mod refusals;
mod server;
