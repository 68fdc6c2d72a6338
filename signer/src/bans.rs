//! Whom this signer never signs with again.
//!
//! When a check on the reused oblivious transfers fails, one bit of them has leaked to the party that
//! failed it; enough such bits are the key. The engine therefore demands that the two never meet
//! again, and the demand has to outlive a restart: it is written, and fsynced, before the abort is
//! reported to anybody.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tss_mpc::SignerIndex;

/// (key id, public key in hex, signer) → why. Bound to the public key, so that a new key starts anew.
const BANS: TableDefinition<'_, (&str, &str, u8), &str> = TableDefinition::new("bans");

/// The bans of one signer under one key, kept in a database of its own.
pub struct BanList {
    database: Database,
    key: String,
    public_key: String,
    banned: Mutex<BTreeSet<SignerIndex>>,
}

impl BanList {
    /// Opens the signer's database, or makes it.
    ///
    /// # Errors
    /// When the file cannot be used, or is in use by another signer.
    pub fn open(file: &Path, key: &str, public_key: &str) -> anyhow::Result<Self> {
        let open = || -> anyhow::Result<_> {
            let database = Database::create(file)?;
            let write = database.begin_write()?;
            write.open_table(BANS)?;
            write.commit()?;
            let table = database.begin_read()?.open_table(BANS)?;
            let mut banned = BTreeSet::new();
            for entry in table.iter()? {
                let (id, _) = entry?;
                let (of_key, of_public_key, signer) = id.value();
                if (of_key, of_public_key) == (key, public_key) {
                    banned.insert(SignerIndex::new(signer)?);
                }
            }
            Ok((database, banned))
        };
        let (database, banned) =
            open().with_context(|| format!("the signer's database {}", file.display()))?;
        Ok(Self { database, key: key.into(), public_key: public_key.into(), banned: Mutex::new(banned) })
    }

    /// Everybody banned.
    pub fn banned(&self) -> BTreeSet<SignerIndex> {
        self.banned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bans signers for good; durable when it returns. They count as banned in this process even
    /// when that fails.
    ///
    /// # Errors
    /// When the ban cannot be written.
    pub fn ban(&self, signers: &BTreeSet<SignerIndex>, reason: &str) -> anyhow::Result<()> {
        self.banned.lock().unwrap_or_else(PoisonError::into_inner).extend(signers);
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(BANS)?;
            for signer in signers {
                table.insert((self.key.as_str(), self.public_key.as_str(), signer.get()), reason)?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_outlives_a_restart_and_is_bound_to_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("signer1.redb");
        let two = BTreeSet::from([SignerIndex::new(2).unwrap()]);
        let bans = BanList::open(&file, "default", "02aa").unwrap();
        assert!(bans.banned().is_empty());
        bans.ban(&two, "bad transfer").unwrap();
        assert_eq!(bans.banned(), two);
        drop(bans);
        assert!(BanList::open(&file, "default", "02bb").unwrap().banned().is_empty());
        assert_eq!(BanList::open(&file, "default", "02aa").unwrap().banned(), two);
    }
}
