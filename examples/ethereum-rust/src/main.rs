//! Signs an Ethereum transaction (EIP-1559) with a TSS network, and prints it for `eth_sendRawTransaction`.
//!
//! `TSS_MANAGER` says where the manager is (`http://127.0.0.1:8080` where absent), `TSS_TOKEN` who asks.

use std::env;
use std::time::Duration;

use alloy_consensus::transaction::SignerRecoverable as _;
use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::{Decodable2718 as _, Encodable2718 as _};
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, address, hex};
use anyhow::{Context as _, Result, ensure};
use tss_client::Client;
use tss_client::types::SignRequest;

/// Which of the network's keys signs.
const KEY: &str = "default";

/// Which key derived from it: as BIP-44 has it for Ethereum, but nothing hardened, which no threshold key can derive.
const PATH: &str = "44/60/0/0/0";

/// How long a signature may take. It takes a fraction of a second, unless signers are away.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long calls are made again while the manager is away or busy.
const RETRY: Duration = Duration::from_secs(10);

/// What to do when there is nobody to ask.
const WHERE: &str = "TSS_MANAGER should be the URL of a manager (`cargo run --release --bin tssctl -- devnet` starts one), \
                     and TSS_TOKEN a token, if it asks for one";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let client = client()?;

    // Whose transaction it is. A program that moves money knows this address, and asks nobody for it.
    let key = client.key(KEY, Some(PATH)).await.context(WHERE)?;
    let sender: Address = key.derived.addresses.ethereum.parse()?;

    // The transaction. Its nonce and fees come from a node: eth_getTransactionCount, eth_feeHistory.
    let transaction = TxEip1559 {
        chain_id: 1,
        nonce: 0,
        gas_limit: 21_000,
        max_fee_per_gas: 30_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        to: TxKind::Call(address!("d8dA6BF26964aF9D7eEd9e03E53415D37aA96045")),
        value: U256::from(10_000_000_000_000_000_u64),
        access_list: Default::default(),
        input: Bytes::new(),
    };

    // The network signs its hash.
    let request = SignRequest {
        key: Some(KEY.into()),
        path: Some(PATH.into()),
        ..SignRequest::digest(transaction.signature_hash().0)
    };
    let signed = client.sign_and_wait(&request, PATIENCE).await?;

    // The signature goes into the transaction.
    let signature = Signature::from_scalars_and_parity(
        B256::from(signed.r.0),
        B256::from(signed.s.0),
        signed.recid == 1, // the parity of y
    );
    let transaction = TxEnvelope::from(transaction.into_signed(signature));
    let raw = transaction.encoded_2718();

    // What is sent is looked at once more, as a node will.
    let decoded = TxEnvelope::decode_2718(&mut raw.as_slice())?;
    let signer = decoded.recover_signer()?;
    ensure!(signer == sender, "the transaction is signed by {signer}: expected {sender}; do not send it");
    ensure!(
        decoded.tx_hash() == transaction.tx_hash(),
        "the transaction reads as {}: expected {}; do not send it",
        decoded.tx_hash(),
        transaction.tx_hash()
    );

    eprintln!("from         {sender}");
    eprintln!("transaction  {}", transaction.tx_hash());
    println!("{}", hex::encode_prefixed(raw));
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
