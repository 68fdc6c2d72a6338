//! The certificate that the API is served with. It is read again when its files change, as cert-manager and Kubernetes
//! change them; while what they hold is of no use, the certificate before stays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use axum_server::tls_rustls::RustlsConfig;
use prometheus::IntGauge;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::time::sleep;
use tss_common::config::Config;
use x509_parser::parse_x509_certificate;
use zeroize::Zeroizing;

use crate::file;

/// How often the files are looked at.
const ROUND: Duration = Duration::from_secs(5);

/// A certificate in two files.
pub(crate) struct Certificate {
    files: Files,
    /// What they held when they were read last, of use or not.
    seen: Pem,
    served: RustlsConfig,
    expiry: IntGauge,
}

struct Files {
    chain: PathBuf,
    key: PathBuf,
    clients: Option<PathBuf>,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Pem {
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    /// The authorities of clients.
    clients: Option<Vec<u8>>,
}

/// What is made of it.
struct Usable {
    config: Arc<ServerConfig>,
    /// When the certificate expires, in seconds since 1970.
    expires: i64,
}

impl Certificate {
    /// The certificate that the configuration names, if it names one. `expiry` shows when it expires.
    ///
    /// # Errors
    /// When it is of no use, and why.
    pub(crate) async fn open(config: &Config, expiry: IntGauge) -> anyhow::Result<Option<Self>> {
        let Some((chain, key)) = config.manager_tls() else { return Ok(None) };
        let clients = config.manager_tls_client_ca_file.clone();
        let files = Files { chain: chain.to_owned(), key: key.to_owned(), clients };
        let seen = files.read().await?;
        let Usable { config, expires } = files.usable(&seen)?;
        expiry.set(expires);
        Ok(Some(Self { files, seen, served: RustlsConfig::from_config(config), expiry }))
    }

    /// What a server is given. It follows what [`Certificate::follow`] finds.
    pub(crate) fn served(&self) -> RustlsConfig {
        self.served.clone()
    }

    /// Follows the files for ever.
    pub(crate) async fn follow(mut self) {
        loop {
            sleep(ROUND).await;
            match self.look().await {
                Ok(false) => {}
                Ok(true) => tracing::info!(expires = self.expiry.get(), "the API has another certificate"),
                Err(error) => tracing::warn!(
                    error = format!("{error:#}"),
                    "the new certificate of the API is of no use; the one before stays"
                ),
            }
        }
    }

    /// Whether there is another one, which is served from now on. An error is told once.
    async fn look(&mut self) -> anyhow::Result<bool> {
        // The two may be exchanged one after the other: what does not fit is seen again when the second has changed.
        let pem = self.files.read().await?;
        if pem == self.seen {
            return Ok(false);
        }
        let usable = self.files.usable(&pem);
        self.seen = pem;
        let Usable { config, expires } = usable?;
        self.served.reload_from_config(config);
        self.expiry.set(expires);
        Ok(true)
    }
}

impl Files {
    async fn read(&self) -> anyhow::Result<Pem> {
        let chain = file::read(&self.chain).await.context("`manager_tls_cert_file`")?;
        let key = Zeroizing::new(file::read(&self.key).await.context("`manager_tls_key_file`")?);
        let clients = match &self.clients {
            None => None,
            Some(path) => Some(file::read(path).await.context("`manager_tls_client_ca_file`")?),
        };
        Ok(Pem { chain, key, clients })
    }

    fn usable(&self, pem: &Pem) -> anyhow::Result<Usable> {
        let chain = || format!("`manager_tls_cert_file`: {}", self.chain.display());
        let certificates: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&pem.chain).collect::<Result<_, _>>().with_context(chain)?;
        let first = certificates
            .first()
            .ok_or_else(|| anyhow!("expected a certificate and its chain in PEM"))
            .with_context(chain)?;
        let expires = parse_x509_certificate(first)
            .map(|(_, certificate)| certificate.validity().not_after.timestamp())
            .map_err(|error| anyhow!("the first certificate cannot be read: {error}"))
            .with_context(chain)?;
        let key = || format!("`manager_tls_key_file`: {}", self.key.display());
        // The parser's own error may quote what it has read.
        let private = PrivateKeyDer::from_pem_slice(&pem.key)
            .map_err(|_| anyhow!("expected an unencrypted private key in PEM: PKCS #8, PKCS #1 or SEC1"))
            .with_context(key)?;
        let builder = ServerConfig::builder();
        let builder = match self.client_verifier(pem)? {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder
            .with_single_cert(certificates, private)
            .map_err(|error| anyhow!("it does not go with the certificate: {error}"))
            .with_context(key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Usable { config: Arc::new(config), expires })
    }

