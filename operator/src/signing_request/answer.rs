//! Whether a manager's answer is about the request, and what it means. Looks at nothing but its input.

use tss_mpc::DerivationPath;
use uuid::Uuid;

use super::cause::{self, Cause};
use super::manager::Signed;
use super::validate::Request;
use crate::crd::SignatureStatus;

/// The signature, if it is one of this request, as far as can be told without arithmetic: the manager and the
/// signers have verified it.
///
/// # Errors
/// [`cause::WRONG_ANSWER`], saying what was expected.
pub fn signature(signed: Signed, id: Uuid, request: &Request) -> Result<SignatureStatus, Cause> {
    let Signed { request_id, r, s, recid, v, der, compact, public_key, digest, intent } = signed;
    let wrong = |what: &str, got: &str, expected: &str| {
        let text = format!("the manager's answer has the {what} {got}: expected {expected}");
        Err(Cause::new(cause::WRONG_ANSWER, text))
    };
    if request_id != id {
        return wrong("request_id", &request_id.to_string(), &id.to_string());
    }
    for (what, got) in [("digest", &digest), ("intent's digest", &intent.digest)] {
        if *got != request.digest {
            return wrong(what, got, &request.digest);
        }
    }
    let path: DerivationPath = match intent.path.parse() {
        Ok(path) => path,
        Err(_) => return wrong("path", &intent.path, "one like 0/1/2"),
    };
    if let Some(expected) = &request.path
        && path != *expected
    {
        return wrong("path", &path.to_string(), &expected.to_string());
    }
    if let Some(expected) = &request.public_key
        && public_key != *expected
    {
        return wrong("public key", &public_key, &format!("{expected}, the TssCluster's at path {path}"));
    }
    for (what, got, digits) in [("r", &r, 64), ("s", &s, 64), ("public key", &public_key, 66)] {
        if !is_hex(got) || got.len() != digits {
            return wrong(what, got, &format!("{digits} hex digits"));
        }
    }
    if !is_hex(&der) || !(16..=144).contains(&der.len()) {
        return wrong("der", &der, "16 to 144 hex digits");
    }
    if compact != format!("{r}{s}") {
        return wrong("compact", &compact, "r and s");
    }
    if recid > 3 || v != recid.saturating_add(27) {
        return wrong("recid and v", &format!("{recid} and {v}"), "0 to 3, and 27 more");
    }
    let (recid, v) = (recid.into(), v.into());
    Ok(SignatureStatus { r, s, recid, v, der, compact, public_key, digest, path: path.to_string() })
}

fn is_hex(text: &str) -> bool {
    text.len().is_multiple_of(2) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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
