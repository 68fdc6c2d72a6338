//! New shares while the old ones sign on, in two phases.
//!
//! First all signers make new shares of the next epoch, and each stores its own beside the one that it signs with. Then,
//! once every signer has said under its signature that it has stored the same, each puts its own in the place of the old
//! one, which is gone from then on. A signer says so with every heartbeat, and hears the others' only while it has a share
//! that waits. So a crash at any step leaves the shares of one epoch with all signers: the old ones as long as one signer
//! has not stored its new share, and later the new ones, as soon as the signers that were away have heard the others.
//!
//! Before they make new shares, the signers meet: they tell each other, each all others the same, which shares they have
//! ([`Standing`]). Where all have stored the same next one, only the second phase was missing, and it is made up for.
//! Otherwise somebody has never stored it and never said so, and nobody can have put it in place: only then it is
//! removed, before new ones are made. The session that makes those is bound to that meeting, so that nobody is in it who
//! still has one of before.
//!
//! Managers and the bus can have a refresh begun, kept from beginning or cut off, at any step, and no more than that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tss_common::audit::{Event, NewShare};
use tss_common::bus::Address;
use tss_common::intent::hash_fields;
use tss_common::session::{Operation, SessionContext};
use tss_common::wire::{
    self, Commitment, Heartbeat, KeyAnnouncement, Notice, Refresh, RefreshStep, WireError,
};
use tss_mpc::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use tss_mpc::{
    Abort, Engine, Machine, Quorum, Recipient, RenewSetup, SessionId, SetupError, ShareDocument, SignerIndex,
    Threshold,
};

use crate::holding::{Held, Holding};
use crate::journal::Journal;
use crate::router::Router;
use crate::session::{self, Done, Party, Patience};
use crate::share_file::{Expected, ShareFile};

/// How long the others have to show their nonces. All are told at the same time.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long nobody says anything while all compute, at most: longer, and somebody is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a refresh may take, whatever the manager says.
const MAX_REFRESH: Duration = Duration::from_secs(600);

/// How many heartbeats may be on their way into the process at once.
const HEARTBEATS_IN_FLIGHT: u16 = 256;

/// How often putting a share in place is tried again while the disk does not take it.
const DISK_PAUSE: Duration = Duration::from_secs(1);

/// The sessions of one refresh: they differ by the number that attempts have.
const MEETING: u32 = 1;
const DEALING: u32 = 2;

/// A signer's part in refreshes.
pub(crate) struct Refresher {
    pub(crate) cluster: String,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) party: Arc<Party>,
    pub(crate) router: Arc<Router>,
    pub(crate) journal: Journal,
    pub(crate) holding: Arc<Holding>,
    /// Where the share is, if it is in a file.
    pub(crate) file: Option<ShareFile>,
    /// How long it takes no part in another refresh.
    pub(crate) pause: Duration,
    /// When the last one began. Whoever holds this is the one that changes shares.
    pub(crate) turn: Mutex<Option<Instant>>,
}

/// Which shares a signer has, as it tells the others when they meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    epoch: u64,
    /// Those that it signs with.
    shares: Commitment,
    /// Those that it has stored, and does not sign with yet.
    next: Option<Commitment>,
}

/// What follows from a meeting.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    /// All have stored the same next shares: these take their place.
    Settle,
    /// All sign with the same shares, and nobody can have put others in place: new ones can be made.
    Deal,
    /// Nothing can be done together. Says why.
    Stop(String),
}

impl Refresher {
    /// Takes part in a refresh, and says by steps how far it is.
    pub(crate) async fn take_part(&self, refresh: Refresh) {
        if self.holding.refresh().is_some_and(|last| last.id == refresh.id) {
            return tracing::debug!("a refresh came twice");
        }
        let Ok(mut last) = self.turn.try_lock() else {
            return tracing::warn!("a refresh is under way: another one does not begin");
        };
        if let Err(reason) = self.go(&refresh, &mut last).await {
            tracing::warn!(%reason, "the refresh ended early");
            self.holding.reach(refresh.id, RefreshStep::Failed(reason));
        }
    }

