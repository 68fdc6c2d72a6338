//! Rounds: what every machine has in common, whatever its protocol.
//!
//! A [`Protocol`] is the arithmetic alone: it is given all messages of a round at once and yields
//! those of the next. [`RoundMachine`] makes a [`Machine`] of it, and does what each would
//! otherwise repeat: it keeps messages until their round, refuses those that no honest party sends,
//! and knows whose are missing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::{Abort, Incoming, Machine, Outgoing, Recipient, SignerIndex, Step};

/// The longest body accepted, in bytes. The longest that any engine sends is a good half of it.
pub const MAX_BODY: usize = 256 * 1024;

/// The body of a message that arrived; zeroized when dropped, since what goes to one party alone is
/// mostly secret.
pub type Body = Zeroizing<Vec<u8>>;

/// Whose messages a round needs: at most one broadcast and one direct message from each party.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Who sends to everybody.
    pub broadcast: BTreeSet<SignerIndex>,
    /// Who sends to this party alone.
    pub direct: BTreeSet<SignerIndex>,
}

impl Round {
    /// A broadcast from each of these.
    pub fn broadcast(from: impl IntoIterator<Item = SignerIndex>) -> Self {
        Self { broadcast: from.into_iter().collect(), direct: BTreeSet::new() }
    }

    /// A direct message from each of these.
    pub fn direct(from: impl IntoIterator<Item = SignerIndex>) -> Self {
        Self { broadcast: BTreeSet::new(), direct: from.into_iter().collect() }
    }

    /// A broadcast and a direct message from each of these.
    pub fn both(from: impl IntoIterator<Item = SignerIndex>) -> Self {
        let from: BTreeSet<SignerIndex> = from.into_iter().collect();
        Self { broadcast: from.clone(), direct: from }
    }
}

/// All messages of one round.
pub struct Received {
    round: u8,
    broadcast: BTreeMap<SignerIndex, Body>,
    direct: BTreeMap<SignerIndex, Body>,
}

impl Received {
    /// The broadcasts as they came, by sender.
    pub fn broadcast(&self) -> &BTreeMap<SignerIndex, Body> {
        &self.broadcast
    }

    /// The direct messages as they came, by sender.
    pub fn direct(&self) -> &BTreeMap<SignerIndex, Body> {
        &self.direct
    }

    /// The broadcasts, decoded by [`decode`].
    ///
    /// # Errors
    /// [`Abort::cheating`] naming the first whose broadcast is malformed.
    pub fn decode_broadcast<T: DeserializeOwned>(&self) -> Result<BTreeMap<SignerIndex, T>, Abort> {
        self.decode_all(&self.broadcast, "broadcast")
    }

    /// The direct messages, decoded by [`decode`].
    ///
    /// # Errors
    /// [`Abort::cheating`] naming the first whose message is malformed.
    pub fn decode_direct<T: DeserializeOwned>(&self) -> Result<BTreeMap<SignerIndex, T>, Abort> {
        self.decode_all(&self.direct, "direct message")
    }

    fn decode_all<T: DeserializeOwned>(
        &self,
        bodies: &BTreeMap<SignerIndex, Body>,
        kind: &str,
    ) -> Result<BTreeMap<SignerIndex, T>, Abort> {
        bodies
            .iter()
            .map(|(&from, body)| match decode(body) {
                Some(value) => Ok((from, value)),
                None => Err(Abort::cheating(from, format!("malformed {kind} in round {}", self.round))),
            })
            .collect()
    }
}

/// Reads a value in postcard's encoding. `None` when it is malformed or bytes are left over.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// Writes a value in postcard's encoding.
///
/// # Errors
/// [`Abort::local`] should the value have no such form.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Abort> {
    postcard::to_allocvec(value).map_err(|error| Abort::local(format!("a message has no encoding: {error}")))
}

/// What a [`Protocol`] wants after a round.
pub struct Turn<T> {
    /// The messages of the next round.
    pub send: Vec<(Recipient, Vec<u8>)>,
    /// The result, once there is one.
    pub output: Option<T>,
}

impl<T> Turn<T> {
    /// Goes on with these messages.
    pub fn send(send: Vec<(Recipient, Vec<u8>)>) -> Self {
        Self { send, output: None }
    }

    /// Ends with this result.
    pub fn done(output: T) -> Self {
        Self { send: Vec::new(), output: Some(output) }
    }
}

/// One party's side of a protocol that goes by rounds.
pub trait Protocol: Send {
    /// What it yields.
    type Output;

    /// The messages of round 1. Called once, before everything else.
    ///
    /// # Errors
    /// An [`Abort`] when it cannot start.
    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort>;

    /// Takes all messages of a round; called once for each round, in order.
    ///
    /// # Errors
    /// An [`Abort`] when it cannot go on, naming who is to blame.
    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<Self::Output>, Abort>;
}

