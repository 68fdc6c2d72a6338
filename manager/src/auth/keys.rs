//! What tokens are made with: the operator's own secrets, or an identity provider's public keys.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::Certificate;
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tss_common::config::JwtConfig;
use zeroize::Zeroizing;

use super::{Refusal, TurnedAway};
use crate::file;

/// How often the secrets' file is looked at.
const FILE_ROUND: Duration = Duration::from_secs(5);

/// How often the provider is asked when nobody needs a key that is not there.
const PROVIDER_ROUND: Duration = Duration::from_secs(300);

/// How soon it is asked again: a token can name any key.
const PROVIDER_PAUSE: Duration = Duration::from_secs(10);

/// How long it may take to answer.
const PROVIDER_PATIENCE: Duration = Duration::from_secs(5);

/// The longest answer, in bytes.
const MAX_ANSWER: usize = 256 << 10;

/// How many keys or secrets there may be.
const MAX_KEYS: usize = 64;

/// The shortest secret, in bytes: as long as the digest (RFC 7518, 3.2).
const MIN_SECRET: usize = 32;

/// A key, and the one algorithm that it is for.
pub(crate) struct Named {
    id: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
}

impl Named {
    /// Whether it is meant, by a token that names a key or does not. `among`: how many keys there are.
    pub(crate) fn may_be(&self, id: Option<&str>, among: usize) -> bool {
        match (&self.id, id) {
            // A secret has no name, whatever the token says.
            (None, _) => true,
            (Some(key), Some(id)) => key == id,
            // A provider with one key need not name it.
            (Some(_), None) => among == 1,
        }
    }
}

/// The keys as they are now.
pub(crate) struct Keys {
    source: Source,
    /// `None` until they have been had.
    current: RwLock<Option<Arc<[Named]>>>,
}

enum Source {
    File { path: PathBuf, seen: Mutex<Zeroizing<Vec<u8>>> },
    Provider { url: String, http: reqwest::Client, asked: Mutex<Option<Instant>> },
}

