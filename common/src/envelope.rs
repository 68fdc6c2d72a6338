//! How signers' words travel through a middle that nobody trusts.
//!
//! Everything a signer sends is signed with its identity, over the protocol's version, the cluster and
//! all of the header: session, round, sender, addressee. What is for one signer alone is sealed to it
//! (HPKE, RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM), with the header
//! as associated data, so that nobody can pass another's sealed words on as their own. A broadcast is
//! signed once, for all: a sender that says two things in one place has signed both.
//!
//! An [`Endpoint`] is one signer's pen and seal; a [`Reader`] can only check.

use bytes::Bytes;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tss_mpc::{SessionId, SignerIndex};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::ed25519::Signature;
use crate::identity::{Identity, Roster};
use crate::intent::hash_fields;
use crate::wire::{VERSION, WireError};

/// The longest envelope, in bytes: the longest body of an engine, and some room.
pub const MAX_ENVELOPE: usize = tss_mpc::rounds::MAX_BODY + 1024;

/// Length of the encapsulated key that precedes what is sealed.
const ENCAPSULATED: usize = 32;

/// Where an envelope belongs. All of it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The request that the session serves.
    pub request: Uuid,
    /// The attempt that the session is.
    pub attempt: u32,
    /// The session; of a join (round 0), which comes before there is one, the hash of its context.
    pub session: SessionId,
    /// The round: 0 for a join, then the engine's own from 1.
    pub round: u8,
    /// Who wrote it.
    pub from: SignerIndex,
    /// Whom it is for; nobody in particular if it is a broadcast.
    pub to: Option<SignerIndex>,
}

/// What travels between the version and the payload: header and signature, in postcard's encoding, the
/// signature in halves since serde has no array of 64.
type Front = (Header, [u8; 32], [u8; 32]);

/// Why an envelope is not used. Nothing in it can be believed then, not even the sender's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no envelope.
    #[error("it is no envelope")]
    Malformed,
    /// It is longer than [`MAX_ENVELOPE`].
    #[error("it is too long")]
    TooLong,
    /// It is of another version of this software.
    #[error("it is of another version")]
    Version,
    /// It is for another signer, or comes back to its writer.
    #[error("it is for somebody else")]
    Misrouted,
    /// The roster does not know the sender.
    #[error("its sender is not in the roster")]
    Unknown,
    /// The sender did not sign it, or not for this cluster, session, round and addressee.
    #[error("its signature is not the sender's")]
    Forged,
    /// The sender signed it, but it cannot be opened.
    #[error("it cannot be opened")]
    Sealed,
}

/// A message whose sender is certain. Not opened yet, if it is sealed.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Where it belongs.
    pub header: Header,
    /// What the sender signed: with `signature`, proof to anybody that it did.
    pub digest: [u8; 32],
    /// The sender's signature over `digest`.
    pub signature: Signature,
    payload: Bytes,
}

/// Reads what signers have signed. Managers have one, and it holds nothing secret.
#[derive(Clone, Debug)]
pub struct Reader {
    cluster: String,
    roster: Roster,
}

/// One signer's own end.
#[derive(Debug)]
pub struct Endpoint {
    index: SignerIndex,
    identity: Identity,
    reader: Reader,
}

impl Endpoint {
    /// The end of signer `index`.
    ///
    /// # Errors
    /// When the roster knows the signer by other keys: nobody would believe it.
    pub fn new(
        cluster: &str,
        index: SignerIndex,
        identity: Identity,
        roster: Roster,
    ) -> Result<Self, String> {
        match roster.get(index) {
            Some(known) if *known == identity.public() => {}
            Some(known) => {
                return Err(format!(
                    "signer {index} has another identity (verifying key {}) than the roster says: expected {}",
                    identity.public().verifying_key,
                    known.verifying_key
                ));
            }
            None => return Err(format!("the roster does not know signer {index}")),
        }
        Ok(Self { index, identity, reader: Reader::new(cluster, roster) })
    }

    /// Which signer's end it is.
    pub fn index(&self) -> SignerIndex {
        self.index
    }

