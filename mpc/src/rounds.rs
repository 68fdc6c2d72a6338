//! Rounds: what every machine has in common, whatever its protocol.
//!
//! A [`Protocol`] is the arithmetic alone: it is given all messages of a round at once and yields
//! those of the next. [`RoundMachine`] makes a [`Machine`] of it, and does what each would
//! otherwise repeat: it keeps messages until their round, refuses those that no honest party sends,
//! knows whose are missing, and sees to it that a broadcast is one.
//!
//! # Echoes
//!
//! A message that says it went to everybody may still have been another for each. So every round
//! with broadcasts is followed by a round of its own, in which each party tells the others the hash
//! of every broadcast that it received or sent. The protocol is given a round only once all echoes
//! of it are there and agree. On the wire an echo has a number like any other round, which the
//! protocol does not count: a protocol of two rounds, both with broadcasts, has four on the wire.
//! Between two parties there are no echoes, as there is nobody to compare with.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::abort::list;
use crate::{Abort, Incoming, Machine, Outgoing, Recipient, SignerIndex, Step};

/// Begins what an echo hashes, so that it is the hash of nothing else.
const ECHO: &[u8] = b"tss broadcast echo v1";

/// The longest body accepted, in bytes. The longest that any engine sends is a good half of it.
pub const MAX_BODY: usize = 256 * 1024;

/// The body of a message that arrived; zeroized when dropped, since what goes to one party alone is
/// mostly secret.
pub type Body = Zeroizing<Vec<u8>>;

/// Whose messages a round needs: at most one broadcast and one direct message from each party.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Who sends to everybody. All parties must agree whether anybody does, since an echo follows
    /// then: where this party is the only one, it is named itself. Otherwise it need not be.
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
    /// The round's number on the wire.
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

    /// Takes all messages of a round; called once for each round, in order. Rounds are counted
    /// without the echoes. The broadcasts are those that every other party received too.
    ///
    /// # Errors
    /// An [`Abort`] when it cannot go on, naming who is to blame.
    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<Self::Output>, Abort>;
}

/// A [`Machine`] made of a [`Protocol`].
pub struct RoundMachine<P> {
    /// `None` once it has ended; its secrets are then gone.
    protocol: Option<P>,
    index: SignerIndex,
    /// The other parties.
    parties: BTreeSet<SignerIndex>,
    /// The rounds on the wire.
    stages: Vec<Stage>,
    /// The round on the wire whose messages are awaited; 0 before the start.
    current: u8,
    /// Messages of the current round and of later ones.
    kept: BTreeMap<Slot, Body>,
    /// The hash of what this party itself has broadcast in the current round.
    own: Option<Hash>,
    /// The round that the current one is the echo of.
    echoed: Option<Echoed>,
}

/// A round on the wire.
struct Stage {
    awaits: Round,
    /// The protocol's own number of the round; of an echo, of the one that it echoes.
    round: u8,
    purpose: Purpose,
}

/// What becomes of a round's messages.
#[derive(Clone, Copy)]
enum Purpose {
    /// The protocol is given them at once.
    Deliver,
    /// They are echoed first.
    Compare,
    /// They are that echo.
    Echo,
}

type Hash = [u8; 32];

/// The body of an echo: the hash of each party's broadcast.
type Hashes = BTreeMap<SignerIndex, Hash>;

/// A round that the protocol has not been given yet.
struct Echoed {
    received: Received,
    /// What this party has told the others about it.
    hashes: Hashes,
}

/// The place of a message within a session; there can be one in each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    round: u8,
    broadcast: bool,
    from: SignerIndex,
}

