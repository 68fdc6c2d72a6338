//! `operator`: reconciles `TssCluster` and `SigningRequest`.

fn main() {}
