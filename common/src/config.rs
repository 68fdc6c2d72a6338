//! Layered configuration: `default.toml`, then `{RUN_MODE}.toml`, then `TSS_*` from the environment.
//!
//! Each layer is checked by itself, so that an error names the file (or variable) it stands in. Keys
//! that the first TSS network had keep their names and meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use tss_mpc::party::MAX_SIGNERS;
use tss_mpc::{DerivationPath, EngineId, PublicKey, SignerIndex, Threshold};
use zeroize::Zeroizing;

/// A text that is not shown: a URI with a password in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Self(Zeroizing::new(text.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Where requests are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// MongoDB, shared by any number of managers.
    Mongodb,
    /// A file of this process.
    Embedded,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level (`info`) or a filter of `tracing-subscriber` (`info,tss_signer=debug`).
    pub level: String,
    /// How the lines look.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// A part of a whole: 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio(f64);

impl Ratio {
    /// The whole.
    pub const ALL: Self = Self(1.0);

    /// As a number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Ratio {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&number) {
            Ok(Self(number))
        } else {
            Err(format!("{number}: expected 0 to 1"))
        }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> Self {
        ratio.0
    }
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceConfig {
    /// An OpenTelemetry collector that takes OTLP over HTTP: `http://host:4318`. Without it there are no traces.
    pub otlp_endpoint: Option<String>,
    /// Which part of the requests is traced where the caller has not decided it.
    pub sample_ratio: Ratio,
}

impl Default for TraceConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: Ratio::ALL }
    }
}

/// What bounds memory and work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How many requests a manager drives at the same time; the others wait their turn.
    pub active: u16,
    /// How many accepted requests may wait before a manager refuses more.
    pub pending: u32,
    /// How many sessions a signer takes part in at the same time.
    pub sessions: u16,
    /// How many connections a manager has at the same time; more are closed at once.
    pub connections: u32,
    /// How many calls a second a manager takes from one subject in the long run, a batch counting as many as it has
    /// requests; 0 for any number.
    pub rate: u32,
    /// How many calls may come at once, after a pause.
    pub burst: u32,
    /// How many seconds a signer lets pass between two refreshes of its share, whoever asks.
    pub refresh_pause: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            active: 48,
            pending: 10_000,
            sessions: 256,
            connections: 4096,
            rate: 1000,
            burst: 5000,
            refresh_pause: 60,
        }
    }
}

/// Who may use the manager's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Anybody who can reach it.
    None,
    /// Who has a token: see [`JwtConfig`].
    Jwt,
}

/// Which bearer tokens a manager takes (RFC 6750, RFC 7519), where `auth = "jwt"`: those of one secret, or those of the
/// keys that an identity provider publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// A file with secrets for HS256, one a line, each of at least 32 bytes: a token may be made with any of them. Read
    /// again when it changes.
    pub secret_file: Option<PathBuf>,
    /// Where the provider's JSON Web Key Set (RFC 7517) is, for RS256, ES256 and EdDSA: `https://`, or `http://` on
    /// loopback. Asked again now and then, and when a token names a key that is not in it.
    pub jwks_url: Option<String>,
    /// The certificates of those who may vouch for `jwks_url`, in PEM, and nobody else then may.
    pub jwks_ca_file: Option<PathBuf>,
    /// What a token's `iss` has to be; not looked at where absent, which only a secret allows.
    pub issuer: Option<String>,
    /// What a token's `aud` has to be or contain; the cluster's name where absent.
    pub audience: Option<String>,
}

/// How a manager tells callers that a request has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebhookConfig {
    /// A file with the secret that they are signed with: `whsec_` and 24 to 64 bytes in base64, as Standard Webhooks has
    /// it. Without it no request can have one.
    pub secret_file: Option<PathBuf>,
    /// Whether they may go to this machine and its neighbours (loopback, link-local), and without TLS.
    pub allow_local: bool,
}

