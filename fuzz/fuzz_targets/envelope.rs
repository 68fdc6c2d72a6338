//! What travels between signers and managers: envelopes, control messages, and the identities that sign
//! them. Most of the code stands behind a signature, so that this target signs what the input says.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tss_common::ed25519::SigningKey;
use tss_common::envelope::{Endpoint, Header, Letter, MAX_ENVELOPE, Signed, Unreadable};
use tss_common::identity::{Identity, Roster};
use tss_common::intent::hash_fields;
use tss_common::wire::{self, Attempt, Heartbeat, Notice, Outcome, VERSION, WireError};
use tss_fuzz::{Input, shown, signer};
use tss_mpc::{SessionId, SignerIndex};
use uuid::Uuid;
use zeroize::Zeroizing;

const CLUSTER: &str = "fuzz";

/// The ends of signers 1 to 3, whose keys anybody can compute.
static ENDS: LazyLock<BTreeMap<SignerIndex, Endpoint>> = LazyLock::new(|| {
    let identity = |index: u8| {
        let (signing, sealing) = (hex::encode([index; 32]), hex::encode([index + 100; 32]));
        let json = format!(r#"{{"version":1,"signing_key":"{signing}","sealing_key":"{sealing}"}}"#);
        Identity::from_json(json.as_bytes()).expect("it is an identity document")
    };
    let identities: BTreeMap<_, _> = (1..=3).map(|index| (signer(index), identity(index))).collect();
    let roster = Roster::of(&identities).expect("all keys differ");
    let end = |(index, identity)| {
        (index, Endpoint::new(CLUSTER, index, identity, roster.clone()).expect("the roster is theirs"))
    };
    identities.into_iter().map(end).collect()
});

fn signing_key(index: SignerIndex) -> SigningKey {
    SigningKey::from_seed(Zeroizing::new([index.get(); 32]))
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() % 8 {
        0 => drop(read(&Bytes::copy_from_slice(input.rest()))),
        1 => signed_by_hand(input),
        2 => written(input),
        3 => edited(input),
        4 => control(input.rest()),
        5 => control_signed(input),
        6 => roster(input),
        _ => identity(input.rest()),
    }
});

/// Everybody reads it. Returns what it is, if it is an envelope of one of the three.
fn read(bytes: &Bytes) -> Option<Letter> {
    let peeked = Header::peek(bytes);
    let read = ENDS[&signer(1)].reader().read(bytes);
    if let Err(error) = &peeked {
        assert_eq!(read.as_ref().err(), Some(error));
    }
    for (index, end) in &*ENDS {
        let own = end.read(bytes);
        assert_eq!(shown(&end.reader().read(bytes)), shown(&read));
        let Ok(letter) = own else { continue };
        let read = read.as_ref().expect("what a signer reads, a reader reads");
        assert_eq!(shown(&letter), shown(read));
        assert!(letter.header.from != *index && letter.header.to.is_none_or(|to| to == *index));
    }
    let letter = read.ok()?;
    assert_eq!(peeked.as_ref(), Ok(&letter.header));
    assert!(bytes.len() <= MAX_ENVELOPE);
    Some(letter)
}

fn header(input: &mut Input<'_>) -> Header {
    Header {
        request: Uuid::from_bytes(input.array()),
        attempt: u32::from_be_bytes(input.array()),
        session: SessionId(input.array()),
        round: input.byte(),
        from: signer(input.byte() % 3 + 1),
        to: Some(input.byte() % 8).filter(|to| *to > 0).map(signer),
    }
}

/// An envelope made from its description, by code of this target's own: its payload is what the input
/// says, also where it should have been sealed.
fn envelope(header: &Header, payload: &[u8]) -> Bytes {
    let encoded = postcard::to_allocvec(header).expect("a header has an encoding");
    let fields = [&[VERSION][..], CLUSTER.as_bytes(), &encoded, payload];
    let digest = hash_fields("tss.network/envelope/v1", &fields);
    let halves = signing_key(header.from).sign(&digest).halves();
    [&[VERSION][..], &encoded, halves.as_flattened(), payload].concat().into()
}

fn signed_by_hand(mut input: Input<'_>) {
    let header = header(&mut input);
    let payload = input.rest();
    let bytes = envelope(&header, payload);
    let letter = read(&bytes).expect("what is signed is read");
    assert_eq!(letter.header, header);
    for (index, end) in &*ENDS {
        let addressed = header.to.is_none_or(|to| to == *index);
        assert_eq!(end.read(&bytes).is_ok(), addressed && header.from != *index);
        match header.to {
            None => assert_eq!(*end.open(&letter).expect("nothing is sealed"), payload),
            // Nothing that an input holds by chance is sealed to anybody.
            Some(_) => assert_eq!(end.open(&letter), Err(Unreadable::Sealed)),
        }
    }
    if header.to.is_none() {
        let again = ENDS[&header.from].write(header, payload).expect("it was written before");
        assert_eq!(again, bytes);
    }
}