impl Keys {
    /// The keys that the configuration names. A provider need not be there yet.
    ///
    /// # Errors
    /// When a file is of no use, and why.
    pub(crate) async fn open(config: &JwtConfig) -> anyhow::Result<Self> {
        if let Some(path) = &config.secret_file {
            let text = Zeroizing::new(file::read(path).await.context("`jwt.secret_file`")?);
            let keys = secrets(&text).with_context(|| format!("`jwt.secret_file`: {}", path.display()))?;
            let source = Source::File { path: path.clone(), seen: Mutex::new(text) };
            return Ok(Self { source, current: RwLock::new(Some(keys)) });
        }
        let url = config.jwks_url.clone().context("`jwt`: expected either `secret_file` or `jwks_url`")?;
        let mut http =
            reqwest::Client::builder().timeout(PROVIDER_PATIENCE).redirect(Policy::none()).no_proxy();
        if let Some(path) = &config.jwks_ca_file {
            http = http.tls_certs_only(authorities(path).await.context("`jwt.jwks_ca_file`")?);
        }
        let http = http.build().context("there is no HTTP client")?;
        let keys = Self {
            source: Source::Provider { url, http, asked: Mutex::new(None) },
            current: RwLock::new(None),
        };
        if let Err(error) = keys.renew().await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the keys of `jwt.jwks_url` cannot be had yet; nobody is let in"
            );
        }
        Ok(keys)
    }

    /// All keys, one of which at least can have made a token that names this one, or none: see [`Named::may_be`].
    pub(crate) async fn of(&self, id: Option<&str>) -> Result<Arc<[Named]>, TurnedAway> {
        let found = self.current();
        let known = found.as_ref().is_some_and(|keys| keys.iter().any(|key| key.may_be(id, keys.len())));
        // A provider may have a new one.
        if !known && let Err(error) = self.renew().await {
            tracing::warn!(error = format!("{error:#}"), "the keys of `jwt.jwks_url` cannot be had");
        }
        self.current().ok_or(TurnedAway { refusal: Refusal::NoKeys, retry_after: Some(2) })
    }

    fn current(&self) -> Option<Arc<[Named]>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the provider, unless it has just been asked.
    async fn renew(&self) -> anyhow::Result<()> {
        let Source::Provider { url, http, asked } = &self.source else { return Ok(()) };
        let mut asked = asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < PROVIDER_PAUSE) {
            return Ok(());
        }
        *asked = Some(Instant::now());
        let keys = fetch(http, url).await.with_context(|| format!("`jwt.jwks_url`: {url}"))?;
        self.set(keys);
        Ok(())
    }

    fn set(&self, keys: Arc<[Named]>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(keys);
    }

    /// Follows the file or the provider for ever. What was there before stays while what is there now is of no use.
    pub(crate) async fn follow(&self) {
        loop {
            match &self.source {
                Source::File { path, seen } => {
                    sleep(FILE_ROUND).await;
                    match self.look(path, seen).await {
                        Ok(false) => {}
                        Ok(true) => tracing::info!("tokens are made with other secrets"),
                        Err(error) => tracing::warn!(
                            error = format!("{error:#}"),
                            "`jwt.secret_file` is of no use; the secrets before stay"
                        ),
                    }
                }
                Source::Provider { .. } => {
                    sleep(PROVIDER_ROUND).await;
                    if let Err(error) = self.renew().await {
                        tracing::warn!(error = format!("{error:#}"), "the keys before stay");
                    }
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) async fn look_now(&self) -> anyhow::Result<bool> {
        match &self.source {
            Source::File { path, seen } => self.look(path, seen).await,
            Source::Provider { .. } => Ok(false),
        }
    }

    #[cfg(test)]
    pub(crate) async fn let_time_pass(&self) {
        if let Source::Provider { asked, .. } = &self.source {
            *asked.lock().await = None;
        }
    }

    /// Whether the file holds something else, which counts from now on. An error is told once.
    async fn look(&self, path: &Path, seen: &Mutex<Zeroizing<Vec<u8>>>) -> anyhow::Result<bool> {
        let text = Zeroizing::new(file::read(path).await?);
        let mut seen = seen.lock().await;
        if text == *seen {
            return Ok(false);
        }
        let keys = secrets(&text);
        *seen = text;
        self.set(keys?);
        Ok(true)
    }
}

/// The secrets in a file, one a line.
fn secrets(text: &[u8]) -> anyhow::Result<Arc<[Named]>> {
    let lines = text.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut keys = Vec::new();
    for (number, secret) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
        let line = number.saturating_add(1);
        anyhow::ensure!(
            secret.len() >= MIN_SECRET,
            "line {line}: a secret of {} bytes: expected at least {MIN_SECRET}",
            secret.len()
        );
        anyhow::ensure!(keys.len() < MAX_KEYS, "line {line}: expected at most {MAX_KEYS} secrets");
        keys.push(Named { id: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) });
    }
    anyhow::ensure!(!keys.is_empty(), "expected a secret of at least {MIN_SECRET} bytes on a line");
    Ok(keys.into())
}

async fn authorities(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    let found =
        Certificate::from_pem_bundle(&file::read(path).await?).with_context(|| path.display().to_string())?;
    anyhow::ensure!(!found.is_empty(), "{}: expected certificates in PEM", path.display());
    Ok(found)
}

async fn fetch(http: &reqwest::Client, url: &str) -> anyhow::Result<Arc<[Named]>> {
    let mut response = http.get(url).send().await?.error_for_status()?;
    anyhow::ensure!(response.status().is_success(), "it answers {}", response.status());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(
            body.len().saturating_add(chunk.len()) <= MAX_ANSWER,
            "expected at most {MAX_ANSWER} bytes"
        );
        body.extend_from_slice(&chunk);
    }
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(&body).context("expected a JSON Web Key Set")?;
    // A set may hold keys for other uses, of kinds that are not known here.
    let read = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    let keys: Vec<Named> = read.filter_map(|jwk| usable(&jwk)).take(MAX_KEYS).collect();
    match keys.is_empty() {
        true => Err(anyhow!("expected a key for RS256, ES256 or EdDSA")),
        false => Ok(keys.into()),
    }
}

/// The key, if it is one that tokens can be made with.
fn usable(jwk: &Jwk) -> Option<Named> {
    let (algorithm, name) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        // Whoever publishes a secret has none.
        _ => return None,
    };
    let common = &jwk.common;
    let for_signatures = common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature);
    let for_this = common.key_algorithm.as_ref().is_none_or(|named| *named == name);
    let key = DecodingKey::from_jwk(jwk).ok()?;
    (for_signatures && for_this).then(|| Named {
        // One without a name is taken for any, as a secret is.
        id: common.key_id.clone(),
        algorithm,
        key,
    })
}
