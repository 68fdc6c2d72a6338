//! Making a key together, taking over one that was made elsewhere, or giving one new shares: each signer in its own place,
//! over the bus, and none ever sees another's share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tss_common::audit::{Event, NewShare};
use tss_common::bus::{Address, Bus, Subscription};
use tss_common::envelope::{Endpoint, Letter};
use tss_common::identity::{Identity, Roster};
use tss_common::intent::hash_fields;
use tss_common::session::{Operation, SessionContext};
use tss_mpc::{Engine, ForeignShare, KeygenSetup, Quorum, RenewSetup, ShareDocument, SignerIndex, Threshold};
use uuid::Uuid;

use crate::compute::Compute;
use crate::journal::Journal;
use crate::metrics::{Dropped, SignerMetrics};
use crate::session::{self, Party, Patience};

/// How often a signer that waits shows its nonce again, to those that have come since.
const REJOIN: Duration = Duration::from_secs(3);

/// How many messages may be on their way into the process at once.
const IN_FLIGHT: u16 = 256;

/// Where the key comes from.
pub enum Source {
    /// It is made.
    New,
    /// It was made elsewhere; this is the signer's share of it.
    Foreign(ForeignShare),
    /// It is there, and gets new shares.
    Held(Renewal),
}

/// How a key gets new shares. All but `held` are equal at all signers.
pub struct Renewal {
    /// The share that this signer has, if it has one.
    pub held: Option<ShareDocument>,
    /// The epoch that ends.
    pub epoch: u64,
    /// Who deals: as many as sign, all with a share of that epoch.
    pub dealers: Quorum,
}

/// What one signer's part in making a key starts from. All but `index`, `identity`, `data_dir` and a foreign share are
/// equal at all signers.
pub struct KeygenOptions {
    /// Where the key comes from.
    pub source: Source,
    /// Which signer it is.
    pub index: SignerIndex,
    /// Its identity.
    pub identity: Identity,
    /// Everybody's.
    pub roster: Roster,
    /// The cluster that the key is for.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// What sets this try apart from others, if anything does: signers of different tries never meet in
    /// one session.
    pub attempt: Option<String>,
    /// How many signers there are, and how many of them sign. All of them take part.
    pub threshold: Threshold,
    /// The protocol.
    pub engine: Arc<dyn Engine>,
    /// How it reaches the others.
    pub bus: Arc<dyn Bus>,
    /// Where it computes.
    pub compute: Compute,
    /// Where the signer keeps its own files.
    pub data_dir: PathBuf,
    /// How long it waits for the others, in all.
    pub patience: Duration,
    /// What it counts.
    pub metrics: SignerMetrics,
}

