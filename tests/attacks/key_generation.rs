//! Attacks on key generation over the bus: each signer in its own place, none trusts the middle or
//! another. No share results that the others do not have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tss_common::bus::Address;
use tss_common::envelope::{Endpoint, Header};
use tss_common::identity::{Identity, Roster};
use tss_mpc::{Dkls23, Engine, ShareDocument, SignerIndex, Threshold};
use tss_signer::compute::Compute;
use tss_signer::keygen::{self, KeygenOptions, Source};
use tss_signer::metrics::Metrics;

use crate::cluster::{CLUSTER, KEY, audit_of, index, until};
use crate::equivocator::{Manner, equivocate};
use crate::rogue_engine::RogueEngine;
use crate::tampering_bus::{Passed, TamperingBus};

/// How long a key generation may take that comes to its end. Test programs share two cores.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who is rogue here.
const ROGUE: u8 = 3;

/// Three signers that have no key yet.
struct Ceremony {
    bus: Arc<TamperingBus>,
    identities: BTreeMap<SignerIndex, Vec<u8>>,
    roster: Roster,
    rogue: Arc<dyn Engine>,
    metrics: Metrics,
    folder: TempDir,
}

type Result = anyhow::Result<ShareDocument>;

impl Ceremony {
    fn new() -> Self {
        Self::with_rogue(Arc::new(Dkls23))
    }

