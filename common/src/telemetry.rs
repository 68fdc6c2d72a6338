//! Logs and metrics.

use std::io::IsTerminal as _;

use prometheus::{Encoder, Registry, TextEncoder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogConfig, LogFormat};

/// What is never logged, at whatever level: these libraries show whole messages, keys or answers. The
/// broker's library also reports as errors what the bus itself reports and mends.
const QUIET: [(&str, LevelFilter); 6] = [
    ("lapin", LevelFilter::OFF),
    ("amq_protocol", LevelFilter::OFF),
    ("mongodb", LevelFilter::OFF),
    ("hyper", LevelFilter::INFO),
    ("h2", LevelFilter::INFO),
    ("rustls", LevelFilter::INFO),
];

/// Starts logging to standard error for the whole process. `RUST_LOG` goes before the configured
/// level. A second call changes nothing.
pub fn init_logs(config: &LogConfig) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&config.level));
    // A filter of its own: in the other one, a part of a library that `RUST_LOG` names goes before all of it.
    let quiet = Targets::new().with_default(LevelFilter::TRACE).with_targets(QUIET);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_span_events(FmtSpan::NONE);
    // An error means that logging has started already.
    let _ = match config.format {
        LogFormat::Text => builder.with_target(false).finish().with(quiet).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().with(quiet).try_init(),
    };
}

/// The metrics of a registry in the Prometheus text format, and its content type.
pub fn render_metrics(registry: &Registry) -> (String, String) {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    if let Err(error) = encoder.encode(&registry.gather(), &mut text) {
        tracing::error!(%error, "metrics cannot be encoded");
    }
    (encoder.format_type().to_owned(), String::from_utf8_lossy(&text).into_owned())
}

/// Makes a metric and registers it.
///
/// # Panics
/// When the metric's name is malformed or registered twice: an error in this software, met at start.
pub fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("the names of metrics are well-formed");
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}
