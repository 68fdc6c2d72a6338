//! What key generation and signing cost: the work of all parties together, on one thread.
//!
//! All of it takes about a quarter of an hour, most of it the key generations;
//! `cargo bench -p tss-mpc -- sign` runs a part.

#![allow(clippy::unwrap_used, reason = "a benchmark may panic")]
#![allow(missing_docs, reason = "the macros of criterion define undocumented functions")]

use std::cell::OnceCell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, SamplingMode, criterion_group, criterion_main};
use k256::ecdsa::signature::hazmat::PrehashSigner;
use k256::ecdsa::{Signature, SigningKey};
use tss_mpc::local::{Machines, run_local, run_local_sequential};
use tss_mpc::{
    DerivationPath, Dkls23, Engine, FrostEd25519, FrostSecp256k1Tr, KeygenSetup, Payload, Quorum, SessionId,
    ShareDocument, SignSetup, SigningShare, Threshold,
};

const DIGEST: Payload = Payload::Digest([3; 32]);

const KEYS: [(u8, u8); 3] = [(2, 3), (3, 5), (5, 9)];

fn keygen_machines(engine: &dyn Engine, threshold: Threshold) -> Machines<ShareDocument> {
    let setup = |index| KeygenSetup {
        session: SessionId([1; 32]),
        cluster: "bench".into(),
        key: "bench".into(),
        index,
        threshold,
    };
    threshold.signers().map(|index| (index, engine.keygen(setup(index)).unwrap())).collect()
}

fn sign_machines(
    shares: &[Arc<dyn SigningShare>],
    quorum: &Quorum,
    path: &DerivationPath,
    payload: &Payload,
) -> Machines<tss_mpc::AnySignature> {
    let setup = SignSetup {
        session: SessionId([2; 32]),
        quorum: quorum.clone(),
        payload: payload.clone(),
        path: path.clone(),
    };
    quorum.iter().zip(shares).map(|(index, share)| (index, share.sign(setup.clone()).unwrap())).collect()
}

fn keygen(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("keygen");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_millis(1));
    for (t, n) in KEYS {
        let threshold = Threshold::new(t, n).unwrap();
        group.bench_function(threshold.to_string(), |bencher| {
            bencher.iter_batched(
                || keygen_machines(&Dkls23, threshold),
                |machines| run_local_sequential(machines).unwrap(),
                BatchSize::PerIteration,
            );
        });
    }
}

fn sign(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sign");
    group.sample_size(50);
    for (t, n) in KEYS {
        let threshold = Threshold::new(t, n).unwrap();
        let quorum = Quorum::new(threshold.signers().take(t.into())).unwrap();
        let shares: OnceCell<Vec<Arc<dyn SigningShare>>> = OnceCell::new();
        let keygen = || {
            let documents = run_local(keygen_machines(&Dkls23, threshold)).unwrap();
            documents.values().map(|document| Dkls23.open(document).unwrap()).collect()
        };
        for (name, path) in [("root", "m"), ("derived", "0/1/2")] {
            let path: DerivationPath = path.parse().unwrap();
            group.bench_function(format!("{threshold}/{name}"), |bencher| {
                let shares = shares.get_or_init(keygen);
                bencher
                    .iter(|| run_local_sequential(sign_machines(shares, &quorum, &path, &DIGEST)).unwrap());
            });
            group.bench_function(format!("{threshold}/{name}, setup alone"), |bencher| {
                let shares = shares.get_or_init(keygen);
                bencher.iter(|| sign_machines(shares, &quorum, &path, &DIGEST));
            });
        }
    }
    group.finish();
    criterion.bench_function("sign/one key, no threshold", |bencher| {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        bencher.iter(|| -> Signature { key.sign_prehash(black_box(&[3; 32])).unwrap() });
    });
}

fn open(criterion: &mut Criterion) {
    criterion.bench_function("open/2-of-3", |bencher| {
        let threshold = Threshold::new(2, 3).unwrap();
        let documents = run_local(keygen_machines(&Dkls23, threshold)).unwrap();
        let json = documents.into_values().next().unwrap().to_json().unwrap();
        bencher.iter(|| Dkls23.open(&ShareDocument::from_json(&json).unwrap()).unwrap());
    });
}

fn frost(criterion: &mut Criterion) {
    let engines: [(&dyn Engine, Payload); 2] =
        [(&FrostEd25519::new(), Payload::Message(vec![3; 1232])), (&FrostSecp256k1Tr::new(), DIGEST)];
    for (engine, payload) in engines {
        for (t, n) in KEYS {
            let threshold = Threshold::new(t, n).unwrap();
            let name = |what| format!("{}/{what}/{threshold}", engine.id());
            criterion.bench_function(&name("keygen"), |bencher| {
                bencher.iter(|| run_local_sequential(keygen_machines(engine, threshold)).unwrap());
            });
            let documents = run_local(keygen_machines(engine, threshold)).unwrap();
            let shares: Vec<_> = documents.values().map(|document| engine.open(document).unwrap()).collect();
            let quorum = Quorum::new(threshold.signers().take(t.into())).unwrap();
            let root = DerivationPath::root();
            criterion.bench_function(&name("sign"), |bencher| {
                bencher
                    .iter(|| run_local_sequential(sign_machines(&shares, &quorum, &root, &payload)).unwrap());
            });
        }
    }
}

criterion_group!(benches, keygen, sign, open, frost);
criterion_main!(benches);
