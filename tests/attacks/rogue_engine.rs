//! A signer's engine that goes astray. What it makes its signer send is signed and sealed by the honest
//! code around it: so it is the signer's own word.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tss_mpc::{
    Abort, AnySignature, Dkls23, Engine, EngineId, ForeignShare, Incoming, KeygenSetup, Machine, Outgoing,
    RenewSetup, SetupError, ShareDocument, ShareError, SignSetup, SignerIndex, SigningShare, Step,
};

/// What becomes of the messages of a step.
type Edit = Box<dyn FnMut(&mut Vec<Outgoing>) + Send>;

/// How the signer strays, now.
type Way = Arc<Mutex<Edit>>;

/// The default engine, led astray.
pub(crate) struct RogueEngine {
    way: Way,
    /// A share document that it signs with instead of its own.
    instead: Option<Vec<u8>>,
}

impl RogueEngine {
    /// Edits every message before it is sent.
    pub(crate) fn editing(edit: impl FnMut(&mut Vec<Outgoing>) + Send + 'static) -> Arc<Self> {
        Arc::new(Self { way: Arc::new(Mutex::new(Box::new(edit))), instead: None })
    }

    /// Signs with another share.
    pub(crate) fn with_share(instead: Vec<u8>) -> Arc<Self> {
        let edit: Edit = Box::new(|_| ());
        Arc::new(Self { way: Arc::new(Mutex::new(edit)), instead: Some(instead) })
    }

    /// Changes one bit in the middle of each of its messages of a round.
    pub(crate) fn flipping(round: u8) -> Arc<Self> {
        Self::in_round(round, |body| {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        })
    }

    /// Sends bytes that mean nothing in a round.
    pub(crate) fn babbling(round: u8) -> Arc<Self> {
        Self::in_round(round, |body| *body = b"no message of this protocol".to_vec())
    }

    fn in_round(round: u8, edit: impl Fn(&mut Vec<u8>) + Send + 'static) -> Arc<Self> {
        Self::editing(move |send| {
            for message in send.iter_mut().filter(|message| message.round == round) {
                edit(&mut message.body);
            }
        })
    }

    /// Says a second thing in each place of a round.
    pub(crate) fn contradicting_itself(round: u8) -> Arc<Self> {
        Self::editing(move |send| {
            let again: Vec<Outgoing> =
                send.iter().filter(|message| message.round == round).cloned().collect();
            send.extend(again.into_iter().map(|mut message| {
                message.body[0] ^= 1;
                message
            }));
        })
    }

    /// Says nothing from a round on.
    pub(crate) fn silent_from(round: u8) -> Arc<Self> {
        Self::editing(move |send| send.retain(|message| message.round < round))
    }
}

impl Engine for RogueEngine {
    fn id(&self) -> EngineId {
        Dkls23.id()
    }

    fn keygen(&self, setup: KeygenSetup) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(RogueMachine { honest: Dkls23.keygen(setup)?, way: self.way.clone() }))
    }

    fn import(
        &self,
        setup: KeygenSetup,
        share: &ForeignShare,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(RogueMachine { honest: Dkls23.import(setup, share)?, way: self.way.clone() }))
    }

    fn renew(
        &self,
        setup: RenewSetup,
        held: Option<&ShareDocument>,
    ) -> Result<Box<dyn Machine<Output = ShareDocument>>, SetupError> {
        Ok(Box::new(RogueMachine { honest: Dkls23.renew(setup, held)?, way: self.way.clone() }))
    }

    fn open(&self, share: &ShareDocument) -> Result<Arc<dyn SigningShare>, ShareError> {
        let honest = match &self.instead {
            Some(json) => Dkls23.open(&ShareDocument::from_json(json)?)?,
            None => Dkls23.open(share)?,
        };
        Ok(Arc::new(RogueShare { honest, way: self.way.clone() }))
    }
}

struct RogueShare {
    honest: Arc<dyn SigningShare>,
    way: Way,
}

impl SigningShare for RogueShare {
    fn sign(&self, setup: SignSetup) -> Result<Box<dyn Machine<Output = AnySignature>>, SetupError> {
        Ok(Box::new(RogueMachine { honest: self.honest.sign(setup)?, way: self.way.clone() }))
    }
}

struct RogueMachine<T> {
    honest: Box<dyn Machine<Output = T>>,
    way: Way,
}

impl<T> RogueMachine<T> {
    fn stray(&self, mut step: Step<T>) -> Step<T> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)(&mut step.send);
        step
    }
}

impl<T> Machine for RogueMachine<T> {
    type Output = T;

    fn start(&mut self) -> Result<Step<T>, Abort> {
        let step = self.honest.start()?;
        Ok(self.stray(step))
    }

    fn receive(&mut self, message: Incoming) -> Result<Step<T>, Abort> {
        let step = self.honest.receive(message)?;
        Ok(self.stray(step))
    }

    fn rounds(&self) -> u8 {
        self.honest.rounds()
    }

    fn waiting_for(&self) -> BTreeSet<SignerIndex> {
        self.honest.waiting_for()
    }
}
