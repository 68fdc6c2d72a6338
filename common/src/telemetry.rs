//! Logs and metrics.

use std::io::IsTerminal as _;
use std::marker::PhantomData;

use prometheus::core::Collector;
use prometheus::{Encoder, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::config::{Config, LogConfig, LogFormat};
use crate::trace::Traces;
use crate::version;

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
    init(config, None);
}

/// As [`init_logs`]; and sends traces, in the name of this program, if the configuration says where to.
///
/// # Errors
/// When traces cannot be sent, whether a collector is there or not.
pub fn init_logs_and_traces(config: &Config, program: &'static str) -> anyhow::Result<Traces> {
    let traces = Traces::open(config, program)?;
    init(&config.log, Some(&traces));
    Ok(traces)
}

fn init(config: &LogConfig, traces: Option<&Traces>) {
    let lines = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(&config.level));
    // Whatever is logged is logged with the request it belongs to.
    let spans = filter_fn(names_what_lines_belong_to).with_max_level_hint(LevelFilter::INFO);
    // A filter of its own: in the other one, a part of a library that `RUST_LOG` names goes before all of it.
    let quiet = Targets::new().with_default(LevelFilter::TRACE).with_targets(QUIET);
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer = match config.format {
        LogFormat::Text => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let logs = layer.with_filter(lines.or(spans).and(quiet));
    // An error means that logging has started already.
    let _ = tracing_subscriber::registry().with(logs).with(traces.and_then(Traces::layer)).try_init();
}

fn names_what_lines_belong_to(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && *metadata.level() <= Level::INFO && metadata.target().starts_with("tss_")
}

/// The metrics of a program, with `tss_build_info` among them.
pub fn registry(program: &str) -> Registry {
    let registry = Registry::new();
    let options = Opts::new("tss_build_info", "Always 1: which program this is.");
    register(&registry, IntGaugeVec::new(options, &["program", "version", "revision"]))
        .with_label_values(&[program, version::VERSION, version::REVISION])
        .set(1);
    registry
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
pub fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("the names of metrics are well-formed");
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}

/// All values that a metric's label can have. [`labels!`](crate::labels) makes them.
pub trait Label: Copy + 'static {
    /// Each of them.
    const ALL: &'static [Self];

    /// As it stands in metrics.
    fn as_str(self) -> &'static str;
}

/// An enum that is a metric's [`Label`], in one list:
///
/// ```
/// tss_common::labels! {
///     /// How it ended.
///     pub enum Outcome {
///         /// Well.
///         Signed = "signed",
///         /// Badly.
///         Failed = "failed",
///     }
/// }
/// ```
#[macro_export]
macro_rules! labels {
    ($(#[$about:meta])* $visible:vis enum $name:ident { $($(#[$doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visible enum $name { $($(#[$doc])* $value,)+ }

        impl $crate::telemetry::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$value,)+];

            fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }
    };
}

/// Counters by a label. All are there from the start, at 0: else the first event of its kind would be no increase
/// for whoever watches.
#[derive(Clone)]
pub struct Counters<L> {
    counters: IntCounterVec,
    label: PhantomData<L>,
}

impl<L: Label> Counters<L> {
    /// Registers them.
    pub fn new(registry: &Registry, name: &str, help: &str, label: &str) -> Self {
        let counters = register(registry, IntCounterVec::new(Opts::new(name, help), &[label]));
        for value in L::ALL {
            counters.with_label_values(&[value.as_str()]);
        }
        Self { counters, label: PhantomData }
    }

    /// One more of these.
    pub fn inc(&self, label: L) {
        self.counters.with_label_values(&[label.as_str()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_says_which_program_it_is_of() {
        let (_, text) = render_metrics(&registry("manager"));
        let labels = format!(
            "program=\"manager\",revision=\"{}\",version=\"{}\"",
            version::REVISION,
            version::VERSION
        );
        assert!(text.contains(&format!("tss_build_info{{{labels}}} 1\n")), "{text}");
    }
}
