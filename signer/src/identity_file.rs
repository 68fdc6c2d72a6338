//! Identities as files.

use std::path::Path;

use tss_common::identity::Identity;

use crate::secret_file::{self, Problem, Protection, SecretFileError};

const WHAT: &str = "identity";

/// Reads a signer's identity.
///
/// # Errors
/// [`SecretFileError`] saying what is wrong.
pub fn load(file: &Path, age_identity: Option<&Path>) -> Result<Identity, SecretFileError> {
    let read = || Ok(Identity::from_json(&secret_file::read(file, age_identity)?)?);
    read().map_err(|problem: Problem| problem.at(WHAT, file))
}

/// Writes an identity to a new file that only its owner can read. A file that is there already is never
/// replaced.
///
/// # Errors
/// [`SecretFileError`] saying what is wrong.
pub fn save(file: &Path, identity: &Identity, protection: &Protection) -> Result<(), SecretFileError> {
    let write = || secret_file::write_new(file, identity.to_json()?, protection);
    write().map_err(|problem: Problem| problem.at(WHAT, file))
}
