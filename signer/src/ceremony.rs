//! Making a key, taking one over, or giving it new shares, as a program does it: from the configuration to the share file.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use prometheus::Registry;
use tokio_util::sync::CancellationToken;
use tss_common::config::Config;
use tss_common::identity::Roster;
use tss_common::process;
use tss_mpc::{ShareDocument, SignerIndex, Threshold};

use crate::compute::Compute;
use crate::keygen::{self, KeygenOptions, Source};
use crate::metrics::Metrics;
use crate::secret_file::Protection;
use crate::{identity_file, share_file};

/// What one signer's part starts from.
pub struct Ceremony<'a> {
    /// The cluster, the key, its threshold, the files, RabbitMQ.
    pub config: &'a Config,
    /// Which signer it is.
    pub index: SignerIndex,
    /// Where the key comes from.
    pub source: Source,
    /// A name for this try, the same at all signers.
    pub attempt: Option<String>,
    /// How long it waits for the others, in all.
    pub patience: Duration,
    /// To whom the share file is encrypted.
    pub protection: &'a Protection,
    /// Where the share is written, if not where the configuration has this signer's.
    pub out: Option<PathBuf>,
}

impl Ceremony<'_> {
    /// Makes the key or its new shares, or takes it over, together with all other signers, and writes this signer's share
    /// to its file: yields both. Ends without one when it is told to stop.
    ///
    /// # Errors
    /// When the file is there already; naming whom it waited for in vain, who cheated, or whose share is of another
    /// key.
    pub async fn hold(self, stop: &CancellationToken) -> anyhow::Result<(ShareDocument, PathBuf)> {
        let Self { config, index, source, attempt, patience, protection, out } = self;
        let file = out.or_else(|| config.key_files().remove(&index)).context("a file for each signer")?;
        anyhow::ensure!(
            !file.try_exists().with_context(|| file.display().to_string())?,
            "{} is there already, and a share is never replaced: move it away first",
            file.display()
        );
        let identity = config.identity_files().remove(&index).context("a file for each signer")?;
        let identity = identity_file::load(&identity, config.age_identity_file.as_deref())
            .context("no identity to take part with (`signer identity` makes one)")?;
        let roster = roster(config)?;
        let bus = process::rabbitmq(config, &format!("keygen of signer {index}"))?;
        let made = keygen::generate(KeygenOptions {
            source,
            index,
            identity,
            roster,
            cluster: config.cluster.clone(),
            key: config.key.clone(),
            attempt,
            threshold: Threshold::new(config.threshold, config.total_parties)?,
            engine: process::engine(config.engine),
            bus: bus.clone(),
            compute: Compute::new()?,
            data_dir: config.data_dir.clone(),
            patience,
            metrics: Metrics::new(&Registry::new()).of(index),
        });
        let share = tokio::select! {
            share = made => share?,
            () = stop.cancelled() => anyhow::bail!("stopped before the share was made"),
        };
        // The others may still need this signer's last words.
        bus.close().await;
        share_file::save(&file, &share, protection)?;
        Ok((share, file))
    }
}

/// The roster that a configuration names.
///
/// # Errors
/// Saying what is wrong with it.
pub fn roster(config: &Config) -> anyhow::Result<Roster> {
    Roster::load(&config.roster_file, config.total_parties).context("`roster_file`")
}
