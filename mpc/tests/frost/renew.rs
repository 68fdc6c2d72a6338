//! Keys whose signers are given new shares: the key stays, old shares are of no use, and nobody can slip in another.

use frost_core::keys::{KeyPackage, SigningShare, VerifyingShare};
use frost_core::{Ciphersuite, Identifier, SigningKey, VerifyingKey};
use frost_ed25519::Ed25519Sha512;
use frost_secp256k1_tr::Secp256K1Sha256TR;
use serde::{Deserialize, Serialize};
use tss_mpc::{Origin, RenewSetup};

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

type Documents = BTreeMap<SignerIndex, ShareDocument>;

/// Signers to be, of whom those bring a share that have one here.
fn machines(kind: Kind, held: &Documents, dealers: &[u8], (t, n): (u8, u8)) -> Machines<ShareDocument> {
    let epoch = held.values().next().unwrap().epoch;
    let machine =
        |index| kind.engine().renew(setup(index, epoch, dealers, (t, n)), held.get(&index)).unwrap();
    signers(1..=n).into_iter().map(|index| (index, machine(index))).collect()
}

fn renewed(kind: Kind, held: &Documents, dealers: &[u8], parties: (u8, u8)) -> Key {
    let ended = run(machines(kind, held, dealers, parties), |envelope| vec![envelope]);
    assert_eq!(ended.outputs.len(), usize::from(parties.1), "{:?}", ended.aborts);
    Key::new(kind, ended.outputs)
}

fn documents(key: &Key, of: &[u8]) -> Documents {
    signers(of.iter().copied()).into_iter().map(|index| (index, copy(&key.documents[&index]))).collect()
}

/// The key that these signers' shares give together, by the crate; in hex.
fn interpolated(kind: Kind, shares: &[(u8, &ShareDocument)]) -> String {
    fn by<C: Ciphersuite>(shares: &[(u8, &ShareDocument)]) -> String {
        let package = |&(index, document): &(u8, &ShareDocument)| {
            let secret = json_of(document)["core"]["secret_share"].as_str().unwrap().to_owned();
            let share = SigningShare::<C>::deserialize(&hex::decode(secret).unwrap()).unwrap();
            let key = VerifyingKey::deserialize(&document.core.public_key().to_bytes()).unwrap();
            let identifier = Identifier::try_from(u16::from(index)).unwrap();
            KeyPackage::new(identifier, share, VerifyingShare::from(share), key, 2)
        };
        let packages: Vec<_> = shares.iter().map(package).collect();
        let key: SigningKey<C> = frost_core::keys::reconstruct(&packages).unwrap();
        hex::encode(VerifyingKey::from(&key).serialize().unwrap())
    }
    match kind {
        Kind::Ed25519 => by::<Ed25519Sha512>(shares),
        Kind::Schnorr => by::<Secp256K1Sha256TR>(shares),
    }
}

#[test]
fn a_key_goes_to_more_signers_and_back_to_fewer() {
    for kind in BOTH {
        let old = key(kind, 2, 3);
        let of_five = renewed(kind, &old.documents, &[2, 3], (3, 5));
        let of_three = renewed(kind, &of_five.documents, &[1, 2, 3], (2, 3));
        for (new, (t, n), epoch) in [(&of_five, (3, 5), 2), (&of_three, (2, 3), 3)] {
            assert_eq!((new.root(), new.chain_code()), (old.root(), old.chain_code()));
            for document in new.documents.values() {
                assert_eq!((document.epoch, document.origin), (epoch, Origin::Generated));
                copy(document);
            }
            every_quorum_of_signs(new, t, n);
        }
    }
}

#[test]
fn a_refreshed_key_stays_the_same_between_two() {
    for kind in BOTH {
        let new = renewed(kind, &key(kind, 2, 2).documents, &[1, 2], (2, 2));
        assert_eq!(new.root(), key(kind, 2, 2).root());
        every_quorum_of_signs(&new, 2, 2);
    }
}

