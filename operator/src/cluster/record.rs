//! What key a cluster has, as a ConfigMap that outlives the TssCluster: applying it again brings the
//! same key back.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use tss_mpc::Threshold;

use super::jobs::ShareReport;
use super::names;
use super::validate::Cluster;
use crate::crd::{Addresses, KeySourceKind, Renewal, TssClusterStatus};

/// The version of the record that this code writes and reads.
const VERSION: u32 = 1;
/// The entry of the ConfigMap.
const ENTRY: &str = "key.json";

/// A key that all signers have durably kept their shares of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRecord {
    version: u32,
    /// The network's name.
    pub network_name: String,
    /// How many signers sign.
    pub threshold: u8,
    /// How many there are.
    pub signers: u8,
    /// The protocol.
    pub protocol: String,
    /// The epoch.
    pub epoch: i64,
    /// The root public key, in hex.
    pub public_key: String,
    /// What all shares of the key have in common, hashed, in hex.
    pub commitment: String,
    /// The key at the cluster's derivation path.
    pub addresses: Addresses,
    /// The ConfigMap with the roster.
    pub roster: String,
    /// Where each signer's share is, in the order of their indices.
    pub shares: Vec<ShareSecrets>,
}

/// The Secrets of one signer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShareSecrets {
    /// The one with the entry `identity`.
    pub identity: String,
    /// The one with the entry `share`.
    pub share: String,
}

impl ShareSecrets {
    /// Where a signer's share is, once it is kept, or is already.
    pub fn of(cluster: &Cluster, index: u8, epoch: i64, public_key: &str) -> Self {
        let existing = cluster.spec.key_source.existing_secrets.as_ref();
        match existing.and_then(|existing| existing.secrets.get(usize::from(index).saturating_sub(1))) {
            Some(secret) => Self { identity: secret.clone(), share: secret.clone() },
            None => Self {
                identity: names::identity(&cluster.name, index),
                share: names::share(&cluster.name, index, epoch, public_key),
            },
        }
    }

    /// Where a signer's share of a later epoch is, once it is kept.
    pub fn renewed(cluster: &Cluster, index: u8, epoch: i64, commitment: &str) -> Self {
        let share = names::later_share(&cluster.name, index, epoch, commitment);
        Self { share, ..Self::of(cluster, index, epoch, "") }
    }
}

/// The ConfigMap with a cluster's first roster.
pub fn roster_name(cluster: &Cluster) -> String {
    match &cluster.spec.key_source.existing_secrets {
        Some(existing) => existing.roster_config_map.clone(),
        None => names::roster(&cluster.name),
    }
}

impl KeyRecord {
    /// The record of a key that all signers reported.
    pub fn new(cluster: &Cluster, report: &ShareReport) -> Self {
        let shares =
            cluster.indices().map(|index| ShareSecrets::of(cluster, index, report.epoch, &report.public_key));
        Self {
            version: VERSION,
            network_name: cluster.network.clone(),
            threshold: cluster.threshold.t(),
            signers: cluster.threshold.n(),
            protocol: cluster.spec.protocol.as_str().into(),
            epoch: report.epoch,
            public_key: report.public_key.clone(),
            commitment: report.commitment.clone(),
            addresses: report.addresses(),
            roster: roster_name(cluster),
            shares: shares.collect(),
        }
    }

    /// The record of the same key's next epoch, which all its signers have come to and keep. Nothing of it is anybody's to
    /// say but the status'. `None` when that is not all there.
    pub fn renewed(&self, cluster: &str, renewal: &Renewal) -> Option<Self> {
        let (threshold, signers) =
            (u8::try_from(renewal.threshold).ok()?, u8::try_from(renewal.signers).ok()?);
        Threshold::new(threshold, signers).ok()?;
        let commitment = renewal.tries.decided.clone().filter(|_| renewal.kept)?;
        let shares = (1..=signers).map(|index| ShareSecrets {
            identity: match self.shares.get(usize::from(index).saturating_sub(1)) {
                Some(before) => before.identity.clone(),
                None => names::identity(cluster, index),
            },
            share: names::later_share(cluster, index, renewal.epoch, &commitment),
        });
        Some(Self {
            threshold,
            signers,
            epoch: renewal.epoch,
            roster: renewal.roster.clone()?,
            shares: shares.collect(),
            commitment,
            ..self.clone()
        })
    }

    /// Whether the status of the TssCluster knows this epoch as something else.
    pub fn contradicts(&self, status: &TssClusterStatus) -> bool {
        fn differs<T: PartialEq>(known: &Option<T>, recorded: &T) -> bool {
            known.as_ref().is_some_and(|known| known != recorded)
        }
        status.epoch == Some(self.epoch)
            && (differs(&status.commitment, &self.commitment)
                || differs(&status.public_key, &self.public_key)
                || differs(&status.addresses, &self.addresses)
                || differs(&status.roster, &self.roster)
                || differs(&status.threshold, &self.threshold().to_string()))
    }

