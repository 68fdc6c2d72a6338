//! Shares of a key that was made elsewhere, as `tssctl key split` writes them to files.

use std::path::Path;

use tss_mpc::ForeignShare;

use crate::secret_file::{self, Problem, Protection, SecretFileError};

const WHAT: &str = "foreign share";

/// Reads a signer's share of a key that was made elsewhere.
///
/// # Errors
/// [`SecretFileError`] saying what is wrong.
pub fn load(file: &Path, age_identity: Option<&Path>) -> Result<ForeignShare, SecretFileError> {
    let read = || Ok(ForeignShare::from_json(&secret_file::read(file, age_identity)?)?);
    read().map_err(|problem: Problem| problem.at(WHAT, file))
}

/// Writes such a share to a new file that only its owner can read. A file that is there already is never replaced.
///
/// # Errors
/// [`SecretFileError`] saying what is wrong.
pub fn save(file: &Path, share: &ForeignShare, protection: &Protection) -> Result<(), SecretFileError> {
    let write = || secret_file::write_new(file, share.to_json()?, protection);
    write().map_err(|problem: Problem| problem.at(WHAT, file))
}
