//! Refreshes: new shares of a key, which all its signers make together while the old ones sign on. A manager orders them and
//! no more: how far they are, the signers say with their heartbeats.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;
use tss_common::bus::{Address, Bus};
use tss_common::wire::{self, Heartbeat, Refresh, RefreshOrder, RefreshStep};
use tss_mpc::{EngineId, SignerIndex};
use uuid::Uuid;

use crate::presence::{self, Presence};
use crate::store::KeyRecord;

/// How long the signers have.
const VALIDITY: SignedDuration = SignedDuration::from_secs(120);

/// How long the bus has to take the orders.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the signers have to say that they have begun. Whoever asks meanwhile has no other refresh ordered.
const BEGINNING: Duration = Duration::from_secs(10);

/// The last refresh of each key that this manager has ordered.
#[derive(Default)]
pub struct Refreshes(Mutex<HashMap<String, Ordered>>);

#[derive(Clone)]
struct Ordered {
    refresh: Refresh,
    at: Instant,
    /// Whether the bus has taken the orders to all signers.
    told: bool,
    /// Whether a signer has said that it has begun.
    begun: bool,
}

/// Why a refresh was not ordered, or not of all signers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unordered {
    /// Some cannot take part.
    #[error(
        "{} missing: a refresh takes all {all} signers of the key, live and with epoch {epoch} of it",
        who(missing, ["is", "are"])
    )]
    Missing {
        /// Who.
        missing: Vec<SignerIndex>,
        /// How many there are.
        all: u8,
        /// The epoch that was to end.
        epoch: u64,
    },
    /// The bus did not take the orders to some.
    #[error("{} not told: the message bus did not take the order", who(.0, ["was", "were"]))]
    Untold(Vec<SignerIndex>),
}

/// `signer 2 is`, `signers 2, 3 are`.
fn who(signers: &[SignerIndex], [one, many]: [&str; 2]) -> String {
    let numbers: Vec<_> = signers.iter().map(ToString::to_string).collect();
    let (who, verb) = if numbers.len() == 1 { ("signer", one) } else { ("signers", many) };
    format!("{who} {} {verb}", numbers.join(", "))
}

impl Refreshes {
    fn ordered(&self) -> MutexGuard<'_, HashMap<String, Ordered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all signers of a key make new shares. Yields which refresh that is, the one that is under way, if there is one, and
    /// which epoch it ends.
    ///
    /// # Errors
    /// [`Unordered`]. Whoever asks again after [`Unordered::Untold`] has the same one ordered.
    pub async fn order(
        &self,
        bus: &Arc<dyn Bus>,
        presence: &Presence,
        engine: EngineId,
        cluster: &str,
        key: &KeyRecord,
    ) -> Result<(Uuid, u64), Unordered> {
        let live = presence.live();
        let of_key = live.iter().filter(|heartbeat| presence::holds(heartbeat, key, engine));
        let epochs: BTreeMap<_, _> =
            of_key.map(|heartbeat| (heartbeat.signer, heartbeat.key.epoch)).collect();
        // Where some sign with the next epoch already, those who do not need them: all end the one before together.
        let before = key.epoch.checked_sub(1).filter(|before| epochs.values().any(|epoch| epoch == before));
        let ends = before.unwrap_or(key.epoch);
        let takes_part = |signer: &SignerIndex| {
            epochs.get(signer).is_some_and(|&epoch| epoch == ends || Some(epoch) == ends.checked_add(1))
        };
        let missing: Vec<_> = key.threshold.signers().filter(|signer| !takes_part(signer)).collect();
        if !missing.is_empty() {
            return Err(Unordered::Missing { missing, all: key.threshold.n(), epoch: ends });
        }
        let (id, to_tell) = self.choose(&live, cluster, key, ends);
        if let Some(refresh) = to_tell {
            tell(bus, key, refresh).await?;
            if let Some(ordered) = self.ordered().get_mut(&key.id).filter(|ordered| ordered.refresh.id == id)
            {
                ordered.told = true;
            }
        }
        Ok((id, ends))
    }

