//! Key generation in one process, and the files it writes.
//!
//! All parties run here, so this machine sees the whole key for as long as it takes: right for
//! development, and for a ceremony on a machine that is not connected. They run the same protocol as
//! parties on machines of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use age::secrecy::SecretString;
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use tss_common::config::Config;
use tss_common::identity::{Identity, Roster};
use tss_mpc::local::{Machines, run_local_with};
use tss_mpc::{Engine, KeygenSetup, SessionId, ShareDocument, SignerIndex, Threshold};
use tss_signer::secret_file::Protection;
use tss_signer::{identity_file, share_file};

/// Generates a key: every signer's share.
///
/// # Errors
/// When the protocol aborts.
pub fn generate(
    engine: &dyn Engine,
    cluster: &str,
    key: &str,
    threshold: Threshold,
) -> anyhow::Result<BTreeMap<SignerIndex, ShareDocument>> {
    let session = SessionId(rand::random());
    let machines: Machines<ShareDocument> = threshold
        .signers()
        .map(|index| {
            let setup =
                KeygenSetup { session, cluster: cluster.to_owned(), key: key.to_owned(), index, threshold };
            Ok((index, engine.keygen(setup)?))
        })
        .collect::<anyhow::Result<_>>()?;
    let rounds = machines.values().map(|machine| machine.rounds()).max().unwrap_or_default();
    let progress = ProgressBar::new(rounds.into()).with_style(
        ProgressStyle::with_template("{spinner} generating a {msg} key, round {pos} of {len}  {elapsed}")
            .context("the progress template is well-formed")?,
    );
    progress.set_message(threshold.to_string());
    progress.enable_steady_tick(std::time::Duration::from_millis(100));
    let shares = run_local_with(machines, |round| progress.set_position(round.into()));
    progress.finish_and_clear();
    shares.map_err(|(index, abort)| anyhow::anyhow!("key generation aborted at signer {index}: {abort}"))
}

/// A fresh identity for every signer.
pub fn identities(threshold: Threshold) -> BTreeMap<SignerIndex, Identity> {
    threshold.signers().map(|index| (index, Identity::generate())).collect()
}

/// To whom each share file is encrypted.
///
/// # Errors
/// When the recipients are neither one nor one for each signer, or the passphrase is empty.
pub fn protections(
    recipients: &[String],
    passphrase: Option<SecretString>,
    threshold: Threshold,
) -> anyhow::Result<BTreeMap<SignerIndex, Protection>> {
    let n = usize::from(threshold.n());
    anyhow::ensure!(
        recipients.len() <= 1 || recipients.len() == n,
        "--recipient stands {} times: expected once for all share files, or {n} times, once for each signer in order",
        recipients.len()
    );
    Ok(threshold
        .signers()
        .map(|index| {
            let own = recipients.get(usize::from(index.get()) - 1).or(recipients.first());
            let protection = match (own, &passphrase) {
                (Some(recipient), _) => Protection::Recipients(vec![recipient.clone()]),
                (None, Some(passphrase)) => Protection::Passphrase(passphrase.clone()),
                (None, None) => Protection::None,
            };
            (index, protection)
        })
        .collect())
}

/// Where the files of a cluster are.
#[derive(Clone, Debug)]
pub struct Files {
    /// Every signer's share.
    pub shares: BTreeMap<SignerIndex, PathBuf>,
    /// Every signer's identity.
    pub identities: BTreeMap<SignerIndex, PathBuf>,
    /// The roster.
    pub roster: PathBuf,
}

impl Files {
    /// Those that a configuration names.
    pub fn of(config: &Config) -> Self {
        Self {
            shares: config.key_files(),
            identities: config.identity_files(),
            roster: config.roster_file.clone(),
        }
    }

    /// `signer1.store`, `signer1.identity` and so on, and `roster.toml`, in one folder.
    pub fn in_folder(folder: &Path, threshold: Threshold) -> Self {
        let named = |extension: &str| {
            let file = |index| folder.join(format!("signer{index}.{extension}"));
            threshold.signers().map(|index| (index, file(index))).collect()
        };
        Self { shares: named("store"), identities: named("identity"), roster: folder.join("roster.toml") }
    }

    /// Refuses to go on when a share file is there already: it may be the only share there is.
    ///
    /// # Errors
    /// Naming the file.
    pub fn ensure_no_shares(&self) -> anyhow::Result<()> {
        for file in self.shares.values() {
            anyhow::ensure!(
                !file.try_exists().with_context(|| file.display().to_string())?,
                "{} is there already, and a share is never replaced: move it away, or name another folder with \
                 --out",
                file.display()
            );
        }
        Ok(())
    }

    /// Makes the identities and the roster, unless there is a roster already: then the signers have their
    /// identities, wherever they are.
    ///
    /// # Errors
    /// Naming the file that is wrong or could not be written.
    pub fn ensure_identities(
        &self,
        threshold: Threshold,
        protections: &BTreeMap<SignerIndex, Protection>,
    ) -> anyhow::Result<()> {
        if self.roster.try_exists().with_context(|| self.roster.display().to_string())? {
            Roster::load(&self.roster, threshold.n())?;
            return Ok(());
        }
        let identities = identities(threshold);
        for (index, identity) in &identities {
            let file = self.identities.get(index).with_context(|| format!("no file for signer {index}"))?;
            make_folder(file)?;
            let protection = protections.get(index).unwrap_or(&Protection::None);
            identity_file::save(file, identity, protection)?;
        }
        let roster = Roster::of(&identities).and_then(|roster| roster.to_toml());
        make_folder(&self.roster)?;
        std::fs::write(&self.roster, roster.map_err(anyhow::Error::msg)?)
            .with_context(|| self.roster.display().to_string())
    }
}

fn make_folder(file: &Path) -> anyhow::Result<()> {
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => std::fs::create_dir_all(folder).with_context(|| folder.display().to_string()),
        None => Ok(()),
    }
}

/// Writes each share to its file.
///
/// # Errors
/// Naming the file that could not be written.
pub fn write(
    shares: &BTreeMap<SignerIndex, ShareDocument>,
    files: &BTreeMap<SignerIndex, PathBuf>,
    protections: &BTreeMap<SignerIndex, Protection>,
) -> anyhow::Result<()> {
    for (index, share) in shares {
        let file = files.get(index).with_context(|| format!("no file for signer {index}"))?;
        let protection = protections.get(index).unwrap_or(&Protection::None);
        make_folder(file)?;
        share_file::save(file, share, protection)?;
    }
    Ok(())
}
