//! Which signers are alive, and which of them sign next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tss_common::wire::{HEARTBEAT, Heartbeat};
use tss_mpc::{EngineId, Quorum, SignerIndex};

use crate::store::KeyRecord;

/// A signer that was silent for so long is not counted on.
const SILENCE: Duration = Duration::from_secs(3 * HEARTBEAT.as_secs());

/// For how long a signer that did not answer is chosen only if there is no other.
const PENALTY: Duration = Duration::from_secs(10);

/// How many orders are tried to find signers who have not banned each other.
const TRIES: usize = 32;

/// What the signers have said of themselves.
pub struct Presence {
    signers: Mutex<BTreeMap<SignerIndex, Seen>>,
    changed: watch::Sender<()>,
}

struct Seen {
    heartbeat: Heartbeat,
    at: Instant,
    /// Attempts of this manager that it takes part in.
    assigned: usize,
    penalised_until: Option<Instant>,
}

impl Seen {
    fn is_live(&self, now: Instant) -> bool {
        !self.heartbeat.stopping && now.duration_since(self.at) < SILENCE
    }

    /// Whether it can sign with a key by a protocol now.
    fn is_usable(&self, key: &KeyRecord, engine: EngineId, now: Instant) -> bool {
        self.is_live(now)
            && holds(&self.heartbeat, key, engine)
            && self.heartbeat.key.epoch == key.epoch
            && key.threshold.contains(self.heartbeat.signer)
    }
}

/// Whether a signer holds a share of a key, of whatever epoch, and speaks a protocol.
pub fn holds(Heartbeat { key: held, engines, .. }: &Heartbeat, key: &KeyRecord, engine: EngineId) -> bool {
    (&held.id, held.public_key) == (&key.id, key.public_key) && engines.contains(&engine)
}

/// A quorum that was chosen. Its signers count as busy with it until it is dropped.
pub struct Assignment {
    /// The signers.
    pub quorum: Quorum,
    presence: Arc<Presence>,
}