impl<P: Protocol> RoundMachine<P> {
    /// The machine of a protocol among the party `index` and `others`, in which the protocol's round
    /// i awaits `rounds[i - 1]`.
    pub fn new(
        protocol: P,
        index: SignerIndex,
        others: impl IntoIterator<Item = SignerIndex>,
        rounds: Vec<Round>,
    ) -> Self {
        let parties: BTreeSet<SignerIndex> = others.into_iter().collect();
        let mut stages = Vec::with_capacity(2 * rounds.len());
        for (awaits, round) in rounds.into_iter().zip(1..=u8::MAX) {
            if awaits.broadcast.is_empty() || parties.len() < 2 {
                stages.push(Stage { awaits, round, purpose: Purpose::Deliver });
            } else {
                let echo = Round::broadcast(parties.iter().copied());
                stages.push(Stage { awaits, round, purpose: Purpose::Compare });
                stages.push(Stage { awaits: echo, round, purpose: Purpose::Echo });
            }
        }
        Self {
            protocol: Some(protocol),
            index,
            parties,
            stages,
            current: 0,
            kept: BTreeMap::new(),
            own: None,
            echoed: None,
        }
    }

    fn stage(&self, number: u8) -> Option<&Stage> {
        self.stages.get(usize::from(number.checked_sub(1)?))
    }

    fn missing(&self, round: u8) -> BTreeSet<SignerIndex> {
        let Some(Stage { awaits, .. }) = self.stage(round) else { return BTreeSet::new() };
        let lacks = |&&from: &&SignerIndex, broadcast| {
            from != self.index && !self.kept.contains_key(&Slot { round, broadcast, from })
        };
        let broadcast = awaits.broadcast.iter().filter(|from| lacks(from, true));
        let direct = awaits.direct.iter().filter(|from| lacks(from, false));
        broadcast.chain(direct).copied().collect()
    }

    fn keep(&mut self, message: Incoming) -> Result<(), Abort> {
        let Incoming { round, from, broadcast, body } = message;
        let body = Zeroizing::new(body);
        let kind = if broadcast { "broadcast" } else { "direct message" };
        if !self.parties.contains(&from) {
            return Err(Abort::local(format!("signer {from} is not another party of this session")));
        }
        let Some(Stage { awaits, .. }) = self.stage(round) else {
            return Err(Abort::cheating(from, format!("a {kind} in round {round}, which does not exist")));
        };
        let senders = if broadcast { &awaits.broadcast } else { &awaits.direct };
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
            let Some(&Stage { round, purpose, .. }) = self.stage(self.current) else {
                return Err(Abort::local("the protocol has ended without a result"));
            };
            let received = self.take(self.current);
            self.current += 1;
            let received = match purpose {
                Purpose::Deliver => received,
                Purpose::Compare => {
                    step.send.push(self.echo(received)?);
                    continue;
                }
                Purpose::Echo => self.compare(&received)?,
            };
            let turn = self.protocol()?.advance(round, received)?;
            self.send(turn.send, step)?;
            step.output = turn.output;
        }
        Ok(())
    }

    /// Hands out the protocol's messages of the current round.
    fn send(&mut self, messages: Vec<(Recipient, Vec<u8>)>, step: &mut Step<P::Output>) -> Result<(), Abort> {
        let round = self.current;
        self.own = None;
        for (to, body) in messages {
            if to == Recipient::All {
                // The others would take it for a fault, or it would reach them without an echo.
                if self.stage(round).is_none_or(|stage| stage.awaits.broadcast.is_empty()) {
                    return Err(Abort::local(format!("a broadcast in round {round}, which has none")));
                }
                if self.own.replace(hash(round, self.index, &body)).is_some() {
                    return Err(Abort::local(format!("a second broadcast in round {round}")));
                }
            }
            step.send.push(Outgoing { round, to, body });
        }
        Ok(())
    }

    /// Keeps a round from the protocol, and tells the others what came.
    fn echo(&mut self, received: Received) -> Result<Outgoing, Abort> {
        let round = received.round;
        let hashes = received.broadcast.iter().map(|(&from, body)| (from, hash(round, from, body)));
        let own = self.own.take().map(|own| (self.index, own));
        let hashes: Hashes = hashes.chain(own).collect();
        let body = encode(&hashes)?;
        self.echoed = Some(Echoed { received, hashes });
        Ok(Outgoing { round: self.current, to: Recipient::All, body })
    }

    /// Yields the round that was kept, if it came to everybody alike.
    fn compare(&mut self, echoes: &Received) -> Result<Received, Abort> {
        let Echoed { received, hashes: own } =
            self.echoed.take().ok_or_else(|| Abort::local("nothing to compare with an echo"))?;
        let (round, echo) = (received.round, echoes.round);
        // Whose broadcast differs, and who says so.
        let mut differ: BTreeMap<SignerIndex, BTreeSet<SignerIndex>> = BTreeMap::new();
        for (from, hashes) in echoes.decode_broadcast::<Hashes>()? {
            if !hashes.keys().eq(own.keys()) {
                let reason =
                    format!("an echo in round {echo} of others than those who sent in round {round}");
                return Err(Abort::cheating(from, reason));
            }
            let differing = hashes.iter().zip(own.values()).filter(|((_, hash), own)| hash != own);
            for (&sender, _) in differing.map(|(told, _)| told) {
                // Senders are authenticated. So this party knows what it sent, and what the other
                // sent to it: the echo is a lie, or else the broadcast was not what all received.
                if sender == self.index || sender == from {
                    let reason = format!("an echo in round {echo} of what signer {sender} did not broadcast");
                    return Err(Abort::cheating(from, reason));
                }
                differ.entry(sender).or_default().insert(from);
            }
        }
        if differ.is_empty() {
            return Ok(received);
        }
        // Either the sender told others something else, or those who say so lie.
        let reasons: Vec<String> = differ
            .iter()
            .map(|(sender, by)| format!("{} received another broadcast of signer {sender}", list(by)))
            .collect();
        let suspects = differ.into_iter().flat_map(|(sender, by)| by.into_iter().chain([sender])).collect();
        Err(Abort::unattributed(suspects, format!("in round {round}, {}", reasons.join("; "))))
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
            self.echoed = None;
        }
        result.map(|()| step)
    }
}