fn written(mut input: Input<'_>) {
    let header = header(&mut input);
    let body = input.rest();
    let written = ENDS[&header.from].write(header.clone(), body);
    let Ok(bytes) = written else {
        assert!(header.to.is_some_and(|to| !ENDS.contains_key(&to)), "{written:?}");
        return;
    };
    let letter = read(&bytes).expect("what was written is read");
    assert_eq!(letter.header, header);
    for (index, end) in &*ENDS {
        match end.open(&letter) {
            Ok(opened) => assert!(*opened == body && header.to.is_none_or(|to| to == *index)),
            Err(error) => assert!(error == Unreadable::Sealed && header.to != Some(*index)),
        }
    }
}

/// What is changed on the way is noticed, wherever it is changed.
fn edited(mut input: Input<'_>) {
    let header = Header { from: signer(1), ..header(&mut input) };
    let header = Header { to: header.to.filter(|to| ENDS.contains_key(to)), ..header };
    let body = input.short();
    let bytes = ENDS[&header.from].write(header.clone(), body).expect("all addressees are in the roster");
    let changed = Bytes::from(input.edit(&bytes));
    if let Some(letter) = read(&changed) {
        assert!(changed == bytes, "an envelope has a second form, as {:?}", letter.header);
    }
    // The same where the sender signs what was changed: of what is sealed, nothing can be.
    if header.to.is_some() {
        let genuine = bytes.len() - body.len() - 32 - 16;
        let payload = input.edit(&bytes[genuine..]);
        let letter = read(&envelope(&header, &payload)).expect("it is signed");
        for (index, end) in &*ENDS {
            let opens = payload == bytes[genuine..] && header.to == Some(*index);
            assert_eq!(end.open(&letter).is_ok(), opens);
        }
    }
}

fn control(bytes: &[u8]) {
    control_as::<Signed>(bytes);
    control_as::<Notice>(bytes);
    control_as::<Attempt>(bytes);
    control_as::<Outcome>(bytes);
    if let Ok(signed) = wire::from_json::<Signed>(bytes) {
        let opened: Result<Outcome, WireError> = ENDS[&signer(1)].reader().open(&signed);
        assert!(!matches!(opened, Err(WireError::Version(_) | WireError::Stale(_))));
    }
}

fn control_as<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(message) = wire::from_json::<T>(bytes) else { return };
    let written = wire::to_json(&message).expect("it came from JSON");
    let read: T = wire::from_json(&written).expect("what was written is read");
    assert_eq!(wire::to_json(&read).expect("it came from JSON"), written);
}

fn control_signed(mut input: Input<'_>) {
    let from = signer(input.byte() % 3 + 1);
    let outcome = input.byte() % 2 == 0;
    let body = String::from_utf8_lossy(input.rest()).into_owned();
    let fields = [&[VERSION][..], CLUSTER.as_bytes(), &[from.get()], body.as_bytes()];
    let signature = signing_key(from).sign(&hash_fields("tss.network/control/v1", &fields));
    let signed = Signed { signer: from, signature, body };
    control_as::<Signed>(&wire::to_json(&signed).expect("it has a JSON form"));
    if outcome { open_signed::<Outcome>(&signed) } else { open_signed::<Heartbeat>(&signed) }
}

fn open_signed<T: Serialize + DeserializeOwned>(signed: &Signed) {
    let reader = ENDS[&signer(2)].reader();
    let opened = reader.open::<T>(signed);
    assert!(!matches!(opened, Err(WireError::Forged(_))));
    let other = Signed { signer: signer(signed.signer.get() % 3 + 1), ..signed.clone() };
    assert!(matches!(reader.open::<T>(&other), Err(WireError::Forged(_))));
    if let Ok(message) = opened {
        let again = ENDS[&signed.signer].sign(&message).expect("it came from JSON");
        let read: T = reader.open(&again).expect("what was signed is read");
        assert_eq!(ENDS[&signed.signer].sign(&read).map(|signed| signed.body), Ok(again.body));
    }
}

fn roster(mut input: Input<'_>) {
    let total = input.byte() % 17;
    let Ok(roster) = Roster::from_toml(&String::from_utf8_lossy(input.rest()), total) else { return };
    let written = roster.to_toml().expect("it came from TOML");
    assert_eq!(Roster::from_toml(&written, total), Ok(roster));
}

fn identity(bytes: &[u8]) {
    let Ok(identity) = Identity::from_json(bytes) else { return };
    let written = identity.to_json().expect("it came from JSON");
    let read = Identity::from_json(&written).expect("what was written is read");
    assert_eq!(read.public(), identity.public());
}
