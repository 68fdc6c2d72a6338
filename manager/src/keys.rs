//! The cluster's keys, as they are on record.
//!
//! A manager holds no key. It learns public keys from the signers: the first one that t signers agree on is put
//! on record for good, so that nobody can swap it later, and signatures are checked against it. New shares of it, which
//! are a later epoch, count once so many signers have them that one at least is honest. Where the configuration tells the public key, no other is ever used, whatever the store has on record.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;
use tss_common::wire::KeyAnnouncement;
use tss_mpc::{PublicKey, Scheme, SignerIndex, Threshold};

use crate::store::{KeyRecord, Store, StoreError};

/// The keys on record, by id.
pub struct Keys {
    /// What the configuration says: how the first record of a key has to be.
    expected: Threshold,
    told: Option<(String, PublicKey)>,
    store: Arc<dyn Store>,
    known: Mutex<HashMap<String, KeyRecord>>,
    changed: watch::Sender<()>,
}

/// Why a key has not been put on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unrecorded {
    /// Fewer than t signers have announced it.
    TooFew,
    /// It does not fit the configuration, or what is on record. Says how.
    Conflict(String),
}

impl Keys {
    /// No keys yet, and only such with this threshold will do at first; under the id of `told`, only its public key.
    pub fn new(expected: Threshold, told: Option<(String, PublicKey)>, store: Arc<dyn Store>) -> Self {
        Self { expected, told, store, known: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// The public key that the configuration tells for this id, if it is another one.
    fn other_than_told(&self, id: &str, public_key: PublicKey) -> Option<PublicKey> {
        let (told_id, told) = self.told.as_ref()?;
        (id == told_id && public_key != *told).then_some(*told)
    }

    /// The key of this id.
    pub fn get(&self, id: &str) -> Option<KeyRecord> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All keys, in the order of their ids.
    pub fn all(&self) -> Vec<KeyRecord> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known.values().cloned().collect();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }

    /// Changes when a key, or a later epoch of one, is put on record.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn know(&self, key: KeyRecord) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key.id.clone(), key);
        self.changed.send_replace(());
    }

