//! Tells callers that their requests have ended, where they have said: at least once, signed as Standard Webhooks
//! (<https://www.standardwebhooks.com>) has it, until somebody answers with 2xx or a day has passed.
//!
//! A caller names any address, and this process reaches places that the caller does not. So nobody is told who is on
//! this machine or linked to it, by whatever name, unless the configuration allows it; no redirect is followed, and nothing
//! of an answer but its status is looked at.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use serde_json::json;
use tokio::time::sleep;
use tss_common::config::WebhookConfig;
use zeroize::Zeroizing;

use crate::api::requests::{Status, signed};
use crate::file;
use crate::metrics::{Metrics, Told};
use crate::store::{Request, State, Store};

/// The longest address, in bytes.
pub const MAX_URL: usize = 2048;

/// How often it is looked for some that are due.
const ROUND: Duration = Duration::from_secs(1);

/// How many are taken in a round, and how many of them are delivered at the same time.
const TAKEN: usize = 128;
const AT_ONCE: usize = 32;

/// How long somebody may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// When one that was taken is due again, should this process die with it: longer than a whole round can take.
const TAKEN_FOR: SignedDuration = SignedDuration::from_secs(120);

/// How soon it is tried again, at the least and at the most; between the two, as long as the request has ended ago.
const SOONEST: SignedDuration = SignedDuration::from_secs(5);
const LATEST: SignedDuration = SignedDuration::from_hours(1);

/// For how long it is tried.
const TRIED_FOR: SignedDuration = SignedDuration::from_hours(24);

/// How a secret begins, and how many bytes it has.
const PREFIX: &str = "whsec_";
const SECRET: std::ops::RangeInclusive<usize> = 24..=64;

/// That somebody can be told there, as far as the address alone says it.
///
/// # Errors
/// Saying what was expected.
pub fn check(url: &str, config: &WebhookConfig) -> Result<Url, String> {
    if config.secret_file.is_none() {
        return Err("this manager has none: expected `webhooks.secret_file` in its configuration".into());
    }
    let expected =
        || format!("expected an address like https://example.com/signed of at most {MAX_URL} bytes");
    let parsed = Url::parse(url).ok().filter(|_| url.len() <= MAX_URL).ok_or_else(expected)?;
    let scheme = parsed.scheme();
    if scheme != "https" && !(scheme == "http" && config.allow_local) {
        return Err(expected());
    }
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.fragment().is_some() {
        return Err(format!("{}, without a user or a fragment", expected()));
    }
    let address = match parsed.host() {
        None => return Err(expected()),
        Some(url::Host::Domain(_)) => None,
        Some(url::Host::Ipv4(address)) => Some(address.into()),
        Some(url::Host::Ipv6(address)) => Some(address.into()),
    };
    match address {
        Some(address) if !config.allow_local && is_local(address) => {
            Err(format!("{address} is this machine's or linked to it: expected another address"))
        }
        _ => Ok(parsed),
    }
}

/// Whether an address is of this machine or its link, or of nobody in particular.
fn is_local(address: IpAddr) -> bool {
    /// Where a cloud's machines learn their secrets, over IPv6; over IPv4 that is link-local.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                // "This" network, 0.0.0.0 among it.
                || address.octets()[0] == 0
        }
        IpAddr::V6(address) => {
            address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address.is_unspecified()
                || address == METADATA
        }
    }
}

/// Finds only addresses that somebody may be told at. What is found is connected to: it cannot become another in between.
struct Elsewhere {
    allow_local: bool,
}

impl Resolve for Elsewhere {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_local = self.allow_local;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|found| allow_local || !is_local(found.ip())).collect();
            match allowed.is_empty() {
                true => Err("the name has no address that may be told".into()),
                false => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

/// Tells callers.
pub struct Webhooks {
    http: reqwest::Client,
    config: WebhookConfig,
    key: hmac::Key,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").finish_non_exhaustive()
    }
}

/// Why somebody was not told. Not where: an address can hold a secret.
enum Unheard {
    /// It may be otherwise later.
    Now(String),
    /// It never will.
    Ever(String),
}

