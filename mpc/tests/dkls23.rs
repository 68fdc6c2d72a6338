use std::collections::BTreeMap;
use tss_mpc::*;
#[test]
fn quick() {
    let threshold = Threshold::new(2, 3).unwrap();
    let machines = threshold.signers().map(|index| {
        let setup = KeygenSetup { session: SessionId([7; 32]), cluster: "c".into(), key: "k".into(), index, threshold };
        (index, Dkls23.keygen(setup).unwrap())
    }).collect();
    let t = std::time::Instant::now();
    let docs = run_local(machines).unwrap();
    println!("keygen {:?}", t.elapsed());
    let mut sm = BTreeMap::new();
    let q = Quorum::new([1, 3].map(|i| SignerIndex::new(i).unwrap())).unwrap();
    for i in q.iter() {
        let json = docs[&i].to_json().unwrap();
        println!("doc {}", json.len());
        let d = ShareDocument::from_json(&json).unwrap();
        let s = Dkls23.open(&d).unwrap();
        sm.insert(i, s.sign(SignSetup { session: SessionId([8; 32]), quorum: q.clone(), digest: [9; 32], path: "0/1".parse().unwrap() }).unwrap());
    }
    let t = std::time::Instant::now();
    let sigs = run_local(sm).unwrap();
    println!("sign {:?} {sigs:?}", t.elapsed());
}