/// A [`Machine`] made of a [`Protocol`].
pub struct RoundMachine<P> {
    /// `None` once it has ended; its secrets are then gone.
    protocol: Option<P>,
    parties: BTreeSet<SignerIndex>,
    rounds: Vec<Round>,
    /// The round whose messages are awaited; 0 before the start.
    current: u8,
    /// Messages of the current round and of later ones.
    kept: BTreeMap<Slot, Body>,
}

/// The place of a message within a session; there can be one in each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    round: u8,
    broadcast: bool,
    from: SignerIndex,
}

impl<P: Protocol> RoundMachine<P> {
    /// The machine of a protocol among this party and `others`, in which round i awaits
    /// `rounds[i - 1]`.
    pub fn new(protocol: P, others: impl IntoIterator<Item = SignerIndex>, rounds: Vec<Round>) -> Self {
        Self {
            protocol: Some(protocol),
            parties: others.into_iter().collect(),
            rounds,
            current: 0,
            kept: BTreeMap::new(),
        }
    }

    fn round(&self, number: u8) -> Option<&Round> {
        self.rounds.get(usize::from(number.checked_sub(1)?))
    }

    fn missing(&self, round: u8) -> BTreeSet<SignerIndex> {
        let Some(expected) = self.round(round) else { return BTreeSet::new() };
        let lacks =
            |&&from: &&SignerIndex, broadcast| !self.kept.contains_key(&Slot { round, broadcast, from });
        let broadcast = expected.broadcast.iter().filter(|from| lacks(from, true));
        let direct = expected.direct.iter().filter(|from| lacks(from, false));
        broadcast.chain(direct).copied().collect()
    }

    fn keep(&mut self, message: Incoming) -> Result<(), Abort> {
        let Incoming { round, from, broadcast, body } = message;
        let body = Zeroizing::new(body);
        let kind = if broadcast { "broadcast" } else { "direct message" };
        if !self.parties.contains(&from) {
            return Err(Abort::local(format!("signer {from} is not another party of this session")));
        }
        let Some(expected) = self.round(round) else {
            return Err(Abort::cheating(from, format!("a {kind} in round {round}, which does not exist")));
        };
        let senders = if broadcast { &expected.broadcast } else { &expected.direct };
        if !senders.contains(&from) {
            return Err(Abort::cheating(from, format!("a {kind} in round {round}, which has none")));
        }
        if body.len() > MAX_BODY {
            let reason = format!("a {kind} in round {round} of {} bytes, above {MAX_BODY}", body.len());
            return Err(Abort::cheating(from, reason));
        }
        // A round that is over had all its messages, so that another is a second one.
        let second =
            round < self.current || self.kept.insert(Slot { round, broadcast, from }, body).is_some();
        if second { Err(Abort::cheating(from, format!("a second {kind} in round {round}"))) } else { Ok(()) }
    }

    fn take(&mut self, round: u8) -> Received {
        let later = self.kept.split_off(&Slot { round: round + 1, broadcast: false, from: SignerIndex::MIN });
        let mut received = Received { round, broadcast: BTreeMap::new(), direct: BTreeMap::new() };
        for (slot, body) in std::mem::replace(&mut self.kept, later) {
            let bodies = if slot.broadcast { &mut received.broadcast } else { &mut received.direct };
            bodies.insert(slot.from, body);
        }
        received
    }

