//! A share's backup: a file that several holders can open only together.
//!
//! Its first line is JSON that says what it is a backup of. What follows is the share document, encrypted with `age`
//! once for each holder, one encryption around the other: the innermost is the first holder's, the outermost the last
//! one's. Nothing but the document's core is in it. What an engine needs besides is made anew by the signers, and an old
//! copy of it could have a session's secrets used twice.
//!
//! The first line is for people with many files. It is not believed: it must agree with what is inside.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tss_mpc::share::EngineParts;
use tss_mpc::{PublicKey, ShareDocument, SignerIndex};
use zeroize::Zeroizing;

use crate::secret_file::{self, Problem, Protection, SecretFileError};

const WHAT: &str = "backup";

/// The version of the file that this code writes and reads.
pub const VERSION: u32 = 1;

/// How many holders a backup must have, so that none opens it alone.
pub const MIN_HOLDERS: usize = 2;

/// How many it can have.
pub const MAX_HOLDERS: usize = 16;

/// Begins every backup.
const BEGIN: &[u8] = br#"{"backup":"#;

/// The longest first line that is read, in bytes.
const MAX_HEADER: usize = 4096;

/// One of those who open a backup together: one or several age recipients, of which any opens the holder's layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder(Vec<String>);

impl FromStr for Holder {
    type Err = String;

    fn from_str(names: &str) -> Result<Self, String> {
        let recipient = |name| secret_file::parse_recipient(name).map(|recipient| recipient.to_string());
        let names = names.split(',').map(str::trim).map(recipient).collect::<Result<_, _>>();
        names.map(Self).map_err(|problem| problem.to_string())
    }
}

/// What a backup's first line says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`VERSION`]. First, since by it a backup is told from other files.
    pub backup: u32,
    /// The cluster the key belongs to.
    pub cluster: String,
    /// The key's id within the cluster.
    pub key: String,
    /// The epoch of the share.
    pub epoch: u64,
    /// Whose share it is.
    pub signer: SignerIndex,
    /// The root public key.
    pub public_key: PublicKey,
    /// How many holders open it together.
    pub holders: u8,
}

/// Why a backup cannot be made or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// The holders are too few or too many.
    #[error(
        "{0} holders: expected {MIN_HOLDERS} to {MAX_HOLDERS} (`--holder` for each), so that nobody opens it alone"
    )]
    Holders(usize),
    /// One recipient stands twice.
    #[error("recipient {0} stands twice: expected each once, so that no holder has two layers")]
    Twice(String),
    /// The first line is none.
    #[error("its first line says nothing of a backup: {0}")]
    Header(String),
    /// It has a version that this code does not read.
    #[error("the backup has version {0}: expected {VERSION}")]
    Version(u32),
    /// A layer stays closed.
    #[error("{layer} cannot be opened: {problem}: expected an age identity of {holder} (`--identity`)")]
    Closed {
        /// Which layer.
        layer: String,
        /// Whose it is.
        holder: String,
        /// What `age` says.
        problem: String,
    },
    /// The first line and what is inside disagree.
    #[error("its first line says {what} {header}: inside is {inside}")]
    Disagrees {
        /// In what.
        what: &'static str,
        /// What the first line says.
        header: String,
        /// What is inside.
        inside: String,
    },
    /// There is more inside than a backup has.
    #[error(
        "it holds what an engine needs besides the share: expected none, since an old copy must never be used"
    )]
    EngineParts,
}

/// What opens backups: the age identities of holders.
pub struct Identities(Vec<Box<dyn age::Identity>>);

