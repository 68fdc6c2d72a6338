//! New shares while the old ones sign on, in two phases.
//!
//! First all signers make new shares of the next epoch, and each stores its own beside the one that it signs with. Then,
//! once every signer has said under its signature that it has stored the same, each **settles**: it puts its own in the place
//! of the old one, which is gone from then on. A signer says what it has with every heartbeat, and hears the others' only
//! while it has a share that waits. Whoever has settled passes on what it had heard, for those who have not, even if one of
//! the others is never heard again.
//!
//! Some may have stored a share that others have not. So before they make new ones, the signers **meet**: they tell each
//! other, each all others the same, which shares they have ([`Standing`]). Where all have the next one, they settle.
//! Otherwise whoever has it removes it. One signer may see the meeting end so, and another never see its end. That one must
//! not settle later on words that were said before: a next share is **frozen** before anything of it is told at a meeting,
//! and what is frozen settles only at another meeting, or when t others sign with it, one of whom at least is honest.
//! Whoever is honest and signs with it has settled before the meeting or at one, and then nobody honest has removed it:
//! that takes a meeting at which all sign with the old one.
//!
//! So honest signers have the shares of one epoch, or those of the next at hand, whatever t-1 others, a manager and the broker
//! do. These can have a refresh begun, kept from beginning or cut off, at any step; and whoever chooses who sees the end of a
//! meeting can leave some honest signers with a frozen share that others sign with already, until t others do or all meet
//! again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tss_common::audit::{Event, NewShare};
use tss_common::bus::Address;
use tss_common::envelope::Signed;
use tss_common::intent::hash_fields;
use tss_common::session::{Operation, SessionContext};
use tss_common::wire::{
    self, Commitment, HEARTBEAT, Heartbeat, KeyAnnouncement, Notice, Refresh, RefreshStep, WireError,
};
use tss_mpc::rounds::{Protocol, Received, Round, RoundMachine, Turn, encode};
use tss_mpc::{
    Abort, Engine, Machine, Quorum, Recipient, RenewSetup, SessionId, SetupError, ShareDocument, SignerIndex,
    Threshold,
};

use crate::holding::{Held, Holding, Next};
use crate::journal::{Journal, JournalError};
use crate::report;
use crate::router::Router;
use crate::session::{self, Done, Party, Patience};
use crate::share_file::{Expected, ShareFile};

/// How long the others have to show their nonces. All are told at the same time.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long nobody says anything while all compute, at most: longer, and somebody is gone.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a refresh may take, whatever the manager says.
const MAX_REFRESH: Duration = Duration::from_secs(600);

/// How many notices may be on their way into the process at once.
const NOTICES_IN_FLIGHT: u16 = 256;

/// The longest heartbeat that is listened to, in bytes: those of all others must fit in one message.
const MAX_WORD: usize = 32 << 10;

/// How long an order waits while a share takes its place.
const TURN: Duration = Duration::from_secs(10);

/// How often what the disk or the bus did not take is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often what the others have stored is passed on in the long run.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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
    /// One for each order that may wait for its turn.
    pub(crate) orders: Semaphore,
    /// What the others had said when the share that this signer signs with took its place.
    pub(crate) stored: watch::Sender<Vec<Signed>>,
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
    /// All have the same next shares, or sign with them: these take the place of the old ones.
    Settle,
    /// All sign with the same shares, and not all have others: new ones can be made.
    Deal,
    /// Nothing can be done together. Says why.
    Stop(String),
}

