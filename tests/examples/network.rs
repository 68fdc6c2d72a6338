//! A network that signs for whoever has a token.

use std::time::Duration;

use jiff::Timestamp;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tss_common::config::{Auth, Config, JwtConfig, StoreKind};
use tss_mpc::{Dkls23, Threshold};
use tssctl::network::{Network, NetworkOptions};

/// What tokens are made with.
const SECRET: &str = "a secret of the tests, which is long enough";

/// How long an answer may take. Test programs share two cores.
const SOON: Duration = Duration::from_secs(60);

/// The network, and how to ask it.
pub(crate) struct Api {
    network: Network,
    url: String,
    cluster: String,
    _folder: TempDir,
}

/// A key, as `GET /keys` tells it.
pub(crate) struct Key {
    /// In compressed SEC1 form.
    pub(crate) public_key: Vec<u8>,
    /// The address on Ethereum.
    pub(crate) ethereum: String,
}

impl Api {
    /// Starts a network with a new key.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let secret_file = folder.path().join("secret");
        std::fs::write(&secret_file, SECRET).unwrap();
        let config = Config {
            manager_port: 0,
            data_dir: folder.path().to_owned(),
            store: StoreKind::Embedded,
            auth: Some(Auth::Jwt),
            jwt: JwtConfig { secret_file: Some(secret_file), ..JwtConfig::default() },
            ..Config::default()
        };
        let threshold = Threshold::new(config.threshold, config.total_parties).unwrap();
        let cluster = config.cluster.clone();
        let options = NetworkOptions {
            shares: tssctl::keygen::generate(&Dkls23, &config.cluster, &config.key, threshold).unwrap(),
            identities: tssctl::keygen::identities(threshold),
            config,
            rabbitmq_uri: None,
            mongodb_uri: None,
        };
        let network = Network::start(options).await.unwrap();
        Self { url: network.url(), network, cluster, _folder: folder }
    }

    /// Where the manager is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A token with this scope, for one path.
    pub(crate) fn token(&self, scope: &str, path: &str) -> String {
        let expiry = Timestamp::now().as_second() + 3600;
        let claims = json!({
            "sub": "example", "aud": self.cluster, "exp": expiry, "scope": scope, "tss_paths": [path],
        });
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes()))
            .unwrap()
    }

    /// The key at a path.
    pub(crate) async fn key(&self, path: &str) -> Key {
        let url = format!("{}/keys?path={path}", self.url);
        let asked = client().get(url).bearer_auth(self.token("read", path)).send().await.unwrap();
        let told: Value = asked.json().await.unwrap();
        let derived = &told["keys"][0]["derived"];
        Key {
            public_key: hex::decode(derived["public_key"].as_str().unwrap()).unwrap(),
            ethereum: derived["addresses"]["ethereum"].as_str().unwrap().to_owned(),
        }
    }

    /// Stops it.
    pub(crate) async fn stop(self) {
        self.network.stop().await.unwrap();
    }
}

/// What asks a manager.
pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(SOON).build().unwrap()
}
