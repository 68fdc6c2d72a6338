//! The last resort: the private key itself, out of t signers' shares. From then on there is a place where it is whole.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use tss_mpc::{KeyFacts, PrivateKey, PublicKey, Scheme, ShareDocument};
use tss_signer::backup::{self, Identities};
use tss_signer::secret_file::{self, Protection};
use zeroize::Zeroizing;

use crate::backup::Together;

/// What whoever does this has to know before.
pub const CEREMONY: &str = "\
This puts the private key together, out of the shares of as many signers as sign. It ends the threshold:

  - Whoever has the file that is written, or had it once, has the key, alone and for ever. No epoch, refresh or new
    threshold takes it away again.
  - It is for the one case in which the signers cannot be restored and what the key holds must be moved. While t signers
    can still be started with their shares, have them sign instead.

Before: a machine that is connected to nothing and never will be again, with encrypted or no disk; two people at least
who see all that is done; the holders, each with the identity that opens its layers; `tssctl backup verify`, to know that
the backups are good before any is opened here.

Then: run this command again with --this-ends-the-threshold. Compare the public key and addresses that it prints with
those that are known.

After: sign what moves all funds and rights to a new key, at once; then destroy the file, the machine's disk, and every
share and backup of this key. Never use the key again.";

/// The key as it is written: whoever has it has the key.
#[derive(Serialize)]
struct WholeKey {
    public_key: PublicKey,
    /// 64 hex digits.
    private_key: Zeroizing<String>,
    /// Without it, what is derived from the key is lost.
    #[serde(with = "hex::serde")]
    chain_code: [u8; 32],
}

/// Puts the private key together and writes it to a new file. Yields one of the shares, to tell the addresses by.
///
/// # Errors
/// Naming the file that is wrong and what was expected, or how many are missing.
pub fn reconstruct(files: &[PathBuf], identities: &Identities, out: &Path) -> anyhow::Result<ShareDocument> {
    let new = !out.try_exists().with_context(|| out.display().to_string())?;
    anyhow::ensure!(new, "{} is there already, and a key is never replaced: name another", out.display());
    let mut all = Together::default();
    let mut shares = Vec::with_capacity(files.len());
    for file in files {
        let share = backup::open(file, identities)?.share;
        // What is written of the key, and its addresses, are those of an ECDSA key.
        share.check_scheme(Scheme::EcdsaSecp256k1).with_context(|| file.display().to_string())?;
        all.add(file, share.core.index, KeyFacts::of(&share)?)?;
        shares.push(share);
    }
    all.enough("shares")?;
    let key = PrivateKey::reconstruct(&shares)?;
    let share = shares.swap_remove(0);
    drop(shares);
    write(out, &key, &share).with_context(|| out.display().to_string())?;
    Ok(share)
}

fn write(out: &Path, key: &PrivateKey, share: &ShareDocument) -> anyhow::Result<()> {
    let core = &share.core;
    let private_key = Zeroizing::new(hex::encode(*key.to_bytes()));
    let whole =
        WholeKey { public_key: core.secp256k1()?.public_key, private_key, chain_code: core.chain_code };
    // With room for all of it: growing would leave copies behind.
    let mut json = Zeroizing::new(Vec::with_capacity(1024));
    serde_json::to_writer_pretty(&mut *json, &whole)?;
    json.push(b'\n');
    Ok(secret_file::write_new(out, json, &Protection::None)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::Value;

    use super::*;
    use crate::backup::tests::{nobody, shares};

    #[test]
    fn t_shares_give_the_private_key_in_a_private_file_that_replaces_none() {
        let folder = tempfile::tempdir().unwrap();
        let key = shares(folder.path(), 3, 1);
        let at = |name: &str| folder.path().join(name);
        let share = reconstruct(&[at("3"), at("1")], &nobody(), &at("key.json")).unwrap();
        assert_eq!(share.core.public_key(), key.public_key().into());
        assert_eq!(at("key.json").metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let told: Value = serde_json::from_slice(&std::fs::read(at("key.json")).unwrap()).unwrap();
        assert_eq!(told["private_key"], "03".repeat(32));
        assert_eq!(told["chain_code"], "07".repeat(32));
        assert_eq!(told["public_key"], key.public_key().to_string());
        let refused = reconstruct(&[at("1"), at("2")], &nobody(), &at("key.json")).unwrap_err();
        assert!(refused.to_string().contains("key.json is there already"), "{refused}");
    }

    #[test]
    fn too_few_shares_or_such_of_another_epoch_or_one_twice_give_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let later = tempfile::tempdir().unwrap();
        shares(folder.path(), 3, 1);
        shares(later.path(), 3, 2);
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        let out = folder.path().join("key.json");
        for (files, expected) in [
            (vec![one.clone()], "a 2-of-3 key needs shares of 2 signers: 1 missing, of signers 2, 3"),
            (vec![one.clone(), two.clone(), one.clone()], "it is of signer 1, as"),
            (vec![one, later.path().join("2")], "/2: it is of epoch 2: expected 1"),
            (vec![], "expected at least one file"),
        ] {
            let refused = format!("{:#}", reconstruct(&files, &nobody(), &out).unwrap_err());
            assert!(refused.contains(expected), "{refused}");
            assert!(!out.exists());
        }
    }
}
