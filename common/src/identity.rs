//! Who the signers are: each one's own identity, and the roster of all.
//!
//! A signer signs what it sends with Ed25519 (RFC 8032) and receives what is for it alone under
//! X25519 (HPKE, RFC 9180). The roster is configuration: nothing that travels can change it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use rustls::crypto::hpke::HpkePrivateKey;
use serde::{Deserialize, Serialize};
use tss_mpc::SignerIndex;
use zeroize::Zeroizing;

use crate::ed25519::{SigningKey, VerifyingKey};

/// The version of identity documents.
const VERSION: u32 = 1;

/// The largest roster that is read, in bytes.
const MAX_ROSTER: u64 = 64 << 10;

/// A signer's own keys. Zeroized when dropped, and its `Debug` shows the public parts alone.
pub struct Identity {
    signing_key: SigningKey,
    sealing_key: HpkePrivateKey,
    public: PublicIdentity,
}

/// What everybody knows of a signer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicIdentity {
    /// What verifies its signatures.
    pub verifying_key: VerifyingKey,
    /// What seals a message to it: an X25519 public key.
    pub sealing_key: SealingKey,
}

/// An X25519 public key: 32 bytes, 64 hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealingKey(#[serde(with = "hex::serde")] pub [u8; 32]);

impl fmt::Display for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why an identity or a roster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It is not an identity document.
    #[error("not an identity document: {0}")]
    Malformed(String),
    /// It is of another version.
    #[error("the identity document has version {0}: expected {VERSION}")]
    Version(u32),
    /// The roster cannot be read.
    #[error("roster {file}: {problem}")]
    Roster {
        /// The file.
        file: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
}

/// As it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    /// The seed of an Ed25519 key, in hex.
    signing_key: Zeroizing<String>,
    /// An X25519 private key, in hex.
    sealing_key: Zeroizing<String>,
}

impl Identity {
    /// A fresh one, from the system's generator.
    pub fn generate() -> Self {
        let mut sealing_key = Zeroizing::new([0; 32]);
        rand::fill(&mut *sealing_key);
        Self::new(SigningKey::generate(), &sealing_key)
    }

    fn new(signing_key: SigningKey, sealing_key: &Zeroizing<[u8; 32]>) -> Self {
        let public = PrivateKey::from_private_key(&X25519, &**sealing_key)
            .and_then(|key| Ok(key.compute_public_key()?))
            .ok()
            .and_then(|public| <[u8; 32]>::try_from(public.as_ref()).ok())
            .expect("every 32 bytes are an X25519 private key");
        Self {
            public: PublicIdentity {
                verifying_key: signing_key.verifying_key(),
                sealing_key: SealingKey(public),
            },
            signing_key,
            sealing_key: HpkePrivateKey::from(sealing_key.to_vec()),
        }
    }

    /// What the others need to know.
    pub fn public(&self) -> PublicIdentity {
        self.public
    }

    pub(crate) fn signing_key(&self) -> &SigningKey {
        &self.signing_key
    }

    pub(crate) fn sealing_key(&self) -> &HpkePrivateKey {
        &self.sealing_key
    }

    /// Reads an identity document.
    ///
    /// # Errors
    /// [`IdentityError`] saying what is wrong; it quotes nothing of the keys.
    pub fn from_json(json: &[u8]) -> Result<Self, IdentityError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let malformed = |error: serde_json::Error| IdentityError::Malformed(error.to_string());
        let Versioned { version } = serde_json::from_slice(json).map_err(malformed)?;
        if version != VERSION {
            return Err(IdentityError::Version(version));
        }
        let document: Document = serde_json::from_slice(json).map_err(malformed)?;
        let key = |text: &str, name: &str| {
            let mut bytes = Zeroizing::new([0; 32]);
            // The error of `hex` would quote a digit.
            hex::decode_to_slice(text, &mut *bytes)
                .map_err(|_| IdentityError::Malformed(format!("`{name}`: expected 64 hex digits")))?;
            Ok(bytes)
        };
        let signing_key = key(&document.signing_key, "signing_key")?;
        let sealing_key = key(&document.sealing_key, "sealing_key")?;
        Ok(Self::new(SigningKey::from_seed(signing_key), &sealing_key))
    }

    /// Writes the identity document. Secret.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`] should a value have no JSON form.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, IdentityError> {
        let document = Document {
            version: VERSION,
            signing_key: Zeroizing::new(hex::encode(**self.signing_key.seed())),
            sealing_key: Zeroizing::new(hex::encode(self.sealing_key.secret_bytes())),
        };
        let mut json = Zeroizing::new(Vec::with_capacity(1024));
        serde_json::to_writer_pretty(&mut *json, &document)
            .map_err(|error| IdentityError::Malformed(error.to_string()))?;
        Ok(json)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.public).finish()
    }
}

/// Every signer's public identity, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster(BTreeMap<SignerIndex, PublicIdentity>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RosterDocument {
    /// TOML's keys are texts.
    signers: BTreeMap<String, PublicIdentity>,
}

impl Roster {
    /// The roster of these signers.
    ///
    /// # Errors
    /// When two have a key in common: one could then speak for the other.
    pub fn new(signers: BTreeMap<SignerIndex, PublicIdentity>) -> Result<Self, String> {
        for (a, one) in &signers {
            for (b, other) in signers.range(..a) {
                if one.verifying_key == other.verifying_key || one.sealing_key == other.sealing_key {
                    return Err(format!(
                        "signers {b} and {a} have a key in common: expected keys of their own"
                    ));
                }
            }
        }
        Ok(Self(signers))
    }

