//! `key`: a whole private key, split or put together again, and its shares taken over or made anew.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use tss_mpc::{DerivationPath, PrivateKey, PublicKey, ShareDocument, Threshold};
use tssctl::reconstruct::{self, CEREMONY};
use tssctl::split::{self, Recipient};

use super::backup::IdentityArguments;
use super::exit::Failure;
use super::network::{self, TakeOverArguments};
use super::output::{self, Printer};
use super::refresh::{self, RefreshArguments};

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Have all signers make new shares of a key while they sign on with those that they have, and wait until they sign with
    /// the new ones. Takes a token of an administrator.
    Refresh(RefreshArguments),
    /// Split an existing private key into a share for each signer, offline. The signers then take the key over with `key
    /// import`.
    Split(SplitArguments),
    /// Take over a key that `key split` split, together with all its other signers, each on its own machine with its own
    /// file; writes this signer's share and prints the public key, which stays.
    Import(ImportArguments),
    /// Put the private key together out of backups or shares, offline, as the last resort. Says what that means and does
    /// nothing unless it is told --this-ends-the-threshold.
    Reconstruct(ReconstructArguments),
}

#[derive(Args)]
pub(crate) struct SplitArguments {
    /// The private key: one line of 64 hex digits, with or without 0x, in a file that only its owner can read.
    #[arg(long, value_name = "FILE")]
    private_key_file: PathBuf,
    /// How many signers are needed to sign.
    #[arg(long)]
    threshold: u8,
    /// How many signers there are.
    #[arg(long)]
    signers: u8,
    /// Where signer1.foreign.json … are written; a file that is there is never replaced.
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    /// Encrypt a signer's file to this age recipient (2=age1…): for each signer, or for none.
    #[arg(long = "recipient", value_name = "SIGNER=RECIPIENT")]
    recipients: Vec<Recipient>,
}

#[derive(Args)]
pub(crate) struct ImportArguments {
    /// This signer's file, as `key split` wrote it.
    file: PathBuf,
    #[command(flatten)]
    take_over: TakeOverArguments,
}

#[derive(Args)]
pub(crate) struct ReconstructArguments {
    /// The backups, as `signer backup` wrote them, or share files, of as many signers as sign.
    files: Vec<PathBuf>,
    #[command(flatten)]
    identities: IdentityArguments,
    /// Where the private key and the chain code are written; a file that is there is never replaced.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Which derived key's addresses are shown beside the root's.
    #[arg(long, default_value = "0/1/2")]
    path: DerivationPath,
    /// Do it: whoever has the result has the key, alone and for ever.
    #[arg(long, requires_all = ["files", "out"])]
    this_ends_the_threshold: bool,
}

/// Runs `key`.
pub(crate) async fn run(command: KeyCommand, printer: Printer) -> anyhow::Result<()> {
    match command {
        KeyCommand::Refresh(arguments) => refresh::run(arguments, printer).await,
        KeyCommand::Split(arguments) => split(&arguments, printer),
        KeyCommand::Import(ImportArguments { file, take_over }) => network::import(file, take_over).await,
        KeyCommand::Reconstruct(arguments) => reconstruct(&arguments, printer),
    }
}

/// What `key split` did.
#[derive(Serialize)]
struct Split {
    public_key: PublicKey,
    ethereum_address: String,
    bitcoin_address: String,
    #[serde(flatten)]
    threshold: Threshold,
    files: Vec<PathBuf>,
}

fn split(arguments: &SplitArguments, printer: Printer) -> anyhow::Result<()> {
    let usage = |error: anyhow::Error| Failure::usage(format!("{error:#}"));
    let threshold = Threshold::new(arguments.threshold, arguments.signers)
        .map_err(|error| Failure::usage(format!("--threshold, --signers: {error}")))?;
    let protections = split::protections(&arguments.recipients, threshold).map_err(usage)?;
    let key: PrivateKey = split::read_private_key(&arguments.private_key_file).map_err(usage)?;
    let files = split::split(&key, &protections, threshold, &arguments.out_dir)?;
    let public_key = key.public_key();
    let done = Split {
        public_key,
        ethereum_address: public_key.ethereum_address(),
        bitcoin_address: public_key.bitcoin_address(),
        threshold,
        files: files.into_values().collect(),
    };
    printer.answer(&done, |done| {
        let head = output::labelled([
            ("public key", Some(done.public_key.to_string())),
            ("Ethereum address", Some(done.ethereum_address.clone())),
            ("Bitcoin address", Some(done.bitcoin_address.clone())),
        ]);
        let files = done.threshold.signers().zip(&done.files);
        let files: String = files
            .map(|(signer, file)| format!("{:<18}{}\n", format!("signer {signer}"), file.display()))
            .collect();
        format!(
            "{head}{files}Give each signer its own file, for `tssctl key import`. Until all have taken the key over, {} \
             of these files give it away; the private key itself always does: destroy every copy of both.",
            done.threshold.t()
        )
    })
}

/// What `key reconstruct` did: nothing of the key itself.
#[derive(Serialize)]
struct Reconstructed {
    file: PathBuf,
    root: Addresses,
    derived: Addresses,
}

/// A key and what it goes by elsewhere.
#[derive(Serialize)]
struct Addresses {
    path: DerivationPath,
    public_key: PublicKey,
    ethereum_address: String,
    bitcoin_address: String,
    bitcoin_p2pkh_address: String,
}

impl Addresses {
    fn of(share: &ShareDocument, path: &DerivationPath) -> anyhow::Result<Self> {
        let derived = share.core.secp256k1()?.public_key.derive(&share.core.chain_code, path);
        let key = derived.ok_or_else(|| Failure::usage(format!("--path: {path} derives no key")))?;
        Ok(Self {
            path: path.clone(),
            public_key: key,
            ethereum_address: key.ethereum_address(),
            bitcoin_address: key.bitcoin_address(),
            bitcoin_p2pkh_address: key.bitcoin_p2pkh_address(),
        })
    }

    fn describe(&self) -> String {
        output::labelled([
            (&format!("at path {}", self.path), Some(self.public_key.to_string())),
            ("Ethereum address", Some(self.ethereum_address.clone())),
            ("Bitcoin address", Some(self.bitcoin_address.clone())),
            ("  of old (P2PKH)", Some(self.bitcoin_p2pkh_address.clone())),
        ])
    }
}

fn reconstruct(arguments: &ReconstructArguments, printer: Printer) -> anyhow::Result<()> {
    let out = match &arguments.out {
        Some(out) if arguments.this_ends_the_threshold => out,
        _ => return Err(Failure::usage(format!("nothing was done.\n\n{CEREMONY}"))),
    };
    let share = reconstruct::reconstruct(&arguments.files, &arguments.identities.load()?, out)?;
    let done = Reconstructed {
        file: out.clone(),
        root: Addresses::of(&share, &DerivationPath::root())?,
        derived: Addresses::of(&share, &arguments.path)?,
    };
    printer.answer(&done, |done| {
        format!(
            "{}\n{}\n{} has the private key of the root and its chain code, without which no derived key can be had \
             (BIP-32, steps without a hardened mark). Move what the key holds, then destroy the file, every share and every \
             backup.",
            done.root.describe(),
            done.derived.describe(),
            done.file.display()
        )
    })
}
