//! Keys whose signers are given new shares: the key stays, old shares are of no use, and nobody can slip in another.

use k256::ProjectivePoint;
use tss_mpc::{Origin, RenewSetup};

use super::import::secret_of;
use super::*;

fn setup(index: SignerIndex, epoch: u64, dealers: &[u8], (t, n): (u8, u8)) -> RenewSetup {
    RenewSetup {
        session: SessionId([u8::try_from(epoch).unwrap() + 100; 32]),
        cluster: "cluster".into(),
        key: "key".into(),
        index,
        epoch,
        dealers: quorum(dealers.iter().copied()),
        threshold: Threshold::new(t, n).unwrap(),
    }
}

/// Signers to be, of whom those bring a share that have one here.
fn machines(
    held: &BTreeMap<SignerIndex, ShareDocument>,
    dealers: &[u8],
    (t, n): (u8, u8),
) -> Machines<ShareDocument> {
    let epoch = held.values().next().unwrap().epoch;
    let machine = |index| Dkls23.renew(setup(index, epoch, dealers, (t, n)), held.get(&index)).unwrap();
    signers(1..=n).into_iter().map(|index| (index, machine(index))).collect()
}

fn renewed(
    held: &BTreeMap<SignerIndex, ShareDocument>,
    dealers: &[u8],
    parties: (u8, u8),
) -> BTreeMap<SignerIndex, ShareDocument> {
    let ended = run(machines(held, dealers, parties), |envelope| vec![envelope]);
    assert_eq!(ended.outputs.len(), usize::from(parties.1), "{:?}", ended.aborts);
    ended.outputs
}

fn copy(document: &ShareDocument) -> ShareDocument {
    ShareDocument::from_json(&document.to_json().unwrap()).unwrap()
}

fn documents(key: &Key, of: &[u8]) -> BTreeMap<SignerIndex, ShareDocument> {
    signers(of.iter().copied()).into_iter().map(|index| (index, copy(&key.documents[&index]))).collect()
}

/// What these shares give together.
fn interpolated(shares: &[(u8, Scalar)]) -> PublicKey {
    let x = |index: u8| Scalar::from(u64::from(index));
    let weight = |i: u8| {
        let others = shares.iter().filter(|(j, _)| *j != i);
        others.fold(Scalar::ONE, |product, &(j, _)| product * x(j) * (x(j) - x(i)).invert().unwrap())
    };
    let secret: Scalar = shares.iter().map(|&(i, share)| share * weight(i)).sum();
    point(secret)
}

fn point(scalar: Scalar) -> PublicKey {
    PublicKey::from_affine((ProjectivePoint::GENERATOR * scalar).to_affine()).unwrap()
}

#[test]
fn a_refreshed_key_stays_the_same_and_every_quorum_signs_with_it() {
    for (parties @ (t, n), dealers) in [((2, 2), vec![1, 2]), ((2, 3), vec![1, 3])] {
        let old = key(t, n);
        let new = Key::new(renewed(&old.documents, &dealers, parties));
        assert_eq!((new.root(), new.chain_code()), (old.root(), old.chain_code()));
        for document in new.documents.values() {
            assert_eq!((document.epoch, document.origin), (2, Origin::Generated));
            copy(document);
        }
        every_quorum_of_signs(&new, t, n);
    }
}

#[test]
fn a_key_goes_to_more_signers_and_back_to_fewer() {
    let old = key(2, 3);
    let of_five = renewed(&old.documents, &[2, 3], (3, 5));
    let of_five = Key::new(of_five);
    assert_eq!((of_five.root(), of_five.chain_code()), (old.root(), old.chain_code()));
    every_quorum_of_signs(&of_five, 3, 5);
    let of_three = Key::new(renewed(&of_five.documents, &[1, 2, 3], (2, 3)));
    assert_eq!((of_three.root(), of_three.chain_code()), (old.root(), old.chain_code()));
    assert!(of_three.documents.values().all(|document| document.epoch == 3));
    every_quorum_of_signs(&of_three, 2, 3);
}

/// The 3-of-5 key, whose signers 2 and 5 had lost their shares.
fn recovered() -> &'static Key {
    static RECOVERED: OnceLock<Key> = OnceLock::new();
    RECOVERED.get_or_init(|| Key::new(renewed(&documents(key(3, 5), &[1, 3, 4]), &[1, 3, 4], (3, 5))))
}

#[test]
fn signers_that_have_lost_all_are_given_shares_by_t_others() {
    assert_eq!(recovered().root(), key(3, 5).root());
    every_quorum_of_signs(recovered(), 3, 5);
}

/// As after a backup, which holds nothing of the engine.
#[test]
fn shares_without_their_engine_part_are_enough_to_begin_with() {
    let mut held = documents(key(2, 3), &[1, 2]);
    held.values_mut().for_each(|document| document.engines = Default::default());
    let new = Key::new(renewed(&held, &[1, 2], (2, 3)));
    assert_eq!(new.root(), key(2, 3).root());
    every_quorum_of_signs(&new, 2, 3);
}

/// Stolen of t - 1 signers before, and of another one after.
#[test]
fn old_and_new_shares_together_give_nothing() {
    let old = &key(3, 5).documents;
    let new = &recovered().documents;
    let root = key(3, 5).root();
    let (before, after) = (|i| (i, secret_of(&old[&signer(i)])), |i| (i, secret_of(&new[&signer(i)])));
    assert_eq!(interpolated(&[before(1), before(2), before(3)]), root);
    assert_eq!(interpolated(&[after(1), after(2), after(3)]), root);
    for last in 3..=5 {
        assert_ne!(interpolated(&[before(1), before(2), after(last)]), root);
        assert_ne!(interpolated(&[before(1), after(2), after(last)]), root);
    }
    for i in 1..=5 {
        assert_ne!(before(i), after(i));
    }
}

