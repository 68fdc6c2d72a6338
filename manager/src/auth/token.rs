//! From a token to a caller.

use std::collections::BTreeSet;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Validation, decode, decode_header};
use serde::Deserialize;
use tss_common::config::{Config, check_name};
use tss_mpc::DerivationPath;

use super::caller::{Caller, MAX_SUBJECT, Scopes};
use super::keys::{Keys, Named};
use super::{Refusal, TurnedAway};

/// How many seconds the clocks of issuer and manager may differ by.
const LEEWAY: u64 = 30;

/// How many keys or paths a token may be limited to.
const MAX_LIMITS: usize = 256;

/// What is read of a token.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    /// Words, as RFC 8693 has them.
    #[serde(default)]
    scope: Option<String>,
    /// The same as a list, as some providers have it.
    #[serde(default)]
    scp: Option<OneOrMany>,
    #[serde(default)]
    tss_keys: Option<Vec<String>>,
    #[serde(default)]
    tss_paths: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Judges tokens.
pub(crate) struct Judge {
    pub(crate) keys: Keys,
    issuer: Option<String>,
    audience: String,
}

impl Judge {
    pub(crate) fn new(config: &Config, keys: Keys) -> Self {
        let audience = config.jwt.audience.clone().unwrap_or_else(|| config.cluster.clone());
        Self { keys, issuer: config.jwt.issuer.clone(), audience }
    }

    /// Whose token it is.
    pub(crate) async fn caller(&self, token: &str) -> Result<Caller, TurnedAway> {
        let header = decode_header(token).map_err(|_| Refusal::Malformed)?;
        // Nothing that has to be understood is (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(Refusal::Malformed.into());
        }
        let mut last = Refusal::UnknownKey;
        let id = header.kid.as_deref();
        let keys = self.keys.of(id).await?;
        for Named { algorithm, key, .. } in keys.iter().filter(|key| key.may_be(id, keys.len())) {
            if *algorithm != header.alg {
                last = Refusal::Algorithm;
                continue;
            }
            let mut validation = Validation::new(*algorithm);
            validation.leeway = LEEWAY;
            validation.validate_nbf = true;
            validation.set_audience(&[&self.audience]);
            validation.set_required_spec_claims(&["exp", "sub", "aud"]);
            if let Some(issuer) = &self.issuer {
                validation.set_issuer(&[issuer]);
                validation.required_spec_claims.insert("iss".into());
            }
            match decode::<Claims>(token, key, &validation) {
                Ok(token) => return Ok(caller(token.claims)?),
                Err(error) => last = refusal(&error),
            }
            // Only that it is not this key's may be mended by another.
            if last != Refusal::Signature {
                break;
            }
        }
        Err(last.into())
    }
}

fn caller(claims: Claims) -> Result<Caller, Refusal> {
    let Claims { sub, scope, scp, tss_keys, tss_paths } = claims;
    if sub.is_empty() || sub.len() > MAX_SUBJECT || sub.chars().any(char::is_control) {
        return Err(Refusal::Claims);
    }
    let listed = match &scp {
        None => Vec::new(),
        Some(OneOrMany::One(words)) => words.split(' ').collect(),
        Some(OneOrMany::Many(words)) => words.iter().map(String::as_str).collect(),
    };
    let scopes = Scopes::of(scope.as_deref().unwrap_or_default().split(' ').chain(listed));
    if [&tss_keys, &tss_paths].into_iter().flatten().any(|limits| limits.len() > MAX_LIMITS) {
        return Err(Refusal::Claims);
    }
    let keys = tss_keys
        .map(|keys| {
            let named = keys.into_iter().map(|key| check_name(&key).map(|()| key));
            named.collect::<Result<BTreeSet<_>, _>>()
        })
        .transpose()
        .map_err(|_| Refusal::Claims)?;
    let paths = tss_paths
        .map(|paths| paths.iter().map(|path| path.parse()).collect::<Result<Vec<DerivationPath>, _>>())
        .transpose()
        .map_err(|_| Refusal::Claims)?;
    Ok(Caller::with_token(sub, scopes, keys, paths))
}

fn refusal(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::Early,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => {
            Refusal::Algorithm
        }
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
            Refusal::Claims
        }
        _ => Refusal::Malformed,
    }
}
