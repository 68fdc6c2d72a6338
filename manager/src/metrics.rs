//! What a manager counts. Every label is bounded by the code.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use tss_common::telemetry::register;
use tss_common::wire::WireError;

/// The metrics of a manager.
#[derive(Clone)]
pub struct Metrics {
    /// Requests that were accepted.
    pub accepted: IntCounter,
    /// Requests that were not, by the type of problem.
    pub rejected: IntCounterVec,
    /// Requests that ended, by outcome: completed or failed.
    pub finished: IntCounterVec,
    /// Seconds from acceptance to the signature.
    pub signing_seconds: Histogram,
    /// Seconds of each stage: queue, begin, sign, finish.
    pub stage_seconds: HistogramVec,
    /// Requests accepted and not ended.
    pub unfinished: IntGauge,
    /// Requests with an attempt under way.
    pub active: IntGauge,
    /// Attempts, by how they ended: signed, timeout, cheating, unattributed, local, unable, refused,
    /// silent, invalid, or bus.
    pub attempts: IntCounterVec,
    /// Requests taken over from another manager, or from an earlier run.
    pub taken_over: IntCounter,
    /// Signers that are alive.
    pub live_signers: IntGauge,
    /// How many signers are needed.
    pub threshold: IntGauge,
    /// 1 while a part can be reached: store or bus.
    pub up: IntGaugeVec,
    /// HTTP responses, by route, method and status.
    pub http: IntCounterVec,
    /// Messages that were not believed, by reason.
    dropped: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let seconds =
            vec![0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        Self {
            accepted: counter("tss_requests_accepted_total", "Requests that were stored and acknowledged."),
            rejected: counters(
                "tss_requests_rejected_total",
                "Requests that were not accepted, by type of problem.",
                &["problem"],
            ),
            finished: counters(
                "tss_requests_total",
                "Requests that ended, by outcome: completed or failed.",
                &["outcome"],
            ),
            signing_seconds: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "tss_signing_seconds",
                        "Seconds from a request's acceptance to its signature.",
                    )
                    .buckets(seconds.clone()),
                ),
            ),
            stage_seconds: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "tss_stage_seconds",
                        "Seconds of a request's stage: insert, queue, begin, sign or finish.",
                    )
                    .buckets(seconds),
                    &["stage"],
                ),
            ),
            unfinished: gauge("tss_requests_unfinished", "Requests this manager drives that have not ended."),
            active: gauge("tss_requests_active", "Requests with an attempt under way at this manager."),
            attempts: counters(
                "tss_attempts_total",
                "Attempts, by how they ended: signed, timeout, cheating, unattributed, local, unable, refused, \
                 silent, invalid or bus.",
                &["ending"],
            ),
            taken_over: counter(
                "tss_requests_taken_over_total",
                "Requests taken over from another manager or an earlier run.",
            ),
            live_signers: gauge("tss_live_signers", "Signers heard of in the last seconds."),
            threshold: gauge("tss_threshold", "Signers needed to sign."),
            up: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("tss_part_up", "1 while a part can be reached: store or bus."),
                    &["part"],
                ),
            ),
            http: counters(
                "tss_http_responses_total",
                "HTTP responses by route, method and status.",
                &["route", "method", "status"],
            ),
            dropped: counters(
                "tss_messages_dropped_total",
                "Messages in the name of signers that were not believed, by reason: version, forged, stale or \
                 malformed.",
                &["reason"],
            ),
        }
    }

    pub(crate) fn dropped(&self, reason: &WireError) {
        self.dropped.with_label_values(&[reason.kind()]).inc();
    }

    pub(crate) fn stage(&self, stage: &'static str, since: std::time::Instant) {
        self.stage_seconds.with_label_values(&[stage]).observe(since.elapsed().as_secs_f64());
    }
}
