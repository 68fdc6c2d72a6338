//! Keys that were made elsewhere: they sign as they are, and shares that do not belong together are refused.

use k256::ProjectivePoint;
use tss_mpc::ForeignShare;
use zeroize::Zeroizing;

use super::*;

/// A key as other software makes it: the polynomials of n dealers, the lowest coefficient first.
struct Elsewhere {
    threshold: Threshold,
    dealers: Vec<Vec<Scalar>>,
}

impl Elsewhere {
    fn new(t: u8, n: u8, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut scalar = || Scalar::from(random.next()) * Scalar::from(random.next());
        let dealers = (0..n).map(|_| (0..t).map(|_| scalar()).collect()).collect();
        Self { threshold: Threshold::new(t, n).unwrap(), dealers }
    }

    fn commitments(&self) -> Vec<Vec<PublicKey>> {
        let commit = |dealer: &Vec<Scalar>| dealer.iter().map(point).collect();
        self.dealers.iter().map(commit).collect()
    }

    fn secret(&self) -> Scalar {
        self.dealers.iter().map(|dealer| dealer[0]).sum()
    }

    fn share(&self, index: SignerIndex) -> Scalar {
        let x = Scalar::from(u64::from(index.get()));
        let at_x = |dealer: &Vec<Scalar>| dealer.iter().rev().fold(Scalar::ZERO, |y, &next| y * x + next);
        self.dealers.iter().map(at_x).sum()
    }

    fn brings(&self, index: SignerIndex) -> Result<ForeignShare, ShareError> {
        let public_shares = ForeignShare::public_shares(self.threshold, &self.commitments())?;
        let secret = Zeroizing::new(self.share(index).to_bytes().into());
        ForeignShare::new(index, self.threshold, &secret, public_shares, point(&self.secret()))
    }

    fn machine(&self, index: SignerIndex) -> Box<dyn Machine<Output = ShareDocument>> {
        Dkls23.import(keygen_setup(index, self.threshold), &self.brings(index).unwrap()).unwrap()
    }

    fn machines(&self) -> Machines<ShareDocument> {
        self.threshold.signers().map(|index| (index, self.machine(index))).collect()
    }
}

fn point(scalar: &Scalar) -> PublicKey {
    PublicKey::from_affine((ProjectivePoint::GENERATOR * scalar).to_affine()).unwrap()
}

pub(crate) fn secret_of(document: &ShareDocument) -> Scalar {
    let json: Value = serde_json::from_slice(&document.to_json().unwrap()).unwrap();
    let bytes = hex::decode(json["core"]["secret_share"].as_str().unwrap()).unwrap();
    Scalar::from_repr(<[u8; 32]>::try_from(bytes).unwrap().into()).unwrap()
}

/// The secret that two shares give, at these places.
fn interpolated((i, at_i): (u64, Scalar), (j, at_j): (u64, Scalar)) -> Scalar {
    let (i, j) = (Scalar::from(i), Scalar::from(j));
    (at_i * j - at_j * i) * (j - i).invert().unwrap()
}

#[test]
fn an_imported_key_stays_the_same_and_every_quorum_signs_with_it() {
    for (t, n) in [(2, 3), (3, 3), (3, 4)] {
        let elsewhere = Elsewhere::new(t, n, 1);
        let imported = run(elsewhere.machines(), |envelope| vec![envelope]);
        assert_eq!(imported.outputs.len(), usize::from(n), "{:?}", imported.aborts);
        let key = Key::new(imported.outputs);
        assert_eq!(key.root(), point(&elsewhere.secret()));
        for document in key.documents.values() {
            assert_eq!(document.core.chain_code, key.chain_code());
            ShareDocument::from_json(&document.to_json().unwrap()).unwrap();
        }
        every_quorum_of_signs(&key, t, n);
    }
}

#[test]
fn what_was_brought_does_not_fit_what_comes_out() {
    let elsewhere = Elsewhere::new(2, 3, 2);
    let documents = run(elsewhere.machines(), |envelope| vec![envelope]).outputs;
    let (old, new) = (|i| elsewhere.share(signer(i)), |i| secret_of(&documents[&signer(i)]));
    assert_eq!(interpolated((1, old(1)), (2, old(2))), elsewhere.secret());
    assert_eq!(interpolated((1, new(1)), (2, new(2))), elsewhere.secret());
    assert_ne!(interpolated((1, old(1)), (2, new(2))), elsewhere.secret());
}

#[test]
fn two_imports_of_one_key_give_other_shares_and_another_chain_code() {
    let elsewhere = Elsewhere::new(2, 2, 3);
    let [one, two] = [(), ()].map(|()| run(elsewhere.machines(), |envelope| vec![envelope]).outputs);
    assert_ne!(secret_of(&one[&signer(1)]), secret_of(&two[&signer(1)]));
    assert_ne!(one[&signer(1)].core.chain_code, two[&signer(1)].core.chain_code);
}

