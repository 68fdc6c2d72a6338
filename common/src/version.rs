//! Which version of the software this is.

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The revision it was built from; `development` in a debug build, `unknown` where nobody could tell.
pub const REVISION: &str = env!("TSS_REVISION");

/// Both, as `--version` shows them after the program's name.
pub const FULL: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TSS_REVISION"), ")");
