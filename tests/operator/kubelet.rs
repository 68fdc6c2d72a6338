//! The kubelet of these tests. There is no node here, so nothing runs: this says through the API what a real kubelet
//! would say had the Pods run, and does to Secrets what the commands in them would have done. Identities and keys are
//! real ones, though keys and new shares of them are dealt, not made together. The real kubelet, and the real commands, are part of the tests of whole networks.
//!
//! Pods are bound to no node, so the API server deletes them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume};
use k256::elliptic_curve::PrimeField as _;
use k256::{ProjectivePoint, Scalar};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tss_common::identity::Identity;
use tss_mpc::point::{KeyPoints, Points};
use tss_mpc::share::{CoreShare, EngineParts};
use tss_mpc::{DerivationPath, Origin, PrivateKey, PublicKey, Scheme, ShareDocument, SignerIndex, Threshold};
use tss_operator::cluster::names;
use tss_signer::report::{IdentityReport, ShareReport};
use uuid::Uuid;

use crate::server::Namespace;

/// When it looks again at what has to wait, such as a Pod whose Secret is not there yet.
const TICK: Duration = Duration::from_millis(200);

/// Which Pods: all for which everything that is said holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Which {
    /// `identity`, `generate`, `renew`, `keep` or `inspect`, `signer` or `manager`.
    pub(crate) task: Option<&'static str>,
    pub(crate) index: Option<u8>,
    pub(crate) attempt: Option<String>,
    pub(crate) image: Option<String>,
}

/// Those of a task.
pub(crate) fn task(task: &'static str) -> Which {
    Which { task: Some(task), ..Which::default() }
}

/// Those of a task of one signer.
pub(crate) fn task_of(name: &'static str, index: u8) -> Which {
    Which { index: Some(index), ..task(name) }
}

/// Those with an image.
pub(crate) fn image(image: &str) -> Which {
    Which { image: Some(image.into()), ..Which::default() }
}

#[derive(Clone, Debug)]
enum Order {
    /// It does not come to its end; a signer or manager does not become ready.
    Hold,
    /// It fails, with these last words.
    Fail(String),
    /// It reports this, whatever it has.
    Report(Value),
}

#[derive(Default)]
struct Orders {
    list: Mutex<Vec<(Which, Order)>>,
    /// How long signers and managers take to become ready.
    delay: Mutex<Duration>,
    changed: Notify,
}

/// The kubelet of a namespace, until it is dropped.
pub(crate) struct Kubelet {
    orders: Arc<Orders>,
    task: JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kubelet {
    pub(crate) fn start(namespace: &Namespace) -> Self {
        let orders = Arc::new(Orders::default());
        let node = Node {
            pods: namespace.api(),
            secrets: namespace.api(),
            maps: namespace.api(),
            orders: orders.clone(),
            known: BTreeMap::new(),
            since: BTreeMap::new(),
            done: BTreeSet::new(),
            sessions: BTreeMap::new(),
        };
        Self { orders, task: tokio::spawn(node.run()) }
    }

    /// These do not come to their end, or do not become ready.
    pub(crate) fn hold(&self, which: Which) {
        self.order(which, Order::Hold);
    }

    /// These fail.
    pub(crate) fn fail(&self, which: Which, last_words: &str) {
        self.order(which, Order::Fail(last_words.into()));
    }

    /// These report something else: the fields that are given instead of their own.
    pub(crate) fn report(&self, which: Which, fields: Value) {
        self.order(which, Order::Report(fields));
    }

    /// Signers and managers take so long to become ready.
    pub(crate) fn delay(&self, delay: Duration) {
        *self.orders.delay.lock().unwrap() = delay;
    }

    /// All goes well again.
    pub(crate) fn release(&self) {
        self.orders.list.lock().unwrap().clear();
        self.orders.changed.notify_one();
    }

    fn order(&self, which: Which, order: Order) {
        self.orders.list.lock().unwrap().push((which, order));
        self.orders.changed.notify_one();
    }
}

struct Node {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    orders: Arc<Orders>,
    /// The Pods that are there, by uid.
    known: BTreeMap<String, Pod>,
    /// Since when.
    since: BTreeMap<String, Instant>,
    /// Those that are as far as they come.
    done: BTreeSet<String>,
    /// Who makes a key or new shares together, by the name of the try.
    sessions: BTreeMap<String, Session>,
}

struct Session {
    members: BTreeMap<u8, String>,
    shares: BTreeMap<SignerIndex, ShareDocument>,
}

/// A Pod of key generation.
struct Work<'a> {
    pod: &'a Pod,
    task: &'static str,
    index: u8,
    attempt: String,
    maker: &'a Container,
    store: &'a Container,
}

