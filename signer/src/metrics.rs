//! What a signer counts. Every label is bounded: signers by their index, the rest by the code.

use prometheus::core::{MetricVec, MetricVecBuilder};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tss_common::envelope::Unreadable;
use tss_common::labels;
use tss_common::telemetry::{Label, register};
use tss_mpc::{Blame, SignerIndex};

use crate::policy::Rule;

/// The metrics of all signers of one process.
#[derive(Clone)]
pub struct Metrics {
    sessions_active: IntGaugeVec,
    sessions: IntCounterVec,
    stage_seconds: HistogramVec,
    aborts: IntCounterVec,
    dropped: IntCounterVec,
    key_epoch: IntGaugeVec,
    banned: IntGaugeVec,
    bus_up: IntGaugeVec,
    policy_valid: IntGaugeVec,
    policy_refusals: IntCounterVec,
}

labels! {
    /// A stage of a session.
    pub enum Stage {
        /// Until every party has shown its nonce.
        Join = "join",
        /// From there to the signature.
        Rounds = "rounds",
    }
}

labels! {
    /// How an attempt ended at a signer.
    pub enum SessionEnd {
        /// With a signature.
        Signed = "signed",
        /// The protocol ended early.
        Aborted = "aborted",
        /// The signer would not take part.
        Refused = "refused",
        /// The signer could not.
        Unable = "unable",
        /// It came after its time.
        Expired = "expired",
    }
}

labels! {
    /// Whose fault an abort is.
    pub enum Fault {
        /// Others did not answer in time.
        Timeout = "timeout",
        /// Others sent what no honest party sends.
        Cheating = "cheating",
        /// Somebody did, and nobody knows who.
        Unattributed = "unattributed",
        /// The signer's own.
        Local = "local",
    }
}

impl From<&Blame> for Fault {
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
    /// Why an envelope was not used.
    pub enum Dropped {
        /// It cannot be read.
        Malformed = "malformed",
        /// It is too long.
        TooLong = "too_long",
        /// It is of another version.
        Version = "version",
        /// It is for another signer.
        Misrouted = "misrouted",
        /// Its sender is not in the roster.
        Unknown = "unknown",
        /// Its signature is not the sender's.
        Forged = "forged",
        /// It cannot be opened.
        Sealed = "sealed",
        /// Its sender is not part of the quorum.
        Stranger = "stranger",
        /// It is for a session with another id.
        WrongSession = "wrong_session",
        /// Its session has ended, or has not begun.
        Late = "late",
        /// It came before.
        Duplicate = "duplicate",
        /// There are too many.
        Overflow = "overflow",
    }
}

impl From<Unreadable> for Dropped {
    fn from(reason: Unreadable) -> Self {
        match reason {
            Unreadable::Malformed => Self::Malformed,
            Unreadable::TooLong => Self::TooLong,
            Unreadable::Version => Self::Version,
            Unreadable::Misrouted => Self::Misrouted,
            Unreadable::Unknown => Self::Unknown,
            Unreadable::Forged => Self::Forged,
            Unreadable::Sealed => Self::Sealed,
        }
    }
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        Self {
            sessions_active: gauge(
                "tss_signer_sessions_active",
                "Sessions a signer takes part in now.",
                &["signer"],
            ),
            sessions: counter(
                "tss_signer_sessions_total",
                "Sessions that ended, by outcome: signed, aborted, refused, unable or expired.",
                &["signer", "outcome"],
            ),
            stage_seconds: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "tss_signer_stage_seconds",
                        "Seconds a session spent in a stage: join (until all parties are there) or rounds.",
                    )
                    .buckets(buckets),
                    &["signer", "stage"],
                ),
            ),
            aborts: counter(
                "tss_signer_aborts_total",
                "Sessions that aborted, by whose fault: timeout, cheating, unattributed or local.",
                &["signer", "kind"],
            ),
            dropped: counter(
                "tss_signer_envelopes_dropped_total",
                "Protocol messages that were not used, by reason.",
                &["signer", "reason"],
            ),
            key_epoch: gauge(
                "tss_signer_key_epoch",
                "Epoch of the share a signer holds.",
                &["signer", "key"],
            ),
            banned: gauge(
                "tss_signer_banned",
                "How many signers this one never signs with again.",
                &["signer"],
            ),
            bus_up: gauge(
                "tss_signer_bus_up",
                "1 while the signer is connected to the message bus.",
                &["signer"],
            ),
            policy_valid: gauge(
                "tss_signer_policy_valid",
                "0 while the policy file cannot be used and an earlier policy stays in force; absent without one.",
                &["signer"],
            ),
            policy_refusals: counter(
                "tss_signer_policy_refusals_total",
                "Attempts that the policy kept a signer out of, by rule: key, path, hash, expiry, rate or approvals.",
                &["signer", "rule"],
            ),
        }
    }

    /// The metrics of one signer. What it counts is there from now on, at 0: else the first event of its kind would
    /// be no increase for whoever watches.
    pub fn of(&self, signer: SignerIndex) -> SignerMetrics {
        let signer = signer.to_string();
        begin::<SessionEnd>(&self.sessions, &signer);
        begin::<Fault>(&self.aborts, &signer);
        begin::<Dropped>(&self.dropped, &signer);
        begin::<Rule>(&self.policy_refusals, &signer);
        begin::<Stage>(&self.stage_seconds, &signer);
        for gauge in [&self.sessions_active, &self.banned, &self.bus_up] {
            gauge.with_label_values(&[&signer]);
        }
        SignerMetrics { all: self.clone(), signer }
    }
}

