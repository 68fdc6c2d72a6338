//! `sign`.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use jiff::Timestamp;
use tss_client::types::{DryRun, Encoding, HashAlgorithm, SignRequest, Signed, Verdict};
use tss_client::{Client, MAX_BODY};
use tssctl::approver;
use uuid::Uuid;

use super::connection::{Connection, ManagerArguments};
use super::exit::{Code, Failure};
use super::output::{self, Printer};

/// The longest wait, in seconds.
pub(crate) const MAX_WAIT: u64 = 7 * 24 * 3600;

#[derive(Args)]
pub(crate) struct SignArguments {
    #[command(flatten)]
    message: Message,
    /// How the text is written: utf8, hex or base64.
    // Named, as clap would take what is unknown here for `Other`.
    #[arg(long, value_parser = Encoding::from_str, conflicts_with_all = ["file", "stdin", "hex"])]
    encoding: Option<Encoding>,
    /// How it is hashed: sha256, sha256d, keccak256, eip191 or none (the text is the digest, in hex).
    #[arg(long, value_parser = HashAlgorithm::from_str)]
    hash: Option<HashAlgorithm>,
    /// Which key signs.
    #[arg(long)]
    key: Option<String>,
    /// Which derived key signs, as in 0/1/2; m for the root.
    #[arg(long)]
    path: Option<String>,
    /// When the wish lapses, as in 2030-01-02T03:04:05Z.
    #[arg(long, value_parser = parse_time)]
    not_after: Option<Timestamp>,
    /// A file with an approval, as `approve` prints it; once for each approval.
    #[arg(long)]
    approval: Vec<PathBuf>,
    /// Asking again with the same key, 1 to 255 characters, yields the same request. A fresh one unless said.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Where the manager tells, at an https:// address, that the request has ended.
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    /// Only say what the signers would do: nothing is signed.
    #[arg(long, conflicts_with_all = ["idempotency_key", "wait"])]
    dry_run: bool,
    /// How many seconds to wait for the signature; 0 prints the request's id at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=MAX_WAIT))]
    wait: u64,
    #[command(flatten)]
    manager: ManagerArguments,
}

/// What is signed, in one of four ways.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Message {
    /// What is signed.
    text: Option<String>,
    /// What is in this file is signed, byte for byte: at most about 780,000 bytes. Of what is longer, sign the digest
    /// (`--hex DIGEST --hash none`).
    #[arg(long)]
    file: Option<PathBuf>,
    /// What comes on standard input is signed, byte for byte; as much as of a file.
    #[arg(long)]
    stdin: bool,
    /// These bytes are signed, in hex digits.
    #[arg(long, value_name = "HEX")]
    hex: Option<String>,
}

pub(crate) fn parse_time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|error| format!("{error}: expected a time like 2030-01-02T03:04:05Z (RFC 3339)"))
}

impl Message {
    /// The message, and how it is written unless it is said.
    fn read(self) -> anyhow::Result<(String, Option<Encoding>)> {
        let bytes = match self {
            Self { text: Some(text), .. } => return Ok((text, None)),
            Self { hex: Some(hex), .. } => return Ok((hex, Some(Encoding::Hex))),
            Self { file: Some(file), .. } => {
                let wrong = |error| Failure::usage(format!("--file {}: {error}", file.display()));
                std::fs::File::open(&file).and_then(read_bounded).map_err(wrong)?
            }
            Self { .. } => read_bounded(std::io::stdin().lock())
                .map_err(|error| Failure::usage(format!("--stdin: {error}")))?,
        };
        Ok((STANDARD.encode(bytes), Some(Encoding::Base64)))
    }
}

/// Reads what a request can have at most.
fn read_bounded(from: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    // Three bytes become four characters.
    let most = MAX_BODY / 4 * 3;
    let mut bytes = Vec::new();
    from.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        let expected = "expected less, or its digest, with `--hex DIGEST --hash none`";
        return Err(std::io::Error::other(format!("it has more than {most} bytes: {expected}")));
    }
    Ok(bytes)
}

