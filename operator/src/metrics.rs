//! What the operator counts.

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

    /// A controller has looked at an object.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, elapsed: std::time::Duration) {
        let _ = (controller, outcome, elapsed);
    }
}