#[test]
fn shares_of_two_keys_are_refused_and_everybody_says_whose_is_the_other() {
    let (ours, theirs) = (Elsewhere::new(2, 3, 4), Elsewhere::new(2, 3, 5));
    let mut machines = ours.machines();
    machines.insert(signer(3), theirs.machine(signer(3)));
    let ended = run(machines, |envelope| vec![envelope]);
    assert!(ended.outputs.is_empty());
    let said = format!(
        "what the signers bring does not belong together: signers 1, 2 of key {}, signer 3 of key {}",
        point(&ours.secret()),
        point(&theirs.secret())
    );
    for abort in ended.aborts.values() {
        assert_eq!(abort.reason, said);
    }
    // Whoever was given a wrong file has not cheated.
    assert!(suspected(&ended.aborts[&signer(1)], [3]), "{:?}", ended.aborts);
    assert!(suspected(&ended.aborts[&signer(3)], [1, 2]), "{:?}", ended.aborts);
}

#[test]
fn shares_of_one_key_that_was_split_twice_are_refused() {
    let ours = Elsewhere::new(2, 3, 6);
    let mut theirs = Elsewhere::new(2, 3, 7);
    // Another polynomial with the same secret.
    let difference = ours.secret() - theirs.secret();
    theirs.dealers[0][0] += difference;
    let mut machines = ours.machines();
    machines.insert(signer(2), theirs.machine(signer(2)));
    let ended = run(machines, |envelope| vec![envelope]);
    assert!(ended.outputs.is_empty());
    for abort in ended.aborts.values() {
        assert!(abort.reason.ends_with(", but with other public shares"), "{abort}");
    }
}

#[test]
fn a_share_that_contradicts_itself_is_not_brought() {
    let elsewhere = Elsewhere::new(2, 3, 8);
    let bring = |index, secret: Scalar, dealers: &[Vec<PublicKey>], key: PublicKey| {
        let public_shares = ForeignShare::public_shares(elsewhere.threshold, dealers)?;
        let secret = Zeroizing::new(secret.to_bytes().into());
        ForeignShare::new(signer(index), elsewhere.threshold, &secret, public_shares, key)
    };
    let (dealers, key) = (elsewhere.commitments(), point(&elsewhere.secret()));
    let (share, other) = (elsewhere.share(signer(1)), elsewhere.share(signer(2)));
    bring(1, share, &dealers, key).unwrap();
    let refused = |result: Result<ForeignShare, ShareError>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(bring(1, other, &dealers, key), "does not give the public share of signer 1");
    refused(bring(2, share, &dealers, key), "does not give the public share of signer 2");
    refused(bring(4, share, &dealers, key), "signer 4 of a 2-of-3 key");
    refused(bring(1, share, &dealers, point(&Scalar::ONE)), "do not give the public key");
    refused(bring(1, share, &dealers[..2], key), "2 dealers of a 2-of-3 key");
    let mut longer = dealers.clone();
    longer[1].push(key);
    refused(bring(1, share, &longer, key), "3 commitments of dealer 2");
    let mut zero = dealers.clone();
    // The sum of their second coefficients is the negative of the first ones': nothing is left at 1.
    zero[0][1] = point(&-(elsewhere.secret() + elsewhere.dealers[1][1] + elsewhere.dealers[2][1]));
    refused(bring(1, share, &zero, key), "the public share of signer 1 is zero");
    let too_large = Zeroizing::new([0xff; 32]);
    let public_shares = ForeignShare::public_shares(elsewhere.threshold, &dealers).unwrap();
    refused(
        ForeignShare::new(signer(1), elsewhere.threshold, &too_large, public_shares, key),
        "not below the group order",
    );
}

#[test]
fn a_share_is_imported_only_as_what_it_is() {
    let elsewhere = Elsewhere::new(2, 3, 9);
    let share = elsewhere.brings(signer(1)).unwrap();
    for setup in [
        keygen_setup(signer(2), elsewhere.threshold),
        keygen_setup(signer(1), Threshold::new(2, 4).unwrap()),
        keygen_setup(signer(1), Threshold::new(3, 3).unwrap()),
    ] {
        let error = Dkls23.import(setup, &share).err().unwrap().to_string();
        assert!(error.contains("a share of signer 1 of a 2-of-3 key: expected"), "{error}");
    }
    let shown = format!("{share:?}");
    assert!(!shown.contains(&hex::encode(elsewhere.share(signer(1)).to_bytes())), "{shown}");
    assert!(shown.contains("ForeignShare") && shown.contains("public_key"), "{shown}");
}

/// A round 1 broadcast: the claim, then the proof.
type Introduction = ((PublicKey, BTreeMap<SignerIndex, PublicKey>), DLogProof<Secp256k1>);

/// A round 3 broadcast.
type Openings = (DLogProof<Secp256k1>, ([u8; 32], Vec<u8>));

