//! What is done to the network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use tokio::time::sleep;
use uuid::Uuid;

use crate::load::Ledger;
use crate::network::{CRAMPED, LAST_ROUND, Network, Part, SIGNERS};
use crate::proof;

/// How long the moment to strike is waited for.
const OPPORTUNITY: Duration = Duration::from_secs(60);

/// How long a killed signer is away.
const MOMENT: Duration = Duration::from_secs(1);

/// How long the database is stopped, a signer frozen, a disk full.
const OUTAGE: Duration = Duration::from_secs(10);

/// How soon another manager drives what a killed one did, or has seen it ended: a lease lapses after 3 s,
/// and lapsed ones are looked for every second.
const HANDOVER: Duration = Duration::from_secs(5);

/// How much longer it may take here, where everything shares two cores.
const TOLERANCE: Duration = Duration::from_secs(3);

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A process is killed the moment a signer has sent an envelope of this round: that signer, or the
    /// manager that drives the request.
    Kill(Part, u8),
    RestartBroker,
    StopDatabase,
    FillDisk,
    Freeze(u8),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(part, 0) => write!(f, "kill {part} at the join"),
            Self::Kill(part, round) => write!(f, "kill {part} at round {round}"),
            Self::RestartBroker => write!(f, "restart the broker"),
            Self::StopDatabase => write!(f, "stop the database for {OUTAGE:?}"),
            Self::FillDisk => write!(f, "fill signer {CRAMPED}'s disk for {OUTAGE:?}"),
            Self::Freeze(signer) => write!(f, "freeze signer {signer} for {OUTAGE:?}"),
        }
    }
}

/// How a fault went.
pub(crate) struct Struck {
    pub(crate) at: Instant,
    /// When its cause was gone.
    pub(crate) over: Instant,
    /// After a manager was killed: how long the last of its requests went without one.
    pub(crate) handed_over: Option<Duration>,
}

impl Fault {
    /// All of them, in order.
    pub(crate) fn all() -> Vec<Self> {
        let rounds = 0..=LAST_ROUND;
        let signers = SIGNERS
            .into_iter()
            .flat_map(|signer| rounds.clone().map(move |round| Self::Kill(Part::Signer(signer), round)));
        let managers = rounds.clone().map(|round| Self::Kill(Part::Manager(usize::from(round % 2)), round));
        let others = [Self::RestartBroker, Self::StopDatabase, Self::FillDisk, Self::Freeze(3)];
        signers.chain(managers).chain(others).collect()
    }

    /// The process that does not live through it.
    pub(crate) fn victim(self) -> Option<Part> {
        match self {
            Self::Kill(part, _) => Some(part),
            _ => None,
        }
    }

    /// Does it, and ends its cause.
    pub(crate) async fn strike(self, network: &mut Network, ledger: &Ledger) -> Struck {
        let mut handed_over = None;
        let at = match self {
            Self::Kill(part @ Part::Signer(signer), round) => {
                let mut tap = network.tap().await;
                tap.until(OPPORTUNITY, |header| header.from.get() == signer && header.round == round).await;
                network.kill(part);
                let at = Instant::now();
                sleep(MOMENT).await;
                network.start_part(part);
                at
            }
            Self::Kill(part @ Part::Manager(manager), round) => {
                let mut tap = network.tap().await;
                tap.until(OPPORTUNITY, |header| {
                    header.round == round && ledger.under_way(manager).contains(&header.request)
                })
                .await;
                network.kill(part);
                let at = Instant::now();
                handed_over = watch_handover(network, ledger.under_way(manager), at).await;
                network.start_part(part);
                at
            }
            Self::RestartBroker => {
                let at = Instant::now();
                network.rabbitmq.stop().await;
                network.rabbitmq.start().await;
                at
            }
            Self::StopDatabase => {
                let at = Instant::now();
                network.mongodb.stop().await;
                sleep(OUTAGE).await;
                network.mongodb.start().await;
                at
            }
            Self::FillDisk => {
                let signer = network.part(Part::Signer(CRAMPED));
                let before = signer.log().len();
                let at = Instant::now();
                network.disk.fill();
                sleep(OUTAGE).await;
                let log = signer.log();
                assert!(
                    log[before..].contains("No space left on device"),
                    "the full disk was noticed\n{log}"
                );
                network.disk.free();
                at
            }
            Self::Freeze(signer) => {
                let signer = network.part(Part::Signer(signer));
                let at = Instant::now();
                signer.signal("STOP");
                sleep(OUTAGE).await;
                signer.signal("CONT");
                at
            }
        };
        Struck { at, over: Instant::now(), handed_over }
    }
}

/// How far a request is, for who drives it: the holder of its lease, and the attempts begun.
type Driven = (Document, i64);

/// Follows the requests of a killed manager in the database until each has ended, or another manager has
/// begun an attempt of it. Yields how long the last of them took, if there were any.
async fn watch_handover(network: &Network, requests: BTreeSet<Uuid>, killed: Instant) -> Option<Duration> {
    let collection = proof::requests(network).await;
    let look = async |requests: &BTreeSet<Uuid>| -> BTreeMap<Uuid, Driven> {
        let ids: Vec<_> = requests.iter().map(|id| proof::bson_id(*id)).collect();
        let found = collection.find(doc! { "_id": { "$in": ids }, "finished": false });
        let found: Vec<Document> = found.await.unwrap().try_collect().await.unwrap();
        let driven = |found: Document| {
            let holder = doc! { "holder": found.get_document("lease").unwrap().get("holder").unwrap() };
            (proof::request_id(&found), (holder, proof::integer(&found, "attempts")))
        };
        found.into_iter().map(driven).collect()
    };
    let mut left = look(&requests).await;
    let mut longest = None;
    while !left.is_empty() {
        let now = look(&left.keys().copied().collect()).await;
        let elapsed = killed.elapsed();
        left.retain(|id, (holder, attempts)| {
            let waits = now.get(id).is_some_and(|(by, begun)| by == holder || begun == attempts);
            if !waits {
                longest = Some(elapsed);
            }
            waits
        });
        assert!(
            left.is_empty() || elapsed <= HANDOVER + TOLERANCE,
            "nobody drives {left:?}, {elapsed:?} after their manager was killed: expected another manager to \
             within {HANDOVER:?}, and {TOLERANCE:?} more on this machine"
        );
        sleep(Duration::from_millis(100)).await;
    }
    longest
}
