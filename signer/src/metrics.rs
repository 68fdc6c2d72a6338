//! What a signer counts. Every label is bounded: signers by their index, the rest by the code.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use tss_common::envelope::Unreadable;
use tss_common::telemetry::register;
use tss_mpc::SignerIndex;

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

/// A stage of a session.
#[derive(Clone, Copy, Debug)]
pub enum Stage {
    /// Until every party has shown its nonce.
    Join,
    /// From there to the signature.
    Rounds,
}

/// Why an envelope was not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// It cannot be read.
    Malformed,
    /// It is too long.
    TooLong,
    /// It is of another version.
    Version,
    /// It is for another signer.
    Misrouted,
    /// Its sender is not in the roster.
    Unknown,
    /// Its signature is not the sender's.
    Forged,
    /// It cannot be opened.
    Sealed,
    /// Its sender is not part of the quorum.
    Stranger,
    /// It is for a session with another id.
    WrongSession,
    /// Its session has ended, or has not begun.
    Late,
    /// It came before.
    Duplicate,
    /// There are too many.
    Overflow,
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

impl Dropped {
    fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Version => "version",
            Self::Misrouted => "misrouted",
            Self::Unknown => "unknown",
            Self::Forged => "forged",
            Self::Sealed => "sealed",
            Self::Stranger => "stranger",
            Self::WrongSession => "wrong_session",
            Self::Late => "late",
            Self::Duplicate => "duplicate",
            Self::Overflow => "overflow",
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

    /// The metrics of one signer.
    pub fn of(&self, signer: SignerIndex) -> SignerMetrics {
        SignerMetrics { all: self.clone(), signer: signer.to_string() }
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

    pub(crate) fn session_ended(&self, outcome: &'static str) {
        self.all.sessions.with_label_values(&[self.signer.as_str(), outcome]).inc();
    }

    pub(crate) fn stage(&self, stage: Stage, seconds: f64) {
        let stage = match stage {
            Stage::Join => "join",
            Stage::Rounds => "rounds",
        };
        self.all.stage_seconds.with_label_values(&[self.signer.as_str(), stage]).observe(seconds);
    }

    pub(crate) fn aborted(&self, kind: &'static str) {
        self.all.aborts.with_label_values(&[self.signer.as_str(), kind]).inc();
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
