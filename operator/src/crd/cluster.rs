//! `TssCluster`: one threshold network.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DERIVATION_PATH, SecretEntry, derivation_path};

/// A threshold-signature network: `signers` signers each hold a share of one key, any `threshold` of them
/// sign together, and no machine ever holds the key.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tss.network",
    version = "v1alpha1",
    kind = "TssCluster",
    namespaced,
    shortname = "tss",
    category = "tss-network",
    status = "TssClusterStatus",
    derive = "PartialEq",
    doc = "A threshold-signature network: its signers each hold a share of one key, any `threshold` of them sign together, and no machine ever holds the key. Deleting it keeps the shares; applying it again brings the same key back.",
    printcolumn(name = "Threshold", type_ = "string", json_path = ".status.threshold", description = "how many of how many signers sign"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "whether it signs"),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "why, or why not"),
    printcolumn(name = "Signers", type_ = "string", json_path = ".status.readySigners", description = "signers that are ready"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses.ethereum", description = "the Ethereum address of the key"),
    printcolumn(name = "Public key", type_ = "string", json_path = ".status.publicKey", priority = 1, description = "the root public key"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 36 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name becomes part of the names of Services: expected at most 36 lower-case letters, digits or hyphens, beginning with a letter and ending with a letter or digit")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.threshold <= self.signers")
        .message("threshold: expected at most as many as there are signers"),
    validation = Rule::new("self.signers >= oldSelf.threshold")
        .message("signers: expected at least as many as are needed to sign now, which the key's new shares are made of; with fewer, go there in two steps"),
    validation = Rule::new("self.keySource.type != 'ExistingSecrets' || size(self.keySource.existingSecrets.secrets) == self.signers")
        .message("keySource.existingSecrets.secrets: expected the name of one Secret for each signer, in the order of their indices"),
    validation = Rule::new("has(self.networkName) == has(oldSelf.networkName) && (!has(self.networkName) || self.networkName == oldSelf.networkName)")
        .message("networkName is immutable: it is part of what is signed"),
)]
pub struct TssClusterSpec {
    /// How many signers are needed to sign: 2-of-3 means two. When it changes, the key gets new shares; its public key and
    /// addresses stay, and it signs meanwhile.
    #[schemars(range(min = 2, max = 15))]
    pub threshold: i32,
    /// How many signers there are. Each holds one share: with more than 15, a share would not fit into a Secret. When it
    /// changes, the key gets new shares, as with `threshold`; signers come and go at the end of their row.
    #[schemars(range(min = 2, max = 15))]
    pub signers: i32,
    /// The threshold protocol.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("protocol is immutable"))]
    pub protocol: Protocol,
    /// Where the key comes from.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("keySource is immutable: another source means another key"))]
    pub key_source: KeySource,
    /// When the signers' shares are made anew, with which the old ones are of no use. The public key stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
    /// Has backups made of each epoch's shares. Anybody who may read Secrets can take them elsewhere; all holders
    /// together can open them, and nobody else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// The network's name: part of every queue's name, of the shares, and of what is signed. Set it when
    /// the shares come from elsewhere. `{namespace}-{name}` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9-]+$"))]
    pub network_name: Option<String>,
    /// The derivation path of requests that name none, and of the addresses in the status. BIP32 without
    /// hardened steps; `m` is the root key.
    #[serde(default = "derivation_path")]
    #[schemars(length(max = 180), regex(pattern = DERIVATION_PATH))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("derivationPath is immutable: another path has another address. A SigningRequest can name its own path"))]
    pub derivation_path: String,
    /// Who may use the manager's API. There is no default: whoever reaches a manager without
    /// authentication can have everything signed that the policy allows.
    pub auth: Auth,
    /// The RabbitMQ that manager and signers talk over.
    pub rabbitmq: RabbitMq,
    /// The MongoDB that keeps requests.
    pub mongodb: MongoDb,
    /// What the signers sign, see docs/policy.md. Without it they sign everything they are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// The manager: the REST API and coordination.
    #[serde(default)]
    pub manager: ManagerSpec,
    /// The signers.
    #[serde(default)]
    pub signer: SignerSpec,
    /// Seconds in which a request ends, signed or failed.
    #[serde(default = "signing_timeout")]
    #[schemars(range(min = 1, max = 3600))]
    pub signing_timeout_seconds: i32,
    /// What manager and signers log: a level (`info`) or a filter (`info,tss_signer=debug`).
    #[serde(default = "log_level")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9_:=,\[\]{}.*-]+$"))]
    pub log_level: String,
    /// Has a fixed message signed on a schedule, through everything that a SigningRequest goes through, and tells of it
    /// in the operator's metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanarySpec>,
    /// Where manager and signers send their traces; nowhere when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<Traces>,
    /// Secrets with which images are pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

/// When shares are made anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refresh {
    /// The times at which they are, as five fields of cron, in UTC: `0 3 * * 0` is each Sunday at three.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100), regex(pattern = r"^\S+( \S+){4}$"))]
    pub schedule: Option<String>,
    /// Shares that were made before this time are made anew once it has come. Set to the present, it has them made now, for
    /// a signer that has lost its share, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<Time>,
}

