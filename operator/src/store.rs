//! `operator store`: the last container of a Job that makes a key. It puts what the Job's other
//! containers wrote into a Secret, and then says so.
//!
//! Its ServiceAccount may create Secrets and nothing else: it cannot even read the one that it made. So
//! whether an earlier run of the Job has stored its share is seen from a mount of that Secret, which is
//! optional: the file of `--unless` is there, or it is not.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::http::header::{ACCEPT, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams, Request};
use kube::{Client, Resource as _};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};
use tss_common::backoff::Backoff;
use zeroize::Zeroizing;

use crate::context::FIELD_MANAGER;

/// What Kubernetes keeps of a container's last words.
const MAX_REPORT: usize = 4096;
/// What Kubernetes keeps in a Secret.
const MAX_SECRET: usize = 1024 * 1024;
/// The API server has so long to answer one request, and all of them.
const PATIENCE: Duration = Duration::from_secs(10);
const ALL_PATIENCE: Duration = Duration::from_secs(60);

/// What is stored, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreOptions {
    /// The Secret to make, in this Pod's namespace. Without one there is only a report.
    #[arg(long, requires = "entries")]
    pub secret: Option<String>,
    /// An entry of the Secret, and the file that holds it.
    #[arg(id = "entries", long = "entry", value_name = "KEY=FILE", requires = "secret", value_parser = pair)]
    pub entries: Vec<(String, String)>,
    /// A label of the Secret.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// The Job with which the Secret goes. Without one it stays until someone deletes it.
    #[arg(long, requires = "owner_uid")]
    pub owner_job: Option<String>,
    /// The Job's uid.
    #[arg(long, requires = "owner_job")]
    pub owner_uid: Option<String>,
    /// Nothing is made when this file is there: an earlier run of the Job has made it.
    #[arg(long, value_name = "FILE")]
    pub unless: Option<PathBuf>,
    /// What the container says at its end.
    #[arg(long, value_name = "FILE")]
    pub report: PathBuf,
    /// Where it says so.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("'{text}' is not KEY=VALUE")),
    }
}

/// Makes the Secret, unless an earlier run has made it, and then reports.
///
/// # Errors
/// When a file is not as expected, or the API server does not make the Secret. Nothing has been reported
/// then.
pub async fn store(client: &Client, options: &StoreOptions) -> anyhow::Result<()> {
    // First what can be wrong without the API server: a Secret that was made cannot be taken back.
    let report = read(&options.report, MAX_REPORT).context("--report")?;
    let stored = match &options.unless {
        Some(file) => file.try_exists().with_context(|| format!("--unless {}", file.display()))?,
        None => false,
    };
    match &options.secret {
        None => {}
        Some(secret) if stored => tracing::info!(secret, "an earlier run has made the Secret"),
        Some(secret) => {
            let body = body(client.default_namespace(), secret, options)?;
            create(client, secret, &body).await?;
            tracing::info!(secret, "the Secret is made");
        }
    }
    say(&options.termination_log, &report)
        .with_context(|| format!("--termination-log {}", options.termination_log.display()))
}

/// The bytes of a file that must have some, and at most so many.
fn read(path: &Path, most: usize) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let name = path.display();
    let file = std::fs::File::open(path).with_context(|| name.to_string())?;
    let size = file.metadata().with_context(|| name.to_string())?.len();
    ensure!(size > 0, "{name} is empty: expected what key generation wrote");
    ensure!(size <= most as u64, "{name} has {size} bytes: expected at most {most}");
    // All of its space at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most.min(size as usize) + 1));
    file.take(size + 1).read_to_end(&mut bytes).with_context(|| name.to_string())?;
    ensure!(
        bytes.len() as u64 == size,
        "{name} was changed while it was read: expected a file that is finished"
    );
    Ok(bytes)
}

/// A Secret, as the API server reads it. `Secret` of k8s-openapi would hold the bytes unprotected.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: ObjectMeta,
    #[serde(rename = "type")]
    kind_of_secret: &'static str,
    immutable: bool,
    data: BTreeMap<&'a str, &'a str>,
}

