//! What the operator counts. Every label is bounded by the code.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntGauge, IntGaugeVec, Opts, Registry};
use tss_common::telemetry::{Label, register};

/// The metrics of an operator.
#[derive(Clone)]
pub struct Metrics {
    /// Seconds of each pass, by controller and outcome.
    reconcile_seconds: HistogramVec,
    /// Objects, by controller and state.
    objects: IntGaugeVec,
    /// 1 while this operator works, 0 while it stands by.
    leader: IntGauge,
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

    /// Whether this operator works, or stands by.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
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
}
