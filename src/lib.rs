//! The root package of the TSS network. It has no code of its own: it is where the end-to-end
//! tests live (`tests/`), beside the crates they test.