#[test]
fn signers_of_two_epochs_do_not_sign_together() {
    let old = key(2, 3);
    let new = Key::new(renewed(&old.documents, &[1, 2], (2, 3)));
    let setup = sign_setup(quorum([1, 2]));
    let mut machines = old.machines(&setup);
    machines.insert(signer(2), new.shares[&signer(2)].sign(setup).unwrap());
    let ended = run(machines, |envelope| vec![envelope]);
    assert!(ended.outputs.is_empty());
    assert!(!ended.aborts.is_empty());
}

#[test]
fn a_dealer_that_deals_one_signer_something_else_is_named_by_it() {
    let tampered = run_tampered(
        machines(&key(2, 3).documents, &[1, 2], (2, 3)),
        (1, false, 1),
        |to, value: &mut [u8; 32]| value[31] ^= u8::from(to == signer(3)),
    );
    assert!(tampered.outputs.is_empty());
    assert!(cheated(&tampered.aborts[&signer(3)], 1), "{:?}", tampered.aborts);
}

/// What a dealer broadcasts.
#[derive(Serialize, serde::Deserialize)]
struct Deal {
    claim: (PublicKey, [u8; 32], u8, Threshold, BTreeMap<SignerIndex, PublicKey>),
    public: BTreeMap<SignerIndex, PublicKey>,
}

/// Runs with dealer 1 dealing these values to signers 1 to 3, and showing them honestly.
fn dealing(held: &BTreeMap<SignerIndex, ShareDocument>, values: [Scalar; 3]) -> Ended<ShareDocument> {
    run_edited(machines(held, &[1, 2], (2, 3)), |envelope| {
        if envelope.is(1, true, 1) {
            let public = signers(1..=3).into_iter().zip(values.map(point)).collect();
            envelope.edit(|deal: &mut Deal| deal.public = public);
        } else if envelope.is(1, false, 1) {
            let value = values[usize::from(envelope.to.get()) - 1];
            envelope.edit(|bytes: &mut [u8; 32]| *bytes = value.to_bytes().into());
        }
    })
}

#[test]
fn a_dealer_that_deals_another_secret_than_its_share_or_not_secretly_is_named_by_all() {
    let held = &key(2, 3).documents;
    // Dealers 1 and 2: the share of the first counts twice.
    let weighted = secret_of(&held[&signer(1)]) * Scalar::from(2_u64);
    let line = |at_zero: Scalar| [1, 2, 3].map(|x| at_zero + Scalar::from(77 * x as u64));
    let honest = dealing(held, line(weighted));
    // All but the dealer's own machine, which deals itself another line, go on.
    assert!(!honest.aborts.contains_key(&signer(2)) || !cheated(&honest.aborts[&signer(2)], 1));
    for values in [line(weighted + Scalar::ONE), [weighted; 3]] {
        let ended = dealing(held, values);
        assert!(ended.outputs.is_empty());
        for other in [2, 3] {
            assert!(cheated(&ended.aborts[&signer(other)], 1), "{:?}", ended.aborts);
            assert!(ended.aborts[&signer(other)].reason.contains("no sharing of its share"));
        }
    }
}

/// Signer 3 never held a share. The dealers are t, so that one of them is honest.
#[test]
fn a_new_signer_takes_no_share_of_a_key_that_the_dealers_do_not_agree_on() {
    let held = documents(key(2, 3), &[1, 2]);
    let other = key(2, 2).root();
    let ended = run_tampered(machines(&held, &[1, 2], (2, 3)), (1, true, 1), |_, deal: &mut Deal| {
        deal.claim.0 = other;
    });
    assert!(ended.outputs.is_empty());
    assert!(suspected(&ended.aborts[&signer(3)], [1, 2]), "{:?}", ended.aborts);
    assert!(suspected(&ended.aborts[&signer(2)], [1]), "{:?}", ended.aborts);
}

#[test]
fn what_cannot_be_renewed_is_refused_before_it_begins() {
    let held = &key(2, 3).documents[&signer(1)];
    let begin = |setup: RenewSetup, held| Dkls23.renew(setup, held).err().expect("it is refused").to_string();
    let good = |dealers: &[u8], parties| setup(signer(1), 1, dealers, parties);
    assert_eq!(begin(good(&[1, 2, 3], (2, 3)), Some(held)), "quorum {1, 2, 3} does not fit a 2-of-3 key");
    assert_eq!(begin(good(&[2, 3], (2, 2)), Some(held)), "quorum {2, 3} does not fit a 2-of-2 key");
    assert_eq!(begin(good(&[3, 4], (2, 4)), Some(held)), "quorum {3, 4} does not fit a 2-of-3 key");
    assert!(begin(good(&[1, 2], (2, 3)), None).contains("it has no share to deal"));
    let later = RenewSetup { epoch: 2, ..good(&[1, 2], (2, 3)) };
    assert!(begin(later, Some(held)).contains("at epoch 1: expected one of signer 1 of key key of cluster"));
    let other = RenewSetup { index: signer(2), ..good(&[1, 2], (2, 3)) };
    assert!(begin(other, Some(held)).contains("a share of signer 1 of key key"));
}