    /// The roster of these identities.
    ///
    /// # Errors
    /// As of [`Roster::new`].
    pub fn of(identities: &BTreeMap<SignerIndex, Identity>) -> Result<Self, String> {
        Self::new(identities.iter().map(|(&index, identity)| (index, identity.public())).collect())
    }

    /// Reads the roster of a cluster with `total` signers.
    ///
    /// # Errors
    /// [`IdentityError::Roster`] naming the file, what is wrong and what was expected.
    pub fn load(file: &Path, total: u8) -> Result<Self, IdentityError> {
        let wrong = |problem: String| IdentityError::Roster { file: file.display().to_string(), problem };
        let hint = "`tssctl keygen` or `signer identity` makes what belongs in it";
        let length = std::fs::metadata(file).map_err(|error| wrong(format!("{error}: {hint}")))?.len();
        if length > MAX_ROSTER {
            return Err(wrong(format!("it has {length} bytes: expected at most {MAX_ROSTER}")));
        }
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        Self::from_toml(&text, total).map_err(wrong)
    }

    /// As [`Roster::load`], from the text.
    ///
    /// # Errors
    /// What is wrong and what was expected.
    pub fn from_toml(text: &str, total: u8) -> Result<Self, String> {
        let document: RosterDocument = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut signers = BTreeMap::new();
        for (name, identity) in document.signers {
            let index = name.parse::<u8>().ok().and_then(|index| SignerIndex::new(index).ok());
            let index = index.filter(|index| index.get() <= total);
            let index =
                index.ok_or_else(|| format!("[signers.{name}]: expected an index from 1 to {total}"))?;
            signers.insert(index, identity);
        }
        if let Some(missing) = (1..=total).find(|i| !signers.keys().any(|index| index.get() == *i)) {
            return Err(format!("[signers.{missing}] is missing: expected signers 1 to {total}"));
        }
        Self::new(signers)
    }

    /// The roster as a file that [`Roster::load`] reads.
    ///
    /// # Errors
    /// Should it have no TOML form.
    pub fn to_toml(&self) -> Result<String, String> {
        let signers = self.0.iter().map(|(index, identity)| (index.to_string(), *identity)).collect();
        let body = toml::to_string(&RosterDocument { signers }).map_err(|error| error.to_string())?;
        Ok(format!(
            "# Every signer's public identity. Every signer and manager has a copy of it; none of it is secret,\n\
             # and whoever can change it at t signers can speak for the others.\n\n{body}"
        ))
    }

    /// A signer's public identity.
    pub fn get(&self, index: SignerIndex) -> Option<&PublicIdentity> {
        self.0.get(&index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(i: u8) -> SignerIndex {
        SignerIndex::new(i).unwrap()
    }

    fn roster(n: u8) -> Roster {
        Roster::new((1..=n).map(|i| (index(i), Identity::generate().public())).collect()).unwrap()
    }

    #[test]
    fn an_identity_survives_its_document_and_shows_no_secret() {
        let identity = Identity::generate();
        let json = identity.to_json().unwrap();
        assert_eq!(Identity::from_json(&json).unwrap().public(), identity.public());
        let seed = hex::encode(**identity.signing_key().seed());
        let sealing = hex::encode(identity.sealing_key().secret_bytes());
        let shown = format!("{identity:?}");
        assert!(!shown.contains(&seed) && !shown.contains(&sealing));
        // A damaged file is named as such, without a word of what is in it.
        let text = String::from_utf8(json.to_vec()).unwrap();
        let error = Identity::from_json(text.replace(&seed, &seed[1..]).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("signing_key") && !error.contains(&seed[8..24]), "{error}");
        let error = Identity::from_json(text.replace("\"version\": 1", "\"version\": 2").as_bytes());
        assert!(error.unwrap_err().to_string().contains("version 2: expected 1"));
    }

    #[test]
    fn a_roster_survives_its_file() {
        let roster = roster(3);
        assert_eq!(Roster::from_toml(&roster.to_toml().unwrap(), 3).unwrap(), roster);
    }

    #[test]
    fn a_roster_that_lacks_a_signer_has_a_stranger_or_a_key_twice_is_refused() {
        let roster = roster(3);
        let text = roster.to_toml().unwrap();
        let error = |text: &str, total| Roster::from_toml(text, total).unwrap_err();
        assert!(error(&text, 4).contains("[signers.4] is missing"));
        assert!(error(&text, 2).contains("[signers.3]: expected an index from 1 to 2"));
        assert!(error(&text.replace("signers.3", "signers.x"), 3).contains("[signers.x]"));
        assert!(error(&text.replace("sealing_key", "saeling_key"), 3).contains("saeling_key"));
        let [one, two] = [1, 2].map(|i| *roster.get(index(i)).unwrap());
        for twice in [
            PublicIdentity { verifying_key: one.verifying_key, ..two },
            PublicIdentity { sealing_key: one.sealing_key, ..two },
        ] {
            let error = Roster::new(BTreeMap::from([(index(1), one), (index(2), twice)])).unwrap_err();
            assert!(error.contains("signers 1 and 2"), "{error}");
        }
    }
}