/// Makes a signer's metrics for all values of a label.
fn begin<L: Label>(metrics: &MetricVec<impl MetricVecBuilder>, signer: &str) {
    for label in L::ALL {
        metrics.with_label_values(&[signer, label.as_str()]);
    }
}

/// The metrics of one signer.
#[derive(Clone)]
pub struct SignerMetrics {
    all: Metrics,
    signer: String,
}

impl SignerMetrics {
    pub(crate) fn sessions_active(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.all.sessions_active.with_label_values(&[&self.signer]).set(count);
    }

    pub(crate) fn session_ended(&self, end: SessionEnd) {
        self.all.sessions.with_label_values(&[self.signer.as_str(), end.as_str()]).inc();
    }

    pub(crate) fn stage(&self, stage: Stage, seconds: f64) {
        let labels = [self.signer.as_str(), stage.as_str()];
        self.all.stage_seconds.with_label_values(&labels).observe(seconds);
    }

    pub(crate) fn aborted(&self, fault: Fault) {
        self.all.aborts.with_label_values(&[self.signer.as_str(), fault.as_str()]).inc();
    }

    pub(crate) fn dropped(&self, reason: Dropped) {
        self.all.dropped.with_label_values(&[self.signer.as_str(), reason.as_str()]).inc();
    }

    pub(crate) fn key(&self, key: &str, epoch: u64) {
        let epoch = i64::try_from(epoch).unwrap_or(i64::MAX);
        self.all.key_epoch.with_label_values(&[self.signer.as_str(), key]).set(epoch);
    }

    pub(crate) fn banned(&self, count: usize) {
        self.all.banned.with_label_values(&[&self.signer]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn bus_up(&self, up: bool) {
        self.all.bus_up.with_label_values(&[&self.signer]).set(up.into());
    }

    pub(crate) fn policy_valid(&self, valid: bool) {
        self.all.policy_valid.with_label_values(&[&self.signer]).set(valid.into());
    }

    pub(crate) fn policy_refused(&self, rule: Rule) {
        self.all.policy_refusals.with_label_values(&[self.signer.as_str(), rule.as_str()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use tss_common::telemetry::render_metrics;

    use super::*;

    #[test]
    fn what_can_be_counted_is_there_from_the_start() {
        let registry = Registry::new();
        let _metrics = Metrics::new(&registry).of(SignerIndex::new(2).unwrap());
        let (_, text) = render_metrics(&registry);
        for line in [
            r#"tss_signer_sessions_active{signer="2"} 0"#,
            r#"tss_signer_sessions_total{outcome="signed",signer="2"} 0"#,
            r#"tss_signer_sessions_total{outcome="expired",signer="2"} 0"#,
            r#"tss_signer_stage_seconds_count{signer="2",stage="join"} 0"#,
            r#"tss_signer_stage_seconds_count{signer="2",stage="rounds"} 0"#,
            r#"tss_signer_aborts_total{kind="cheating",signer="2"} 0"#,
            r#"tss_signer_envelopes_dropped_total{reason="forged",signer="2"} 0"#,
            r#"tss_signer_envelopes_dropped_total{reason="overflow",signer="2"} 0"#,
            r#"tss_signer_policy_refusals_total{rule="approvals",signer="2"} 0"#,
            r#"tss_signer_banned{signer="2"} 0"#,
            r#"tss_signer_bus_up{signer="2"} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