/// Makes a key or its new shares, or takes one over, with all other signers of the roster, which must do the same within
/// `patience`; yields this signer's share. A signer of the same index may run meanwhile, with a `data_dir` of its own. When
/// it fails no new share exists that could be used, and it can be tried again.
///
/// # Errors
/// Naming whom it waited for in vain, who cheated, or whose share is of another key.
pub async fn generate(options: KeygenOptions) -> anyhow::Result<ShareDocument> {
    let KeygenOptions {
        source,
        index,
        identity,
        roster,
        cluster,
        key,
        attempt,
        threshold,
        engine,
        bus,
        compute,
        data_dir,
        patience,
        metrics,
    } = options;
    let endpoint = Endpoint::new(&cluster, index, identity, roster).map_err(anyhow::Error::msg)?;
    let journal = Journal::open(&data_dir, index, None)?;
    let operation = match source {
        Source::New => Operation::Keygen,
        Source::Foreign(_) => Operation::Import,
        Source::Held(_) => Operation::Renew,
    };
    let (epoch, dealers) = match &source {
        Source::New | Source::Foreign(_) => (1, None),
        Source::Held(Renewal { epoch, dealers, .. }) => {
            (epoch.checked_add(1).context("there is no later epoch")?, Some(dealers.clone()))
        }
    };
    let intent = intent(operation, &cluster, &key, threshold, dealers.as_ref(), attempt.as_deref());
    let quorum = Quorum::new(threshold.signers())?;
    // There is no request. All signers come to the same name for what they do.
    let [name @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = intent;
    let context = SessionContext {
        operation,
        cluster: &cluster,
        key: &key,
        epoch,
        engine: engine.id(),
        request: Uuid::from_bytes(name),
        attempt: 1,
        quorum: &quorum,
        intent,
    };
    let inbox = Address::Ceremonies;
    let party = Party { endpoint: Arc::new(endpoint), bus: bus.clone(), inbox, compute, metrics };
    let rounds = bus.subscribe(inbox(index), IN_FLIGHT).await?;
    let (inbox, messages) = mpsc::channel(IN_FLIGHT.into());
    let taking = take_rounds(rounds, context.request, inbox, &party);

    let end = Instant::now() + patience;
    let patience = Patience { join: end, end, rejoin: Some(REJOIN), silence: None };
    let setup = {
        let (cluster, key) = (cluster.clone(), key.clone());
        move |session| KeygenSetup { session, cluster, key, index, threshold }
    };
    let result = session::run(
        &party,
        &context,
        patience,
        messages,
        |session| journal.begin(session, Vec::new()),
        move |session| match &source {
            Source::New => engine.keygen(setup(session)),
            Source::Foreign(share) => engine.import(setup(session), share),
            Source::Held(Renewal { held, epoch, dealers }) => {
                let KeygenSetup { session, cluster, key, index, threshold } = setup(session);
                let (epoch, dealers) = (*epoch, dealers.clone());
                let setup = RenewSetup { session, cluster, key, index, epoch, dealers, threshold };
                engine.renew(setup, held.as_ref())
            }
        },
    )
    .await;
    taking.abort();
    let done = match result {
        Ok(done) => done,
        Err(failure) => {
            // Whoever tries again opens it again.
            journal.close().await;
            anyhow::bail!("the {operation} did not finish: {}", failure.abort);
        }
    };
    let made = NewShare {
        session: done.session,
        cluster,
        key,
        epoch,
        threshold,
        public_key: done.output.core.secp256k1()?.public_key,
    };
    let event = match operation {
        Operation::Import => Event::Import(made),
        Operation::Renew => Event::Renew(made),
        Operation::Keygen | Operation::Sign => Event::Keygen(made),
    };
    journal.note(vec![event]).await?;
    journal.close().await;
    Ok(done.output)
}

/// What all signers of a session have to agree on. A try without a name has one field less than any with
/// one, so that it is none of them. Which key is imported is not in it: signers that bring different ones must meet, to
/// find that out.
fn intent(
    operation: Operation,
    cluster: &str,
    key: &str,
    threshold: Threshold,
    dealers: Option<&Quorum>,
    attempt: Option<&str>,
) -> [u8; 32] {
    let parties = [threshold.t(), threshold.n()];
    let dealers: Option<Vec<u8>> = dealers.map(|dealers| dealers.iter().map(SignerIndex::get).collect());
    let mut fields = vec![cluster.as_bytes(), key.as_bytes(), &parties];
    fields.extend(dealers.as_deref());
    fields.extend(attempt.map(str::as_bytes));
    hash_fields(&format!("tss.network/{operation}/v1"), &fields)
}

/// Hands messages to the one session there is.
fn take_rounds(
    mut rounds: Subscription,
    request: Uuid,
    inbox: mpsc::Sender<Letter>,
    party: &Party,
) -> JoinHandle<()> {
    let (endpoint, metrics) = (party.endpoint.clone(), party.metrics.clone());
    tokio::spawn(async move {
        while let Some(delivery) = rounds.recv().await {
            let routed = match endpoint.read(&delivery.body) {
                Ok(letter) if letter.header.request != request => Err(Dropped::Late),
                Ok(letter) => inbox.try_send(letter).map_err(|_| Dropped::Overflow),
                Err(reason) => Err(reason.into()),
            };
            if let Err(reason) = routed {
                metrics.dropped(reason);
            }
            delivery.ack();
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_made_and_each_try_of_it_is_another_intent() {
        let threshold = |t, n| Threshold::new(t, n).unwrap();
        let intent = |cluster, key, threshold, attempt| {
            intent(Operation::Keygen, cluster, key, threshold, None, attempt)
        };
        let dealers =
            |dealers: [u8; 2]| Quorum::new(dealers.map(|index| SignerIndex::new(index).unwrap())).unwrap();
        let renewal = |of, attempt| {
            super::intent(Operation::Renew, "c", "k", threshold(2, 3), Some(&dealers(of)), attempt)
        };
        let intents = [
            super::intent(Operation::Import, "c", "k", threshold(2, 3), None, None),
            renewal([1, 2], None),
            renewal([1, 3], None),
            renewal([1, 2], Some("1")),
            intent("c", "k", threshold(2, 3), None),
            intent("ck", "", threshold(2, 3), None),
            intent("c", "k", threshold(2, 4), None),
            intent("c", "k", threshold(3, 3), None),
            intent("c", "k", threshold(2, 3), Some("1")),
            intent("c", "k", threshold(2, 3), Some("2")),
        ];
        assert_eq!(intents.iter().collect::<BTreeSet<_>>().len(), intents.len());
        assert_eq!(intents[8], intent("c", "k", threshold(2, 3), Some("1")));
    }
}