impl Webhooks {
    /// As configured; `None` without a secret.
    ///
    /// # Errors
    /// When the secret is none.
    pub async fn open(config: &WebhookConfig) -> anyhow::Result<Option<Self>> {
        let Some(path) = &config.secret_file else { return Ok(None) };
        let text = Zeroizing::new(file::read(path).await.context("`webhooks.secret_file`")?);
        let secret = std::str::from_utf8(&text).ok().and_then(|text| text.trim().strip_prefix(PREFIX));
        let secret = secret.and_then(|secret| STANDARD.decode(secret).ok()).map(Zeroizing::new);
        let secret = secret.filter(|secret| SECRET.contains(&secret.len())).with_context(|| {
            let (least, most) = (SECRET.start(), SECRET.end());
            let file = path.display();
            format!("`webhooks.secret_file`: {file}: expected {PREFIX} and {least} to {most} bytes in base64")
        })?;
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .redirect(Policy::none())
            .no_proxy()
            .user_agent("tss-network")
            .dns_resolver(Arc::new(Elsewhere { allow_local: config.allow_local }))
            .build()
            .context("there is no HTTP client")?;
        Ok(Some(Self { http, config: config.clone(), key: hmac::Key::new(hmac::HMAC_SHA256, &secret) }))
    }

    /// Delivers what is due, for ever.
    pub async fn deliver(self, store: Arc<dyn Store>, metrics: Metrics) {
        loop {
            sleep(ROUND).await;
            let now = Timestamp::now();
            let until = now.saturating_add(TAKEN_FOR).unwrap_or(Timestamp::MAX);
            match store.take_due(now, until, TAKEN).await {
                Ok(due) => {
                    let told = stream::iter(due).map(|request| self.deliver_one(&store, &metrics, request));
                    told.buffer_unordered(AT_ONCE).collect::<()>().await;
                }
                Err(error) => tracing::debug!(%error, "it is not known which webhooks are due"),
            }
        }
    }

    async fn deliver_one(&self, store: &Arc<dyn Store>, metrics: &Metrics, request: Request) {
        let (told, due) = match self.tell(&request).await {
            Ok(()) => (Told::Delivered, None),
            Err(Unheard::Ever(reason)) => {
                tracing::warn!(request = %request.id, %reason, "a webhook is given up");
                (Told::GivenUp, None)
            }
            Err(Unheard::Now(reason)) => match next(&request, Timestamp::now()) {
                Some(due) => {
                    tracing::info!(request = %request.id, %reason, %due, "a webhook was not delivered yet");
                    (Told::PutOff, Some(due))
                }
                None => {
                    tracing::warn!(request = %request.id, %reason, "a webhook is given up");
                    (Told::GivenUp, None)
                }
            },
        };
        metrics.webhooks.inc(told);
        // If this is lost, it is delivered once more.
        if let Err(error) = store.put_off(request.id, due).await {
            tracing::debug!(%error, "it is not noted what became of a webhook");
        }
    }

    async fn tell(&self, request: &Request) -> Result<(), Unheard> {
        let Some(url) = &request.webhook else { return Ok(()) };
        // It was checked when it was accepted; the configuration may be another now.
        let url = check(url, &self.config).map_err(Unheard::Ever)?;
        let body = body(request).ok_or_else(|| Unheard::Ever("the record is damaged".into()))?;
        let (id, timestamp) = (request.id.to_string(), Timestamp::now().as_second().to_string());
        let signature = hmac::sign(&self.key, format!("{id}.{timestamp}.{body}").as_bytes());
        let answer = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", &timestamp)
            .header("webhook-signature", format!("v1,{}", STANDARD.encode(signature)))
            .body(body)
            .send()
            .await
            .map_err(|error| Unheard::Now(reason(&error.without_url())))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            // Gone, and never to be told again.
            status if status.as_u16() == 410 => Err(Unheard::Ever(format!("it answers {status}"))),
            status => Err(Unheard::Now(format!("it answers {status}"))),
        }
    }
}

