//! The manager's REST API, as far as a SigningRequest needs it.
//!
//! What is not answered is told apart by what it means for the request: a manager that surely has not taken it, one
//! that may have, and one that never will.

use std::error::Error as _;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::build::SignBody;
use super::cause::{self, Cause};
use crate::cluster::names;
use crate::crd::Scheme;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take, beyond the wait that was asked for.
const ANSWER: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes. The longest that is expected has about 2 KiB.
const MAX_ANSWER: usize = 64 << 10;

/// The managers of all clusters.
#[derive(Debug)]
pub struct Managers {
    /// Where they are, if they are not where a TssCluster's Service is.
    address: Option<String>,
    plain: reqwest::Client,
    secure: Secure,
}

/// How managers with a certificate are reached.
#[derive(Debug)]
enum Secure {
    /// They are believed that the system's own authorities vouch for.
    System(reqwest::Client),
    /// Those that the authorities in a file vouch for, and no others.
    File {
        path: PathBuf,
        /// What the file held last, and the client that was made of it.
        last: Mutex<Option<(Vec<u8>, reqwest::Client)>>,
    },
}

/// Why a manager has not taken a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It surely has not; another try may do better.
    Surely(Cause),
    /// It may have.
    Perhaps(Cause),
    /// It will never take what is asked for, and says why.
    Never(String),
}

/// A request that was signed, as the manager tells it: what is needed of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Signed {
    /// Which request.
    pub request_id: Uuid,
    /// The signature: r and s.
    pub compact: String,
    /// The derived public key.
    pub public_key: String,
    /// What was signed.
    pub digest: String,
    /// What was asked for.
    pub intent: Intent,
}

/// What was asked for, as the manager tells it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Intent {
    /// The path of the key.
    pub path: String,
    /// What is signed.
    pub digest: String,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is signed.
    Signed(Box<Signed>),
    /// It was not signed and never will be, as the manager says.
    Failed(String),
}

/// How a manager goes about a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attempts {
    /// Which request.
    pub request_id: Uuid,
    /// How many attempts were begun.
    pub attempts: u32,
    /// The signers of the last one.
    #[serde(default)]
    pub quorum: Option<Vec<u8>>,
}

/// An answer.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

/// No answer.
struct Silence {
    /// Whether the request may have arrived.
    arrived: bool,
    text: String,
}

impl Managers {
    /// The managers behind addresses of this form, in which `{scheme}`, `{cluster}` and `{namespace}` stand for a
    /// TssCluster's. `authorities` names a file with the certificates, in PEM, of those who may vouch for managers.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(address: Option<&str>, authorities: Option<&Path>) -> Result<Self, reqwest::Error> {
        let secure = match authorities {
            None => Secure::System(builder().https_only(true).build()?),
            // Perhaps it is not there yet: whoever issues certificates may start later than the operator.
            Some(path) => Secure::File { path: path.to_owned(), last: Mutex::default() },
        };
        let address = address.map(|address| address.trim_end_matches('/').to_owned());
        Ok(Self { address, plain: builder().build()?, secure })
    }

    /// The manager of a cluster.
    ///
    /// # Errors
    /// When nobody can vouch for it.
    pub fn of(&self, scheme: Scheme, namespace: &str, cluster: &str) -> Result<Manager, Cause> {
        let url = match &self.address {
            None => names::manager_url(scheme, namespace, cluster),
            Some(address) => address
                .replace("{scheme}", scheme.as_str())
                .replace("{cluster}", cluster)
                .replace("{namespace}", namespace),
        };
        let http = match scheme {
            Scheme::Http => self.plain.clone(),
            Scheme::Https => self.secure.client().map_err(|problem| {
                let text = format!("the manager at {url} cannot be asked: {problem}");
                Cause::new(cause::MANAGER_UNREACHABLE, text)
            })?,
        };
        Ok(Manager { http, url })
    }
}