macro_rules! config {
    (
        $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr,)+ ;
        $($key_file:ident, $identity_file:ident = $index:literal;)+
    ) => {
        /// The configuration of manager and signer.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $key: $type,)+
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                #[doc = "The share file of a signer; see `key_files`."]
                pub $key_file: Option<PathBuf>,
                #[serde(skip_serializing_if = "Option::is_none")]
                #[doc = "The identity file of a signer; see `identity_files`."]
                pub $identity_file: Option<PathBuf>,
            )+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($key: $default,)+ $($key_file: None, $identity_file: None,)+ }
            }
        }

        impl Config {
            /// The share files by signer: `signer1_key_file` and so on. Where a key is not set, the
            /// file is `signer{index}.store`.
            pub fn key_files(&self) -> BTreeMap<SignerIndex, PathBuf> {
                self.files([$(($index, &self.$key_file)),+], "store")
            }

            /// The identity files by signer: `signer1_identity_file` and so on. Where a key is not set,
            /// the file is `signer{index}.identity`.
            pub fn identity_files(&self) -> BTreeMap<SignerIndex, PathBuf> {
                self.files([$(($index, &self.$identity_file)),+], "identity")
            }
        }
    };
}

config! {
    /// The cluster's name: lower-case letters, digits and hyphens.
    cluster: String = "tss".into(),
    /// The key that signs when a request names none.
    key: String = "default".into(),
    /// The public key of `key`, SEC1 in hex. A manager that is told it uses no other; else it learns it from the
    /// signers.
    public_key: Option<PublicKey> = None,
    /// The threshold protocol.
    engine: EngineId = EngineId::Dkls23,
    /// How many signers are needed to sign.
    threshold: u8 = 2,
    /// How many signers there are.
    total_parties: u8 = 3,
    /// The derivation path when a request names none.
    path: DerivationPath = "0/1/2".parse().expect("the path is well-formed"),
    /// Where RabbitMQ is: `amqp://` or `amqps://`.
    rabbitmq_uri: Secret = "amqp://localhost:5672".into(),
    /// A file that holds `rabbitmq_uri`; goes before it.
    rabbitmq_uri_file: Option<PathBuf> = None,
    /// Where requests are kept: `mongodb` or `embedded`.
    store: StoreKind = StoreKind::Mongodb,
    /// Where MongoDB is.
    mongodb_uri: Secret = "mongodb://localhost:27017".into(),
    /// A file that holds `mongodb_uri`; goes before it.
    mongodb_uri_file: Option<PathBuf> = None,
    /// The database in MongoDB.
    mongodb_database: String = "tss".into(),
    /// Where manager and signers keep files of their own.
    data_dir: PathBuf = "tss-data".into(),
    /// Where clients find the manager, without the port.
    manager_url: String = "http://127.0.0.1".into(),
    /// The port the manager listens on.
    manager_port: u16 = 8080,
    /// The address the manager listens on.
    manager_address: IpAddr = IpAddr::from([127, 0, 0, 1]),
    /// The port of the manager's health and metrics, for those who must not use the API. Without it, they are on
    /// the API's.
    manager_metrics_port: Option<u16> = None,
    /// The certificate of the manager's API and its chain, in PEM. With it the API is served over TLS, and not
    /// otherwise. Read again when it changes.
    manager_tls_cert_file: Option<PathBuf> = None,
    /// The private key of `manager_tls_cert_file`, in PEM.
    manager_tls_key_file: Option<PathBuf> = None,
    /// The authorities, in PEM, one of whom has to vouch for a client's own certificate. With it nobody without one
    /// can connect; who may do what is still for `auth` to say.
    manager_tls_client_ca_file: Option<PathBuf> = None,
    /// Who may use the API: `none` or `jwt`. It has to be written out where the address is not loopback.
    auth: Option<Auth> = None,
    /// Which tokens are taken.
    jwt: JwtConfig = JwtConfig::default(),
    /// What callers are told of requests that have ended, without asking.
    webhooks: WebhookConfig = WebhookConfig::default(),
    /// The port of a signer's health and metrics; 0 for none.
    signer_port: u16 = 0,
    /// The address of a signer's health and metrics.
    signer_address: IpAddr = IpAddr::from([127, 0, 0, 1]),
    /// Every signer's public identity.
    roster_file: PathBuf = "roster.toml".into(),
    /// A file with `age` identities (X25519) or a passphrase line, for encrypted share and identity files.
    age_identity_file: Option<PathBuf> = None,
    /// A TOML file that says what a signer signs. Read again when it changes; without it nothing is
    /// denied.
    policy_file: Option<PathBuf> = None,
    /// Seconds in which a request ends, signed or failed.
    signing_timeout: u32 = 30,
    /// Seconds after which an attempt gives way to one with another quorum.
    attempt_timeout: u32 = 5,
    /// Hours for which finished requests are kept.
    retention_hours: u32 = 24 * 7,
    /// After how many hours managers have a key's shares made anew; 0 for never.
    refresh_hours: u32 = 0,
    /// What bounds memory and work.
    limits: Limits = Limits::default(),
    /// What is logged, and how.
    log: LogConfig = LogConfig::default(),
    /// Where traces go.
    trace: TraceConfig = TraceConfig::default(),
    ;
    signer1_key_file, signer1_identity_file = 1;
    signer2_key_file, signer2_identity_file = 2;
    signer3_key_file, signer3_identity_file = 3;
    signer4_key_file, signer4_identity_file = 4;
    signer5_key_file, signer5_identity_file = 5;
    signer6_key_file, signer6_identity_file = 6;
    signer7_key_file, signer7_identity_file = 7;
    signer8_key_file, signer8_identity_file = 8;
    signer9_key_file, signer9_identity_file = 9;
    signer10_key_file, signer10_identity_file = 10;
    signer11_key_file, signer11_identity_file = 11;
    signer12_key_file, signer12_identity_file = 12;
    signer13_key_file, signer13_identity_file = 13;
    signer14_key_file, signer14_identity_file = 14;
    signer15_key_file, signer15_identity_file = 15;
    signer16_key_file, signer16_identity_file = 16;
}