    fn with_rogue(rogue: Arc<dyn Engine>) -> Self {
        let identities: BTreeMap<_, _> =
            (1..=3).map(|signer| (index(signer), Identity::generate())).collect();
        let public = identities.iter().map(|(&index, identity)| (index, identity.public())).collect();
        Self {
            bus: TamperingBus::new(),
            roster: Roster::new(public).unwrap(),
            identities: identities
                .iter()
                .map(|(&index, identity)| (index, identity.to_json().unwrap().to_vec()))
                .collect(),
            rogue,
            metrics: Metrics::new(&prometheus::Registry::new()),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn identity(&self, signer: u8) -> Identity {
        Identity::from_json(&self.identities[&index(signer)]).unwrap()
    }

    fn begin(&self, signer: u8, patience: Duration) -> JoinHandle<Result> {
        let engine: Arc<dyn Engine> = if signer == ROGUE { self.rogue.clone() } else { Arc::new(Dkls23) };
        tokio::spawn(keygen::generate(KeygenOptions {
            source: Source::New,
            index: index(signer),
            identity: self.identity(signer),
            roster: self.roster.clone(),
            cluster: CLUSTER.into(),
            key: KEY.into(),
            attempt: None,
            threshold: Threshold::new(2, 3).unwrap(),
            engine,
            bus: self.bus.clone(),
            compute: Compute::new().unwrap(),
            data_dir: self.folder.path().join(signer.to_string()),
            patience,
            metrics: self.metrics.of(index(signer)),
        }))
    }

    async fn all(&self, patience: Duration) -> Vec<Result> {
        let tasks = [1, 2, 3].map(|signer| self.begin(signer, patience));
        join_all(tasks).await.into_iter().map(|joined| joined.unwrap()).collect()
    }

    /// What signers 1 and 2 end with. The rogue may wait for them longer.
    async fn honest(&self, patience: Duration) -> Vec<Result> {
        let [one, two, rogue] = [1, 2, ROGUE].map(|signer| self.begin(signer, patience));
        let results = join_all([one, two]).await.into_iter().map(|joined| joined.unwrap()).collect();
        rogue.abort();
        results
    }

    fn end_of_rogue(&self) -> Arc<Endpoint> {
        let end = Endpoint::new(CLUSTER, index(ROGUE), self.identity(ROGUE), self.roster.clone());
        Arc::new(end.unwrap())
    }

    /// That no honest signer has a share, or has written that it had.
    fn assert_no_share(&self, results: &[Result]) {
        for (signer, result) in (1..).zip(results).filter(|(signer, _)| *signer != ROGUE) {
            assert!(result.is_err(), "signer {signer} has a share");
            let log = audit_of(&self.folder.path().join(signer.to_string()), signer);
            assert!(log.iter().all(|event| event.kind() != "keygen"));
        }
    }
}

fn assert_all_have_one_key(results: &[Result]) {
    let keys: Vec<_> = results.iter().map(|share| share.as_ref().unwrap().core.public_key()).collect();
    assert!(keys.iter().all(|key| *key == keys[0]));
}

fn reason(result: &Result) -> String {
    format!("{:#}", result.as_ref().expect_err("it fails"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broadcast_that_is_another_for_each_ends_key_generation_before_any_share() {
    for (round, manner) in
        [(2, Manner::Plain), (2, Manner::Cunning), (4, Manner::Cunning), (6, Manner::Cunning)]
    {
        println!("round {round}, {manner:?}");
        let ceremony = Ceremony::new();
        equivocate(&ceremony.bus, ceremony.end_of_rogue(), index(2), round, manner);
        let results = ceremony.all(PATIENCE).await;
        ceremony.assert_no_share(&results);
        // Signer 1 sees that 2 has received something else: of the rogue, or so signer 2 says.
        let (one, two) = (reason(&results[0]), reason(&results[1]));
        assert!(one.contains("one of signers 2, 3 cheated"), "{one}");
        assert!(one.contains(&format!("in round {round}, signer 2 received another broadcast")), "{one}");
        match manner {
            // The victim has it signed that the rogue broadcast this, and that it broadcast something else.
            Manner::Plain => assert!(two.contains("signer 3 cheated"), "{two}"),
            Manner::Cunning => assert!(two.contains("one of signers 1, 3 cheated"), "{two}"),
        }
        // It can be tried again, and nothing of the failed one is in the way.
        ceremony.bus.behave();
        assert_all_have_one_key(&ceremony.all(PATIENCE).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_that_is_another_for_each_is_noticed_by_the_one_it_deceives() {
    for round in [3, 5, 7] {
        let ceremony = Ceremony::new();
        equivocate(&ceremony.bus, ceremony.end_of_rogue(), index(2), round, Manner::Plain);
        let [one, two, rogue] = [1, 2, ROGUE].map(|signer| ceremony.begin(signer, PATIENCE));
        let said = reason(&two.await.unwrap());
        assert!(said.contains("signer 3 cheated"), "round {round}: {said}");
        // The last round has no echo of its own: whoever speaks last can keep one from its share, as if
        // it had left. That one knows, and the key must not be used unless all have a share.
        assert!(round == 7 || !one.is_finished(), "signer 1 waits for signer 2");
        one.abort();
        rogue.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signer_that_falls_silent_in_key_generation_is_the_one_that_is_waited_for() {
    let began = Instant::now();
    assert_all_have_one_key(&Ceremony::new().all(PATIENCE).await);
    // Enough for those who answer, on this machine.
    let patience = 3 * began.elapsed() + Duration::from_secs(2);
    for round in [2, 6] {
        let ceremony = Ceremony::with_rogue(RogueEngine::silent_from(round));
        let results = ceremony.honest(patience).await;
        ceremony.assert_no_share(&results);
        for result in &results {
            let said = reason(result);
            assert!(said.contains("timeout waiting for signer 3"), "round {round}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_generation_that_one_never_comes_to_says_whom_it_waits_for() {
    let ceremony = Ceremony::new();
    let tasks = [1, 2].map(|signer| ceremony.begin(signer, Duration::from_secs(4)));
    let results: Vec<Result> = join_all(tasks).await.into_iter().map(|joined| joined.unwrap()).collect();
    ceremony.assert_no_share(&results);
    for result in &results {
        let said = reason(result);
        assert!(said.contains("timeout waiting for signer 3"), "{said}");
    }
    assert_all_have_one_key(&ceremony.all(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cheat_in_key_generation_is_named() {
    for (round, engine) in [
        (1, RogueEngine::contradicting_itself(1)),
        (2, RogueEngine::babbling(2)),
        (4, RogueEngine::babbling(4)),
        (6, RogueEngine::babbling(6)),
    ] {
        let ceremony = Ceremony::with_rogue(engine);
        let results = ceremony.honest(PATIENCE).await;
        ceremony.assert_no_share(&results);
        let said: Vec<String> = results.iter().map(reason).collect();
        assert!(said.iter().any(|said| said.contains("signer 3 cheated")), "round {round}: {said:?}");
        let honest_are_blamed =
            |said: &String| said.contains("signer 1 cheated") || said.contains("signer 2 cheated");
        assert!(!said.iter().any(honest_are_blamed), "round {round}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_generation_ends_well_though_a_broker_repeats_and_reorders_and_one_comes_late() {
    let ceremony = Ceremony::new();
    ceremony.bus.tamper(|message| match message.to {
        // More often than the messages that one signer may have in a session: so do joins come again and
        // again to those who wait long for another.
        Address::Ceremonies(_) => (0..20)
            .map(|number| Passed { after: Duration::from_millis(number % 3), ..message.clone() })
            .collect(),
        _ => vec![message],
    });
    let early = [1, 2].map(|signer| ceremony.begin(signer, PATIENCE));
    until("both wait for the third", || {
        let joins =
            ceremony.bus.record().into_iter().filter(|(_, body)| Header::peek(body).unwrap().round == 0);
        // Each has told each of the others, and the two that are there again.
        (joins.count() >= 4).then_some(())
    })
    .await;
    let late = ceremony.begin(3, PATIENCE);
    let results: Vec<Result> =
        join_all(early.into_iter().chain([late])).await.into_iter().map(|joined| joined.unwrap()).collect();
    assert_all_have_one_key(&results);
}