    async fn go(&self, refresh: &Refresh, last: &mut Option<Instant>) -> Result<(), String> {
        let held = self.holding.current();
        let end = self.check(refresh, &held, *last)?;
        let file =
            self.file.as_ref().ok_or("its share is in no file, where a new one could take its place")?;
        self.on_disk(file, ShareFile::check_writable).await?;
        *last = Some(Instant::now());
        self.holding.reach(refresh.id, RefreshStep::Meeting);
        let quorum = Quorum::new(held.key.threshold.signers()).map_err(|error| error.to_string())?;
        let met = self.meet(refresh, &held, &quorum, end).await?;
        match course(self.party.index(), &met.output) {
            Course::Settle => {
                self.settle(file).await?;
                self.holding.reach(refresh.id, RefreshStep::Done);
                return Ok(());
            }
            Course::Deal => {}
            Course::Stop(reason) => return Err(reason),
        }
        if self.holding.next().is_some() {
            tracing::info!("a next share that not all signers have is removed");
            self.on_disk(file, ShareFile::discard_next).await?;
            self.holding.discard();
        }
        self.holding.reach(refresh.id, RefreshStep::Dealing);
        let Done { output: share, session } =
            self.deal(refresh, &held, &quorum, met.session, file, end).await?;
        let next = Held::open(&*self.engine, &share).map_err(|error| error.to_string())?;
        let made = NewShare {
            session,
            cluster: self.cluster.clone(),
            key: next.key.id.clone(),
            epoch: next.key.epoch,
            threshold: next.key.threshold,
            public_key: next.key.public_key,
        };
        self.journal.note(vec![Event::Renew(made)]).await.map_err(|error| error.to_string())?;
        self.on_disk(file, move |file| file.save_next(&share)).await?;
        tracing::info!(epoch = next.key.epoch, "the next share is stored");
        self.holding.store(refresh.id, next);
        Ok(())
    }

    /// Whether this signer takes part, and until when.
    fn check(&self, refresh: &Refresh, held: &Held, last: Option<Instant>) -> Result<Instant, String> {
        let (cluster, key) = (&self.cluster, &held.key);
        if (&refresh.cluster, &refresh.key) != (cluster, &key.id) {
            return Err(format!("it holds key {} of cluster {cluster}, and no other", key.id));
        }
        if refresh.epoch != key.epoch {
            return Err(format!(
                "it has epoch {}: expected the refresh to end it, not {}",
                key.epoch, refresh.epoch
            ));
        }
        let left = Duration::try_from(refresh.expires.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return Err(format!("it came after its time ({})", refresh.expires));
        }
        let since = last.map(|last| last.elapsed()).filter(|since| *since < self.pause);
        if let Some(since) = since {
            let (since, pause) = (since.as_secs(), self.pause.as_secs());
            return Err(format!("its last refresh began {since} s ago: expected {pause} s between two"));
        }
        Ok(Instant::now() + left.min(MAX_REFRESH))
    }

    /// Tells the others which shares this signer has, and hears the same of them.
    async fn meet(
        &self,
        refresh: &Refresh,
        held: &Held,
        quorum: &Quorum,
        end: Instant,
    ) -> Result<Done<BTreeMap<SignerIndex, Standing>>, String> {
        let index = self.party.index();
        let others: BTreeSet<SignerIndex> = quorum.others(index).collect();
        let standing = Standing {
            epoch: held.key.epoch,
            shares: held.commitment,
            next: self.holding.next().map(|next| next.commitment),
        };
        let begin = move |_| {
            let rounds = vec![Round::broadcast(others.iter().copied())];
            let machine = RoundMachine::new(Meeting(index, standing), index, others, rounds);
            Ok(Box::new(machine) as Box<dyn Machine<Output = BTreeMap<SignerIndex, Standing>>>)
        };
        self.session(refresh, MEETING, quorum, self.intent("meeting", refresh, None), end, begin).await
    }

    /// Makes new shares with the others.
    async fn deal(
        &self,
        refresh: &Refresh,
        held: &Held,
        quorum: &Quorum,
        meeting: SessionId,
        file: &ShareFile,
        end: Instant,
    ) -> Result<Done<ShareDocument>, String> {
        let (index, threshold) = (self.party.index(), held.key.threshold);
        let (cluster, key, epoch) = (self.cluster.clone(), held.key.id.clone(), held.key.epoch);
        // What was dealt by others among them would be as good: all signers take part.
        let dealers = Quorum::new(threshold.signers().take(threshold.t().into()));
        let dealers = dealers.map_err(|error| error.to_string())?;
        let document = self.load(file, threshold, &key).await?;
        let engine = self.engine.clone();
        let begin = move |session| {
            engine.renew(
                RenewSetup { session, cluster, key, index, epoch, dealers, threshold },
                Some(&document),
            )
        };
        let intent = self.intent("dealing", refresh, Some(meeting));
        self.session(refresh, DEALING, quorum, intent, end, begin).await
    }