/// How a Pod's containers end.
enum Ended {
    Well(Value),
    Badly(String),
}

impl Node {
    async fn run(mut self) {
        let mut changes = watcher(self.pods.clone(), watcher::Config::default()).boxed();
        loop {
            tokio::select! {
                event = changes.next() => match event {
                    Some(Ok(event)) => self.see(event),
                    _ => tokio::time::sleep(TICK).await,
                },
                () = self.orders.changed.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            let open: Vec<String> =
                self.known.keys().filter(|uid| !self.done.contains(*uid)).cloned().collect();
            for uid in open {
                self.look_at(&uid).await;
            }
        }
    }

    fn see(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                let uid = pod.uid().unwrap();
                if pod.metadata.deletion_timestamp.is_some() {
                    self.known.remove(&uid);
                } else {
                    self.known.insert(uid, pod);
                }
            }
            watcher::Event::Delete(pod) => drop(self.known.remove(&pod.uid().unwrap())),
            watcher::Event::Init => self.known.clear(),
            watcher::Event::InitDone => {}
        }
    }

    async fn look_at(&mut self, uid: &str) {
        let Some(pod) = self.known.get(uid).cloned() else { return };
        let index = pod.labels().get(names::SIGNER).and_then(|index| index.parse().ok()).unwrap_or(0);
        let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
        match pod.labels().get(names::COMPONENT).map(String::as_str) {
            Some("signer") => self.serve(&pod, "signer", index, &image).await,
            Some("manager") => self.serve(&pod, "manager", index, &image).await,
            Some("key-generation") => {
                let work = Work::of(&pod, index);
                if let Some(end) = self.work(&work).await {
                    self.end(&work, end).await;
                }
            }
            _ => {}
        }
    }

    fn orders(&self, task: &str, index: u8, attempt: &str, image: &str) -> Vec<Order> {
        let list = self.orders.list.lock().unwrap();
        let meant = |which: &Which| {
            which.task.is_none_or(|wanted| wanted == task)
                && which.index.is_none_or(|wanted| wanted == index)
                && which.attempt.as_ref().is_none_or(|wanted| wanted == attempt)
                && which.image.as_ref().is_none_or(|wanted| wanted == image)
        };
        list.iter().filter(|(which, _)| meant(which)).map(|(_, order)| order.clone()).collect()
    }

    /// A signer or manager becomes ready.
    async fn serve(&mut self, pod: &Pod, task: &str, index: u8, image: &str) {
        let since = *self.since.entry(pod.uid().unwrap()).or_insert_with(Instant::now);
        let delay = *self.orders.delay.lock().unwrap();
        if since.elapsed() < delay || !self.orders(task, index, "", image).is_empty() {
            return;
        }
        let names: Vec<&str> =
            pod.spec.as_ref().unwrap().containers.iter().map(|container| container.name.as_str()).collect();
        let now = jiff::Timestamp::now();
        let containers: Vec<Value> = names
            .iter()
            .map(|name| {
                json!({
                    "name": name, "image": image, "imageID": "", "ready": true, "started": true, "restartCount": 0,
                    "state": {"running": {"startedAt": now}},
                })
            })
            .collect();
        self.tell(
            pod,
            json!({
                "phase": "Running",
                "startTime": now,
                "conditions": conditions(&["PodScheduled", "Initialized", "ContainersReady", "Ready"], &[]),
                "containerStatuses": containers,
            }),
        )
        .await;
    }

    async fn tell(&mut self, pod: &Pod, status: Value) {
        let patch = Patch::Merge(json!({"metadata": {"uid": pod.uid()}, "status": status}));
        match self.pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => drop(self.done.insert(pod.uid().unwrap())),
            // Deleted, perhaps made anew under the same name, or the namespace is on its way out.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 403) => {}
            Err(error) => panic!("the status of Pod {}: {error}", pod.name_any()),
        }
    }

    /// What a Pod of key generation does, if it comes to its end now.
    async fn work(&mut self, work: &Work<'_>) -> Option<Ended> {
        let orders = self.orders(work.task, work.index, &work.attempt, "");
        // Who is held has begun all the same.
        let together = matches!(work.task, "generate" | "renew");
        let session = if together { Some(self.join(work).await?) } else { None };
        if let Some(Err(silent)) = session {
            return Some(Ended::Badly(silent));
        }
        let mut said = json!({});
        for order in orders {
            match order {
                Order::Hold => return None,
                Order::Fail(why) => return Some(Ended::Badly(format!("error: {why}"))),
                Order::Report(fields) => said = fields,
            }
        }
        let mut end = match work.task {
            "identity" => self.make_identity(work).await?,
            "generate" | "renew" => self.store_share(work).await?,
            "keep" => self.keep_share(work).await?,
            "inspect" => self.inspect(work).await?,
            other => panic!("a task {other}"),
        };
        if let (Ended::Well(report), Value::Object(fields)) = (&mut end, said) {
            report.as_object_mut().unwrap().extend(fields);
        }
        Some(end)
    }

    async fn end(&mut self, work: &Work<'_>, end: Ended) {
        let terminated = |code: i32, message: String| {
            let reason = if code == 0 { "Completed" } else { "Error" };
            json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
        };
        let container = |container: &Container, state: Value| {
            json!({
                "name": container.name, "image": container.image, "imageID": "", "ready": false, "restartCount": 0,
                "state": state,
            })
        };
        let status = match end {
            Ended::Well(report) => json!({
                "phase": "Succeeded",
                "conditions": conditions(&["PodScheduled", "Initialized"], &["Ready", "ContainersReady"]),
                "initContainerStatuses": [container(work.maker, terminated(0, String::new()))],
                "containerStatuses": [container(work.store, terminated(0, report.to_string()))],
            }),
            Ended::Badly(why) => json!({
                "phase": "Failed",
                "conditions": conditions(&["PodScheduled"], &["Initialized", "Ready", "ContainersReady"]),
                "initContainerStatuses": [container(work.maker, terminated(1, why))],
                "containerStatuses": [container(work.store, json!({"waiting": {"reason": "PodInitializing"}}))],
            }),
        };
        self.tell(work.pod, status).await;
    }

    async fn secret(&self, name: &str) -> Option<Secret> {
        self.secrets.get_opt(name).await.unwrap()
    }

    async fn entry(&self, secret: &str, entry: &str) -> Option<Vec<u8>> {
        Some(self.secret(secret).await?.data?.get(entry)?.0.clone())
    }

    /// What `operator store` does: a Secret with one entry. `None` when somebody was quicker, and it is tried again.
    async fn store(&self, work: &Work<'_>, entry: &str, content: &[u8]) -> Option<()> {
        let name = work.secret_to_store();
        let labels: BTreeMap<&str, &str> = work
            .values("--label")
            .into_iter()
            .map(|label| label.split_once('=').expect("a label is KEY=VALUE"))
            .collect();
        let owners: Vec<Value> = work
            .pod
            .owner_references()
            .iter()
            .filter(|_| !work.values("--owner-job").is_empty())
            .map(|job| json!({"apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": job.uid}))
            .collect();
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels, "ownerReferences": owners},
            "immutable": true,
            "data": {entry: k8s_openapi::ByteString(content.to_vec())},
        }))
        .unwrap();
        match self.secrets.create(&PostParams::default(), &secret).await {
            Ok(_) => Some(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 403 | 404) => None,
            Err(error) => panic!("Secret {name}: {error}"),
        }
    }

    async fn make_identity(&self, work: &Work<'_>) -> Option<Ended> {
        let stored = self.entry(work.volume("stored"), "identity").await;
        let identity = match &stored {
            Some(stored) => Identity::from_json(stored).unwrap(),
            None => Identity::generate(),
        };
        if stored.is_none() {
            self.store(work, "identity", &identity.to_json().unwrap()).await?;
        }
        let report = IdentityReport::of(SignerIndex::new(work.index).unwrap(), identity.public());
        Some(Ended::Well(serde_json::to_value(report).unwrap()))
    }

    /// Joins the others of the same try; they begin once all are there. `None` until then.
    async fn join(&mut self, work: &Work<'_>) -> Option<Result<(), String>> {
        let uid = work.pod.uid().unwrap();
        if !self.sessions.contains_key(&work.attempt) {
            self.entry(work.volume("identity"), "identity").await?;
            let config = self.config(work).await?;
            let mut members = BTreeMap::new();
            for (uid, pod) in &self.known {
                let index = pod.labels().get(names::SIGNER).and_then(|index| index.parse().ok());
                if let (Some(index), Some("key-generation")) =
                    (index, pod.labels().get(names::COMPONENT).map(String::as_str))
                {
                    let other = Work::of(pod, index);
                    if other.task == work.task && other.attempt == work.attempt && !self.done.contains(uid) {
                        members.insert(index, uid.clone());
                    }
                }
            }
            if members.len() < usize::from(config.threshold.n()) {
                return None;
            }
            let shares = match work.task {
                "renew" => match self.renewed(work, &config, &members).await? {
                    Ok(shares) => shares,
                    Err(why) => return Some(Err(format!("error: {why}"))),
                },
                _ => deal(&config.cluster, config.threshold),
            };
            self.sessions.insert(work.attempt.clone(), Session { members, shares });
        }
        let session = &self.sessions[&work.attempt];
        if session.members.get(&work.index) != Some(&uid) {
            return Some(Err("error: the others have begun already".into()));
        }
        let silent = session
            .members
            .iter()
            .find(|(_, uid)| !self.known.contains_key(*uid) && !self.done.contains(*uid));
        Some(silent.map_or(Ok(()), |(index, _)| Err(format!("error: signer {index} has gone silent"))))
    }

    /// New shares of the key that the dealers' shares give.
    async fn renewed(
        &self,
        work: &Work<'_>,
        config: &Settings,
        members: &BTreeMap<u8, String>,
    ) -> Option<Result<BTreeMap<SignerIndex, ShareDocument>, String>> {
        let epoch: u64 = work.value("--epoch").parse().unwrap();
        let mut shares = Vec::new();
        for dealer in work.value("--dealers").split(',') {
            let index: u8 = dealer.parse().unwrap();
            let dealer = Work::of(&self.known[&members[&index]], index);
            assert_eq!(dealer.value("--dealers"), work.value("--dealers"), "all know the same dealers");
            let share = self.entry(dealer.volume("share"), "share").await?;
            shares.push(ShareDocument::from_json(&share).unwrap());
        }
        if let Some(other) = shares.iter().find(|share| share.epoch != epoch) {
            return Some(Err(format!("a share of epoch {}: expected one of {epoch}", other.epoch)));
        }
        if shares.len() != usize::from(shares[0].core.threshold.t()) {
            return Some(Err(format!("{} dealers of a {} key", shares.len(), shares[0].core.threshold)));
        }
        let key = match PrivateKey::reconstruct(&shares) {
            Ok(key) => key,
            Err(error) => return Some(Err(error.to_string())),
        };
        let secret = Scalar::from_repr((*key.to_bytes()).into()).unwrap();
        let mut dealt = deal_of(secret, shares[0].core.chain_code, &config.cluster, config.threshold);
        for share in dealt.values_mut() {
            share.epoch = shares[0].epoch + 1;
        }
        Some(Ok(dealt))
    }

    async fn store_share(&self, work: &Work<'_>) -> Option<Ended> {
        let config = self.config(work).await?;
        let share = &self.sessions[&work.attempt].shares[&SignerIndex::new(work.index).unwrap()];
        self.store(work, "share", &share.to_json().unwrap()).await?;
        Some(Ended::Well(report(share, &config.path)))
    }

    async fn keep_share(&self, work: &Work<'_>) -> Option<Ended> {
        let config = self.config(work).await?;
        self.entry(work.volume("identity"), "identity").await?;
        let share = self.entry(work.volume("share"), "share").await?;
        let stored = self.entry(work.volume("stored"), "share").await;
        let document = ShareDocument::from_json(&share).unwrap();
        let report = report(&document, &config.path);
        let expected = work.value("--expect-public-key");
        if report["public_key"] != expected {
            return Some(Ended::Badly(format!("error: expected a share of {expected}")));
        }
        if stored.is_none() {
            self.store(work, "share", &share).await?;
        }
        Some(Ended::Well(report))
    }

    async fn inspect(&self, work: &Work<'_>) -> Option<Ended> {
        let config = self.config(work).await?;
        self.entry(work.volume("identity"), "identity").await?;
        // A Pod starts without a Secret that it may do without.
        let share = match self.entry(work.volume("share"), "share").await {
            None if work.is_optional("share") => {
                return Some(Ended::Badly(
                    "error: the file /run/secrets/tss/share/share is not there".into(),
                ));
            }
            share => share?,
        };
        Some(Ended::Well(report(&ShareDocument::from_json(&share).unwrap(), &config.path)))
    }

    /// What stands in the configuration file that is mounted, and in the variables.
    async fn config(&self, work: &Work<'_>) -> Option<Settings> {
        let map = self.maps.get_opt(work.volume("config")).await.unwrap()?;
        let table: toml::Table = map.data?["default.toml"].parse().unwrap();
        assert!(!table.contains_key("threshold"), "it is each Job's own");
        let number = |name: &str| work.variable(name).parse().unwrap();
        Some(Settings {
            cluster: table["cluster"].as_str().unwrap().to_owned(),
            threshold: Threshold::new(number("TSS_THRESHOLD"), number("TSS_TOTAL_PARTIES")).unwrap(),
            path: table["path"].as_str().unwrap().parse().unwrap(),
        })
    }
}