    /// What everybody else can check with.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Writes an envelope: seals it if it has one addressee, and signs it. `header.from` is this signer,
    /// whatever it says.
    ///
    /// # Errors
    /// [`Unreadable`] when the addressee is not in the roster, or the body too long.
    pub fn write(&self, header: Header, body: &[u8]) -> Result<Bytes, Unreadable> {
        let header = Header { from: self.index, ..header };
        let sealed;
        let payload = match header.to {
            None => body,
            Some(to) => {
                let key = self.reader.roster.get(to).ok_or(Unreadable::Unknown)?.sealing_key;
                let aad = header.to_bytes()?;
                let (encapsulated, ciphertext) = SUITE
                    .seal(self.reader.info().as_slice(), &aad, body, &HpkePublicKey(key.0.to_vec()))
                    .map_err(|_| Unreadable::Sealed)?;
                sealed = [encapsulated.0, ciphertext].concat();
                &sealed
            }
        };
        let digest = self.reader.digest(&header, payload)?;
        let [r, s] = self.identity.signing_key().sign(&digest).halves();
        let mut bytes = Vec::with_capacity(payload.len() + 256);
        bytes.push(VERSION);
        let front: Front = (header, r, s);
        let mut bytes = postcard::to_extend(&front, bytes).map_err(|_| Unreadable::Malformed)?;
        bytes.extend_from_slice(payload);
        if bytes.len() > MAX_ENVELOPE { Err(Unreadable::TooLong) } else { Ok(bytes.into()) }
    }

    /// Reads an envelope for this signer, or for all.
    ///
    /// # Errors
    /// [`Unreadable`], why it is to be dropped.
    pub fn read(&self, bytes: &Bytes) -> Result<Letter, Unreadable> {
        let (header, _, _) = parse(bytes)?;
        if header.from == self.index || header.to.is_some_and(|to| to != self.index) {
            return Err(Unreadable::Misrouted);
        }
        self.reader.read(bytes)
    }

    /// What a letter says. What was sealed is secret, so all of it is zeroized when dropped.
    ///
    /// # Errors
    /// [`Unreadable::Sealed`] when it is sealed to another key, or with another header.
    pub fn open(&self, letter: &Letter) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
        if letter.header.to.is_none() {
            return Ok(Zeroizing::new(letter.payload.to_vec()));
        }
        let (encapsulated, ciphertext) =
            letter.payload.split_at_checked(ENCAPSULATED).ok_or(Unreadable::Sealed)?;
        let aad = letter.header.to_bytes()?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        SUITE
            .open(&encapsulated, &self.reader.info(), &aad, ciphertext, self.identity.sealing_key())
            .map(Zeroizing::new)
            .map_err(|_| Unreadable::Sealed)
    }

    /// A control message of this signer, signed: JSON within JSON, so that what was signed is exact and
    /// a person can still read it.
    ///
    /// # Errors
    /// [`WireError::Malformed`] should a value have no JSON form.
    pub fn sign<T: Serialize>(&self, message: &T) -> Result<Signed, WireError> {
        let body = serde_json::to_string(message).map_err(|error| WireError::Malformed(error.to_string()))?;
        let digest = self.reader.statement(self.index, &body);
        Ok(Signed { signer: self.index, signature: self.identity.signing_key().sign(&digest), body })
    }
}

/// A control message with its signer's signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// Who says it.
    pub signer: SignerIndex,
    /// The signature.
    pub signature: Signature,
    /// What it says, as JSON.
    pub body: String,
}

impl Reader {
    /// Reads what the signers of a roster have signed for a cluster.
    pub fn new(cluster: &str, roster: Roster) -> Self {
        Self { cluster: cluster.to_owned(), roster }
    }

    /// What a control message says, and who says it.
    ///
    /// # Errors
    /// [`WireError`] when its signer did not sign it, or it is no such message.
    pub fn open<T: DeserializeOwned>(&self, signed: &Signed) -> Result<T, WireError> {
        let known = self.roster.get(signed.signer).ok_or(WireError::Forged(signed.signer))?;
        known
            .verifying_key
            .verify(&self.statement(signed.signer, &signed.body), &signed.signature)
            .map_err(|_| WireError::Forged(signed.signer))?;
        serde_json::from_str(&signed.body).map_err(|error| WireError::Malformed(error.to_string()))
    }

    /// Checks an envelope's signature, whomever it is for.
    ///
    /// # Errors
    /// [`Unreadable`], why it is to be dropped.
    pub fn read(&self, bytes: &Bytes) -> Result<Letter, Unreadable> {
        let (header, signature, payload) = parse(bytes)?;
        let known = self.roster.get(header.from).ok_or(Unreadable::Unknown)?;
        let digest = self.digest(&header, payload)?;
        known.verifying_key.verify(&digest, &signature).map_err(|_| Unreadable::Forged)?;
        Ok(Letter { header, digest, signature, payload: bytes.slice_ref(payload) })
    }

