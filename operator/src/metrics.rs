//! What the operator counts. Every label is bounded by the code.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use tss_common::labels;
use tss_common::telemetry::{Label, register};

const CANARY_LABELS: [&str; 2] = ["namespace", "cluster"];

/// The metrics of an operator.
#[derive(Clone)]
pub struct Metrics {
    /// Seconds of each pass, by controller and outcome.
    reconcile_seconds: HistogramVec,
    /// Objects, by controller and state.
    objects: IntGaugeVec,
    /// 1 while this operator works, 0 while it stands by.
    leader: IntGauge,
    canary_interval: IntGaugeVec,
    canary_last_success: IntGaugeVec,
    canary_seconds: GaugeVec,
    canaries: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics.
    pub fn new(registry: &Registry) -> Self {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        Self {
            reconcile_seconds: register(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "tss_operator_reconcile_seconds",
                        "Seconds of each pass over an object, by controller and outcome.",
                    )
                    // A pass that changes nothing takes milliseconds; one that waits for a slow API server, seconds.
                    .buckets(vec![
                        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
                    ]),
                    &["controller", "outcome"],
                ),
            ),
            objects: gauges(
                "tss_operator_objects",
                "Objects, by controller and state.",
                &["controller", "state"],
            ),
            leader: register(
                registry,
                IntGauge::new("tss_operator_leader", "1 while this operator works, 0 while it stands by."),
            ),
            canary_interval: gauges(
                "tss_canary_interval_seconds",
                "Seconds from one canary of a TssCluster to the next.",
                &CANARY_LABELS,
            ),
            canary_last_success: gauges(
                "tss_canary_last_success_timestamp_seconds",
                "When a canary of a TssCluster was signed last, in seconds since 1970; 0 when none ever was.",
                &CANARY_LABELS,
            ),
            canary_seconds: register(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "tss_canary_seconds",
                        "Seconds that the last canary to be signed took, to the precision of Kubernetes' times.",
                    ),
                    &CANARY_LABELS,
                ),
            ),
            canaries: register(
                registry,
                IntCounterVec::new(
                    Opts::new("tss_canary_total", "Canaries that ended, by outcome: completed or failed."),
                    &["namespace", "cluster", "outcome"],
                ),
            ),
        }
    }

    /// A pass over an object took so long and ended like this.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, elapsed: Duration) {
        self.reconcile_seconds.with_label_values(&[controller, outcome]).observe(elapsed.as_secs_f64());
    }

    /// A controller's passes can end like this: they are counted from 0 on.
    pub fn begin<L: Label>(&self, controller: &'static str) {
        for outcome in L::ALL {
            self.reconcile_seconds.with_label_values(&[controller, outcome.as_str()]);
        }
    }

    /// In which state each of a controller's objects is.
    pub fn objects<L: Label + PartialEq>(&self, controller: &'static str, states: &[L]) {
        for state in L::ALL {
            let count = states.iter().filter(|found| *found == state).count();
            let gauge = self.objects.with_label_values(&[controller, state.as_str()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// The canary of a TssCluster. There are as many as there are such objects; what is gone is taken out with
    /// [`Metrics::no_canary`].
    pub fn canary<'a>(&'a self, namespace: &'a str, cluster: &'a str) -> Canary<'a> {
        let labels = [namespace, cluster];
        // They are there before the first success and the first failure.
        self.canary_last_success.with_label_values(&labels);
        for outcome in Fate::ALL {
            self.canaries.with_label_values(&[namespace, cluster, outcome.as_str()]);
        }
        Canary { metrics: self, labels }
    }

    /// A TssCluster has no canary any more.
    pub fn no_canary(&self, namespace: &str, cluster: &str) {
        let labels = [namespace, cluster];
        // What is not there need not be removed.
        drop(self.canary_interval.remove_label_values(&labels));
        drop(self.canary_last_success.remove_label_values(&labels));
        drop(self.canary_seconds.remove_label_values(&labels));
        for outcome in Fate::ALL {
            drop(self.canaries.remove_label_values(&[namespace, cluster, outcome.as_str()]));
        }
    }

    /// Whether this operator works, or stands by.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}

labels! {
    /// What became of a canary.
    enum Fate {
        /// It was signed.
        Completed = "completed",
        /// It was not.
        Failed = "failed",
    }
}

/// The metrics of one cluster's canary.
pub struct Canary<'a> {
    metrics: &'a Metrics,
    labels: [&'a str; 2],
}

impl Canary<'_> {
    /// One is asked for each so many seconds.
    pub fn interval(&self, seconds: i32) {
        self.metrics.canary_interval.with_label_values(&self.labels).set(seconds.into());
    }

    /// One has ended.
    pub fn ended(&self, signed: bool) {
        let [namespace, cluster] = self.labels;
        let outcome = if signed { Fate::Completed } else { Fate::Failed };
        self.metrics.canaries.with_label_values(&[namespace, cluster, outcome.as_str()]).inc();
    }

    /// The last that was signed.
    pub fn succeeded(&self, at: Timestamp, took: Duration) {
        self.metrics.canary_last_success.with_label_values(&self.labels).set(at.as_second());
        self.metrics.canary_seconds.with_label_values(&self.labels).set(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use tss_common::telemetry::render_metrics;

    use super::*;
    use crate::signing_request::count::ClusterState;

    #[test]
    fn what_is_counted_is_rendered() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        metrics.reconciled("tsscluster", "applied", Duration::from_millis(20));
        metrics.begin::<ClusterState>("signingrequest");
        metrics.objects("tsscluster", &[ClusterState::Ready, ClusterState::Unreadable, ClusterState::Ready]);
        metrics.leads(true);
        let (_, text) = render_metrics(&registry);
        for line in [
            r#"tss_operator_reconcile_seconds_count{controller="tsscluster",outcome="applied"} 1"#,
            r#"tss_operator_reconcile_seconds_bucket{controller="tsscluster",outcome="applied",le="0.025"} 1"#,
            r#"tss_operator_reconcile_seconds_count{controller="signingrequest",outcome="not_ready"} 0"#,
            r#"tss_operator_objects{controller="tsscluster",state="ready"} 2"#,
            r#"tss_operator_objects{controller="tsscluster",state="not_ready"} 0"#,
            r#"tss_operator_objects{controller="tsscluster",state="unreadable"} 1"#,
            "tss_operator_leader 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn a_canary_is_counted_until_it_is_gone() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let canary = metrics.canary("wallets", "demo");
        canary.interval(60);
        let labels = r#"cluster="demo",namespace="wallets""#;
        let has = |line: &str| render_metrics(&registry).1.lines().any(|found| found == line);
        assert!(has(&format!("tss_canary_last_success_timestamp_seconds{{{labels}}} 0")));
        canary.ended(true);
        canary.ended(false);
        canary.succeeded(Timestamp::from_second(1_700_000_000).unwrap(), Duration::from_millis(500));
        for line in [
            format!("tss_canary_interval_seconds{{{labels}}} 60"),
            format!("tss_canary_last_success_timestamp_seconds{{{labels}}} 1700000000"),
            format!("tss_canary_seconds{{{labels}}} 0.5"),
            format!(r#"tss_canary_total{{cluster="demo",namespace="wallets",outcome="completed"}} 1"#),
            format!(r#"tss_canary_total{{cluster="demo",namespace="wallets",outcome="failed"}} 1"#),
        ] {
            assert!(has(&line), "{line} is not in:\n{}", render_metrics(&registry).1);
        }
        metrics.no_canary("wallets", "demo");
        assert!(!render_metrics(&registry).1.contains("wallets"));
    }
}
