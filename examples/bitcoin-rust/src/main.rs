//! Spends an output of a Bitcoin address (P2WPKH) with a TSS network, and prints the transaction for
//! `sendrawtransaction`.
//!
//! `TSS_MANAGER` says where the manager is (`http://127.0.0.1:8080` where absent), `TSS_TOKEN` who asks.

use std::env;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{PublicKey, ecdsa};
use bitcoin::sighash::{EcdsaSighashType, SighashCache};
use bitcoin::transaction::Version;
use bitcoin::{Address, Amount, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use tss_client::Client;
use tss_client::types::SignRequest;

/// Which of the network's keys signs.
const KEY: &str = "default";

/// Which key derived from it: as BIP-84 has it, but nothing hardened, which no threshold key can derive.
const PATH: &str = "84/0/0/0/0";

/// How long a signature may take. It takes a fraction of a second, unless signers are away.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long calls are made again while the manager is away or busy.
const RETRY: Duration = Duration::from_secs(10);

/// What to do when there is nobody to ask.
const WHERE: &str = "TSS_MANAGER should be the URL of a manager (`cargo run --release --bin tssctl -- devnet` starts one), \
                     and TSS_TOKEN a token, if it asks for one";

/// The output that is spent, and what is in it: made up here, of `listunspent` or an indexer in earnest.
const SPENT: &str = "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b:0";
const SPENT_AMOUNT: Amount = Amount::from_sat(100_000);

/// Who gets how much, and what the miners get; the rest goes back to the address.
const RECIPIENT: &str = "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq";
const AMOUNT: Amount = Amount::from_sat(60_000);
const FEE: Amount = Amount::from_sat(1_000);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let client = client()?;

    // Whose output it is. A program that moves money knows this key, and asks nobody for it.
    let key = client.key(KEY, Some(PATH)).await.context(WHERE)?;
    let public_key = PublicKey::from_slice(key.derived.public_key.as_ref())?;
    let address: Address<_> = key.derived.addresses.bitcoin_p2wpkh.parse()?;
    let address = address.require_network(Network::Bitcoin)?;
    ensure!(
        address.is_related_to_pubkey(&public_key.into()),
        "{address} is not the address of {public_key}: expected its P2WPKH address"
    );

    // The transaction.
    let recipient: Address<_> = RECIPIENT.parse()?;
    let spent = TxOut { value: SPENT_AMOUNT, script_pubkey: address.script_pubkey() };
    let outpoint: OutPoint = SPENT.parse()?;
    let change = SPENT_AMOUNT
        .checked_sub(AMOUNT)
        .and_then(|rest| rest.checked_sub(FEE))
        .context("the output has less than the amount and the fee: choose another one")?;
    let mut transaction = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::new(),
        }],
        output: vec![
            TxOut {
                value: AMOUNT,
                script_pubkey: recipient.require_network(Network::Bitcoin)?.script_pubkey(),
            },
            TxOut { value: change, script_pubkey: address.script_pubkey() },
        ],
    };

    // The network signs the hash of it that commits to this input (BIP-143).
    let sighash_type = EcdsaSighashType::All;
    let sighash = SighashCache::new(&transaction).p2wpkh_signature_hash(
        0,
        &spent.script_pubkey,
        spent.value,
        sighash_type,
    )?;
    let request = SignRequest {
        key: Some(KEY.into()),
        path: Some(PATH.into()),
        ..SignRequest::digest(sighash.to_byte_array())
    };
    let signed = client.sign_and_wait(&request, PATIENCE).await?;

    // The signature, with its type, goes into the input's witness beside the public key.
    let signature = ecdsa::Signature::from_der(signed.der.as_ref())?;
    let signature = bitcoin::ecdsa::Signature { signature, sighash_type };
    transaction.input[0].witness = Witness::p2wpkh(&signature, &public_key);

    // What is sent is looked at once more, by Bitcoin Core's own code (libbitcoinconsensus).
    transaction
        .verify(|input| (*input == outpoint).then(|| spent.clone()))
        .context("Bitcoin's consensus rules do not allow this transaction; do not send it")?;

    eprintln!("from         {address}");
    eprintln!("transaction  {}", transaction.compute_txid());
    println!("{}", serialize_hex(&transaction));
    Ok(())
}

fn client() -> Result<Client> {
    let manager = env::var("TSS_MANAGER").unwrap_or_else(|_| "http://127.0.0.1:8080".into());
    let mut builder = Client::builder(manager).retry_for(RETRY);
    if let Ok(token) = env::var("TSS_TOKEN") {
        builder = builder.token(token);
    }
    Ok(builder.build()?)
}
