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
}
