//! `key refresh`.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tss_client::Client;
use tss_client::types::{KeyRefresh, Refresh, RefreshStep, RefreshingSigner};

use super::connection::{Connection, ManagerArguments};
use super::exit::{Code, Failure};
use super::output::{self, Printer};
use super::sign::MAX_WAIT;

/// How often the manager is asked how far the signers are.
const ROUND: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(crate) struct RefreshArguments {
    /// The key's id. The profile's, or the manager's own, without.
    key: Option<String>,
    /// How many seconds to wait until all signers have new shares.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(..=MAX_WAIT))]
    timeout: u64,
    #[command(flatten)]
    manager: ManagerArguments,
}

/// What `key refresh` did.
#[derive(Serialize)]
struct Refreshed {
    key: String,
    epoch: u64,
}

/// Runs `key refresh`.
pub(crate) async fn run(arguments: RefreshArguments, printer: Printer) -> anyhow::Result<()> {
    let Connection { client, profile } = arguments.manager.connect()?;
    let key = match arguments.key.or(profile.key) {
        Some(key) => key,
        None => match client.health().await?.key {
            Some(key) => key.id,
            None => return Err(Failure::new(Code::Busy, "no key is on record yet").into()),
        },
    };
    let ordered = client.refresh_key(&key).await?;
    let epoch = follow(&client, &ordered, Duration::from_secs(arguments.timeout)).await?;
    printer.answer(&Refreshed { key: ordered.key, epoch }, |done| {
        output::labelled([("key", Some(done.key.clone())), ("epoch", Some(done.epoch.to_string()))])
    })
}

/// Waits until all signers have new shares; yields their epoch. A terminal shows how far they are.
async fn follow(client: &Client, ordered: &Refresh, patience: Duration) -> anyhow::Result<u64> {
    let progress = output::spinner(format!("key {}: the signers are told", output::plain(&ordered.key)));
    let mut last = None;
    let until_done = async {
        loop {
            let told = client.key_refresh(&ordered.key).await?;
            if let Some(epoch) = done(ordered, &told)? {
                return anyhow::Ok(epoch);
            }
            progress.set_message(format!("key {}: {}", output::plain(&told.key), doings(ordered, &told)));
            last = Some(told);
            sleep(ROUND).await;
        }
    };
    let ended = timeout(patience, until_done).await;
    progress.finish_and_clear();
    ended.unwrap_or_else(|_| Err(Failure::new(Code::Late, late(ordered, last.as_ref(), patience)).into()))
}

/// Whether a signer signs with shares of a later epoch than the one that ends.
fn is_new(ordered: &Refresh, signer: &RefreshingSigner) -> bool {
    signer.epoch.is_some_and(|epoch| epoch > ordered.epoch)
}

/// The epoch that all signers have, once it is a later one.
fn done(ordered: &Refresh, told: &KeyRefresh) -> Result<Option<u64>, Failure> {
    let failed = told
        .signers
        .iter()
        .find(|signer| signer.refresh == Some(ordered.refresh) && signer.step == Some(RefreshStep::Failed));
    if let Some(RefreshingSigner { signer, reason, .. }) = failed {
        let reason = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let message = format!("key {} has no new shares: signer {signer}{reason}", ordered.key);
        return Err(Failure::new(Code::Failed, message));
    }
    let all_new = !told.signers.is_empty() && told.signers.iter().all(|signer| is_new(ordered, signer));
    Ok(told.signers.iter().filter_map(|signer| signer.epoch).min().filter(|_| all_new))
}

/// What each signer does.
fn doings(ordered: &Refresh, told: &KeyRefresh) -> String {
    let doings =
        told.signers.iter().map(|signer| format!("signer {} {}", signer.signer, doing(ordered, signer)));
    doings.collect::<Vec<_>>().join(", ")
}

