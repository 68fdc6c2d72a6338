//! What all machines have in common, [`RoundMachine`], under a protocol that costs nothing: messages in any
//! order, of any round, from anybody, with true and false echoes.
//!
//! The target keeps books of its own and checks the machine against them: what the protocol is given, is
//! what came first in each place, all of it, and the others' echoes of it were the same.

#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use tss_common::intent::HashAlgorithm;
use tss_fuzz::{Input, signer};
use tss_mpc::rounds::{Protocol, Received, Round, RoundMachine, Turn, decode, encode};
use tss_mpc::{Abort, Blame, Incoming, Machine, Recipient, SignerIndex, Step};

/// This party.
const ME: u8 = 1;

/// The first message in each place: round, whether it is a broadcast, sender.
type Books = BTreeMap<(u8, bool, SignerIndex), Vec<u8>>;

/// All messages of a round, as bodies by sender: broadcasts, then direct ones.
type Bodies = [BTreeMap<SignerIndex, Vec<u8>>; 2];

/// Sends what its rounds say, and yields what it was given.
struct Toy {
    rounds: Vec<Round>,
    given: Vec<Bodies>,
}

impl Toy {
    /// What this party sends in a round, counted from 1 without echoes.
    fn messages(&self, round: usize) -> Vec<(Recipient, Vec<u8>)> {
        let Some(Round { broadcast, direct }) = self.rounds.get(round - 1) else { return Vec::new() };
        let all = broadcast.contains(&signer(ME)).then(|| (Recipient::All, own(round)));
        let direct = direct.iter().filter(|index| **index != signer(ME));
        all.into_iter().chain(direct.map(|&to| (Recipient::One(to), own(round)))).collect()
    }
}

/// What this party says in a round.
fn own(round: usize) -> Vec<u8> {
    vec![0xaa; round]
}

impl Protocol for Toy {
    type Output = Vec<Bodies>;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        Ok(self.messages(1))
    }

    fn advance(&mut self, round: u8, received: Received) -> Result<Turn<Self::Output>, Abort> {
        assert_eq!(usize::from(round), self.given.len() + 1);
        self.given.push(
            [received.broadcast(), received.direct()]
                .map(|bodies| bodies.iter().map(|(&from, body)| (from, body.to_vec())).collect()),
        );
        if self.given.len() == self.rounds.len() {
            return Ok(Turn::done(std::mem::take(&mut self.given)));
        }
        Ok(Turn::send(self.messages(usize::from(round) + 1)))
    }
}

/// A round on the wire: what it awaits, and the round that it is an echo of.
struct Stage {
    awaits: Round,
    echo_of: Option<u8>,
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let parties = input.byte() % 3 + 2;
    let rounds = rounds(&mut input, parties);
    let stages = stages(&rounds, parties);
    let others = (1..=parties).filter(|index| *index != ME).map(signer);
    let toy = Toy { rounds: rounds.clone(), given: Vec::new() };
    let mut machine = RoundMachine::new(toy, signer(ME), others, rounds.clone());
    assert_eq!(usize::from(machine.rounds()), stages.len());

    let started = input.byte() % 8;
    let mut books = Books::new();
    let mut waits = 0;
    for number in 0..32 {
        // Messages may come before the start.
        if number == started {
            match machine.start() {
                Ok(step) => {
                    if let Some(output) = step.output {
                        return finished(&mut machine, output, &books, &stages);
                    }
                }
                Err(abort) => return aborted(&mut machine, &abort, &books),
            }
        }
        if input.is_empty() {
            break;
        }
        let message = message(&mut input, parties, &stages, &books);
        let slot = (message.round, message.broadcast, message.from);
        let first = !books.contains_key(&slot);
        let stranger = message.from == signer(ME) || message.from > signer(parties);
        let awaited = |stage: &Stage| {
            let Round { broadcast, direct } = &stage.awaits;
            if slot.1 { broadcast.contains(&slot.2) } else { direct.contains(&slot.2) }
        };
        let fits = !stranger
            && usize::from(slot.0).checked_sub(1).and_then(|at| stages.get(at)).is_some_and(awaited);
        if fits && first {
            books.insert(slot, message.body.clone());
        }
        match machine.receive(message) {
            Ok(Step { output, .. }) => {
                assert!(fits && first, "a message was taken that no honest party sends: {slot:?}");
                if let Some(output) = output {
                    return finished(&mut machine, output, &books, &stages);
                }
                let waiting = machine.waiting_for();
                assert!(waiting.iter().all(|index| *index != signer(ME) && *index <= signer(parties)));
                waits += usize::from(!waiting.is_empty());
            }
            Err(abort) => {
                if stranger {
                    assert_eq!(abort.blame, Blame::Local, "{abort}");
                } else if !fits || !first {
                    assert_eq!(abort.culprits(), [slot.2].into(), "{abort}");
                }
                return aborted(&mut machine, &abort, &books);
            }
        }
    }
    assert!(waits <= 32);
});

fn rounds(input: &mut Input<'_>, parties: u8) -> Vec<Round> {
    let round = |kind: u8| {
        let all = (1..=parties).map(signer);
        let others = all.clone().filter(|index| *index != signer(ME));
        match kind % 4 {
            0 => Round::direct(others),
            1 => Round::broadcast(all),
            2 => Round { broadcast: all.collect(), direct: others.collect() },
            // One party says something to all, be it this one or another.
            _ => Round::broadcast([signer(kind / 4 % parties + 1)]),
        }
    };
    (0..=input.byte() % 4).map(|_| round(input.byte())).collect()
}