/// What every client has.
fn builder() -> reqwest::ClientBuilder {
    // A redirect or a proxy could answer in a manager's place.
    reqwest::Client::builder().connect_timeout(CONNECT).redirect(Policy::none()).no_proxy()
}

impl Secure {
    /// A client that believes whom the file names now.
    fn client(&self) -> Result<reqwest::Client, String> {
        let (path, last) = match self {
            Self::System(client) => return Ok(client.clone()),
            Self::File { path, last } => (path, last),
        };
        let unusable = |problem: &dyn Display| format!("the authorities in {}: {problem}", path.display());
        // A small file, and in memory where Kubernetes mounts it.
        let pem = std::fs::read(path).map_err(|error| unusable(&error))?;
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, client)) = &*last
            && *seen == pem
        {
            return Ok(client.clone());
        }
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| unusable(&error))?;
        if authorities.is_empty() {
            return Err(unusable(&"expected certificates in PEM"));
        }
        let client = builder().https_only(true).tls_certs_only(authorities).build();
        let client = client.map_err(|error| unusable(&error))?;
        *last = Some((pem, client.clone()));
        Ok(client)
    }
}

/// The manager of one cluster.
#[derive(Debug)]
pub struct Manager {
    http: reqwest::Client,
    url: String,
}

impl Manager {
    /// Asks for a signature; yields the request's id. Asking again under one key yields the same.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub async fn sign(&self, key: &str, body: &SignBody) -> Result<Uuid, NotTaken> {
        #[derive(Deserialize)]
        struct Taken {
            request_id: Uuid,
        }
        let request = self.http.post(format!("{}/sign", self.url)).header("idempotency-key", key).json(body);
        let answer = self.call(request, Duration::ZERO).await.map_err(|silence| {
            if silence.arrived {
                NotTaken::Perhaps(Cause::new(cause::NO_ANSWER, silence.text))
            } else {
                NotTaken::Surely(Cause::new(cause::MANAGER_UNREACHABLE, silence.text))
            }
        })?;
        if matches!(answer.status, StatusCode::OK | StatusCode::CREATED) {
            let taken: Result<Taken, _> = self.read(&answer);
            return taken.map(|taken| taken.request_id).map_err(NotTaken::Perhaps);
        }
        Err(self.not_taken(&answer))
    }

    /// What an answer to `POST /sign` means that is not a request's id.
    fn not_taken(&self, answer: &Answer) -> NotTaken {
        let problem = answer.problem();
        let text = || format!("the manager at {} answers {}", self.url, problem.text(answer.status));
        match (answer.status, problem.name()) {
            (
                StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNSUPPORTED_MEDIA_TYPE
                | StatusCode::UNPROCESSABLE_ENTITY,
                _,
            ) => NotTaken::Never(problem.said(answer.status)),
            (StatusCode::TOO_MANY_REQUESTS, _) | (StatusCode::SERVICE_UNAVAILABLE, "overloaded") => {
                NotTaken::Surely(Cause::new(cause::MANAGER_OVERLOADED, text()))
            }
            // The manager says so too when its store did not confirm what it may have stored.
            (StatusCode::SERVICE_UNAVAILABLE, _) => {
                NotTaken::Perhaps(Cause::new(cause::MANAGER_UNAVAILABLE, text()))
            }
            (
                StatusCode::UNAUTHORIZED
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED,
                _,
            ) => NotTaken::Surely(Cause::new(cause::MANAGER_REFUSES, text())),
            _ => NotTaken::Perhaps(Cause::new(cause::NO_ANSWER, text())),
        }
    }

    /// What became of a request; the manager waits so long for it to end. `None` if it has not.
    ///
    /// # Errors
    /// Why the manager does not tell.
    pub async fn ending(&self, id: Uuid, wait: Duration) -> Result<Option<Ending>, Cause> {
        let url = format!("{}/signature/{id}?wait={}ms", self.url, wait.as_millis());
        let answer = self.ask(self.http.get(url), wait).await?;
        let problem = answer.problem();
        match (answer.status, problem.name()) {
            (StatusCode::OK, _) => self.read(&answer).map(|signed| Some(Ending::Signed(signed))),
            (StatusCode::ACCEPTED, _) => Ok(None),
            (StatusCode::CONFLICT, "request-failed") => Ok(Some(Ending::Failed(problem.said(answer.status)))),
            _ => Err(self.untold(id, &answer)),
        }
    }

    /// How many attempts there were of a request, and whose.
    ///
    /// # Errors
    /// Why the manager does not tell.
    pub async fn attempts(&self, id: Uuid) -> Result<Attempts, Cause> {
        let answer = self.ask(self.http.get(format!("{}/status/{id}", self.url)), Duration::ZERO).await?;
        match answer.status {
            StatusCode::OK => self.read(&answer),
            _ => Err(self.untold(id, &answer)),
        }
    }

    fn untold(&self, id: Uuid, answer: &Answer) -> Cause {
        let problem = answer.problem();
        let text = problem.text(answer.status);
        match (answer.status, problem.name()) {
            (StatusCode::NOT_FOUND, "unknown-request") => Cause::new(
                cause::REQUEST_UNKNOWN,
                format!("the manager at {} has taken request {id} and does not know it any more", self.url),
            ),
            (StatusCode::SERVICE_UNAVAILABLE, _) => {
                Cause::new(cause::MANAGER_UNAVAILABLE, format!("the manager at {} answers {text}", self.url))
            }
            _ => Cause::new(cause::NO_ANSWER, format!("the manager at {} answers {text}", self.url)),
        }
    }

    async fn ask(&self, request: RequestBuilder, wait: Duration) -> Result<Answer, Cause> {
        self.call(request, wait).await.map_err(|silence| {
            let reason = if silence.arrived { cause::NO_ANSWER } else { cause::MANAGER_UNREACHABLE };
            Cause::new(reason, silence.text)
        })
    }

    async fn call(&self, request: RequestBuilder, wait: Duration) -> Result<Answer, Silence> {
        let silence = |error: reqwest::Error| {
            let mut text = format!("no answer from the manager at {}", self.url);
            let mut source = error.source();
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            if error.is_timeout() && !error.is_connect() {
                text = format!("{text} within {} s", wait.saturating_add(ANSWER).as_secs());
            }
            Silence { arrived: !error.is_connect() && !error.is_builder(), text }
        };
        let mut response = request.timeout(wait.saturating_add(ANSWER)).send().await.map_err(silence)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = Response::chunk(&mut response).await.map_err(silence)? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
                let text = format!(
                    "the manager at {} answers {status} with a long text: expected at most {MAX_ANSWER} bytes",
                    self.url
                );
                return Err(Silence { arrived: true, text });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body })
    }

    fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Cause> {
        serde_json::from_slice(&answer.body).map_err(|error| {
            let text = format!("the manager at {} answers {} with {error}", self.url, answer.status);
            Cause::new(cause::NO_ANSWER, text)
        })
    }
}

impl Answer {
    /// What it says is wrong; nothing, if it is no problem document.
    fn problem(&self) -> Problem {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// A problem document (RFC 9457).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    r#type: String,
    title: String,
    detail: Option<String>,
}

impl Problem {
    /// The last part of its type, which never changes.
    fn name(&self) -> &str {
        self.r#type.strip_prefix("urn:tss-network:problem:").unwrap_or_default()
    }

    /// What it says: its detail, if it has one.
    fn said(&self, status: StatusCode) -> String {
        self.detail.clone().unwrap_or_else(|| self.text(status))
    }

    fn text(&self, status: StatusCode) -> String {
        match &self.detail {
            Some(detail) => format!("{status}: {}: {detail}", self.title),
            None if self.title.is_empty() => status.to_string(),
            None => format!("{status}: {}", self.title),
        }
    }
}
