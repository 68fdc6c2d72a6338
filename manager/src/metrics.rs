//! What a manager counts. Every label is bounded by the code.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use tss_common::labels;
use tss_common::telemetry::{Counters, Label as _, register};
use tss_common::wire::Disbelief;
use tss_mpc::Blame;

use crate::api::problem::Kind;
use crate::auth::Refusal;

labels! {
    /// How a request ended.
    pub enum Finish {
        /// With a signature.
        Completed = "completed",
        /// Without one.
        Failed = "failed",
    }
}

labels! {
    /// How an attempt ended.
    pub enum AttemptEnd {
        /// With a signature.
        Signed = "signed",
        /// Signers waited for others in vain.
        Timeout = "timeout",
        /// A signer says that another cheated.
        Cheating = "cheating",
        /// Somebody cheated, and nobody knows who.
        Unattributed = "unattributed",
        /// A signer was at fault itself.
        Local = "local",
        /// A signer could not take part.
        Unable = "unable",
        /// A signer would not.
        Refused = "refused",
        /// No signer said anything.
        Silent = "silent",
        /// A signer reported a signature that is none.
        Invalid = "invalid",
        /// The signers could not be told.
        Bus = "bus",
    }
}

impl From<&Blame> for AttemptEnd {
    fn from(blame: &Blame) -> Self {
        match blame {
            Blame::Timeout { .. } => Self::Timeout,
            Blame::Cheating { .. } => Self::Cheating,
            Blame::Unattributed { .. } => Self::Unattributed,
            Blame::Local => Self::Local,
        }
    }
}

labels! {
    /// A stage of a request.
    pub enum Stage {
        /// It is stored, before it is acknowledged.
        Insert = "insert",
        /// It waits for its turn.
        Queue = "queue",
        /// An attempt is marked in the store.
        Begin = "begin",
        /// The signers sign.
        Sign = "sign",
        /// How it ended is stored.
        Finish = "finish",
    }
}

labels! {
    /// A part that a manager needs.
    pub enum Part {
        /// Where requests are kept.
        Store = "store",
        /// What carries messages.
        Bus = "bus",
    }
}