    fn info(&self) -> Vec<u8> {
        hash_fields("tss.network/seal/v1", &[&[VERSION], self.cluster.as_bytes()]).to_vec()
    }

    fn digest(&self, header: &Header, payload: &[u8]) -> Result<[u8; 32], Unreadable> {
        let header = header.to_bytes()?;
        Ok(hash_fields("tss.network/envelope/v1", &[&[VERSION], self.cluster.as_bytes(), &header, payload]))
    }

    fn statement(&self, signer: SignerIndex, body: &str) -> [u8; 32] {
        let fields = [&[VERSION][..], self.cluster.as_bytes(), &[signer.get()], body.as_bytes()];
        hash_fields("tss.network/control/v1", &fields)
    }
}

impl Header {
    /// The header of an envelope, unchecked: anybody could have written it. For those who watch.
    ///
    /// # Errors
    /// [`Unreadable`] when it is no envelope of this version.
    pub fn peek(bytes: &[u8]) -> Result<Self, Unreadable> {
        parse(bytes).map(|(header, ..)| header)
    }

    fn to_bytes(&self) -> Result<Vec<u8>, Unreadable> {
        postcard::to_allocvec(self).map_err(|_| Unreadable::Malformed)
    }
}

fn parse(bytes: &[u8]) -> Result<(Header, Signature, &[u8]), Unreadable> {
    if bytes.len() > MAX_ENVELOPE {
        return Err(Unreadable::TooLong);
    }
    match bytes.split_first() {
        Some((&VERSION, rest)) => {
            let (front, payload): (Front, _) =
                postcard::take_from_bytes(rest).map_err(|_| Unreadable::Malformed)?;
            // A number can be written longer than needed, which would give an envelope a second form.
            let written = postcard::to_allocvec(&front).map_err(|_| Unreadable::Malformed)?;
            if !rest.starts_with(&written) || written.len() + payload.len() != rest.len() {
                return Err(Unreadable::Malformed);
            }
            let (header, r, s) = front;
            Ok((header, Signature::from([r, s]), payload))
        }
        Some(_) => Err(Unreadable::Version),
        None => Err(Unreadable::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ed25519::SigningKey;
    use std::collections::BTreeMap;

    fn index(i: u8) -> SignerIndex {
        SignerIndex::new(i).unwrap()
    }

    /// The ends of a cluster's signers.
    fn endpoints(cluster: &str, identities: Vec<Identity>) -> Vec<Endpoint> {
        let public: BTreeMap<_, _> =
            (1..).zip(&identities).map(|(i, identity)| (index(i), identity.public())).collect();
        let roster = Roster::new(public).unwrap();
        let end = |(i, identity)| Endpoint::new(cluster, index(i), identity, roster.clone()).unwrap();
        (1..).zip(identities).map(end).collect()
    }

    fn three() -> Vec<Endpoint> {
        endpoints("c", (0..3).map(|_| Identity::generate()).collect())
    }

    fn header(to: Option<u8>) -> Header {
        Header {
            request: Uuid::from_u128(7),
            attempt: 3,
            session: SessionId([9; 32]),
            round: 1,
            from: index(1),
            to: to.map(index),
        }
    }

    #[test]
    fn a_sealed_message_is_read_by_its_addressee_alone_and_shows_nothing() {
        let ends = three();
        let secret = b"half of everything";
        let bytes = ends[0].write(header(Some(2)), secret).unwrap();
        let letter = ends[1].read(&bytes).unwrap();
        assert_eq!(letter.header, header(Some(2)));
        assert_eq!(ends[1].open(&letter).unwrap().as_slice(), secret);
        assert!(!bytes.windows(4).any(|window| secret.windows(4).any(|part| part == window)));
        assert_eq!(ends[2].read(&bytes).unwrap_err(), Unreadable::Misrouted);
        assert_eq!(ends[2].open(&letter).unwrap_err(), Unreadable::Sealed);
        assert_eq!(ends[0].read(&bytes).unwrap_err(), Unreadable::Misrouted);
        assert_eq!(Header::peek(&bytes).unwrap(), header(Some(2)));
    }

    #[test]
    fn a_broadcast_is_read_by_everybody() {
        let ends = three();
        let bytes = ends[0].write(header(None), b"to all").unwrap();
        for end in &ends[1..] {
            let letter = end.read(&bytes).unwrap();
            assert_eq!(end.open(&letter).unwrap().as_slice(), b"to all");
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let ends = three();
        for to in [Some(2), None] {
            let bytes = ends[0].write(header(to), b"body").unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                let read = ends[1].read(&changed.into());
                assert!(read.is_err(), "bit {bit} of {to:?}");
            }
            for length in 0..bytes.len() {
                assert!(ends[1].read(&bytes.slice(..length)).is_err(), "{length} bytes of {to:?}");
            }
        }
    }

    #[test]
    fn an_envelope_has_no_second_form() {
        let ends = three();
        let bytes = ends[0].write(header(Some(2)), b"body").unwrap();
        // The attempt, 3, stands behind the version and the request, and can be written in two bytes.
        let attempt = 1 + 1 + 16;
        assert_eq!(bytes[attempt], 3);
        let longer: Bytes = [&bytes[..attempt], &[0x83, 0], &bytes[attempt + 1..]].concat().into();
        assert_eq!(Header::peek(&longer).unwrap_err(), Unreadable::Malformed);
        assert_eq!(ends[1].read(&longer).unwrap_err(), Unreadable::Malformed);
    }

    #[test]
    fn nobody_passes_anothers_sealed_words_on_as_their_own_or_elsewhere() {
        let ends = three();
        let bytes = ends[0].write(header(Some(2)), b"body").unwrap();
        let stolen = parse(&bytes).unwrap().2;
        // Signer 3 signs what signer 1 sealed, in its own name or in another place.
        for header in [header(Some(2)), Header { round: 2, ..header(Some(2)) }] {
            let header = Header { from: index(3), ..header };
            let digest = ends[2].reader.digest(&header, stolen).unwrap();
            let [r, s] = ends[2].identity.signing_key().sign(&digest).halves();
            let front: Front = (header, r, s);
            let mut forged = postcard::to_extend(&front, vec![VERSION]).unwrap();
            forged.extend_from_slice(stolen);
            let letter = ends[1].read(&forged.into()).unwrap();
            assert_eq!(ends[1].open(&letter).unwrap_err(), Unreadable::Sealed);
        }
    }

    #[test]
    fn another_cluster_a_stranger_and_another_version_are_refused() {
        let identities = || {
            (1..=3).map(|i| {
                let seed = Zeroizing::new(format!(
                    "{{\"version\":1,\"signing_key\":\"{0}\",\"sealing_key\":\"{0}\"}}",
                    hex::encode([i; 32])
                ));
                Identity::from_json(seed.as_bytes()).unwrap()
            })
        };
        let here = endpoints("here", identities().collect());
        let there = endpoints("there", identities().collect());
        let bytes = there[0].write(header(None), b"body").unwrap();
        assert_eq!(here[1].read(&bytes).unwrap_err(), Unreadable::Forged);
        let two = endpoints("here", identities().take(2).collect());
        let bytes = here[2].write(header(None), b"body").unwrap();
        assert_eq!(two[0].read(&bytes).unwrap_err(), Unreadable::Unknown);
        let mut later = bytes.to_vec();
        later[0] += 1;
        assert_eq!(here[0].read(&later.into()).unwrap_err(), Unreadable::Version);
        let long = Bytes::from(vec![VERSION; MAX_ENVELOPE + 1]);
        assert_eq!(here[0].read(&long).unwrap_err(), Unreadable::TooLong);
        assert_eq!(here[0].write(header(None), &[0; MAX_ENVELOPE]).unwrap_err(), Unreadable::TooLong);
    }

    #[test]
    fn an_identity_that_the_roster_does_not_know_is_refused_at_once() {
        let ends = three();
        let roster = ends[0].reader.roster.clone();
        let error = Endpoint::new("c", index(1), Identity::generate(), roster).unwrap_err();
        assert!(error.contains("another identity"), "{error}");
    }

    #[test]
    fn a_control_message_is_its_signers_and_of_this_cluster() {
        let ends = three();
        let signed = ends[0].sign(&vec![1, 2, 3]).unwrap();
        assert_eq!(ends[1].reader.open::<Vec<u8>>(&signed).unwrap(), [1, 2, 3]);
        let elsewhere = Reader::new("d", ends[1].reader.roster.clone());
        let other_key = SigningKey::generate().sign(&[0; 32]);
        for (reader, forged) in [
            (&elsewhere, signed.clone()),
            (&ends[1].reader, Signed { signer: index(2), ..signed.clone() }),
            (&ends[1].reader, Signed { body: "[1,2]".into(), ..signed.clone() }),
            (&ends[1].reader, Signed { signature: other_key, ..signed.clone() }),
        ] {
            assert!(matches!(reader.open::<Vec<u8>>(&forged), Err(WireError::Forged(_))), "{forged:?}");
        }
    }
}