struct Settings {
    cluster: String,
    threshold: Threshold,
    path: DerivationPath,
}

impl<'a> Work<'a> {
    fn of(pod: &'a Pod, index: u8) -> Self {
        let spec = pod.spec.as_ref().unwrap();
        let (maker, store) = (&spec.init_containers.as_ref().unwrap()[0], &spec.containers[0]);
        let mut work = Self { pod, task: "", index, attempt: String::new(), maker, store };
        work.task = match work.arguments(maker)[0] {
            "identity" => "identity",
            "keygen" => "generate",
            "renew" => "renew",
            "inspect" if work.values("--expect-public-key").is_empty() => "inspect",
            "inspect" => "keep",
            other => panic!("a command {other}"),
        };
        assert_eq!(work.value("--index"), index.to_string());
        // The Job's name tells it for those whose command need not know.
        let job = &pod.owner_references()[0].name;
        let (_, attempt) = job.split_once(&format!("-{}-{index}-", work.task)).unwrap();
        work.attempt = attempt.to_owned();
        work
    }

    fn arguments(&self, container: &'a Container) -> Vec<&'a str> {
        container.args.iter().flatten().map(String::as_str).collect()
    }

    fn values(&self, flag: &str) -> Vec<&'a str> {
        [self.maker, self.store]
            .into_iter()
            .flat_map(|container| {
                let arguments = self.arguments(container);
                let after = arguments.clone().into_iter().skip(1);
                arguments.into_iter().zip(after).filter(|(name, _)| *name == flag).map(|(_, value)| value)
            })
            .collect()
    }

