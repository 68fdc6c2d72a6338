//! `backup`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tss_mpc::PublicKey;
use tss_signer::backup::Identities;
use tssctl::backup::{self, Expected, Verified};

use super::exit::Failure;
use super::output::{self, Printer};

#[derive(Subcommand)]
pub(crate) enum BackupCommand {
    /// Open one signer's backup, check it, and print an attestation that it is good: a line of JSON with nothing secret
    /// in it. Different signers' backups belong on different machines.
    Attest(AttestArguments),
    /// Check that attestations, or backups themselves, are of one key and enough to give it.
    Verify(VerifyArguments),
}

#[derive(Args)]
pub(crate) struct IdentityArguments {
    /// A file with age identities (AGE-SECRET-KEY-…) of a holder. Stands once for each holder that is needed, in any
    /// order.
    #[arg(long = "identity", value_name = "FILE")]
    identities: Vec<PathBuf>,
}

impl IdentityArguments {
    pub(crate) fn load(&self) -> anyhow::Result<Identities> {
        Identities::load(&self.identities).map_err(|problem| Failure::usage(problem.to_string()))
    }
}

#[derive(Args)]
pub(crate) struct AttestArguments {
    /// The backup, as `signer backup` wrote it; or a share file.
    file: PathBuf,
    #[command(flatten)]
    identities: IdentityArguments,
    /// What whoever asks for the attestation chose, so that it cannot be an old one.
    #[arg(long, value_name = "TEXT")]
    challenge: Option<String>,
}

#[derive(Args)]
pub(crate) struct VerifyArguments {
    /// Attestations, as `backup attest` printed them; backups, which are opened one at a time.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    identities: IdentityArguments,
    /// Fail if an attestation was made for another challenge than this, or for none.
    #[arg(long, value_name = "TEXT")]
    challenge: Option<String>,
    /// Fail if the root public key is not this one (hex).
    #[arg(long, value_name = "HEX")]
    expect_public_key: Option<PublicKey>,
}

/// Runs `backup`.
pub(crate) fn run(command: BackupCommand, printer: Printer) -> anyhow::Result<()> {
    match command {
        BackupCommand::Attest(AttestArguments { file, identities, challenge }) => {
            let attestation = backup::attest(&file, &identities.load()?, challenge)?;
            output::line(&serde_json::to_string(&attestation)?)
        }
        BackupCommand::Verify(arguments) => {
            let VerifyArguments { files, identities, challenge, expect_public_key } = arguments;
            let identities = identities.load()?;
            let expected = Expected { identities, challenge, public_key: expect_public_key };
            let verified = backup::verify(&files, &expected)?;
            printer.answer(&verified, |verified| describe(verified, expected.challenge.is_some()))
        }
    }
}

fn describe(verified: &Verified, challenged: bool) -> String {
    let Verified { cluster, key, epoch, threshold, public_key, verified, spare } = verified;
    let rows: Vec<[String; 3]> = verified
        .iter()
        .map(|(signer, shown)| {
            let by = match (shown.attestation, &shown.challenge) {
                (false, _) => "opened".into(),
                (true, Some(challenge)) => format!("attested for {challenge:?}"),
                (true, None) => "attested".into(),
            };
            [signer.to_string(), by, shown.file.display().to_string()]
        })
        .collect();
    let heading = output::labelled([
        ("cluster", Some(cluster.clone())),
        ("key", Some(key.clone())),
        ("epoch", Some(epoch.to_string())),
        ("threshold", Some(threshold.to_string())),
        ("public key", Some(public_key.to_string())),
    ]);
    let table = output::table(["SIGNER", "SHOWN BY", "FILE"], &rows);
    let (found, n) = (verified.len(), threshold.n());
    let found = if found == usize::from(n) { format!("all {n}") } else { format!("{found} of {n}") };
    let lost = match spare {
        0 => "none of them can be lost".to_owned(),
        spare => format!("{spare} more can be lost"),
    };
    let old = if challenged || !verified.values().any(|shown| shown.attestation) {
        ""
    } else {
        "\nWithout --challenge, an attestation may be an old one."
    };
    format!("{heading}\n{table}\nThe backups of {found} signers are good, and give the key: {lost}.{old}")
}