impl Refresher {
    /// Takes part in a refresh, and says by steps how far it is.
    pub(crate) async fn take_part(&self, refresh: Refresh) {
        let last = self.holding.refresh();
        if last.as_ref().is_some_and(|last| last.id == refresh.id) {
            return tracing::debug!("a refresh came twice");
        }
        if last.is_some_and(|last| matches!(last.step, RefreshStep::Meeting | RefreshStep::Dealing)) {
            return tracing::warn!("a refresh is under way: another one does not begin");
        }
        let Ok(_place) = self.orders.try_acquire() else {
            return tracing::warn!("too many orders: one is dropped");
        };
        // Somebody else may be about to settle, which takes as long as the disk does.
        let Ok(mut last) = timeout(TURN, self.turn.lock()).await else {
            return tracing::warn!("a share is taking its place: no refresh begins");
        };
        let (file, end) = match self.begins(&refresh, *last).await {
            Ok(begins) => begins,
            Err(reason) => {
                tracing::warn!(%reason, "no refresh");
                // Whoever waits for one that has been stored wants to know of that one.
                if self.holding.next().is_none() {
                    self.holding.reach(refresh.id, RefreshStep::Failed(reason));
                }
                // However many there are: no more than that is told of them.
                return sleep(PAUSE).await;
            }
        };
        *last = Some(Instant::now());
        self.holding.reach(refresh.id, RefreshStep::Meeting);
        if let Err(reason) = self.go(&refresh, file, end).await {
            tracing::warn!(%reason, "the refresh ended early");
            self.holding.reach(refresh.id, RefreshStep::Failed(reason));
        }
    }

    async fn go(&self, refresh: &Refresh, file: &ShareFile, end: Instant) -> Result<(), String> {
        let held = &*self.holding.current();
        let ends = held.key.epoch == refresh.epoch;
        let quorum = Quorum::new(held.key.threshold.signers()).map_err(|error| error.to_string())?;
        let met = self.meet(refresh, held, &quorum, file, end).await?;
        match course(self.party.index(), refresh.epoch, &met.output) {
            Course::Settle => {
                if ends && let Some(next) = self.holding.next() {
                    self.settle(file, &next.held, Vec::new()).await?;
                }
                self.holding.reach(refresh.id, RefreshStep::Done);
                return Ok(());
            }
            Course::Deal => {}
            Course::Stop(reason) => return Err(reason),
        }
        if self.holding.next().is_some() {
            tracing::info!("a next share that not all signers have is removed");
            // Should the disk not say that it is gone, no meeting is gone to until it does.
            self.holding.discard();
            self.on_disk(file, ShareFile::discard_next).await?;
        }
        self.holding.reach(refresh.id, RefreshStep::Dealing);
        let Done { output: share, session } =
            self.deal(refresh, held, &quorum, met.session, file, end).await?;
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

    /// Whether this signer takes part: with which file, and until when. It knows what is on its disk then.
    async fn begins(
        &self,
        refresh: &Refresh,
        last: Option<Instant>,
    ) -> Result<(&ShareFile, Instant), String> {
        let (file, end) = self.check(refresh, &self.holding.current(), last)?;
        self.on_disk(file, ShareFile::check_writable).await?;
        self.look(file).await?;
        // There it may have found another epoch.
        self.check(refresh, &self.holding.current(), last)?;
        Ok((file, end))
    }

    /// Makes what this signer knows what is on its disk: it may have been told that something was not done which was.
    async fn look(&self, file: &ShareFile) -> Result<(), String> {
        let current = self.holding.current();
        let look = move |file: &ShareFile, expected: &Expected<'_>| {
            let commitment = |share: &ShareDocument| Commitment(report::commitment(share));
            let next = file.load_next(expected)?.map(|(next, frozen)| (commitment(&next), frozen));
            anyhow::Ok((commitment(&file.load(expected)?), next))
        };
        let (shares, next) = self.on_share(file, current.key.threshold, look).await?;
        let known = self.holding.next();
        if shares != current.commitment {
            let known = known.filter(|known| known.held.commitment == shares && next.is_none());
            let known = known.ok_or_else(|| format!("{file} has another share than it signs with"))?;
            let stored = file.load_stored().and_then(|words| serde_json::from_slice(&words).ok());
            return self.settle(file, &known.held, stored.unwrap_or_default()).await;
        }
        match (known, next) {
            (Some(known), Some((next, frozen))) if known.held.commitment == next => {
                if frozen && !known.frozen {
                    self.holding.freeze();
                }
            }
            (Some(_), Some(_)) => return Err(format!("beside {file} is another share than it has stored")),
            (Some(_), None) => self.holding.discard(),
            // It was never told of, or all know that it is not needed.
            (None, Some(_)) => self.on_disk(file, ShareFile::discard_next).await?,
            (None, None) => {}
        }
        Ok(())
    }

