//! Whether backups are good, without ever having enough of them open in one place: each is opened and attested by itself,
//! and the attestations, of which nothing is secret, are verified together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tss_mpc::share::key_of_public_shares;
use tss_mpc::{Attestation, KeyFacts, PublicKey, SignerIndex, Threshold};
use tss_signer::backup::{self, Identities};

use crate::private;

/// The longest attestation that is read, in bytes. One of a 16-signer key has about eight thousand.
const MAX_ATTESTATION: u64 = 64 << 10;

/// Opens a backup, checks it, and attests its share.
///
/// # Errors
/// Naming the file, and what is wrong with it.
pub fn attest(
    file: &Path,
    identities: &Identities,
    challenge: Option<String>,
) -> anyhow::Result<Attestation> {
    let opened = backup::open(file, identities)?;
    Attestation::make(&opened.share, challenge).with_context(|| file.display().to_string())
}

/// What is expected of backups and attestations.
#[derive(Debug)]
pub struct Expected {
    /// What opens the backups.
    pub identities: Identities,
    /// For which challenge the attestations were asked.
    pub challenge: Option<String>,
    /// Of which key they are.
    pub public_key: Option<PublicKey>,
}

/// Backups that belong together and give the key.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// The cluster.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// Its epoch.
    pub epoch: u64,
    /// How many signers there are, and how many backups give the key.
    #[serde(flatten)]
    pub threshold: Threshold,
    /// The root public key.
    pub public_key: PublicKey,
    /// Of which signers there are good backups, and what showed it.
    pub verified: BTreeMap<SignerIndex, Shown>,
    /// How many of these backups could be lost, and the rest still give the key.
    pub spare: u8,
}

/// What shows that a backup is good.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The attestation, or the backup itself.
    pub file: PathBuf,
    /// Whether it was an attestation.
    pub attestation: bool,
    /// What the attestation was asked for with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
}

/// Verifies attestations and backups, which are opened one at a time.
///
/// # Errors
/// Naming the file that is wrong and what was expected, or how many are missing.
pub fn verify(files: &[PathBuf], expected: &Expected) -> anyhow::Result<Verified> {
    let mut all = Together::default();
    let mut verified = BTreeMap::new();
    for file in files {
        let (signer, facts, shown) = look(file, expected)?;
        if let Some(key) = expected.public_key.filter(|key| *key != facts.public_key) {
            anyhow::bail!("{}: it is of public key {}: expected {key}", file.display(), facts.public_key);
        }
        all.add(file, signer, facts)?;
        verified.insert(signer, shown);
    }
    let facts = all.enough("good backups")?;
    // All public shares were found to give the key; that these do by themselves is what matters.
    let own = facts.public_shares.iter().filter(|(signer, _)| verified.contains_key(signer));
    let given = key_of_public_shares(&own.map(|(signer, share)| (*signer, *share)).collect());
    anyhow::ensure!(
        given == Some(facts.public_key),
        "the backups do not give the public key {}",
        facts.public_key
    );
    let spare = verified.len() - usize::from(facts.threshold.t());
    Ok(Verified {
        cluster: facts.cluster.clone(),
        key: facts.key.clone(),
        epoch: facts.epoch,
        threshold: facts.threshold,
        public_key: facts.public_key,
        verified,
        spare: u8::try_from(spare).context("more backups than there are signers")?,
    })
}

/// Whose share a file shows to be good, and what it is of. What it holds itself is gone when this returns.
fn look(file: &Path, expected: &Expected) -> anyhow::Result<(SignerIndex, KeyFacts, Shown)> {
    if let Some(attestation) = read_attestation(file)? {
        attestation.check(expected.challenge.as_deref()).with_context(|| file.display().to_string())?;
        let Attestation { signer, share_of, challenge, .. } = attestation;
        return Ok((signer, share_of, Shown { file: file.to_owned(), attestation: true, challenge }));
    }
    let share = backup::open(file, &expected.identities)?.share;
    let shown = Shown { file: file.to_owned(), attestation: false, challenge: None };
    Ok((share.core.index, KeyFacts::of(&share)?, shown))
}