/// Who holds backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// The holders, all of whom are needed to open a backup: of each its age recipients (`age1…`), any of which will do
    /// for this holder.
    #[schemars(
        length(min = 2, max = 16),
        inner(length(min = 1, max = 8), inner(length(max = 128), regex(pattern = "^age1[0-9a-z]+$")))
    )]
    pub holders: Vec<Vec<String>>,
}

fn signing_timeout() -> i32 {
    30
}

fn log_level() -> String {
    "info".into()
}

/// The canary: a fixed message that is signed on a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanarySpec {
    /// Seconds from one to the next. One that takes longer than this, or than 60 seconds, has failed.
    #[serde(default = "canary_interval")]
    #[schemars(range(min = 10, max = 86_400))]
    pub interval_seconds: i32,
    /// Which derived key signs; the one at the cluster's derivationPath when absent. The signers' policy has to allow
    /// it, and the hash sha256, without approvals.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 180), regex(pattern = DERIVATION_PATH))]
    pub derivation_path: Option<String>,
}

fn canary_interval() -> i32 {
    60
}

/// Where traces are sent, and how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traces {
    /// A collector in the same cluster that understands OTLP over HTTP: `http://collector.observability:4318`.
    #[schemars(length(max = 512), regex(pattern = r"^http://[^\s/@]+(/[^\s]*)?$"))]
    pub otlp_endpoint: String,
    /// How many of a hundred requests are traced, unless whoever makes a request has decided it.
    #[serde(default = "all")]
    #[schemars(range(min = 0, max = 100))]
    pub sample_percent: i32,
}

fn all() -> i32 {
    100
}

/// A threshold protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// DKLs23, by oblivious transfer.
    #[default]
    Dkls23,
}

impl Protocol {
    /// Its name in configuration files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dkls23 => "dkls23",
        }
    }
}

/// Where the key comes from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(self.type == 'ExistingSecrets') == has(self.existingSecrets)")
        .message("existingSecrets: expected with the type ExistingSecrets, and only then")
)]
pub struct KeySource {
    /// `Generate`: the signers make the key together in this cluster, each its own share. `ExistingSecrets`: their
    /// shares and identities stand in Secrets already.
    #[serde(default, rename = "type")]
    pub kind: KeySourceKind,
    /// Which Secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing_secrets: Option<ExistingSecrets>,
}

/// Where the key comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeySourceKind {
    /// The signers make it.
    #[default]
    Generate,
    /// It is there.
    ExistingSecrets,
}

/// Shares and identities made by `tssctl keygen` or `signer keygen`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExistingSecrets {
    /// One Secret for each signer, in the order of their indices. Its entry `share` is the signer's share file
    /// (`signer1.store`), its entry `identity` the signer's identity file (`signer1.identity`).
    #[schemars(length(min = 2, max = 15), inner(length(min = 1, max = 253)))]
    pub secrets: Vec<String>,
    /// A ConfigMap whose entry `roster.toml` is the roster.
    #[schemars(length(min = 1, max = 253))]
    pub roster_config_map: String,
}

