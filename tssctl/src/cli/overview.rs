//! `overview` and `health`.

use clap::Args;
use tss_client::types::{Health, Overview, OverviewSigner, Readiness};

use super::connection::ManagerArguments;
use super::exit::{Code, Failure};
use super::output::{self, Printer};
use super::requests::summary;

#[derive(Args)]
pub(crate) struct OverviewArguments {
    #[command(flatten)]
    manager: ManagerArguments,
}

#[derive(Args)]
pub(crate) struct HealthArguments {
    #[command(flatten)]
    manager: ManagerArguments,
}

/// Runs `overview`.
pub(crate) async fn overview(arguments: &OverviewArguments, printer: Printer) -> anyhow::Result<()> {
    let overview = arguments.manager.connect()?.client.overview().await?;
    printer.answer(&overview, describe)
}

fn describe(overview: &Overview) -> String {
    let points = &overview.series.points;
    let seconds = overview.series.step_seconds.saturating_mul(points.len() as u64);
    let completed: u64 = points.iter().map(|point| point.completed).fold(0, u64::saturating_add);
    let failed: u64 = points.iter().map(|point| point.failed).fold(0, u64::saturating_add);
    let fields = output::labelled([
        ("cluster", Some(overview.cluster.clone())),
        ("manager", Some(overview.version.clone())),
        ("status", Some(overview.status.to_string())),
        ("store", Some(overview.store.to_string())),
        ("bus", Some(overview.bus.to_string())),
        ("threshold", Some(format!("{} of {}", overview.threshold, overview.signers.len()))),
        ("keys", Some(overview.keys.join(", "))),
        ("unfinished", Some(overview.unfinished.to_string())),
        ("active", Some(overview.active.to_string())),
        ("lately", Some(format!("{completed} completed, {failed} failed in {seconds} s"))),
    ]);
    let signer = |signer: &OverviewSigner| {
        let state = match (signer.live, signer.usable) {
            (_, true) => "usable",
            (true, false) => "live, with another key",
            (false, false) => "away",
        };
        [signer.signer.to_string(), state.to_owned(), signer.heard_at.map_or("never".into(), output::seconds)]
    };
    let signers: Vec<_> = overview.signers.iter().map(signer).collect();
    let recent: Vec<_> = overview.recent.iter().map(summary).collect();
    let mut text = format!("{fields}\n{}", output::table(["SIGNER", "STATE", "HEARD"], &signers));
    if !recent.is_empty() {
        let heading = ["REQUEST", "STATUS", "KEY", "PATH", "HASH", "ATTEMPTS", "CREATED"];
        text += &format!("\n{}", output::table(heading, &recent));
    }
    text
}

/// Runs `health`.
pub(crate) async fn health(arguments: &HealthArguments, printer: Printer) -> anyhow::Result<()> {
    let health = arguments.manager.connect()?.client.health().await?;
    printer.answer(&health, state)?;
    match health.status {
        Readiness::Ok => Ok(()),
        status => Err(Failure::new(Code::Busy, format!("no signature can be made now: {status}")).into()),
    }
}

fn state(health: &Health) -> String {
    let signers = &health.signers;
    let live = output::quorum(Some(&signers.live));
    output::labelled([
        ("status", Some(health.status.to_string())),
        ("store", Some(health.store.to_string())),
        ("bus", Some(health.bus.to_string())),
        (
            "signers",
            Some(format!("{} of {} ({live}), {} sign", signers.live.len(), signers.total, signers.threshold)),
        ),
        ("key", health.key.as_ref().map(|key| key.id.clone())),
        ("public key", health.key.as_ref().map(|key| key.public_key.to_string())),
    ])
}