/// The 3-of-5 key, whose signers 2 and 5 had lost their shares.
fn recovered(kind: Kind) -> &'static Key {
    static RECOVERED: [OnceLock<Key>; 2] = [const { OnceLock::new() }; 2];
    RECOVERED[usize::from(kind == Kind::Schnorr)]
        .get_or_init(|| renewed(kind, &documents(key(kind, 3, 5), &[1, 3, 4]), &[1, 3, 4], (3, 5)))
}

#[test]
fn signers_that_have_lost_all_are_given_shares_by_t_others() {
    for kind in BOTH {
        assert_eq!(recovered(kind).root(), key(kind, 3, 5).root());
        every_quorum_of_signs(recovered(kind), 3, 5);
    }
}

/// Stolen of t - 1 signers before, and of another one after.
#[test]
fn old_and_new_shares_together_give_nothing() {
    for kind in BOTH {
        let (old, new) = (&key(kind, 3, 5).documents, &recovered(kind).documents);
        let root = key(kind, 3, 5).root().to_string();
        let (before, after) = (|i| (i, &old[&signer(i)]), |i| (i, &new[&signer(i)]));
        assert_eq!(interpolated(kind, &[before(1), before(2), before(3)]), root);
        assert_eq!(interpolated(kind, &[after(1), after(2), after(3)]), root);
        for last in 3..=5 {
            assert_ne!(interpolated(kind, &[before(1), before(2), after(last)]), root);
            assert_ne!(interpolated(kind, &[before(1), after(2), after(last)]), root);
        }
        for i in 1..=5 {
            let secret = |document| json_of(document)["core"]["secret_share"].clone();
            assert_ne!(secret(before(i).1), secret(after(i).1));
        }
    }
}

#[test]
fn signers_of_two_epochs_do_not_sign_together_and_nobody_is_taken_for_a_cheat() {
    for kind in BOTH {
        let (old, new) = (key(kind, 3, 5), recovered(kind));
        let setup = old.setup(&[1, 2, 3]);
        let mut machines = old.machines(&setup);
        machines.insert(signer(3), new.shares[&signer(3)].sign(setup).unwrap());
        let ended = run(machines, |envelope| vec![envelope]);
        assert!(ended.outputs.is_empty());
        assert!(suspected(&ended.aborts[&signer(1)], [3]), "{:?}", ended.aborts);
        assert!(suspected(&ended.aborts[&signer(3)], [1, 2]), "{:?}", ended.aborts);
    }
}

/// Even when it says that it means the same as those with the shares before.
#[test]
fn a_new_share_among_old_ones_makes_no_signature() {
    for kind in BOTH {
        let (old, new) = (key(kind, 3, 5), recovered(kind));
        let setup = old.setup(&[1, 2, 3]);
        let mut machines = old.machines(&setup);
        machines.insert(signer(3), new.shares[&signer(3)].sign(setup).unwrap());
        let mut theirs = None;
        let ended = run_edited(machines, |envelope| {
            if envelope.is(1, true, 1) {
                theirs = Some(postcard::from_bytes::<Commitments>(&envelope.message.body).unwrap().0);
                // So that signer 3 goes on, too.
            }
            if envelope.is(1, true, 3) {
                envelope.edit(|own: &mut Commitments| own.0 = theirs.unwrap());
            }
        });
        assert!(!ended.outputs.contains_key(&signer(1)) && !ended.outputs.contains_key(&signer(2)));
        assert!(!ended.outputs.contains_key(&signer(3)));
    }
}

#[test]
fn a_dealer_that_deals_one_signer_something_else_is_named_by_it() {
    for kind in BOTH {
        let machines = machines(kind, &key(kind, 2, 3).documents, &[1, 2], (2, 3));
        let tampered = run_tampered(machines, (1, false, 1), |to, value: &mut [u8; 32]| {
            value[16] ^= u8::from(to == signer(3))
        });
        assert!(tampered.outputs.is_empty());
        assert!(cheated(&tampered.aborts[&signer(3)], 1), "{:?}", tampered.aborts);
    }
}

/// What a dealer broadcasts.
#[derive(Serialize, Deserialize)]
struct Deal {
    claim: (String, [u8; 32], u8, Threshold, BTreeMap<SignerIndex, String>),
    coefficients: Vec<String>,
}

