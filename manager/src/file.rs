//! Files that a manager reads again when they change: certificates and secrets.

use std::path::Path;

use anyhow::{Context as _, anyhow};

/// The longest file, in bytes. A chain of three certificates has about 6 KiB.
const MAX_FILE: u64 = 1 << 20;

/// All of a file.
///
/// # Errors
/// When it cannot be read or is too long, with its name.
pub(crate) async fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = || path.display().to_string();
    let length = tokio::fs::metadata(path).await.with_context(name)?.len();
    if length > MAX_FILE {
        return Err(anyhow!("{length} bytes: expected at most {MAX_FILE}")).with_context(name);
    }
    tokio::fs::read(path).await.with_context(name)
}
