//! `POST /sign`, `/sign/batch`.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span};
use tss_common::approval::{Approval, MAX_APPROVALS};
use tss_common::config::Config;
use tss_common::intent::{Encoding, HashAlgorithm, Intent, Wish};
use tss_common::telemetry::Label as _;
use tss_common::trace::TraceParent;
use tss_mpc::DerivationPath;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::{self, Kind, Problem};
use super::{body, schema};
use crate::auth::Caller;
use crate::service::Shared;
use crate::store::{Idempotency, Inserted, Progress, Request, State as RequestState};

/// The longest idempotency key, in bytes.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// A body, for those who send something else.
const EXAMPLE: &str = r#"{"message":"hello"}"#;

/// The same for many.
const BATCH_EXAMPLE: &str = r#"{"requests":[{"message":"hello"},{"message":"world","idempotency_key":"2"}]}"#;

/// How many requests there may be in one body.
const MAX_BATCH: usize = 1000;

/// How many of them are accepted at once.
const BATCH_AT_ONCE: usize = 16;

/// What a caller wants signed.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignBody {
    /// The message, in `encoding`.
    pub message: String,
    /// How the message is written.
    #[serde(default)]
    #[schema(value_type = schema::MessageEncoding)]
    pub encoding: Encoding,
    /// How it becomes the digest that is signed.
    #[serde(default)]
    #[schema(value_type = schema::HashAlgorithm)]
    pub hash: HashAlgorithm,
    /// Which key signs; the configured one where absent.
    pub key: Option<String>,
    /// Which derived key signs; the configured one where absent.
    #[schema(value_type = Option<schema::DerivationPath>)]
    pub path: Option<DerivationPath>,
    /// When the wish lapses.
    #[schema(value_type = Option<schema::Time>)]
    pub not_after: Option<Timestamp>,
    /// Who approved it. No part of what is asked for: a retry with other approvals is the same request.
    #[serde(default)]
    #[schema(value_type = Vec<schema::Approval>, max_items = 32)]
    pub approvals: Vec<Approval>,
}

/// Many of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchBody {
    /// Each a body of `POST /sign`, with an `idempotency_key` of its own, if any. What is wrong with one is said in its
    /// place, and harms no other.
    #[schema(value_type = Vec<schema::BatchRequest>, min_items = 1, max_items = 1000)]
    requests: Vec<Value>,
}

/// What became of many, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResult {
    #[schema(min_items = 1, max_items = 1000)]
    results: Vec<BatchItem>,
}

/// What became of one: what `POST /sign` would have answered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum BatchItem {
    Accepted {
        /// The status.
        code: u16,
        #[serde(flatten)]
        accepted: Accepted,
    },
    Refused {
        /// The status.
        code: u16,
        problem: problem::Body,
    },
}

/// A request that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// Its id.
    pub request_id: Uuid,
    /// How far it is.
    #[schema(value_type = schema::RequestStatus)]
    pub status: &'static str,
}

/// The header that tells a retry from a new request.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it only stands in the document")]
struct Retry {
    /// What tells a retry from a new request: 1 to 255 visible ASCII characters.
    #[param(
        rename = "Idempotency-Key",
        pattern = "^[!-~]([\\t -~]{0,253}[!-~])?$",
        example = "invoice-2041"
    )]
    idempotency_key: Option<String>,
}

/// The header of the W3C's Trace Context.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it only stands in the document")]
struct Trace {
    /// The caller's span (W3C Trace Context): those of the request become its children. Anything else in its place is
    /// no error.
    #[param(example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    traceparent: Option<String>,
}