    fn value(&self, flag: &str) -> &'a str {
        self.values(flag).first().unwrap_or_else(|| panic!("{flag} is missing"))
    }

    fn secret_to_store(&self) -> String {
        self.value("--secret").replace("$(JOB_NAME)", &self.pod.owner_references()[0].name)
    }

    fn variable(&self, name: &str) -> &'a str {
        let variables = self.maker.env.as_deref().unwrap_or_default();
        let found = variables.iter().find(|variable| variable.name == name);
        found.and_then(|variable| variable.value.as_deref()).unwrap_or_else(|| panic!("{name} is missing"))
    }

    fn find_volume(&self, name: &str) -> &'a Volume {
        let volumes = self.pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
        volumes.iter().find(|volume| volume.name == name).unwrap_or_else(|| panic!("no volume {name}"))
    }

    fn is_optional(&self, volume: &str) -> bool {
        self.find_volume(volume).secret.as_ref().and_then(|secret| secret.optional).unwrap_or(false)
    }

    /// The Secret or ConfigMap of a volume.
    fn volume(&self, name: &str) -> &'a str {
        let volume = self.find_volume(name);
        match (&volume.secret, &volume.config_map) {
            (Some(secret), _) => secret.secret_name.as_ref().unwrap(),
            (_, Some(map)) => &map.name,
            _ => panic!("volume {name} is neither"),
        }
    }
}

