//! Makes the share files of four keys, with the programs' own crate: `cargo run --release -- FOLDER`.
//!
//! GG18 as its example `gg18_keygen_client` does, but with all parties in one process; GG20 as `gg20_keygen`.

use std::fs;
use std::path::{Path, PathBuf};

use curv::elliptic::curves::{Point, Scalar, Secp256k1};
use multi_party_ecdsa::protocols::multi_party_ecdsa::gg_2018::party_i::{Keys, Parameters};
use multi_party_ecdsa::protocols::multi_party_ecdsa::gg_2020::state_machine::keygen::Keygen;
use round_based::dev::Simulation;

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("a folder for the files"));
    gg18(&folder.join("gg18-2-of-3"), 1, 3);
    gg18(&folder.join("gg18-2-of-3-other"), 1, 3);
    gg18(&folder.join("gg18-3-of-3"), 2, 3);
    gg20(&folder.join("gg20-2-of-3"), 1, 3);
}

fn gg18(folder: &Path, threshold: u16, share_count: u16) {
    fs::create_dir_all(folder).expect("a folder");
    let parameters = Parameters { threshold, share_count };
    let keys: Vec<Keys> = (1..=share_count).map(Keys::create).collect();
    let (commitments, openings): (Vec<_>, Vec<_>) =
        keys.iter().map(Keys::phase1_broadcast_phase3_proof_of_correct_key).unzip();
    let points: Vec<Point<Secp256k1>> = openings.iter().map(|opening| opening.y_i.clone()).collect();
    let y_sum: Point<Secp256k1> = points.iter().sum();
    let paillier: Vec<_> = commitments.iter().map(|commitment| commitment.e.clone()).collect();
    let dealt: Vec<_> = keys
        .iter()
        .map(|keys| {
            keys.phase1_verify_com_phase3_verify_correct_key_phase2_distribute(
                &parameters,
                &openings,
                &commitments,
            )
            .expect("honest parties")
        })
        .collect();
    let schemes: Vec<_> = dealt.iter().map(|(scheme, ..)| scheme.clone()).collect();
    for (party, keys) in (1..=share_count).zip(keys) {
        let shares: Vec<Scalar<Secp256k1>> =
            dealt.iter().map(|(_, shares, _)| shares[usize::from(party) - 1].clone()).collect();
        let (shared, _) = keys
            .phase2_verify_vss_construct_keypair_phase3_pok_dlog(
                &parameters,
                &points,
                &shares,
                &schemes,
                party,
            )
            .expect("honest parties");
        let file = (keys, shared, party, &schemes, &paillier, &y_sum);
        let json = serde_json::to_string(&file).expect("it has a JSON form");
        fs::write(folder.join(format!("party{party}.json")), json).expect("a file");
    }
}

fn gg20(folder: &Path, threshold: u16, parties: u16) {
    fs::create_dir_all(folder).expect("a folder");
    let mut simulation = Simulation::new();
    for party in 1..=parties {
        simulation.add_party(Keygen::new(party, threshold, parties).expect("a party"));
    }
    for (party, key) in (1..).zip(simulation.run().expect("honest parties")) {
        let json = serde_json::to_string(&key).expect("it has a JSON form");
        fs::write(folder.join(format!("party{party}.json")), json).expect("a file");
    }
}
