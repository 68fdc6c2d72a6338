//! The manager's REST API, as a caller uses it.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::{Certificate, Method, StatusCode};
use serde_json::{Value, json};
use tss_common::approval::Approval;
use uuid::Uuid;

/// The longest wait that the manager grants.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A client of one manager.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

/// What a caller wants signed. Absent parts are the manager's to choose.
#[derive(Clone, Debug, Default)]
pub struct SignRequest {
    /// The message, as text in `encoding`.
    pub message: String,
    /// `utf8`, `hex` or `base64`.
    pub encoding: Option<String>,
    /// `sha256`, `sha256d`, `keccak256`, `eip191` or `none`.
    pub hash: Option<String>,
    /// The key's id.
    pub key: Option<String>,
    /// The derivation path.
    pub path: Option<String>,
    /// When the wish lapses.
    pub not_after: Option<Timestamp>,
    /// Who approved it.
    pub approvals: Vec<Approval>,
}

fn certificates(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    let certificates = Certificate::from_pem_bundle(&std::fs::read(path)?)?;
    anyhow::ensure!(!certificates.is_empty(), "expected certificates in PEM");
    Ok(certificates)
}

impl Client {
    /// A client of the manager at `url`. `authorities` names a file with the certificates, in PEM, of those who may
    /// vouch for it, and nobody else then may; without it the system's own do.
    ///
    /// # Errors
    /// When no HTTP client can be made, or the file is of no use.
    pub fn new(url: &str, authorities: Option<&Path>) -> anyhow::Result<Self> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(MAX_WAIT + Duration::from_secs(15));
        if let Some(path) = authorities {
            http = http.tls_certs_only(certificates(path).with_context(|| path.display().to_string())?);
        }
        let http = http.build().context("there is no HTTP client")?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned() })
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response =
            request.send().await.with_context(|| format!("no answer from the manager at {}", self.url))?;
        let status = response.status();
        let body =
            response.json::<Value>().await.with_context(|| format!("{status} without JSON from {path}"))?;
        if status.is_success() {
            return Ok((status, body));
        }
        let title = body["title"].as_str().unwrap_or("the manager refused");
        match body["detail"].as_str() {
            Some(detail) => anyhow::bail!("{title} ({status}): {detail}"),
            None => anyhow::bail!("{title} ({status})"),
        }
    }

    /// Asks for a signature; yields the request's id.
    ///
    /// # Errors
    /// When the manager cannot be reached, or refuses.
    pub async fn sign(&self, request: &SignRequest) -> anyhow::Result<Uuid> {
        let mut body = json!({ "message": request.message });
        for (name, value) in [
            ("encoding", &request.encoding),
            ("hash", &request.hash),
            ("key", &request.key),
            ("path", &request.path),
        ] {
            if let Some(value) = value {
                body[name] = json!(value);
            }
        }
        if let Some(time) = request.not_after {
            body["not_after"] = json!(time);
        }
        if !request.approvals.is_empty() {
            body["approvals"] = json!(request.approvals);
        }
        let (_, answer) = self.call(Method::POST, "/sign", Some(body)).await?;
        let id = answer["request_id"].as_str().context("the answer has no request_id")?;
        id.parse().context("the request_id is not a UUID")
    }

    /// How far a request is.
    ///
    /// # Errors
    /// When the manager cannot be reached, or knows no such request.
    pub async fn status(&self, id: Uuid) -> anyhow::Result<Value> {
        Ok(self.call(Method::GET, &format!("/status/{id}"), None).await?.1)
    }

    /// The signature of a request, waiting up to `patience` for it. `None` if it is not there by then.
    ///
    /// # Errors
    /// When the manager cannot be reached, knows no such request, or the request failed.
    pub async fn signature(&self, id: Uuid, patience: Duration) -> anyhow::Result<Option<Value>> {
        let wait = patience.min(MAX_WAIT).as_millis();
        let (status, answer) =
            self.call(Method::GET, &format!("/signature/{id}?wait={wait}ms"), None).await?;
        Ok((status == StatusCode::OK).then_some(answer))
    }
}