/// The attestation in a file; `None` when it holds something else.
fn read_attestation(file: &Path) -> anyhow::Result<Option<Attestation>> {
    #[derive(Deserialize)]
    struct Attested {
        #[serde(rename = "attestation")]
        _version: IgnoredAny,
    }
    let read = || -> anyhow::Result<Option<Attestation>> {
        let opened = File::open(file)?;
        if opened.metadata()?.len() > MAX_ATTESTATION {
            return Ok(None);
        }
        let json = private::read(opened, MAX_ATTESTATION)?;
        match serde_json::from_slice::<Attested>(&json) {
            Ok(_) => Ok(Some(Attestation::from_json(&json)?)),
            Err(_) => Ok(None),
        }
    };
    read().with_context(|| file.display().to_string())
}

/// Shares that were found to belong together, and the files that they came from.
#[derive(Default)]
pub(crate) struct Together {
    first: Option<(PathBuf, KeyFacts)>,
    files: BTreeMap<SignerIndex, PathBuf>,
}

impl Together {
    /// One more.
    pub(crate) fn add(&mut self, file: &Path, signer: SignerIndex, facts: KeyFacts) -> anyhow::Result<()> {
        if let Some(before) = self.files.insert(signer, file.to_owned()) {
            anyhow::bail!(
                "{}: it is of signer {signer}, as {} is: expected those of different signers",
                file.display(),
                before.display()
            );
        }
        match &self.first {
            None => self.first = Some((file.to_owned(), facts)),
            Some((first, expected)) => {
                if let Some(difference) = expected.difference(&facts) {
                    anyhow::bail!("{}: {difference}, as {} has it", file.display(), first.display());
                }
            }
        }
        Ok(())
    }

