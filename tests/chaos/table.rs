//! What is printed: a line for each fault.

use std::time::{Duration, Instant};

use crate::faults::Struck;
use crate::load::Entry;
use crate::proof::Tally;

pub(crate) const LEGEND: &str = "\
requests: under way at some time from the fault on; again: those that a second session signed as well
during: requests under way before the network was whole; after: those begun later
p50, p99: how long a client waited for a signature
served: from the fault to the first signature of a request begun after it
whole: from the fault until both managers are healthy and have served again, and each signer has signed again
handed over: from a manager's death until another drives the last of its requests, or all have ended
memory: what a process that lived through it holds after, as a multiple of before; the largest";

pub(crate) fn header() -> String {
    let blank = "";
    format!(
        "{blank:<32} {blank:>8} {blank:>9} {blank:>6} {blank:>5} | {:^15} | {:^15} |\n\
         {:<32} {:>8} {:>9} {:>6} {:>5} | {:>7} {:>7} | {:>7} {:>7} | {:>7} {:>7} {:>11} {:>6}",
        "during",
        "after",
        "fault",
        "requests",
        "completed",
        "failed",
        "again",
        "p50",
        "p99",
        "p50",
        "p99",
        "served",
        "whole",
        "handed over",
        "memory"
    )
}

pub(crate) fn row(
    fault: &str,
    entries: &[Entry],
    tally: &Tally,
    struck: &Struck,
    whole: Instant,
    growth: f64,
) -> String {
    let (during, after): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|entry| entry.began < whole);
    let [(p50, p99), (later_p50, later_p99)] = [during, after].map(|entries| {
        let mut latencies: Vec<Duration> = entries.iter().filter_map(|entry| entry.latency()).collect();
        latencies.sort_unstable();
        (percentile(&latencies, 50), percentile(&latencies, 99))
    });
    let since = |at: Instant| Some(at.duration_since(struck.at));
    let served = entries.iter().filter(|entry| entry.began >= struck.at && entry.latency().is_some());
    let served = served.filter_map(|entry| entry.ended.as_ref().map(|(_, at)| *at)).min().and_then(since);
    format!(
        "{fault:<32} {:>8} {:>9} {:>6} {:>5} | {p50:>7} {p99:>7} | {later_p50:>7} {later_p99:>7} | {:>7} {:>7} \
         {:>11} {growth:>6.2}",
        entries.len(),
        tally.completed,
        tally.failed.len(),
        tally.signed_again,
        seconds(served),
        seconds(since(whole)),
        seconds(struck.handed_over),
    )
}

/// The least value that so many of a hundred do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> String {
    let rank = (sorted.len() * percent).div_ceil(100);
    seconds(rank.checked_sub(1).map(|index| sorted[index]))
}

fn seconds(duration: Option<Duration>) -> String {
    duration.map_or("-".into(), |duration| format!("{:.2} s", duration.as_secs_f64()))
}
