//! What becomes of a network under load whose processes are killed, whose servers are restarted and
//! stopped, whose disk fills up and whose signers freeze, one after another.
//!
//! Everything is real: two managers side by side and three signers, each a process, with a RabbitMQ and a
//! MongoDB of the test's own. Processes are killed at a chosen round of the protocol: the test listens in
//! on what the signers say. It needs to mount a small tmpfs, as root; `tests/run chaos` runs it.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::time::sleep;

mod disk;
mod faults;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../support/installation.rs"]
mod installation;
mod load;
mod network;
mod proof;
#[path = "../support/server.rs"]
mod server;
mod table;
#[path = "../support/tap.rs"]
mod tap;

use faults::Fault;
use load::{Entry, Load};
use network::{Network, Part};
use proof::{Key, Logs};

/// How long the network runs before the first fault, and after each.
const CALM: Duration = Duration::from_secs(3);

/// How long requests have to end: the default of `signing_timeout`, and as much again.
const ENDING: Duration = Duration::from_secs(60);

/// How many times as much memory as before a process may hold after a fault that it lived through.
const GROWTH: f64 = 1.5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_request_ends_and_ends_once_whatever_fails() {
    let began = Instant::now();
    let mut network = Network::start().await;
    let key = Key::of(&network.share());
    let load = Load::start(network.urls());
    network.until_whole(Instant::now(), &load.ledger).await;
    sleep(CALM).await;
    println!("{}\n\n{}", table::LEGEND, table::header());

    for fault in Fault::all() {
        let before = network.resident();
        let struck = fault.strike(&mut network, &load.ledger).await;
        network.until_whole(struck.over, &load.ledger).await;
        let whole = Instant::now();
        sleep(CALM).await;
        let end = Instant::now();
        until_ended(&network, &load, end).await;

        let touched =
            |entry: &Entry| entry.began < end && entry.ended.as_ref().is_none_or(|(_, at)| *at >= struck.at);
        let entries: Vec<Entry> = load.ledger.all().into_iter().filter(touched).collect();
        let logs = Logs::read(&network, false);
        let tally = proof::check(&network, &key, &entries, &logs).await;
        let growth = growth(fault, &before, &network.resident());
        println!("{}", table::row(&fault.to_string(), &entries, &tally, &struck, whole, growth));
        for (id, reason) in &tally.failed {
            println!("    {id} failed: {reason}");
        }
        assert!(growth <= GROWTH, "a process holds {growth:.2} times the memory of before: {fault}");
    }

    // All of it again, when nothing changes any more.
    load.stop();
    until_ended(&network, &load, Instant::now()).await;
    let ledger = load.ended().await;
    network.stop();
    let entries = ledger.all();
    let logs = Logs::read(&network, true);
    let tally = proof::check(&network, &key, &entries, &logs).await;
    println!(
        "\n{} requests: {} completed, {} failed, {} never accepted; {} of them signed by a second session as well; \
         {} audit entries; {:.0} s",
        entries.len(),
        tally.completed,
        tally.failed.len(),
        tally.given_up,
        tally.signed_again,
        logs.entries,
        began.elapsed().as_secs_f64()
    );
}

/// That all requests that began before then end in time; or what is known of those that have not.
async fn until_ended(network: &Network, load: &Load, before: Instant) {
    let pending = load.ledger.until_ended(before, ENDING).await;
    if !pending.is_empty() {
        let known = proof::what_is_known(network, &pending).await;
        panic!("not ended {ENDING:?} later:\n{}", known.join("\n\n"));
    }
}

/// How many times as much memory as before a process holds that lived through a fault: the largest.
fn growth(fault: Fault, before: &BTreeMap<Part, u64>, after: &BTreeMap<Part, u64>) -> f64 {
    let survivors = after.iter().filter(|(part, _)| fault.victim() != Some(**part));
    survivors.map(|(part, &now)| now as f64 / before[part] as f64).fold(0.0, f64::max)
}
