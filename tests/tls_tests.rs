//! The manager's API over TLS, as `tssctl` and the operator use it: real processes, real certificates.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::Value;
use tss_operator::crd::Scheme;
use tss_operator::signing_request::manager::{Manager, Managers};
use uuid::Uuid;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod installation;

use installation::{Installation, Process, START};

/// Somebody who vouches for managers.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    /// A file with its certificate.
    fn file(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.0.pem()).unwrap();
        path
    }

    /// Makes a certificate for a name and puts it where the manager looks: the key first, as nobody promises an order.
    fn vouch(&self, folder: &Path, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
        std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    }
}

/// A network whose manager has a certificate.
struct Network {
    installation: Installation,
    parts: Vec<Process>,
    port: String,
}

impl Network {
    async fn start(authority: &Authority, name: &str) -> Self {
        Self::start_with(authority, name, |_| {}).await
    }

    async fn start_with(authority: &Authority, name: &str, change: impl FnOnce(&mut Installation)) -> Self {
        let mut installation = Installation::new();
        installation.keygen();
        authority.vouch(installation.folder(), name);
        installation.set("TSS_MANAGER_TLS_CERT_FILE", "tls.crt");
        installation.set("TSS_MANAGER_TLS_KEY_FILE", "tls.key");
        change(&mut installation);
        let port = installation.url().rsplit(':').next().unwrap().to_owned();
        let mut parts = vec![installation.start("manager", &[])];
        parts.extend((1..=3).map(|index| installation.start("signer", &["--index", &index.to_string()])));
        Self { installation, parts, port }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Has a text signed with `tssctl`; yields what it says.
    fn sign(&self, url: &str, authority: &Path) -> Result<Value, String> {
        let authority = authority.to_str().unwrap();
        let arguments = ["sign", "hello", "--manager", url, "--manager-ca", authority];
        let output = self.installation.run("tssctl", &arguments);
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap());
        }
        Err(String::from_utf8(output.stderr).unwrap())
    }

    /// As [`Network::sign`], until it goes well.
    fn until_it_signs(&self, authority: &Path) -> Value {
        let began = Instant::now();
        loop {
            match self.sign(&self.url(), authority) {
                Ok(signed) => return signed,
                Err(error) => {
                    let log = self.parts[0].log();
                    assert!(began.elapsed() < START, "not within {START:?}: {error}\n{log}");
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The manager as the operator asks it.
    fn managers(&self, authority: Option<&Path>) -> Managers {
        Managers::new(Some(&format!("{{scheme}}://localhost:{}", self.port)), authority).unwrap()
    }

    async fn clean_up(self) {
        drop(self.parts);
        self.installation.clean_up().await;
    }
}

fn over_tls(managers: &Managers) -> Manager {
    managers.of(Scheme::Https, "wallets", "demo").unwrap()
}

#[tokio::test]
async fn only_clients_that_an_authority_vouches_for_can_connect_where_that_is_asked() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let network = Network::start_with(&authority, "localhost", |installation| {
        authority.file(installation.folder(), "clients.crt");
        installation.set("TSS_MANAGER_TLS_CLIENT_CA_FILE", "clients.crt");
    })
    .await;
    let folder = network.installation.folder().to_owned();
    let right = authority.file(&folder, "ca.crt");
    let client = |authority: &Authority, name: &str| {
        let own = folder.join(name);
        std::fs::create_dir(&own).unwrap();
        authority.vouch(&own, "client");
        std::fs::set_permissions(own.join("tls.key"), Permissions::from_mode(0o600)).unwrap();
        let path = |file: &str| own.join(file).to_str().unwrap().to_owned();
        ["--client-cert".to_owned(), path("tls.crt"), "--client-key".to_owned(), path("tls.key")]
    };
    let (known, unknown) = (client(&authority, "known"), client(&stranger, "unknown"));
    let began = Instant::now();
    let ask = |more: &[String]| {
        let authority = right.to_str().unwrap();
        let url = network.url();
        let mut arguments = vec!["health", "--manager", &url, "--manager-ca", authority];
        arguments.extend(more.iter().map(String::as_str));
        network.installation.run("tssctl", &arguments)
    };
    // 5 is a manager that cannot be reached, in the words of tssctl; 7 one that is not ready.
    loop {
        let output = ask(&known);
        if [Some(0), Some(7)].contains(&output.status.code()) {
            break;
        }
        assert!(began.elapsed() < START, "{output:?}\n{}", network.parts[0].log());
        std::thread::sleep(Duration::from_millis(200));
    }
    for none in [&[][..], &unknown[..]] {
        let output = ask(none);
        assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    }
    network.clean_up().await;
}

#[tokio::test]
async fn only_a_manager_that_the_right_authority_vouches_for_is_believed() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let network = Network::start(&authority, "localhost").await;
    let folder = network.installation.folder().to_owned();
    let (right, wrong) = (authority.file(&folder, "ca.crt"), stranger.file(&folder, "other.crt"));
    let signed = network.until_it_signs(&right);
    assert_eq!(signed["status"], "Completed", "{signed}");
    let id: Uuid = signed["request_id"].as_str().unwrap().parse().unwrap();

    // Another authority, or another name than the certificate's.
    let error = network.sign(&network.url(), &wrong).unwrap_err();
    assert!(error.contains("invalid peer certificate"), "{error}");
    let error = network.sign(&format!("https://127.0.0.1:{}", network.port), &right).unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    // Nothing is served in the clear.
    network.sign(&format!("http://localhost:{}", network.port), &right).unwrap_err();
    let error = network.sign(&network.url(), &folder.join("tls.key")).unwrap_err();
    assert!(error.contains("tls.key: expected certificates in PEM"), "{error}");

    // The operator, which believes what a file says now.
    let file = folder.join("bundle.crt");
    let managers = network.managers(Some(&file));
    let cause = managers.of(Scheme::Https, "wallets", "demo").unwrap_err();
    assert_eq!(cause.reason, "ManagerUnreachable");
    assert!(
        cause.message.contains("the authorities in") && cause.message.contains("bundle.crt"),
        "{cause:?}"
    );
    std::fs::copy(&wrong, &file).unwrap();
    let cause = over_tls(&managers).attempts(id).await.unwrap_err();
    assert!(cause.message.contains("invalid peer certificate"), "{cause:?}");
    std::fs::copy(&right, &file).unwrap();
    assert_eq!(over_tls(&managers).attempts(id).await.unwrap().request_id, id);
    let cause = over_tls(&network.managers(None)).attempts(id).await.unwrap_err();
    assert_eq!(cause.reason, "ManagerUnreachable");
    assert!(cause.message.contains("invalid peer certificate"), "{cause:?}");
    let plain = managers.of(Scheme::Http, "wallets", "demo").unwrap();
    plain.attempts(id).await.unwrap_err();
    network.clean_up().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_without_a_restart() {
    let (before, after) = (Authority::new(), Authority::new());
    let network = Network::start(&before, "localhost").await;
    let folder = network.installation.folder().to_owned();
    let (old, new) = (before.file(&folder, "before.crt"), after.file(&folder, "after.crt"));
    network.until_it_signs(&old);
    // Of no use: the one before stays.
    std::fs::write(folder.join("tls.crt"), "-----BEGIN CERTIFICATE-----").unwrap();
    let began = Instant::now();
    while !network.parts[0].log().contains("the one before stays") {
        assert!(began.elapsed() < START, "it was not looked at\n{}", network.parts[0].log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    network.sign(&network.url(), &old).unwrap();
    // A connection that is open goes on.
    let managers = network.managers(Some(&old));
    let open = over_tls(&managers);
    let id = network.until_it_signs(&old)["request_id"].as_str().unwrap().parse().unwrap();
    open.attempts(id).await.unwrap();
    after.vouch(&folder, "localhost");
    network.until_it_signs(&new);
    network.sign(&network.url(), &old).unwrap_err();
    open.attempts(id).await.unwrap();
    network.clean_up().await;
}

#[tokio::test]
async fn a_certificate_that_is_of_no_use_stops_the_start_and_is_named() {
    let mut installation = Installation::new();
    installation.keygen();
    installation.set("TSS_MANAGER_TLS_CERT_FILE", "roster.toml");
    installation.set("TSS_MANAGER_TLS_KEY_FILE", "missing.key");
    let output = installation.run("manager", &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(error.contains("error: `manager_tls_key_file`: missing.key"), "{error}");
    std::fs::write(installation.folder().join("missing.key"), "").unwrap();
    let error = String::from_utf8(installation.run("manager", &[]).stderr).unwrap();
    assert!(error.contains("error: `manager_tls_cert_file`: roster.toml: expected a certificate"), "{error}");
    installation.clean_up().await;
}