    /// Whether an order fits: with which file this signer takes part then, and until when.
    fn check(
        &self,
        refresh: &Refresh,
        held: &Held,
        last: Option<Instant>,
    ) -> Result<(&ShareFile, Instant), String> {
        let (cluster, key) = (&self.cluster, &held.key);
        if (&refresh.cluster, &refresh.key) != (cluster, &key.id) {
            return Err(format!("it holds key {} of cluster {cluster}, and no other", key.id));
        }
        // Whoever has settled already meets those who have not.
        if key.epoch != refresh.epoch && Some(key.epoch) != refresh.epoch.checked_add(1) {
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
        let file =
            self.file.as_ref().ok_or("its share is in no file, where a new one could take its place")?;
        Ok((file, Instant::now() + left.min(MAX_REFRESH)))
    }

    /// Tells the others which shares this signer has, and hears the same of them.
    async fn meet(
        &self,
        refresh: &Refresh,
        held: &Held,
        quorum: &Quorum,
        file: &ShareFile,
        end: Instant,
    ) -> Result<Done<BTreeMap<SignerIndex, Standing>>, String> {
        let index = self.party.index();
        let others: BTreeSet<SignerIndex> = quorum.others(index).collect();
        // What is to follow the epoch after this one is nobody's business here.
        let next = self.holding.next().filter(|_| held.key.epoch == refresh.epoch);
        let standing = Standing {
            epoch: held.key.epoch,
            shares: held.commitment,
            next: next.as_ref().map(|next| next.held.commitment),
        };
        let before = async {
            if next.is_some_and(|next| !next.frozen) {
                self.on_disk(file, ShareFile::freeze).await?;
                self.holding.freeze();
            }
            Ok(())
        };
        let begin = move |_| {
            let rounds = vec![Round::broadcast(others.iter().copied())];
            let machine = RoundMachine::new(Meeting(index, standing), index, others, rounds);
            Ok(Box::new(machine) as Box<dyn Machine<Output = BTreeMap<SignerIndex, Standing>>>)
        };
        self.session(refresh, None, quorum, end, before, begin).await
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
        let document = self.on_share(file, threshold, ShareFile::load).await?;
        let engine = self.engine.clone();
        let begin = move |session| {
            engine.renew(
                RenewSetup { session, cluster, key, index, epoch, dealers, threshold },
                Some(&document),
            )
        };
        self.session(refresh, Some(meeting), quorum, end, async { Ok(()) }, begin).await
    }

    /// What the signers of a session have to agree on.
    fn intent(session: &str, refresh: &Refresh, after: Option<SessionId>) -> [u8; 32] {
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

    /// Runs the meeting, or the session `after` it. `before` is done when all are there, and nothing has been told.
    async fn session<T: Send + 'static>(
        &self,
        refresh: &Refresh,
        after: Option<SessionId>,
        quorum: &Quorum,
        end: Instant,
        before: impl Future<Output = Result<(), String>>,
        begin: impl FnOnce(SessionId) -> Result<Box<dyn Machine<Output = T>>, SetupError> + Send + 'static,
    ) -> Result<Done<T>, String> {
        let (number, session) = if after.is_none() { (MEETING, "meeting") } else { (DEALING, "dealing") };
        let context = SessionContext {
            operation: Operation::Renew,
            cluster: &refresh.cluster,
            key: &refresh.key,
            epoch: refresh.epoch.checked_add(1).ok_or("there is no later epoch")?,
            engine: self.engine.id(),
            request: refresh.id,
            attempt: number,
            quorum,
            intent: Self::intent(session, refresh, after),
        };
        let slot = (refresh.id, number);
        let messages = self.router.open(slot).ok_or("it took part in it before")?;
        let join = end.min(Instant::now() + JOIN_TIMEOUT);
        let patience = Patience { join, end, rejoin: None, silence: Some(SILENCE) };
        let claim = |session| async move {
            before.await.map_err(JournalError::Disk)?;
            self.journal.begin(session, Vec::new()).await
        };
        let result = session::run(&self.party, &context, patience, messages, claim, begin).await;
        self.router.close(slot);
        result.map_err(|failure| failure.abort.to_string())
    }

    /// Does something with a share file, with what it must hold.
    async fn on_share<T: Send + 'static, E: fmt::Display + Send + 'static>(
        &self,
        file: &ShareFile,
        threshold: Threshold,
        work: impl FnOnce(&ShareFile, &Expected<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, String> {
        let (cluster, key) = (self.cluster.clone(), self.holding.current().key.id.clone());
        let index = self.party.index();
        self.on_disk(file, move |file| {
            work(file, &Expected { cluster: &cluster, key: &key, index, threshold })
        })
        .await
    }

    async fn on_disk<T: Send + 'static, E: fmt::Display + Send + 'static>(
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

    /// Puts the next share in the place of the one that is there; `stored` is what the others have said, for those who
    /// have not heard it.
    async fn settle(&self, file: &ShareFile, next: &Held, stored: Vec<Signed>) -> Result<(), String> {
        let words = serde_json::to_vec(&stored).map_err(|error| error.to_string())?;
        let commitment = next.commitment;
        let settle =
            move |file: &ShareFile, expected: &Expected<'_>| file.settle(expected, commitment, &words);
        self.on_share(file, next.key.threshold, settle).await?;
        let KeyAnnouncement { id, epoch, .. } = &next.key;
        let settled = Event::Settled { key: id.clone(), epoch: *epoch };
        if let Err(error) = self.journal.hold(*epoch, vec![settled]).await {
            tracing::error!(%error, "the epoch is written down at the next start");
        }
        self.stored.send_replace(stored);
        self.party.metrics.key(id, *epoch);
        tracing::info!(epoch, "the next share is in its place");
        self.holding.settle();
        Ok(())
    }

    /// Settles as soon as others have said enough.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let Some(file) = &self.file else { return };
        let mut changes = self.holding.changes();
        loop {
            changes.borrow_and_update();
            let waiting = self.holding.next();
            let same = |next: &Option<Next>| {
                let what = |next: &Next| (next.held.commitment, next.frozen);
                next.as_ref().map(what) == waiting.as_ref().map(what)
            };
            let enough = async {
                match &waiting {
                    Some(next) => self.until_enough(next).await,
                    None => std::future::pending().await,
                }
            };
            let other = async {
                // The sender lives as long as `self`.
                while changes.changed().await.is_ok() && same(&self.holding.next()) {}
            };
            let heard = tokio::select! {
                heard = enough => heard,
                () = other => continue,
                () = stop.cancelled() => return,
            };
            let Some(heard) = heard else {
                sleep(PAUSE).await;
                continue;
            };
            let _turn = self.turn.lock().await;
            // A meeting may have come in between.
            let next = self.holding.next();
            if same(&next)
                && let Some(next) = next
                && let Err(error) = self.settle(file, &next.held, heard).await
            {
                tracing::error!(%error, "the next share is not in its place yet");
                sleep(PAUSE).await;
            }
        }
    }

    /// Waits until it is certain that no honest signer removes these shares, and yields what the others have said:
    /// every other signer that it has stored them, unless they are frozen; or t others that they sign with them. `None` when the
    /// bus is closed.
    async fn until_enough(&self, Next { held, frozen }: &Next) -> Option<Vec<Signed>> {
        let threshold = held.key.threshold;
        let (others, t) = (usize::from(threshold.n()) - 1, usize::from(threshold.t()));
        let (mut stored, mut settled) = (BTreeMap::new(), BTreeMap::new());
        let mut notices = self.party.bus.subscribe(Address::Presence, NOTICES_IN_FLIGHT).await.ok()?;
        loop {
            let delivery = notices.recv().await?;
            // Anybody can write there, and most of it is for managers.
            let words = match wire::from_json(&delivery.body) {
                Ok(Notice::Heartbeat(word)) => vec![word],
                Ok(Notice::Stored(words)) if words.len() <= others => words,
                _ => Vec::new(),
            };
            for word in words {
                let Ok(heartbeat) = self.read(&word, threshold) else { continue };
                if heartbeat.shares == Some(held.commitment) {
                    settled.insert(heartbeat.signer, word.clone());
                }
                if [heartbeat.shares, heartbeat.next].contains(&Some(held.commitment)) {
                    stored.insert(heartbeat.signer, word);
                }
            }
            delivery.ack();
            if !frozen && stored.len() == others {
                return Some(stored.into_values().collect());
            }
            if settled.len() >= t {
                return Some(settled.into_values().collect());
            }
        }
    }

    /// What another signer of the key said of itself. It does not matter how long ago.
    fn read(&self, word: &Signed, threshold: Threshold) -> Result<Heartbeat, WireError> {
        if word.body.len() > MAX_WORD {
            return Err(WireError::Malformed(format!("a heartbeat of {} bytes", word.body.len())));
        }
        let heartbeat: Heartbeat = self.party.endpoint.reader().open(word)?;
        let signer = heartbeat.signer;
        if signer != word.signer || signer == self.party.index() || !threshold.contains(signer) {
            return Err(WireError::Forged(signer));
        }
        Ok(heartbeat)
    }

    /// Passes on what the others had said when this signer settled, often at first: one of them may not have heard it, and
    /// another never say it again.
    pub(crate) async fn pass_on(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.stored.subscribe();
        let mut pause = HEARTBEAT;
        loop {
            let stored = changes.borrow_and_update().clone();
            if !stored.is_empty() {
                let lost = "what the others have stored was not passed on";
                self.party.tell(Ok(Notice::Stored(stored)), lost).await;
            }
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                // The sender lives as long as `self`.
                _ = changes.changed() => pause = HEARTBEAT,
                () = stop.cancelled() => return,
            }
        }
    }
}

/// What follows from what all signers have said when this epoch was to end.
fn course(me: SignerIndex, ends: u64, met: &BTreeMap<SignerIndex, Standing>) -> Course {
    let Some(own) = met.get(&me) else { return Course::Stop("it was not at the meeting".into()) };
    let later = if own.epoch == ends { own.next } else { Some(own.shares) };
    if let Some(later) = later
        && met.values().all(|other| other.next == Some(later) || other.shares == later)
    {
        return Course::Settle;
    }
    let other = met.iter().find(|(_, other)| (other.epoch, other.shares) != (own.epoch, own.shares));
    match other {
        None => Course::Deal,
        Some((signer, Standing { epoch, .. })) => Course::Stop(format!(
            "signer {signer} signs with other shares, of epoch {epoch}: expected those of epoch {}, as here, or all to have \
             the same next ones",
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

    fn standing(epoch: u64, shares: Commitment, next: Option<Commitment>) -> Standing {
        Standing { epoch, shares, next }
    }

    /// What follows for signer 1 when the signers have these, and epoch 4 was to end.
    fn course_of(met: [Standing; 3]) -> Course {
        course(index(1), 4, &(1..).map(index).zip(met).collect())
    }

    #[test]
    fn only_what_all_have_takes_the_place_of_the_old() {
        let of = |next: [Option<Commitment>; 3]| course_of(next.map(|next| standing(4, OLD, next)));
        assert_eq!(of([Some(NEW); 3]), Course::Settle);
        for one_differs in [
            [None; 3],
            [Some(NEW), None, None],
            [Some(NEW), Some(NEW), None],
            [None, Some(NEW), Some(NEW)],
            [Some(NEW), Some(NEW), Some(OTHER)],
        ] {
            assert_eq!(of(one_differs), Course::Deal, "{one_differs:?}");
        }
    }

    #[test]
    fn those_who_have_settled_and_those_who_have_not_come_to_the_same() {
        let (before, after) = (standing(4, OLD, Some(NEW)), standing(5, NEW, None));
        for met in
            [[before.clone(), after.clone(), before.clone()], [after.clone(), before.clone(), after.clone()]]
        {
            assert_eq!(course_of(met), Course::Settle);
        }
        // Nothing is made, nor anything removed, where one signs with other shares.
        let without = standing(4, OLD, None);
        for met in [
            [before.clone(), after.clone(), without.clone()],
            [without.clone(), after.clone(), before.clone()],
            [after.clone(), before, without.clone()],
            [without.clone(), without.clone(), standing(4, OTHER, None)],
            [without.clone(), without, standing(5, OLD, None)],
            [after.clone(), after.clone(), standing(5, OTHER, None)],
        ] {
            let course = course_of(met.clone());
            assert!(matches!(course, Course::Stop(_)), "{course:?} of {met:?}");
        }
        assert_eq!(course_of([after.clone(), after.clone(), after]), Course::Settle);
        assert!(matches!(course(index(1), 4, &BTreeMap::new()), Course::Stop(_)));
    }
}
