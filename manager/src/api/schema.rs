//! How values of other crates stand in the document of the API.
//!
//! A pattern holds for whatever is accepted; not all that it fits is.

use serde::{Deserialize, Serialize};
use tss_common::intent::{Encoding, HashAlgorithm as Hash};
use tss_common::telemetry::Label as _;
use tss_mpc::Scheme as KeyScheme;
use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::{KnownFormat, Ref, RefOr, Schema, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

use super::problem::Kind;

/// Text of a form, with an example.
macro_rules! texts {
    ($($(#[doc = $about:literal])+ $name:ident = $pattern:literal, as in $example:literal;)+) => {$(
        $(#[doc = $about])+
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some(concat!($($about),+).trim()))
                    .pattern(Some($pattern))
                    .examples([$example])
                    .into()
            }
        }

        impl ToSchema for $name {}
    )+};
}

texts! {
    /// A non-hardened BIP-32 path from the root key, of at most 16 steps of 0 to 2147483647 each; `m` is the root
    /// itself.
    DerivationPath = "^(m|(m/)?[0-9]+(/[0-9]+){0,15})$", as in "0/1/2";
    /// A point of secp256k1 in SEC1 form, in hex: compressed (33 bytes) or not (65 bytes). Answers have it
    /// compressed.
    PublicKey = "^([0-9A-Fa-f]{66}|[0-9A-Fa-f]{130})$",
        as in "0318909d76ef3edd98ece033af429efc027db55eb3364c9498dca986dd65f7566a";
    /// 32 bytes in hex.
    Hex32 = "^[0-9a-f]{64}$", as in "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
}

/// One of some words.
macro_rules! words {
    ($($(#[doc = $about:literal])+ $name:ident = $words:expr $(, else $default:expr)?;)+) => {$(
        $(#[doc = $about])+
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                ObjectBuilder::new()
                    .schema_type(Type::String)
                    .description(Some(concat!($($about),+).trim()))
                    .enum_values(Some($words.iter().map(word)))
                    $(.default(Some(word(&$default))))?
                    .into()
            }
        }

        impl ToSchema for $name {}
    )+};
}

words! {
    /// How a message is written: its UTF-8 text, hex digits with or without `0x`, or standard base64 with padding.
    MessageEncoding = [Encoding::Utf8, Encoding::Hex, Encoding::Base64], else Encoding::default();
    /// How a message becomes the 32-byte digest that is signed. `sha256d` is SHA-256 twice, `eip191` is Ethereum's
    /// `personal_sign`; with `none` the message is the digest.
    HashAlgorithm = Hash::ALL, else Hash::default();
    /// What a signer would do: `refused` for good, `unable` now, `silent` when it did not answer.
    Verdict = ["willing", "refused", "unable", "silent"];
    /// What kind of key it is.
    Scheme = [KeyScheme::EcdsaSecp256k1];
    /// Whether a signature can be made now.
    Wellness = ["ok", "unavailable"];
    /// Whether a part can be reached.
    PartState = ["up", "down"];
    /// The `type` of a problem.
    ProblemType = Kind::ALL.iter().map(|kind| kind.urn()).collect::<Vec<_>>();
    /// What the page of the document is made with.
    DocsFile = ["page.css", "page.js"];
    /// How far a signer is with a refresh: `meeting` the others, `dealing` new shares, `stored` when it has its own and waits
    /// until all have, `done` when it signs with it. `failed` means that it signs on with what it had.
    RefreshStep = ["meeting", "dealing", "stored", "done", "failed"];
    /// How far a request is. The last two are final.
    RequestStatus = ["Pending", "InProgress", "Completed", "Failed"];
}

/// The name of a value, as it stands in JSON.
fn word(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A signer's number, from 1 on.
pub struct SignerIndex;

impl PartialSchema for SignerIndex {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .description(Some("A signer's number."))
            .minimum(Some(1))
            .maximum(Some(tss_mpc::MAX_SIGNERS))
            .into()
    }
}

impl ToSchema for SignerIndex {}

/// The signers of an attempt.
pub struct Quorum;

impl PartialSchema for Quorum {
    fn schema() -> RefOr<Schema> {
        ArrayBuilder::new()
            .description(Some("The signers of an attempt."))
            .items(SignerIndex::schema())
            .unique_items(true)
            .examples([serde_json::json!([1, 3])])
            .into()
    }
}

impl ToSchema for Quorum {}

/// One of many requests: whatever it is, it harms no other.
pub struct BatchRequest;

impl PartialSchema for BatchRequest {
    fn schema() -> RefOr<Schema> {
        let with_key = ObjectBuilder::new()
            .schema_type(SchemaType::AnyValue)
            .description(Some("The same with an `idempotency_key`. Anything else is refused in its place."));
        AnyOfBuilder::new().item(Ref::from_schema_name("SignBody")).item(with_key).into()
    }
}

impl ToSchema for BatchRequest {}

/// A time.
pub struct Time;

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("A time (RFC 3339)."))
            .examples(["2030-01-02T03:04:05Z"])
            .into()
    }
}

impl ToSchema for Time {}

/// What was asked for: everything that makes one signature differ from another.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only stands in the document")]
pub struct Intent {
    /// The cluster that signs.
    cluster: String,
    /// The key's id.
    key: String,
    /// Which derived key signs.
    path: DerivationPath,
    /// How the message became the digest.
    hash: HashAlgorithm,
    /// What is signed.
    digest: Hex32,
    /// When the wish lapses.
    #[schema(required)]
    not_after: Option<Time>,
}

/// Somebody's word that a request may be signed, as `tssctl approve` makes it.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schema(examples(json!({
    "approver": "52231e00a96e879d255d2204dc1277cededb3fe57d61aede41d5589af80065cf",
    "signature": "9405a767e084157d0e60605e12e3a94321dc90d0d847e5dc9f153260059e4730\
                  46bc64a983bfc76243c5c8fc2e1a1a48642767e392b9f27cd6d820f4c1c2a608",
})))]
#[expect(dead_code, reason = "it only stands in the document")]
pub struct Approval {
    /// Who approves: an Ed25519 public key in hex.
    #[schema(pattern = "^[0-9A-Fa-f]{64}$")]
    approver: String,
    /// The approver's Ed25519 signature over the hash of the intent, in hex.
    #[schema(pattern = "^[0-9A-Fa-f]{128}$")]
    signature: String,
}