    /// A signer says how far it is. From then on it is under way as long as one says so: all may have died and come back.
    pub fn heard(&self, heartbeat: &Heartbeat) {
        let Some(refresh) = &heartbeat.refresh else { return };
        if let Some(ordered) = self.ordered().get_mut(&heartbeat.key.id)
            && ordered.refresh.id == refresh.id
        {
            ordered.begun = true;
        }
    }

    /// Which refresh it is, and what the signers are to be told, unless they have been.
    fn choose(
        &self,
        live: &[Heartbeat],
        cluster: &str,
        key: &KeyRecord,
        ends: u64,
    ) -> (Uuid, Option<Refresh>) {
        let said = || {
            let of_key = live.iter().filter(|heartbeat| heartbeat.key.id == key.id);
            of_key.filter_map(|heartbeat| heartbeat.refresh.as_ref())
        };
        let under_way = said().find(|it| matches!(it.step, RefreshStep::Meeting | RefreshStep::Dealing));
        let mut ordered = self.ordered();
        let ours = ordered.get(&key.id).filter(|Ordered { refresh, at, begun, .. }| match under_way {
            Some(it) => it.id == refresh.id,
            // The signers may not have heard of it, or not said so.
            None => refresh.epoch == ends && !begun && at.elapsed() < BEGINNING,
        });
        if let Some(Ordered { refresh, told, .. }) = ours {
            return (refresh.id, (!told).then(|| refresh.clone()));
        }
        if let Some(it) = under_way {
            return (it.id, None);
        }
        let refresh = Refresh {
            id: Uuid::new_v4(),
            cluster: cluster.to_owned(),
            key: key.id.clone(),
            epoch: ends,
            expires: Timestamp::now().saturating_add(VALIDITY).unwrap_or(Timestamp::MAX),
        };
        let fresh = Ordered { refresh: refresh.clone(), at: Instant::now(), told: false, begun: false };
        ordered.insert(key.id.clone(), fresh);
        (refresh.id, Some(refresh))
    }
}

/// How old shares may become, as the configuration has it; `None` for as old as they like.
pub fn longest_age(hours: u32) -> Option<SignedDuration> {
    (hours > 0).then(|| SignedDuration::from_hours(hours.into()))
}

/// Whether a key's shares are older than they may be. Of those of an unknown age, nobody can say that they are not.
pub fn is_due(key: &KeyRecord, longest_age: SignedDuration, now: Timestamp) -> bool {
    key.since.is_none_or(|since| now.duration_since(since) > longest_age)
}

/// Orders a refresh of all signers.
async fn tell(bus: &Arc<dyn Bus>, key: &KeyRecord, refresh: Refresh) -> Result<(), Unordered> {
    let everybody = || key.threshold.signers();
    let order = wire::to_json(&RefreshOrder { refresh }).map_err(|error| {
        tracing::error!(%error, "a refresh cannot be written");
        Unordered::Untold(everybody().collect())
    })?;
    let sends = everybody().map(|signer| {
        let order = order.clone();
        async move { (signer, timeout(PATIENCE, bus.publish(Address::Requests(signer), order)).await) }
    });
    let mut untold = Vec::new();
    for (signer, sent) in join_all(sends).await {
        match sent {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => tracing::warn!(%signer, %error, "a signer was not told of a refresh"),
            Err(_) => tracing::warn!(%signer, "a signer was not told of a refresh in time"),
        }
        untold.push(signer);
    }
    if untold.is_empty() { Ok(()) } else { Err(Unordered::Untold(untold)) }
}

#[cfg(test)]
mod tests {
    use tss_common::bus::memory::MemoryBus;
    use tss_common::bus::{BusError, BusState, Subscription};
    use tss_common::wire::{Order, Refreshing};

    use super::*;
    use crate::presence::tests::{heartbeat, index, key};

    /// A bus that takes nothing for one signer.
    struct Deaf {
        bus: Arc<dyn Bus>,
        to: Mutex<Option<SignerIndex>>,
    }