/// Who may use the manager's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// `None`: whoever can reach it. The NetworkPolicy lets in the operator and the Pods labelled
    /// `tss.network/client: NAME-OF-THE-CLUSTER` of the same namespace.
    #[serde(rename = "type")]
    pub kind: AuthKind,
}

/// How callers are authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AuthKind {
    /// Not at all.
    None,
}

/// The RabbitMQ that manager and signers talk over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RabbitMq {
    /// The Secret that holds the URI: `amqp://` or `amqps://`.
    pub uri_secret: SecretEntry,
    /// The port that the URI names: the NetworkPolicies let nothing else out.
    #[serde(default = "rabbitmq_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
}

fn rabbitmq_port() -> i32 {
    5672
}

/// The MongoDB that keeps requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MongoDb {
    /// The Secret that holds the URI: `mongodb://` or `mongodb+srv://`.
    pub uri_secret: SecretEntry,
    /// The port that the URI names: the NetworkPolicies let nothing else out.
    #[serde(default = "mongodb_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// The database; when absent, one named after the network and its key, so that a new key begins with an empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9_-]+$"))]
    pub database: Option<String>,
}

fn mongodb_port() -> i32 {
    27_017
}

/// What the signers sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// A ConfigMap in the same namespace; a change of it is in force within a minute or two.
    #[schemars(length(min = 1, max = 253))]
    pub config_map: String,
    /// Which of its entries holds the policy file.
    #[serde(default = "policy_entry")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn policy_entry() -> String {
    "policy.toml".into()
}

/// The manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagerSpec {
    /// How many there are. Any of them takes over a request whose manager dies.
    #[serde(default = "manager_replicas")]
    #[schemars(range(min = 1, max = 16))]
    pub replicas: i32,
    /// Has the API served over TLS, and not otherwise. The operator has to trust who has signed the certificate: see its
    /// `--manager-ca`, `managerCa` in its chart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ManagerTls>,
    /// How its Pods run.
    #[serde(flatten)]
    pub pod: PodSpec,
}

impl Default for ManagerSpec {
    fn default() -> Self {
        Self { replicas: manager_replicas(), tls: None, pod: PodSpec::default() }
    }
}

impl ManagerSpec {
    /// What its API speaks.
    pub fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }
}

/// What a manager's API speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// It has no certificate.
    Http,
    /// It has one.
    Https,
}

impl Scheme {
    /// Its name in URLs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The certificate of the manager's API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagerTls {
    /// The Secret with the certificate and its chain in `tls.crt`, and the private key in `tls.key`, as cert-manager makes
    /// it; for the name `{name}-manager.{namespace}.svc`. When it changes, managers take the new certificate up without
    /// a restart.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

fn manager_replicas() -> i32 {
    2
}

/// The signers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignerSpec {
    /// Whether signers must not share a node. `Preferred` lets them where there are too few nodes, and the condition
    /// `ThresholdResilient` then says so.
    #[serde(default)]
    pub anti_affinity: AntiAffinity,
    /// The volume on which a signer keeps what it must never forget: the sessions it has begun, whom it signs
    /// with no more, and its audit log.
    #[serde(default)]
    pub storage: Storage,
    /// How their Pods run.
    #[serde(flatten)]
    pub pod: PodSpec,
}

/// How strictly signers are kept on nodes of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AntiAffinity {
    /// Where there are enough nodes.
    #[default]
    Preferred,
    /// A signer without a node of its own does not start.
    Required,
}

