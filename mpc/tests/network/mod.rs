//! Parties of a session, and a network between them that tampers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tss_mpc::local::Machines;
use tss_mpc::{Abort, Blame, Incoming, Outgoing, Quorum, Recipient, SignerIndex, Step};

pub(crate) fn signer(index: u8) -> SignerIndex {
    SignerIndex::new(index).unwrap()
}

pub(crate) fn signers(indices: impl IntoIterator<Item = u8>) -> BTreeSet<SignerIndex> {
    indices.into_iter().map(signer).collect()
}

pub(crate) fn quorum(indices: impl IntoIterator<Item = u8>) -> Quorum {
    Quorum::new(indices.into_iter().map(signer)).unwrap()
}

/// A message on its way.
#[derive(Clone)]
pub(crate) struct Envelope {
    pub(crate) to: SignerIndex,
    pub(crate) message: Incoming,
}

impl Envelope {
    pub(crate) fn is(&self, round: u8, broadcast: bool, from: u8) -> bool {
        let message = &self.message;
        (message.round, message.broadcast, message.from.get()) == (round, broadcast, from)
    }

    pub(crate) fn edit<T: DeserializeOwned + Serialize, R>(&mut self, edit: impl FnOnce(&mut T) -> R) {
        let mut value = postcard::from_bytes(&self.message.body).unwrap();
        edit(&mut value);
        self.message.body = postcard::to_allocvec(&value).unwrap();
    }
}

pub(crate) struct Ended<T> {
    pub(crate) outputs: BTreeMap<SignerIndex, T>,
    pub(crate) aborts: BTreeMap<SignerIndex, Abort>,
    /// Those that still wait.
    pub(crate) machines: Machines<T>,
}

/// Runs until nothing moves. `network` turns each message into what arrives in its stead.
pub(crate) fn run<T>(
    mut machines: Machines<T>,
    mut network: impl FnMut(Envelope) -> Vec<Envelope>,
) -> Ended<T> {
    let parties: Vec<SignerIndex> = machines.keys().copied().collect();
    let mut outputs = BTreeMap::new();
    let mut aborts = BTreeMap::new();
    let mut results: VecDeque<(SignerIndex, Result<Step<T>, Abort>)> =
        machines.iter_mut().map(|(&i, machine)| (i, machine.start())).collect();
    let mut queue = VecDeque::new();
    loop {
        while let Some((from, result)) = results.pop_front() {
            let step = match result {
                Ok(step) => step,
                Err(abort) => {
                    machines.remove(&from);
                    aborts.insert(from, abort);
                    continue;
                }
            };
            for sent in step.send {
                let others = parties.iter().copied().filter(|&to| to != from);
                queue.extend(addressed(from, sent, others).into_iter().flat_map(&mut network));
            }
            if let Some(output) = step.output {
                machines.remove(&from);
                outputs.insert(from, output);
            }
        }
        let Some(Envelope { to, message }) = queue.pop_front() else { break };
        if let Some(machine) = machines.get_mut(&to) {
            results.push_back((to, machine.receive(message)));
        }
    }
    Ended { outputs, aborts, machines }
}

/// A message that a party sends, as it goes to each of the others.
pub(crate) fn addressed(
    from: SignerIndex,
    Outgoing { round, to, body }: Outgoing,
    others: impl Iterator<Item = SignerIndex>,
) -> Vec<Envelope> {
    let broadcast = to == Recipient::All;
    let others = others.filter(|&other| broadcast || to == Recipient::One(other));
    let message = Incoming { round, from, broadcast, body };
    others.map(|to| Envelope { to, message: message.clone() }).collect()
}

/// The hash of a broadcast that an echo has, by code of its own.
pub(crate) fn echo_hash(message: &Incoming) -> [u8; 32] {
    let mut bytes = b"tss broadcast echo v1".to_vec();
    bytes.extend([message.round, message.from.get()]);
    bytes.extend((message.body.len() as u64).to_be_bytes());
    bytes.extend(&message.body);
    Sha256::digest(bytes).into()
}

/// What an echo says.
pub(crate) type Echo = BTreeMap<SignerIndex, [u8; 32]>;

