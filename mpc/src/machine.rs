//! The shape of every protocol: messages in, messages or an output out.

use std::collections::BTreeSet;

use crate::{Abort, SignerIndex};

/// To whom a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// Every other party of the session; all must receive the same bytes.
    All,
    /// This party alone; nobody else may read it.
    One(SignerIndex),
}

/// A message to be delivered.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// The round it belongs to, from 1.
    pub round: u8,
    /// To whom it goes.
    pub to: Recipient,
    /// What it says, in the engine's own encoding.
    pub body: Vec<u8>,
}

/// A message that arrived. Its sender has been authenticated by whoever drives the machine.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The round it belongs to, from 1.
    pub round: u8,
    /// Who sent it.
    pub from: SignerIndex,
    /// Whether it went to every party of the session.
    pub broadcast: bool,
    /// What it says, in the engine's own encoding.
    pub body: Vec<u8>,
}

/// What a machine wants after a call.
#[derive(Debug)]
pub struct Step<T> {
    /// Messages to deliver, in this order.
    pub send: Vec<Outgoing>,
    /// The result, once there is one. The machine is then finished; its last messages still have to
    /// be delivered.
    pub output: Option<T>,
}

impl<T> Step<T> {
    /// Nothing to do: more messages are needed.
    pub fn wait() -> Self {
        Self { send: Vec::new(), output: None }
    }

    /// Messages to deliver, no output yet.
    pub fn send(send: Vec<Outgoing>) -> Self {
        Self { send, output: None }
    }
}

/// One party of one session.
///
/// Messages may come in any order and for a later round than the current one: the machine keeps
/// them until their round, at most one of a kind for each sender and round. A second one is an
/// [`Abort`], as is a message from a stranger or for a round that does not exist. After an output or
/// an abort the machine is finished and answers every further call with [`Abort::local`].
pub trait Machine: Send {
    /// What the protocol yields.
    type Output;

    /// Begins: yields the messages of the first round.
    ///
    /// # Errors
    /// An [`Abort`] when it cannot start, or was started before.
    fn start(&mut self) -> Result<Step<Self::Output>, Abort>;

    /// Takes one message; yields the next round's messages once the current round is complete.
    ///
    /// # Errors
    /// An [`Abort`] when the protocol cannot go on, naming who is to blame.
    fn receive(&mut self, message: Incoming) -> Result<Step<Self::Output>, Abort>;

    /// How many rounds there are on the way to the output: the highest number that a message has.
    fn rounds(&self) -> u8;

    /// Whose messages the current round still lacks.
    fn waiting_for(&self) -> BTreeSet<SignerIndex>;

    /// The abort to report when whoever drives the machine has waited long enough.
    fn timed_out(&self) -> Abort {
        Abort::timeout(self.waiting_for())
    }
}