/// Why there is no configuration. Names the key, where it stands, and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{file}: {error}{hint}")]
    Unreadable {
        /// Which.
        file: String,
        /// Why.
        error: std::io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A layer has an unknown key or a value of the wrong type.
    #[error("{layer}: {problem}")]
    Layer {
        /// The file or variable.
        layer: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
    /// A value has the right type and cannot be.
    #[error("{layer}: `{key}`: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// The file or variable that set it.
        layer: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
}

/// One source of settings.
struct Layer {
    name: String,
    table: Table,
}

const PREFIX: &str = "TSS_";
/// Where `tssctl` finds the manager, whom it believes and who it says it is: no settings, though they begin like some.
const NO_SETTINGS: [&str; 7] = [
    "TSS_MANAGER",
    "TSS_MANAGER_CA",
    "TSS_PROFILE",
    "TSS_TOKEN",
    "TSS_TOKEN_FILE",
    "TSS_CLIENT_CERT",
    "TSS_CLIENT_KEY",
];

impl Config {
    /// Reads `dir/default.toml`, `dir/{RUN_MODE}.toml` (`development` unless set) and the `TSS_*`
    /// variables of this process.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        Self::from_layers(dir, std::env::vars())
    }

    /// As [`Config::load`], with these variables.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn from_layers(
        dir: &Path,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut env: Vec<(String, String)> = env.into_iter().collect();
        env.sort();
        let mode = env.iter().find(|(name, _)| name == "RUN_MODE").map_or("development", |(_, value)| value);
        if !mode.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return Err(ConfigError::Layer {
                layer: "RUN_MODE".into(),
                problem: format!(
                    "`{mode}` names no file in {}: expected letters, digits, `-` or `_`",
                    dir.display()
                ),
            });
        }
        let mut layers = vec![
            file_layer(
                &dir.join("default.toml"),
                ": run from the project's folder, or name the folder with --config",
            )?,
            file_layer(&dir.join(format!("{mode}.toml")), ": RUN_MODE names the file without `.toml`")?,
        ];
        for (name, value) in &env {
            if let Some(path) = name.strip_prefix(PREFIX).filter(|_| !NO_SETTINGS.contains(&name.as_str())) {
                layers.push(variable_layer(name, path, value)?);
            }
        }
        let mut merged = Table::new();
        for layer in &layers {
            merge(&mut merged, layer.table.clone());
        }
        let config: Self = Value::Table(merged).try_into().map_err(|error: toml::de::Error| {
            ConfigError::Layer { layer: "configuration".into(), problem: error.message().to_owned() }
        })?;
        let config = config.with_secret_files(&layers)?;
        config.check(&layers)?;
        Ok(config)
    }

    fn files<const N: usize>(
        &self,
        named: [(u8, &Option<PathBuf>); N],
        extension: &str,
    ) -> BTreeMap<SignerIndex, PathBuf> {
        let own = named.into_iter().filter(|(index, _)| *index <= self.total_parties);
        own.filter_map(|(index, file)| {
            let file = file.clone().unwrap_or_else(|| format!("signer{index}.{extension}").into());
            Some((SignerIndex::new(index).ok()?, file))
        })
        .collect()
    }

    fn with_secret_files(mut self, layers: &[Layer]) -> Result<Self, ConfigError> {
        for (file, key, secret) in [
            (&self.rabbitmq_uri_file, "rabbitmq_uri_file", &mut self.rabbitmq_uri),
            (&self.mongodb_uri_file, "mongodb_uri_file", &mut self.mongodb_uri),
        ] {
            if let Some(file) = file {
                let text = std::fs::read_to_string(file).map_err(|error| ConfigError::Value {
                    key,
                    layer: source(layers, key),
                    problem: format!("{}: {error}", file.display()),
                })?;
                *secret = text.trim().into();
            }
        }
        Ok(self)
    }

    fn check(&self, layers: &[Layer]) -> Result<(), ConfigError> {
        let wrong = |key: &'static str, problem: String| {
            Err(ConfigError::Value { key, layer: source(layers, key), problem })
        };
        for (key, name) in [("cluster", &self.cluster), ("key", &self.key)] {
            check_name(name).or_else(|problem| wrong(key, problem))?;
        }
        if self.engine != EngineId::Dkls23 {
            let problem = format!("the network does not offer `{}` yet: expected `dkls23`", self.engine);
            return wrong("engine", problem);
        }
        if Threshold::new(2, self.total_parties).is_err() {
            return wrong(
                "total_parties",
                format!("{} signers: expected 2 to {MAX_SIGNERS}", self.total_parties),
            );
        }
        if Threshold::new(self.threshold, self.total_parties).is_err() {
            let problem = format!("{}: expected 2 to total_parties = {}", self.threshold, self.total_parties);
            return wrong("threshold", problem);
        }
        if !["amqp://", "amqps://"].iter().any(|scheme| self.rabbitmq_uri.expose().starts_with(scheme)) {
            return wrong("rabbitmq_uri", "expected amqp://… or amqps://…".into());
        }
        if !["mongodb://", "mongodb+srv://"]
            .iter()
            .any(|scheme| self.mongodb_uri.expose().starts_with(scheme))
        {
            return wrong("mongodb_uri", "expected mongodb://… or mongodb+srv://…".into());
        }
        if !["http://", "https://"].iter().any(|scheme| self.manager_url.starts_with(scheme)) {
            return wrong("manager_url", "expected http://… or https://…".into());
        }
        if let Some(endpoint) = &self.trace.otlp_endpoint
            && !is_collector(endpoint)
        {
            let problem = format!(
                "otlp_endpoint `{endpoint}`: expected http://host:port of an OpenTelemetry collector"
            );
            return wrong("trace", problem);
        }
        if self.manager_metrics_port.is_some_and(|port| port == 0 || port == self.manager_port) {
            return wrong("manager_metrics_port", "expected another port than 0 and `manager_port`".into());
        }
        if self.manager_tls_cert_file.is_some() != self.manager_tls_key_file.is_some() {
            let (key, other) = match self.manager_tls_cert_file {
                Some(_) => ("manager_tls_cert_file", "manager_tls_key_file"),
                None => ("manager_tls_key_file", "manager_tls_cert_file"),
            };
            return wrong(key, format!("expected `{other}` as well"));
        }
        if self.manager_tls_client_ca_file.is_some() && self.manager_tls_cert_file.is_none() {
            return wrong("manager_tls_client_ca_file", "expected `manager_tls_cert_file` as well".into());
        }
        if let Err(problem) = self.jwt.check(self.auth) {
            return wrong("jwt", problem);
        }
        for (key, seconds, most) in
            [("signing_timeout", self.signing_timeout, 3600), ("attempt_timeout", self.attempt_timeout, 600)]
        {
            if !(1..=most).contains(&seconds) {
                return wrong(key, format!("{seconds} seconds: expected 1 to {most}"));
            }
        }
        if self.retention_hours == 0 {
            return wrong("retention_hours", "expected at least 1 hour".into());
        }
        let Limits { active, pending, sessions, connections, rate, burst, refresh_pause: _ } = self.limits;
        if active == 0 || pending == 0 || sessions == 0 || connections == 0 || burst == 0 {
            return wrong("limits", "expected at least 1 of each, but for `rate`".into());
        }
        if burst < rate {
            return wrong("limits", format!("burst = {burst}: expected at least `rate` = {rate}"));
        }
        if !self.manager_address.is_loopback() && self.auth.is_none() {
            let problem = format!(
                "{} is not loopback, so anybody who can reach it could sign: expected `auth = \"jwt\"`, or \
                 `auth = \"none\"` in so many words",
                self.manager_address
            );
            return wrong("manager_address", problem);
        }
        Ok(())
    }

    /// The files of the certificate that the manager's API is served with, and of its private key.
    pub fn manager_tls(&self) -> Option<(&Path, &Path)> {
        Some((self.manager_tls_cert_file.as_deref()?, self.manager_tls_key_file.as_deref()?))
    }

    /// [`Config::signing_timeout`] as a duration.
    pub fn signing_timeout(&self) -> Duration {
        Duration::from_secs(self.signing_timeout.into())
    }

    /// [`Limits::refresh_pause`] as a duration.
    pub fn refresh_pause(&self) -> Duration {
        Duration::from_secs(self.limits.refresh_pause.into())
    }

    /// [`Config::attempt_timeout`] as a duration.
    pub fn attempt_timeout(&self) -> Duration {
        Duration::from_secs(self.attempt_timeout.into())
    }
}

