//! The Jobs of key generation and of new shares. In each, a first container, the signer's, makes or reads something in memory and writes a
//! report; it talks to RabbitMQ and has no token. A second one, the operator's, stores what was made in a Secret and
//! hands on the report; it has a token with which Secrets can be created, none read.

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, EnvVar, EnvVarSource,
    KeyToPath, ObjectFieldSelector, PodSpec, PodTemplateSpec, ProjectedVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::config::{CONFIG, IDENTITY, RABBITMQ, ROSTER, SHARE, WORK};
use super::pod::{
    config_env, config_volume, container, env, memory_volume, mount, pod, resources, secret_volume,
    uri_volume, writable_mount,
};
use super::{Objects, Options, Unserializable, config, meta, service_account};
use crate::cluster::jobs::{JobPlan, Task};
use crate::cluster::names;
use crate::cluster::record::ShareSecrets;
use crate::cluster::validate::Cluster;
use crate::crd::Resources;

pub(in crate::cluster) const COMPONENT: &str = "key-generation";

/// Seconds that a signer's Job waits for the others'.
const PATIENCE: &str = "120";
/// Seconds after which a Job that has not ended has failed: its image may not be there, or no node.
const DEADLINE: i64 = 180;
/// How often a Job that can be repeated is.
const RETRIES: i32 = 3;
/// Where a Secret is mounted that may have been stored before.
const STORED: &str = "/run/secrets/tss/stored";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

pub(super) fn build(
    cluster: &Cluster,
    options: &Options,
    jobs: &[JobPlan],
    objects: &mut Objects,
) -> Result<(), Unserializable> {
    let name = names::keygen(&cluster.name);
    objects.push(service_account(cluster, name.clone(), COMPONENT))?;
    objects.push(role(cluster, name.clone()))?;
    objects.push(role_binding(cluster, name.clone()))?;
    let (settings, _) =
        config::config_map(cluster, format!("{name}-config"), COMPONENT, config::keygen(cluster));
    objects.push(settings)?;
    objects.push(super::network::key_generation(cluster, name))?;
    for plan in jobs {
        objects.push(job(cluster, options, plan))?;
    }
    Ok(())
}

/// Secrets can be created, and not one be read: neither another signer's, nor one's own.
fn role(cluster: &Cluster, name: String) -> Role {
    Role {
        metadata: meta(cluster, name, COMPONENT),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".into()]),
            verbs: vec!["create".into()],
            ..PolicyRule::default()
        }]),
    }
}

fn role_binding(cluster: &Cluster, name: String) -> RoleBinding {
    RoleBinding {
        metadata: meta(cluster, name.clone(), COMPONENT),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "Role".into(),
            name: name.clone(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name,
            namespace: Some(cluster.namespace.clone()),
            ..Subject::default()
        }]),
    }
}

fn job(cluster: &Cluster, options: &Options, plan: &JobPlan) -> Job {
    let name = plan.name(&cluster.name);
    let mut labels = names::labels(&cluster.name, COMPONENT);
    labels.insert(names::SIGNER.into(), plan.index.to_string());
    let mut metadata = meta(cluster, name, COMPONENT);
    metadata.labels = Some(labels.clone());
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(match plan.task {
                // A signer that has begun to make something with others cannot begin again with those of the same try.
                Task::Generate | Task::Renew { .. } => 0,
                // Whether it is there is the question.
                Task::Inspect { awaited: false, .. } => 0,
                // Nobody can tell whether what is there was made by an earlier run: the next try takes another name.
                Task::Backup { .. } => 0,
                Task::Identity | Task::Keep { .. } | Task::Inspect { awaited: true, .. } => RETRIES,
            }),
            active_deadline_seconds: Some(DEADLINE),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod_of(cluster, options, plan)),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}