    /// Goes through every round that is complete.
    fn advance(&mut self, step: &mut Step<P::Output>) -> Result<(), Abort> {
        while step.output.is_none() && self.missing(self.current).is_empty() {
            let round = self.current;
            if self.round(round).is_none() {
                return Err(Abort::local("the protocol has ended without a result"));
            }
            let received = self.take(round);
            let turn = self.protocol()?.advance(round, received)?;
            self.current += 1;
            step.send.extend(outgoing(self.current, turn.send));
            step.output = turn.output;
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<&mut P, Abort> {
        self.protocol.as_mut().ok_or_else(|| Abort::local("the session has ended"))
    }

    /// Runs one call, and ends the machine when it led to an output or an abort.
    fn call(
        &mut self,
        run: impl FnOnce(&mut Self, &mut Step<P::Output>) -> Result<(), Abort>,
    ) -> Result<Step<P::Output>, Abort> {
        self.protocol()?;
        let mut step = Step::wait();
        let result = run(self, &mut step);
        if result.is_err() || step.output.is_some() {
            self.protocol = None;
            self.kept.clear();
        }
        result.map(|()| step)
    }
}

fn outgoing(round: u8, send: Vec<(Recipient, Vec<u8>)>) -> impl Iterator<Item = Outgoing> {
    send.into_iter().map(move |(to, body)| Outgoing { round, to, body })
}

impl<P: Protocol> Machine for RoundMachine<P> {
    type Output = P::Output;

    fn start(&mut self) -> Result<Step<P::Output>, Abort> {
        self.call(|machine, step| {
            if machine.current > 0 {
                return Err(Abort::local("the session was started before"));
            }
            step.send.extend(outgoing(1, machine.protocol()?.start()?));
            machine.current = 1;
            machine.advance(step)
        })
    }

    fn receive(&mut self, message: Incoming) -> Result<Step<P::Output>, Abort> {
        self.call(|machine, step| {
            machine.keep(message)?;
            if machine.current == 0 { Ok(()) } else { machine.advance(step) }
        })
    }

    fn waiting_for(&self) -> BTreeSet<SignerIndex> {
        if self.protocol.is_some() { self.missing(self.current) } else { BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blame;

    /// Tells the round and what came, and ends with it.
    struct Echo {
        rounds: u8,
        heard: Vec<(u8, usize, usize)>,
    }

    impl Protocol for Echo {
        type Output = Vec<(u8, usize, usize)>;

        fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
            Ok(vec![(Recipient::All, vec![1])])
        }

        fn advance(&mut self, round: u8, received: Received) -> Result<Turn<Self::Output>, Abort> {
            received.decode_broadcast::<u8>()?;
            received.decode_direct::<u8>()?;
            self.heard.push((round, received.broadcast().len(), received.direct().len()));
            if round == self.rounds {
                return Ok(Turn { send: vec![(Recipient::All, vec![0])], output: Some(self.heard.clone()) });
            }
            Ok(Turn::send(vec![(Recipient::All, vec![round + 1])]))
        }
    }

    fn signer(index: u8) -> SignerIndex {
        SignerIndex::new(index).unwrap()
    }

    /// Signer 1 among 2 and 3: a broadcast of both, then nothing at all, then a broadcast of both
    /// and a direct message of 3.
    fn machine() -> RoundMachine<Echo> {
        let others = [signer(2), signer(3)];
        let last = Round { broadcast: others.into(), direct: [signer(3)].into() };
        let rounds = vec![Round::broadcast(others), Round::default(), last];
        RoundMachine::new(Echo { rounds: 3, heard: Vec::new() }, others, rounds)
    }

    fn message(round: u8, broadcast: bool, from: u8) -> Incoming {
        Incoming { round, from: signer(from), broadcast, body: vec![7] }
    }

    fn sent(step: &Step<Vec<(u8, usize, usize)>>) -> Vec<u8> {
        step.send.iter().map(|message| message.round).collect()
    }

    #[test]
    fn messages_that_come_early_are_kept_until_their_round() {
        let mut machine = machine();
        for early in [message(3, false, 3), message(3, true, 2), message(1, true, 3), message(1, true, 2)] {
            let step = machine.receive(early).unwrap();
            assert!(step.send.is_empty() && step.output.is_none());
        }
        // The first round is complete and the second awaits nobody.
        assert_eq!(sent(&machine.start().unwrap()), [1, 2, 3]);
        assert_eq!(machine.waiting_for(), [signer(3)].into());
        let last = machine.receive(message(3, true, 3)).unwrap();
        assert_eq!(sent(&last), [4]);
        assert_eq!(last.output, Some(vec![(1, 2, 0), (2, 0, 0), (3, 2, 1)]));
        assert!(machine.waiting_for().is_empty());
        assert_eq!(machine.receive(message(3, true, 3)).unwrap_err().blame, Blame::Local);
    }

    #[test]
    fn only_those_whose_message_is_missing_are_waited_for() {
        let mut machine = machine();
        assert!(machine.waiting_for().is_empty());
        machine.start().unwrap();
        assert_eq!(machine.waiting_for(), [signer(2), signer(3)].into());
        machine.receive(message(1, true, 2)).unwrap();
        assert_eq!(machine.timed_out(), Abort::timeout([signer(3)].into()));
        assert_eq!(machine.start().unwrap_err().blame, Blame::Local);
    }

    #[test]
    fn a_message_that_has_no_place_is_laid_to_its_sender() {
        let run = |messages: &[Incoming]| {
            let mut machine = machine();
            machine.start().unwrap();
            messages.iter().try_for_each(|message| machine.receive(message.clone()).map(|_| ())).unwrap_err()
        };
        let long = Incoming { body: vec![0; MAX_BODY + 1], ..message(1, true, 2) };
        let left_over = Incoming { body: vec![7, 7], ..message(1, true, 2) };
        let bad = [
            vec![message(0, true, 2)],
            vec![message(4, true, 2)],
            vec![message(1, false, 2)],
            vec![message(2, true, 2)],
            vec![message(3, false, 2)],
            vec![message(1, true, 2), message(1, true, 2)],
            vec![message(3, true, 2), message(3, true, 2)],
            vec![message(1, true, 2), message(1, true, 3), message(1, true, 2)],
            vec![long],
            vec![message(1, true, 3), left_over],
        ];
        for messages in bad {
            assert_eq!(run(&messages).culprits(), [signer(2)].into(), "{messages:?}");
        }
        for stranger in [1, 4] {
            assert_eq!(run(&[message(1, true, stranger)]).blame, Blame::Local);
        }
    }
}
