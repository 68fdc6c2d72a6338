//! Holds the dashboards and alert rules of the chart to the truth.
//!
//! | module | shows |
//! |---|---|
//! | [`dashboards`] | that Grafana and people can read them |
//! | [`rules`] | that each alert has a runbook, fires when it should and not else: `promtool` of Prometheus |
//! | [`live`] | that what they ask for exists, and that a fault fires the right alert: a network and an operator under load, scraped by a real Prometheus |
//!
//! Made for them:
//!
//! | module | is |
//! |---|---|
//! | [`promql`] | which metrics and labels an expression names |
//! | [`prometheus`] | a Prometheus of one test's own |
//! | [`monitors`] | how the chart's monitors have it scrape |
//! | [`network`] | a network of processes, with an operator that has its canary signed |
//! | [`picture`] | draws a dashboard from Prometheus' answers |
//!
//! It needs `prometheus` and `promtool`, a RabbitMQ (`RABBITMQ_URI`), a MongoDB (`MONGODB_URI`) and a Kubernetes control
//! plane (`KUBECONFIG`): `tests/run chart` starts them. The pictures go to the folder `PICTURES`, or to
//! `target/pictures`.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod dashboards;
mod live;
mod monitors;
mod network;
mod picture;
mod prometheus;
mod promql;
mod rules;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../support/installation.rs"]
mod installation;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../operator/kubelet.rs"]
mod kubelet;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../operator/server.rs"]
mod server;

/// A folder of the project.
fn folder(path: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files of a folder with this extension: name without it, and content.
fn files(path: &str, extension: &str) -> std::collections::BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let files = entries.map(|entry| entry.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|found| found == extension))
        .map(|file| {
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(&file).unwrap())
        })
        .collect()
}
