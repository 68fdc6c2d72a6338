//! `keys`.

use clap::Args;
use tss_client::types::Key;

use super::connection::{Connection, ManagerArguments};
use super::output::{self, Printer};

#[derive(Args)]
pub(crate) struct KeysArguments {
    /// The id of one; all are listed without.
    id: Option<String>,
    /// The path of the derived key that is shown, as in 0/1/2; m for the root. The manager's own without.
    #[arg(long)]
    path: Option<String>,
    #[command(flatten)]
    manager: ManagerArguments,
}

/// Runs `keys`.
pub(crate) async fn run(arguments: &KeysArguments, printer: Printer) -> anyhow::Result<()> {
    let Connection { client, profile } = arguments.manager.connect()?;
    let path = arguments.path.as_deref().or(profile.path.as_deref());
    match &arguments.id {
        Some(id) => printer.answer(&client.key(id, path).await?, describe),
        None => {
            let keys = client.keys(path).await?;
            printer.answer(&keys, |keys| keys.iter().map(describe).collect::<Vec<_>>().join("\n"))
        }
    }
}

fn describe(key: &Key) -> String {
    let derived = &key.derived;
    output::labelled([
        ("key", Some(key.key.clone())),
        ("threshold", Some(format!("{} of {}", key.threshold, key.signers))),
        ("scheme", Some(key.scheme.clone())),
        ("epoch", Some(key.epoch.to_string())),
        ("public key", Some(key.public_key.to_string())),
        ("chain code", Some(key.chain_code.to_string())),
        (&format!("at path {}", output::plain(&derived.path)), Some(derived.public_key.to_string())),
        ("Ethereum address", Some(derived.addresses.ethereum.clone())),
        ("Bitcoin address", Some(derived.addresses.bitcoin_p2wpkh.clone())),
        ("  of old (P2PKH)", Some(derived.addresses.bitcoin_p2pkh.clone())),
    ])
}