/// Runs `sign`.
pub(crate) async fn run(arguments: SignArguments, printer: Printer) -> anyhow::Result<()> {
    let SignArguments {
        message,
        encoding,
        hash,
        key,
        path,
        not_after,
        approval,
        idempotency_key,
        webhook,
        dry_run,
        wait,
        manager,
    } = arguments;
    let (message, written) = message.read()?;
    // A digest is bytes, and bytes on a command line are hex.
    let digest = (hash == Some(HashAlgorithm::None)).then_some(Encoding::Hex);
    let Connection { client, profile } = manager.connect()?;
    let request = SignRequest {
        message,
        encoding: encoding.or(written).or(digest),
        hash,
        key: key.or(profile.key),
        path: path.or(profile.path),
        not_after,
        webhook,
        approvals: read_approvals(&approval)?,
    };
    if dry_run {
        return rehearse(&client, &request, printer).await;
    }
    let key = idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
    let accepted = client.sign_once(&request, &key).await?;
    if wait == 0 {
        return printer.answer(&accepted, |accepted| accepted.request_id.to_string());
    }
    let signed = signature(&client, accepted.request_id, Duration::from_secs(wait)).await?;
    printer.or_json().answer(&signed, describe)
}

/// Says what the signers would do; an error where they would not sign.
async fn rehearse(client: &Client, request: &SignRequest, printer: Printer) -> anyhow::Result<()> {
    let told = client.dry_run(request).await?;
    printer.answer(&told, describe_dry_run)?;
    if told.would_sign {
        return Ok(());
    }
    let willing = told.signers.iter().filter(|word| word.verdict == Verdict::Willing).count();
    let message =
        format!("it would not be signed: {willing} signers are willing, {} are needed", told.threshold);
    Err(Failure::new(Code::Unsigned, message).into())
}

fn describe_dry_run(told: &DryRun) -> String {
    let rows = told.signers.iter().map(|word| {
        let more = word.reason.clone().unwrap_or_else(|| word.approvals.join(", "));
        [word.signer.to_string(), word.verdict.to_string(), more]
    });
    let rows: Vec<_> = rows.collect();
    let about = output::labelled([
        ("digest", Some(told.intent.digest.to_string())),
        ("public key", Some(told.public_key.to_string())),
        ("needed", Some(format!("{} signers", told.threshold))),
    ]);
    format!("{about}\n{}", output::table(["SIGNER", "WOULD", ""], &rows))
}

fn read_approvals(files: &[PathBuf]) -> anyhow::Result<Vec<tss_client::types::Approval>> {
    let read = |file: &Path| approver::read_approval(file).map(|approval| approver::to_send(&approval));
    files.iter().map(|file| read(file).map_err(|error| Failure::usage(format!("{error:#}")))).collect()
}

/// Waits for a signature; a terminal shows that it does.
async fn signature(client: &Client, id: Uuid, patience: Duration) -> anyhow::Result<Signed> {
    let progress = output::spinner(format!("request {id} is being signed"));
    let signed = client.signature(id, patience).await;
    progress.finish_and_clear();
    signed?.ok_or_else(|| {
        let seconds = patience.as_secs();
        let message =
            format!("request {id} is not signed after {seconds} s (`tssctl status {id}` asks again)");
        Failure::new(Code::Late, message).into()
    })
}

fn describe(signed: &Signed) -> String {
    output::labelled([
        ("request", Some(signed.request_id.to_string())),
        ("signature", Some(signed.compact.to_string())),
        ("DER", Some(signed.der.to_string())),
        ("recid", Some(signed.recid.to_string())),
        ("v", Some(signed.v.to_string())),
        ("public key", Some(signed.public_key.to_string())),
        ("key", Some(signed.intent.key.clone())),
        ("path", Some(signed.intent.path.clone())),
        ("hash", Some(signed.intent.hash.to_string())),
        ("digest", Some(signed.digest.to_string())),
        ("not after", signed.intent.not_after.map(|time| time.to_string())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_for_a_request_is_not_read_to_its_end() {
        let most = MAX_BODY / 4 * 3;
        assert_eq!(read_bounded(std::io::repeat(7).take(most as u64)).unwrap().len(), most);
        let error = read_bounded(std::io::repeat(7)).unwrap_err().to_string();
        assert!(error.contains("more than 786432 bytes") && error.contains("--hash none"), "{error}");
    }
}
