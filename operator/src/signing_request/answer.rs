//! Whether a manager's answer is about the request and its signature stands, and what it means. Looks at nothing but its
//! input.

use tss_mpc::{DerivationPath, PublicKey, Signature};
use uuid::Uuid;

use super::cause::{self, Cause};
use super::manager::Signed;
use super::validate::Request;
use crate::crd::SignatureStatus;

/// The signature, if it is one of this request: of its digest, by the key that the answer names, which is the TssCluster's
/// where that is known. Every form of it is made here, of what was verified.
///
/// # Errors
/// [`cause::WRONG_ANSWER`], saying what was expected.
pub fn signature(signed: Signed, id: Uuid, request: &Request) -> Result<SignatureStatus, Cause> {
    let Signed { request_id, compact, public_key, digest, intent } = signed;
    let wrong = |what: &str, got: &str, expected: &str| {
        let text = format!("the manager's answer has the {what} {got}: expected {expected}");
        Cause::new(cause::WRONG_ANSWER, text)
    };
    if request_id != id {
        return Err(wrong("request_id", &request_id.to_string(), &id.to_string()));
    }
    for (what, got) in [("digest", &digest), ("intent's digest", &intent.digest)] {
        if *got != request.digest {
            return Err(wrong(what, got, &request.digest));
        }
    }
    let path: DerivationPath =
        intent.path.parse().map_err(|_| wrong("path", &intent.path, "one like 0/1/2"))?;
    if let Some(expected) = &request.path
        && path != *expected
    {
        return Err(wrong("path", &path.to_string(), &expected.to_string()));
    }
    if let Some(expected) = &request.public_key
        && public_key != *expected
    {
        return Err(wrong(
            "public key",
            &public_key,
            &format!("{expected}, the TssCluster's at path {path}"),
        ));
    }
    let key = hex::decode(&public_key).ok().and_then(|bytes| PublicKey::from_sec1(&bytes).ok());
    let key =
        key.ok_or_else(|| wrong("public key", &public_key, "a compressed point of secp256k1, in hex"))?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(&digest, &mut bytes).map_err(|_| wrong("digest", &digest, "32 bytes in hex"))?;
    let encoded = hex::decode(&compact).ok().filter(|bytes| bytes.len() == 64);
    let encoded = encoded.ok_or_else(|| wrong("compact", &compact, "r and s, 64 bytes in hex"))?;
    let verified = Signature::from_encoding(&encoded, &key, &bytes).and_then(|it| Ok((it, it.to_der()?)));
    let (signature, der) = verified
        .map_err(|invalid| wrong("compact", &compact, &format!("a signature by {public_key}; {invalid}")))?;
    Ok(SignatureStatus {
        r: hex::encode(signature.r),
        s: hex::encode(signature.s),
        recid: signature.recid.into(),
        v: i32::from(signature.recid).saturating_add(27),
        der: hex::encode(der),
        compact: hex::encode(encoded),
        public_key: hex::encode(key.to_compressed()),
        digest,
        path: path.to_string(),
    })
}

/// Why a manager has ended a request without a signature. The manager says it in words; these are the beginnings of
/// what it says, and its signers' words for what their policies forbid.
pub fn failure(said: String) -> Cause {
    let expired = said.contains("refused: the request has expired");
    let reason = if said.starts_with("not signed in time") || expired {
        cause::TIMED_OUT
    } else if said.starts_with("signer") && said.contains(" refused: policy: ") {
        cause::POLICY_REFUSED
    } else {
        cause::SIGNING_FAILED
    };
    Cause::new(reason, said)
}

/// Why a manager will never take a request. It takes none whose time is over.
pub fn rejection(said: String, expired: bool) -> Cause {
    if expired || said.starts_with("`not_after`") {
        Cause::new(
            cause::DEADLINE_EXCEEDED,
            format!("the manager has not taken it before its deadline: {said}"),
        )
    } else {
        Cause::new(cause::INVALID_REQUEST, said)
    }
}