/// That a text can name a cluster or a key.
///
/// # Errors
/// Saying what was expected.
pub fn check_name(text: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    Err("expected 1 to 63 lower-case letters, digits or hyphens".into())
}

impl JwtConfig {
    fn check(&self, auth: Option<Auth>) -> Result<(), String> {
        if auth != Some(Auth::Jwt) {
            return match *self == Self::default() {
                true => Ok(()),
                false => Err("expected `auth = \"jwt\"` as well".into()),
            };
        }
        let url = match (&self.secret_file, &self.jwks_url) {
            (Some(_), None) => None,
            (None, Some(url)) => Some(url),
            _ => return Err("expected either `secret_file` or `jwks_url`".into()),
        };
        if let Some(url) = url
            && !is_key_set(url)
        {
            return Err(format!("jwks_url `{url}`: expected https://…, or http://… on loopback"));
        }
        if url.is_some() && self.issuer.is_none() {
            return Err("expected `issuer` together with `jwks_url`".into());
        }
        if url.is_none() && self.jwks_ca_file.is_some() {
            return Err("`jwks_ca_file`: expected `jwks_url` as well".into());
        }
        if [&self.issuer, &self.audience].into_iter().flatten().any(String::is_empty) {
            return Err("`issuer`, `audience`: expected some text".into());
        }
        Ok(())
    }
}