fn body(namespace: &str, name: &str, options: &StoreOptions) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut encoded: BTreeMap<&str, Zeroizing<String>> = BTreeMap::new();
    let mut size = 0;
    for (key, file) in &options.entries {
        let bytes = read(Path::new(file), MAX_SECRET).with_context(|| format!("--entry {key}"))?;
        size += bytes.len();
        let mut text = Zeroizing::new(String::with_capacity(bytes.len().div_ceil(3) * 4));
        STANDARD.encode_string(&*bytes, &mut text);
        ensure!(encoded.insert(key, text).is_none(), "--entry {key} is given twice: expected it once");
    }
    ensure!(size <= MAX_SECRET, "the entries have {size} bytes together: expected at most {MAX_SECRET}");
    let labels: BTreeMap<String, String> = options.labels.iter().cloned().collect();
    let owner =
        options.owner_job.as_ref().zip(options.owner_uid.as_ref()).map(|(name, uid)| OwnerReference {
            api_version: "batch/v1".into(),
            kind: "Job".into(),
            name: name.clone(),
            uid: uid.clone(),
            ..OwnerReference::default()
        });
    let body = Body {
        api_version: "v1",
        kind: "Secret",
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(namespace.into()),
            labels: Some(labels).filter(|labels| !labels.is_empty()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        kind_of_secret: "Opaque",
        immutable: true,
        data: encoded.iter().map(|(key, text)| (*key, text.as_str())).collect(),
    };
    let space: usize = encoded.iter().map(|(key, text)| key.len() + text.len() + 8).sum();
    let mut json = Zeroizing::new(Vec::with_capacity(space + 16 * 1024));
    serde_json::to_writer(&mut *json, &body).context("the Secret cannot be written as JSON")?;
    Ok(json)
}

/// Has the Secret made. Tries again for a while when that may help.
async fn create(client: &Client, name: &str, body: &[u8]) -> anyhow::Result<()> {
    let give_up = Instant::now() + ALL_PATIENCE;
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));
    let mut unanswered = false;
    loop {
        let problem = match timeout(PATIENCE, client.request_text(request(client, body)?)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => {
                let whose = if unanswered {
                    "by this run, whose request was not answered, or by another one of the Job"
                } else {
                    "by another run of the Job"
                };
                bail!(
                    "Secret {name} is there already, made {whose}: expected to make it. This run cannot read it and \
                     so reports nothing; the next run of the Job finds it mounted"
                );
            }
            Ok(Err(kube::Error::Api(status))) => {
                let problem = format!("the API server refuses it ({}): {}", status.code, status.message);
                // A RoleBinding that is a moment old may not be in force yet.
                let passing = matches!(status.code, 403 | 408 | 429 | 500..);
                ensure!(passing, "Secret {name} cannot be made: {problem}");
                // An error of the server's own may follow what it has done.
                unanswered |= status.code >= 500 || status.code == 408;
                problem
            }
            Ok(Err(error)) => {
                unanswered = true;
                format!("{:#}", anyhow::Error::from(error))
            }
            Err(_) => {
                unanswered = true;
                format!("the API server has not answered for {PATIENCE:?}")
            }
        };
        let delay = backoff.delay();
        ensure!(Instant::now() + delay < give_up, "Secret {name} cannot be made: {problem}");
        tracing::warn!(secret = name, problem, "the Secret is not made yet");
        sleep(delay).await;
    }
}

/// Bytes that leave this module do so here. The client copies them into the body of the request, and TLS
/// from there into records; neither wipes its memory, which lasts until this process ends, right after. The
/// client must not try again on its own: it would keep a copy for that.
fn request(client: &Client, body: &[u8]) -> anyhow::Result<axum::http::Request<Vec<u8>>> {
    let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    let url = Secret::url_path(&(), Some(client.default_namespace()));
    let mut request =
        Request::new(url).create(&params, body.to_vec()).context("the request cannot be built")?;
    // Else the API server answers with the Secret as it has stored it.
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static(metadata));
    Ok(request)
}