/// The hash of a broadcast, as it stands in an echo.
fn hash(round: u8, from: SignerIndex, body: &[u8]) -> Hash {
    let mut hash = Sha256::new();
    hash.update(ECHO);
    hash.update([round, from.get()]);
    hash.update((body.len() as u64).to_be_bytes());
    hash.update(body);
    hash.finalize().into()
}

impl<P: Protocol> Machine for RoundMachine<P> {
    type Output = P::Output;

    fn start(&mut self) -> Result<Step<P::Output>, Abort> {
        self.call(|machine, step| {
            if machine.current > 0 {
                return Err(Abort::local("the session was started before"));
            }
            let send = machine.protocol()?.start()?;
            machine.current = 1;
            machine.send(send, step)?;
            machine.advance(step)
        })
    }

    fn receive(&mut self, message: Incoming) -> Result<Step<P::Output>, Abort> {
        self.call(|machine, step| {
            machine.keep(message)?;
            if machine.current == 0 { Ok(()) } else { machine.advance(step) }
        })
    }

    fn rounds(&self) -> u8 {
        u8::try_from(self.stages.len()).unwrap_or(u8::MAX)
    }

    fn waiting_for(&self) -> BTreeSet<SignerIndex> {
        if self.protocol.is_some() { self.missing(self.current) } else { BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Blame;

    /// A round, its broadcasts and its direct messages.
    type Heard = Vec<(u8, usize, usize)>;

    /// Tells what came in each round, and ends with it.
    struct Tell {
        rounds: Vec<Round>,
        heard: Heard,
    }

    impl Tell {
        /// To all in a round with broadcasts, else to signer 2.
        fn message(&self, round: u8) -> Vec<(Recipient, Vec<u8>)> {
            let to = match self.rounds.get(usize::from(round - 1)) {
                Some(round) if !round.broadcast.is_empty() => Recipient::All,
                _ => Recipient::One(signer(2)),
            };
            vec![(to, vec![round])]
        }
    }

    impl Protocol for Tell {
        type Output = Heard;

        fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
            Ok(self.message(1))
        }

        fn advance(&mut self, round: u8, received: Received) -> Result<Turn<Self::Output>, Abort> {
            received.decode_broadcast::<u8>()?;
            received.decode_direct::<u8>()?;
            self.heard.push((round, received.broadcast().len(), received.direct().len()));
            let ends = usize::from(round) == self.rounds.len();
            Ok(Turn { send: self.message(round + 1), output: ends.then(|| self.heard.clone()) })
        }
    }

    fn signer(index: u8) -> SignerIndex {
        SignerIndex::new(index).unwrap()
    }

    fn signers(indices: impl IntoIterator<Item = u8>) -> BTreeSet<SignerIndex> {
        indices.into_iter().map(signer).collect()
    }

    /// Signer 1 among others.
    fn machine_of(others: impl IntoIterator<Item = u8>, rounds: Vec<Round>) -> RoundMachine<Tell> {
        let protocol = Tell { rounds: rounds.clone(), heard: Vec::new() };
        RoundMachine::new(protocol, signer(1), signers(others), rounds)
    }

    /// Signer 1 among 2 and 3: a broadcast of both, then nothing at all, then a broadcast of both
    /// and a direct message of 3. On the wire, the broadcasts are in rounds 1 and 4, and their
    /// echoes in 2 and 5.
    fn machine() -> RoundMachine<Tell> {
        let others = signers([2, 3]);
        let last = Round { broadcast: others.clone(), direct: signers([3]) };
        machine_of([2, 3], vec![Round::broadcast(others), Round::default(), last])
    }

    fn message(round: u8, broadcast: bool, from: u8) -> Incoming {
        Incoming { round, from: signer(from), broadcast, body: vec![7] }
    }

    /// The echo of a round in which signer 1 says `own`, and all others what [`message`] has.
    fn hashes(round: u8, own: u8, others: impl IntoIterator<Item = u8>) -> Hashes {
        let others = others.into_iter().map(|from| (signer(from), hash(round, signer(from), &[7])));
        others.chain([(signer(1), hash(round, signer(1), &[own]))]).collect()
    }

    fn echo(round: u8, from: u8, hashes: &Hashes) -> Incoming {
        Incoming { body: encode(hashes).unwrap(), ..message(round + 1, true, from) }
    }

    fn sent(step: &Step<Heard>) -> Vec<u8> {
        step.send.iter().map(|message| message.round).collect()
    }

    #[test]
    fn messages_that_come_early_are_kept_until_their_round() {
        let mut machine = machine();
        let agreed = hashes(1, 1, [2, 3]);
        for early in [
            message(4, false, 3),
            echo(1, 3, &agreed),
            message(4, true, 2),
            message(1, true, 3),
            echo(1, 2, &agreed),
            echo(4, 2, &hashes(4, 3, [2, 3])),
            message(1, true, 2),
        ] {
            let step = machine.receive(early).unwrap();
            assert!(step.send.is_empty() && step.output.is_none());
        }
        // The first round is complete, as is its echo, and the next awaits nobody.
        assert_eq!(sent(&machine.start().unwrap()), [1, 2, 3, 4]);
        assert_eq!(machine.waiting_for(), signers([3]));
        assert_eq!(sent(&machine.receive(message(4, true, 3)).unwrap()), [5]);
        let last = machine.receive(echo(4, 3, &hashes(4, 3, [2, 3]))).unwrap();
        assert_eq!(sent(&last), [6]);
        assert_eq!(last.output, Some(vec![(1, 2, 0), (2, 0, 0), (3, 2, 1)]));
        assert!(machine.waiting_for().is_empty());
        assert_eq!(machine.receive(message(4, true, 3)).unwrap_err().blame, Blame::Local);
    }

    #[test]
    fn only_those_whose_message_is_missing_are_waited_for() {
        let mut machine = machine();
        assert!(machine.waiting_for().is_empty());
        machine.start().unwrap();
        assert_eq!(machine.waiting_for(), signers([2, 3]));
        machine.receive(message(1, true, 2)).unwrap();
        assert_eq!(machine.timed_out(), Abort::timeout(signers([3])));
        // Whose echo is missing as well, even of one that has gone on already.
        machine.receive(message(1, true, 3)).unwrap();
        assert_eq!(machine.waiting_for(), signers([2, 3]));
        machine.receive(echo(1, 3, &hashes(1, 1, [2, 3]))).unwrap();
        machine.receive(message(4, true, 2)).unwrap();
        assert_eq!(machine.timed_out(), Abort::timeout(signers([2])));
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
        let agreed = hashes(1, 1, [2, 3]);
        let mut all_have_it = agreed.clone();
        all_have_it.insert(signer(2), hash(1, signer(2), &left_over.body));
        let bad = [
            vec![message(0, true, 2)],
            vec![message(6, true, 2)],
            vec![message(1, false, 2)],
            vec![message(2, false, 2)],
            vec![message(3, true, 2)],
            vec![message(4, false, 2)],
            vec![message(1, true, 2), message(1, true, 2)],
            vec![message(4, true, 2), message(4, true, 2)],
            vec![echo(1, 2, &agreed), echo(1, 2, &agreed)],
            vec![message(1, true, 2), message(1, true, 3), message(1, true, 2)],
            vec![long],
            vec![message(1, true, 3), left_over, echo(1, 2, &all_have_it), echo(1, 3, &all_have_it)],
        ];
        for messages in bad {
            assert_eq!(run(&messages).culprits(), signers([2]), "{messages:?}");
        }
        for stranger in [1, 4] {
            assert_eq!(run(&[message(1, true, stranger)]).blame, Blame::Local);
        }
    }

    /// What signer 1 among 2, 3 and 4 makes of what these say in their echoes of round 1.
    fn after_echoes(told: [(u8, Hashes); 3]) -> Result<Step<Heard>, Abort> {
        let mut machine = machine_of([2, 3, 4], vec![Round::broadcast(signers([2, 3, 4]))]);
        machine.start()?;
        for from in [2, 3, 4] {
            machine.receive(message(1, true, from))?;
        }
        let [first, second, third] = told.map(|(from, hashes)| echo(1, from, &hashes));
        machine.receive(first)?;
        machine.receive(second)?;
        assert!(machine.protocol.as_ref().unwrap().heard.is_empty(), "a round before it was compared");
        let result = machine.receive(third);
        assert!(result.is_ok() || (machine.protocol.is_none() && machine.echoed.is_none()));
        result
    }

    #[test]
    fn a_round_is_over_when_all_echoes_agree() {
        let agreed = hashes(1, 1, [2, 3, 4]);
        let told = [(4, agreed.clone()), (2, agreed.clone()), (3, agreed)];
        assert_eq!(after_echoes(told).unwrap().output, Some(vec![(1, 3, 0)]));
    }

    #[test]
    fn one_of_two_lies_when_an_echo_tells_of_another_broadcast() {
        let agreed = hashes(1, 1, [2, 3, 4]);
        let other = |senders: &[u8]| {
            let mut hashes = agreed.clone();
            hashes.extend(senders.iter().map(|&sender| (signer(sender), [0; 32])));
            hashes
        };
        let suspects = |told| {
            let abort = after_echoes(told).unwrap_err();
            let Blame::Unattributed { suspects } = &abort.blame else { panic!("{abort}") };
            suspects.clone()
        };
        assert_eq!(suspects([(2, agreed.clone()), (3, agreed.clone()), (4, other(&[2]))]), signers([2, 4]));
        assert_eq!(suspects([(2, agreed.clone()), (3, other(&[2])), (4, other(&[2]))]), signers([2, 3, 4]));
        assert_eq!(
            suspects([(2, agreed.clone()), (3, agreed.clone()), (4, other(&[2, 3]))]),
            signers([2, 3, 4])
        );

        // About itself, and about signer 1, it cannot be mistaken; and that is worth more than a
        // suspicion of others.
        for proven in [4, 1] {
            let told = [(2, agreed.clone()), (3, other(&[2])), (4, other(&[2, proven]))];
            let abort = after_echoes(told).unwrap_err();
            assert_eq!(abort, Abort::cheating(signer(4), abort.reason.clone()), "{proven}");
        }
    }

    #[test]
    fn an_echo_of_more_or_fewer_broadcasts_or_of_none_is_cheating() {
        let agreed = hashes(1, 1, [2, 3, 4]);
        for bad in [hashes(1, 1, [2, 3]), hashes(1, 1, [2, 3, 4, 5]), hashes(1, 1, [2, 3, 5]), Hashes::new()]
        {
            let abort = after_echoes([(2, agreed.clone()), (3, bad), (4, agreed.clone())]).unwrap_err();
            assert_eq!(abort.culprits(), signers([3]), "{abort}");
        }
        let mut malformed = echo(1, 2, &agreed);
        malformed.body.push(0);
        let mut machine = machine();
        machine.start().unwrap();
        machine.receive(message(1, true, 2)).unwrap();
        machine.receive(message(1, true, 3)).unwrap();
        machine.receive(malformed).unwrap();
        let abort = machine.receive(echo(1, 3, &hashes(1, 1, [2, 3]))).unwrap_err();
        assert_eq!(abort.culprits(), signers([2]), "{abort}");
    }

    #[test]
    fn a_damaged_echo_proves_nothing_against_others() {
        let agreed = hashes(1, 1, [2, 3, 4]);
        let run = |place: usize, bit: u8| {
            let mut machine = machine_of([2, 3, 4], vec![Round::broadcast(signers([2, 3, 4]))]);
            machine.start().unwrap();
            for from in [2, 3, 4] {
                machine.receive(message(1, true, from)).unwrap();
            }
            let mut damaged = echo(1, 3, &agreed);
            damaged.body[place] ^= 1 << bit;
            machine.receive(damaged).unwrap();
            machine.receive(echo(1, 2, &agreed)).unwrap();
            machine.receive(echo(1, 4, &agreed)).unwrap_err()
        };
        for (place, bit) in (0..echo(1, 3, &agreed).body.len()).flat_map(|place| [(place, 0), (place, 7)]) {
            match run(place, bit).blame {
                Blame::Cheating { culprits, ban: false } => assert_eq!(culprits, signers([3])),
                Blame::Unattributed { suspects } => {
                    assert!(suspects == signers([2, 3]) || suspects == signers([3, 4]), "{suspects:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_echo_hash_is_of_one_round_sender_and_body() {
        let one = hash(1, signer(2), &[3]);
        for other in [hash(2, signer(2), &[3]), hash(1, signer(1), &[3]), hash(1, signer(2), &[3, 0])] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn between_two_there_is_no_echo() {
        let mut machine = machine_of([2], vec![Round::broadcast(signers([2])), Round::both(signers([2]))]);
        assert_eq!(machine.rounds(), 2);
        machine.start().unwrap();
        assert_eq!(sent(&machine.receive(message(1, true, 2)).unwrap()), [2]);
        machine.receive(message(2, true, 2)).unwrap();
        let last = machine.receive(message(2, false, 2)).unwrap();
        assert_eq!(last.output, Some(vec![(1, 1, 0), (2, 1, 1)]));
    }

    #[test]
    fn a_broadcast_of_this_party_alone_is_echoed() {
        let mut machine = machine_of([2, 3], vec![Round::broadcast(signers([1]))]);
        assert_eq!(machine.rounds(), 2);
        // It waits for nobody's broadcast, and for everybody's echo.
        assert_eq!(sent(&machine.start().unwrap()), [1, 2]);
        assert_eq!(machine.waiting_for(), signers([2, 3]));
        machine.receive(echo(1, 2, &hashes(1, 1, []))).unwrap();
        let last = machine.receive(echo(1, 3, &hashes(1, 1, []))).unwrap();
        assert_eq!(last.output, Some(vec![(1, 0, 0)]));
    }

    #[test]
    fn a_broadcast_that_would_not_be_echoed_never_leaves() {
        struct Broadcast(usize);

        impl Protocol for Broadcast {
            type Output = ();

            fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
                Ok(vec![(Recipient::All, Vec::new()); self.0])
            }

            fn advance(&mut self, _: u8, _: Received) -> Result<Turn<()>, Abort> {
                Ok(Turn { send: vec![(Recipient::All, Vec::new())], output: Some(()) })
            }
        }

        let start = |count, rounds| {
            RoundMachine::new(Broadcast(count), signer(1), signers([2, 3]), rounds).start().unwrap_err().blame
        };
        let round = || Round::broadcast(signers([2, 3]));
        assert_eq!(start(1, vec![Round::direct(signers([2, 3]))]), Blame::Local);
        assert_eq!(start(2, vec![round()]), Blame::Local);
        // With its result, after the last round.
        assert_eq!(start(0, vec![Round::default()]), Blame::Local);
    }
}