/// Ask for a signature
///
/// The request is stored before it is answered: once accepted, it is never lost. With an `Idempotency-Key`, asking again
/// for the same gives the same request, even when its `not_after` has passed or the manager is full.
#[utoipa::path(
    post,
    path = "/sign",
    tag = "signing",
    security(("bearer" = ["sign"])),
    params(Retry, Trace),
    request_body = SignBody,
    responses(
        (status = 201, description = "The request is accepted.", body = Accepted,
            headers(("Location" = String, description = "Where its status is: `/status/{id}`.")), links(
                ("status" = (operation_id = "status", parameters(("id" = "$response.body#/request_id")))),
                ("signature" = (operation_id = "signature", parameters(("id" = "$response.body#/request_id")))),
                ("signing_result" = (operation_id = "signing_result",
                    parameters(("id" = "$response.body#/request_id")))),
            )),
        (status = 200, description = "The idempotency key was used for the same request before; this is how far it is.",
            body = Accepted, headers(("Location" = String, description = "Where its status is: `/status/{id}`.")), links(
                ("status" = (operation_id = "status", parameters(("id" = "$response.body#/request_id")))),
                ("signature" = (operation_id = "signature", parameters(("id" = "$response.body#/request_id")))),
            )),
    ),
    extensions(("x-problems" = json!([Kind::IdempotencyConflict, Kind::Unavailable, Kind::Overloaded]))),
)]
pub async fn sign(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let asked = body.map_err(body::unreadable).and_then(|body| ask(&headers, &body, &shared.config));
    match accept(&shared, &caller, traceparent(&headers), asked).await {
        Ok((status, accepted)) => {
            let location = [(header::LOCATION, format!("/status/{}", accepted.request_id))];
            (status, location, Json(accepted)).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

/// Accepts what somebody asks for, or counts why not.
async fn accept(
    shared: &Shared,
    caller: &Caller,
    parent: Option<TraceParent>,
    asked: Result<Asked, Problem>,
) -> Result<(StatusCode, Accepted), Problem> {
    let span = tracing::debug_span!("sign", request = Empty, key = Empty, outcome = Empty);
    TraceParent::adopt(parent, &span);
    async {
        let outcome = match asked {
            Ok(asked) => submit(shared, caller, asked).await,
            Err(problem) => Err(problem),
        };
        let name = match &outcome {
            Ok(_) => "accepted",
            Err(problem) => {
                shared.metrics.rejected.inc(problem.kind());
                problem.kind().as_str()
            }
        };
        Span::current().record("outcome", name);
        outcome
    }
    .instrument(span)
    .await
}

/// The caller's span, if it says which that is. Anything else in its place is no error, as the W3C has it.
fn traceparent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut values = headers.get_all("traceparent").iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()?.parse().ok()
}

async fn submit(shared: &Shared, caller: &Caller, asked: Asked) -> Result<(StatusCode, Accepted), Problem> {
    let asked = asked.by(caller);
    shared.gate.check_limits(caller, &asked.intent.key, &asked.intent.path)?;
    // Whoever asks again is answered first: the time may have passed and the queue be full since then.
    if let Some(idempotency) = &asked.idempotency
        && let Some(existing) = shared.coordinator.find(&idempotency.key).await?
    {
        return known(&existing, idempotency);
    }
    let request = asked.admit(&shared.config, Timestamp::now())?;
    let key = &request.intent.key;
    if *key != shared.config.key && shared.keys.get(key).is_none() {
        return Err(Problem::new(Kind::InvalidRequest, format!("`key`: the cluster has no key `{key}`")));
    }
    let (id, idempotency) = (request.id, request.idempotency.clone());
    Span::current().record("request", display(id)).record("key", key);
    let mut request = request;
    request.lease = shared.coordinator.lease();
    match (shared.coordinator.submit(request).await?, idempotency) {
        // It came between the look and the insertion.
        (Inserted::Existing(existing), Some(idempotency)) => known(&existing, &idempotency),
        (Inserted::Existing(_) | Inserted::New, _) => {
            Ok((StatusCode::CREATED, Accepted { request_id: id, status: "Pending" }))
        }
    }
}

/// The answer to who asks for a request that is there, under its idempotency key.
fn known(existing: &Request, asked: &Idempotency) -> Result<(StatusCode, Accepted), Problem> {
    if existing.idempotency.as_ref() == Some(asked) {
        Span::current().record("request", display(existing.id));
        let accepted = Accepted { request_id: existing.id, status: existing.progress.state.name() };
        return Ok((StatusCode::OK, accepted));
    }
    let detail = format!("request {} has this key and asks for something else", existing.id);
    Err(Problem::new(Kind::IdempotencyConflict, detail))
}

/// Ask for many signatures
///
/// 1 to 1000 requests in one body. Each is accepted or refused by itself, as `POST /sign` would: `results` are in the
/// order of `requests`, each with the `code` that it would have been answered with.
#[utoipa::path(
    post,
    path = "/sign/batch",
    tag = "signing",
    security(("bearer" = ["sign"])),
    params(Trace),
    request_body = BatchBody,
    responses(
        (status = 200, description = "What became of each.", body = BatchResult, links(
            ("status" = (operation_id = "status", parameters(("id" = "$response.body#/results/0/request_id")))),
        )),
    ),
)]
pub async fn batch(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<BatchResult>, Problem> {
    let BatchBody { requests } = body::parse(&headers, &body.map_err(body::unreadable)?, BATCH_EXAMPLE)
        .inspect_err(|problem| {
            shared.metrics.rejected.inc(problem.kind());
        })?;
    if !(1..=MAX_BATCH).contains(&requests.len()) {
        let detail = format!("`requests`: {} of them: expected 1 to {MAX_BATCH}", requests.len());
        shared.metrics.rejected.inc(Kind::InvalidRequest);
        return Err(Problem::new(Kind::InvalidRequest, detail));
    }
    // The first is counted already.
    shared.gate.spend(&caller, u32::try_from(requests.len()).unwrap_or(u32::MAX).saturating_sub(1))?;
    let parent = traceparent(&headers);
    let one = |item: Value| {
        let (shared, caller) = (&shared, &caller);
        async move {
            match accept(shared, caller, parent, ask_one(item, &shared.config)).await {
                Ok((code, accepted)) => BatchItem::Accepted { code: code.as_u16(), accepted },
                Err(problem) => {
                    let problem = problem.into_body();
                    BatchItem::Refused { code: problem.status, problem }
                }
            }
        }
    };
    let results = stream::iter(requests).map(one).buffered(BATCH_AT_ONCE).collect().await;
    Ok(Json(BatchResult { results }))
}

/// What one of many asks for.
fn ask_one(mut item: Value, config: &Config) -> Result<Asked, Problem> {
    let key = match item.as_object_mut().and_then(|fields| fields.remove("idempotency_key")) {
        None | Some(Value::Null) => None,
        Some(Value::String(key)) => Some(check_idempotency_key(&key, "idempotency_key")?),
        Some(_) => return Err(bad_idempotency_key("idempotency_key")),
    };
    Asked::new(body::object(item.to_string().as_bytes(), EXAMPLE)?, key, config)
}

/// The request that headers and body ask for at this time. Looks at nothing else.
///
/// # Errors
/// [`Problem`] saying what is wrong and what was expected.
pub fn read(headers: &HeaderMap, body: &[u8], config: &Config, now: Timestamp) -> Result<Request, Problem> {
    ask(headers, body, config)?.admit(config, now)
}

/// What headers and body ask for, whenever they do.
fn ask(headers: &HeaderMap, body: &[u8], config: &Config) -> Result<Asked, Problem> {
    Asked::new(body::parse(headers, body, EXAMPLE)?, idempotency_key(headers)?, config)
}

/// What somebody asks for. Whether it can be had now is judged later.
struct Asked {
    intent: Intent,
    message: Vec<u8>,
    approvals: Vec<Approval>,
    requester: Option<String>,
    idempotency: Option<Idempotency>,
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().map_err(|_| bad_idempotency_key("idempotency-key"))?;
    check_idempotency_key(key, "idempotency-key").map(Some)
}

/// A key that a header could hold.
fn check_idempotency_key(key: &str, place: &str) -> Result<String, Problem> {
    let visible = key.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t');
    if visible && (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len()) {
        Ok(key.to_owned())
    } else {
        Err(bad_idempotency_key(place))
    }
}

fn bad_idempotency_key(place: &str) -> Problem {
    let expected = format!("`{place}`: expected 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters");
    Problem::new(Kind::InvalidRequest, expected)
}

fn invalid(detail: String) -> Problem {
    Problem::new(Kind::InvalidRequest, detail)
}

impl Asked {
    fn new(body: SignBody, idempotency_key: Option<String>, config: &Config) -> Result<Self, Problem> {
        let SignBody { message, encoding, hash, key, path, not_after, approvals } = body;
        let wish = Wish { message, encoding, hash, key, path, not_after };
        let (intent, message) = wish.intent(config).map_err(invalid)?;
        let idempotency = idempotency_key.map(|key| Idempotency { key, body_hash: intent.hash() });
        Ok(Self { intent, message, approvals, requester: None, idempotency })
    }

    /// The same, as this caller's. Each has idempotency keys of its own, or one could find out another's requests.
    fn by(mut self, caller: &Caller) -> Self {
        if let Some(subject) = caller.subject() {
            self.requester = Some(subject.to_owned());
            // Neither part contains a line break.
            self.idempotency = self.idempotency.map(|Idempotency { key, body_hash }| Idempotency {
                key: format!("{subject}\n{key}"),
                body_hash,
            });
        }
        self
    }

    /// The request, if it can be had at this time.
    fn admit(self, config: &Config, now: Timestamp) -> Result<Request, Problem> {
        let Self { intent, message, approvals, requester, idempotency } = self;
        intent.check_time(now).map_err(invalid)?;
        check_approvals(&approvals, &intent).map_err(invalid)?;
        let timeout = SignedDuration::try_from(config.signing_timeout()).unwrap_or(SignedDuration::MAX);
        let deadline = now.saturating_add(timeout).unwrap_or(Timestamp::MAX);
        Ok(Request {
            id: Uuid::new_v4(),
            requester,
            idempotency,
            created_at: now,
            deadline: intent.not_after.map_or(deadline, |time| time.min(deadline)),
            progress: Progress { attempts: 0, quorum: None, begun_at: None, state: RequestState::Pending },
            lease: crate::store::Lease { holder: Uuid::nil(), until: now },
            intent,
            message,
            approvals,
        })
    }
}

/// That there are not too many approvals, and that each is over this intent. Whose they are is for the
/// signers to judge, each by its own policy.
fn check_approvals(approvals: &[Approval], intent: &Intent) -> Result<(), String> {
    if approvals.len() > MAX_APPROVALS {
        return Err(format!("`approvals`: {} of them: expected at most {MAX_APPROVALS}", approvals.len()));
    }
    for (number, approval) in approvals.iter().enumerate() {
        approval.verify(intent).map_err(|_| {
            format!(
                "`approvals[{number}]`: approver {} did not sign this request: expected an approval of exactly \
                 cluster {}, key {}, path {}, hash {}, digest {}, not_after {}",
                approval.approver,
                intent.cluster,
                intent.key,
                intent.path,
                intent.hash,
                hex::encode(intent.digest),
                intent.not_after.map_or("absent".into(), |time| time.to_string()),
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tss_common::ed25519::SigningKey;

    use super::*;

    fn request(body: serde_json::Value) -> Result<Request, String> {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, "application/json".parse().unwrap())]);
        let body = body::parse(&headers, body.to_string().as_bytes(), EXAMPLE)
            .map_err(|problem| format!("{problem:?}"))?;
        Asked::new(body, Some("k".into()), &Config::default())
            .and_then(|asked| asked.admit(&Config::default(), Timestamp::UNIX_EPOCH))
            .map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn one_message_in_three_encodings_is_one_intent() {
        let intents = [
            serde_json::json!({"message": "Sunil"}),
            serde_json::json!({"message": "0x53756e696c", "encoding": "hex", "hash": "sha256"}),
            serde_json::json!({"message": "U3VuaWw=", "encoding": "base64", "path": "m/0/1/2"}),
        ]
        .map(|body| request(body).unwrap().intent.hash());
        assert_eq!(intents[0], intents[1]);
        assert_eq!(intents[0], intents[2]);
    }

    #[test]
    fn what_is_wrong_is_said_with_what_was_expected() {
        for (body, parts) in [
            (serde_json::json!({}), ["message", "missing"]),
            (serde_json::json!({"message": "a", "hsh": "none"}), ["hsh", "`hash`"]),
            (serde_json::json!({"message": "a", "hash": "md5"}), ["md5", "keccak256"]),
            (serde_json::json!({"message": "a", "encoding": "latin1"}), ["latin1", "base64"]),
            (serde_json::json!({"message": "abc", "encoding": "hex"}), ["message", "even number of hex"]),
            (serde_json::json!({"message": "a", "path": "0'/1"}), ["0'", "hardened"]),
            (serde_json::json!({"message": "a", "path": "x"}), ["x", "as in `0/1/2`"]),
            (serde_json::json!({"message": "ab", "encoding": "hex", "hash": "none"}), ["32 bytes", "got 1"]),
            (
                serde_json::json!({"message": "a", "not_after": "1969-01-01T00:00:00Z"}),
                ["not_after", "has passed"],
            ),
            (serde_json::json!({"message": "a", "not_after": 7}), ["invalid type", "RFC"]),
        ] {
            let error = request(body.clone()).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "`{part}` is missing in: {error} for {body}");
            }
        }
    }

    fn intent_of(body: &serde_json::Value) -> Intent {
        request(body.clone()).unwrap().intent
    }

    #[test]
    fn approvals_are_kept_and_are_no_part_of_what_is_asked_for() {
        let body = serde_json::json!({"message": "a", "not_after": "2970-01-01T00:00:05Z"});
        let approvals: Vec<Approval> =
            (0..32).map(|_| Approval::make(&SigningKey::generate(), &intent_of(&body))).collect();
        let mut approved = body.clone();
        approved["approvals"] = serde_json::json!(approvals);
        let (bare, approved) = (request(body).unwrap(), request(approved).unwrap());
        assert_eq!(approved.approvals, approvals);
        assert_eq!((&approved.intent, &approved.idempotency), (&bare.intent, &bare.idempotency));
    }

    #[test]
    fn approvals_that_are_malformed_too_many_or_of_something_else_are_refused() {
        let body = serde_json::json!({"message": "a", "path": "0/7"});
        let intent = intent_of(&body);
        let key = SigningKey::generate();
        let approval = serde_json::json!(Approval::make(&key, &intent));
        let approver = key.verifying_key().to_string();
        let of_another =
            serde_json::json!(Approval::make(&key, &Intent { digest: [7; 32], ..intent.clone() }));
        let digest = hex::encode(intent.digest);
        let edited = |field: &str, value: &str| {
            let mut edited = approval.clone();
            edited[field] = value.into();
            serde_json::json!([approval, edited])
        };
        for (approvals, parts) in [
            (edited("signature", "zz"), &["`approvals[1].signature`", "expected 128 hex digits"][..]),
            (edited("approver", "00ff"), &["`approvals[1].approver`", "expected 64 hex digits"]),
            (edited("name", "bob"), &["approvals[1].name", "unknown field `name`", "`approver`"]),
            (serde_json::json!([{"approver": approver}]), &["`approvals[0]`", "missing field `signature`"]),
            (serde_json::json!("x"), &["`approvals`", "expected a sequence"]),
            (vec![approval.clone(); 33].into(), &["`approvals`", "33", "expected at most 32"]),
            (
                vec![approval.clone(), of_another].into(),
                &[
                    "`approvals[1]`",
                    &approver,
                    "cluster tss, key default, path 0/7, hash sha256",
                    &digest,
                    "not_after absent",
                ],
            ),
        ] {
            let mut body = body.clone();
            body["approvals"] = approvals;
            let error = request(body).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "`{part}` is missing in: {error}");
            }
        }
    }

    #[test]
    fn the_callers_own_expiry_shortens_the_deadline() {
        let soon = request(serde_json::json!({"message": "a", "not_after": "1970-01-01T00:00:05Z"})).unwrap();
        assert_eq!(soon.deadline, Timestamp::from_second(5).unwrap());
        let late = request(serde_json::json!({"message": "a", "not_after": "2970-01-01T00:00:05Z"})).unwrap();
        assert_eq!(late.deadline, Timestamp::from_second(30).unwrap());
    }
}
