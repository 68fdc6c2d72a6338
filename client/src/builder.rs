//! What a client is made of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Identity, Url};
use zeroize::Zeroizing;

use crate::Error;
use crate::client::{Client, Inner};
use crate::token::Token;

/// How long a connection may take to open, unless told otherwise.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take, beyond the wait that was asked for, unless told otherwise.
const ANSWER: Duration = Duration::from_secs(15);

/// How long calls are made again, unless told otherwise.
const RETRY: Duration = Duration::from_secs(30);

/// The largest file of certificates or a key, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// What a [`Client`] is made of.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    token: Option<Token>,
    authorities: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    connect_timeout: Duration,
    timeout: Duration,
    retry_for: Duration,
}

impl ClientBuilder {
    /// Of the manager at this URL.
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            token: None,
            authorities: None,
            identity: None,
            connect_timeout: CONNECT,
            timeout: ANSWER,
            retry_for: RETRY,
        }
    }

    /// The token that says who asks.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        Self { token: Some(Token::Text(Zeroizing::new(token.into()))), ..self }
    }

    /// A file with the token. It is read at each call: a token that Kubernetes projects is another one every hour.
    #[must_use]
    pub fn token_file(self, file: impl Into<PathBuf>) -> Self {
        Self { token: Some(Token::File(file.into())), ..self }
    }

    /// A file with the certificates, in PEM, of those who may vouch for the manager, and nobody else then may. Without
    /// it the system's own do.
    #[must_use]
    pub fn authorities(self, file: impl Into<PathBuf>) -> Self {
        Self { authorities: Some(file.into()), ..self }
    }

    /// Files with the certificate that shows who this client is, in PEM, and its key (mutual TLS).
    #[must_use]
    pub fn identity(self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self { identity: Some((certificate.into(), key.into())), ..self }
    }

    /// How long a connection may take to open. 5 s unless set.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        Self { connect_timeout: timeout, ..self }
    }

    /// How long an answer may take, beyond the wait that was asked for. 15 s unless set.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// For how long after it has failed a call is made again when the manager cannot be reached, is busy (503) or has
    /// had too many calls (429). 30 s unless set; zero makes each call once.
    #[must_use]
    pub fn retry_for(self, time: Duration) -> Self {
        Self { retry_for: time, ..self }
    }

    /// The client. It makes no call yet.
    ///
    /// # Errors
    /// When the URL or a file is of no use.
    pub fn build(self) -> Result<Client, Error> {
        let url = parse(&self.url)
            .map_err(|problem| Error::Settings { what: "the URL of the manager".into(), problem })?;
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("tss-client/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(self.connect_timeout);
        if let Some(file) = &self.authorities {
            http = http.tls_certs_only(at(file, certificates(file))?);
        }
        if let Some((certificate, key)) = &self.identity {
            http = http.identity(at(certificate, identity(certificate, key))?);
        }
        let http = http.build().map_err(|error| Error::Settings {
            what: "there is no HTTP client".into(),
            problem: causes(&error),
        })?;
        let shown = self.url.trim_end_matches('/').to_owned();
        let Self { token, timeout, retry_for, .. } = self;
        Ok(Client::from(Inner { http, url, shown, token, timeout, retry_for }))
    }
}

fn parse(text: &str) -> Result<Url, String> {
    let example = "as in https://manager.example:8080";
    let url = Url::parse(text).map_err(|error| format!("{error}: expected a URL, {example}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(format!("expected a URL of HTTP or HTTPS, {example}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected no user and no password in the URL".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("expected nothing after the URL's path, {example}"));
    }
    Ok(url)
}

fn at<T>(file: &Path, result: Result<T, String>) -> Result<T, Error> {
    result.map_err(|problem| Error::Settings { what: file.display().to_string(), problem })
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, String> {
    let certificates = Certificate::from_pem_bundle(&read(file)?).map_err(|error| causes(&error))?;
    if certificates.is_empty() {
        return Err("expected certificates in PEM".into());
    }
    Ok(certificates)
}

fn identity(certificate: &Path, key: &Path) -> Result<Identity, String> {
    let mut pem = read(certificate)?;
    let key = read(key).map_err(|problem| format!("its key {}: {problem}", key.display()))?;
    // All the room at once: growing would leave copies of the key behind.
    pem.reserve_exact(key.len().saturating_add(1));
    pem.push(b'\n');
    pem.extend_from_slice(&key);
    Identity::from_pem(&pem).map_err(|error| {
        format!("{}: expected a certificate, and its key in the other file, in PEM", causes(&error))
    })
}

fn read(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    use std::io::Read as _;
    let read = || -> std::io::Result<Zeroizing<Vec<u8>>> {
        let file = std::fs::File::open(file)?;
        let length = file.metadata()?.len().min(MAX_PEM);
        let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1));
        file.take(MAX_PEM.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_PEM {
        return Err(format!("it has more than {MAX_PEM} bytes"));
    }
    Ok(bytes)
}

/// An error with all its causes.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_client_is_refused_with_what_was_expected() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let builder = || Client::builder("https://localhost:1");
        for (builder, part) in [
            (Client::builder("localhost"), "expected a URL"),
            (Client::builder("ftp://localhost"), "HTTP or HTTPS"),
            (Client::builder("http://user:secret@localhost"), "no user and no password"),
            (Client::builder("http://localhost/?a=b"), "nothing after"),
            (builder().authorities(&empty), "empty.pem: expected certificates in PEM"),
            (builder().authorities(folder.path().join("none.pem")), "No such file"),
            (builder().identity(&empty, &empty), "expected a certificate"),
        ] {
            let error = builder.build().unwrap_err().to_string();
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
        assert!(Client::builder("http://[::1]:8080/tss/").build().is_ok());
    }

    #[test]
    fn a_token_is_in_no_debug_output() {
        let client = Client::builder("http://localhost").token("c2VjcmV0");
        assert!(!format!("{client:?} {:?}", client.clone().build().unwrap()).contains("c2VjcmV0"));
    }
}