#[test]
fn a_dealer_that_deals_another_secret_than_its_share_or_not_as_agreed_is_named_by_all() {
    for kind in BOTH {
        let edits: [fn(&mut Deal); 4] = [
            // Another value at 0; of one degree more, and less.
            |deal| deal.coefficients.swap(0, 1),
            |deal| deal.coefficients[0] = deal.claim.0.clone(),
            |deal| deal.coefficients.push(deal.claim.0.clone()),
            |deal| deal.coefficients.truncate(1),
        ];
        for edit in edits {
            let held = &key(kind, 2, 3).documents;
            let ended = run_edited(machines(kind, held, &[1, 2], (2, 3)), |envelope| {
                if envelope.is(1, true, 1) {
                    envelope.edit(edit);
                }
            });
            assert!(ended.outputs.is_empty());
            for other in [2, 3] {
                assert!(cheated(&ended.aborts[&signer(other)], 1), "{:?}", ended.aborts);
                assert!(ended.aborts[&signer(other)].reason.contains("no sharing of its share"));
            }
        }
    }
}

/// Signer 3 never held a share. The dealers are t, so that one of them is honest.
#[test]
fn a_new_signer_takes_no_share_of_a_key_that_the_dealers_do_not_agree_on() {
    for kind in BOTH {
        let held = documents(key(kind, 2, 3), &[1, 2]);
        let other = key(kind, 2, 2).root().to_string();
        let ended = run_edited(machines(kind, &held, &[1, 2], (2, 3)), |envelope| {
            if envelope.is(1, true, 1) {
                envelope.edit(|deal: &mut Deal| deal.claim.0 = other.clone());
            }
        });
        assert!(ended.outputs.is_empty());
        assert!(suspected(&ended.aborts[&signer(3)], [1, 2]), "{:?}", ended.aborts);
        assert!(suspected(&ended.aborts[&signer(2)], [1]), "{:?}", ended.aborts);
    }
}

#[test]
fn what_is_not_the_same_for_all_ends_a_renewal() {
    for kind in BOTH {
        for round in [1, 3] {
            equivocates(machines(kind, &key(kind, 2, 3).documents, &[1, 2], (2, 3)), round, true);
            equivocates(machines(kind, &key(kind, 2, 3).documents, &[1, 2], (2, 3)), round, false);
        }
    }
}

#[test]
fn random_and_mutated_bodies_never_panic_in_a_renewal() {
    for kind in BOTH {
        for seed in 0..100 {
            let mut random = Random(seed);
            let round = u8::try_from(seed % 2 + 1).unwrap();
            let ended = run(machines(kind, &key(kind, 2, 2).documents, &[1, 2], (2, 2)), |mut envelope| {
                if envelope.message.round == round && envelope.message.from == signer(2) {
                    garble(&mut random, &mut envelope.message.body);
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
fn what_cannot_be_renewed_is_refused_before_it_begins() {
    for kind in BOTH {
        let held = &key(kind, 2, 3).documents[&signer(1)];
        let begin = |setup: RenewSetup, held| {
            kind.engine().renew(setup, held).err().expect("it is refused").to_string()
        };
        let good = |dealers: &[u8], parties| setup(signer(1), 1, dealers, parties);
        assert_eq!(begin(good(&[1, 2, 3], (2, 3)), Some(held)), "quorum {1, 2, 3} does not fit a 2-of-3 key");
        assert_eq!(begin(good(&[2, 3], (2, 2)), Some(held)), "quorum {2, 3} does not fit a 2-of-2 key");
        assert!(begin(good(&[1, 2], (2, 3)), None).contains("it has no share to deal"));
        let later = RenewSetup { epoch: 2, ..good(&[1, 2], (2, 3)) };
        assert!(begin(later, Some(held)).contains("at epoch 1: expected one of signer 1 of key key"));
        let stranger = setup(signer(4), 1, &[1, 2], (2, 3));
        assert!(begin(stranger, None).contains("has no signer 4"));
    }
}