    #[async_trait::async_trait]
    impl Bus for Deaf {
        async fn publish(&self, to: Address, body: bytes::Bytes) -> Result<(), BusError> {
            if self.to.lock().unwrap().map(Address::Requests) == Some(to) {
                return Err(BusError::Down("no".into()));
            }
            self.bus.publish(to, body).await
        }
        async fn subscribe(&self, at: Address, in_flight: u16) -> Result<Subscription, BusError> {
            self.bus.subscribe(at, in_flight).await
        }
        fn state(&self) -> tokio::sync::watch::Receiver<BusState> {
            self.bus.state()
        }
        async fn close(&self) {
            self.bus.close().await;
        }
    }

    /// A manager's part, and the inboxes of its signers.
    struct Managing {
        refreshes: Refreshes,
        presence: Presence,
        deaf: Arc<Deaf>,
        bus: Arc<dyn Bus>,
        inboxes: Vec<Subscription>,
    }

    impl Managing {
        async fn start() -> Self {
            let deaf = Arc::new(Deaf { bus: MemoryBus::new(), to: Mutex::default() });
            let bus: Arc<dyn Bus> = deaf.clone();
            let mut inboxes = Vec::new();
            for signer in 1..=3 {
                inboxes.push(bus.subscribe(Address::Requests(index(signer)), 8).await.unwrap());
            }
            Self { refreshes: Refreshes::default(), presence: Presence::default(), deaf, bus, inboxes }
        }

        fn hear(&self, signer: u8, refresh: Option<(Uuid, RefreshStep)>) {
            let refresh = refresh.map(|(id, step)| Refreshing { id, step });
            let heartbeat = Heartbeat { refresh, ..heartbeat(signer, 1, &[], false) };
            self.refreshes.heard(&heartbeat);
            assert!(self.presence.heard(heartbeat));
        }

        async fn order(&self) -> Result<Uuid, Unordered> {
            self.order_of(1).await.map(|(id, ends)| {
                assert_eq!(ends, 1);
                id
            })
        }

        /// The same with this epoch on record.
        async fn order_of(&self, epoch: u64) -> Result<(Uuid, u64), Unordered> {
            let key = KeyRecord { epoch, ..key() };
            self.refreshes.order(&self.bus, &self.presence, EngineId::Dkls23, "tss", &key).await
        }

        /// What each signer has been told.
        async fn told(&mut self) -> Vec<Vec<Refresh>> {
            let mut all = Vec::new();
            for inbox in &mut self.inboxes {
                let mut told = Vec::new();
                while let Ok(Some(delivery)) = timeout(Duration::from_millis(50), inbox.recv()).await {
                    let Ok(Order::Refresh(refresh)) = Order::read(&delivery.body) else {
                        panic!("no refresh")
                    };
                    told.push(refresh);
                    delivery.ack();
                }
                all.push(told);
            }
            all
        }
    }

    #[tokio::test]
    async fn a_refresh_is_ordered_of_all_signers_or_of_none() {
        let mut managing = Managing::start().await;
        managing.hear(1, None);
        let error = managing.order().await.unwrap_err().to_string();
        assert!(error.starts_with("signers 2, 3 are missing: a refresh takes all 3 signers"), "{error}");
        managing.hear(2, None);
        // With an epoch after the next it can be of no help.
        managing.presence.heard(heartbeat(3, 3, &[], false));
        let error = managing.order().await.unwrap_err().to_string();
        assert!(error.starts_with("signer 3 is missing") && error.ends_with("epoch 1 of it"), "{error}");
        assert_eq!(managing.told().await, [[], [], []]);

        // It is before the others.
        managing.presence.heard(heartbeat(3, 2, &[], false));
        let id = managing.order().await.unwrap();
        let told = managing.told().await;
        let refresh = told[0][0].clone();
        assert_eq!(told, vec![vec![refresh.clone()]; 3]);
        assert_eq!((refresh.id, refresh.cluster.as_str(), refresh.key.as_str()), (id, "tss", "default"));
        let left = refresh.expires.duration_since(Timestamp::now());
        assert!(refresh.epoch == 1 && left <= VALIDITY && left > VALIDITY / 2, "{refresh:?}");
    }

