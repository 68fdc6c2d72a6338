//! A network that signs for whoever has a token.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tssctl::network::Network;

use crate::devnet;
use crate::tokens::{ask_for_tokens, claims, token};

/// How long an answer may take. Test programs share two cores.
const SOON: Duration = Duration::from_secs(60);

/// The network, and how to ask it.
pub(crate) struct Api {
    network: Network,
    url: String,
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
        let mut config = devnet::config(folder.path());
        ask_for_tokens(&mut config, folder.path());
        let network = devnet::start(config).await;
        Self { url: network.url(), network, _folder: folder }
    }

    /// Where the manager is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A token with this scope, for one path.
    pub(crate) fn token_for(&self, scope: &str, path: &str) -> String {
        let mut claims = claims("example", scope);
        claims["tss_paths"] = json!([path]);
        token(&claims)
    }

    /// The key at a path.
    pub(crate) async fn key(&self, path: &str) -> Key {
        let url = format!("{}/keys?path={path}", self.url);
        let asked = client().get(url).bearer_auth(self.token_for("read", path)).send().await.unwrap();
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
