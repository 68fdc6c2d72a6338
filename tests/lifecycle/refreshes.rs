//! Refreshes with the programs as people run them, under a load that never stops: by one command, and with any of the
//! programs killed at any step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinHandle;
use tss_client::Client;
use tss_client::types::{KeyRefresh, RefreshStep, SignRequest};
use uuid::Uuid;

use crate::installation::{Installation, Process};
use crate::{fails, identity, ok, read, tssctl};

/// How long what must happen may take. Test programs share two cores.
const SOON: Duration = Duration::from_secs(180);

/// How long a program that was killed is away: longer than the sessions that it was needed in.
const AWAY: Duration = Duration::from_secs(1);

/// A network of real processes, and what asks it for signatures all the time.
struct Network {
    installation: Installation,
    manager: Option<Process>,
    signers: BTreeMap<u8, Process>,
    client: Client,
    public_key: String,
}

impl Network {
    async fn start(mut installation: Installation) -> Self {
        installation.set("TSS_LIMITS__REFRESH_PAUSE", "0");
        let client = Client::builder(installation.url()).retry_for(SOON).build().unwrap();
        let public_key =
            share(&installation, 1)["core"]["public_key"].as_str().unwrap_or_default().to_owned();
        let mut network = Self { installation, manager: None, signers: BTreeMap::new(), client, public_key };
        network.start_missing();
        let all: Vec<_> = network.manager.iter().chain(network.signers.values()).collect();
        network.installation.until_healthy(&all).await;
        network
    }

    fn start_missing(&mut self) {
        self.manager.get_or_insert_with(|| self.installation.start("manager", &[]));
        for index in 1..=3 {
            let start = || self.installation.start("signer", &["--index", &index.to_string()]);
            self.signers.entry(index).or_insert_with(start);
        }
    }

    /// Asks for one signature after the other until it is told to stop; yields how many there were.
    fn load(&self) -> (Arc<AtomicBool>, JoinHandle<u32>) {
        let (stop, client) = (Arc::new(AtomicBool::new(false)), self.client.clone());
        let stopped = stop.clone();
        let load = tokio::spawn(async move {
            let mut signed = 0;
            while !stopped.load(Ordering::Relaxed) {
                let request = SignRequest::text(format!("message {signed}"));
                client.sign_and_wait(&request, SOON).await.unwrap();
                signed += 1;
            }
            signed
        });
        (stop, load)
    }

