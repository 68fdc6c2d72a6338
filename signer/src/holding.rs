//! Which shares a running signer has: the one that it signs with, and sometimes the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tss_common::wire::{Commitment, KeyAnnouncement, RefreshStep, Refreshing};
use tss_mpc::{Engine, ShareDocument, ShareError, SigningShare};
use uuid::Uuid;

use crate::report;

/// A share that is ready to sign.
pub(crate) struct Held {
    /// What it is a share of, as others are told.
    pub(crate) key: KeyAnnouncement,
    /// What it has in common with the others that were made with it.
    pub(crate) commitment: Commitment,
    /// The share.
    pub(crate) share: Arc<dyn SigningShare>,
}

impl Held {
    /// Gets a share ready.
    ///
    /// # Errors
    /// [`ShareError`] when it has no part for the engine, or is of another kind of key than the network signs with.
    pub(crate) fn open(engine: &dyn Engine, document: &ShareDocument) -> Result<Self, ShareError> {
        let core = &document.core;
        Ok(Self {
            key: KeyAnnouncement {
                id: document.key.clone(),
                epoch: document.epoch,
                scheme: document.scheme,
                threshold: core.threshold,
                public_key: core.secp256k1()?.public_key,
                chain_code: core.chain_code,
            },
            commitment: Commitment(report::commitment(document)),
            share: engine.open(document)?,
        })
    }
}

/// The shares, and how far the last refresh has come. Whoever watches it is told of each change.
pub(crate) struct Holding {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

/// A share of the next epoch, which is on the disk, too.
#[derive(Clone)]
pub(crate) struct Next {
    /// The share.
    pub(crate) held: Arc<Held>,
    /// Whether this signer has told of it at a meeting: somebody may have found there that it is not needed.
    pub(crate) frozen: bool,
}

struct State {
    current: Arc<Held>,
    next: Option<Next>,
    refresh: Option<Refreshing>,
}

impl Holding {
    /// A signer starts with these.
    pub(crate) fn new(current: Held, next: Option<Next>) -> Self {
        let state = State { current: Arc::new(current), next, refresh: None };
        Self { state: Mutex::new(state), changed: watch::Sender::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    /// The share to sign with. A session that began with one goes on with it, whatever comes.
    pub(crate) fn current(&self) -> Arc<Held> {
        self.state().current.clone()
    }

    /// The next share, if there is one.
    pub(crate) fn next(&self) -> Option<Next> {
        self.state().next.clone()
    }

    /// The last refresh since the signer started.
    pub(crate) fn refresh(&self) -> Option<Refreshing> {
        self.state().refresh.clone()
    }

    /// Changes whenever something here does.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// A refresh has come so far.
    pub(crate) fn reach(&self, id: Uuid, step: RefreshStep) {
        self.change(|state| state.refresh = Some(Refreshing { id, step }));
    }

    /// A refresh has left a next share, which is stored.
    pub(crate) fn store(&self, id: Uuid, next: Held) {
        self.change(|state| {
            state.next = Some(Next { held: Arc::new(next), frozen: false });
            state.refresh = Some(Refreshing { id, step: RefreshStep::Stored });
        });
    }

    /// The next share is frozen.
    pub(crate) fn freeze(&self) {
        self.change(|state| {
            if let Some(next) = &mut state.next {
                next.frozen = true;
            }
        });
    }

    /// There is no next share any more.
    pub(crate) fn discard(&self) {
        self.change(|state| state.next = None);
    }

    /// The next share is the one to sign with.
    pub(crate) fn settle(&self) {
        self.change(|state| {
            if let Some(next) = state.next.take() {
                state.current = next.held;
            }
            // One that came to nothing did so still: this is the share of one before.
            if let Some(refresh @ Refreshing { step: RefreshStep::Stored, .. }) = &mut state.refresh {
                refresh.step = RefreshStep::Done;
            }
        });
    }
}
