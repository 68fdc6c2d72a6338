//! Traces: what became of a request, from the REST call to the signature, across manager and signers.
//!
//! Off unless `trace.otlp_endpoint` names an OpenTelemetry collector. Then spans of this software are sent to it
//! (OTLP, HTTP with protobuf) by a thread of their own, from a queue that is bounded: whether the collector is
//! there or not, nothing waits for it.
//!
//! A span leaves only if it stands in [`SPANS`], with no more than the [`ATTRIBUTES`]: whatever else this software
//! or a library notes in its spans stays here. Events, which are the lines of the log, never leave.
//!
//! The manager tells the signers which span an attempt belongs to ([`TraceParent`]). Nobody vouches for that, and
//! nothing depends on it but the trace itself.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue, Value};
use opentelemetry_otlp::{Protocol, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tracing::level_filters::LevelFilter;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::config::Config;
use crate::version;

/// The spans that leave: their name in the code and in the trace, and their kind.
const SPANS: [(&str, &str, SpanKind); 12] = [
    // The manager's.
    ("sign", "POST /sign", SpanKind::Server),
    ("insert", "insert", SpanKind::Internal),
    ("request", "request", SpanKind::Internal),
    ("queue", "queue", SpanKind::Internal),
    ("begin", "begin", SpanKind::Internal),
    ("attempt", "attempt", SpanKind::Producer),
    ("finish", "finish", SpanKind::Internal),
    // A signer's.
    ("session", "session", SpanKind::Consumer),
    ("join", "join", SpanKind::Internal),
    ("claim", "claim", SpanKind::Internal),
    ("rounds", "rounds", SpanKind::Internal),
    ("report", "report", SpanKind::Internal),
];

/// What leaves with a span: a field's name in the code and in the trace.
const ATTRIBUTES: [(&str, &str); 5] = [
    ("request", "tss.request"),
    ("key", "tss.key"),
    ("signer", "tss.signer"),
    ("attempt", "tss.attempt"),
    (OUTCOME, "tss.outcome"),
];

/// The field that says how it ended.
const OUTCOME: &str = "outcome";

/// The outcomes that are no error.
const GOOD: [&str; 3] = ["accepted", "completed", "signed"];

/// How many spans wait to be sent; what comes on top is dropped.
const QUEUE: usize = 4096;

/// How many are sent together.
const BATCH: usize = 512;

/// How long a span waits to be sent.
const DELAY: Duration = Duration::from_secs(1);

/// How long the collector has to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a stopping program waits for the last spans to be sent.
const FLUSH: Duration = Duration::from_secs(3);

/// How often a collector that does not take spans is complained of.
const COMPLAINT: Duration = Duration::from_secs(60);

/// Where spans go, if anywhere.
#[derive(Clone, Debug)]
#[must_use = "the last spans are sent by `close`"]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// To the collector that the configuration names, as this program's; nowhere if it names none.
    ///
    /// # Errors
    /// When there can be no exporter, whether a collector is there or not.
    pub(crate) fn open(config: &Config, program: &'static str) -> anyhow::Result<Self> {
        let Some(endpoint) = &config.trace.otlp_endpoint else { return Ok(Self(None)) };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(ANSWER)
            .build()?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY)
            .build();
        let exporter = Censor { inner: exporter, lost: Mutex::default() };
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        // Who asks may have decided already.
        let ratio = Sampler::TraceIdRatioBased(config.trace.sample_ratio.get());
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(resource(config, program))
            .build();
        Ok(Self(Some(provider)))
    }

    /// Has the spans of this software become part of traces; `None` if they go nowhere.
    pub(crate) fn layer<S>(&self) -> Option<impl Layer<S> + Send + Sync + 'static>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let tracer = self.0.as_ref()?.tracer("tss-network");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        Some(layer.with_filter(filter_fn(leaves).with_max_level_hint(LevelFilter::DEBUG)))
    }

    /// Sends what waits to be sent, for so long as a stopping program can wait.
    pub async fn close(self) {
        let Some(provider) = self.0 else { return };
        let (closed, done) = tokio::sync::oneshot::channel();
        // A thread that nothing waits for: a blocking task would hold up the end of the runtime.
        std::thread::spawn(move || {
            let result = provider.shutdown_with_timeout(FLUSH);
            // The other side may have gone on.
            let _ = closed.send(result);
        });
        match tokio::time::timeout(FLUSH, done).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans were not sent"),
            Ok(Err(_)) | Err(_) => tracing::warn!("the last spans were not sent within {FLUSH:?}"),
        }
    }
}

