//! A method for each endpoint.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, TryStreamExt as _, stream};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use uuid::Uuid;

use crate::builder::ClientBuilder;
use crate::error::Error;
use crate::events;
use crate::token::Token;
use crate::tries::Tries;
use crate::types::{
    Accepted, BatchOutcome, BatchRequest, DryRun, Health, Key, KeyList, KeyRefresh, ListedRequest, Overview,
    Problem, Ready, Refresh, RequestDetail, RequestFilter, RequestPage, SignRequest, Signed, SigningResult,
    Status, Verified, VerifyRequest,
};

/// The longest request body that the manager takes, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// The longest wait that the manager grants.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The longest answer, in bytes: four times the longest message, as `GET /signing_result` writes it, and metrics.
const MAX_ANSWER: usize = 8 << 20;

/// A client of one manager. Clones share connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) http: reqwest::Client,
    pub(crate) url: Url,
    /// The URL as it was given.
    pub(crate) shown: String,
    pub(crate) token: Option<Token>,
    pub(crate) timeout: Duration,
    pub(crate) retry_for: Duration,
}

impl From<Inner> for Client {
    fn from(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.0.shown)
    }
}

/// What is asked of the manager.
pub(crate) struct Call<'a> {
    method: Method,
    path: &'a [&'a str],
    query: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    idempotency_key: Option<HeaderValue>,
    /// What the manager may wait before it answers.
    wait: Duration,
    /// An answer that is none of success and yet what was asked for.
    also: Option<StatusCode>,
}

/// What was answered.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

impl<'a> Call<'a> {
    pub(crate) fn get(path: &'a [&'a str]) -> Self {
        Self {
            method: Method::GET,
            path,
            query: Vec::new(),
            body: None,
            idempotency_key: None,
            wait: Duration::ZERO,
            also: None,
        }
    }

    fn post(path: &'a [&'a str], body: &impl Serialize) -> Result<Self, Error> {
        let wrong = |problem| Error::Settings { what: "the request".into(), problem };
        let body = serde_json::to_vec(body).map_err(|error| wrong(error.to_string()))?;
        if body.len() > MAX_BODY {
            return Err(wrong(format!("it has {} bytes: expected at most {MAX_BODY}", body.len())));
        }
        Ok(Self { method: Method::POST, body: Some(body), ..Self::get(path) })
    }

    fn name(&self) -> String {
        format!("{} /{}", self.method, self.path.join("/"))
    }
}

