//! Files with secrets in them.

use std::fs::Metadata;
use std::io::{Error, Read};
use std::os::unix::fs::PermissionsExt as _;

use zeroize::Zeroizing;

/// That only its owner and group can read a file, or change it.
///
/// # Errors
/// Saying what was expected.
pub fn check(file: &Metadata) -> Result<(), String> {
    let mode = file.permissions().mode() & 0o777;
    if mode & 0o007 == 0 {
        return Ok(());
    }
    Err(format!(
        "its permissions are {mode:04o}, so everybody can read or change it: expected 0600 or 0440 (chmod 600)"
    ))
}

/// All that is in it, if that is not more than `most` bytes.
///
/// # Errors
/// When it is, or cannot be read.
pub fn read(from: impl Read, most: u64) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // All the room at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(most).unwrap_or_default() + 1));
    from.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(Error::other(format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}
