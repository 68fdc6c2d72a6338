//! What the programs tell of shares and identities: nothing secret, in JSON, for other programs.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tss_common::ed25519::VerifyingKey;
use tss_common::identity::{PublicIdentity, SealingKey};
use tss_common::intent::hash_fields;
use tss_mpc::{DerivationPath, EngineId, Origin, PublicKey, Scheme, ShareDocument, SignerIndex};

/// What can be told of a share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareReport {
    /// Whose share it is.
    pub index: SignerIndex,
    /// How many signers sign.
    pub threshold: u8,
    /// How many signers there are.
    pub signers: u8,
    /// The cluster the key belongs to.
    pub cluster: String,
    /// The key's id.
    pub key: String,
    /// Its epoch.
    pub epoch: u64,
    /// Where the key came from; not told of one that its signers made.
    #[serde(default, skip_serializing_if = "Origin::is_generated")]
    pub origin: Origin,
    /// The root public key, compressed.
    pub public_key: PublicKey,
    /// A hash over all that the shares of one key have in common: equal at two signers if and only if
    /// their shares were made together.
    #[serde(with = "hex::serde")]
    pub commitment: [u8; 32],
    /// The configured path.
    pub path: DerivationPath,
    /// The public key there, compressed.
    pub derived_public_key: PublicKey,
    /// The Ethereum address of the derived key.
    pub ethereum_address: String,
    /// The Bitcoin address of the derived key.
    pub bitcoin_address: String,
}

impl ShareReport {
    /// The report of a share, with the key that it has at `path`.
    ///
    /// # Errors
    /// When the path leads to no key, a chance of 2⁻¹²⁷, or the key is not for ECDSA.
    pub fn of(share: &ShareDocument, path: &DerivationPath) -> Result<Self, String> {
        let core = &share.core;
        // Its addresses are those of an ECDSA key.
        share.check_scheme(Scheme::EcdsaSecp256k1).map_err(|error| error.to_string())?;
        let public_key = core.secp256k1().map_err(|error| error.to_string())?.public_key;
        let derived = public_key
            .derive(&core.chain_code, path)
            .ok_or_else(|| format!("`path`: {path} derives no key: expected another path"))?;
        Ok(Self {
            index: core.index,
            threshold: core.threshold.t(),
            signers: core.threshold.n(),
            cluster: share.cluster.clone(),
            key: share.key.clone(),
            epoch: share.epoch,
            origin: share.origin,
            public_key,
            commitment: commitment(share),
            path: path.clone(),
            derived_public_key: derived,
            ethereum_address: derived.ethereum_address(),
            bitcoin_address: derived.bitcoin_address(),
        })
    }
}

/// A hash over all that the shares of one key at one epoch have in common.
pub(crate) fn commitment(share: &ShareDocument) -> [u8; 32] {
    let core = &share.core;
    // Whose part is in it can sign with it.
    let engines = share.engines.dkls23.as_ref().map_or("", |_| EngineId::Dkls23.as_str());
    let epoch = share.epoch.to_be_bytes();
    let parties = [core.threshold.t(), core.threshold.n()];
    let public_key = core.public_key().to_bytes();
    let public_shares: Vec<u8> = core
        .points
        .public_shares()
        .iter()
        .flat_map(|(index, public)| std::iter::once(index.get()).chain(public.to_bytes()))
        .collect();
    let mut fields: Vec<&[u8]> = vec![
        share.cluster.as_bytes(),
        share.key.as_bytes(),
        &epoch,
        share.scheme.as_str().as_bytes(),
        engines.as_bytes(),
        &parties,
        &public_key,
        &core.chain_code,
        &public_shares,
    ];
    // Of a key that its signers made it is what it was before there were others.
    let origin = share.origin.to_string();
    if !share.origin.is_generated() {
        fields.push(origin.as_bytes());
    }
    hash_fields("tss.network/share-commitment/v1", &fields)
}

/// What can be told of an identity: what belongs in the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityReport {
    /// Whose identity it is.
    pub index: SignerIndex,
    /// What verifies its signatures.
    pub verifying_key: VerifyingKey,
    /// What seals a message to it.
    pub sealing_key: SealingKey,
}

impl IdentityReport {
    /// The report of a signer's identity.
    pub fn of(index: SignerIndex, identity: PublicIdentity) -> Self {
        let PublicIdentity { verifying_key, sealing_key } = identity;
        Self { index, verifying_key, sealing_key }
    }
}