/// What somebody is told: what `GET /signature/{id}` answers, or `GET /status/{id}` of a request that failed.
fn body(request: &Request) -> Option<String> {
    let (kind, data, at) = match &request.progress.state {
        State::Completed { signature, public_key, finished_at } => {
            let signed = signed(request, signature, public_key).ok()?;
            ("request.completed", serde_json::to_value(signed).ok()?, finished_at)
        }
        State::Failed { finished_at, .. } => {
            ("request.failed", serde_json::to_value(Status::of(request)).ok()?, finished_at)
        }
        State::Pending | State::InProgress => return None,
    };
    Some(json!({ "type": kind, "timestamp": at, "data": data }).to_string())
}

/// When it is tried again, if it is.
fn next(request: &Request, now: Timestamp) -> Option<Timestamp> {
    let age = now.duration_since(request.progress.state.finished_at()?);
    if age >= TRIED_FOR {
        return None;
    }
    now.checked_add(age.clamp(SOONEST, LATEST)).ok()
}

fn reason(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(allow_local: bool) -> WebhookConfig {
        WebhookConfig { secret_file: Some("secret".into()), allow_local }
    }

    #[test]
    fn only_addresses_elsewhere_are_told_unless_it_is_allowed() {
        for url in [
            "https://example.com",
            "https://example.com:8443/a?b=c",
            "https://10.0.0.7/x",
            "https://[2001:db8::1]/",
        ] {
            check(url, &config(false)).unwrap();
        }
        for url in [
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0.0.0.0/",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:a9fe:a9fe]/",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://224.0.0.1/",
            "https://255.255.255.255/",
        ] {
            let problem = check(url, &config(false)).unwrap_err();
            assert!(problem.contains("expected another address"), "{url}: {problem}");
            check(url, &config(true)).unwrap();
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_was_expected() {
        let long = format!("https://example.com/{}", "a".repeat(MAX_URL));
        for url in [
            "",
            "example.com",
            "ftp://example.com",
            "http://example.com",
            "file:///etc/passwd",
            "https://",
            &long,
        ] {
            let problem = check(url, &config(false)).unwrap_err();
            assert!(problem.contains("https://example.com/signed"), "{url}: {problem}");
        }
        for url in ["https://user@example.com/", "https://:pass@example.com/", "https://example.com/#x"] {
            assert!(check(url, &config(false)).unwrap_err().contains("without a user"), "{url}");
        }
        check("http://localhost:8080/", &config(true)).unwrap();
        let none = WebhookConfig::default();
        assert!(check("https://example.com", &none).unwrap_err().contains("`webhooks.secret_file`"));
    }

    #[test]
    fn it_is_tried_ever_more_rarely_for_a_day() {
        let ended = Timestamp::UNIX_EPOCH;
        let request: Request = serde_json::from_value(json!({
            "id": uuid::Uuid::nil(), "message": "", "idempotency": null, "created_at": ended, "deadline": ended,
            "intent": {
                "cluster": "c", "key": "k", "path": "m", "hash": "sha256", "digest": "00".repeat(32), "not_after": null,
            },
            "progress": {
                "attempts": 0, "quorum": null,
                "state": { "status": "Failed", "reason": "no", "finished_at": ended },
            },
            "lease": { "holder": uuid::Uuid::nil(), "until": ended },
        }))
        .unwrap();
        let mut now = ended;
        let mut pauses = Vec::new();
        while let Some(due) = next(&request, now) {
            pauses.push(due.duration_since(now).as_secs());
            now = due;
        }
        assert_eq!(pauses[..5], [5, 5, 10, 20, 40]);
        assert_eq!(pauses[pauses.len() - 1], 3600);
        assert!(pauses.is_sorted() && pauses.len() < 50, "{pauses:?}");
        assert!(now.duration_since(ended) >= TRIED_FOR);
    }

    #[tokio::test]
    async fn a_name_that_leads_here_is_not_followed() {
        let resolver = Elsewhere { allow_local: false };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_err());
        let resolver = Elsewhere { allow_local: true };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.unwrap().count() > 0);
    }
}
