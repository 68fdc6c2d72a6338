//! An existing private key, split by whoever has it into one share for each signer, to be taken over by the signers.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context as _;
use tss_mpc::{PrivateKey, SignerIndex, Threshold};
use tss_signer::foreign_file;
use tss_signer::secret_file::Protection;
use zeroize::Zeroizing;

use crate::private;

/// The longest file with a private key that is read, in bytes.
const MAX_FILE: u64 = 4096;

/// To whom a signer's file is encrypted: `2=age1…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    signer: SignerIndex,
    name: String,
}

impl FromStr for Recipient {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a signer and its age recipient, as in 2=age1…".to_owned();
        let (signer, name) = text.split_once('=').ok_or_else(expected)?;
        let signer = signer.parse::<u8>().ok().and_then(|signer| SignerIndex::new(signer).ok());
        Ok(Self { signer: signer.ok_or_else(expected)?, name: name.to_owned() })
    }
}

/// Reads a private key: 64 hex digits, with or without `0x`, in a file that only its owner can read.
///
/// # Errors
/// Naming the file and what was expected, but nothing of the key.
pub fn read_private_key(file: &Path) -> anyhow::Result<PrivateKey> {
    let read = || -> anyhow::Result<PrivateKey> {
        let opened = File::open(file)?;
        private::check(&opened.metadata()?).map_err(anyhow::Error::msg)?;
        let text = private::read(opened, MAX_FILE)?;
        let digits = text.trim_ascii();
        let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
        let mut bytes = Zeroizing::new([0; 32]);
        // The error would say what the file holds.
        let decoded = hex::decode_to_slice(digits, &mut *bytes);
        anyhow::ensure!(decoded.is_ok(), "expected one line of 64 hex digits, with or without 0x");
        Ok(PrivateKey::from_bytes(&bytes)?)
    };
    read().with_context(|| format!("private key {}", file.display()))
}

/// To whom each signer's file is encrypted: all of them, or none.
///
/// # Errors
/// Naming the signer that has no recipient, or does not exist.
pub fn protections(
    recipients: &[Recipient],
    threshold: Threshold,
) -> anyhow::Result<BTreeMap<SignerIndex, Protection>> {
    let mut all: BTreeMap<SignerIndex, Vec<String>> = BTreeMap::new();
    for Recipient { signer, name } in recipients {
        anyhow::ensure!(threshold.contains(*signer), "--recipient {signer}=…: the key is {threshold}");
        all.entry(*signer).or_default().push(name.clone());
    }
    let one = |signer| match all.remove(&signer) {
        Some(names) => Ok((signer, Protection::Recipients(names))),
        None if recipients.is_empty() => Ok((signer, Protection::None)),
        None => anyhow::bail!("--recipient: none for signer {signer}: expected one for each signer, or none"),
    };
    threshold.signers().map(one).collect()
}

/// Splits a key and writes each signer's share to a new file in the folder: `signer1.foreign.json` and so on.
///
/// # Errors
/// Naming the file that is there already, or cannot be written; then none is left.
pub fn split(
    key: &PrivateKey,
    protections: &BTreeMap<SignerIndex, Protection>,
    threshold: Threshold,
    folder: &Path,
) -> anyhow::Result<BTreeMap<SignerIndex, PathBuf>> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut written = BTreeMap::new();
    for (index, share) in key.split(threshold)? {
        let file = folder.join(format!("signer{index}.foreign.json"));
        let protection = protections.get(&index).unwrap_or(&Protection::None);
        if let Err(error) = foreign_file::save(&file, &share, protection) {
            for other in written.values() {
                // Shares of a split that not all signers have are of no use.
                let _ = std::fs::remove_file(other);
            }
            return Err(error.into());
        }
        written.insert(index, file);
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn private(file: &Path, text: &str, mode: u32) {
        std::fs::write(file, text).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_private_key_is_read_from_a_private_file_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let digits = "0b".repeat(32);
        for text in [digits.clone(), format!("0x{digits}\n"), format!(" {}\n", digits.to_uppercase())] {
            private(&file, &text, 0o600);
            assert_eq!(*read_private_key(&file).unwrap().to_bytes(), [11; 32]);
        }
        let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
        for (text, mode, expected) in [
            (digits.as_str(), 0o644, "its permissions are 0644"),
            (&digits[1..], 0o600, "expected one line of 64 hex digits"),
            (&format!("{digits}0b"), 0o600, "expected one line of 64 hex digits"),
            (&format!("{digits}\n{digits}"), 0o600, "expected one line of 64 hex digits"),
            (&"00".repeat(32), 0o600, "above 0 and below the group order"),
            (order, 0o600, "above 0 and below the group order"),
            (&" ".repeat(5000), 0o600, "more than 4096 bytes"),
        ] {
            private(&file, text, mode);
            let refused = format!("{:#}", read_private_key(&file).unwrap_err());
            assert!(refused.contains(expected) && refused.contains("/key: "), "{refused}");
            assert!(!refused.contains(text.trim()) || text.trim().is_empty(), "{refused}");
        }
    }

    #[test]
    fn each_signer_gets_a_private_file_and_none_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let threshold = Threshold::new(2, 3).unwrap();
        let key = PrivateKey::from_bytes(&Zeroizing::new([11; 32])).unwrap();
        let none = protections(&[], threshold).unwrap();
        let out = folder.path().join("new/shares");
        let files = split(&key, &none, threshold, &out).unwrap();
        for (index, file) in &files {
            assert_eq!(*file, out.join(format!("signer{index}.foreign.json")));
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
            let share = foreign_file::load(file, None).unwrap();
            assert_eq!((share.index(), share.threshold()), (*index, threshold));
            assert_eq!(share.public_key(), key.public_key());
        }
        std::fs::remove_file(out.join("signer1.foreign.json")).unwrap();
        let before = std::fs::read(out.join("signer2.foreign.json")).unwrap();
        let refused = split(&key, &none, threshold, &out).unwrap_err().to_string();
        assert!(refused.contains("signer2.foreign.json: File exists"), "{refused}");
        // Of the try that failed nothing is left, and nothing of the other is lost.
        assert!(!out.join("signer1.foreign.json").exists());
        assert_eq!(std::fs::read(out.join("signer2.foreign.json")).unwrap(), before);
    }

    #[test]
    fn recipients_are_for_all_signers_or_for_none() {
        let threshold = Threshold::new(2, 3).unwrap();
        let parse =
            |texts: &[&str]| -> Vec<Recipient> { texts.iter().map(|text| text.parse().unwrap()).collect() };
        let all = protections(&parse(&["1=a", "2=b", "3=c", "2=d"]), threshold).unwrap();
        assert!(
            matches!(&all[&SignerIndex::new(2).unwrap()], Protection::Recipients(names) if *names == ["b", "d"])
        );
        let refused = protections(&parse(&["1=a", "3=c"]), threshold).err().unwrap().to_string();
        assert!(refused.contains("none for signer 2"), "{refused}");
        let refused = protections(&parse(&["4=a"]), threshold).err().unwrap().to_string();
        assert!(refused.contains("--recipient 4=…: the key is 2-of-3"), "{refused}");
        for none in ["age1", "=age1", "0=age1", "17=age1", "x=age1"] {
            assert!(none.parse::<Recipient>().unwrap_err().contains("as in 2=age1"), "{none}");
        }
    }
}
