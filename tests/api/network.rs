//! A network to ask.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tss_common::bus::memory::MemoryBus;
use tss_common::config::Config;
use tss_common::identity::Roster;
use tss_manager::{Manager, ManagerOptions, store};
use tssctl::network::Network;

use crate::devnet;
use crate::tokens::ask_for_tokens;

/// How long an answer may take. Test programs share two cores.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// A network with a client.
pub(crate) struct Api {
    url: String,
    network: Option<Network>,
    http: reqwest::Client,
    _folder: TempDir,
}

impl Api {
    /// Starts a network with a new key.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// As [`Api::start`], that asks for tokens.
    pub(crate) async fn with_tokens() -> Self {
        Self::start_with(ask_for_tokens).await
    }

    /// As [`Api::start`], with a configuration that is changed, for which there is a folder.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = devnet::config(folder.path());
        change(&mut config, folder.path());
        let network = devnet::start(config).await;
        Self { url: network.url(), network: Some(network), http: client(), _folder: folder }
    }

    /// Starts a manager alone, that waits for its signers; it ends with the test.
    pub(crate) async fn without_signers() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = devnet::config(folder.path());
        let options = ManagerOptions {
            store: store::open(&config).unwrap(),
            roster: Roster::of(&tssctl::keygen::identities(devnet::threshold(&config))).unwrap(),
            config,
            bus: MemoryBus::new(),
            registry: prometheus::Registry::new(),
        };
        let manager = Manager::start(options).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { manager.serve(listener, None, CancellationToken::new()).await });
        Self { url, network: None, http: client(), _folder: folder }
    }

    /// What is answered to a method and path, to whoever shows this token.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> reqwest::Response {
        let method = method.to_uppercase().parse().unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request.send().await.unwrap()
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What is answered to GET.
    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    /// What is answered to JSON that is posted.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> reqwest::Response {
        self.http.post(format!("{}{path}", self.url)).json(body).send().await.unwrap()
    }

    /// As [`Api::post`], under an idempotency key.
    pub(crate) async fn ask_as(&self, path: &str, key: &str, body: &Value) -> reqwest::Response {
        let request = self.http.post(format!("{}{path}", self.url)).header("idempotency-key", key);
        request.json(body).send().await.unwrap()
    }

    /// The document, as it is served.
    pub(crate) async fn document(&self) -> Value {
        self.get("/openapi.json").await.json().await.unwrap()
    }

    /// Stops it.
    pub(crate) async fn stop(self) {
        if let Some(network) = self.network {
            network.stop().await.unwrap();
        }
    }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(SOON).build().unwrap()
}
