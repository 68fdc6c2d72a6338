//! What a signer does not start with, and whom a manager does not listen to.

use std::os::unix::fs::PermissionsExt as _;

use tss_common::identity::{Identity, Roster};
use tss_mpc::{ShareDocument, ShareError, Threshold};
use tss_signer::{Signer, SignerOptions, share_file};

use crate::cluster::{ANOTHER_TWO_OF_THREE, CLUSTER, Cluster, KEY, TWO_OF_THREE, index};

/// Why a signer does not start.
async fn refusal(options: SignerOptions) -> String {
    format!("{:#}", Signer::start(options).await.err().expect("it does not start"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_of_another_key_epoch_or_index_is_refused_with_its_reason() {
    let cluster = Cluster::new(&TWO_OF_THREE);
    let file = cluster.config().data_dir.join("signer1.store");
    let write = |json: &[u8]| {
        std::fs::write(&file, json).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let load = |key, signer| {
        let threshold = Threshold::new(2, 3).unwrap();
        let expected = share_file::Expected { cluster: CLUSTER, key, index: index(signer), threshold };
        share_file::load(&file, &expected, None)
    };
    let own = TWO_OF_THREE.json(1);
    let edited = |from: &str, to: &str| {
        let text = String::from_utf8(own.to_vec()).unwrap();
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        changed
    };

    // By its file: the wrong key, the wrong signer, one that only says it is the right one.
    write(own);
    let error = load("treasury", 1).err().unwrap().to_string();
    assert!(error.contains("key default") && error.contains("expected treasury"), "{error}");
    write(TWO_OF_THREE.json(2));
    let error = load(KEY, 1).err().unwrap().to_string();
    assert!(error.contains("signer 2") && error.contains("expected 1"), "{error}");
    write(
        String::from_utf8(TWO_OF_THREE.json(2).to_vec())
            .unwrap()
            .replacen("\"index\": 2", "\"index\": 1", 1)
            .as_bytes(),
    );
    let error = load(KEY, 1).err().unwrap().to_string();
    assert!(error.contains("does not give the public share of signer 1"), "{error}");
    // The secret of one key in the document of another.
    let other = ANOTHER_TWO_OF_THREE.share(1).core.public_key().to_string();
    let core = TWO_OF_THREE.share(1).core.public_key().to_string();
    let mixed = ShareDocument::from_json(edited(&core, &other).as_bytes());
    assert!(matches!(mixed, Err(ShareError::Inconsistent(_))));
    write(own);
    assert_eq!(load(KEY, 1).unwrap().core.index, index(1));

    // By the signer itself. Another's share does not fit its identity.
    let options = SignerOptions { share: TWO_OF_THREE.share(2), ..cluster.options(1) };
    let error = refusal(options).await;
    assert!(error.contains("signer 2 has another identity"), "{error}");
    // A later epoch is taken up for good; the one before is a thing of the past, by the journal.
    let epoch = |number: u64| {
        let mut share = TWO_OF_THREE.share(1);
        share.epoch = number;
        SignerOptions { share, ..cluster.options(1) }
    };
    Signer::start(epoch(2)).await.unwrap().stop(crate::cluster::SOON).await;
    let error = refusal(epoch(1)).await;
    assert!(error.contains("epoch 1, but this signer has held epoch 2 of key default"), "{error}");
    Signer::start(epoch(2)).await.unwrap().stop(crate::cluster::SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_whose_identity_is_not_the_rosters_does_not_start() {
    let mut cluster = Cluster::new(&TWO_OF_THREE);
    for (identity, part) in
        [(Identity::generate(), "another identity"), (cluster.identity(2), "another identity")]
    {
        let error = refusal(SignerOptions { identity, ..cluster.options(1) }).await;
        assert!(error.contains("signer 1") && error.contains(part), "{error}");
    }
    let without = [2, 3].map(|signer| (index(signer), cluster.identity(signer).public()));
    let roster = Roster::new(without.into()).unwrap();
    let error = refusal(SignerOptions { roster, ..cluster.options(1) }).await;
    assert!(error.contains("the roster does not know signer 1"), "{error}");
    cluster.start_all().await;
    cluster.signs(&[1, 2]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_with_another_roster_ignores_the_signers_it_does_not_know() {
    let mut cluster = Cluster::start(&TWO_OF_THREE).await;
    // It knows signers 1 and 2 by other keys.
    let public = [1, 2, 3].map(|signer| {
        let identity = if signer == 3 { cluster.identity(3) } else { Identity::generate() };
        (index(signer), identity.public())
    });
    let manager = cluster.manager(cluster.config(), Roster::new(public.into()).unwrap()).await;
    cluster.until_at_least("forged", 4, |cluster| cluster.disbelieved("forged")).await;
    let shared = manager.shared();
    assert!(shared.presence.live().iter().all(|heartbeat| heartbeat.signer == index(3)));
    assert!(!tss_manager::api::health::is_well(&shared), "one signer that it knows is too few");
    assert!(shared.keys.get(KEY).is_none(), "and puts no key on record");
    manager.stop().await;
    drop((shared, manager));

    // With the right roster the same signers sign.
    let attempt = cluster.signs(&[1, 2]).await;
    assert!(cluster.outcomes().iter().any(|outcome| outcome.request == attempt.request));
    cluster.restart_signer(1).await;
    cluster.signs(&[1, 3]).await;
    cluster.stop().await;
}