fn pod_of(cluster: &Cluster, options: &Options, plan: &JobPlan) -> PodSpec {
    let wanted = &cluster.spec.signer.pod;
    let resources = resources(&Resources::default(), "100m", "64Mi", "512Mi");
    let image = wanted.image.as_ref().unwrap_or(&options.signer_image);
    let made = Made::of(cluster, plan);

    let index = plan.index.to_string();
    let mut arguments = vec![made.command, "--index", &index, "--report", REPORT];
    arguments.extend(made.arguments.iter().map(String::as_str));
    let mut variables = config_env(plan.threshold);
    variables.push(env(&format!("TSS_SIGNER{index}_KEY_FILE"), made.share));
    variables.push(env(&format!("TSS_SIGNER{index}_IDENTITY_FILE"), made.identity));
    let maker = Container {
        env: Some(variables),
        volume_mounts: Some(made.mounts),
        ..container("make", image, &arguments, &resources)
    };

    let store: Vec<&str> = made.store.iter().map(String::as_str).collect();
    let mut mounts = vec![mount("token", TOKEN), mount("work", WORK)];
    mounts.extend(made.store_mounts);
    let store = Container {
        env: Some(vec![
            field("JOB_NAME", "metadata.labels['batch.kubernetes.io/job-name']"),
            field("JOB_UID", "metadata.labels['batch.kubernetes.io/controller-uid']"),
        ]),
        volume_mounts: Some(mounts),
        ..container("store", &options.operator_image, &store, &resources)
    };

    let mut volumes = made.volumes;
    volumes.extend([
        config_volume("config", &format!("{}-config", names::keygen(&cluster.name))),
        memory_volume("work", "16Mi"),
        token(),
    ]);
    PodSpec {
        init_containers: Some(vec![maker]),
        containers: vec![store],
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(5),
        volumes: Some(volumes),
        ..pod(cluster, names::keygen(&cluster.name), wanted)
    }
}

const REPORT: &str = "/run/tss/report.json";

/// What the two containers of a Job do.
struct Made {
    /// The signer's command and its arguments.
    command: &'static str,
    arguments: Vec<String>,
    /// Where it finds or leaves a share and an identity.
    share: String,
    identity: String,
    mounts: Vec<VolumeMount>,
    /// The arguments of the container that stores.
    store: Vec<String>,
    store_mounts: Vec<VolumeMount>,
    volumes: Vec<Volume>,
}

