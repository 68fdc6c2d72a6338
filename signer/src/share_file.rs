//! Share documents as files.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use tss_common::wire::Commitment;
use tss_mpc::{Scheme, ShareDocument, SignerIndex, Threshold};
use zeroize::Zeroizing;

use crate::report;
use crate::secret_file::{self, Problem, Protection, SecretFileError};

const WHAT: &str = "share";

/// What a share file must hold to be of use here.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// The key's id.
    pub key: &'a str,
    /// The signer.
    pub index: SignerIndex,
    /// How many signers there are, and how many of them sign.
    pub threshold: Threshold,
}

/// Reads the share of a signer, and checks that it is the expected one.
///
/// # Errors
/// [`SecretFileError`] saying what is wrong.
pub fn load(
    file: &Path,
    expected: &Expected<'_>,
    age_identity: Option<&Path>,
) -> Result<ShareDocument, SecretFileError> {
    read(file, expected, age_identity).map_err(|problem| problem.at(WHAT, file))
}

fn read(file: &Path, expected: &Expected<'_>, age_identity: Option<&Path>) -> Result<ShareDocument, Problem> {
    let document = ShareDocument::from_json(&secret_file::read(file, age_identity)?)?;
    check(&document, expected)?;
    Ok(document)
}

fn check(document: &ShareDocument, expected: &Expected<'_>) -> Result<(), Problem> {
    // Whatever else signs and verifies here does so with ECDSA.
    document.check_scheme(Scheme::EcdsaSecp256k1)?;
    let same = |what, found: String, expected: String| {
        if found == expected { Ok(()) } else { Err(Problem::Other { what, found, expected }) }
    };
    same("cluster", document.cluster.clone(), expected.cluster.into())?;
    same("key", document.key.clone(), expected.key.into())?;
    same("signer", document.core.index.to_string(), expected.index.to_string())?;
    same("threshold", document.core.threshold.to_string(), expected.threshold.to_string())
}

/// Writes a share to a new file that only its owner can read. A file that is there already is never
/// replaced: it may be the only share there is.
///
/// # Errors
/// [`SecretFileError`] saying what is wrong.
pub fn save(file: &Path, document: &ShareDocument, protection: &Protection) -> Result<(), SecretFileError> {
    let write = || secret_file::write_new(file, document.to_json()?, protection);
    write().map_err(|problem: Problem| problem.at(WHAT, file))
}

/// The file of a running signer's share, and what a refresh keeps beside it: the next share, as `….next`, or as
/// `….next.frozen` once others may have been told that they can do without it; and as `….stored` the others' words by which
/// the share took its place. At any time each of them is whole or not there.
#[derive(Clone, Debug)]
pub struct ShareFile {
    file: PathBuf,
    age_identity: Option<PathBuf>,
}

impl fmt::Display for ShareFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "share file {}", self.file.display())
    }
}

impl ShareFile {
    /// This file, and what opens it if it is encrypted.
    pub fn new(file: PathBuf, age_identity: Option<PathBuf>) -> Self {
        // What a link leads to is what is to be replaced.
        Self { file: file.canonicalize().unwrap_or(file), age_identity }
    }

    /// The share that the signer signs with.
    ///
    /// # Errors
    /// [`SecretFileError`] saying what is wrong.
    pub fn load(&self, expected: &Expected<'_>) -> Result<ShareDocument, SecretFileError> {
        self.read(expected).map_err(|problem| problem.at(WHAT, &self.file))
    }

    fn read(&self, expected: &Expected<'_>) -> Result<ShareDocument, Problem> {
        read(&self.file, expected, self.age_identity.as_deref())
    }

