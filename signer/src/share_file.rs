//! Share documents as files.

use std::path::Path;

use tss_mpc::{ShareDocument, SignerIndex, Threshold};

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
    let read = || {
        let document = ShareDocument::from_json(&secret_file::read(file, age_identity)?)?;
        check(&document, expected)?;
        Ok(document)
    };
    read().map_err(|problem: Problem| problem.at(WHAT, file))
}

fn check(document: &ShareDocument, expected: &Expected<'_>) -> Result<(), Problem> {
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
