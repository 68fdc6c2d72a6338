//! A steady load, by clients that do what a careful caller does: go to the other manager when one does
//! not answer or cannot serve, repeat under the same idempotency key, and wait for the end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How many requests begin in a second, half of them at each manager. What two shared cores carry in a
/// development build, beside the servers, with some to spare for what piled up during a fault.
pub(crate) const RATE: u32 = 6;

/// For how long a client asks for a request to be accepted.
const SUBMIT_FOR: Duration = Duration::from_secs(60);

/// How long a client waits for one answer.
const ANSWER: Duration = Duration::from_secs(15);

/// The pause after neither manager could serve, as their `Retry-After` asks for.
const PAUSE: Duration = Duration::from_secs(1);

/// How a request ended, as its client was told.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// With this signature.
    Signed(Value),
    /// Without one, for this reason.
    Failed(String),
    /// With an answer that there should never be.
    Wrong(String),
}

/// What became of one request.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) message: String,
    pub(crate) idempotency_key: String,
    pub(crate) began: Instant,
    /// Under which id, by which manager and when it was acknowledged.
    pub(crate) accepted: Option<(Uuid, usize, Instant)>,
    pub(crate) ended: Option<(Answer, Instant)>,
    /// No manager would take it for a long time.
    pub(crate) given_up: bool,
}

impl Entry {
    /// How long its client waited for a signature.
    pub(crate) fn latency(&self) -> Option<Duration> {
        match &self.ended {
            Some((Answer::Signed(_), at)) => Some(at.duration_since(self.began)),
            _ => None,
        }
    }
}

/// What became of all requests.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Vec<Entry>>);

impl Ledger {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap()
    }

    pub(crate) fn all(&self) -> Vec<Entry> {
        self.entries().clone()
    }

    /// The requests under way at this manager: it has acknowledged them, and they have not ended.
    pub(crate) fn under_way(&self, manager: usize) -> BTreeSet<Uuid> {
        let entries = self.entries();
        let under_way = entries.iter().filter(|entry| entry.ended.is_none());
        under_way
            .filter_map(|entry| entry.accepted.filter(|(_, by, _)| *by == manager))
            .map(|(id, ..)| id)
            .collect()
    }

    /// Whether a request is signed that this manager accepted since then.
    pub(crate) fn has_served(&self, manager: usize, since: Instant) -> bool {
        let entries = self.entries();
        let accepted = |entry: &Entry| entry.accepted.is_some_and(|(_, by, at)| by == manager && at >= since);
        entries.iter().any(|entry| accepted(entry) && entry.latency().is_some())
    }

    /// Waits until all requests that began before then have ended; yields those that have not, after `patience`.
    pub(crate) async fn until_ended(&self, before: Instant, patience: Duration) -> Vec<Entry> {
        let waiting = Instant::now();
        loop {
            let pending = |entry: &Entry| entry.began < before && entry.ended.is_none() && !entry.given_up;
            let pending: Vec<Entry> = self.entries().iter().filter(|entry| pending(entry)).cloned().collect();
            if pending.is_empty() || waiting.elapsed() >= patience {
                return pending;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A load that goes on until it is stopped.
pub(crate) struct Load {
    pub(crate) ledger: Arc<Ledger>,
    stop: CancellationToken,
    /// Ends with this, and its clients with it.
    task: JoinSet<()>,
}

impl Load {
    pub(crate) fn start(urls: [String; 2]) -> Self {
        let (ledger, stop) = (Arc::new(Ledger::default()), CancellationToken::new());
        let http = reqwest::Client::builder().timeout(ANSWER).build().unwrap();
        let run = Uuid::new_v4();
        let (begun, stopping) = (ledger.clone(), stop.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut clients = JoinSet::new();
            for number in 0.. {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = stopping.cancelled() => break,
                }
                let entry = Entry {
                    message: format!("message {number} of {run}"),
                    idempotency_key: format!("{run}-{number}"),
                    began: Instant::now(),
                    accepted: None,
                    ended: None,
                    given_up: false,
                };
                begun.entries().push(entry.clone());
                let client =
                    Client { http: http.clone(), urls: urls.clone(), ledger: begun.clone(), number, entry };
                clients.spawn(client.run());
                while clients.try_join_next().is_some() {}
            }
            while clients.join_next().await.is_some() {}
        });
        Self { ledger, stop, task }
    }

    /// Begins no more requests.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// What became of all requests, once all have ended.
    pub(crate) async fn ended(mut self) -> Arc<Ledger> {
        while let Some(ended) = self.task.join_next().await {
            ended.unwrap();
        }
        self.ledger
    }
}

/// Whoever makes one request.
struct Client {
    http: reqwest::Client,
    urls: [String; 2],
    ledger: Arc<Ledger>,
    number: usize,
    entry: Entry,
}

impl Client {
    async fn run(self) {
        let mut manager = self.number % 2;
        let mut failures = 0;
        let mut accepted = None;
        loop {
            let answer = match accepted {
                None => self.submit(manager).await,
                Some(id) => self.wait(manager, id).await,
            };
            match (answer, accepted) {
                (Some((200 | 201, body)), None) => {
                    let id: Uuid = body["request_id"].as_str().unwrap().parse().unwrap();
                    self.note(|entry| entry.accepted = Some((id, manager, Instant::now())));
                    accepted = Some(id);
                }
                (Some((200, signature)), Some(_)) => return self.end(Answer::Signed(signature)),
                (Some((202, _)), Some(_)) => {}
                (Some((409, problem)), Some(_)) => {
                    let reason = problem["detail"].as_str().unwrap_or_default().to_owned();
                    return self.end(Answer::Failed(reason));
                }
                (None | Some((503, _)), _) => {
                    if accepted.is_none() && self.entry.began.elapsed() > SUBMIT_FOR {
                        return self.note(|entry| entry.given_up = true);
                    }
                    manager = 1 - manager;
                    failures += 1;
                    if failures % 2 == 0 {
                        sleep(PAUSE).await;
                    }
                }
                (Some((status, body)), _) => return self.end(Answer::Wrong(format!("{status} {body}"))),
            }
        }
    }

    async fn submit(&self, manager: usize) -> Option<(u16, Value)> {
        let post = self.http.post(format!("{}/sign", self.urls[manager]));
        let post = post.header("idempotency-key", &self.entry.idempotency_key);
        answer(post.json(&json!({ "message": self.entry.message }))).await
    }

    async fn wait(&self, manager: usize, id: Uuid) -> Option<(u16, Value)> {
        answer(self.http.get(format!("{}/signature/{id}?wait=10s", self.urls[manager]))).await
    }

    fn note(&self, change: impl FnOnce(&mut Entry)) {
        change(&mut self.ledger.entries()[self.number]);
    }

    fn end(&self, answer: Answer) {
        self.note(|entry| entry.ended = Some((answer, Instant::now())));
    }
}

/// Status and JSON of an answer, if there is a whole one.
async fn answer(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.json().await.ok()?))
}