fn stages(rounds: &[Round], parties: u8) -> Vec<Stage> {
    let mut stages = Vec::new();
    for awaits in rounds {
        stages.push(Stage { awaits: awaits.clone(), echo_of: None });
        if !awaits.broadcast.is_empty() && parties > 2 {
            let others = (1..=parties).filter(|index| *index != ME).map(signer);
            let of = u8::try_from(stages.len()).expect("there are few rounds");
            stages.push(Stage { awaits: Round::broadcast(others), echo_of: Some(of) });
        }
    }
    stages
}

/// The hash that an echo has of a broadcast, by code of its own.
fn echo_hash(round: u8, from: SignerIndex, body: &[u8]) -> [u8; 32] {
    let mut bytes = b"tss broadcast echo v1".to_vec();
    bytes.extend([round, from.get()]);
    bytes.extend((body.len() as u64).to_be_bytes());
    bytes.extend(body);
    HashAlgorithm::Sha256.digest(&bytes).expect("SHA-256 takes every message")
}

fn echo(of: u8, stages: &[Stage], books: &Books) -> BTreeMap<SignerIndex, [u8; 32]> {
    let mut hashes = BTreeMap::new();
    let protocol_round = stages[..usize::from(of)].iter().filter(|stage| stage.echo_of.is_none()).count();
    for &from in &stages[usize::from(of) - 1].awaits.broadcast {
        if from == signer(ME) {
            hashes.insert(from, echo_hash(of, from, &own(protocol_round)));
        } else if let Some(body) = books.get(&(of, true, from)) {
            hashes.insert(from, echo_hash(of, from, body));
        }
    }
    hashes
}

fn message(input: &mut Input<'_>, parties: u8, stages: &[Stage], books: &Books) -> Incoming {
    let kind = input.byte();
    let from = signer(input.byte() % (parties + 1) + 1);
    // Mostly a round that there is, and one of the kinds of messages that it has.
    let round = if kind >= 240 { input.byte() } else { kind % 16 % stages.len() as u8 + 1 };
    let stage = usize::from(round).checked_sub(1).and_then(|at| stages.get(at));
    let broadcast = match stage {
        Some(Stage { awaits, .. }) if kind < 224 => {
            awaits.direct.is_empty() || (!awaits.broadcast.is_empty() && kind & 16 == 0)
        }
        _ => kind & 16 == 0,
    };
    let body = match stage.and_then(|stage| stage.echo_of) {
        Some(of) if kind < 224 => {
            let mut hashes = echo(of, stages, books);
            let lie = input.byte();
            if lie >= 192 {
                let who = signer(input.byte() % (parties + 1) + 1);
                let _ = if lie % 2 == 0 { hashes.remove(&who) } else { hashes.insert(who, [lie; 32]) };
            }
            encode(&hashes).expect("it has an encoding")
        }
        _ => input.short().to_vec(),
    };
    Incoming { round, from, broadcast, body }
}

fn finished(machine: &mut RoundMachine<Toy>, output: Vec<Bodies>, books: &Books, stages: &[Stage]) {
    ended(machine);
    let mut output = output.into_iter();
    for (number, stage) in (1..).zip(stages) {
        if let Some(of) = stage.echo_of {
            // Nobody's echo differed from what came here.
            let expected = echo(of, stages, books);
            for from in &stage.awaits.broadcast {
                let said = decode::<BTreeMap<SignerIndex, [u8; 32]>>(&books[&(number, true, *from)]);
                assert_eq!(said.as_ref(), Some(&expected));
            }
        } else {
            let given = output.next().expect("every round was given");
            for (broadcast, bodies) in [true, false].into_iter().zip(given) {
                let awaited = if broadcast { &stage.awaits.broadcast } else { &stage.awaits.direct };
                let awaited: BTreeMap<_, _> = awaited
                    .iter()
                    .filter(|from| **from != signer(ME))
                    .map(|from| (*from, books[&(number, broadcast, *from)].clone()))
                    .collect();
                assert_eq!(bodies, awaited);
            }
        }
    }
    assert!(output.next().is_none());
}

/// Only those are blamed who sent something, and for more than silence.
fn aborted(machine: &mut RoundMachine<Toy>, abort: &Abort, books: &Books) {
    ended(machine);
    assert!(!matches!(abort.blame, Blame::Timeout { .. }), "{abort}");
    assert!(!abort.culprits().contains(&signer(ME)), "{abort}");
    if let Blame::Unattributed { suspects } = &abort.blame {
        let senders: BTreeSet<SignerIndex> = books.keys().map(|(.., from)| *from).collect();
        assert!(suspects.len() > 1 && suspects.is_subset(&senders), "{abort}");
    }
}

fn ended(machine: &mut RoundMachine<Toy>) {
    assert!(machine.waiting_for().is_empty());
    assert!(matches!(machine.start(), Err(Abort { blame: Blame::Local, .. })));
    let message = Incoming { round: 1, from: signer(2), broadcast: true, body: Vec::new() };
    assert!(matches!(machine.receive(message), Err(Abort { blame: Blame::Local, .. })));
}