/// What is said of this process with all its spans.
fn resource(config: &Config, program: &'static str) -> Resource {
    let mut attributes = vec![
        KeyValue::new("service.version", version::VERSION),
        KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        KeyValue::new("tss.cluster", config.cluster.clone()),
        KeyValue::new("tss.revision", version::REVISION),
    ];
    // In Kubernetes, the Pod's name.
    if let Ok(name) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        attributes.push(KeyValue::new("host.name", name.trim().to_owned()));
    }
    Resource::builder().with_service_name(program).with_attributes(attributes).build()
}

/// Whether it is a span that leaves.
fn leaves(span: &Metadata<'_>) -> bool {
    span.is_span() && span.target().starts_with("tss_") && SPANS.iter().any(|(name, ..)| *name == span.name())
}

/// Lets out what may leave, and says when that does not arrive.
#[derive(Debug)]
struct Censor<E> {
    inner: E,
    lost: Mutex<Lost>,
}

/// Spans that did not arrive since that was last complained of.
#[derive(Debug, Default)]
struct Lost {
    spans: usize,
    complained: Option<Instant>,
}

impl<E: SpanExporter> SpanExporter for Censor<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let batch: Vec<SpanData> = batch.into_iter().map(censored).collect();
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        if let Err(error) = &result {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.spans += spans;
            if lost.complained.is_none_or(|at| at.elapsed() >= COMPLAINT) {
                tracing::warn!(
                    %error, spans = lost.spans,
                    "the collector of traces (`trace.otlp_endpoint`) did not take spans; signing goes on"
                );
                *lost = Lost { spans: 0, complained: Some(Instant::now()) };
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// A span as it leaves.
fn censored(mut span: SpanData) -> SpanData {
    if let Some((_, name, kind)) = SPANS.iter().find(|(name, ..)| *name == span.name) {
        (span.name, span.span_kind) = (Cow::Borrowed(*name), kind.clone());
    }
    let fields = std::mem::take(&mut span.attributes);
    if let Some(KeyValue { value, .. }) = fields.iter().find(|field| field.key.as_str() == OUTCOME)
        && !GOOD.contains(&value.as_str().as_ref())
    {
        span.status = Status::error("");
    }
    span.attributes = fields.into_iter().filter_map(attribute).collect();
    span.events = opentelemetry_sdk::trace::SpanEvents::default();
    span
}

/// A field as it leaves, if it does.
fn attribute(field: KeyValue) -> Option<KeyValue> {
    let (_, name) = ATTRIBUTES.iter().find(|(name, _)| *name == field.key.as_str())?;
    let value: Value = field.value;
    Some(KeyValue::new(Key::from_static_str(name), value))
}

/// Which span something belongs to, as it travels: the W3C's `traceparent`, version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: TraceId,
    span: SpanId,
    sampled: bool,
}

impl TraceParent {
    /// The current span; `None` where it is part of no trace.
    pub fn current() -> Option<Self> {
        Self::of(&Span::current())
    }

    /// This span; `None` where it is part of no trace.
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        let span = context.span();
        let context = span.span_context();
        context.is_valid().then(|| Self {
            trace: context.trace_id(),
            span: context.span_id(),
            sampled: context.is_sampled(),
        })
    }

    /// Makes a new span part of the trace, if the span is part of any. Without it, the span begins a trace of its
    /// own.
    pub fn adopt(parent: Option<Self>, span: &Span) {
        let context = parent.map_or_else(Context::new, |Self { trace, span, sampled }| {
            let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
            let parent = SpanContext::new(trace, span, flags, true, TraceState::default());
            Context::new().with_remote_span_context(parent)
        });
        // An error means that the span is part of no trace.
        let _ = span.set_parent(context);
    }

    /// Reads the field of a message that nobody vouches for: `None` if it is anything else.
    ///
    /// # Errors
    /// When the whole message is malformed.
    pub(crate) fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Self>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Field {
            Text(String),
            Other(serde::de::IgnoredAny),
        }
        Ok(match Field::deserialize(deserializer)? {
            Field::Text(text) => text.parse().ok(),
            Field::Other(_) => None,
        })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// It is no `traceparent` of version 00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a traceparent like 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
pub struct NoTraceParent;

impl FromStr for TraceParent {
    type Err = NoTraceParent;

    fn from_str(text: &str) -> Result<Self, NoTraceParent> {
        // 00-{32}-{16}-{2}, in lower-case hexadecimal digits.
        let bytes: &[u8; 55] = text.as_bytes().try_into().map_err(|_| NoTraceParent)?;
        let is_well_formed = bytes.iter().enumerate().all(|(place, byte)| match place {
            0 | 1 => *byte == b'0',
            2 | 35 | 52 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
        if !is_well_formed {
            return Err(NoTraceParent);
        }
        let trace = TraceId::from_hex(&text[3..35]).map_err(|_| NoTraceParent)?;
        let span = SpanId::from_hex(&text[36..52]).map_err(|_| NoTraceParent)?;
        let flags = u8::from_str_radix(&text[53..], 16).map_err(|_| NoTraceParent)?;
        if trace == TraceId::INVALID || span == SpanId::INVALID {
            return Err(NoTraceParent);
        }
        Ok(Self { trace, span, sampled: flags & 1 == 1 })
    }
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_it_is_written_and_anything_else_is_none() {
        for text in [PARENT, &PARENT.replace("-01", "-00")] {
            assert_eq!(text.parse::<TraceParent>().unwrap().to_string(), text);
        }
        // Flags that are not known are not passed on.
        let flags = PARENT.replace("-01", "-ff").parse::<TraceParent>().unwrap();
        assert_eq!(flags.to_string(), PARENT);
        for wrong in [
            "",
            "00",
            &PARENT[..54],
            &format!("{PARENT}0"),
            &format!("{PARENT}-00"),
            &format!(" {}", &PARENT[..54]),
            &PARENT.replace("00-", "01-"),
            &PARENT.replace("00-", "ff-"),
            &PARENT.to_uppercase(),
            &PARENT.replace('b', "g"),
            &PARENT.replace("-b7", "0b7"),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            &PARENT.replace("0a", "ä"),
            &format!("{}a", "ä".repeat(27)),
        ] {
            assert_eq!(wrong.parse::<TraceParent>(), Err(NoTraceParent), "{wrong}");
        }
    }

    #[test]
    fn a_span_leaves_without_anything_that_is_not_on_the_list() {
        let context = SpanContext::empty_context();
        let span = SpanData {
            span_context: context,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "session".into(),
            start_time: std::time::SystemTime::UNIX_EPOCH,
            end_time: std::time::SystemTime::UNIX_EPOCH,
            attributes: vec![
                KeyValue::new("request", "r"),
                KeyValue::new("message", "secret"),
                KeyValue::new("digest", "secret"),
                KeyValue::new("tss.request", "secret"),
                KeyValue::new("outcome", "refused"),
            ],
            dropped_attributes_count: 0,
            events: opentelemetry_sdk::trace::SpanEvents::default(),
            links: opentelemetry_sdk::trace::SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: opentelemetry::InstrumentationScope::default(),
        };
        let span = censored(span);
        assert_eq!(
            span.attributes,
            [KeyValue::new("tss.request", "r"), KeyValue::new("tss.outcome", "refused")]
        );
        assert_eq!((span.span_kind, span.status), (SpanKind::Consumer, Status::error("")));
    }
}