/// Whether keys that come from there are the provider's.
fn is_key_set(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    !host.is_empty() && (uri.scheme_str() == Some("https") || uri.scheme_str() == Some("http") && loopback)
}

/// Whether it can be a collector's address. There is no TLS to it: it is a neighbour, which sends on what it gets
/// as it was told.
fn is_collector(endpoint: &str) -> bool {
    let uri = endpoint.parse::<http::Uri>();
    uri.is_ok_and(|uri| {
        uri.scheme_str() == Some("http")
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    })
}

/// The last layer that sets a key.
fn source(layers: &[Layer], key: &str) -> String {
    let layer = layers.iter().rev().find(|layer| layer.table.contains_key(key));
    layer.map_or_else(|| "configuration (by default)".into(), |layer| layer.name.clone())
}

fn file_layer(path: &Path, hint: &'static str) -> Result<Layer, ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
        file: name.clone(),
        error,
        hint,
    })?;
    // Read twice: once as the whole configuration, for an error with line and column.
    let layer_error =
        |error: toml::de::Error| ConfigError::Layer { layer: name.clone(), problem: error.to_string() };
    toml::from_str::<Config>(&text).map_err(layer_error)?;
    let table = toml::from_str(&text).map_err(layer_error)?;
    Ok(Layer { name, table })
}