    async fn told(&self) -> KeyRefresh {
        let began = Instant::now();
        loop {
            match self.client.key_refresh("default").await {
                Ok(told) => return told,
                // A manager that has just started has not found the key yet.
                Err(error) => assert!(began.elapsed() < SOON, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a signer is at a step of a refresh, or beyond it.
    async fn until_step(&self, signer: u8, refresh: Uuid, step: &RefreshStep) {
        let order = [
            RefreshStep::Meeting,
            RefreshStep::Dealing,
            RefreshStep::Stored,
            RefreshStep::Done,
            RefreshStep::Failed,
        ];
        let place = |step: &RefreshStep| order.iter().position(|it| it == step);
        let began = Instant::now();
        loop {
            let told = self.told().await;
            let it = told.signers.iter().find(|it| it.signer == signer && it.refresh == Some(refresh));
            if it.and_then(|it| it.step.as_ref()).is_some_and(|it| place(it) >= place(step)) {
                return;
            }
            assert!(began.elapsed() < SOON, "{step:?} of signer {signer}: {told:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until all signers have the epoch on record, and nothing is under way; `stored`: and nothing waits. Yields the
    /// epoch.
    async fn until_settled(&self, stored: bool) -> u64 {
        let began = Instant::now();
        loop {
            let told = self.told().await;
            let at_one = told.signers.iter().all(|it| it.live && it.epoch == Some(told.epoch));
            let under_way = told.signers.iter().any(|it| match it.step {
                Some(RefreshStep::Meeting | RefreshStep::Dealing) => true,
                Some(RefreshStep::Stored) => stored,
                _ => false,
            });
            if at_one && !under_way {
                return told.epoch;
            }
            assert!(began.elapsed() < SOON, "{told:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// That this is the epoch on every signer's disk, with nothing beside it.
    fn assert_stored(&self, epoch: u64) {
        for signer in 1..=3 {
            let share = share(&self.installation, signer);
            assert_eq!(share["epoch"], epoch);
            assert_eq!(share["core"]["public_key"], self.public_key.as_str());
            for what in ["next", "next.frozen", "next.draft"] {
                let next = self.installation.folder().join(format!("signer{signer}.store.{what}"));
                assert!(!next.exists(), "{}", next.display());
            }
        }
    }

    async fn stop(self) {
        self.manager.into_iter().chain(self.signers.into_values()).for_each(Process::stop);
        self.installation.clean_up().await;
    }
}

fn share(installation: &Installation, signer: u8) -> Value {
    read(&installation.folder().join(format!("signer{signer}.store")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_refreshed_by_one_command_and_no_request_waits_for_that() {
    let installation = Installation::new();
    installation.keygen();
    let network = Network::start(installation).await;
    let (stop, load) = network.load();
    let line = format!("key refresh default --manager {} --output json", network.installation.url());
    for epoch in 2..=3 {
        let output = tokio::task::block_in_place(|| tssctl(&network.installation, &line));
        let said: Value = serde_json::from_str(&ok(&output)).unwrap();
        assert_eq!((&said["key"], &said["epoch"]), (&"default".into(), &epoch.into()), "{said}");
        network.assert_stored(epoch);
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0);
    let audited = ok(&tssctl(&network.installation, "audit show tss-data/signer2.audit.jsonl"));
    for told in ["key default at epoch 2, and at none before", "key default at epoch 3, and at none before"] {
        assert!(audited.contains(told), "{audited}");
    }
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_killed_at_whatever_step_no_request_is_lost_and_one_epoch_is_left() {
    let installation = Installation::new();
    installation.keygen();
    let mut network = Network::start(installation).await;
    let (stop, load) = network.load();
    let mut epoch = 1;
    // 0 is the manager.
    let kills: [(&[u8], RefreshStep); 7] = [
        (&[0], RefreshStep::Dealing),
        (&[1], RefreshStep::Meeting),
        (&[2], RefreshStep::Dealing),
        (&[3], RefreshStep::Stored),
        (&[1, 2, 3], RefreshStep::Dealing),
        (&[1, 2], RefreshStep::Stored),
        (&[0, 3], RefreshStep::Stored),
    ];
    for (victims, step) in kills {
        let refresh = network.client.refresh_key("default").await.unwrap();
        assert_eq!(refresh.epoch, epoch);
        network.until_step(*victims.last().unwrap().max(&1), refresh.refresh, &step).await;
        for victim in victims {
            match victim {
                0 => network.manager.take(),
                signer => network.signers.remove(signer),
            }
            .unwrap()
            .kill();
        }
        tokio::time::sleep(AWAY).await;
        network.start_missing();
        // It comes to an end of itself, one way or the other. Then there are others, until one goes through that was not there
        // to end this one.
        let left = network.until_settled(false).await;
        assert!(left == epoch || left == epoch + 1, "{left} after {epoch}");
        let line = format!("key refresh default --manager {}", network.installation.url());
        while epoch <= left {
            ok(&tokio::task::block_in_place(|| tssctl(&network.installation, &line)));
            let settled = network.until_settled(true).await;
            assert!(settled > epoch, "{victims:?} at {step:?}");
            epoch = settled;
            network.assert_stored(epoch);
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0);
    network.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_share_is_followed_by_an_encrypted_one_and_what_cannot_be_refreshed_says_why() {
    let mut installation = Installation::with_identities();
    let recipient = identity(&installation, "signers.age");
    installation.set("TSS_AGE_IDENTITY_FILE", "signers.age");
    std::thread::scope(|scope| {
        for index in 1..=3 {
            let line = format!("keygen --index {index} --timeout 120 --recipient {recipient}");
            let installation = &installation;
            scope
                .spawn(move || ok(&installation.run("signer", &line.split_whitespace().collect::<Vec<_>>())));
        }
    });
    installation.set("TSS_LIMITS__REFRESH_PAUSE", "3600");
    let url = installation.url();
    let mut all = vec![installation.start("manager", &[])];
    all.extend((1..=3).map(|index| installation.start("signer", &["--index", &index.to_string()])));
    installation.until_healthy(&all.iter().collect::<Vec<_>>()).await;
    let refresh = || {
        tokio::task::block_in_place(|| tssctl(&installation, &format!("key refresh default --manager {url}")))
    };
    ok(&refresh());
    for signer in 1..=3 {
        let stored = std::fs::read(installation.folder().join(format!("signer{signer}.store"))).unwrap();
        assert!(stored.starts_with(b"age-encryption.org/"));
        let told = ok(&installation.run("signer", &["inspect", "--index", &signer.to_string()]));
        assert!(told.contains("epoch") && told.contains('2'), "{told}");
    }
    fails(&refresh(), 1, &["expected 3600 s between two"]);
    // Without one of them there is no refresh.
    all.pop().unwrap().stop();
    fails(&refresh(), 7, &["signer 3 is missing: a refresh takes all 3 signers"]);
    all.into_iter().for_each(Process::stop);
    installation.clean_up().await;
}