    /// The record of a key that a TssCluster had before the record was lost.
    pub fn of_status(cluster: &Cluster, status: &TssClusterStatus) -> Option<Self> {
        let public_key = status.public_key.as_ref()?;
        let epoch = status.epoch?;
        let (threshold, signers) = status.threshold.as_ref()?.split_once("-of-")?;
        let (threshold, signers) = (threshold.parse().ok()?, signers.parse().ok()?);
        Threshold::new(threshold, signers).ok()?;
        let shares = (1..=signers).map(|index| {
            let secrets = ShareSecrets::of(cluster, index, epoch, public_key);
            let status = status.signers.iter().find(|signer| signer.index == i32::from(index));
            match status.and_then(|signer| signer.share.clone()) {
                Some(share) => ShareSecrets { share, ..secrets },
                None => secrets,
            }
        });
        Some(Self {
            version: VERSION,
            network_name: cluster.network.clone(),
            threshold,
            signers,
            protocol: cluster.spec.protocol.as_str().into(),
            epoch,
            public_key: public_key.clone(),
            commitment: status.commitment.clone()?,
            addresses: status.addresses.clone()?,
            roster: status.roster.clone().unwrap_or_else(|| roster_name(cluster)),
            shares: shares.collect(),
        })
    }

    /// The Secret with a signer's share; the empty name where the key has no such signer.
    pub fn share_of(&self, index: u8) -> String {
        let place = usize::from(index).saturating_sub(1);
        self.shares.get(place).map(|secrets| secrets.share.clone()).unwrap_or_default()
    }

    /// How many of how many signers sign.
    pub fn threshold(&self) -> Threshold {
        Threshold::new(self.threshold, self.signers).expect("checked when it was read or made")
    }

    /// Reads the record of a ConfigMap.
    ///
    /// # Errors
    /// What is wrong with it, and what was expected.
    pub fn read(map: &ConfigMap) -> Result<Self, String> {
        let name = map.metadata.name.as_deref().unwrap_or_default();
        let wrong = |problem: String| {
            format!(
                "ConfigMap {name}: {problem}: expected what the operator once wrote there; restore it from a backup"
            )
        };
        let text = map.data.as_ref().and_then(|data| data.get(ENTRY));
        let text = text.ok_or_else(|| wrong(format!("it has no entry {ENTRY}")))?;
        let record: Self = serde_json::from_str(text).map_err(|error| wrong(format!("{ENTRY}: {error}")))?;
        if record.version != VERSION {
            return Err(wrong(format!("version {}, expected {VERSION}", record.version)));
        }
        Threshold::new(record.threshold, record.signers).map_err(|error| wrong(error.to_string()))?;
        if record.shares.len() != usize::from(record.signers) {
            return Err(wrong(format!("{} shares of {} signers", record.shares.len(), record.signers)));
        }
        Ok(record)
    }

    /// The ConfigMap that keeps it: without an owner, and immutable.
    ///
    /// # Errors
    /// Should it have no JSON form.
    pub fn to_config_map(&self, cluster: &Cluster) -> Result<ConfigMap, serde_json::Error> {
        let text = serde_json::to_string_pretty(self)?;
        Ok(kept(cluster, names::key(&cluster.name, self.epoch), ENTRY, text))
    }

    /// That a cluster asks for this key and no other.
    ///
    /// # Errors
    /// What differs, and what to do.
    pub fn check(&self, cluster: &Cluster) -> Result<(), String> {
        // Shares of later epochs are kept by the operator, wherever the first were, and so are later rosters.
        let asked: Vec<ShareSecrets> = (1..=self.signers)
            .zip(&self.shares)
            .map(|(index, kept)| {
                let later = ShareSecrets::renewed(cluster, index, self.epoch, &self.commitment);
                let first = || ShareSecrets::of(cluster, index, self.epoch, &self.public_key);
                if *kept == later { later } else { first() }
            })
            .collect();
        let first = roster_name(cluster);
        let is_later = cluster.spec.key_source.kind == KeySourceKind::Generate
            && self.roster.starts_with(&format!("{first}-"));
        let roster = if is_later { &self.roster } else { &first };
        let spec = &cluster.spec;
        let differs = [
            ("networkName", self.network_name.clone(), cluster.network.clone()),
            ("protocol", self.protocol.clone(), spec.protocol.as_str().into()),
            ("derivationPath", self.addresses.path.clone(), spec.derivation_path.clone()),
            (
                "keySource",
                format!("{:?} and the roster {}", self.shares, self.roster),
                format!("{asked:?} and the roster {roster}"),
            ),
        ]
        .into_iter()
        .find(|(_, kept, asked)| kept != asked);
        let Some((field, kept, asked)) = differs else { return Ok(()) };
        let was = match spec.key_source.kind {
            KeySourceKind::Generate => "made here before",
            KeySourceKind::ExistingSecrets => "taken over here before",
        };
        Err(format!(
            "ConfigMap {} says that a key was {was}, with {field} {kept}; the TssCluster has {asked}. To use that key, \
             delete the TssCluster and apply it with {field} {kept}. For a key of its own, give it another name",
            names::key(&cluster.name, self.epoch)
        ))
    }
}

/// A ConfigMap that outlives the TssCluster.
pub fn kept(cluster: &Cluster, name: String, entry: &str, text: String) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(cluster.namespace.clone()),
            labels: Some(names::labels(&cluster.name, "key")),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(entry.into(), text)])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}
