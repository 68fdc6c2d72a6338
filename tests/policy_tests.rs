//! Signers with a policy, and the approvals that it asks for, on a network in one process.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;
use tss_client::Client;
use tss_client::types::{self, Approval, RequestFilter, RequestStatus, SignRequest, Status, Verdict};
use tss_common::config::Config;
use tss_common::intent::{Encoding, HashAlgorithm, Wish};
use tss_mpc::{Dkls23, ShareDocument, SignerIndex, Threshold};
use tssctl::approver;
use tssctl::network::Network;
use uuid::Uuid;

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/devnet.rs"]
mod devnet;

/// How long what must happen may take. Test programs share two cores.
const SOON: Duration = Duration::from_secs(60);

/// The shares of a 2-of-3 key, as JSON.
static SHARES: LazyLock<BTreeMap<SignerIndex, Vec<u8>>> = LazyLock::new(|| {
    let config = Config::default();
    let threshold = Threshold::new(config.threshold, config.total_parties).unwrap();
    let shares = tssctl::keygen::generate(&Dkls23, &config.cluster, &config.key, threshold).unwrap();
    shares.iter().map(|(&index, share)| (index, share.to_json().unwrap().to_vec())).collect()
});

/// A network whose signers all have one policy file.
struct Signing {
    network: Network,
    client: Client,
    config: Config,
    policy: PathBuf,
    folder: TempDir,
}

impl Signing {
    async fn start(policy: impl FnOnce(&Keys) -> String, edit: impl FnOnce(&mut Config)) -> (Self, Keys) {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::generate(&folder);
        let file = folder.path().join("policy.toml");
        std::fs::write(&file, policy(&keys)).unwrap();
        let mut config = devnet::config(folder.path());
        config.policy_file = Some(file.clone());
        edit(&mut config);
        let shares =
            SHARES.iter().map(|(&index, share)| (index, ShareDocument::from_json(share).unwrap())).collect();
        let network = devnet::start_with(config.clone(), shares).await;
        let client = Client::builder(network.url()).build().unwrap();
        (Self { network, client, config, policy: file, folder }, keys)
    }

    /// Asks for a signature and waits for the request's end.
    async fn ask(&self, request: &SignRequest) -> Status {
        let accepted = self.client.sign(request).await.unwrap();
        self.ended(accepted.request_id).await
    }

    async fn ended(&self, id: Uuid) -> Status {
        // A failed request is an error here; the status tells why.
        let _ = self.client.signature(id, SOON).await;
        self.client.status(id).await.unwrap()
    }

    /// That a request fails for reasons that contain these parts.
    async fn refused(&self, request: &SignRequest, parts: &[&str]) {
        let status = self.ask(request).await;
        assert_eq!(status.status, RequestStatus::Failed, "{status:?}");
        let reason = status.reason.unwrap();
        for part in parts {
            assert!(reason.contains(part), "`{part}` is missing in: {reason}");
        }
    }

    async fn signed(&self, request: &SignRequest) {
        let status = self.ask(request).await;
        assert_eq!(status.status, RequestStatus::Completed, "{status:?}");
    }

    async fn metrics(&self) -> String {
        let answer = reqwest::get(format!("{}/metrics", self.network.url())).await.unwrap();
        answer.text().await.unwrap()
    }