    /// What the signers of a session have to agree on.
    fn intent(&self, session: &str, refresh: &Refresh, after: Option<SessionId>) -> [u8; 32] {
        let epoch = refresh.epoch.to_be_bytes();
        let mut fields: Vec<&[u8]> = vec![
            session.as_bytes(),
            refresh.id.as_bytes(),
            refresh.cluster.as_bytes(),
            refresh.key.as_bytes(),
            &epoch,
        ];
        fields.extend(after.as_ref().map(|after| &after.0[..]));
        hash_fields("tss.network/refresh/v1", &fields)
    }

    async fn session<T: Send + 'static>(
        &self,
        refresh: &Refresh,
        number: u32,
        quorum: &Quorum,
        intent: [u8; 32],
        end: Instant,
        begin: impl FnOnce(SessionId) -> Result<Box<dyn Machine<Output = T>>, SetupError> + Send + 'static,
    ) -> Result<Done<T>, String> {
        let context = SessionContext {
            operation: Operation::Renew,
            cluster: &refresh.cluster,
            key: &refresh.key,
            epoch: refresh.epoch.checked_add(1).ok_or("there is no later epoch")?,
            engine: self.engine.id(),
            request: refresh.id,
            attempt: number,
            quorum,
            intent,
        };
        let slot = (refresh.id, number);
        let messages = self.router.open(slot).ok_or("it took part in it before")?;
        let join = end.min(Instant::now() + JOIN_TIMEOUT);
        let patience = Patience { join, end, rejoin: None, silence: Some(SILENCE) };
        let claim = |session| self.journal.begin(session, Vec::new());
        let result = session::run(&self.party, &context, patience, messages, claim, begin).await;
        self.router.close(slot);
        result.map_err(|failure| failure.abort.to_string())
    }

    async fn load(&self, file: &ShareFile, threshold: Threshold, key: &str) -> Result<ShareDocument, String> {
        let (cluster, key, index) = (self.cluster.clone(), key.to_owned(), self.party.index());
        self.on_disk(file, move |file| {
            file.load(&Expected { cluster: &cluster, key: &key, index, threshold })
        })
        .await
    }

    async fn on_disk<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
        &self,
        file: &ShareFile,
        work: impl FnOnce(&ShareFile) -> Result<T, E> + Send + 'static,
    ) -> Result<T, String> {
        let file = file.clone();
        match tokio::task::spawn_blocking(move || work(&file)).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(error) => Err(format!("the disk: {error}")),
        }
    }

    /// Puts the next share in the place of the one that is there.
    async fn settle(&self, file: &ShareFile) -> Result<(), String> {
        let Some(next) = self.holding.next() else { return Ok(()) };
        self.on_disk(file, ShareFile::settle).await?;
        self.holding.settle();
        let KeyAnnouncement { id, epoch, .. } = &next.key;
        self.party.metrics.key(id, *epoch);
        tracing::info!(epoch, "the next share is in its place");
        let settled = Event::Settled { key: id.clone(), epoch: *epoch };
        if let Err(error) = self.journal.hold(*epoch, vec![settled]).await {
            tracing::error!(%error, "the epoch is written down at the next start");
        }
        Ok(())
    }

    /// Puts a share that is stored in its place as soon as all signers have said that they have theirs.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let Some(file) = &self.file else { return };
        let mut changes = self.holding.changes();
        loop {
            changes.borrow_and_update();
            let all_have_it = async {
                match self.holding.next() {
                    Some(next) => self.until_all_have(&next).await.map(|()| next.commitment),
                    None => std::future::pending().await,
                }
            };
            let stored = tokio::select! {
                stored = all_have_it => stored,
                _ = changes.changed() => continue,
                () = stop.cancelled() => return,
            };
            let Some(stored) = stored else {
                sleep(DISK_PAUSE).await;
                continue;
            };
            let _turn = self.turn.lock().await;
            // Meanwhile it may be in its place.
            if self.holding.next().is_some_and(|next| next.commitment == stored)
                && let Err(error) = self.settle(file).await
            {
                tracing::error!(%error, "the next share is not in its place yet");
                sleep(DISK_PAUSE).await;
            }
        }
    }

    /// Waits until every signer has said that it has stored the same next shares, or signs with them. `None` when the bus
    /// is closed.
    async fn until_all_have(&self, next: &Held) -> Option<()> {
        let mut missing: BTreeSet<SignerIndex> =
            next.key.threshold.signers().filter(|&signer| signer != self.party.index()).collect();
        let mut notices = self.party.bus.subscribe(Address::Presence, HEARTBEATS_IN_FLIGHT).await.ok()?;
        while !missing.is_empty() {
            let delivery = notices.recv().await?;
            // Anybody can write there, and most of it is for managers.
            if let Ok(Some(signer)) = self.who_has(next, &delivery.body) {
                missing.remove(&signer);
            }
            delivery.ack();
        }
        Some(())
    }

    /// Who says in a notice that it has these shares, if that is what it says. It does not matter how old it is: a signer
    /// does not lose a share that it has stored, unless all know that one of them never did.
    fn who_has(&self, next: &Held, notice: &[u8]) -> Result<Option<SignerIndex>, WireError> {
        let Notice::Heartbeat(signed) = wire::from_json(notice)? else { return Ok(None) };
        let heartbeat: Heartbeat = self.party.endpoint.reader().open(&signed)?;
        if heartbeat.signer != signed.signer {
            return Err(WireError::Forged(heartbeat.signer));
        }
        let has = [heartbeat.shares, heartbeat.next].contains(&Some(next.commitment));
        Ok(has.then_some(heartbeat.signer))
    }
}

