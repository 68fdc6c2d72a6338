//! Who may do what through the API.
//!
//! A caller shows a bearer token (RFC 6750) that is a JSON Web Token (RFC 7519), judged as RFC 8725 has it: by
//! algorithms that this code names, never by one that the token does; for this issuer and audience; not for ever.
//!
//! | module | holds |
//! |---|---|
//! | [`caller`] | who calls, and what that one may do |
//! | [`token`] | from a token to a caller |
//! | [`keys`] | the secrets, or the provider's public keys, that tokens are made with |
//! | [`rate`] | how often somebody may call |
//!
//! Whoever is refused learns that, and not why; the reason is counted, and logged at `debug`.

use axum::http::{HeaderMap, header};
use tss_common::config::{Auth, Config};
use tss_common::labels;
use tss_common::telemetry::{Counters, Label as _};
use tss_mpc::DerivationPath;

pub mod caller;
mod keys;
mod rate;
mod token;

pub use caller::{Caller, Need};
use keys::Keys;
use rate::Rate;
use token::Judge;

/// The longest token, in bytes. One with some twenty claims has about 2 KiB.
const MAX_TOKEN: usize = 8 << 10;

labels! {
    /// Why somebody is turned away.
    pub enum Refusal {
        /// There is no token.
        Missing = "missing",
        /// What is in its place is none.
        Malformed = "malformed",
        /// It is made by an algorithm that is not taken, or not the one of its key.
        Algorithm = "algorithm",
        /// It is made with a key that is not known.
        UnknownKey = "unknown-key",
        /// It is not made with the key that it names.
        Signature = "signature",
        /// Its time is over.
        Expired = "expired",
        /// Its time has not come.
        Early = "early",
        /// It is another issuer's.
        Issuer = "issuer",
        /// It is for somebody else.
        Audience = "audience",
        /// A claim is missing or is not what it should be.
        Claims = "claims",
        /// It has not the scope that this takes.
        Scope = "scope",
        /// It is limited to other keys or paths.
        Limits = "limits",
        /// The caller calls too often.
        Rate = "rate",
        /// The provider's keys have not been had yet, so nobody's token can be judged.
        NoKeys = "no-keys",
    }
}

/// Somebody who is turned away, and after how many seconds it may be worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnedAway {
    /// Why. Not for the caller.
    pub refusal: Refusal,
    /// Seconds.
    pub retry_after: Option<u32>,
}

impl From<Refusal> for TurnedAway {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, retry_after: None }
    }
}

/// Lets callers in.
pub struct Gate {
    /// `None` lets anybody in.
    judge: Option<Judge>,
    rate: Option<Rate>,
    refusals: Counters<Refusal>,
}

impl Gate {
    /// The gate that the configuration describes.
    ///
    /// # Errors
    /// When a secret or certificate file is of no use, and why.
    pub async fn open(config: &Config, refusals: Counters<Refusal>) -> anyhow::Result<Self> {
        let judge = match config.auth {
            None | Some(Auth::None) => None,
            Some(Auth::Jwt) => Some(Judge::new(config, Keys::open(&config.jwt).await?)),
        };
        Ok(Self { judge, rate: Rate::new(&config.limits), refusals })
    }

    /// Who calls with these headers, if that one may do what `need` says, and has not called too often.
    ///
    /// # Errors
    /// [`TurnedAway`]; it has been counted.
    pub async fn admit(&self, headers: &HeaderMap, need: Need) -> Result<Caller, TurnedAway> {
        let caller = match &self.judge {
            None => Caller::anybody(),
            Some(judge) => {
                let judged = match bearer(headers) {
                    Ok(token) => judge.caller(token).await,
                    Err(refusal) => Err(refusal.into()),
                };
                judged.map_err(|away| self.turn_away(away))?
            }
        };
        if !caller.has(need) {
            return Err(self.turn_away(Refusal::Scope.into()));
        }
        self.spend(&caller, 1)?;
        Ok(caller)
    }

    /// Counts `calls` more of a caller.
    ///
    /// # Errors
    /// [`TurnedAway`] when they are too many; it has been counted.
    pub fn spend(&self, caller: &Caller, calls: u32) -> Result<(), TurnedAway> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.spend(caller.subject(), calls).map_err(|away| self.turn_away(away))
    }

    /// That a caller may use a key at a path.
    ///
    /// # Errors
    /// [`TurnedAway`]; it has been counted.
    pub fn check_limits(&self, caller: &Caller, key: &str, path: &DerivationPath) -> Result<(), TurnedAway> {
        match caller.may_use(key, path) {
            true => Ok(()),
            false => Err(self.turn_away(Refusal::Limits.into())),
        }
    }

    fn turn_away(&self, away: TurnedAway) -> TurnedAway {
        self.refusals.inc(away.refusal);
        tracing::debug!(reason = away.refusal.as_str(), "a caller was turned away");
        away
    }

    /// Follows the files and the provider's keys for ever.
    pub async fn follow(&self) {
        let keys = async {
            match &self.judge {
                None => std::future::pending().await,
                Some(judge) => judge.keys.follow().await,
            }
        };
        let rate = async {
            match &self.rate {
                None => std::future::pending().await,
                Some(rate) => rate.forget_the_idle().await,
            }
        };
        tokio::join!(keys, rate);
    }
}

/// The token in the headers.
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(Refusal::Missing)?;
    if values.next().is_some() || value.len() > MAX_TOKEN {
        return Err(Refusal::Malformed);
    }
    let value = value.to_str().map_err(|_| Refusal::Malformed)?;
    let (scheme, token) = value.split_once(' ').ok_or(Refusal::Malformed)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::Malformed);
    }
    Ok(token.trim())
}

#[cfg(test)]
mod tests;