/// Runs with messages edited, as one would that hides it: where it edits a broadcast, it echoes to
/// each other what that one got, and its own machine hears what it had sent.
pub(crate) fn run_edited<T>(machines: Machines<T>, mut edit: impl FnMut(&mut Envelope)) -> Ended<T> {
    let echoes = machines.len() > 2;
    // Of an edited broadcast, by round, sender and receiver: as it was sent, and as it came.
    let mut edited = BTreeMap::new();
    run(machines, |mut envelope| {
        let (round, from, to) = (envelope.message.round, envelope.message.from, envelope.to);
        let sent = echo_hash(&envelope.message);
        edit(&mut envelope);
        if envelope.message.broadcast && echoes {
            let came = echo_hash(&envelope.message);
            if sent != came {
                edited.insert((round, from, to), (sent, came));
            }
            if let Some(&(_, came)) = edited.get(&(round - 1, from, to)) {
                envelope.edit(|echo: &mut Echo| echo.insert(from, came));
            }
            if let Some(&(sent, _)) = edited.get(&(round - 1, to, from)) {
                envelope.edit(|echo: &mut Echo| echo.insert(to, sent));
            }
        }
        vec![envelope]
    })
}

/// Runs with one kind of message edited, as [`run_edited`] does.
pub(crate) fn run_tampered<T, M: DeserializeOwned + Serialize>(
    machines: Machines<T>,
    (round, broadcast, from): (u8, bool, u8),
    mut edit: impl FnMut(SignerIndex, &mut M),
) -> Ended<T> {
    run_edited(machines, |envelope| {
        if envelope.is(round, broadcast, from) {
            let to = envelope.to;
            envelope.edit(|message| edit(to, message));
        }
    })
}

pub(crate) fn cheated(abort: &Abort, culprit: u8) -> bool {
    abort.blame == Blame::Cheating { culprits: signers([culprit]), ban: false }
}

pub(crate) fn suspected(abort: &Abort, suspects: impl IntoIterator<Item = u8>) -> bool {
    abort.blame == Blame::Unattributed { suspects: signers(suspects) }
}

/// SplitMix64, for tests that can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Every set of `t` of the numbers 1 to `n`.
pub(crate) fn quorums(t: u8, n: u8) -> Vec<Vec<u8>> {
    (0_u32..1 << n)
        .filter(|set| set.count_ones() == u32::from(t))
        .map(|set| (1..=n).filter(|i| set >> (i - 1) & 1 == 1).collect())
        .collect()
}

/// Replaces a body by random bytes, or changes some of its own.
pub(crate) fn garble(random: &mut Random, body: &mut Vec<u8>) {
    match random.below(4) {
        0 => {
            let length = random.below(2 * body.len() + 2);
            *body = random.bytes(length);
        }
        1 => body.truncate(random.below(body.len())),
        2 => {
            for _ in 0..=random.below(8) {
                let place = random.below(body.len());
                body[place] = random.next().to_le_bytes()[0];
            }
        }
        _ => {
            // At the front are the lengths and indices.
            let place = random.below(body.len().min(128));
            body[place] ^= 1 << random.below(8);
        }
    }
}

/// Signer 2 broadcasts in this round one thing to some and another to the others, and either hides
/// it from each or tells all the same in its echo.
pub(crate) fn equivocates<T: std::fmt::Debug>(machines: Machines<T>, round: u8, hides: bool) {
    let honest: Vec<SignerIndex> = machines.keys().copied().filter(|&index| index != signer(2)).collect();
    // Every second of them gets another than the rest.
    let (other, same): (Vec<_>, Vec<_>) = honest.iter().enumerate().partition(|(place, _)| place % 2 == 0);
    let side = |side: Vec<(usize, &SignerIndex)>| side.into_iter().map(|(_, &i)| i).collect::<BTreeSet<_>>();
    let (other, same) = (side(other), side(same));
    let mut highest = 0;
    let mut edit = |envelope: &mut Envelope| {
        if envelope.message.from != signer(2) {
            highest = highest.max(envelope.message.round);
        } else if envelope.is(round, true, 2) && other.contains(&envelope.to) {
            *envelope.message.body.last_mut().unwrap() ^= 1;
        }
    };
    let mut ended = if hides {
        run_edited(machines, edit)
    } else {
        run(machines, |mut envelope| {
            edit(&mut envelope);
            vec![envelope]
        })
    };
    // No honest party goes on after the echo.
    assert_eq!(highest, round + 1);
    assert!(ended.outputs.keys().all(|&index| index == signer(2)), "{:?}", ended.outputs);
    ended.aborts.remove(&signer(2));
    assert!(ended.aborts.keys().eq(&honest), "{:?}", ended.aborts);
    for (at, abort) in ended.aborts {
        if other.contains(&at) && !hides {
            assert!(cheated(&abort, 2), "{at}: {abort}");
        } else {
            let suspects = if other.contains(&at) { &same } else { &other };
            let suspects = suspects.iter().map(|index| index.get()).chain([2]);
            assert!(suspected(&abort, suspects), "{at}: {abort}");
            assert!(abort.reason.contains("another broadcast of signer 2"), "{abort}");
        }
    }
}