impl Client {
    /// What makes a client of the manager at `url`, as in `https://manager.example:8080`.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(url.into())
    }

    /// Asks for a signature, with an idempotency key of its own.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn sign(&self, request: &SignRequest) -> Result<Accepted, Error> {
        self.sign_once(request, &fresh_key()).await
    }

    /// Asks for a signature. Asking again with the same key yields the same request, at any time.
    ///
    /// # Errors
    /// [`Error`]; of kind `idempotency-conflict` when the key was used for something else.
    pub async fn sign_once(&self, request: &SignRequest, idempotency_key: &str) -> Result<Accepted, Error> {
        self.submit(request, idempotency_key, self.tries()).await
    }

    async fn submit(
        &self,
        request: &SignRequest,
        idempotency_key: &str,
        tries: Tries,
    ) -> Result<Accepted, Error> {
        let header = HeaderValue::from_str(idempotency_key).map_err(|_| Error::Settings {
            what: "the idempotency key".into(),
            problem: "expected 1 to 255 visible ASCII characters".into(),
        })?;
        let call = Call { idempotency_key: Some(header), ..Call::post(&["sign"], request)? };
        self.read(&call, tries).await
    }

    /// What would become of a request. Nothing is signed.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn dry_run(&self, request: &SignRequest) -> Result<DryRun, Error> {
        self.read(&Call::post(&["sign", "dry-run"], request)?, self.tries()).await
    }

    /// Asks for many signatures, at most 1000. Yields what became of each, in their order.
    ///
    /// # Errors
    /// [`Error`], when not even one was looked at.
    pub async fn sign_batch(&self, requests: Vec<BatchRequest>) -> Result<Vec<BatchOutcome>, Error> {
        #[derive(Serialize)]
        struct Body {
            requests: Vec<BatchRequest>,
        }
        #[derive(serde::Deserialize)]
        struct Outcomes {
            results: Vec<BatchOutcome>,
        }
        let mut requests = requests;
        for request in &mut requests {
            request.idempotency_key.get_or_insert_with(fresh_key);
        }
        let expected = requests.len();
        let call = Call::post(&["sign", "batch"], &Body { requests })?;
        let (status, outcomes) = self.read_with_status::<Outcomes>(&call, self.tries()).await?;
        let results = outcomes.results;
        if results.len() != expected {
            let problem = format!("{} results: expected {expected}", results.len());
            return Err(Error::Malformed { call: call.name(), status, problem });
        }
        Ok(results)
    }

    /// Asks for a signature and waits for it.
    ///
    /// # Errors
    /// [`Error::NotSigned`] when it is not there in time; of kind `request-failed` when there will be none.
    pub async fn sign_and_wait(&self, request: &SignRequest, patience: Duration) -> Result<Signed, Error> {
        let began = Instant::now();
        let accepted = self.submit(request, &fresh_key(), Tries::new(self.0.retry_for.min(patience))).await?;
        let request_id = accepted.request_id;
        let signed = self.signature(request_id, patience.saturating_sub(began.elapsed())).await?;
        signed.ok_or(Error::NotSigned { request_id, patience })
    }

    /// The signature of a request, waiting up to `patience` for it. `None` if it is not there by then. A manager that is
    /// away at that time is still asked again for as long as the client is told to.
    ///
    /// # Errors
    /// [`Error`]; of kind `request-failed` when there will be none.
    pub async fn signature(&self, id: Uuid, patience: Duration) -> Result<Option<Signed>, Error> {
        let id = id.to_string();
        let path = ["signature", &id];
        let began = Instant::now();
        let mut tries = self.tries();
        loop {
            let left = patience.saturating_sub(began.elapsed());
            let wait = left.min(MAX_WAIT);
            let query = vec![("wait", format!("{}ms", wait.as_millis()))];
            let call = Call { query, wait, ..Call::get(&path) };
            match self.call_once(&call).await {
                Ok(answer) if answer.status != StatusCode::ACCEPTED => {
                    return decode(&call, &answer).map(Some);
                }
                Ok(_) if left <= MAX_WAIT => return Ok(None),
                Ok(_) => {
                    // Whoever does not wait before this answer is not asked all the time.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    tries = self.tries();
                }
                Err(error) => tries.after(error).await?,
            }
        }
    }

    /// How far a request is.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn status(&self, id: Uuid) -> Result<Status, Error> {
        self.get(&["status", &id.to_string()]).await
    }

    /// How far a request is: at once, and whenever it changes. Ends after it has ended. A connection that is lost is
    /// opened again.
    pub fn events(&self, id: Uuid) -> impl Stream<Item = Result<Status, Error>> + Send + use<> {
        events::of(self.clone(), id)
    }

    /// A request in the shape that the first TSS network answered in.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn signing_result(&self, id: Uuid) -> Result<SigningResult, Error> {
        self.get(&["signing_result", &id.to_string()]).await
    }

    /// All that is told of a request.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn request(&self, id: Uuid) -> Result<RequestDetail, Error> {
        self.get(&["requests", &id.to_string()]).await
    }

    /// A page of the requests, newest first: the first one, or the one that `cursor` stands for.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn request_page(
        &self,
        filter: &RequestFilter,
        cursor: Option<&str>,
    ) -> Result<RequestPage, Error> {
        let RequestFilter { status, key, created_after, created_before, limit } = filter;
        let values = [
            ("status", status.as_ref().map(ToString::to_string)),
            ("key", key.clone()),
            ("created_after", created_after.map(|time| time.to_string())),
            ("created_before", created_before.map(|time| time.to_string())),
            ("limit", limit.map(|limit| limit.to_string())),
            ("cursor", cursor.map(ToOwned::to_owned)),
        ];
        let query = values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        self.read(&Call { query, ..Call::get(&["requests"]) }, self.tries()).await
    }

    /// All requests that fit, newest first, page by page as they are taken.
    pub fn requests(
        &self,
        filter: RequestFilter,
    ) -> impl Stream<Item = Result<ListedRequest, Error>> + Send + use<> {
        /// Where the listing is.
        enum At {
            First,
            Next(String),
            End,
        }
        let client = self.clone();
        let pages = stream::try_unfold(At::First, move |at| {
            let (client, filter) = (client.clone(), filter.clone());
            async move {
                let page = match &at {
                    At::First => client.request_page(&filter, None).await?,
                    At::Next(cursor) => client.request_page(&filter, Some(cursor)).await?,
                    At::End => return Ok::<_, Error>(None),
                };
                let next = match (page.next, at) {
                    // A cursor that stands for itself would go on for ever.
                    (Some(next), At::Next(cursor)) if next == cursor => At::End,
                    (Some(next), _) => At::Next(next),
                    (None, _) => At::End,
                };
                Ok(Some((stream::iter(page.requests.into_iter().map(Ok)), next)))
            }
        });
        pages.try_flatten()
    }

    /// All keys on record, each with the key at this path, or at the manager's own.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn keys(&self, path: Option<&str>) -> Result<Vec<Key>, Error> {
        let list: KeyList =
            self.read(&Call { query: at(path), ..Call::get(&["keys"]) }, self.tries()).await?;
        Ok(list.keys)
    }

    /// One key, with the key at this path, or at the manager's own.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn key(&self, id: &str, path: Option<&str>) -> Result<Key, Error> {
        self.read(&Call { query: at(path), ..Call::get(&["keys", id]) }, self.tries()).await
    }

    /// Has all signers of a key make new shares of it together, while they sign on with those that they have. Yields the
    /// refresh that is under way, if there is one.
    ///
    /// # Errors
    /// [`Error`]; of kind `unavailable` when a signer is missing.
    pub async fn refresh_key(&self, id: &str) -> Result<Refresh, Error> {
        let path = ["keys", id, "refresh"];
        let call = Call { method: Method::POST, ..Call::get(&path) };
        self.read(&call, self.tries()).await
    }

    /// How far the signers of a key are with new shares of it.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn key_refresh(&self, id: &str) -> Result<KeyRefresh, Error> {
        self.get(&["keys", id, "refresh"]).await
    }

    /// Whether a signature is one, in the manager's eyes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn verify(&self, request: &VerifyRequest) -> Result<Verified, Error> {
        self.read(&Call::post(&["verify"], request)?, self.tries()).await
    }

    /// How each part is, whether or not a signature can be made now.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn health(&self) -> Result<Health, Error> {
        let call = Call { also: Some(StatusCode::SERVICE_UNAVAILABLE), ..Call::get(&["health"]) };
        self.read(&call, self.tries()).await
    }

    /// Whether requests are accepted, and what is missing if not.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn ready(&self) -> Result<Ready, Error> {
        let call = Call { also: Some(StatusCode::SERVICE_UNAVAILABLE), ..Call::get(&["readyz"]) };
        let answer = self.call(&call, self.tries()).await?;
        let ready = answer.status.is_success();
        let missing = if ready { Vec::new() } else { text(&answer).lines().map(ToOwned::to_owned).collect() };
        Ok(Ready { ready, missing })
    }

    /// That the manager answers at all.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn alive(&self) -> Result<(), Error> {
        self.call(&Call::get(&["livez"]), self.tries()).await.map(drop)
    }

    /// What the manager sees of the network, and has done lately.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn overview(&self) -> Result<Overview, Error> {
        self.get(&["overview"]).await
    }

    /// The manager's metrics, in the Prometheus text format.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn metrics(&self) -> Result<String, Error> {
        let answer = self.call(&Call::get(&["metrics"]), self.tries()).await?;
        Ok(text(&answer))
    }

    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.0.retry_for)
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Error> {
        self.read(&Call::get(path), self.tries()).await
    }

    async fn read<T: DeserializeOwned>(&self, call: &Call<'_>, tries: Tries) -> Result<T, Error> {
        self.read_with_status(call, tries).await.map(|(_, value)| value)
    }

    async fn read_with_status<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        tries: Tries,
    ) -> Result<(StatusCode, T), Error> {
        let answer = self.call(call, tries).await?;
        Ok((answer.status, decode(call, &answer)?))
    }

    /// Makes a call, as often as it takes and helps.
    async fn call(&self, call: &Call<'_>, mut tries: Tries) -> Result<Answer, Error> {
        loop {
            match self.call_once(call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => tries.after(error).await?,
            }
        }
    }

    async fn call_once(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let patience = self.0.timeout.saturating_add(call.wait);
        let exchange = async {
            let response = self.open(call).await?;
            self.collect(call, response).await
        };
        tokio::time::timeout(patience, exchange)
            .await
            .unwrap_or_else(|_| Err(Error::TimedOut { url: self.0.shown.clone(), patience }))
    }

    /// Makes a call whose answer goes on; what is wrong is still read to its end.
    pub(crate) async fn follow(&self, call: &Call<'_>) -> Result<Response, Error> {
        let patience = self.0.timeout;
        let exchange = async {
            let response = self.open(call).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let status = response.status();
            let unexpected = |_| Error::Malformed {
                call: call.name(),
                status,
                problem: "expected a stream of events".into(),
            };
            self.collect(call, response).await.and_then(|answer| Err(unexpected(answer)))
        };
        tokio::time::timeout(patience, exchange)
            .await
            .unwrap_or_else(|_| Err(Error::TimedOut { url: self.0.shown.clone(), patience }))
    }

    async fn open(&self, call: &Call<'_>) -> Result<Response, Error> {
        let mut url = self.0.url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let mut request = self.0.http.request(call.method.clone(), url);
        if let Some(token) = &self.0.token {
            request = request.header(AUTHORIZATION, token.header().await?);
        }
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").header(ACCEPT, "application/json");
            request = request.body(body.clone());
        }
        request.send().await.map_err(|error| self.unreachable(error))
    }

    /// The whole answer, if it is what was asked for.
    async fn collect(&self, call: &Call<'_>, mut response: Response) -> Result<Answer, Error> {
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(error))? {
            if body.len().saturating_add(chunk.len()) > MAX_ANSWER {
                let problem = format!("it has more than {MAX_ANSWER} bytes");
                return Err(Error::Malformed { call: call.name(), status, problem });
            }
            body.extend_from_slice(&chunk);
        }
        let answer = Answer { status, body };
        if status.is_success() || (call.also == Some(status) && !is_problem(&headers)) {
            return Ok(answer);
        }
        Err(problem(&headers, &answer))
    }

    pub(crate) fn unreachable(&self, error: reqwest::Error) -> Error {
        Error::Unreachable { url: self.0.shown.clone(), source: error.without_url() }
    }
}

fn fresh_key() -> String {
    Uuid::new_v4().to_string()
}

fn at(path: Option<&str>) -> Vec<(&'static str, String)> {
    path.map(|path| ("path", path.to_owned())).into_iter().collect()
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

fn decode<T: DeserializeOwned>(call: &Call<'_>, answer: &Answer) -> Result<T, Error> {
    serde_json::from_slice(&answer.body).map_err(|error| Error::Malformed {
        call: call.name(),
        status: answer.status,
        problem: error.to_string(),
    })
}

fn is_problem(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.starts_with("application/problem+json")
}

/// What the manager says is wrong, or whoever is in between.
fn problem(headers: &HeaderMap, answer: &Answer) -> Error {
    let told: Problem = if is_problem(headers) {
        serde_json::from_slice(&answer.body).unwrap_or_default()
    } else {
        Problem::default()
    };
    let seconds =
        headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    Error::Problem {
        status: answer.status,
        kind: told.kind(),
        title: if told.title.is_empty() { "The manager refused".into() } else { told.title },
        detail: told.detail,
        retry_after: seconds.map(Duration::from_secs),
    }
}
