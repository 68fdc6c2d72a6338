//! Approvers' keys, and the approvals that they make: offline, without a manager's word for anything.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use jiff::Timestamp;
use tss_client::{Hex, types};
use tss_common::approval::Approval;
use tss_common::config::Config;
use tss_common::ed25519::{SigningKey, VerifyingKey};
use tss_common::intent::{Intent, Wish};
use zeroize::Zeroizing;

use crate::private;

/// The longest file that is read here, in bytes; a key or an approval has about 300 at most.
const MAX_FILE: u64 = 4096;

/// Makes an approver's key: a file with one line of 64 hex digits, the seed, that only its owner can read.
/// One that is there is never replaced. Yields the public key, for policies.
///
/// # Errors
/// Naming the file.
pub fn generate(file: &Path) -> anyhow::Result<VerifyingKey> {
    let key = SigningKey::generate();
    let line = Zeroizing::new(format!("{}\n", *Zeroizing::new(hex::encode(**key.seed()))));
    let write = || -> std::io::Result<()> {
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        new.write_all(line.as_bytes()).and_then(|()| new.sync_all()).inspect_err(|_| {
            // Half a key is of no use, and would block the next try.
            let _ = std::fs::remove_file(file);
        })
    };
    write().with_context(|| {
        format!("approver's key {}: expected a new file, since a key is never replaced", file.display())
    })?;
    Ok(key.verifying_key())
}

/// Reads an approver's key.
///
/// # Errors
/// Naming the file, what is wrong, and what was expected.
pub fn load(file: &Path) -> anyhow::Result<SigningKey> {
    let read = || -> anyhow::Result<SigningKey> {
        private::check(&std::fs::metadata(file)?).map_err(anyhow::Error::msg)?;
        let text = private::read(File::open(file)?, MAX_FILE)?;
        let mut seed = Zeroizing::new([0; 32]);
        // The error says nothing of what the file holds.
        let decoded = hex::decode_to_slice(text.trim_ascii(), &mut *seed);
        anyhow::ensure!(
            decoded.is_ok(),
            "expected one line of 64 hex digits, as `tssctl approver` writes it"
        );
        Ok(SigningKey::from_seed(seed))
    };
    read().with_context(|| format!("approver's key {}", file.display()))
}

/// Approves what a manager with this configuration would make of a wish. Yields what was approved, too.
///
/// # Errors
/// When the key cannot be read or the wish is none.
pub fn approve(key_file: &Path, wish: Wish, config: &Config) -> anyhow::Result<(Intent, Approval)> {
    let key = load(key_file)?;
    let (intent, _) = wish.read(config, Timestamp::now()).map_err(anyhow::Error::msg)?;
    let approval = Approval::make(&key, &intent);
    Ok((intent, approval))
}

/// An intent for a person to read before it is approved, one field a line. What could move a terminal's
/// cursor is shown as an escape.
pub fn describe(text: &str, intent: &Intent) -> String {
    let not_after = intent.not_after.map_or("never lapses".into(), |time| time.to_string());
    format!(
        "  text       {text:?}\n  cluster    {}\n  key        {}\n  path       {}\n  hash       {}\n  digest     {}\n  \
         not_after  {not_after}\n  intent     {}",
        intent.cluster.escape_debug(),
        intent.key.escape_debug(),
        intent.path,
        intent.hash,
        hex::encode(intent.digest),
        hex::encode(intent.hash()),
    )
}

/// Reads an approval: the line of JSON that `tssctl approve` prints.
///
/// # Errors
/// Naming the file, what is wrong, and what was expected.
pub fn read_approval(file: &Path) -> anyhow::Result<Approval> {
    let read = || -> anyhow::Result<Approval> {
        let text = private::read(File::open(file)?, MAX_FILE)?;
        let expected = "expected one line of JSON, as `tssctl approve` prints it";
        // An error that quotes the text would show a part of a key, should this be one.
        anyhow::ensure!(text.trim_ascii_start().starts_with(b"{"), expected);
        serde_json::from_slice(&text).context(expected)
    };
    read().with_context(|| format!("approval {}", file.display()))
}

/// An approval as a request carries it.
pub fn to_send(approval: &Approval) -> types::Approval {
    types::Approval {
        approver: Hex(*approval.approver.as_bytes()),
        signature: Hex(*approval.signature.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tss_common::intent::{Encoding, HashAlgorithm};

    use super::*;

    fn wish() -> Wish {
        Wish {
            message: "pay\u{1b}[2J".into(),
            encoding: Encoding::Utf8,
            hash: HashAlgorithm::Sha256,
            key: None,
            path: None,
            not_after: None,
        }
    }

    fn error<T>(result: anyhow::Result<T>) -> String {
        format!("{:#}", result.err().expect("an error"))
    }

    #[test]
    fn a_key_is_a_private_file_with_one_line_that_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alice.key");
        let public = generate(&file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.len() == 65 && text.ends_with('\n'));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&file).unwrap().verifying_key(), public);
        let refused = error(generate(&file));
        assert!(refused.contains("alice.key") && refused.contains("never replaced"), "{refused}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alice.key");
        generate(&file).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = error(load(&file));
        assert!(refused.contains("alice.key: its permissions are 0644"), "{refused}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        for text in ["", "secret", &"ab".repeat(31), &"ab".repeat(33)] {
            std::fs::write(&file, text).unwrap();
            let refused = error(load(&file));
            assert!(refused.contains("one line of 64 hex digits"), "{refused}");
            assert!(text.is_empty() || !refused.contains(text), "{refused}");
        }
        std::fs::write(&file, "a".repeat(5000)).unwrap();
        assert!(error(load(&file)).contains("more than 4096 bytes"));
    }

    #[test]
    fn an_approval_is_of_what_the_manager_would_make_of_the_wish() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alice.key");
        let public = generate(&file).unwrap();
        let config = Config { cluster: "prod".into(), ..Config::default() };
        let (intent, approval) = approve(&file, wish(), &config).unwrap();
        assert_eq!((approval.approver, approval.verify(&intent)), (public, Ok(())));
        assert_eq!(intent.hash(), wish().read(&config, Timestamp::UNIX_EPOCH).unwrap().0.hash());

        let shown = describe(&wish().message, &intent);
        let (digest, path) = (hex::encode(intent.digest), intent.path.to_string());
        for part in [r#""pay\u{1b}[2J""#, "prod", "default", &path, "sha256", &digest, "never lapses"] {
            assert!(shown.contains(part), "`{part}` is missing in: {shown}");
        }

        let line = folder.path().join("alice.json");
        std::fs::write(&line, format!("{}\n", serde_json::to_string(&approval).unwrap())).unwrap();
        assert_eq!(read_approval(&line).unwrap(), approval);
        std::fs::write(&line, "{}").unwrap();
        let refused = error(read_approval(&line));
        assert!(refused.contains("alice.json: expected one line of JSON"), "{refused}");

        let refused = error(read_approval(&file));
        assert!(refused.ends_with("as `tssctl approve` prints it"), "{refused}");

        let past = Wish { not_after: Some(Timestamp::UNIX_EPOCH), ..wish() };
        assert!(error(approve(&file, past, &config)).contains("`not_after`"));
    }
}