/// Writes a report as one line of JSON. Whoever reads the file finds all of it or none; one that is there
/// is replaced.
///
/// # Errors
/// Naming the file.
pub fn write(file: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let write = || -> anyhow::Result<()> {
        let mut name: OsString = file.file_name().context("expected the name of a file")?.to_owned();
        name.push(".new");
        let new: PathBuf = file.with_file_name(name);
        let written = File::create(&new).and_then(|mut content| {
            serde_json::to_writer(&mut content, report)?;
            content.write_all(b"\n")?;
            content.sync_all()?;
            std::fs::rename(&new, file)
        });
        written.inspect_err(|_| {
            // Half a report is of no use.
            let _ = std::fs::remove_file(&new);
        })?;
        Ok(())
    };
    write().with_context(|| format!("report file {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    use tss_common::identity::Identity;
    use tss_mpc::local::{Machines, run_local};
    use tss_mpc::point::{KeyPoints, Points};
    use tss_mpc::{AnyKey, Dkls23, Engine as _, KeygenSetup, SessionId, Threshold};

    use super::*;

    /// The shares of two keys.
    static KEYS: LazyLock<[BTreeMap<SignerIndex, ShareDocument>; 2]> = LazyLock::new(|| [1, 2].map(shares));

    fn shares(session: u8) -> BTreeMap<SignerIndex, ShareDocument> {
        let threshold = Threshold::new(2, 3).unwrap();
        let machines: Machines<ShareDocument> = threshold
            .signers()
            .map(|index| {
                let (cluster, key) = ("c".to_owned(), "k".to_owned());
                let setup = KeygenSetup { session: SessionId([session; 32]), cluster, key, index, threshold };
                (index, Dkls23.keygen(setup).unwrap())
            })
            .collect();
        run_local(machines).unwrap()
    }

    fn report(share: &ShareDocument) -> ShareReport {
        ShareReport::of(share, &"0/1/2".parse().unwrap()).unwrap()
    }

    #[test]
    fn all_shares_of_a_key_have_one_commitment_and_those_of_another_key_another() {
        let [one, other] = &*KEYS;
        let reports: Vec<ShareReport> = one.values().map(report).collect();
        for (number, told) in (1..).zip(&reports) {
            assert_eq!(told.index.get(), number);
            assert_eq!(ShareReport { index: reports[0].index, ..told.clone() }, reports[0]);
        }
        let ShareReport { threshold, signers, cluster, key, epoch, public_key, .. } = reports[0].clone();
        assert_eq!((threshold, signers, cluster.as_str(), key.as_str(), epoch), (2, 3, "c", "k", 1));
        let first = one.values().next().unwrap();
        assert_eq!(AnyKey::from(public_key), first.core.public_key());
        let derived = public_key.derive(&first.core.chain_code, &"0/1/2".parse().unwrap()).unwrap();
        assert_eq!(reports[0].derived_public_key, derived);
        assert_eq!(reports[0].ethereum_address, derived.ethereum_address());
        assert_eq!(reports[0].bitcoin_address, derived.bitcoin_address());
        let told: Vec<_> = other.values().map(report).collect();
        assert!(told.iter().all(|told| told.commitment == report(&other[&told.index]).commitment));
        assert_ne!(told[0].commitment, reports[0].commitment);
        assert_ne!(told[0].public_key, reports[0].public_key);
    }

    fn points_of(share: &mut ShareDocument) -> &mut KeyPoints<PublicKey> {
        match &mut share.core.points {
            Points::Secp256k1(points) => points,
            Points::Ed25519(_) => panic!("an ECDSA key"),
        }
    }

    fn points_of_other(share: &ShareDocument) -> KeyPoints<PublicKey> {
        share.core.secp256k1().unwrap().clone()
    }

    #[test]
    fn everything_that_shares_have_in_common_changes_the_commitment() {
        let [one, other] = &*KEYS;
        let changes: [fn(&mut ShareDocument, &ShareDocument); 10] = [
            |share, _| share.cluster.push('c'),
            |share, _| (share.cluster, share.key) = ("ck".into(), String::new()),
            |share, _| share.key.push('k'),
            |share, _| share.epoch = 2,
            |share, _| share.origin = Origin::Imported,
            |share, _| share.engines.dkls23 = None,
            |share, _| share.core.threshold = Threshold::new(3, 3).unwrap(),
            |share, other| points_of(share).public_key = points_of_other(other).public_key,
            |share, _| share.core.chain_code[31] ^= 1,
            |share, other| points_of(share).public_shares = points_of_other(other).public_shares,
        ];
        let share = one.values().next().unwrap().to_json().unwrap();
        let base = commitment(&ShareDocument::from_json(&share).unwrap());
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = ShareDocument::from_json(&share).unwrap();
            change(&mut changed, other.values().next().unwrap());
            assert_ne!(commitment(&changed), base, "change {number}");
        }
    }

    #[test]
    fn a_report_is_one_short_line_that_replaces_another_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.json");
        let share = KEYS[0].values().next_back().unwrap();
        for told in [report(share), ShareReport::of(share, &DerivationPath::root()).unwrap()] {
            write(&file, &told).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            // A Kubernetes termination message has 4096 bytes.
            assert!(text.len() < 2048 && text.ends_with("}\n") && text.lines().count() == 1, "{text}");
            assert_eq!(serde_json::from_str::<ShareReport>(&text).unwrap(), told);
            let more = text.replace("{\"index\"", "{\"x\":1,\"index\"");
            assert!(serde_json::from_str::<ShareReport>(&more).unwrap_err().to_string().contains("`x`"));
        }
        let identity = Identity::generate().public();
        let told = IdentityReport::of(share.core.index, identity);
        write(&file, &told).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let expected = format!(
            "{{\"index\":3,\"verifying_key\":\"{}\",\"sealing_key\":\"{}\"}}\n",
            identity.verifying_key, identity.sealing_key
        );
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<IdentityReport>(&text).unwrap(), told);
        // Nothing else is left beside it.
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write(&folder.path().join("no/report"), &told).unwrap_err();
        assert!(format!("{error:#}").contains("no/report: No such file"), "{error:#}");
    }
}
