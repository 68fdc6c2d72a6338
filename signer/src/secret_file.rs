//! Files that hold secrets: read only if nobody else can, optionally encrypted with `age`
//! (<https://age-encryption.org/v1>), and never replaced.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use age::armor::ArmoredReader;
use age::secrecy::SecretString;
use tss_common::identity::IdentityError;
use tss_mpc::ShareError;
use tss_mpc::foreign::ForeignShareError;
use zeroize::Zeroizing;

use crate::backup::BackupError;

/// The largest file that is read, in bytes. The share of a 16-signer key has about 1 MiB.
const MAX_FILE: u64 = 16 << 20;

/// Why a secret file cannot be used. Says which file, what is wrong and what was expected.
#[derive(Debug, thiserror::Error)]
#[error("{what} file {}: {problem}", file.display())]
pub struct SecretFileError {
    what: &'static str,
    file: PathBuf,
    problem: Problem,
}

/// What is wrong with a secret file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Everybody on the machine could read it.
    #[error(
        "its permissions are {0:04o}, so everybody can read or change it: expected 0600 or 0440 (chmod 600)"
    )]
    Exposed(u32),
    /// It is far too long.
    #[error("it has more than {MAX_FILE} bytes")]
    TooLong,
    /// It is encrypted, and no identity was given.
    #[error("it is encrypted: expected `age_identity_file` to name an age identity or a passphrase")]
    Encrypted,
    /// It is encrypted to somebody else, or damaged.
    #[error("it cannot be decrypted: {0}")]
    Undecryptable(String),
    /// The age identity or recipient is none.
    #[error("{0}")]
    Age(String),
    /// It holds no usable share document.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// It holds no usable identity document.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It holds no usable share of a key that was made elsewhere.
    #[error(transparent)]
    Foreign(#[from] ForeignShareError),
    /// It holds no usable backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// It holds a share of something else.
    #[error("it holds a share of {what} {found}: expected {expected}")]
    Other {
        /// What differs: cluster, key, signer or threshold.
        what: &'static str,
        /// What the file says.
        found: String,
        /// What the configuration says.
        expected: String,
    },
}

impl Problem {
    pub(crate) fn at(self, what: &'static str, file: &Path) -> SecretFileError {
        SecretFileError { what, file: file.to_owned(), problem: self }
    }
}

/// To whom a secret file is encrypted.
#[derive(Clone)]
pub enum Protection {
    /// Not at all: the file's permissions protect it.
    None,
    /// To these `age1…` recipients, each of whom can read it.
    Recipients(Vec<String>),
    /// To a passphrase.
    Passphrase(SecretString),
}