/// The metrics of a manager.
#[derive(Clone)]
pub struct Metrics {
    /// Requests that were accepted.
    pub accepted: IntCounter,
    /// Requests that were not, by the type of problem.
    pub rejected: Counters<Kind>,
    /// Callers that were turned away, by reason.
    pub turned_away: Counters<Refusal>,
    /// Requests that ended, by outcome.
    pub finished: Counters<Finish>,
    /// Seconds from acceptance to the signature.
    pub signing_seconds: Histogram,
    /// Seconds of each stage.
    stage_seconds: HistogramVec,
    /// Requests accepted and not ended.
    pub unfinished: IntGauge,
    /// Requests with an attempt under way.
    pub active: IntGauge,
    /// Attempts, by how they ended.
    pub attempts: Counters<AttemptEnd>,
    /// Requests taken over from another manager, or from an earlier run.
    pub taken_over: IntCounter,
    /// Signers that are alive.
    pub live_signers: IntGauge,
    /// How many signers there are.
    pub signers: IntGauge,
    /// How many signers are needed.
    pub threshold: IntGauge,
    /// The epoch of the key that signs when a request names none; 0 while none is on record.
    pub key_epoch: IntGauge,
    /// When the API's certificate expires, in seconds since 1970; 0 without TLS.
    pub certificate_expiry: IntGauge,
    /// 1 while a part can be reached.
    up: IntGaugeVec,
    /// HTTP responses, by route, method and status. Which there can be is on no list: each is there from its
    /// first on.
    pub http: IntCounterVec,
    /// Messages that were not believed, by reason.
    pub dropped: Counters<Disbelief>,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let seconds =
            vec![0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        let stage_seconds = register(
            registry,
            HistogramVec::new(
                HistogramOpts::new(
                    "tss_stage_seconds",
                    "Seconds of a request's stage: insert, queue, begin, sign or finish.",
                )
                .buckets(seconds.clone()),
                &["stage"],
            ),
        );
        let up = register(
            registry,
            IntGaugeVec::new(
                Opts::new("tss_part_up", "1 while a part can be reached: store or bus."),
                &["part"],
            ),
        );
        // What is counted later is there from the start.
        for stage in Stage::ALL {
            stage_seconds.with_label_values(&[stage.as_str()]);
        }
        for part in Part::ALL {
            up.with_label_values(&[part.as_str()]);
        }
        Self {
            accepted: counter("tss_requests_accepted_total", "Requests that were stored and acknowledged."),
            rejected: Counters::new(
                registry,
                "tss_requests_rejected_total",
                "Requests that were not accepted, by type of problem.",
                "problem",
            ),
            turned_away: Counters::new(
                registry,
                "tss_callers_turned_away_total",
                "Calls of the API that were turned away, by reason: the token, what it allows, or too many.",
                "reason",
            ),
            finished: Counters::new(
                registry,
                "tss_requests_total",
                "Requests that ended, by outcome: completed or failed.",
                "outcome",
            ),
            signing_seconds: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "tss_signing_seconds",
                        "Seconds from a request's acceptance to its signature.",
                    )
                    .buckets(seconds),
                ),
            ),
            stage_seconds,
            unfinished: gauge("tss_requests_unfinished", "Requests this manager drives that have not ended."),
            active: gauge("tss_requests_active", "Requests with an attempt under way at this manager."),
            attempts: Counters::new(
                registry,
                "tss_attempts_total",
                "Attempts, by how they ended: signed, timeout, cheating, unattributed, local, unable, refused, \
                 silent, invalid or bus.",
                "ending",
            ),
            taken_over: counter(
                "tss_requests_taken_over_total",
                "Requests taken over from another manager or an earlier run.",
            ),
            live_signers: gauge("tss_live_signers", "Signers heard of in the last seconds."),
            signers: gauge("tss_signers", "Signers that there are."),
            threshold: gauge("tss_threshold", "Signers needed to sign."),
            key_epoch: gauge(
                "tss_key_epoch",
                "Epoch of the key that signs when a request names none; 0 while none is on record.",
            ),
            certificate_expiry: gauge(
                "tss_certificate_expiry_timestamp_seconds",
                "When the certificate of the manager's API expires, in seconds since 1970; 0 without TLS.",
            ),
            up,
            http: register(
                registry,
                IntCounterVec::new(
                    Opts::new("tss_http_responses_total", "HTTP responses by route, method and status."),
                    &["route", "method", "status"],
                ),
            ),
            dropped: Counters::new(
                registry,
                "tss_messages_dropped_total",
                "Messages in the name of signers that were not believed, by reason: version, forged, stale or \
                 malformed.",
                "reason",
            ),
        }
    }

    pub(crate) fn stage(&self, stage: Stage, since: std::time::Instant) {
        self.stage_seconds.with_label_values(&[stage.as_str()]).observe(since.elapsed().as_secs_f64());
    }

    pub(crate) fn up(&self, part: Part, up: bool) {
        self.up.with_label_values(&[part.as_str()]).set(up.into());
    }
}

#[cfg(test)]
mod tests {
    use tss_common::telemetry::render_metrics;

    use super::*;

    #[test]
    fn what_can_be_counted_is_there_from_the_start() {
        let registry = Registry::new();
        let _metrics = Metrics::new(&registry);
        let (_, text) = render_metrics(&registry);
        for line in [
            r#"tss_requests_accepted_total 0"#,
            r#"tss_requests_rejected_total{problem="overloaded"} 0"#,
            r#"tss_requests_rejected_total{problem="idempotency-conflict"} 0"#,
            r#"tss_callers_turned_away_total{reason="expired"} 0"#,
            r#"tss_requests_total{outcome="completed"} 0"#,
            r#"tss_requests_total{outcome="failed"} 0"#,
            r#"tss_signing_seconds_count 0"#,
            r#"tss_stage_seconds_count{stage="begin"} 0"#,
            r#"tss_stage_seconds_bucket{stage="finish",le="+Inf"} 0"#,
            r#"tss_attempts_total{ending="signed"} 0"#,
            r#"tss_attempts_total{ending="cheating"} 0"#,
            r#"tss_attempts_total{ending="bus"} 0"#,
            r#"tss_messages_dropped_total{reason="forged"} 0"#,
            r#"tss_requests_taken_over_total 0"#,
            r#"tss_part_up{part="bus"} 0"#,
            r#"tss_part_up{part="store"} 0"#,
            r#"tss_live_signers 0"#,
            r#"tss_key_epoch 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
