//! Where the manager is, whom to believe, who asks: flags go before variables, and those before the profile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tss_client::{Client, ClientBuilder};
use tssctl::private;

use super::exit::Failure;
use super::profile::{Profile, ProfilesFile};

/// Where a manager is when nothing says so.
const MANAGER: &str = "http://127.0.0.1:8080";

/// The longest time for tries, in seconds.
const MAX_RETRY: u64 = 3600;

#[derive(Args)]
#[command(next_help_heading = "Manager")]
pub(crate) struct ManagerArguments {
    /// Where the manager is; http://127.0.0.1:8080 if neither this nor the profile says so.
    #[arg(long, env = "TSS_MANAGER", value_name = "URL")]
    manager: Option<String>,
    /// A file with the certificates, in PEM, of the authorities that may vouch for a manager at https://…; the system's
    /// own may without it.
    #[arg(long, env = "TSS_MANAGER_CA", value_name = "FILE")]
    manager_ca: Option<PathBuf>,
    /// A file with the token that says who asks; instead of the variables TSS_TOKEN (the token itself) and
    /// TSS_TOKEN_FILE.
    // No `env`: TSS_TOKEN goes before TSS_TOKEN_FILE.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A file with the certificate, in PEM, that shows who asks (mutual TLS).
    #[arg(long, env = "TSS_CLIENT_CERT", value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// A file with the key of that certificate, in PEM.
    #[arg(long, env = "TSS_CLIENT_KEY", value_name = "FILE")]
    client_key: Option<PathBuf>,
    /// For how many seconds to ask again when the manager cannot be reached or is busy; 0 asks once.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=MAX_RETRY))]
    retry_for: u64,
    /// The profile that says what the flags and variables do not.
    #[arg(long, env = "TSS_PROFILE", value_name = "NAME")]
    profile: Option<String>,
    #[command(flatten)]
    profiles: ProfilesFile,
}

/// A client, and what its profile says of what is asked.
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) profile: Profile,
}

impl ManagerArguments {
    /// Reads the profile and makes the client.
    pub(crate) fn connect(&self) -> anyhow::Result<Connection> {
        let profile = self.profile()?;
        let manager = self.manager.as_ref().or(profile.manager.as_ref());
        let mut builder = Client::builder(manager.map_or(MANAGER, String::as_str))
            .retry_for(Duration::from_secs(self.retry_for));
        if let Some(file) = self.manager_ca.as_ref().or(profile.manager_ca.as_ref()) {
            builder = builder.authorities(file);
        }
        builder = match self.token(&profile) {
            Some(Token::Text(text)) => builder.token(text),
            Some(Token::File(file)) => {
                ensure_private("token", &file)?;
                builder.token_file(file)
            }
            None => builder,
        };
        let client = self.identify(builder, &profile)?.build()?;
        Ok(Connection { client, profile })
    }

    pub(crate) fn profile(&self) -> anyhow::Result<Profile> {
        self.profiles.load()?.choose(self.profile.as_deref())
    }

    /// The token that would be sent.
    pub(crate) fn token(&self, profile: &Profile) -> Option<Token> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let file = |file: &PathBuf| Token::File(file.clone());
        self.token_file
            .as_ref()
            .map(file)
            // What is no text is no token either, and is refused as one.
            .or_else(|| variable("TSS_TOKEN").map(|token| Token::Text(token.to_string_lossy().into_owned())))
            .or_else(|| variable("TSS_TOKEN_FILE").map(|name| Token::File(name.into())))
            .or_else(|| profile.token_file.as_ref().map(file))
    }

    fn identify(&self, builder: ClientBuilder, profile: &Profile) -> anyhow::Result<ClientBuilder> {
        let certificate = self.client_cert.as_ref().or(profile.client_cert.as_ref());
        let key = self.client_key.as_ref().or(profile.client_key.as_ref());
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                ensure_private("client key", key)?;
                Ok(builder.identity(certificate, key))
            }
            (None, None) => Ok(builder),
            _ => Err(Failure::usage("--client-cert and --client-key: expected both or neither")),
        }
    }
}

/// Where a token comes from.
pub(crate) enum Token {
    /// The token itself.
    Text(String),
    /// The file that has it.
    File(PathBuf),
}

/// That only its owner and group can read a file, or change it.
pub(crate) fn ensure_private(what: &str, file: &Path) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(file).map_err(|error| error.to_string());
    metadata
        .and_then(|metadata| private::check(&metadata))
        .map_err(|problem| Failure::usage(format!("{what} file {}: {problem}", file.display())))
}
