//! Which message belongs to which session.
//!
//! Messages of a session may come before the signer has heard of the attempt: the manager tells every
//! signer of a quorum at once, and one may be quicker. Only joins can: later messages need every
//! party's nonce. So joins wait here for a while, bounded in number, and all else is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tss_common::wire::{Body, Envelope};
use uuid::Uuid;

use crate::metrics::Dropped;

/// How many messages wait for one session. A session of 16 signers has 15 joins and at most 45 other
/// messages.
const INBOX: usize = 64;

/// How many sessions that the signer has not heard of may have joins waiting.
const MAX_EARLY: usize = 4096;

/// For how long joins wait for their session, and an ended session is remembered.
const MEMORY: Duration = Duration::from_secs(60);

/// How many ended sessions are remembered at most.
const MAX_DONE: usize = 100_000;

/// A session before it has an id: the request and the attempt.
pub type SessionKey = (Uuid, u32);

enum Slot {
    /// Joins are here, the attempt is not.
    Early(mpsc::Sender<Envelope>, mpsc::Receiver<Envelope>),
    /// The session is running.
    Active(mpsc::Sender<Envelope>),
    /// The session has ended. Remembered, so that an attempt that is delivered twice is not begun
    /// twice.
    Done,
}

#[derive(Default)]
struct Table {
    slots: HashMap<SessionKey, Slot>,
    /// Slots that are not active, oldest first.
    ageing: VecDeque<(Instant, SessionKey)>,
    early: usize,
    active: usize,
}

/// The sessions of one signer.
#[derive(Default)]
pub struct Router(Mutex<Table>);

impl Router {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a message to its session.
    ///
    /// # Errors
    /// Why it was dropped instead.
    pub fn deliver(&self, envelope: Envelope) -> Result<(), Dropped> {
        let mut table = self.table();
        table.forget(Instant::now());
        let key = (envelope.request, envelope.attempt);
        let is_join = matches!(envelope.body, Body::Join(_));
        let inbox = match table.slots.get(&key) {
            Some(Slot::Active(inbox)) => inbox,
            Some(Slot::Early(inbox, _)) if is_join => inbox,
            Some(_) => return Err(Dropped::Late),
            None if !is_join => return Err(Dropped::Late),
            None if table.early >= MAX_EARLY => return Err(Dropped::Overflow),
            None => {
                let (inbox, messages) = mpsc::channel(INBOX);
                let sent = inbox.try_send(envelope).map_err(|_| Dropped::Overflow);
                table.early += 1;
                table.slots.insert(key, Slot::Early(inbox, messages));
                table.ageing.push_back((Instant::now(), key));
                return sent;
            }
        };
        inbox.try_send(envelope).map_err(|_| Dropped::Overflow)
    }

    /// Begins a session: yields its messages. `None` when it is running or has ended.
    pub fn open(&self, key: SessionKey) -> Option<mpsc::Receiver<Envelope>> {
        let mut table = self.table();
        table.forget(Instant::now());
        let (inbox, messages) = match table.slots.remove(&key) {
            Some(Slot::Early(inbox, messages)) => {
                table.early -= 1;
                (inbox, messages)
            }
            None => mpsc::channel(INBOX),
            Some(slot) => {
                table.slots.insert(key, slot);
                return None;
            }
        };
        table.slots.insert(key, Slot::Active(inbox));
        table.active += 1;
        Some(messages)
    }

    /// Ends a session.
    pub fn close(&self, key: SessionKey) {
        let mut table = self.table();
        if let Some(slot @ Slot::Active(_)) = table.slots.get_mut(&key) {
            *slot = Slot::Done;
            table.active -= 1;
            table.ageing.push_back((Instant::now(), key));
        }
    }

    /// How many sessions are running.
    pub fn active(&self) -> usize {
        self.table().active
    }
}

impl Table {
    fn forget(&mut self, now: Instant) {
        while let Some(&(since, key)) = self.ageing.front() {
            if now.duration_since(since) < MEMORY && self.ageing.len() <= MAX_DONE {
                break;
            }
            self.ageing.pop_front();
            // An early slot that became active has aged for nothing.
            if let Some(Slot::Early(..) | Slot::Done) = self.slots.get(&key)
                && let Some(Slot::Early(..)) = self.slots.remove(&key)
            {
                self.early -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tss_common::session::Nonce;
    use tss_mpc::{SessionId, SignerIndex};

    use super::*;

    fn envelope(request: u128, body: Body) -> Envelope {
        let index = |i| SignerIndex::new(i).unwrap();
        Envelope { request: Uuid::from_u128(request), attempt: 1, from: index(1), to: index(2), body }
    }

    fn join() -> Body {
        Body::Join(Nonce([1; 32]))
    }

    fn round() -> Body {
        Body::Round { session: SessionId([0; 32]), round: 1, broadcast: false, payload: Vec::new() }
    }

    #[tokio::test]
    async fn a_join_waits_for_its_attempt_and_nothing_else_does() {
        let router = Router::default();
        assert!(matches!(router.deliver(envelope(1, round())), Err(Dropped::Late)));
        router.deliver(envelope(1, join())).unwrap();
        let mut messages = router.open((Uuid::from_u128(1), 1)).unwrap();
        router.deliver(envelope(1, round())).unwrap();
        assert!(matches!(messages.recv().await.unwrap().body, Body::Join(_)));
        assert!(matches!(messages.recv().await.unwrap().body, Body::Round { .. }));
    }

    #[tokio::test]
    async fn a_session_is_begun_once_and_stays_ended() {
        let router = Router::default();
        let key = (Uuid::from_u128(1), 1);
        let messages = router.open(key).unwrap();
        assert!(router.open(key).is_none());
        assert_eq!(router.active(), 1);
        router.close(key);
        drop(messages);
        assert_eq!(router.active(), 0);
        assert!(router.open(key).is_none());
        assert!(matches!(router.deliver(envelope(1, join())), Err(Dropped::Late)));
    }

    #[tokio::test]
    async fn what_strangers_can_make_it_keep_is_bounded() {
        let router = Router::default();
        for request in 0..MAX_EARLY as u128 {
            router.deliver(envelope(request, join())).unwrap();
        }
        assert!(matches!(router.deliver(envelope(u128::MAX, join())), Err(Dropped::Overflow)));
        for _ in 1..INBOX {
            router.deliver(envelope(0, join())).unwrap();
        }
        assert!(matches!(router.deliver(envelope(0, join())), Err(Dropped::Overflow)));
        let mut table = router.table();
        table.forget(Instant::now() + MEMORY);
        assert_eq!((table.slots.len(), table.early), (0, 0));
    }
}
