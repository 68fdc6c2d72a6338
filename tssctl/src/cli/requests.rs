//! `status`, `watch` and `requests`.

use std::pin::pin;
use std::str::FromStr as _;
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use jiff::Timestamp;
use tss_client::types::{
    ListedRequest, RequestDetail, RequestFilter, RequestStatus, Status, Summary, TimelineEntry,
};
use uuid::Uuid;

use super::connection::ManagerArguments;
use super::exit::{Code, Failure};
use super::output::{self, Printer};
use super::sign::{MAX_WAIT, parse_time};

/// How many requests the manager puts on a page at most.
const MAX_PAGE: u16 = 200;

#[derive(Args)]
pub(crate) struct StatusArguments {
    /// The request's id.
    request: Uuid,
    #[command(flatten)]
    manager: ManagerArguments,
}

#[derive(Args)]
pub(crate) struct WatchArguments {
    /// The request's id.
    request: Uuid,
    /// How many seconds to wait for its end.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(..=MAX_WAIT))]
    timeout: u64,
    #[command(flatten)]
    manager: ManagerArguments,
}

#[derive(Args)]
pub(crate) struct RequestsArguments {
    /// The id of one, of which all is shown.
    #[arg(conflicts_with_all = ["status", "key", "created_after", "created_before", "limit"])]
    request: Option<Uuid>,
    /// Only those that are so far: Pending, InProgress, Completed or Failed.
    #[arg(long, value_parser = RequestStatus::from_str)]
    status: Option<RequestStatus>,
    /// Only those of this key.
    #[arg(long)]
    key: Option<String>,
    /// Only those accepted after this time, as in 2030-01-02T03:04:05Z.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    created_after: Option<Timestamp>,
    /// Only those accepted before this time.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    created_before: Option<Timestamp>,
    /// How many at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    #[command(flatten)]
    manager: ManagerArguments,
}

/// Runs `status`.
pub(crate) async fn status(arguments: &StatusArguments, printer: Printer) -> anyhow::Result<()> {
    let client = arguments.manager.connect()?.client;
    let status = client.status(arguments.request).await?;
    printer.or_json().answer(&status, |status| {
        output::labelled([
            ("request", Some(status.request_id.to_string())),
            ("status", Some(status.status.to_string())),
            ("attempts", Some(status.attempts.to_string())),
            ("quorum", status.quorum.as_deref().map(|quorum| output::quorum(Some(quorum)))),
            ("reason", status.reason.clone()),
        ])
    })
}

/// Runs `watch`.
pub(crate) async fn watch(arguments: &WatchArguments, printer: Printer) -> anyhow::Result<()> {
    let client = arguments.manager.connect()?.client;
    let mut events = pin!(client.events(arguments.request));
    let mut last: Option<Status> = None;
    let follow = async {
        while let Some(status) = events.next().await {
            let status = status?;
            printer.one_of_many(&status, change)?;
            last = Some(status);
        }
        anyhow::Ok(())
    };
    let patience = Duration::from_secs(arguments.timeout);
    let id = arguments.request;
    tokio::time::timeout(patience, follow).await.map_err(|_| {
        Failure::new(Code::Late, format!("request {id} has not ended after {} s", patience.as_secs()))
    })??;
    match last {
        Some(Status { status: RequestStatus::Failed, reason, .. }) => {
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            Err(Failure::new(Code::Unsigned, format!("request {id} ended without a signature{reason}"))
                .into())
        }
        _ => Ok(()),
    }
}

fn change(status: &Status) -> String {
    let mut line =
        format!("{}  {}", output::seconds(Timestamp::now()), output::plain(status.status.as_str()));
    if status.attempts > 0 {
        line += &format!("  attempt {}", status.attempts);
    }
    if let Some(quorum) = &status.quorum {
        line += &format!("  quorum {}", output::quorum(Some(quorum)));
    }
    if let Some(reason) = &status.reason {
        line += &format!("  {}", output::plain(reason));
    }
    line
}

/// Runs `requests`.
pub(crate) async fn list(arguments: RequestsArguments, printer: Printer) -> anyhow::Result<()> {
    let RequestsArguments { request, status, key, created_after, created_before, limit, manager } = arguments;
    let client = manager.connect()?.client;
    if let Some(id) = request {
        return printer.answer(&client.request(id).await?, detail);
    }
    let page = u16::try_from(limit).map_or(MAX_PAGE, |limit| limit.min(MAX_PAGE));
    let filter = RequestFilter { status, key, created_after, created_before, limit: Some(page) };
    let mut requests = pin!(client.requests(filter).take(usize::try_from(limit)?));
    let mut rows = Vec::new();
    while let Some(request) = requests.next().await {
        let request = request?;
        if printer.is_json() {
            printer.one_of_many(&request, |_| String::new())?;
        } else {
            rows.push(row(&request));
        }
    }
    if printer.is_json() {
        return Ok(());
    }
    output::line(&output::table(
        ["REQUEST", "STATUS", "KEY", "PATH", "HASH", "ATTEMPTS", "CREATED", "BY"],
        &rows,
    ))
}

fn row(request: &ListedRequest) -> [String; 8] {
    let [id, status, key, path, hash, attempts, created] = summary(&request.summary);
    [id, status, key, path, hash, attempts, created, request.requested_by.clone().unwrap_or("-".into())]
}

/// The columns that every list of requests has.
pub(crate) fn summary(summary: &Summary) -> [String; 7] {
    [
        summary.request_id.to_string(),
        summary.status.to_string(),
        summary.key.clone(),
        summary.path.clone(),
        summary.hash.to_string(),
        summary.attempts.to_string(),
        output::seconds(summary.created_at),
    ]
}

fn detail(request: &RequestDetail) -> String {
    let RequestDetail { summary, digest, deadline, timeline } = request;
    let fields = output::labelled([
        ("request", Some(summary.request_id.to_string())),
        ("status", Some(summary.status.to_string())),
        ("reason", summary.reason.clone()),
        ("key", Some(summary.key.clone())),
        ("path", Some(summary.path.clone())),
        ("hash", Some(summary.hash.to_string())),
        ("digest", Some(digest.to_string())),
        ("created", Some(summary.created_at.to_string())),
        ("deadline", Some(deadline.to_string())),
        ("finished", summary.finished_at.map(|time| time.to_string())),
    ]);
    let event = |entry: &TimelineEntry| {
        let quorum = entry.quorum.as_deref().map(|quorum| format!("quorum {}", output::quorum(Some(quorum))));
        let attempt = entry.attempt.map(|attempt| attempt.to_string());
        let more = [attempt, quorum, entry.reason.clone()].into_iter().flatten().collect::<Vec<_>>();
        [entry.at.to_string(), entry.event.to_string(), more.join("  ")]
    };
    let rows: Vec<_> = timeline.iter().map(event).collect();
    format!("{fields}\n{}", output::table(["AT", "EVENT", ""], &rows))
}
