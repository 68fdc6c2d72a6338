//! All parties of a session within one process: for tests, benchmarks, and key generation in a
//! place that holds all shares anyway.

use std::collections::{BTreeMap, VecDeque};

use crate::{Abort, Incoming, Machine, Outgoing, Recipient, SignerIndex, Step};

/// Every party's machine.
pub type Machines<T> = BTreeMap<SignerIndex, Box<dyn Machine<Output = T>>>;

/// Every party's output, or the first abort and whose it is.
pub type Outcome<T> = Result<BTreeMap<SignerIndex, T>, (SignerIndex, Abort)>;

/// Delivers messages among these machines until all have an output. Parties compute in parallel.
///
/// # Errors
/// The first abort, and the party it happened at.
pub fn run_local<T: Send>(machines: Machines<T>) -> Outcome<T> {
    run_local_with(machines, |_| ())
}

/// As [`run_local`], and calls `on_round` with each round that begins.
///
/// # Errors
/// The first abort, and the party it happened at.
pub fn run_local_with<T: Send>(machines: Machines<T>, on_round: impl FnMut(u8)) -> Outcome<T> {
    run(machines, on_round, |parties, work| {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                parties.iter_mut().map(|(&index, party)| (index, scope.spawn(|| work(party)))).collect();
            threads
                .into_iter()
                .map(|(index, thread)| {
                    let lost = || Err(Abort::local("the thread of this party panicked"));
                    (index, thread.join().unwrap_or_else(|_| lost()))
                })
                .collect()
        })
    })
}

/// As [`run_local`], but on the calling thread alone, so that time taken is work done.
///
/// # Errors
/// The first abort, and the party it happened at.
pub fn run_local_sequential<T: Send>(machines: Machines<T>) -> Outcome<T> {
    run(
        machines,
        |_| (),
        |parties, work| parties.iter_mut().map(|(&index, party)| (index, work(party))).collect(),
    )
}

struct Party<T> {
    machine: Box<dyn Machine<Output = T>>,
    inbox: VecDeque<Incoming>,
    started: bool,
    output: Option<T>,
}

impl<T> Party<T> {
    /// Starts, or takes what lies in the inbox.
    fn work(&mut self) -> Result<Vec<Outgoing>, Abort> {
        let mut send = Vec::new();
        if !self.started {
            self.started = true;
            let step = self.machine.start()?;
            self.take(step, &mut send);
        }
        while self.output.is_none() {
            let Some(message) = self.inbox.pop_front() else { break };
            let step = self.machine.receive(message)?;
            self.take(step, &mut send);
        }
        Ok(send)
    }

    fn take(&mut self, step: Step<T>, send: &mut Vec<Outgoing>) {
        send.extend(step.send);
        self.output = step.output;
    }
}

type Worked = Vec<(SignerIndex, Result<Vec<Outgoing>, Abort>)>;

fn run<T: Send>(
    machines: Machines<T>,
    mut on_round: impl FnMut(u8),
    work_all: impl Fn(
        &mut BTreeMap<SignerIndex, Party<T>>,
        fn(&mut Party<T>) -> Result<Vec<Outgoing>, Abort>,
    ) -> Worked,
) -> Outcome<T> {
    let party = |machine| Party { machine, inbox: VecDeque::new(), started: false, output: None };
    let mut parties: BTreeMap<SignerIndex, Party<T>> =
        machines.into_iter().map(|(index, machine)| (index, party(machine))).collect();
    let mut highest = 0;
    loop {
        let mut idle = true;
        for (from, sent) in work_all(&mut parties, Party::work) {
            for message in sent.map_err(|abort| (from, abort))? {
                idle = false;
                if message.round > highest {
                    highest = message.round;
                    on_round(highest);
                }
                deliver(&mut parties, from, message);
            }
        }
        if idle {
            break;
        }
    }
    let outputs = parties.into_iter().map(|(index, party)| match party.output {
        Some(output) => Ok((index, output)),
        None => Err((index, party.machine.timed_out())),
    });
    outputs.collect()
}

fn deliver<T>(parties: &mut BTreeMap<SignerIndex, Party<T>>, from: SignerIndex, message: Outgoing) {
    let Outgoing { round, to, body } = message;
    match to {
        Recipient::One(to) => {
            if let Some(party) = parties.get_mut(&to) {
                party.inbox.push_back(Incoming { round, from, broadcast: false, body });
            }
        }
        Recipient::All => {
            for (_, party) in parties.iter_mut().filter(|(index, _)| **index != from) {
                party.inbox.push_back(Incoming { round, from, broadcast: true, body: body.clone() });
            }
        }
    }
}