fn doing(ordered: &Refresh, signer: &RefreshingSigner) -> String {
    // Without a refresh: it started again with the new share that it had stored.
    let of_this = signer.refresh.is_none_or(|refresh| refresh == ordered.refresh);
    let does = match &signer.step {
        _ if is_new(ordered, signer) => "signs with its new share",
        _ if !signer.live => "is away",
        Some(RefreshStep::Meeting) if of_this => "meets the others",
        Some(RefreshStep::Dealing) if of_this => "makes new shares",
        Some(RefreshStep::Stored) if of_this => "has stored its new share",
        Some(RefreshStep::Other(step)) if of_this => return format!("is at `{}`", output::plain(step)),
        _ => "has not begun",
    };
    does.to_owned()
}

/// What is said when not all signers have new shares in time.
fn late(ordered: &Refresh, last: Option<&KeyRefresh>, patience: Duration) -> String {
    let waiting = last.map(|told| {
        let signers = told.signers.iter().filter(|signer| !is_new(ordered, signer)).cloned().collect();
        doings(ordered, &KeyRefresh { signers, ..told.clone() })
    });
    format!(
        "not all signers of key {} sign with new shares after {} s: {}. It may not have failed: the new shares take their \
         place as soon as all signers have said that they have theirs",
        ordered.key,
        patience.as_secs(),
        waiting.as_deref().unwrap_or("the manager has not said how far they are"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn ordered() -> Refresh {
        Refresh { key: "default".into(), refresh: ID, epoch: 1 }
    }

    fn told(signers: Value) -> KeyRefresh {
        serde_json::from_value(json!({"key": "default", "epoch": 1, "signers": signers})).unwrap()
    }

    #[test]
    fn it_is_done_when_all_signers_have_a_later_epoch_and_not_when_most_have() {
        let signer = |signer: u8, epoch: u64| json!({"signer": signer, "live": true, "epoch": epoch});
        let epoch = |signers| done(&ordered(), &told(signers)).unwrap();
        assert_eq!(epoch(json!([signer(1, 2), signer(2, 1)])), None);
        assert_eq!(epoch(json!([signer(1, 2), {"signer": 2, "live": false}])), None);
        assert_eq!(epoch(json!([])), None);
        assert_eq!(epoch(json!([signer(1, 2), signer(2, 2)])), Some(2));
    }

    #[test]
    fn a_signer_that_failed_ends_it_and_one_that_failed_before_does_not() {
        let failed = |refresh: Uuid| {
            let signer = json!({
                "signer": 2, "live": true, "epoch": 1, "refresh": refresh, "step": "failed", "reason": "no disk",
            });
            done(&ordered(), &told(json!([signer])))
        };
        let error = failed(ID).unwrap_err().to_string();
        assert_eq!(error, "key default has no new shares: signer 2: no disk");
        assert_eq!(failed(Uuid::nil()).unwrap(), None);
    }

    #[test]
    fn who_is_waited_for_is_told_with_what_it_does() {
        let before = Uuid::nil();
        let told = told(json!([
            {"signer": 1, "live": true, "epoch": 2, "refresh": ID, "step": "done"},
            {"signer": 2, "live": true, "epoch": 1, "step": "stored"},
            {"signer": 3, "live": true, "epoch": 1, "refresh": ID, "step": "dealing"},
            {"signer": 4, "live": true, "epoch": 1, "refresh": before, "step": "done"},
            {"signer": 5, "live": false, "epoch": 1, "refresh": ID, "step": "meeting"},
        ]));
        let waited_for = "signer 2 has stored its new share, signer 3 makes new shares, signer 4 has not begun, \
                          signer 5 is away";
        let all = format!("signer 1 signs with its new share, {waited_for}");
        assert_eq!(doings(&ordered(), &told), all);
        let late = late(&ordered(), Some(&told), Duration::from_secs(120));
        assert!(late.contains(&format!("after 120 s: {waited_for}. It may not have failed")), "{late}");
    }
}
