//! Which message belongs to which session.
//!
//! Messages of a session may come before the signer has heard of the attempt: the manager tells every
//! signer of a quorum at once, and one may be quicker. Only joins can: later messages need every
//! party's nonce. So joins wait here for a while, and all else is dropped. Whatever one signer can make
//! another keep is bounded, so that none can crowd out the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tss_common::envelope::Letter;
use tss_mpc::SignerIndex;
use tss_mpc::party::MAX_SIGNERS;
use uuid::Uuid;

use crate::metrics::Dropped;

/// How many messages a session takes from one signer. The longest protocol, making new shares, has fewer than half of it.
const FROM_EACH: usize = 32;

/// How many messages wait for one session at most.
const INBOX: usize = FROM_EACH * MAX_SIGNERS as usize;

/// How many sessions that this signer has not heard of may have a join of one signer waiting.
const EARLY_FROM_EACH: usize = 1024;

/// For how long joins wait for their session, and an ended session is remembered.
const MEMORY: Duration = Duration::from_secs(60);

/// How many ended sessions are remembered at most.
const MAX_DONE: usize = 100_000;

/// A session before it has an id: the request and the attempt.
pub type SessionKey = (Uuid, u32);

enum Slot {
    /// Joins are here, the attempt is not.
    Early(BTreeMap<SignerIndex, Letter>),
    /// The session is running, and has had these messages from each. The same one again, from the middle
    /// or from a signer that waits for others, does not count.
    Active(mpsc::Sender<Letter>, BTreeMap<SignerIndex, BTreeSet<[u8; 32]>>),
    /// The session has ended. Remembered, so that an attempt that is delivered twice is not begun
    /// twice.
    Done,
}

#[derive(Default)]
struct Table {
    slots: HashMap<SessionKey, Slot>,
    /// Slots that are not active, oldest first.
    ageing: VecDeque<(Instant, SessionKey)>,
    /// How many joins of each signer wait.
    early: BTreeMap<SignerIndex, usize>,
    active: usize,
}

/// The sessions of one signer.
#[derive(Default)]
pub struct Router(Mutex<Table>);

impl Router {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a message, whose sender is certain, to its session.
    ///
    /// # Errors
    /// Why it was dropped instead.
    pub fn deliver(&self, letter: Letter) -> Result<(), Dropped> {
        let mut table = self.table();
        table.forget(Instant::now());
        let key = (letter.header.request, letter.header.attempt);
        match table.slots.get_mut(&key) {
            Some(Slot::Active(inbox, heard)) => {
                let heard = heard.entry(letter.header.from).or_default();
                if heard.contains(&letter.digest) {
                    return Err(Dropped::Duplicate);
                }
                if heard.len() >= FROM_EACH {
                    return Err(Dropped::Overflow);
                }
                heard.insert(letter.digest);
                inbox.try_send(letter).map_err(|_| Dropped::Overflow)
            }
            None | Some(Slot::Early(_)) if letter.header.round == 0 => table.keep_join(key, letter),
            None | Some(Slot::Early(_) | Slot::Done) => Err(Dropped::Late),
        }
    }

    /// Begins a session: yields its messages. `None` when it is running or has ended.
    pub fn open(&self, key: SessionKey) -> Option<mpsc::Receiver<Letter>> {
        let mut table = self.table();
        table.forget(Instant::now());
        let joins = match table.slots.remove(&key) {
            Some(Slot::Early(joins)) => {
                table.release(&joins);
                joins
            }
            None => BTreeMap::new(),
            Some(slot) => {
                table.slots.insert(key, slot);
                return None;
            }
        };
        let (inbox, messages) = mpsc::channel(INBOX);
        let heard = joins.iter().map(|(&from, join)| (from, BTreeSet::from([join.digest]))).collect();
        for join in joins.into_values() {
            // There is room for one of each.
            let _ = inbox.try_send(join);
        }
        table.slots.insert(key, Slot::Active(inbox, heard));
        table.active += 1;
        Some(messages)
    }