    /// Who says which clients may connect; `None` if all may.
    fn client_verifier(&self, pem: &Pem) -> anyhow::Result<Option<Arc<dyn ClientCertVerifier>>> {
        let (Some(path), Some(pem)) = (&self.clients, &pem.clients) else { return Ok(None) };
        let name = || format!("`manager_tls_client_ca_file`: {}", path.display());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.with_context(name)?).with_context(name)?;
        }
        if roots.is_empty() {
            return Err(anyhow!("expected the certificates of authorities in PEM")).with_context(name);
        }
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().with_context(name)?;
        Ok(Some(verifier))
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tempfile::TempDir;

    use super::*;

    struct Folder(TempDir);

    impl Folder {
        fn new() -> Self {
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            Self(tempfile::tempdir().unwrap())
        }

        fn config(&self) -> Config {
            Config {
                manager_tls_cert_file: Some(self.0.path().join("tls.crt")),
                manager_tls_key_file: Some(self.0.path().join("tls.key")),
                ..Config::default()
            }
        }

        fn write(&self, certificate: &str, key: &str) {
            std::fs::write(self.0.path().join("tls.crt"), certificate).unwrap();
            std::fs::write(self.0.path().join("tls.key"), key).unwrap();
        }

        async fn open(&self) -> anyhow::Result<Certificate> {
            let expiry = IntGauge::new("expiry", "expiry").unwrap();
            Certificate::open(&self.config(), expiry)
                .await
                .map(|certificate| certificate.expect("it is named"))
        }
    }

    fn pair() -> (String, String) {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".into()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    fn now() -> i64 {
        jiff::Timestamp::now().as_second()
    }

    #[tokio::test]
    async fn a_new_pair_takes_the_place_of_the_old_one_and_half_a_pair_does_not() {
        let folder = Folder::new();
        let ((first, first_key), (second, second_key)) = (pair(), pair());
        folder.write(&first, &first_key);
        let mut certificate = folder.open().await.unwrap();
        assert!(certificate.expiry.get() > now());
        let served = certificate.served();
        let before = served.get_inner();
        assert!(!certificate.look().await.unwrap());
        folder.write(&second, &first_key);
        let error = certificate.look().await.unwrap_err();
        assert!(format!("{error:#}").contains("does not go with the certificate"), "{error:#}");
        assert!(Arc::ptr_eq(&before, &served.get_inner()));
        assert!(!certificate.look().await.unwrap(), "it is told once");
        folder.write(&second, &second_key);
        assert!(certificate.look().await.unwrap());
        assert!(!Arc::ptr_eq(&before, &served.get_inner()));
    }

    #[tokio::test]
    async fn what_is_of_no_use_is_refused_with_what_was_expected_and_shows_no_key() {
        let folder = Folder::new();
        let (chain, key) = pair();
        let (other, _) = pair();
        let body = key.lines().nth(1).unwrap().to_owned();
        let garbled = key.replace(&body, &format!("!{}", &body[1..]));
        let long = " ".repeat(2 << 20);
        for (chain, key, expected) in [
            ("", key.as_str(), ["tls.crt", "expected a certificate"]),
            (key.as_str(), key.as_str(), ["tls.crt", "expected a certificate"]),
            (&chain, "", ["tls.key", "expected an unencrypted private key"]),
            (&chain, &chain, ["tls.key", "expected an unencrypted private key"]),
            (&chain, &garbled, ["tls.key", "expected an unencrypted private key"]),
            (&other, &key, ["tls.key", "does not go with the certificate"]),
            (&long, &key, ["tls.crt", "expected at most 1048576"]),
        ] {
            folder.write(chain, key);
            let error = folder.open().await.map(drop).unwrap_err();
            let text = format!("{error:#} {error:?}");
            for part in expected {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert!(!text.contains(&body[1..20]), "{text}");
        }
        folder.write(&chain, &key);
        std::fs::remove_file(folder.0.path().join("tls.key")).unwrap();
        let error = folder.open().await.map(drop).unwrap_err();
        assert!(format!("{error:#}").contains("`manager_tls_key_file`: "), "{error:#}");
    }
}