/// Reads a file that only its owner and group may read.
pub(crate) fn read_private(file: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let file = File::open(file)?;
    let metadata = file.metadata()?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(Problem::Exposed(mode));
    }
    if metadata.len() > MAX_FILE {
        return Err(Problem::TooLong);
    }
    let mut bytes =
        Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1));
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a secret file, and decrypts it if it is encrypted.
pub(crate) fn read(file: &Path, age_identity: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, Problem> {
    decrypt(read_private(file)?, age_identity)
}

fn decrypt(bytes: Zeroizing<Vec<u8>>, identity: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, Problem> {
    if !is_encrypted(&bytes) {
        return Ok(bytes);
    }
    let identities = read_identities(identity.ok_or(Problem::Encrypted)?)?;
    decrypt_once(&bytes, &identities)
}

/// Whether a file is encrypted with `age`.
pub(crate) fn is_encrypted(bytes: &[u8]) -> bool {
    bytes.starts_with(b"age-encryption.org/") || bytes.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----")
}

/// What one of the identities opens.
pub(crate) fn decrypt_once(
    bytes: &[u8],
    identities: &[Box<dyn age::Identity>],
) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let undecryptable = |error: &dyn std::fmt::Display| Problem::Undecryptable(error.to_string());
    let decryptor =
        age::Decryptor::new_buffered(ArmoredReader::new(bytes)).map_err(|error| undecryptable(&error))?;
    let mut reader =
        decryptor.decrypt(identities.iter().map(AsRef::as_ref)).map_err(|error| undecryptable(&error))?;
    let mut plain = Zeroizing::new(Vec::with_capacity(bytes.len()));
    reader.read_to_end(&mut plain).map_err(|error| undecryptable(&error))?;
    Ok(plain)
}

/// What an identity file holds.
enum Keys {
    X25519(Vec<age::x25519::Identity>),
    Passphrase(SecretString),
}

/// What an identity file opens with.
pub(crate) fn read_identities(file: &Path) -> Result<Vec<Box<dyn age::Identity>>, Problem> {
    Ok(match read_keys(file)? {
        Keys::X25519(keys) => keys.into_iter().map(|key| Box::new(key) as Box<dyn age::Identity>).collect(),
        Keys::Passphrase(passphrase) => vec![Box::new(age::scrypt::Identity::new(passphrase))],
    })
}

/// `AGE-SECRET-KEY-…` lines, or else a first line that is a passphrase.
fn read_keys(file: &Path) -> Result<Keys, Problem> {
    let wrong = |problem: String| Problem::Age(format!("age identity file {}: {problem}", file.display()));
    let bytes = read_private(file).map_err(|problem| wrong(problem.to_string()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong("it is not text".into()))?;
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    if lines().any(|line| line.starts_with("AGE-SECRET-KEY-")) {
        let parse = |line: &str| line.parse::<age::x25519::Identity>().map_err(|error| wrong(error.into()));
        return lines().map(parse).collect::<Result<_, _>>().map(Keys::X25519);
    }
    let passphrase =
        lines().next().ok_or_else(|| wrong("expected AGE-SECRET-KEY-… or a passphrase".into()))?;
    Ok(Keys::Passphrase(SecretString::from(passphrase.to_owned())))
}

/// Writes a new file that only its owner can read. A file that is there already is never replaced: it
/// may be the only copy there is.
///
/// # Errors
/// [`Problem`] saying what is wrong, but not with which file.
pub fn write_new(file: &Path, content: Zeroizing<Vec<u8>>, protection: &Protection) -> Result<(), Problem> {
    let bytes = encrypt(content, protection)?;
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let written = new.write_all(&bytes).and_then(|()| new.sync_all());
    if let Err(error) = written {
        // Half a secret is of no use, and would block the next try.
        let _ = std::fs::remove_file(file);
        return Err(error.into());
    }
    sync_folder(file)?;
    Ok(())
}

/// Writes a file that only its owner can read, in the place of one that may be there: at any time there is the old one, or
/// the new one whole.
pub(crate) fn write_whole(
    file: &Path,
    content: Zeroizing<Vec<u8>>,
    protection: &Protection,
) -> Result<(), Problem> {
    let draft = draft(file);
    // One that a crash has left is not whole.
    remove(&draft)?;
    write_new(&draft, content, protection)?;
    rename(&draft, file)
}

/// That [`write_whole`] could write this file.
pub(crate) fn check_writable(file: &Path) -> Result<(), Problem> {
    let draft = draft(file);
    remove(&draft)?;
    write_new(&draft, Zeroizing::default(), &Protection::None)?;
    remove(&draft)
}

fn draft(file: &Path) -> PathBuf {
    beside(file, "draft")
}

/// The file that has the name of this one, a dot and `what`.
pub(crate) fn beside(file: &Path, what: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(what);
    name.into()
}

/// Moves a file to the place of another; durable when it returns.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), Problem> {
    std::fs::rename(from, to)?;
    sync_folder(to)?;
    Ok(())
}

/// Removes a file, if it is there; durable when it returns.
pub(crate) fn remove(file: &Path) -> Result<(), Problem> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => sync_folder(file)?,
    }
    Ok(())
}

pub(crate) fn sync_folder(file: &Path) -> std::io::Result<()> {
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// How another file is protected for whoever opens this one: not at all if it is not, and otherwise to all that the identity
/// file holds.
pub(crate) fn protection_of(file: &Path, age_identity: Option<&Path>) -> Result<Protection, Problem> {
    if !is_encrypted(&read_private(file)?) {
        return Ok(Protection::None);
    }
    let identities = age_identity.ok_or(Problem::Encrypted)?;
    Ok(match read_keys(identities)? {
        Keys::X25519(keys) => {
            Protection::Recipients(keys.iter().map(|key| key.to_public().to_string()).collect())
        }
        Keys::Passphrase(passphrase) => Protection::Passphrase(passphrase),
    })
}

pub(crate) fn encrypt(
    plain: Zeroizing<Vec<u8>>,
    protection: &Protection,
) -> Result<Zeroizing<Vec<u8>>, Problem> {
    let recipients: Vec<Box<dyn age::Recipient>> = match protection {
        Protection::None => return Ok(plain),
        Protection::Recipients(names) => names
            .iter()
            .map(|name| parse_recipient(name).map(|recipient| Box::new(recipient) as Box<dyn age::Recipient>))
            .collect::<Result<_, _>>()?,
        Protection::Passphrase(passphrase) => vec![Box::new(age::scrypt::Recipient::new(passphrase.clone()))],
    };
    let encryptor = age::Encryptor::with_recipients(recipients.iter().map(AsRef::as_ref))
        .map_err(|error| Problem::Age(error.to_string()))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(plain.len() + 1024));
    let mut writer = encryptor.wrap_output(&mut *bytes)?;
    writer.write_all(&plain)?;
    writer.finish()?;
    Ok(bytes)
}

/// A recipient, as `age1…` names it.
pub(crate) fn parse_recipient(name: &str) -> Result<age::x25519::Recipient, Problem> {
    name.parse().map_err(|error| Problem::Age(format!("recipient `{name}`: {error}: expected age1…")))
}