    /// The next share, if there is one, and whether it is frozen.
    ///
    /// # Errors
    /// [`SecretFileError`] saying what is wrong.
    pub fn load_next(
        &self,
        expected: &Expected<'_>,
    ) -> Result<Option<(ShareDocument, bool)>, SecretFileError> {
        for (file, frozen) in [(self.frozen(), true), (self.next(), false)] {
            match file.symlink_metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                _ => {
                    let share = load(&file, expected, self.age_identity.as_deref())?;
                    return Ok(Some((share, frozen)));
                }
            }
        }
        Ok(None)
    }

    /// That a next share could be written: its folder may be one that is only read.
    ///
    /// # Errors
    /// [`SecretFileError`] saying what is wrong.
    pub fn check_writable(&self) -> Result<(), SecretFileError> {
        secret_file::check_writable(&self.next()).map_err(|problem| problem.at(WHAT, &self.next()))
    }

    /// Writes the next share, as protected as the one that is there; durable when it returns.
    ///
    /// # Errors
    /// [`SecretFileError`] saying what is wrong.
    pub fn save_next(&self, document: &ShareDocument) -> Result<(), SecretFileError> {
        let write = || {
            let protection = secret_file::protection_of(&self.file, self.age_identity.as_deref())?;
            secret_file::write_whole(&self.next(), document.to_json()?, &protection)
        };
        write().map_err(|problem: Problem| problem.at(WHAT, &self.next()))
    }

    /// Freezes the next share; durable when it returns. Nothing happens if it is frozen.
    ///
    /// # Errors
    /// [`SecretFileError`] saying what is wrong: it can be tried again.
    pub fn freeze(&self) -> Result<(), SecretFileError> {
        let freeze = || {
            if self.frozen().try_exists()? && !self.next().try_exists()? {
                return Ok(secret_file::sync_folder(&self.file)?);
            }
            secret_file::rename(&self.next(), &self.frozen())
        };
        freeze().map_err(|problem: Problem| problem.at(WHAT, &self.next()))
    }

    /// Removes the next share, if there is one; durable when it returns.
    ///
    /// # Errors
    /// [`SecretFileError`] saying what is wrong.
    pub fn discard_next(&self) -> Result<(), SecretFileError> {
        [self.next(), self.frozen()]
            .iter()
            .try_for_each(|file| secret_file::remove(file).map_err(|problem| problem.at(WHAT, file)))
    }

    /// Puts the next share, of which this is the commitment, in the place of the one that is there, which is gone then;
    /// durable when it returns. `stored` is why. Nothing happens where it is in place.
    ///
    /// # Errors
    /// [`SecretFileError`] saying what is wrong: it can be tried again.
    pub fn settle(
        &self,
        expected: &Expected<'_>,
        next: Commitment,
        stored: &[u8],
    ) -> Result<(), SecretFileError> {
        let settle = || {
            secret_file::write_whole(&self.stored(), Zeroizing::new(stored.to_vec()), &Protection::None)?;
            for waiting in [self.frozen(), self.next()] {
                if waiting.try_exists()? {
                    return secret_file::rename(&waiting, &self.file);
                }
            }
            // It may be there because of a try whose end was not certain.
            let found = Commitment(report::commitment(&self.read(expected)?));
            if found != next {
                let (found, expected) = (hex::encode(found.0), hex::encode(next.0));
                return Err(Problem::Other { what: "commitment", found, expected });
            }
            Ok(secret_file::sync_folder(&self.file)?)
        };
        settle().map_err(|problem: Problem| problem.at(WHAT, &self.file))
    }

    /// What was said when the share took its place, if that is known.
    pub fn load_stored(&self) -> Option<Vec<u8>> {
        secret_file::read_private(&self.stored()).ok().map(|bytes| bytes.to_vec())
    }

    fn next(&self) -> PathBuf {
        secret_file::beside(&self.file, "next")
    }

    fn frozen(&self) -> PathBuf {
        secret_file::beside(&self.file, "next.frozen")
    }

    fn stored(&self) -> PathBuf {
        secret_file::beside(&self.file, "stored")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use age::secrecy::{ExposeSecret as _, SecretString};
    use tss_mpc::local::{Machines, run_local};
    use tss_mpc::{Dkls23, Engine as _, KeygenSetup, SessionId};

    use super::*;

    fn share(epoch: u64) -> ShareDocument {
        let threshold = Threshold::new(2, 2).unwrap();
        let machines: Machines<ShareDocument> = threshold
            .signers()
            .map(|index| {
                let (cluster, key, session) = ("c".to_owned(), "k".to_owned(), SessionId([1; 32]));
                (index, Dkls23.keygen(KeygenSetup { session, cluster, key, index, threshold }).unwrap())
            })
            .collect();
        ShareDocument { epoch, ..run_local(machines).unwrap().into_values().next().unwrap() }
    }

    fn expected() -> Expected<'static> {
        let threshold = Threshold::new(2, 2).unwrap();
        Expected { cluster: "c", key: "k", index: SignerIndex::MIN, threshold }
    }

    fn private(file: &Path, content: &str) {
        std::fs::write(file, content).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_next_share_waits_beside_the_other_until_it_takes_its_place_or_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("signer1.store");
        save(&path, &share(1), &Protection::None).unwrap();
        let file = ShareFile::new(path.clone(), None);
        let epochs = || {
            let next = file.load_next(&expected()).unwrap().map(|(share, frozen)| (share.epoch, frozen));
            (file.load(&expected()).unwrap().epoch, next)
        };
        file.check_writable().unwrap();
        assert_eq!(epochs(), (1, None));
        // What a crash has left of one that was being written is in nobody's way.
        private(&folder.path().join("signer1.store.next.draft"), "{");
        file.save_next(&share(2)).unwrap();
        assert_eq!(epochs(), (1, Some((2, false))));
        file.discard_next().unwrap();
        file.discard_next().unwrap();
        assert_eq!((epochs(), file.load_stored()), ((1, None), None));
        for frozen in [false, true] {
            let epoch = if frozen { 3 } else { 2 };
            file.save_next(&share(epoch)).unwrap();
            if frozen {
                file.freeze().unwrap();
                file.freeze().unwrap();
            }
            assert_eq!(epochs(), (epoch - 1, Some((epoch, frozen))));
            // Twice: the first time may have been interrupted.
            let next = Commitment(report::commitment(&file.load_next(&expected()).unwrap().unwrap().0));
            file.settle(&expected(), next, b"words").unwrap();
            file.settle(&expected(), next, b"words").unwrap();
            assert_eq!((epochs(), file.load_stored()), ((epoch, None), Some(b"words".to_vec())));
        }
        file.save_next(&share(4)).unwrap();
        file.freeze().unwrap();
        file.discard_next().unwrap();
        assert_eq!(epochs(), (3, None));
        let error = file.settle(&expected(), Commitment([7; 32]), b"words").unwrap_err().to_string();
        assert!(error.contains("commitment") && error.contains("0707"), "{error}");
        assert_eq!(epochs(), (3, None));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_next_share_is_encrypted_as_the_one_that_it_follows() {
        let folder = tempfile::tempdir().unwrap();
        let key = age::x25519::Identity::generate();
        let keys = folder.path().join("keys");
        private(&keys, key.to_string().expose_secret());
        let phrase = folder.path().join("phrase");
        private(&phrase, "correct horse");
        let to_key = Protection::Recipients(vec![key.to_public().to_string()]);
        let to_phrase = Protection::Passphrase(SecretString::from("correct horse".to_owned()));
        for (name, protection, identity) in [("a", to_key, &keys), ("b", to_phrase, &phrase)] {
            let path = folder.path().join(name);
            save(&path, &share(1), &protection).unwrap();
            let error = ShareFile::new(path.clone(), None).save_next(&share(2)).unwrap_err().to_string();
            assert!(error.contains("encrypted"), "{error}");
            let file = ShareFile::new(path.clone(), Some(identity.clone()));
            file.save_next(&share(2)).unwrap();
            let next = std::fs::read(folder.path().join(format!("{name}.next"))).unwrap();
            assert!(secret_file::is_encrypted(&next));
            file.settle(&expected(), Commitment([0; 32]), b"[]").unwrap();
            assert_eq!(file.load(&expected()).unwrap().epoch, 2);
        }
    }

    #[test]
    fn a_share_in_a_folder_that_is_not_there_has_no_next_one() {
        let file = ShareFile::new("/nowhere/signer1.store".into(), None);
        let error = file.check_writable().unwrap_err().to_string();
        assert!(error.contains("/nowhere/signer1.store.next"), "{error}");
    }
}