/// What follows from what all signers have said.
fn course(me: SignerIndex, met: &BTreeMap<SignerIndex, Standing>) -> Course {
    let Some(own) = met.get(&me) else { return Course::Stop("it was not at the meeting".into()) };
    if let Some(next) = own.next
        && met.values().all(|other| other.next == Some(next))
    {
        return Course::Settle;
    }
    let other = met.iter().find(|(_, other)| (other.epoch, other.shares) != (own.epoch, own.shares));
    match other {
        None => Course::Deal,
        Some((signer, Standing { epoch, .. })) => Course::Stop(format!(
            "signer {signer} signs with other shares, of epoch {epoch}: expected those of epoch {}, as here",
            own.epoch
        )),
    }
}

/// One round, in which everybody tells all others which shares it has.
struct Meeting(SignerIndex, Standing);

impl Protocol for Meeting {
    type Output = BTreeMap<SignerIndex, Standing>;

    fn start(&mut self) -> Result<Vec<(Recipient, Vec<u8>)>, Abort> {
        Ok(vec![(Recipient::All, encode(&self.1)?)])
    }

    fn advance(&mut self, _: u8, received: Received) -> Result<Turn<Self::Output>, Abort> {
        let Self(index, standing) = self;
        let mut met = received.decode_broadcast()?;
        met.insert(*index, standing.clone());
        Ok(Turn::done(met))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Commitment = Commitment([1; 32]);
    const NEW: Commitment = Commitment([2; 32]);
    const OTHER: Commitment = Commitment([3; 32]);

    fn index(signer: u8) -> SignerIndex {
        SignerIndex::new(signer).unwrap()
    }

    /// What follows for signer 1 when the signers have stored these.
    fn course_of(next: [Option<Commitment>; 3]) -> Course {
        let met =
            (1..).zip(next).map(|(signer, next)| (index(signer), Standing { epoch: 4, shares: OLD, next }));
        course(index(1), &met.collect())
    }

    #[test]
    fn only_what_all_have_stored_takes_the_place_of_the_old() {
        assert_eq!(course_of([Some(NEW); 3]), Course::Settle);
        for one_differs in [
            [None; 3],
            [Some(NEW), None, None],
            [Some(NEW), Some(NEW), None],
            [None, Some(NEW), Some(NEW)],
            [Some(NEW), Some(NEW), Some(OTHER)],
        ] {
            assert_eq!(course_of(one_differs), Course::Deal, "{one_differs:?}");
        }
    }

    #[test]
    fn nothing_is_removed_or_made_while_somebody_signs_with_other_shares() {
        let standing = |epoch, shares, next| Standing { epoch, shares, next };
        let met = |other| {
            let own = standing(4, OLD, Some(NEW));
            course(index(1), &BTreeMap::from([(index(1), own.clone()), (index(2), other), (index(3), own)]))
        };
        for other in [standing(5, NEW, None), standing(4, OTHER, Some(NEW)), standing(5, OLD, None)] {
            match met(other.clone()) {
                Course::Stop(reason) => {
                    assert!(reason.contains("signer 2 signs with other shares"), "{reason}")
                }
                // It says that it has them, as all do.
                Course::Settle => assert_eq!(other.next, Some(NEW)),
                Course::Deal => panic!("{other:?}"),
            }
        }
        assert!(matches!(course(index(1), &BTreeMap::new()), Course::Stop(_)));
    }
}