    #[tokio::test]
    async fn those_who_are_an_epoch_behind_are_met_by_the_others() {
        let mut managing = Managing::start().await;
        for (signer, epoch) in [(1, 1), (2, 2), (3, 2)] {
            managing.presence.heard(heartbeat(signer, epoch, &[], false));
        }
        // Whether those before them are enough to be on record, or not.
        for on_record in [1, 2] {
            let (_, ends) = managing.order_of(on_record).await.unwrap();
            assert_eq!(ends, 1);
        }
        assert!(managing.told().await.iter().flatten().all(|refresh| refresh.epoch == 1));
        managing.presence.heard(heartbeat(1, 2, &[], false));
        assert_eq!(managing.order_of(2).await.unwrap().1, 2);
    }

    #[test]
    fn shares_are_due_when_they_are_too_old_or_nobody_knows_how_old() {
        assert_eq!(longest_age(0), None);
        let (age, now) = (longest_age(2).unwrap(), Timestamp::from_second(1_000_000).unwrap());
        let due = |since: Option<i64>| {
            let since = since.map(|ago| now.checked_sub(SignedDuration::from_secs(ago)).unwrap());
            is_due(&KeyRecord { since, ..key() }, age, now)
        };
        assert!(due(None) && due(Some(7201)));
        // A clock that was set back makes nothing due.
        assert!(!due(Some(7200)) && !due(Some(0)) && !due(Some(-7201)));
    }

    #[tokio::test]
    async fn whoever_asks_while_one_is_under_way_is_told_of_that_one() {
        let mut managing = Managing::start().await;
        (1..=3).for_each(|signer| managing.hear(signer, None));
        let first = managing.order().await.unwrap();
        // Before the signers say that they have begun, too.
        assert_eq!(managing.order().await, Ok(first));
        managing.hear(2, Some((first, RefreshStep::Meeting)));
        assert_eq!(managing.order().await, Ok(first));
        assert!(managing.told().await.iter().all(|told| told.len() == 1));

        // It has ended, for good or ill, and another manager orders the next one.
        managing.hear(2, Some((first, RefreshStep::Failed("no".into()))));
        let second = managing.order().await.unwrap();
        assert_ne!(second, first);
        let others = Uuid::from_u128(7);
        managing.hear(3, Some((others, RefreshStep::Dealing)));
        assert_eq!(managing.order().await, Ok(others));
        assert!(managing.told().await.iter().all(|told| told.len() == 1));
        for step in [RefreshStep::Stored, RefreshStep::Done] {
            (1..=3).for_each(|signer| managing.hear(signer, Some((second, step.clone()))));
            assert!(![first, second, others].contains(&managing.order().await.unwrap()), "{step:?}");
        }

        // All die in the middle of one, and come back without it.
        let last = managing.order().await.unwrap();
        (1..=3).for_each(|signer| managing.hear(signer, Some((last, RefreshStep::Dealing))));
        assert_eq!(managing.order().await, Ok(last));
        (1..=3).for_each(|signer| managing.hear(signer, None));
        assert_ne!(managing.order().await, Ok(last));
    }

    #[tokio::test]
    async fn what_not_all_signers_have_been_told_is_told_to_all_when_somebody_asks_again() {
        let mut managing = Managing::start().await;
        (1..=3).for_each(|signer| managing.hear(signer, None));
        *managing.deaf.to.lock().unwrap() = Some(index(2));
        let error = managing.order().await.unwrap_err();
        assert!(error.to_string().starts_with("signer 2 was not told: the message bus"), "{error}");
        let id = managing.told().await[0][0].id;
        managing.hear(1, Some((id, RefreshStep::Meeting)));
        *managing.deaf.to.lock().unwrap() = None;
        assert_eq!(managing.order().await, Ok(id));
        let told = managing.told().await;
        assert!(told.iter().all(|told| told.len() == 1 && told[0].id == id), "{told:?}");
        assert_eq!(managing.order().await, Ok(id));
        assert_eq!(managing.told().await, [[], [], []]);
    }
}
