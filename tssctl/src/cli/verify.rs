//! `verify`.

use clap::Args;
use serde::Serialize;
use tss_common::intent::HashAlgorithm;
use tss_mpc::{PublicKey, Signature};

use super::exit::{Code, Failure};
use super::output::Printer;

#[derive(Args)]
pub(crate) struct VerifyArguments {
    /// What was signed.
    text: String,
    /// The signature in hex: r and s (64 bytes), or DER.
    #[arg(long)]
    signature: String,
    /// The public key in hex, in SEC1 form.
    #[arg(long)]
    public_key: PublicKey,
    /// How the text is hashed: sha256, sha256d, keccak256, eip191 or none (the text is the digest, in
    /// hex).
    #[arg(long, default_value_t)]
    hash: HashAlgorithm,
    /// The text is hex.
    #[arg(long)]
    hex: bool,
}

/// What is known of a signature.
#[derive(Serialize)]
struct Verified {
    valid: bool,
    public_key: String,
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recid: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Runs `verify`.
pub(crate) fn run(arguments: &VerifyArguments, printer: Printer) -> anyhow::Result<()> {
    let message = if arguments.hex || arguments.hash == HashAlgorithm::None {
        decode(&arguments.text).ok_or_else(|| Failure::usage("the text: expected hex"))?
    } else {
        arguments.text.as_bytes().to_vec()
    };
    let digest = arguments.hash.digest(&message).map_err(|error| Failure::usage(error.to_string()))?;
    let signature =
        decode(&arguments.signature).ok_or_else(|| Failure::usage("--signature: expected hex"))?;
    let outcome = Signature::from_encoding(&signature, &arguments.public_key, &digest);
    let reason = outcome.as_ref().err().map(ToString::to_string);
    let verified = Verified {
        valid: outcome.is_ok(),
        public_key: arguments.public_key.to_string(),
        digest: hex::encode(digest),
        recid: outcome.ok().map(|signature| signature.recid),
        reason: reason.clone(),
    };
    if verified.valid || printer.is_json() {
        printer.answer(&verified, |verified| {
            let recid = verified.recid.unwrap_or_default();
            format!("valid: made by {} over {}, recid {recid}", verified.public_key, verified.digest)
        })?;
    }
    match reason {
        None => Ok(()),
        Some(reason) => Err(Failure::new(Code::Unsigned, format!("invalid: {reason}")).into()),
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    hex::decode(text.trim_start_matches("0x")).ok()
}