/// The shares of a new key: real ones, but for what the engine needs besides. That takes seconds to make here, and nothing
/// is signed in these tests.
fn deal(network: &str, threshold: Threshold) -> BTreeMap<SignerIndex, ShareDocument> {
    deal_of(random_scalar(), Sha256::digest(Uuid::new_v4()).into(), network, threshold)
}

/// Shares of this key.
fn deal_of(
    secret: Scalar,
    chain_code: [u8; 32],
    network: &str,
    threshold: Threshold,
) -> BTreeMap<SignerIndex, ShareDocument> {
    let others = (1..threshold.t()).map(|_| random_scalar());
    let coefficients: Vec<Scalar> = std::iter::once(secret).chain(others).collect();
    let at = |x: u8| {
        let x = Scalar::from(u64::from(x));
        coefficients.iter().rev().fold(Scalar::ZERO, |sum, coefficient| sum * x + coefficient)
    };
    let public =
        |secret: Scalar| PublicKey::from_affine((ProjectivePoint::GENERATOR * secret).to_affine()).unwrap();
    let public_shares: BTreeMap<SignerIndex, PublicKey> =
        threshold.signers().map(|index| (index, public(at(index.get())))).collect();
    let share = |index: SignerIndex| {
        let document = ShareDocument {
            version: 1,
            cluster: network.to_owned(),
            key: "default".to_owned(),
            epoch: 1,
            scheme: Scheme::EcdsaSecp256k1,
            origin: Origin::Generated,
            core: CoreShare {
                index,
                threshold,
                secret_share: serde_json::from_value(json!(hex::encode(at(index.get()).to_bytes()))).unwrap(),
                points: Points::Secp256k1(KeyPoints {
                    public_key: public(at(0)),
                    public_shares: public_shares.clone(),
                }),
                chain_code,
            },
            engines: EngineParts::default(),
        };
        (index, document)
    };
    threshold.signers().map(share).collect()
}