impl Made {
    fn of(cluster: &Cluster, plan: &JobPlan) -> Self {
        let work = |file: &str| format!("{WORK}/{file}");
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let identity_secret = ShareSecrets::of(cluster, plan.index, 1, "").identity;
        let label = format!("{}={}", names::CLUSTER, cluster.name);
        let signer = format!("{}={}", names::SIGNER, plan.index);
        let labelled = ["--label", &label, "--label", &signer, "--report", REPORT];
        let config = vec![mount("config", CONFIG), writable_mount("work", WORK)];
        let known = || {
            (
                [mount("roster", ROSTER), mount("identity", IDENTITY), mount("rabbitmq", RABBITMQ)],
                [
                    config_volume("roster", &plan.roster),
                    secret_volume("identity", &identity_secret, &["identity"], false),
                    uri_volume("rabbitmq", &cluster.spec.rabbitmq.uri_secret),
                ],
            )
        };
        // Where the Secret of a share that is made goes when its Job goes.
        let owner = ["--owner-job", "$(JOB_NAME)", "--owner-uid", "$(JOB_UID)"];
        let new_share = format!("share={}", work("share"));
        let store_new = || {
            words(
                &[&["store", "--secret", "$(JOB_NAME)", "--entry", &new_share], &owner[..], &labelled]
                    .concat(),
            )
        };
        match &plan.task {
            Task::Identity => {
                // It may have been stored, and the report lost: then it is the same one again.
                let stored = format!("{STORED}/identity");
                let entry = format!("identity={}", work("identity"));
                let store = ["store", "--secret", &identity_secret, "--entry", &entry, "--unless", &stored];
                Self {
                    command: "identity",
                    arguments: words(&["--existing", &stored]),
                    share: work("share"),
                    identity: work("identity"),
                    mounts: [config, vec![mount("stored", STORED), mount("rabbitmq", RABBITMQ)]].concat(),
                    store: words(&[&store[..], &labelled].concat()),
                    store_mounts: vec![mount("stored", STORED)],
                    volumes: vec![
                        secret_volume("stored", &identity_secret, &["identity"], true),
                        uri_volume("rabbitmq", &cluster.spec.rabbitmq.uri_secret),
                    ],
                }
            }
            Task::Generate => {
                let (mounts, volumes) = known();
                Self {
                    command: "keygen",
                    arguments: words(&["--attempt", &plan.attempt, "--timeout", PATIENCE]),
                    share: work("share"),
                    identity: format!("{IDENTITY}/identity"),
                    mounts: [config, mounts.to_vec()].concat(),
                    store: store_new(),
                    store_mounts: Vec::new(),
                    volumes: volumes.to_vec(),
                }
            }
            Task::Renew { ends, dealers, held } => {
                let (mounts, volumes) = known();
                let dealers: Vec<String> = dealers.iter().map(u8::to_string).collect();
                let (dealers, epoch) = (dealers.join(","), ends.to_string());
                let out = work("share");
                let line = ["--dealers", &dealers, "--epoch", &epoch, "--out", &out];
                let tried = ["--attempt", &plan.attempt, "--timeout", PATIENCE];
                Self {
                    command: "renew",
                    arguments: words(&[&line[..], &tried].concat()),
                    // Whoever has none finds none there.
                    share: format!("{SHARE}/share"),
                    identity: format!("{IDENTITY}/identity"),
                    mounts: [config, mounts.to_vec(), held.iter().map(|_| mount("share", SHARE)).collect()]
                        .concat(),
                    store: store_new(),
                    store_mounts: Vec::new(),
                    volumes: volumes
                        .into_iter()
                        .chain(held.iter().map(|held| secret_volume("share", held, &["share"], false)))
                        .collect(),
                }
            }
            Task::Keep { made, kept, public_key } => {
                let (mounts, volumes) = known();
                let (stored, entry) = (format!("{STORED}/share"), format!("share={SHARE}/share"));
                let store = ["store", "--secret", kept, "--entry", &entry, "--unless", &stored];
                let share = mount("share", SHARE);
                Self {
                    command: "inspect",
                    // What is there already is what counts: who has put it there is not known.
                    arguments: words(&["--expect-public-key", public_key, "--existing", &stored]),
                    share: format!("{SHARE}/share"),
                    identity: format!("{IDENTITY}/identity"),
                    mounts: [config, mounts.to_vec(), vec![share.clone(), mount("stored", STORED)]].concat(),
                    store: words(&[&store[..], &labelled].concat()),
                    store_mounts: vec![share, mount("stored", STORED)],
                    volumes: [
                        volumes.to_vec(),
                        vec![
                            secret_volume("share", made, &["share"], false),
                            secret_volume("stored", kept, &["share"], true),
                        ],
                    ]
                    .concat(),
                }
            }
            Task::Backup { share, holders, kept } => {
                let (mounts, volumes) = known();
                let out = work("backup");
                let holders = holders.iter().flat_map(|holder| ["--holder", holder.as_str()]);
                let entry = format!("backup={out}");
                let store = ["store", "--secret", kept, "--entry", &entry];
                Self {
                    command: "backup",
                    arguments: words(&holders.chain(["--out", &out]).collect::<Vec<_>>()),
                    share: format!("{SHARE}/share"),
                    identity: format!("{IDENTITY}/identity"),
                    mounts: [config, mounts.to_vec(), vec![mount("share", SHARE)]].concat(),
                    store: words(&[&store[..], &labelled].concat()),
                    store_mounts: Vec::new(),
                    volumes: [volumes.to_vec(), vec![secret_volume("share", share, &["share"], false)]]
                        .concat(),
                }
            }
            Task::Inspect { share, awaited } => {
                let (mounts, volumes) = known();
                Self {
                    command: "inspect",
                    arguments: Vec::new(),
                    share: format!("{SHARE}/share"),
                    identity: format!("{IDENTITY}/identity"),
                    mounts: [config, mounts.to_vec(), vec![mount("share", SHARE)]].concat(),
                    store: words(&["store", "--report", REPORT]),
                    store_mounts: Vec::new(),
                    volumes: [volumes.to_vec(), vec![secret_volume("share", share, &["share"], !awaited)]]
                        .concat(),
                }
            }
        }
    }
}

fn field(name: &str, path: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { field_path: path.into(), api_version: None }),
            ..EnvVarSource::default()
        }),
    }
}

/// What Kubernetes gives a Pod to talk to the API server with, for one container of it only.
fn token() -> Volume {
    let file = |key: &str| KeyToPath { key: key.into(), path: key.into(), mode: None };
    Volume {
        name: "token".into(),
        projected: Some(ProjectedVolumeSource {
            default_mode: None,
            sources: Some(vec![
                VolumeProjection {
                    service_account_token: Some(ServiceAccountTokenProjection {
                        path: "token".into(),
                        expiration_seconds: Some(600),
                        audience: None,
                    }),
                    ..VolumeProjection::default()
                },
                VolumeProjection {
                    config_map: Some(ConfigMapProjection {
                        name: "kube-root-ca.crt".into(),
                        items: Some(vec![file("ca.crt")]),
                        optional: None,
                    }),
                    ..VolumeProjection::default()
                },
                VolumeProjection {
                    downward_api: Some(DownwardAPIProjection {
                        items: Some(vec![DownwardAPIVolumeFile {
                            path: "namespace".into(),
                            field_ref: Some(ObjectFieldSelector {
                                field_path: "metadata.namespace".into(),
                                api_version: None,
                            }),
                            ..DownwardAPIVolumeFile::default()
                        }]),
                    }),
                    ..VolumeProjection::default()
                },
            ]),
        }),
        ..Volume::default()
    }
}