/// `TSS_LIMITS__ACTIVE=9` sets `active` in `limits`. A value is text where the key takes text, and
/// whatever it reads as in TOML elsewhere.
fn variable_layer(name: &str, path: &str, value: &str) -> Result<Layer, ConfigError> {
    let keys: Vec<String> = path.split("__").map(str::to_ascii_lowercase).collect();
    let nest = |value: Value| {
        keys.iter().rev().fold(value, |inner, key| Value::Table(Table::from_iter([(key.clone(), inner)])))
    };
    let text = nest(Value::String(value.to_owned()));
    let candidates = value.parse::<Value>().ok().map(nest).into_iter().chain([text.clone()]);
    let mut problem = String::new();
    for candidate in candidates.collect::<Vec<_>>().into_iter().rev() {
        match (Config::deserialize(candidate.clone()), candidate) {
            (Ok(_), Value::Table(table)) => return Ok(Layer { name: name.to_owned(), table }),
            (Ok(_), _) => problem = "expected the name of a key after TSS_".into(),
            (Err(error), _) => problem = format!("`{}`: {}", keys.join("."), error.message()),
        }
    }
    Err(ConfigError::Layer { layer: name.to_owned(), problem })
}

fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => merge(inner, value),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(default: &str, development: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("default.toml"), default).unwrap();
        std::fs::write(dir.path().join("development.toml"), development).unwrap();
        let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Config::from_layers(dir.path(), env).map_err(|error| error.to_string())
    }

    #[test]
    fn a_later_layer_goes_before_an_earlier_one_key_by_key() {
        let config = load(
            "manager_port = 1\nthreshold = 2\n[limits]\nactive = 1\npending = 2",
            "manager_port = 2\n[limits]\nactive = 3",
            &[
                ("TSS_LIMITS__ACTIVE", "4"),
                ("TSS_CLUSTER", "prod"),
                ("HOME", "/"),
                ("TSS_MANAGER", "http://127.0.0.1:8080"),
                ("TSS_MANAGER_CA", "ca.crt"),
                ("TSS_TOKEN_FILE", "token"),
                ("TSS_MONGODB_DATABASE", "12"),
            ],
        )
        .unwrap();
        assert_eq!((config.manager_port, config.threshold), (2, 2));
        assert_eq!((config.limits.active, config.limits.pending), (4, 2));
        assert_eq!((config.cluster.as_str(), config.mongodb_database.as_str()), ("prod", "12"));
    }

    #[test]
    fn the_first_networks_example_is_read_as_it_was_written() {
        let example = r#"
            mongodb_uri = "mongodb://localhost:27017"
            rabbitmq_uri = "amqp://localhost:5672"
            manager_url = "http://127.0.0.1"
            manager_port = 8080
            signing_timeout = 30
            threshold = 2
            total_parties = 3
            path = "0/1/2"
            signer1_key_file = "a.store"
            signer2_key_file = "signer2.store"
            signer3_key_file = "signer3.store"
        "#;
        let config = load(example, "", &[]).unwrap();
        assert_eq!(config.path.steps(), [0, 1, 2]);
        let files: Vec<String> = config.key_files().values().map(|file| file.display().to_string()).collect();
        assert_eq!(files, ["a.store", "signer2.store", "signer3.store"]);
    }

    #[test]
    fn an_error_names_the_key_the_file_and_what_was_expected() {
        for (default, development, env, parts) in [
            ("manger_port = 1", "", &[][..], ["default.toml", "manger_port", "manager_port"]),
            ("", "manager_port = \"x\"", &[], ["development.toml", "manager_port", "u16"]),
            ("", "threshold = 4", &[], ["development.toml", "threshold", "2 to total_parties = 3"]),
            ("total_parties = 17", "", &[], ["default.toml", "total_parties", "2 to 16"]),
            ("path = \"0'/1\"", "", &[], ["default.toml", "path", "hardened"]),
            ("engine = \"gg18\"", "", &[], ["default.toml", "engine", "dkls23"]),
            ("engine = \"frost-ed25519\"", "", &[], ["default.toml", "engine", "does not offer"]),
            ("[limits]\nactve = 1", "", &[], ["default.toml", "actve", "active"]),
            ("", "", &[("TSS_MANAGER_PORT", "70000")], ["TSS_MANAGER_PORT", "manager_port", "u16"]),
            ("", "", &[("TSS_MANAGERPORT", "1")], ["TSS_MANAGERPORT", "managerport", "manager_port"]),
            ("", "", &[("TSS_LIMITS__X", "1")], ["TSS_LIMITS__X", "limits.x", "active"]),
            ("", "", &[("TSS_CLUSTER", "A b")], ["TSS_CLUSTER", "cluster", "lower-case"]),
            ("", "", &[("TSS_RABBITMQ_URI", "http://x")], ["TSS_RABBITMQ_URI", "rabbitmq_uri", "amqp://"]),
            ("", "manager_address = \"0.0.0.0\"", &[], ["development.toml", "manager_address", "auth"]),
            (
                "",
                "",
                &[("TSS_MANAGER_TLS_KEY_FILE", "x")],
                ["TSS_MANAGER_TLS_KEY_FILE", "expected", "manager_tls_cert_file"],
            ),
            (
                "manager_tls_cert_file = \"x\"",
                "",
                &[],
                ["default.toml", "`manager_tls_cert_file`", "manager_tls_key_file"],
            ),
            (
                "",
                "",
                &[("TSS_MANAGER_TLS_CLIENT_CA_FILE", "x")],
                ["TSS_MANAGER_TLS_CLIENT_CA_FILE", "expected", "manager_tls_cert_file"],
            ),
            ("auth = \"jwt\"", "", &[], ["`jwt`", "secret_file", "jwks_url"]),
            ("[jwt]\nsecret_file = \"x\"", "", &[], ["default.toml", "`jwt`", "auth = \"jwt\""]),
            (
                "auth = \"jwt\"",
                "[jwt]\nsecret_file = \"x\"\njwks_url = \"https://x\"",
                &[],
                ["development.toml", "`jwt`", "either"],
            ),
            (
                "auth = \"jwt\"",
                "[jwt]\njwks_url = \"http://idp/jwks\"",
                &[],
                ["development.toml", "jwks_url `http://idp/jwks`", "loopback"],
            ),
            (
                "auth = \"jwt\"",
                "",
                &[("TSS_JWT__JWKS_URL", "https://idp/jwks")],
                ["TSS_JWT__JWKS_URL", "`issuer`", "expected"],
            ),
            ("", "limits.burst = 1", &[], ["development.toml", "burst = 1", "`rate` = 1000"]),
            ("", "", &[("TSS_TRACE__SAMPLE_RATIO", "1.5")], ["TSS_TRACE__SAMPLE_RATIO", "1.5", "0 to 1"]),
            ("", "", &[("TSS_TRACE__SAMPLE_RATIO", "nan")], ["TSS_TRACE__SAMPLE_RATIO", "NaN", "0 to 1"]),
            (
                "",
                "[trace]\notlp_endpoint = \"https://x\"",
                &[],
                ["development.toml", "otlp_endpoint", "http://host:port"],
            ),
            (
                "",
                "",
                &[("TSS_TRACE__OTLP_ENDPOINT", "collector:4318")],
                ["TSS_TRACE__OTLP", "trace", "http://host"],
            ),
            (
                "",
                "",
                &[("TSS_MANAGER_METRICS_PORT", "8080")],
                ["TSS_MANAGER_METRICS_PORT", "another port", "manager_port"],
            ),
            (
                "",
                "manager_metrics_port = 0",
                &[],
                ["development.toml", "manager_metrics_port", "another port"],
            ),
            ("", "", &[("RUN_MODE", "staging")], ["staging.toml", "No such file", "RUN_MODE"]),
        ] {
            let error = load(default, development, env).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "`{part}` is missing in: {error}");
            }
        }
    }

    #[test]
    fn traces_are_off_unless_a_collector_is_named() {
        assert_eq!(
            load("", "", &[]).unwrap().trace,
            TraceConfig { otlp_endpoint: None, sample_ratio: Ratio::ALL }
        );
        for (ratio, expected) in [("0", 0.0), ("1", 1.0), ("0.25", 0.25)] {
            let env =
                [("TSS_TRACE__OTLP_ENDPOINT", "http://otel.ns:4318"), ("TSS_TRACE__SAMPLE_RATIO", ratio)];
            let trace = load("", "", &env).unwrap().trace;
            assert_eq!(
                (trace.otlp_endpoint.as_deref(), trace.sample_ratio.get()),
                (Some(env[0].1), expected)
            );
        }
    }

    #[test]
    fn a_secret_can_come_from_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("uri");
        std::fs::write(&file, "amqp://user:hunter2@broker\n").unwrap();
        let config = load("", "", &[("TSS_RABBITMQ_URI_FILE", file.to_str().unwrap())]).unwrap();
        assert_eq!(config.rabbitmq_uri.expose(), "amqp://user:hunter2@broker");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