    /// Ends a session.
    pub fn close(&self, key: SessionKey) {
        let mut table = self.table();
        if let Some(slot @ Slot::Active(..)) = table.slots.get_mut(&key) {
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
    fn keep_join(&mut self, key: SessionKey, letter: Letter) -> Result<(), Dropped> {
        let from = letter.header.from;
        let waiting = self.early.entry(from).or_default();
        if *waiting >= EARLY_FROM_EACH {
            return Err(Dropped::Overflow);
        }
        match self.slots.get_mut(&key) {
            Some(Slot::Early(joins)) => {
                if joins.contains_key(&from) {
                    return Err(Dropped::Duplicate);
                }
                joins.insert(from, letter);
            }
            _ => {
                self.slots.insert(key, Slot::Early(BTreeMap::from([(from, letter)])));
                self.ageing.push_back((Instant::now(), key));
            }
        }
        *waiting += 1;
        Ok(())
    }

    fn release(&mut self, joins: &BTreeMap<SignerIndex, Letter>) {
        for from in joins.keys() {
            if let Some(waiting) = self.early.get_mut(from) {
                *waiting = waiting.saturating_sub(1);
            }
        }
    }

    fn forget(&mut self, now: Instant) {
        while let Some(&(since, key)) = self.ageing.front() {
            if now.duration_since(since) < MEMORY && self.ageing.len() <= MAX_DONE {
                break;
            }
            self.ageing.pop_front();
            // An early slot that became active has aged for nothing.
            if let Some(Slot::Early(_) | Slot::Done) = self.slots.get(&key)
                && let Some(Slot::Early(joins)) = self.slots.remove(&key)
            {
                self.release(&joins);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tss_common::envelope::{Endpoint, Header};
    use tss_common::identity::{Identity, Roster};
    use tss_mpc::SessionId;

    use super::*;

    fn index(i: u8) -> SignerIndex {
        SignerIndex::new(i).unwrap()
    }

    /// Writes what signers 2 and 3 send to signer 1.
    struct Others(Endpoint, BTreeMap<SignerIndex, Endpoint>);

    impl Others {
        fn new() -> Self {
            let mut identities: BTreeMap<_, _> = (1..=3).map(|i| (index(i), Identity::generate())).collect();
            let public = identities.iter().map(|(&index, identity)| (index, identity.public())).collect();
            let roster = Roster::new(public).unwrap();
            let mut end = |i| {
                let identity = identities.remove(&index(i)).unwrap();
                Endpoint::new("c", index(i), identity, roster.clone()).unwrap()
            };
            Self(end(1), BTreeMap::from([(index(2), end(2)), (index(3), end(3))]))
        }

        fn letter(&self, request: u128, from: u8, round: u8) -> Letter {
            let header = Header {
                request: Uuid::from_u128(request),
                attempt: 1,
                session: SessionId([0; 32]),
                round,
                from: index(from),
                to: None,
            };
            self.0.read(&self.1[&index(from)].write(header, b"").unwrap()).unwrap()
        }
    }

    #[tokio::test]
    async fn a_join_waits_for_its_attempt_and_nothing_else_does() {
        let (router, others) = (Router::default(), Others::new());
        assert_eq!(router.deliver(others.letter(1, 2, 1)), Err(Dropped::Late));
        router.deliver(others.letter(1, 2, 0)).unwrap();
        assert_eq!(router.deliver(others.letter(1, 2, 0)), Err(Dropped::Duplicate));
        let mut messages = router.open((Uuid::from_u128(1), 1)).unwrap();
        router.deliver(others.letter(1, 2, 1)).unwrap();
        assert_eq!(messages.recv().await.unwrap().header.round, 0);
        assert_eq!(messages.recv().await.unwrap().header.round, 1);
    }

    #[tokio::test]
    async fn a_session_is_begun_once_and_stays_ended() {
        let (router, others) = (Router::default(), Others::new());
        let key = (Uuid::from_u128(1), 1);
        let messages = router.open(key).unwrap();
        assert!(router.open(key).is_none());
        assert_eq!(router.active(), 1);
        router.close(key);
        drop(messages);
        assert_eq!(router.active(), 0);
        assert!(router.open(key).is_none());
        assert_eq!(router.deliver(others.letter(1, 2, 0)), Err(Dropped::Late));
    }

    #[tokio::test]
    async fn what_one_signer_can_make_another_keep_is_bounded_and_does_not_crowd_out_others() {
        let (router, others) = (Router::default(), Others::new());
        for request in 0..EARLY_FROM_EACH as u128 {
            router.deliver(others.letter(request, 2, 0)).unwrap();
        }
        assert_eq!(router.deliver(others.letter(u128::MAX, 2, 0)), Err(Dropped::Overflow));
        router.deliver(others.letter(u128::MAX, 3, 0)).unwrap();
        let _messages = router.open((Uuid::from_u128(0), 1)).unwrap();
        for round in 1..FROM_EACH as u8 {
            router.deliver(others.letter(0, 2, round)).unwrap();
            // However often the middle repeats a message, it takes one place.
            for again in [0, round] {
                assert_eq!(router.deliver(others.letter(0, 2, again)), Err(Dropped::Duplicate));
            }
        }
        assert_eq!(router.deliver(others.letter(0, 2, u8::MAX)), Err(Dropped::Overflow));
        router.deliver(others.letter(0, 3, 1)).unwrap();
        let mut table = router.table();
        table.forget(Instant::now() + MEMORY);
        // The running session is left.
        assert_eq!((table.slots.len(), table.early[&index(2)], table.early[&index(3)]), (1, 0, 0));
    }
}