    /// How often this rule kept signers out.
    async fn refusals(&self, rule: &str) -> u64 {
        let name = format!("tss_signer_policy_refusals_total{{rule=\"{rule}\"");
        let text = self.metrics().await;
        text.lines()
            .filter_map(|line| line.strip_prefix(&name)?.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// Waits until the metrics have this line for each signer.
    async fn until_each(&self, line: impl Fn(u8) -> String) {
        let began = Instant::now();
        loop {
            let text = self.metrics().await;
            if (1..=3).all(|signer| text.lines().any(|shown| shown == line(signer))) {
                return;
            }
            assert!(began.elapsed() < SOON, "{} is missing in:\n{text}", line(1));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What an approver's `tssctl approve` prints for a request, by way of a file.
    fn approve(&self, keys: &Keys, name: &str, request: &SignRequest) -> Approval {
        let wish = Wish {
            message: request.message.clone(),
            encoding: Encoding::Utf8,
            hash: request
                .hash
                .as_ref()
                .map_or(HashAlgorithm::default(), |hash| hash.as_str().parse().unwrap()),
            key: request.key.clone(),
            path: request.path.as_deref().map(|path| path.parse().unwrap()),
            not_after: request.not_after,
        };
        let (_, approval) = approver::approve(&keys.file(name), wish, &self.config).unwrap();
        let file = self.folder.path().join("approval.json");
        std::fs::write(&file, serde_json::to_string(&approval).unwrap()).unwrap();
        approver::to_send(&approver::read_approval(&file).unwrap())
    }

    async fn stop(self) {
        self.network.stop().await.unwrap();
    }
}

/// The keys of alice, bob and carol, whom policies may name, and of dave, whom none does.
struct Keys {
    folder: PathBuf,
    public: BTreeMap<&'static str, String>,
}

impl Keys {
    fn generate(folder: &TempDir) -> Self {
        let folder = folder.path().to_owned();
        let key = |name| {
            let public = approver::generate(&folder.join(format!("{name}.key"))).unwrap();
            (name, public.to_string())
        };
        let public = ["alice", "bob", "carol", "dave"].map(key).into();
        Self { folder, public }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// `[approvals]` that requires so many of alice, bob and carol.
    fn approvals(&self, required: usize) -> String {
        let names = ["alice", "bob", "carol"].map(|name| format!("{name} = \"{}\"", self.public[name]));
        format!("[approvals]\nrequired = {required}\n[approvals.approvers]\n{}\n", names.join("\n"))
    }
}

fn request(message: &str) -> SignRequest {
    SignRequest::text(message)
}

fn with_path(path: &str) -> SignRequest {
    SignRequest { path: Some(path.into()), ..request("hello") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_signed_without_the_approvals_that_the_policy_requires() {
    let (signing, keys) = Signing::start(|keys| keys.approvals(2), |_| {}).await;
    let not_after = Timestamp::now() + SignedDuration::from_secs(600);
    let request = SignRequest { not_after: Some(not_after), ..request("pay 5 to bob") };
    let by = |name| signing.approve(&keys, name, &request);
    let with = |approvals: Vec<Approval>| SignRequest { approvals, ..request.clone() };
    let needed = "policy: approvals by 2 of alice, bob, carol are needed";

    signing.refused(&request, &[needed, "got none"]).await;
    signing.refused(&with(vec![by("bob")]), &[needed, "got bob"]).await;
    signing.refused(&with(vec![by("bob"), by("bob"), by("dave")]), &[needed, "got bob"]).await;
    signing.signed(&with(vec![by("carol"), by("alice")])).await;
    signing.signed(&with(vec![by("dave"), by("alice"), by("bob"), by("carol")])).await;

    // Approvals of something else do not come past the manager, which says what they must be of.
    for (other, part) in [
        (SignRequest { message: "pay 6 to bob".into(), ..with(vec![by("alice")]) }, "digest "),
        (SignRequest { not_after: None, ..with(vec![by("alice")]) }, "not_after absent"),
        (SignRequest { path: Some("m".into()), ..with(vec![by("alice")]) }, "path m,"),
        (SignRequest { hash: Some(types::HashAlgorithm::Eip191), ..with(vec![by("alice")]) }, "hash eip191"),
    ] {
        let error = signing.client.sign(&other).await.unwrap_err().to_string();
        for part in [part, "`approvals[0]`", &keys.public["alice"], "did not sign this request"] {
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
    }
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_tells_what_each_signer_would_do_and_counts_for_nothing() {
    let policy = |keys: &Keys| format!("paths = [\"0/1/*\"]\nrequests_per_minute = 2\n{}", keys.approvals(1));
    let (signing, keys) = Signing::start(policy, |_| {}).await;
    let hello = request("hello");
    let approved = SignRequest { approvals: vec![signing.approve(&keys, "alice", &hello)], ..hello.clone() };
    let elsewhere = SignRequest { path: Some("9".into()), ..hello.clone() };
    // More often than the policy would let anybody.
    for _ in 0..5 {
        let told = signing.client.dry_run(&approved).await.unwrap();
        assert!(told.would_sign, "{told:?}");
        for word in &told.signers {
            assert_eq!((&word.verdict, &word.approvals[..]), (&Verdict::Willing, &["alice".to_owned()][..]));
        }
    }
    for (request, reason) in [(&hello, "approvals by 1 of"), (&elsewhere, "path 9 is not allowed")] {
        let told = signing.client.dry_run(request).await.unwrap();
        assert!(!told.would_sign, "{told:?}");
        for word in &told.signers {
            assert_eq!(word.verdict, Verdict::Refused);
            assert!(word.reason.as_deref().is_some_and(|said| said.contains(reason)), "{word:?}");
        }
    }
    assert_eq!(signing.refusals("path").await, 0);
    assert_eq!(signing.refusals("rate").await, 0);
    let none = RequestFilter::default();
    assert_eq!(signing.client.request_page(&none, None).await.unwrap().requests, []);
    // What the signers said they do, until their rate is used up; then they say so.
    for path in ["0/1/2", "0/1/3", "0/1/4"] {
        let wish = SignRequest { path: Some(path.into()), ..hello.clone() };
        let wish = SignRequest { approvals: vec![signing.approve(&keys, "alice", &wish)], ..wish };
        if signing.client.dry_run(&wish).await.unwrap().would_sign {
            signing.signed(&wish).await;
        } else {
            assert_eq!(path, "0/1/4");
            let told = signing.client.dry_run(&wish).await.unwrap();
            let unable = told.signers.iter().find(|word| word.verdict == Verdict::Unable).unwrap();
            assert!(unable.reason.as_deref().unwrap().contains("2 requests a minute"), "{unable:?}");
        }
    }
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_again_with_other_approvals_is_the_same_request() {
    let (signing, keys) = Signing::start(|keys| keys.approvals(1), |_| {}).await;
    let approval = signing.approve(&keys, "alice", &request("once"));
    let post = async |body: Value| {
        let http = reqwest::Client::new().post(format!("{}/sign", signing.network.url()));
        let answer = http.header("idempotency-key", "once").json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        (
            status,
            answer.json::<Value>().await.unwrap()["request_id"].as_str().unwrap().parse::<Uuid>().unwrap(),
        )
    };
    let (status, id) = post(json!({"message": "once", "approvals": [approval]})).await;
    assert_eq!(status, 201);
    assert_eq!(post(json!({"message": "once"})).await, (200, id));
    assert_eq!(signing.ended(id).await.status, RequestStatus::Completed);
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_changes_is_taken_up_and_a_bad_one_changes_nothing() {
    let (signing, _) = Signing::start(|_| "paths = [\"0/1/*\"]".into(), |_| {}).await;
    let valid = |valid: u8| move |signer| format!("tss_signer_policy_valid{{signer=\"{signer}\"}} {valid}");
    let (low, nine) = (with_path("0/1/2"), with_path("9"));
    signing.until_each(valid(1)).await;
    signing.signed(&low).await;
    signing.refused(&nine, &["policy: path 9 is not allowed: expected 0/1/*"]).await;
    assert!(signing.refusals("path").await > 0);

    std::fs::write(&signing.policy, "paths = []").unwrap();
    signing.until_each(valid(0)).await;
    signing.signed(&low).await;
    signing.refused(&nine, &["policy: path 9 is not allowed"]).await;

    std::fs::write(&signing.policy, "paths = [\"9\"]").unwrap();
    signing.until_each(valid(1)).await;
    signing.signed(&nine).await;
    signing.refused(&low, &["policy: path 0/1/2 is not allowed: expected 9"]).await;

    std::fs::remove_file(&signing.policy).unwrap();
    signing.until_each(valid(0)).await;
    signing.signed(&nine).await;
    signing.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_a_minute_are_not_refused_but_wait_until_their_time_is_up() {
    let (signing, _) =
        Signing::start(|_| "requests_per_minute = 1".into(), |config| config.signing_timeout = 5).await;
    signing.signed(&request("first")).await;
    signing.refused(&request("second"), &["not signed in time"]).await;
    assert!(signing.refusals("rate").await > 0);
    signing.stop().await;
}
