//! Leader election: of several operators one works, and the others stand by.
//!
//! The lock is a Lease of Kubernetes. What makes it safe:
//!
//! - Every write is a replacement of exactly the version that was read, so of two operators that take a
//!   Lease at once one gets a conflict.
//! - No clock is compared with another machine's. An operator that stands by takes a Lease when *it* has seen
//!   no change of it for the Lease's duration; the times in the Lease are for people.
//! - The holder counts from before it sent its last renewal, so its time is over earlier than anyone
//!   else's count. It stops its work at two thirds of the duration, and at five sixths nothing of it can
//!   write any more: see [`Fence`].
//! - An operator that lost its Lease ends its process. Whatever it had in memory is gone with it, and its
//!   Pod begins anew.
//!
//! What no Lease can do: a request that was sent in time may arrive late. Whatever the controllers write
//! must bear that, as server-side apply and a request's idempotency key do. And the clock of the system
//! (CLOCK_MONOTONIC) must not stand still: it does while a virtual machine is suspended.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::http::Request;
use futures::TryFutureExt as _;
use futures::future::{Either, ErrInto, Ready, ready};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::{BoxError, Layer, Service};

use crate::context::FIELD_MANAGER;

/// The name of the operators' Lease.
pub const NAME: &str = "tss-network-operator";

/// Lets requests of a client pass only while this operator holds the Lease. A process that was stopped for
/// a while and goes on would otherwise write before it notices that its time is over.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    fn open_until(&self, end: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether requests pass.
    pub fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|end| Instant::now() < end)
    }
}

impl<S> Layer<S> for Fence {
    type Service = Fenced<S>;

    fn layer(&self, inner: S) -> Fenced<S> {
        Fenced { fence: self.clone(), inner }
    }
}

/// A client's service behind a [`Fence`].
#[derive(Clone, Debug)]
pub struct Fenced<S> {
    fence: Fence,
    inner: S,
}

impl<S, B> Service<Request<B>> for Fenced<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Either<Ready<Result<S::Response, BoxError>>, ErrInto<S::Future, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.fence.is_open() {
            Either::Right(self.inner.call(request).err_into())
        } else {
            Either::Left(ready(Err("this operator does not hold the Lease".into())))
        }
    }
}

/// One operator's part in the election.
pub struct Election {
    /// Its client is not behind the fence.
    leases: Api<Lease>,
    /// Nobody else's and no earlier process's, or two would take themselves for the holder.
    identity: String,
    duration: Duration,
    fence: Fence,
}

/// A Lease that this operator holds.
struct Held {
    lease: Lease,
    /// Before the last renewal was sent.
    since: Instant,
}