impl Identities {
    /// Those in these files, each of which only its owner may be able to read.
    ///
    /// # Errors
    /// [`Problem`] naming the file.
    pub fn load(files: &[PathBuf]) -> Result<Self, Problem> {
        let all = files.iter().map(|file| secret_file::read_identities(file));
        Ok(Self(all.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect()))
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

/// A share that was opened, and how many holders it took.
#[derive(Debug)]
pub struct Opened {
    /// The share.
    pub share: ShareDocument,
    /// How many layers were opened; 0 when it was not encrypted.
    pub layers: u8,
}

/// Writes the core of a share to a new file that only all holders can open together. A file that is there already is
/// never replaced.
///
/// # Errors
/// [`SecretFileError`] when the holders are too few, or the file cannot be written.
pub fn save(file: &Path, share: ShareDocument, holders: &[Holder]) -> Result<Header, SecretFileError> {
    let write = || {
        check_holders(holders)?;
        let share = ShareDocument { engines: EngineParts::default(), ..share };
        let header = Header {
            backup: VERSION,
            cluster: share.cluster.clone(),
            key: share.key.clone(),
            epoch: share.epoch,
            signer: share.core.index,
            public_key: share.core.secp256k1()?.public_key,
            holders: u8::try_from(holders.len()).map_err(|_| BackupError::Holders(holders.len()))?,
        };
        let mut content = share.to_json()?;
        for Holder(recipients) in holders {
            content = secret_file::encrypt(content, &Protection::Recipients(recipients.clone()))?;
        }
        let mut line = serde_json::to_vec(&header).map_err(|error| BackupError::Header(error.to_string()))?;
        // What is written must be read again.
        if line.len() > MAX_HEADER {
            return Err(BackupError::Header(format!("it would have {} bytes", line.len())).into());
        }
        line.push(b'\n');
        line.extend_from_slice(&content);
        secret_file::write_new(file, Zeroizing::new(line), &Protection::None)?;
        Ok(header)
    };
    write().map_err(|problem: Problem| problem.at(WHAT, file))
}

fn check_holders(holders: &[Holder]) -> Result<(), BackupError> {
    if !(MIN_HOLDERS..=MAX_HOLDERS).contains(&holders.len()) {
        return Err(BackupError::Holders(holders.len()));
    }
    let mut known = BTreeSet::new();
    for recipient in holders.iter().flat_map(|Holder(recipients)| recipients) {
        if !known.insert(recipient) {
            return Err(BackupError::Twice(recipient.clone()));
        }
    }
    Ok(())
}

/// Opens a backup, what is left of one when a holder has taken off its layer with `age`, or a share file.
///
/// # Errors
/// [`SecretFileError`] saying which layer stays closed, or what is wrong with what is inside.
pub fn open(file: &Path, identities: &Identities) -> Result<Opened, SecretFileError> {
    let read = || {
        let bytes = secret_file::read_private(file)?;
        if bytes.starts_with(BEGIN) {
            return open_backup(&bytes, identities);
        }
        let (json, layers) = peel(bytes, None, identities)?;
        Ok(Opened { share: ShareDocument::from_json(&json)?, layers })
    };
    read().map_err(|problem: Problem| problem.at(WHAT, file))
}

fn open_backup(bytes: &[u8], identities: &Identities) -> Result<Opened, Problem> {
    let (header, end) = read_header(bytes)?;
    let content = Zeroizing::new(bytes[end..].to_vec());
    let (json, layers) = peel(content, Some(header.holders), identities)?;
    let share = ShareDocument::from_json(&json)?;
    let disagrees = |what, header: String, inside: String| {
        if header == inside { Ok(()) } else { Err(BackupError::Disagrees { what, header, inside }) }
    };
    disagrees("holders", header.holders.to_string(), layers.to_string())?;
    disagrees("cluster", header.cluster, share.cluster.clone())?;
    disagrees("key", header.key, share.key.clone())?;
    disagrees("epoch", header.epoch.to_string(), share.epoch.to_string())?;
    disagrees("signer", header.signer.to_string(), share.core.index.to_string())?;
    disagrees("public key", header.public_key.to_string(), share.core.public_key().to_string())?;
    if !share.engines.is_empty() {
        return Err(BackupError::EngineParts.into());
    }
    Ok(Opened { share, layers })
}

/// The first line, and where what follows begins.
fn read_header(bytes: &[u8]) -> Result<(Header, usize), BackupError> {
    /// Read first, so that a later version is told from a damaged file.
    #[derive(Deserialize)]
    struct Versioned {
        backup: u32,
    }
    let malformed = |error: serde_json::Error| BackupError::Header(error.to_string());
    let end = bytes.iter().take(MAX_HEADER + 1).position(|&byte| byte == b'\n');
    let end = end.ok_or_else(|| BackupError::Header(format!("it has more than {MAX_HEADER} bytes")))?;
    let Versioned { backup } = serde_json::from_slice(&bytes[..end]).map_err(malformed)?;
    if backup != VERSION {
        return Err(BackupError::Version(backup));
    }
    let header = serde_json::from_slice(&bytes[..end]).map_err(malformed)?;
    Ok((header, end + 1))
}

/// Opens one layer after the other, as long as there is one; `of` is how many there should be.
fn peel(
    mut content: Zeroizing<Vec<u8>>,
    of: Option<u8>,
    identities: &Identities,
) -> Result<(Zeroizing<Vec<u8>>, u8), Problem> {
    let mut layers = 0;
    while secret_file::is_encrypted(&content) && usize::from(layers) < MAX_HOLDERS {
        content = secret_file::decrypt_once(&content, &identities.0).map_err(|problem| {
            let problem = match problem {
                Problem::Undecryptable(problem) => problem,
                other => other.to_string(),
            };
            let (layer, holder) = match of.and_then(|of| Some((of.checked_sub(layers)?, of))) {
                Some((holder, of)) => (format!("layer {holder} of {of}"), format!("holder {holder}")),
                None => ("a layer".to_owned(), "its holder".to_owned()),
            };
            BackupError::Closed { layer, holder, problem }
        })?;
        layers += 1;
    }
    Ok((content, layers))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use age::secrecy::ExposeSecret as _;
    use age::x25519::Identity;
    use tempfile::TempDir;
    use tss_mpc::{Origin, PrivateKey, Scheme, Threshold};

    use super::*;

    /// What is done to a first line.
    type Alter = fn(&mut Header);

    /// Holders with their identities in files.
    struct Desk {
        folder: TempDir,
        identities: Vec<Identity>,
    }

    impl Desk {
        fn new(identities: usize) -> Self {
            let desk = Self {
                folder: tempfile::tempdir().unwrap(),
                identities: (0..identities).map(|_| Identity::generate()).collect(),
            };
            for (number, identity) in desk.identities.iter().enumerate() {
                let text = identity.to_string().expose_secret().to_owned();
                desk.put(&number.to_string(), text.as_bytes());
            }
            desk
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn put(&self, name: &str, content: &[u8]) {
            std::fs::write(self.path(name), content).unwrap();
            std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }

        fn holder(&self, identities: &[usize]) -> Holder {
            let names: Vec<_> =
                identities.iter().map(|&number| self.identities[number].to_public().to_string()).collect();
            names.join(",").parse().unwrap()
        }

        fn open(&self, name: &str, identities: &[usize]) -> Result<Opened, String> {
            let files: Vec<_> = identities.iter().map(|number| self.path(&number.to_string())).collect();
            let identities = Identities::load(&files).unwrap();
            open(&self.path(name), &identities).map_err(|error| error.to_string())
        }
    }

    /// A signer's share of a 2-of-3 key, with something in it that a backup must not have.
    fn share() -> ShareDocument {
        let key = PrivateKey::from_bytes(&Zeroizing::new([3; 32])).unwrap();
        let mut shares = key.split(Threshold::new(2, 3).unwrap()).unwrap();
        let foreign: serde_json::Value =
            serde_json::from_slice(&shares.remove(&SignerIndex::MIN).unwrap().to_json().unwrap()).unwrap();
        let document = serde_json::json!({
            "version": 1, "cluster": "c", "key": "k", "epoch": 4, "scheme": Scheme::EcdsaSecp256k1,
            "origin": Origin::Imported,
            "core": {
                "index": foreign["index"], "threshold": foreign["threshold"], "secret_share": foreign["secret"],
                "public_shares": foreign["public_shares"], "chain_code": "07".repeat(32),
                "public_key": foreign["public_key"],
            },
            "engines": { "dkls23": "once" },
        });
        ShareDocument::from_json(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn all_holders_together_open_a_backup_in_any_order_and_find_the_core_alone() {
        let desk = Desk::new(4);
        let holders = [desk.holder(&[0]), desk.holder(&[1, 2]), desk.holder(&[3])];
        let header = save(&desk.path("b"), share(), &holders).unwrap();
        assert_eq!((header.holders, header.epoch, header.signer.get()), (3, 4, 1));
        let metadata = desk.path("b").metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        // Any one of a holder's recipients.
        for identities in [[0, 1, 3], [3, 2, 0]] {
            let Opened { share: opened, layers } = desk.open("b", &identities).unwrap();
            assert_eq!((layers, opened.epoch, opened.origin), (3, 4, Origin::Imported));
            assert!(opened.engines.is_empty());
            let core = |share: &ShareDocument| serde_json::to_value(&share.core).unwrap();
            assert_eq!(core(&opened)["secret_share"].as_str().unwrap().len(), 64);
            assert_eq!(core(&opened)["public_key"], core(&share())["public_key"]);
        }
        let refused = save(&desk.path("b"), share(), &holders).unwrap_err().to_string();
        assert!(refused.contains("backup file") && refused.contains("File exists"), "{refused}");
    }

    #[test]
    fn fewer_holders_open_nothing_and_are_told_who_is_missing() {
        let desk = Desk::new(3);
        save(&desk.path("b"), share(), &[desk.holder(&[0]), desk.holder(&[1])]).unwrap();
        for (identities, expected) in [
            (&[][..], "layer 2 of 2 cannot be opened"),
            (&[0], "layer 2 of 2 cannot be opened"),
            (&[1], "layer 1 of 2 cannot be opened"),
            (&[0, 2], "expected an age identity of holder 2"),
            (&[1, 2], "expected an age identity of holder 1"),
        ] {
            let refused = desk.open("b", identities).unwrap_err();
            assert!(refused.contains(expected) && refused.contains("/b: "), "{refused}");
        }
    }

    #[test]
    fn a_backup_that_one_holder_could_open_is_not_written() {
        let desk = Desk::new(3);
        let recipient = desk.identities[0].to_public().to_string();
        for (holders, expected) in [
            (vec![], "0 holders: expected 2 to 16"),
            (vec![desk.holder(&[0, 1])], "1 holders: expected 2 to 16"),
            (vec![desk.holder(&[0]), desk.holder(&[1, 0])], recipient.as_str()),
            (vec![desk.holder(&[0, 0]), desk.holder(&[1])], "stands twice"),
            (vec![desk.holder(&[0]); 17], "17 holders"),
        ] {
            let refused = save(&desk.path("b"), share(), &holders).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
            assert!(!desk.path("b").exists());
        }
        // As other programs may write it.
        assert_eq!(recipient.to_uppercase().parse::<Holder>().unwrap(), desk.holder(&[0]));
        for none in ["", "age1", "alice", "age1,"] {
            assert!(none.parse::<Holder>().unwrap_err().contains("expected age1…"), "{none}");
        }
    }

    #[test]
    fn a_first_line_that_disagrees_with_what_is_inside_is_not_believed() {
        let desk = Desk::new(2);
        save(&desk.path("b"), share(), &[desk.holder(&[0]), desk.holder(&[1])]).unwrap();
        let bytes = std::fs::read(desk.path("b")).unwrap();
        let end = bytes.iter().position(|&byte| byte == b'\n').unwrap();
        let header: Header = serde_json::from_slice(&bytes[..end]).unwrap();
        let generator = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798".parse().unwrap();
        let alterations: [(&str, Alter); 7] = [
            ("version 2: expected 1", |header| header.backup = 2),
            ("says cluster d: inside is c", |header| header.cluster = "d".into()),
            ("says key d: inside is k", |header| header.key = "d".into()),
            ("says epoch 3: inside is 4", |header| header.epoch = 3),
            ("says signer 2: inside is 1", |header| header.signer = SignerIndex::new(2).unwrap()),
            ("says holders 3: inside is 2", |header| header.holders = 3),
            ("says holders 1: inside is 2", |header| header.holders = 1),
        ];
        let reopened = |header: &[u8]| {
            desk.put("altered", &[header, &bytes[end..]].concat());
            desk.open("altered", &[0, 1]).unwrap_err()
        };
        for (expected, alter) in alterations {
            let mut altered = header.clone();
            alter(&mut altered);
            let refused = reopened(&serde_json::to_vec(&altered).unwrap());
            assert!(refused.contains(expected), "{refused}");
        }
        let other = Header { public_key: generator, ..header.clone() };
        assert!(reopened(&serde_json::to_vec(&other).unwrap()).contains("says public key 0279be"));
        for (line, expected) in [
            (&br#"{"backup":1}"#[..], "missing field `cluster`"),
            (br#"{"backup":"#, "its first line says nothing of a backup"),
            (&[BEGIN, &[b' '; MAX_HEADER]].concat(), "more than 4096 bytes"),
        ] {
            assert!(reopened(line).contains(expected));
        }
        // What `age` itself leaves of it is opened too, and a share as it is.
        desk.put("bare", &bytes[end + 1..]);
        assert_eq!(desk.open("bare", &[1, 0]).unwrap().layers, 2);
        assert!(desk.open("bare", &[1]).unwrap_err().contains("a layer cannot be opened"));
        desk.put("plain", &share().to_json().unwrap());
        assert_eq!(desk.open("plain", &[]).unwrap().layers, 0);
        std::fs::set_permissions(desk.path("plain"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(desk.open("plain", &[]).unwrap_err().contains("its permissions are 0644"));
    }

    #[test]
    fn a_backup_that_holds_an_engines_part_or_is_cut_short_is_refused() {
        let desk = Desk::new(2);
        let holders = [desk.holder(&[0]), desk.holder(&[1])];
        save(&desk.path("b"), share(), &holders).unwrap();
        let bytes = std::fs::read(desk.path("b")).unwrap();
        let end = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        let mut content = share().to_json().unwrap();
        for Holder(recipients) in &holders {
            content = secret_file::encrypt(content, &Protection::Recipients(recipients.clone())).unwrap();
        }
        desk.put("more", &[&bytes[..end], &content].concat());
        assert!(desk.open("more", &[0, 1]).unwrap_err().contains("what an engine needs besides the share"));
        for length in [end, end + 30, bytes.len() - 1] {
            desk.put("short", &bytes[..length]);
            desk.open("short", &[0, 1]).unwrap_err();
        }
    }
}
