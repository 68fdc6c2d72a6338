//! The cluster's keys, as they are on record.
//!
//! A manager holds no key and is told none: it learns public keys from the signers. The first one that
//! t signers agree on is put on record for good, so that nobody can swap it later, and signatures are
//! checked against it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tss_common::wire::KeyAnnouncement;
use tss_mpc::{SignerIndex, Threshold};

use crate::store::{KeyRecord, Store, StoreError};

/// The keys on record, by id.
pub struct Keys {
    expected: Threshold,
    store: Arc<dyn Store>,
    known: Mutex<HashMap<String, KeyRecord>>,
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
    /// No keys yet, and only such with this threshold will do.
    pub fn new(expected: Threshold, store: Arc<dyn Store>) -> Self {
        Self { expected, store, known: Mutex::default() }
    }

    /// The key of this id.
    pub fn get(&self, id: &str) -> Option<KeyRecord> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn know(&self, key: KeyRecord) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key.id.clone(), key);
    }

    /// Reads what is on record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self) -> Result<(), StoreError> {
        for key in self.store.keys().await? {
            self.know(key);
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
            let agreeing = announced.values().filter(|other| *other == key).count();
            match self.judge(key, agreeing) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    let standing = self.store.pin_key(&record).await?;
                    tracing::info!(key = %standing.id, public_key = %standing.public_key, "key is on record");
                    self.know(standing);
                }
                Err(reason) => unrecorded.push((signer, reason)),
            }
        }
        Ok(unrecorded)
    }

    /// What to put on record for an announcement; `None` when it is there.
    fn judge(&self, key: &KeyAnnouncement, agreeing: usize) -> Result<Option<KeyRecord>, Unrecorded> {
        if key.threshold != self.expected {
            return Err(Unrecorded::Conflict(format!(
                "the key is {}, but `threshold` and `total_parties` say {}",
                key.threshold, self.expected
            )));
        }
        if let Some(known) = self.get(&key.id) {
            if (known.public_key, known.chain_code) != (key.public_key, key.chain_code) {
                return Err(Unrecorded::Conflict(format!(
                    "key `{}` has public key {}, but {} is on record under this id",
                    key.id, key.public_key, known.public_key
                )));
            }
            return Ok(None);
        }
        if agreeing < usize::from(key.threshold.t()) {
            return Err(Unrecorded::TooFew);
        }
        let KeyAnnouncement { id, epoch, scheme: _, threshold, public_key, chain_code } = key.clone();
        Ok(Some(KeyRecord { id, epoch, threshold, public_key, chain_code }))
    }
}