impl Drop for Assignment {
    fn drop(&mut self) {
        let mut signers = self.presence.signers();
        for index in self.quorum.iter() {
            if let Some(seen) = signers.get_mut(&index) {
                seen.assigned = seen.assigned.saturating_sub(1);
            }
        }
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self { signers: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Presence {
    fn signers(&self) -> MutexGuard<'_, BTreeMap<SignerIndex, Seen>> {
        self.signers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A signer has said that it is alive. `false` when it has said so before, or something else since:
    /// then somebody repeats it, and it means nothing.
    pub fn heard(&self, heartbeat: Heartbeat) -> bool {
        let now = Instant::now();
        let index = heartbeat.signer;
        let mut signers = self.signers();
        if signers.get(&index).is_some_and(|seen| heartbeat.at <= seen.heartbeat.at) {
            return false;
        }
        let fresh = signers.get(&index).is_none_or(|seen| !seen.is_live(now));
        let rekeyed = signers.get(&index).is_some_and(|seen| seen.heartbeat.key != heartbeat.key);
        if let Some(seen) = signers.get(&index)
            && seen.heartbeat.instance != heartbeat.instance
        {
            if seen.is_live(now) && !heartbeat.stopping {
                tracing::warn!(signer = %index, "signer restarted, or two processes run with its index");
            } else if heartbeat.stopping {
                // The farewell of a process that another has replaced.
                return true;
            }
        }
        if fresh != heartbeat.stopping && fresh {
            tracing::info!(signer = %index, sessions = heartbeat.sessions, "signer is alive");
        } else if heartbeat.stopping {
            tracing::info!(signer = %index, "signer is stopping");
        }
        let (assigned, penalised_until) =
            signers.get(&index).map_or((0, None), |seen| (seen.assigned, seen.penalised_until));
        // A signer that came back is as good as any.
        let penalised_until = if fresh { None } else { penalised_until };
        signers.insert(index, Seen { heartbeat, at: now, assigned, penalised_until });
        drop(signers);
        if fresh || rekeyed {
            self.changed.send_replace(());
        }
        true
    }

    /// Heartbeats of the live signers.
    pub fn live(&self) -> Vec<Heartbeat> {
        let now = Instant::now();
        self.signers().values().filter(|seen| seen.is_live(now)).map(|seen| seen.heartbeat.clone()).collect()
    }

    /// What each signer said last, and whether it is live.
    pub fn all(&self) -> Vec<(Heartbeat, bool)> {
        let now = Instant::now();
        self.signers().values().map(|seen| (seen.heartbeat.clone(), seen.is_live(now))).collect()
    }

    /// The live signers that hold a key and speak a protocol.
    pub fn usable(&self, key: &KeyRecord, engine: EngineId) -> Vec<SignerIndex> {
        let now = Instant::now();
        let signers = self.signers();
        signers.iter().filter(|(_, seen)| seen.is_usable(key, engine, now)).map(|(&index, _)| index).collect()
    }

    /// When each signer spoke last, by its own clock.
    pub fn heard_at(&self) -> BTreeMap<SignerIndex, Timestamp> {
        self.signers().iter().map(|(&index, seen)| (index, seen.heartbeat.at)).collect()
    }

    /// Changes when a signer comes to life, or holds another key or epoch than before.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// These signers did not answer: others are chosen first, for a while.
    pub fn penalise<'a>(&self, silent: impl IntoIterator<Item = &'a SignerIndex>) {
        let until = Instant::now() + PENALTY;
        let mut signers = self.signers();
        for index in silent {
            if let Some(seen) = signers.get_mut(index) {
                seen.penalised_until = Some(until);
            }
        }
    }

    /// Chooses who signs with `key`: t live signers, none of `excluded`, no two of whom have banned
    /// each other; those first who are charged with the least; among equals those who were not silent,
    /// then those with the fewest attempts, so that the load spreads over all quorums. `None` when there
    /// are not enough.
    pub fn choose(
        self: &Arc<Self>,
        key: &KeyRecord,
        engine: EngineId,
        excluded: &BTreeSet<SignerIndex>,
        charged: &BTreeMap<SignerIndex, u32>,
    ) -> Option<Assignment> {
        let now = Instant::now();
        let mut signers = self.signers();
        let mut candidates: Vec<_> = signers
            .iter()
            .filter(|(index, seen)| seen.is_usable(key, engine, now) && !excluded.contains(index))
            .map(|(&index, seen)| {
                let charged = charged.get(&index).copied().unwrap_or_default();
                let penalised = seen.penalised_until.is_some_and(|until| now < until);
                (charged, penalised, seen.assigned, rand::random::<u32>(), index, &seen.heartbeat.banned)
            })
            .collect();
        candidates.sort();
        let needed = usize::from(key.threshold.t());
        let mut chosen: Vec<SignerIndex> = Vec::with_capacity(needed);
        for _ in 0..TRIES {
            chosen.clear();
            for (.., index, banned) in &candidates {
                let at_odds = |other: &SignerIndex| {
                    banned.contains(other)
                        || signers.get(other).is_some_and(|seen| seen.heartbeat.banned.contains(index))
                };
                if chosen.len() < needed && !chosen.iter().any(at_odds) {
                    chosen.push(*index);
                }
            }
            if chosen.len() == needed {
                break;
            }
            // Bans stand in the way: begin with others.
            candidates.sort_by_cached_key(|_| rand::random::<u32>());
        }
        drop(candidates);
        if chosen.len() < needed {
            return None;
        }
        for index in &chosen {
            if let Some(seen) = signers.get_mut(index) {
                seen.assigned += 1;
            }
        }
        let quorum = Quorum::new(chosen).ok()?;
        Some(Assignment { quorum, presence: self.clone() })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tss_common::wire::KeyAnnouncement;
    use tss_mpc::{PublicKey, Scheme, Threshold};
    use uuid::Uuid;

    use super::*;

    const GENERATOR: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    pub(crate) fn index(i: u8) -> SignerIndex {
        SignerIndex::new(i).unwrap()
    }

    fn set(indices: &[u8]) -> BTreeSet<SignerIndex> {
        indices.iter().map(|&i| index(i)).collect()
    }

    pub(crate) fn key() -> KeyRecord {
        KeyRecord {
            id: "default".into(),
            epoch: 1,
            threshold: Threshold::new(2, 3).unwrap(),
            public_key: GENERATOR.parse::<PublicKey>().unwrap(),
            chain_code: [0; 32],
            since: None,
        }
    }

    pub(crate) fn heartbeat(signer: u8, epoch: u64, banned: &[u8], stopping: bool) -> Heartbeat {
        let KeyRecord { id, threshold, public_key, chain_code, .. } = key();
        Heartbeat {
            signer: index(signer),
            instance: Uuid::from_u128(signer.into()),
            at: jiff::Timestamp::now(),
            key: KeyAnnouncement {
                id,
                epoch,
                scheme: Scheme::EcdsaSecp256k1,
                threshold,
                public_key,
                chain_code,
            },
            engines: vec![EngineId::Dkls23],
            sessions: 0,
            banned: set(banned),
            stopping,
            shares: None,
            next: None,
            refresh: None,
        }
    }

    fn presence(heartbeats: impl IntoIterator<Item = Heartbeat>) -> Arc<Presence> {
        let presence = Arc::new(Presence::default());
        heartbeats.into_iter().for_each(|heartbeat| assert!(presence.heard(heartbeat)));
        presence
    }

    fn choose(presence: &Arc<Presence>, excluded: &[u8], charged: &[u8]) -> Option<Assignment> {
        let charged = set(charged).into_iter().map(|signer| (signer, 1)).collect();
        presence.choose(&key(), EngineId::Dkls23, &set(excluded), &charged)
    }

    #[test]
    fn load_spreads_evenly_over_the_signers() {
        let presence = presence((1..=3).map(|i| heartbeat(i, 1, &[], false)));
        let assignments: Vec<_> = (0..30).map(|_| choose(&presence, &[], &[]).unwrap()).collect();
        for i in 1..=3 {
            assert_eq!(assignments.iter().filter(|a| a.quorum.contains(index(i))).count(), 20);
        }
        drop(assignments);
        assert!(presence.signers().values().all(|seen| seen.assigned == 0));
    }

    #[test]
    fn the_excluded_never_sign_and_the_charged_only_if_they_must() {
        let presence = presence((1..=3).map(|i| heartbeat(i, 1, &[], false)));
        for _ in 0..10 {
            assert_eq!(
                choose(&presence, &[2], &[]).unwrap().quorum,
                Quorum::new([index(1), index(3)]).unwrap()
            );
            assert_eq!(
                choose(&presence, &[], &[1]).unwrap().quorum,
                Quorum::new([index(2), index(3)]).unwrap()
            );
            assert!(choose(&presence, &[2], &[1]).unwrap().quorum.contains(index(1)));
        }
        assert!(choose(&presence, &[1, 2], &[]).is_none());
    }

    #[test]
    fn a_pair_that_is_banned_is_never_chosen() {
        let presence = presence([
            heartbeat(1, 1, &[2], false),
            heartbeat(2, 1, &[], false),
            heartbeat(3, 1, &[], false),
        ]);
        for _ in 0..50 {
            assert!(choose(&presence, &[], &[]).unwrap().quorum.contains(index(3)));
        }
        assert!(choose(&presence, &[3], &[]).is_none());
    }

    #[test]
    fn those_who_stop_or_hold_another_epoch_do_not_count() {
        let presence =
            presence([heartbeat(1, 1, &[], false), heartbeat(2, 2, &[], false), heartbeat(3, 1, &[], false)]);
        assert!(!choose(&presence, &[], &[]).unwrap().quorum.contains(index(2)));
        presence.heard(heartbeat(3, 1, &[], true));
        assert!(choose(&presence, &[], &[]).is_none());
        assert_eq!(presence.live().len(), 2);
    }

    #[test]
    fn who_waits_for_signers_looks_again_when_one_comes_to_life_or_to_another_epoch() {
        let presence = presence([]);
        let mut changes = presence.changes();
        for (epoch, changed) in [(1, true), (1, false), (2, true), (2, false)] {
            assert!(presence.heard(heartbeat(1, epoch, &[], false)));
            assert_eq!(changes.has_changed().unwrap(), changed, "epoch {epoch}");
            changes.mark_unchanged();
        }
    }

    #[test]
    fn what_a_signer_said_before_does_not_replace_what_it_said_since() {
        let (ago, since) = (heartbeat(1, 1, &[], false), heartbeat(1, 1, &[2], false));
        let presence = presence([ago.clone(), since.clone()]);
        for repeated in [ago.clone(), since, Heartbeat { instance: Uuid::nil(), ..ago }] {
            assert!(!presence.heard(repeated));
            assert_eq!(presence.live()[0].banned, set(&[2]));
        }
    }
}