#[test]
fn whoever_does_not_know_its_share_is_named() {
    let elsewhere = Elsewhere::new(2, 3, 10);
    let of_another = DLogProof::prove(&elsewhere.share(signer(3)), b"another session").unwrap();
    let other_secret = DLogProof::prove(&Scalar::ONE, b"another session").unwrap();
    let edits: [&dyn Fn(&mut Introduction); 4] = [
        &|introduction| introduction.1.proofs[3].challenge_response += Scalar::ONE,
        &|introduction| introduction.1 = of_another.clone(),
        &|introduction| introduction.1 = other_secret.clone(),
        &|introduction| introduction.1.proofs.clear(),
    ];
    for edit in edits {
        let ended = run_tampered(elsewhere.machines(), (1, true, 3), |_, sent| edit(sent));
        for honest in [1, 2] {
            assert!(cheated(&ended.aborts[&signer(honest)], 3), "{:?}", ended.aborts);
        }
        assert!(ended.outputs.is_empty());
    }
}

#[test]
fn nobody_can_change_the_key() {
    let elsewhere = Elsewhere::new(2, 3, 11);
    // Signer 3 adds something else than a share of zero, and the same for all.
    let ended = run_edited(elsewhere.machines(), |envelope| {
        if envelope.is(1, false, 3) {
            envelope.edit(|fragment: &mut [u8; 32]| {
                let scalar = Scalar::from_repr((*fragment).into()).unwrap() + Scalar::from(5_u64);
                *fragment = scalar.to_bytes().into();
            });
        }
    });
    assert!(ended.outputs.is_empty());
    for honest in [1, 2] {
        let others = [1, 2, 3].into_iter().filter(|&other| other != honest);
        assert!(suspected(&ended.aborts[&signer(honest)], others), "{:?}", ended.aborts);
    }
}

#[test]
fn what_is_opened_in_an_import_is_what_was_committed_to() {
    let elsewhere = Elsewhere::new(2, 2, 12);
    let edits: [fn(&mut Openings); 3] = [
        |openings| openings.1.0[0] ^= 1,
        |openings| openings.1.1[0] ^= 1,
        |openings| openings.0.proofs[7].challenge_response += Scalar::ONE,
    ];
    for edit in edits {
        let ended = run_tampered(elsewhere.machines(), (3, true, 2), |_, sent| edit(sent));
        assert!(cheated(&ended.aborts[&signer(1)], 2), "{:?}", ended.aborts);
    }
    // Another's commitments again, of whoever is first.
    let mut first: Option<Incoming> = None;
    let ended = run_edited(elsewhere.machines(), |envelope| {
        let message = &mut envelope.message;
        if (message.round, message.broadcast) == (2, true) {
            match &first {
                None => first = Some(message.clone()),
                Some(first) => message.body.clone_from(&first.body),
            }
        }
    });
    let copied = first.unwrap().from;
    let copier = if copied == signer(1) { 2 } else { 1 };
    assert!(cheated(&ended.aborts[&copied], copier), "{:?}", ended.aborts);
}

#[test]
fn an_import_waits_for_every_confirmation_and_refuses_a_wrong_one() {
    let elsewhere = Elsewhere::new(2, 3, 13);
    let wrong = run_tampered(elsewhere.machines(), (7, true, 2), |_, hash: &mut [u8; 32]| hash[0] ^= 1);
    for honest in [1, 3] {
        assert!(cheated(&wrong.aborts[&signer(honest)], 2), "{:?}", wrong.aborts);
    }
    let missing =
        run(
            elsewhere.machines(),
            |envelope| {
                if envelope.is(7, true, 2) { Vec::new() } else { vec![envelope] }
            },
        );
    assert!(missing.outputs.is_empty());
    assert_eq!(missing.machines[&signer(1)].waiting_for(), signers([2]));
}

#[test]
fn random_and_mutated_bodies_never_panic_in_an_import() {
    let elsewhere = Elsewhere::new(2, 2, 14);
    for (round, seeds) in [(1, 10), (2, 8), (3, 4), (4, 1)] {
        for seed in 0..seeds {
            let mut random = Random(1000 * round + seed);
            let ended = run(elsewhere.machines(), |mut envelope| {
                let message = &mut envelope.message;
                if u64::from(message.round) == round && message.from == signer(2) {
                    garble(&mut random, &mut message.body);
                }
                vec![envelope]
            });
            if let Some(abort) = ended.aborts.get(&signer(1)) {
                assert!(cheated(abort, 2) || suspected(abort, [2]), "round {round}, seed {seed}: {abort:?}");
            }
        }
    }
}

#[test]
fn no_message_of_an_import_comes_near_the_limit() {
    let mut longest = 0;
    run(Elsewhere::new(2, 3, 15).machines(), |envelope| {
        longest = longest.max(envelope.message.body.len());
        vec![envelope]
    });
    assert!(longest < MAX_BODY * 3 / 4, "{longest}");
}