/// The kubelet has mounted the file into the container, so nothing can be renamed to it: one write, of all
/// there is to say, and the last thing that is done.
fn say(path: &Path, report: &[u8]) -> anyhow::Result<()> {
    let mut log = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let written = log.write(report)?;
    ensure!(written == report.len(), "{written} bytes were written: expected {}", report.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode, Uri};
    use axum::routing::post;
    use axum::{Json, response::IntoResponse as _};
    use kube::Config;
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::net::TcpListener;

    use super::*;
    use crate::program::client_without_retries;

    const SHARE: &[u8] = b"a share that nobody may see \xff\x00";

    /// An API server that takes Secrets.
    #[derive(Clone, Default)]
    struct Server {
        /// What it answers to the next requests instead of doing what they ask.
        refusals: Arc<Mutex<VecDeque<u16>>>,
        /// Does what the next request asks, and then breaks.
        breaks_after: Arc<Mutex<bool>>,
        made: Arc<Mutex<Vec<Value>>>,
    }

    async fn make(
        State(server): State<Server>,
        uri: Uri,
        headers: HeaderMap,
        body: Json<Value>,
    ) -> axum::response::Response {
        assert_eq!(uri.query(), Some("&fieldManager=tss-network-operator"));
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        assert!(accept.contains("as=PartialObjectMetadata"), "{accept}");
        let status = |code: u16, reason: &str| {
            let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason});
            (StatusCode::from_u16(code).expect("a code"), Json(status)).into_response()
        };
        if let Some(code) = server.refusals.lock().expect("a lock").pop_front() {
            return status(code, "Refused");
        }
        let mut made = server.made.lock().expect("a lock");
        if made.iter().any(|secret| secret["metadata"]["name"] == body["metadata"]["name"]) {
            return status(409, "AlreadyExists");
        }
        made.push(body.0);
        if std::mem::take(&mut *server.breaks_after.lock().expect("a lock")) {
            return status(500, "InternalError");
        }
        (StatusCode::CREATED, Json(json!({"kind": "PartialObjectMetadata"}))).into_response()
    }

    struct Stage {
        server: Server,
        client: Client,
        folder: TempDir,
    }

    impl Stage {
        async fn new() -> Self {
            let server = Server::default();
            let router = Router::new()
                .route("/api/v1/namespaces/treasury/secrets", post(make))
                .with_state(server.clone());
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            tokio::spawn(async move { axum::serve(listener, router).await });
            let mut config = Config::new(format!("http://{address}").parse().expect("a URL"));
            config.default_namespace = "treasury".into();
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("share"), SHARE).expect("a file");
            std::fs::write(folder.path().join("identity"), b"an identity").expect("a file");
            std::fs::write(folder.path().join("report"), b"{\"publicKey\":\"02ab\"}").expect("a file");
            Self { server, client: client_without_retries(config).expect("a client"), folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn options(&self) -> StoreOptions {
            let entry = |name: &str| (name.to_owned(), self.path(name).display().to_string());
            StoreOptions {
                secret: Some("demo-signer1-epoch1".into()),
                entries: vec![entry("share"), entry("identity")],
                labels: vec![("tss.network/cluster".into(), "demo".into())],
                owner_job: None,
                owner_uid: None,
                unless: Some(self.path("stored")),
                report: self.path("report"),
                termination_log: self.path("termination-log"),
            }
        }

        async fn store(&self, options: &StoreOptions) -> Result<(), String> {
            store(&self.client, options).await.map_err(|error| format!("{error:#}"))
        }

        fn said(&self) -> Option<String> {
            std::fs::read_to_string(self.path("termination-log")).ok()
        }

        fn made(&self) -> Vec<Value> {
            self.server.made.lock().expect("a lock").clone()
        }
    }

    #[tokio::test]
    async fn the_files_become_an_immutable_secret_and_then_the_report_is_made() {
        let stage = Stage::new().await;
        stage.store(&stage.options()).await.expect("it is stored");
        let expected = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": "demo-signer1-epoch1",
                "namespace": "treasury",
                "labels": {"tss.network/cluster": "demo"},
            },
            "type": "Opaque",
            "immutable": true,
            "data": {"share": STANDARD.encode(SHARE), "identity": STANDARD.encode("an identity")},
        });
        assert_eq!(stage.made(), [expected]);
        assert_eq!(stage.said().as_deref(), Some("{\"publicKey\":\"02ab\"}"));
    }

    #[tokio::test]
    async fn with_an_owner_the_secret_goes_with_its_job() {
        let stage = Stage::new().await;
        let options = StoreOptions {
            owner_job: Some("keygen-1".into()),
            owner_uid: Some("5f1c".into()),
            labels: Vec::new(),
            ..stage.options()
        };
        stage.store(&options).await.expect("it is stored");
        let expected = json!({
            "name": "demo-signer1-epoch1",
            "namespace": "treasury",
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "keygen-1", "uid": "5f1c"}],
        });
        assert_eq!(stage.made().first().map(|secret| secret["metadata"].clone()), Some(expected));
    }

    #[tokio::test]
    async fn what_an_earlier_run_has_stored_is_only_reported() {
        let stage = Stage::new().await;
        std::fs::write(stage.path("stored"), SHARE).expect("a file");
        // This run has made no share.
        std::fs::remove_file(stage.path("share")).expect("removed");
        stage.store(&stage.options()).await.expect("it is reported");
        assert_eq!(stage.made(), Vec::<Value>::new());
        assert!(stage.said().is_some());
    }

    #[tokio::test]
    async fn another_runs_secret_is_an_error_and_nothing_is_reported() {
        let stage = Stage::new().await;
        stage.store(&stage.options()).await.expect("it is stored");
        std::fs::remove_file(stage.path("termination-log")).expect("removed");
        let error = stage.store(&stage.options()).await.expect_err("it is there");
        assert!(
            error.contains("is there already, made by another run of the Job: expected to make it"),
            "{error}"
        );
        assert_eq!((stage.made().len(), stage.said()), (1, None));
    }

    #[tokio::test]
    async fn passing_refusals_are_waited_out() {
        let stage = Stage::new().await;
        stage.server.refusals.lock().expect("a lock").extend([503, 403, 429]);
        stage.store(&stage.options()).await.expect("it is stored");
        assert_eq!(stage.made().len(), 1);
        assert!(stage.said().is_some());
    }

    #[tokio::test]
    async fn a_secret_whose_making_was_not_answered_is_an_error_that_says_so() {
        let stage = Stage::new().await;
        *stage.server.breaks_after.lock().expect("a lock") = true;
        let error = stage.store(&stage.options()).await.expect_err("it cannot be known");
        assert!(error.contains("by this run, whose request was not answered, or by another one"), "{error}");
        assert_eq!((stage.made().len(), stage.said()), (1, None));
    }

    #[tokio::test]
    async fn other_refusals_are_errors_at_once() {
        for code in [400, 404, 422] {
            let stage = Stage::new().await;
            stage.server.refusals.lock().expect("a lock").push_back(code);
            let error = stage.store(&stage.options()).await.expect_err("refused");
            let expected =
                format!("Secret demo-signer1-epoch1 cannot be made: the API server refuses it ({code})");
            assert!(error.contains(&expected), "{error}");
            assert_eq!((stage.made().len(), stage.said()), (0, None));
        }
    }

    #[tokio::test]
    async fn files_that_are_not_as_expected_are_refused_before_anything_is_made() {
        let stage = Stage::new().await;
        let file =
            |name: &str, size: usize| std::fs::write(stage.path(name), vec![b'x'; size]).expect("a file");
        let twice = StoreOptions {
            entries: stage.options().entries.into_iter().cycle().take(3).collect(),
            ..stage.options()
        };
        let error = stage.store(&twice).await.expect_err("twice");
        assert_eq!(error, "--entry share is given twice: expected it once");
        for (name, size, expected) in [
            ("report", 4097, "has 4097 bytes: expected at most 4096"),
            ("report", 0, "is empty: expected what key generation wrote"),
            ("share", 0, "is empty: expected what key generation wrote"),
            ("share", MAX_SECRET, "the entries have 1048587 bytes together: expected at most 1048576"),
            ("share", MAX_SECRET + 1, "has 1048577 bytes: expected at most 1048576"),
        ] {
            file("report", 10);
            file(name, size);
            let error = stage.store(&stage.options()).await.expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        std::fs::remove_file(stage.path("share")).expect("removed");
        let error = stage.store(&stage.options()).await.expect_err("no share");
        assert!(error.starts_with("--entry share: ") && error.contains("No such file"), "{error}");
        assert_eq!((stage.made().len(), stage.said()), (0, None));
    }
}