    /// What they are of, when there are as many as the key needs.
    pub(crate) fn enough(&self, what: &str) -> anyhow::Result<&KeyFacts> {
        let (_, facts) = self.first.as_ref().context("expected at least one file")?;
        let (found, threshold) = (self.files.len(), facts.threshold);
        let needed = usize::from(threshold.t());
        if found < needed {
            let without: BTreeSet<_> = threshold.signers().collect();
            let without = without.iter().filter(|signer| !self.files.contains_key(signer));
            let without: Vec<_> = without.map(ToString::to_string).collect();
            anyhow::bail!(
                "a {threshold} key needs {what} of {needed} signers: {} missing, of signers {}",
                needed - found,
                without.join(", ")
            );
        }
        Ok(facts)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tss_mpc::{PrivateKey, ShareDocument};
    use tss_signer::secret_file::Protection;
    use tss_signer::share_file;
    use zeroize::Zeroizing;

    use super::*;

    /// A 2-of-3 key's shares without engine parts, as files in a folder: `1` to `3`. Yields the key.
    pub(crate) fn shares(folder: &Path, secret: u8, epoch: u64) -> PrivateKey {
        let key = PrivateKey::from_bytes(&Zeroizing::new([secret; 32])).unwrap();
        for (index, share) in key.split(Threshold::new(2, 3).unwrap()).unwrap() {
            let foreign: Value = serde_json::from_slice(&share.to_json().unwrap()).unwrap();
            let document = json!({
                "version": 1, "cluster": "c", "key": "k", "epoch": epoch, "scheme": "ecdsa-secp256k1",
                "core": {
                    "index": index, "threshold": foreign["threshold"], "secret_share": foreign["secret"],
                    "public_shares": foreign["public_shares"], "chain_code": "07".repeat(32),
                    "public_key": foreign["public_key"],
                },
                "engines": {},
            });
            let document = ShareDocument::from_json(document.to_string().as_bytes()).unwrap();
            share_file::save(&folder.join(index.to_string()), &document, &Protection::None).unwrap();
        }
        key
    }

    pub(crate) fn nobody() -> Identities {
        Identities::load(&[]).unwrap()
    }

    /// What is said of files in a folder.
    fn verified(folder: &TempDir, names: &[&str], challenge: Option<&str>) -> Result<Verified, String> {
        let files: Vec<_> = names.iter().map(|name| folder.path().join(name)).collect();
        let expected =
            Expected { identities: nobody(), challenge: challenge.map(str::to_owned), public_key: None };
        verify(&files, &expected).map_err(|error| format!("{error:#}"))
    }

    fn attested(folder: &TempDir, name: &str, challenge: Option<&str>) -> Value {
        let file = folder.path().join(name);
        let attestation = attest(&file, &nobody(), challenge.map(str::to_owned)).unwrap();
        let value = serde_json::to_value(&attestation).unwrap();
        std::fs::write(folder.path().join(format!("{name}.json")), value.to_string()).unwrap();
        value
    }

    #[test]
    fn attestations_and_backups_are_verified_together() {
        let folder = tempfile::tempdir().unwrap();
        let key = shares(folder.path(), 3, 1);
        for name in ["1", "2"] {
            attested(&folder, name, Some("drill"));
        }
        // An attestation is not secret.
        let public = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(folder.path().join("1.json"), public).unwrap();
        let two = verified(&folder, &["1.json", "3"], Some("drill")).unwrap();
        assert_eq!((two.spare, two.public_key), (0, key.public_key()));
        let all = verified(&folder, &["2.json", "3", "1"], None).unwrap();
        let signers = all.verified.iter().map(|(signer, shown)| (signer.get(), shown.attestation));
        let signers: Vec<_> = signers.collect();
        assert_eq!((all.spare, signers), (1, vec![(1, false), (2, true), (3, false)]));
    }

    #[test]
    fn what_does_not_belong_together_is_refused_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        shares(folder.path(), 3, 1);
        let of_other = shares(other.path(), 4, 1).public_key().to_string();
        let refused = |names: &[&str], challenge| verified(&folder, names, challenge).unwrap_err();

        let told = refused(&["1"], None);
        assert_eq!(told, "a 2-of-3 key needs good backups of 2 signers: 1 missing, of signers 2, 3");
        let one = attested(&folder, "1", Some("drill"));
        let told = refused(&["1.json", "1"], None);
        assert!(told.contains("/1: it is of signer 1, as") && told.contains("/1.json is"), "{told}");
        let told = refused(&["2", "1.json"], Some("later"));
        assert!(told.contains("1.json: it was made for the challenge \"drill\""), "{told}");
        assert!(told.ends_with("expected the challenge \"later\""), "{told}");

        std::fs::copy(other.path().join("2"), folder.path().join("other")).unwrap();
        let told = refused(&["1", "other"], None);
        assert!(told.contains(&format!("other: it is of public key {of_other}: expected")), "{told}");
        let mut altered = one.clone();
        altered["signer"] = json!(2);
        std::fs::write(folder.path().join("swapped"), altered.to_string()).unwrap();
        let told = refused(&["1", "swapped"], None);
        assert!(told.contains("swapped: no proof that whoever made it has the share of signer 2"), "{told}");
        let missing = refused(&["1", "none"], None);
        assert!(missing.contains("none: No such file"), "{missing}");
        std::fs::write(folder.path().join("cut"), &one.to_string()[..200]).unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.path().join("cut"), private).unwrap();
        assert!(refused(&["1", "cut"], None).contains("cut: "));

        let files = [folder.path().join("1"), folder.path().join("2")];
        let public_key = Some(of_other.parse().unwrap());
        let expected = Expected { identities: nobody(), challenge: None, public_key };
        let told = format!("{:#}", verify(&files, &expected).unwrap_err());
        assert!(told.contains("/1: it is of public key") && told.ends_with(&of_other), "{told}");
    }
}