/// Why a Lease was not renewed.
#[derive(Debug, thiserror::Error)]
enum NotRenewed {
    #[error("{0} has taken the Lease")]
    Taken(String),
    #[error("the Lease was deleted")]
    Deleted,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl Election {
    /// An operator of this name that takes part, for Leases of so many seconds. While it leads, requests pass
    /// the fence.
    pub fn new(leases: Api<Lease>, name: &str, seconds: u16, fence: Fence) -> Self {
        Self {
            leases,
            identity: format!("{name}_{}", uuid::Uuid::new_v4()),
            duration: Duration::from_secs(seconds.into()),
            fence,
        }
    }

    /// When the Lease is renewed, after the last time.
    fn renewal(&self) -> Duration {
        self.duration / 3
    }

    /// When the work is told to stop, after the last renewal.
    fn give_up(&self) -> Duration {
        self.duration * 2 / 3
    }

    /// When nothing is written any more, after the last renewal. The rest is for clocks that do not run equally
    /// fast, and for requests on their way.
    fn end(&self) -> Duration {
        self.duration * 5 / 6
    }

    /// How long a request to the API server may take, and how long an operator that stands by waits between two
    /// looks. Two fit between the renewal and giving up.
    fn pause(&self) -> Duration {
        self.duration / 6
    }

    /// Waits until this operator leads, does the work, and lets others lead when the work is over. The work ends
    /// when its token is cancelled, after `stop` or because the Lease is lost.
    ///
    /// # Errors
    /// When the work failed, or the Lease was lost: the process must end then.
    pub async fn lead<F>(
        &self,
        stop: CancellationToken,
        work: impl FnOnce(CancellationToken) -> F,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let Some(mut held) = self.acquire(&stop).await else { return Ok(()) };
        tracing::info!(identity = self.identity, "this operator leads");
        let token = stop.child_token();
        let mut work = std::pin::pin!(work(token.clone()));
        let lost = tokio::select! {
            result = &mut work => Ok(result),
            // Also while the work comes to its end after `stop`: until then nobody else may begin.
            error = self.keep(&mut held) => Err(error),
        };
        match lost {
            Ok(result) => {
                self.fence.close();
                self.release(held).await;
                result
            }
            Err(error) => {
                token.cancel();
                let in_time = timeout_at(held.since + self.end(), work).await.is_ok();
                self.fence.close();
                let how = if in_time { "its work has stopped" } else { "its work did not stop in time" };
                Err(error).with_context(|| format!("this operator leads no more, {how}"))
            }
        }
    }

    /// Waits for the Lease; `None` when `stop` came first.
    async fn acquire(&self, stop: &CancellationToken) -> Option<Held> {
        let mut observer = Observer::default();
        let mut told = None;
        while !stop.is_cancelled() {
            let wait = match timeout(self.pause(), self.leases.get_opt(NAME)).await {
                Ok(Ok(None)) => match self.create().await {
                    Some(held) => {
                        return tokio::select! {
                            held = self.settle(held) => held,
                            () = stop.cancelled() => None,
                        };
                    }
                    None => self.pause(),
                },
                Ok(Ok(Some(lease))) => {
                    match observer.look(&lease, &self.identity, self.duration, Instant::now()) {
                        Look::Free => match self.take(lease).await {
                            Some(held) => return Some(held),
                            None => self.pause(),
                        },
                        Look::Held { by, until } => {
                            if told.as_ref() != Some(&by) {
                                tracing::info!(leader = by, "this operator stands by");
                                told = Some(by);
                            }
                            self.pause().min(until - Instant::now())
                        }
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the Lease cannot be read");
                    self.pause()
                }
                Err(_) => Duration::ZERO, // it has waited already
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        None
    }

    /// Makes the Lease.
    async fn create(&self) -> Option<Held> {
        let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
        let mut lease = Lease { metadata, spec: None };
        self.claim(&mut lease);
        self.write("create", |params| async move { self.leases.create(&params, &lease).await }).await
    }

    /// After a Lease was made: there was none yet, or someone has deleted it under a leader that learns of it
    /// only when it renews. So this operator leads when it has held it for its duration.
    async fn settle(&self, mut held: Held) -> Option<Held> {
        match timeout(self.duration, self.keep(&mut held)).await {
            Err(_) => Some(held),
            Ok(error) => {
                tracing::warn!(error = &*error, "the new Lease was lost");
                None
            }
        }
    }

    /// Takes a Lease that is free, if nobody else was faster.
    async fn take(&self, mut lease: Lease) -> Option<Held> {
        self.claim(&mut lease);
        let spec = lease.spec.get_or_insert_default();
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        self.write("take", |params| async move { self.leases.replace(NAME, &params, &lease).await }).await
    }

    fn claim(&self, lease: &mut Lease) {
        let now = Some(MicroTime(Timestamp::now()));
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(self.duration.as_secs()).ok();
        spec.acquire_time.clone_from(&now);
        spec.renew_time = now;
    }

    async fn write<F: Future<Output = kube::Result<Lease>>>(
        &self,
        what: &'static str,
        write: impl FnOnce(PostParams) -> F,
    ) -> Option<Held> {
        let since = Instant::now();
        match timeout(self.pause(), write(params())).await {
            Ok(Ok(lease)) => {
                self.fence.open_until(since + self.end());
                return Some(Held { lease, since });
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                tracing::debug!(what, "another operator was faster");
            }
            Ok(Err(error)) => {
                tracing::warn!(what, error = &error as &dyn std::error::Error, "the Lease cannot be written");
            }
            // If it was written all the same, the next look finds it this operator's own.
            Err(_) => tracing::warn!(what, "the API server has not answered in time"),
        }
        None
    }

    /// Renews the Lease until that fails; says why it did.
    async fn keep(&self, held: &mut Held) -> anyhow::Error {
        let mut next = held.since + self.renewal();
        loop {
            let give_up = held.since + self.give_up();
            let mut problem = "its machine was too slow".to_owned();
            let renewed = timeout_at(give_up, async {
                loop {
                    sleep_until(next).await;
                    // A request that has waited its time out need not wait again.
                    let wait = match timeout(self.pause(), self.renew(held)).await {
                        Ok(Ok(())) => return Ok(()),
                        Ok(Err(NotRenewed::Api(error))) => {
                            problem = error.to_string();
                            self.pause() / 2
                        }
                        Ok(Err(lost)) => return Err(lost),
                        Err(_) => {
                            problem = "the API server has not answered in time".into();
                            Duration::ZERO
                        }
                    };
                    tracing::warn!(error = problem, "the Lease is not renewed yet");
                    next = Instant::now() + wait;
                }
            })
            .await;
            match renewed {
                Ok(Ok(())) => next = held.since + self.renewal(),
                Ok(Err(lost)) => {
                    // Nobody should have done that before this operator's time was over. What the other writes stands.
                    self.fence.close();
                    return lost.into();
                }
                Err(_) => {
                    return anyhow::anyhow!(
                        "the Lease could not be renewed for {:?}: {problem}",
                        self.give_up()
                    );
                }
            }
        }
    }

    async fn renew(&self, held: &mut Held) -> Result<(), NotRenewed> {
        loop {
            let since = Instant::now();
            let mut lease = held.lease.clone();
            lease.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
            match self.leases.replace(NAME, &params(), &lease).await {
                Ok(lease) => {
                    // Before this the time of a process that was stopped meanwhile may be over, and another may hold
                    // the Lease by now. The fence stays closed then.
                    *held = Held { lease, since };
                    self.fence.open_until(since + self.end());
                    return Ok(());
                }
                // Someone has written something else into it, or an answer got lost.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(kube::Error::Api(status)) if status.code == 404 => return Err(NotRenewed::Deleted),
                Err(error) => return Err(error.into()),
            }
            let lease = self.leases.get_opt(NAME).await?.ok_or(NotRenewed::Deleted)?;
            if holder(&lease) != Some(&self.identity) {
                return Err(NotRenewed::Taken(holder(&lease).unwrap_or("nobody").into()));
            }
            held.lease = lease;
        }
    }

    /// Lets others lead at once. If it fails they wait until the Lease has lapsed.
    async fn release(&self, mut held: Held) {
        let release = async {
            loop {
                held.lease.spec.get_or_insert_default().holder_identity = Some(String::new());
                match self.leases.replace(NAME, &params(), &held.lease).await {
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    result => return result.map(drop).context("the Lease cannot be written"),
                }
                held.lease = self.leases.get(NAME).await.context("the Lease cannot be read")?;
                if holder(&held.lease) != Some(&self.identity) {
                    bail!("another holds the Lease");
                }
            }
        };
        match timeout(self.renewal(), release).await {
            Ok(Ok(())) => tracing::info!("another operator may lead"),
            Ok(Err(error)) => tracing::warn!(error = &*error, "the Lease is not released"),
            Err(_) => tracing::warn!("the Lease is not released: the API server has not answered in time"),
        }
    }
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

/// Whose Lease it is.
fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

/// What an operator that does not hold the Lease has seen of it.
#[derive(Default)]
struct Observer {
    /// The version it has now, and when that was first seen.
    seen: Option<(Option<String>, Instant)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// It may be taken.
    Free,
    /// It may not, unless nothing changes until then.
    Held { by: String, until: Instant },
}

impl Observer {
    fn look(&mut self, lease: &Lease, identity: &str, duration: Duration, now: Instant) -> Look {
        let version = lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => now,
        };
        self.seen = Some((version, since));
        // Its own, when the answer to taking it was lost: it is taken again, which renews it.
        let Some(by) = holder(lease).filter(|holder| *holder != identity) else { return Look::Free };
        // The holder's own word for how long it works without a renewal.
        let until = since + lease.spec.as_ref().and_then(duration_of).unwrap_or(duration);
        if now < until { Look::Held { by: by.into(), until } } else { Look::Free }
    }
}

fn duration_of(spec: &LeaseSpec) -> Option<Duration> {
    let seconds = u64::try_from(spec.lease_duration_seconds?).ok()?;
    // Someone's nonsense must not stop everyone for ever.
    Some(Duration::from_secs(seconds.min(3600)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    use axum::body::Body;
    use axum::http::{Method, Response};
    use kube::Client;
    use serde_json::{Value, json};
    use tokio::task::JoinHandle;
    use tower::service_fn;

    use super::*;

    const SECONDS: u16 = 15;
    const DURATION: Duration = Duration::from_secs(SECONDS as u64);
    /// The longest time between two looks of an operator that stands by, and a bit.
    const LOOK: Duration = Duration::from_millis(2600);

    fn lease(holder: Option<&str>, version: u32, seconds: i32) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_string()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(Into::into),
                lease_duration_seconds: Some(seconds),
                ..LeaseSpec::default()
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_free_when_nobody_has_it_or_nothing_changed_for_its_duration() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let held = |until| Look::Held { by: "other".into(), until: after(until) };
        let mut observer = Observer::default();
        let mut look = |holder, version, seconds, at| {
            observer.look(&lease(holder, version, seconds), "me", DURATION, after(at))
        };
        assert_eq!(look(None, 1, 15, 0), Look::Free);
        assert_eq!(look(Some(""), 2, 15, 0), Look::Free);
        assert_eq!(look(Some("me"), 3, 15, 0), Look::Free);
        // However old the Lease is: this operator has only now seen it.
        assert_eq!(look(Some("other"), 4, 15, 100), held(115));
        assert_eq!(look(Some("other"), 4, 15, 114), held(115));
        // A change begins the count anew, whatever it was.
        assert_eq!(look(Some("other"), 5, 15, 114), held(129));
        assert_eq!(look(Some("other"), 5, 15, 129), Look::Free);
        // The holder's own duration counts.
        assert_eq!(look(Some("other"), 6, 60, 200), held(260));
        assert_eq!(look(Some("other"), 7, i32::MAX, 200), held(3800));
        assert_eq!(look(Some("other"), 8, -1, 200), held(215));
    }

    /// An API server that has one Lease, and does what API servers do with resourceVersions.
    #[derive(Clone, Default)]
    struct Api1(Arc<Mutex<Stored>>);

    #[derive(Default)]
    struct Stored {
        lease: Option<Value>,
        version: u64,
        writes: usize,
    }

    /// What is between an operator and the API server.
    #[derive(Clone, Default)]
    struct Wire {
        cut: Arc<AtomicBool>,
        /// Requests arrive, answers do not.
        deaf: Arc<AtomicBool>,
        delay_ms: Arc<AtomicU64>,
    }

    impl Api1 {
        fn answer(&self, method: &Method, body: &[u8]) -> (u16, Value) {
            let mut stored = self.0.lock().expect("a lock");
            let status = |code: u16, reason: &str| {
                (
                    code,
                    json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": ""}),
                )
            };
            let mut sent: Value = serde_json::from_slice(body).unwrap_or_default();
            match (method.as_str(), &stored.lease) {
                ("GET", Some(lease)) => return (200, lease.clone()),
                ("GET" | "PUT", None) => return status(404, "NotFound"),
                ("POST", Some(_)) => return status(409, "AlreadyExists"),
                ("PUT", Some(lease))
                    if sent["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"] =>
                {
                    assert!(sent["metadata"]["resourceVersion"].is_string(), "a blind write: {sent}");
                    return status(409, "Conflict");
                }
                ("POST", None) | ("PUT", Some(_)) => {}
                other => panic!("{other:?}"),
            }
            stored.version += 1;
            stored.writes += 1;
            sent["metadata"]["resourceVersion"] = stored.version.to_string().into();
            stored.lease = Some(sent.clone());
            (200, sent)
        }

        fn holder(&self) -> Option<String> {
            let stored = self.0.lock().expect("a lock");
            let holder = stored.lease.as_ref()?["spec"]["holderIdentity"].as_str()?;
            Some(holder.split('_').next()?.into()).filter(|name: &String| !name.is_empty())
        }

        fn client(&self, wire: &Wire) -> Client {
            let (api, wire) = (self.clone(), wire.clone());
            let service = service_fn(move |request: Request<kube::client::Body>| {
                let (api, wire) = (api.clone(), wire.clone());
                async move {
                    if wire.cut.load(Ordering::SeqCst) {
                        return std::future::pending().await;
                    }
                    let (parts, body) = request.into_parts();
                    let body = body.collect_bytes().await?;
                    let delay = Duration::from_millis(wire.delay_ms.load(Ordering::SeqCst));
                    sleep(delay / 2).await;
                    let (code, answer) = api.answer(&parts.method, &body);
                    sleep(delay / 2).await;
                    if wire.deaf.load(Ordering::SeqCst) {
                        return std::future::pending().await;
                    }
                    Ok::<_, BoxError>(Response::builder().status(code).body(Body::from(answer.to_string()))?)
                }
            });
            Client::new(service, "tss-network")
        }
    }

    /// How many work at the same moment; never two.
    #[derive(Clone, Default)]
    struct Workers {
        now: Arc<AtomicUsize>,
        begun: Arc<AtomicUsize>,
    }

    struct Operator {
        wire: Wire,
        fence: Fence,
        stop: CancellationToken,
        task: JoinHandle<anyhow::Result<()>>,
    }

    impl Operator {
        fn start(name: &str, api: &Api1, workers: &Workers, ending: Duration) -> Self {
            let wire = Wire::default();
            let fence = Fence::default();
            let stop = CancellationToken::new();
            let election = Election::new(
                Api::namespaced(api.client(&wire), "tss-network"),
                name,
                SECONDS,
                fence.clone(),
            );
            let (workers, token, inside) = (workers.clone(), stop.clone(), fence.clone());
            let task = tokio::spawn(async move {
                election
                    .lead(token, |stop| async move {
                        assert_eq!(workers.now.fetch_add(1, Ordering::SeqCst), 0, "two work at once");
                        assert!(inside.is_open());
                        workers.begun.fetch_add(1, Ordering::SeqCst);
                        let counted = Counted(workers.now);
                        stop.cancelled().await;
                        sleep(ending).await;
                        drop(counted);
                        Ok(())
                    })
                    .await
            });
            Self { wire, fence, stop, task }
        }
    }

    struct Counted(Arc<AtomicUsize>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_hands_over_when_it_is_stopped() {
        let (api, workers) = (Api1::default(), Workers::default());
        let begun = || workers.begun.load(Ordering::SeqCst);
        let first = Operator::start("first", &api, &workers, Duration::from_secs(20));
        sleep(Duration::from_millis(10)).await;
        let second = Operator::start("second", &api, &workers, Duration::ZERO);
        // A Lease that is new is held for its duration first.
        sleep(DURATION - Duration::from_millis(20)).await;
        assert_eq!(begun(), 0);
        sleep(Duration::from_millis(20)).await;
        assert_eq!((begun(), api.holder().as_deref()), (1, Some("first")));
        sleep(Duration::from_secs(3600)).await;
        assert_eq!((begun(), api.holder().as_deref()), (1, Some("first")));

        // It goes on renewing while its work comes to an end, which takes longer than the Lease.
        first.stop.cancel();
        sleep(Duration::from_secs(19)).await;
        assert_eq!((begun(), first.fence.is_open()), (1, true));
        sleep(Duration::from_secs(1) + LOOK).await;
        first.task.await.expect("no panic").expect("no error");
        assert!(!first.fence.is_open());
        assert_eq!((begun(), api.holder().as_deref()), (2, Some("second")));

        second.stop.cancel();
        second.task.await.expect("no panic").expect("no error");
        assert_eq!(api.holder(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_without_the_api_server_stops_before_another_begins() {
        for deaf in [false, true] {
            // A work that ends at once, one that takes its time, and one that does not end.
            for ending in [0, 2, 3600].map(Duration::from_secs) {
                let (api, workers) = (Api1::default(), Workers::default());
                let first = Operator::start("first", &api, &workers, ending);
                sleep(DURATION + LOOK).await;
                let second = Operator::start("second", &api, &workers, Duration::ZERO);
                sleep(Duration::from_secs(60)).await;
                assert_eq!(api.holder().as_deref(), Some("first"));
                if deaf { &first.wire.deaf } else { &first.wire.cut }.store(true, Ordering::SeqCst);
                let cut = Instant::now();
                let error = first.task.await.expect("no panic").expect_err("it leads no more");
                assert!(!first.fence.is_open());
                let text = format!("{error:#}");
                let expected =
                    if ending > DURATION { "did not stop in time" } else { "its work has stopped" };
                assert!(text.contains(expected) && text.contains("could not be renewed"), "{text}");
                assert!(cut.elapsed() < DURATION * 5 / 6 + Duration::from_millis(10), "{:?}", cut.elapsed());
                assert_eq!(workers.begun.load(Ordering::SeqCst), 1);
                // The other counts from the last change that it has seen.
                sleep(DURATION * 2 + LOOK).await;
                assert_eq!(workers.begun.load(Ordering::SeqCst), 2);
                assert_eq!(api.holder().as_deref(), Some("second"));
                second.stop.cancel();
                second.task.await.expect("no panic").expect("no error");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_or_shortly_absent_api_server_costs_nothing() {
        let (api, workers) = (Api1::default(), Workers::default());
        let first = Operator::start("first", &api, &workers, Duration::ZERO);
        let _second = Operator::start("second", &api, &workers, Duration::ZERO);
        sleep(DURATION + LOOK).await;
        let leader = api.holder();
        first.wire.delay_ms.store(2000, Ordering::SeqCst);
        sleep(Duration::from_secs(600)).await;
        for _ in 0..20 {
            first.wire.cut.store(true, Ordering::SeqCst);
            sleep(Duration::from_millis(2400)).await;
            first.wire.cut.store(false, Ordering::SeqCst);
            sleep(Duration::from_secs(9)).await;
        }
        assert_eq!(api.holder(), leader);
        assert_eq!(workers.begun.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_that_see_a_free_lease_at_once_one_takes_it() {
        let (api, workers) = (Api1::default(), Workers::default());
        let names: Vec<String> = (0..20).map(|number| format!("operator{number}")).collect();
        let operators: Vec<_> =
            names.iter().map(|name| Operator::start(name, &api, &workers, Duration::ZERO)).collect();
        for operator in &operators {
            operator.wire.delay_ms.store(100, Ordering::SeqCst);
        }
        sleep(DURATION * 2).await;
        for round in 1..=5 {
            assert_eq!(workers.begun.load(Ordering::SeqCst), round);
            let leader = api.holder().expect("a leader");
            let at = names.iter().position(|name| *name == leader).expect("one of them");
            operators[at].stop.cancel();
            sleep(DURATION).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_taken_by_force_or_deleted_ends_the_leader() {
        for deleted in [false, true] {
            let (api, workers) = (Api1::default(), Workers::default());
            let first = Operator::start("first", &api, &workers, Duration::from_secs(1));
            sleep(DURATION + LOOK).await;
            {
                let mut stored = api.0.lock().expect("a lock");
                if deleted {
                    stored.lease = None;
                } else if let Some(lease) = &mut stored.lease {
                    lease["spec"]["holderIdentity"] = "someone".into();
                    lease["metadata"]["resourceVersion"] = "1000".into();
                }
            }
            // It may begin as soon as it likes: it waits.
            let _second = Operator::start("second", &api, &workers, Duration::ZERO);
            let error = first.task.await.expect("no panic").expect_err("it leads no more");
            let expected = if deleted { "the Lease was deleted" } else { "someone has taken the Lease" };
            let ours = if deleted { "second" } else { expected };
            let text = format!("{error:#}");
            assert!(text.contains(expected) || text.contains(ours), "{text}");
            assert!(!first.fence.is_open());
            sleep(DURATION * 2).await;
            assert_eq!(api.holder().as_deref(), Some("second"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_others_write_into_the_lease_does_not_end_the_leader() {
        let (api, workers) = (Api1::default(), Workers::default());
        let first = Operator::start("first", &api, &workers, Duration::ZERO);
        sleep(DURATION + LOOK).await;
        let before = api.0.lock().expect("a lock").writes;
        if let Some(lease) = &mut api.0.lock().expect("a lock").lease {
            lease["metadata"]["labels"] = json!({"mine": "yes"});
            lease["metadata"]["resourceVersion"] = "1000".into();
        }
        sleep(DURATION).await;
        assert_eq!(api.holder().as_deref(), Some("first"));
        let stored = api.0.lock().expect("a lock");
        assert_eq!(stored.writes - before, 3);
        assert_eq!(stored.lease.as_ref().expect("a Lease")["metadata"]["labels"]["mine"], "yes");
        drop(stored);
        assert!(!first.task.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_pass_the_fence_only_in_time() {
        let fence = Fence::default();
        let mut service = fence.layer(service_fn(|_: Request<()>| async { Ok::<_, BoxError>("answer") }));
        let mut call = || service.call(Request::new(()));
        assert!(call().await.is_err());
        fence.open_until(Instant::now() + Duration::from_secs(1));
        assert_eq!(call().await.expect("it passes"), "answer");
        sleep(Duration::from_secs(1)).await;
        assert!(call().await.is_err());
        fence.open_until(Instant::now() + Duration::from_secs(1));
        fence.close();
        assert_eq!(
            call().await.expect_err("it does not").to_string(),
            "this operator does not hold the Lease"
        );
    }
}