    /// Reads what is on record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self) -> Result<(), StoreError> {
        for key in self.store.keys().await? {
            match self.other_than_told(&key.id, key.public_key) {
                None => self.know(key),
                Some(told) => tracing::warn!(
                    key = %key.id, on_record = %key.public_key, %told,
                    "the key on record in the store is not the one that `public_key` tells: it is not used"
                ),
            }
        }
        Ok(())
    }

    /// Considers what the live signers announce; puts a key on record once t of them agree.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn consider(
        &self,
        announced: &BTreeMap<SignerIndex, KeyAnnouncement>,
    ) -> Result<Vec<(SignerIndex, Unrecorded)>, StoreError> {
        let mut unrecorded = Vec::new();
        for (&signer, key) in announced {
            let agreeing = announced.iter().filter(|(_, other)| *other == key).map(|(&index, _)| index);
            match self.judge(key, &agreeing.collect()) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    let standing = self.store.pin_key(&record).await?;
                    let standing = match self.other_than_told(&standing.id, standing.public_key) {
                        None => standing,
                        Some(_) => record,
                    };
                    tracing::info!(
                        key = %standing.id, public_key = %standing.public_key, epoch = standing.epoch, "key is on record"
                    );
                    self.know(standing);
                }
                Err(reason) => unrecorded.push((signer, reason)),
            }
        }
        Ok(unrecorded)
    }

    /// What to put on record for an announcement; `None` when it is there.
    fn judge(
        &self,
        key: &KeyAnnouncement,
        agreeing: &BTreeSet<SignerIndex>,
    ) -> Result<Option<KeyRecord>, Unrecorded> {
        let enough = |of: Threshold| {
            agreeing.iter().filter(|&&signer| of.contains(signer)).count() >= usize::from(of.t())
        };
        // Every signature is checked as one of ECDSA.
        if key.scheme != Scheme::EcdsaSecp256k1 {
            return Err(Unrecorded::Conflict(format!(
                "key `{}` is for {}: expected one for {}",
                key.id,
                key.scheme,
                Scheme::EcdsaSecp256k1
            )));
        }
        if let Some(told) = self.other_than_told(&key.id, key.public_key) {
            return Err(Unrecorded::Conflict(format!(
                "key `{}` has public key {}, but `public_key` says {told}",
                key.id, key.public_key
            )));
        }
        if let Some(known) = self.get(&key.id) {
            if (known.public_key, known.chain_code) != (key.public_key, key.chain_code) {
                return Err(Unrecorded::Conflict(format!(
                    "key `{}` has public key {}, but {} is on record under this id",
                    key.id, key.public_key, known.public_key
                )));
            }
            if key.epoch <= known.epoch {
                return Ok(None);
            }
            // Who was malicious among the signers before must not end their epoch, and newcomers cannot. Those who may, say
            // what the next one's threshold is: shares can have been made for more or fewer signers.
            if !enough(known.threshold) {
                return Err(Unrecorded::TooFew);
            }
        } else if key.threshold != self.expected {
            return Err(Unrecorded::Conflict(format!(
                "the key is {}, but `threshold` and `total_parties` say {}",
                key.threshold, self.expected
            )));
        }
        if !enough(key.threshold) {
            return Err(Unrecorded::TooFew);
        }
        let KeyAnnouncement { id, epoch, scheme: _, threshold, public_key, chain_code } = key.clone();
        let since = Some(Timestamp::now());
        Ok(Some(KeyRecord { id, epoch, threshold, public_key, chain_code, since }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::EmbeddedStore;

    fn announcement(public_key: PublicKey) -> KeyAnnouncement {
        KeyAnnouncement {
            id: "default".into(),
            epoch: 1,
            scheme: Scheme::EcdsaSecp256k1,
            threshold: Threshold::new(2, 3).unwrap(),
            public_key,
            chain_code: [0; 32],
        }
    }

    fn public_key(text: &str) -> PublicKey {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_later_epoch_counts_once_as_many_signers_have_it_as_sign_and_only_of_the_same_key() {
        let ours = public_key("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798");
        let other = public_key("02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5");
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store")).unwrap());
        let keys = Keys::new(Threshold::new(2, 3).unwrap(), None, store.clone());
        let live = |epochs: [u64; 3], last| {
            let keys = [ours, ours, last];
            let announced = epochs
                .into_iter()
                .zip(keys)
                .map(|(epoch, key)| KeyAnnouncement { epoch, ..announcement(key) });
            (1..=3).map(|i| SignerIndex::new(i).unwrap()).zip(announced).collect()
        };
        let epoch = || keys.get("default").unwrap().epoch;
        assert_eq!(keys.consider(&live([1, 1, 1], ours)).await.unwrap(), []);
        let too_few = keys.consider(&live([1, 1, 2], ours)).await.unwrap();
        assert_eq!((too_few, epoch()), (vec![(SignerIndex::new(3).unwrap(), Unrecorded::TooFew)], 1));
        keys.consider(&live([1, 2, 2], ours)).await.unwrap();
        assert_eq!(epoch(), 2);
        // Those behind change nothing, and neither does a later epoch of something else.
        assert_eq!(keys.consider(&live([1, 1, 2], ours)).await.unwrap(), []);
        let conflict = keys.consider(&live([2, 2, 3], other)).await.unwrap();
        assert!(matches!(&conflict[..], [(_, Unrecorded::Conflict(_))]), "{conflict:?}");
        assert_eq!(epoch(), 2);
        // Other managers, and this one when it starts again, find it in the store.
        let again = Keys::new(Threshold::new(2, 3).unwrap(), None, store);
        again.load().await.unwrap();
        assert_eq!(again.get("default"), keys.get("default"));
    }

    #[tokio::test]
    async fn shares_for_other_signers_count_once_as_many_have_them_as_signed_before_and_as_sign_with_them() {
        let ours = public_key("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798");
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store")).unwrap());
        let of = |t, n| Threshold::new(t, n).unwrap();
        let keys = Keys::new(of(2, 3), None, store.clone());
        // So many signers, with shares of this epoch and threshold.
        let live = |signers: u8, epoch, threshold| {
            let announced = KeyAnnouncement { epoch, threshold, ..announcement(ours) };
            (1..=signers).map(|i| (SignerIndex::new(i).unwrap(), announced.clone())).collect()
        };
        let stands = || keys.get("default").map(|key| (key.epoch, key.threshold));
        // The first has to be what the configuration says.
        keys.consider(&live(3, 1, of(3, 5))).await.unwrap();
        assert_eq!(stands(), None);
        keys.consider(&live(2, 1, of(2, 3))).await.unwrap();
        // Two signed before, three sign with the next.
        keys.consider(&live(2, 2, of(3, 5))).await.unwrap();
        assert_eq!(stands(), Some((1, of(2, 3))));
        // Those who are new cannot end what they had no part in, nor can one malicious signer with them.
        for newcomers in [[4, 5, 5], [1, 4, 5]] {
            for (epoch, threshold) in [(2, of(3, 5)), (99, of(2, 3)), (99, of(2, 5))] {
                let announced = KeyAnnouncement { epoch, threshold, ..announcement(ours) };
                let newcomers = newcomers.map(|i| (SignerIndex::new(i).unwrap(), announced.clone()));
                keys.consider(&newcomers.into()).await.unwrap();
                assert_eq!(stands(), Some((1, of(2, 3))));
            }
        }
        keys.consider(&live(3, 2, of(3, 5))).await.unwrap();
        assert_eq!(stands(), Some((2, of(3, 5))));
        // And back: two would do with the next, but cannot end the epoch of three.
        keys.consider(&live(2, 3, of(2, 3))).await.unwrap();
        assert_eq!(stands(), Some((2, of(3, 5))));
        keys.consider(&live(3, 3, of(2, 3))).await.unwrap();
        assert_eq!(stands(), Some((3, of(2, 3))));
        // The configuration may be behind: what is on record counts.
        let again = Keys::new(of(3, 5), None, store);
        again.load().await.unwrap();
        assert_eq!(again.get("default"), keys.get("default"));
    }

    #[tokio::test]
    async fn a_key_of_another_scheme_is_not_put_on_record() {
        let key = public_key("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798");
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store")).unwrap());
        let keys = Keys::new(Threshold::new(2, 3).unwrap(), None, store);
        let schnorr = KeyAnnouncement { scheme: Scheme::SchnorrSecp256k1, ..announcement(key) };
        let live = (1..=3).map(|i| (SignerIndex::new(i).unwrap(), schnorr.clone())).collect();
        let refused = keys.consider(&live).await.unwrap();
        assert!(
            matches!(&refused[..], [(_, Unrecorded::Conflict(why)), _, _] if why.contains("schnorr-secp256k1"))
        );
        assert_eq!(keys.get("default"), None);
    }

    #[tokio::test]
    async fn a_key_that_the_configuration_tells_is_used_whatever_the_store_and_the_signers_say() {
        let ours = public_key("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798");
        let other = public_key("02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5");
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store")).unwrap());
        let threshold = Threshold::new(2, 3).unwrap();
        let live = |key| (1..=2).map(|i| (SignerIndex::new(i).unwrap(), announcement(key))).collect();
        // Somebody was quicker, as long as nobody told the manager better.
        let untold = Keys::new(threshold, None, store.clone());
        untold.consider(&live(other)).await.unwrap();
        assert_eq!(untold.get("default").unwrap().public_key, other);

        let keys = Keys::new(threshold, Some(("default".into(), ours)), store);
        keys.load().await.unwrap();
        assert_eq!(keys.get("default"), None);
        let refused = keys.consider(&live(other)).await.unwrap();
        assert!(
            matches!(&refused[..], [(_, Unrecorded::Conflict(why)), _] if why.contains(&ours.to_string()))
        );
        assert_eq!(keys.get("default"), None);
        keys.consider(&live(ours)).await.unwrap();
        assert_eq!(keys.get("default").unwrap().public_key, ours);
    }
}