/// A signer's volume.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("storage is immutable: Kubernetes does not change the volumes of a StatefulSet"))]
pub struct Storage {
    /// How large it is.
    #[serde(default = "storage_size")]
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[0-9]+([.][0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"))]
    pub size: String,
    /// Its StorageClass; the default one when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

impl Default for Storage {
    fn default() -> Self {
        Self { size: storage_size(), storage_class_name: None }
    }
}

fn storage_size() -> String {
    "1Gi".into()
}

/// How Pods run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The image; the operator's own choice when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// What a container asks for and is limited to.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// Labels of the nodes that they may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32), inner(length(max = 63)))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that they tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Their PriorityClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// What a container asks for and is limited to, as texts: `cpu: 500m`, `memory: 128Mi`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What it asks for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub requests: BTreeMap<String, Quantity>,
    /// What it is limited to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8))]
    pub limits: BTreeMap<String, Quantity>,
}

impl Resources {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.limits.is_empty()
    }
}

/// What is known of a cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TssClusterStatus {
    /// The generation that the rest is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `KeyGenerated`, `SharesCurrent`, `BackedUp`, `QuorumAvailable`, `ThresholdResilient`, `Progressing`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// How many of how many signers sign: `2-of-3`. Another one than in the spec while new shares are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<String>,
    /// The network's name on the bus, in the shares and in what is signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_name: Option<String>,
    /// The root public key: 33 bytes, SEC1 compressed, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// What all shares of the key have in common, hashed, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commitment: Option<String>,
    /// The key at the cluster's derivation path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Addresses>,
    /// The key's epoch: grows each time its shares are made anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// The ConfigMap with the roster: the signers' public identities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roster: Option<String>,
    /// How far new shares are, while they are made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewal: Option<Renewal>,
    /// The backups of the shares that are in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backups: Option<Backups>,
    /// Secrets with shares of the epoch before that no signer uses any more. The operator cannot delete them; do, and destroy
    /// their backups: enough of them are the key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired_shares: Vec<String>,
    /// How far key generation is, until it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_generation: Option<KeyGeneration>,
    /// `3/3`: signers that are ready, of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_signers: Option<String>,
    /// Each signer's state.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["index".into()]))]
    pub signers: Vec<SignerStatus>,
    /// Where programs in the cluster find the manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager_url: Option<String>,
}

/// The key at a derivation path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// The path.
    pub path: String,
    /// The derived public key: 33 bytes, SEC1 compressed, in hex.
    pub public_key: String,
    /// Its Ethereum address (EIP-55).
    pub ethereum: String,
    /// Its Bitcoin address (P2WPKH).
    pub bitcoin: String,
}

/// How far key generation is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyGeneration {
    /// Which try it is, from 1.
    pub attempt: i32,
    /// How many tries have failed.
    #[serde(default)]
    pub failures: i32,
    /// Why the last one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// When the next one may begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// What all signers of this try agree on: the public key of a new key, the commitment of new shares. Once it stands
    /// here this try's shares are kept, and no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided: Option<String>,
}

/// How far new shares of the key are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Renewal {
    /// Their epoch.
    pub epoch: i64,
    /// How many signers sign with them.
    pub threshold: i32,
    /// How many signers get one.
    pub signers: i32,
    /// Which signers have a share of the epoch before. As many of them as sign deal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<i32>,
    /// The ConfigMap with the roster of those who get one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roster: Option<String>,
    /// Whether all of them are kept: the record follows, and nothing but that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// Its tries.
    #[serde(flatten)]
    pub tries: KeyGeneration,
}

/// The backups of an epoch's shares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backups {
    /// The epoch of the shares.
    pub epoch: i64,
    /// What tells them from those of other shares, or for other holders, in the names of their Secrets.
    pub name: String,
    /// The Secrets with them, once all are made, in the order of the signers' indices. The entry `backup` is the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// When all were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_at: Option<Time>,
    /// The tries to make them.
    #[serde(flatten)]
    pub tries: KeyGeneration,
}

/// A signer's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignerStatus {
    /// Which signer, from 1.
    pub index: i32,
    /// Whether it takes part in signing.
    pub ready: bool,
    /// What it does, or waits for.
    pub state: String,
    /// The node it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The Secret with its share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
}