fn random_scalar() -> Scalar {
    loop {
        let bytes: [u8; 32] = Sha256::digest(Uuid::new_v4()).into();
        if let Some(scalar) = Scalar::from_repr(bytes.into()).into_option() {
            return scalar;
        }
    }
}

/// What a signer reports of its share.
fn report(share: &ShareDocument, path: &DerivationPath) -> Value {
    serde_json::to_value(ShareReport::of(share, path).unwrap()).unwrap()
}

fn conditions(hold: &[&str], do_not: &[&str]) -> Vec<Value> {
    let now = jiff::Timestamp::now();
    let condition = |kind: &&str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": format!("{now:.0}")});
    let mut all: Vec<Value> = hold.iter().map(|kind| condition(kind, "True")).collect();
    all.extend(do_not.iter().map(|kind| condition(kind, "False")));
    all
}

/// The Secrets and the ConfigMap of a key that was made before, as `keySource: ExistingSecrets` names them.
pub(crate) async fn existing_key(
    namespace: &Namespace,
    prefix: &str,
    network: &str,
    threshold: Threshold,
) -> Value {
    let shares = deal(network, threshold);
    let identities = tssctl::keygen::identities(threshold);
    let client: &Client = &namespace.client;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace.name);
    let mut names = Vec::new();
    for (index, share) in &shares {
        let name = format!("{prefix}-{index}");
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": name},
            "data": {
                "share": k8s_openapi::ByteString(share.to_json().unwrap().to_vec()),
                "identity": k8s_openapi::ByteString(identities[index].to_json().unwrap().to_vec()),
            },
        }))
        .unwrap();
        secrets.create(&PostParams::default(), &secret).await.unwrap();
        names.push(name);
    }
    let roster = tss_common::identity::Roster::of(&identities).unwrap().to_toml().unwrap();
    let map = format!("{prefix}-roster");
    namespace.create::<ConfigMap>(json!({"metadata": {"name": map}, "data": {"roster.toml": roster}})).await;
    json!({"type": "ExistingSecrets", "existingSecrets": {"secrets": names, "rosterConfigMap": map}})
}
