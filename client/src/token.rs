//! The token that says who asks.

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use crate::Error;

/// The longest token, in bytes. The HTTP library of the manager takes no longer headers than about this.
const MAX_TOKEN: u64 = 16 << 10;

/// Where the token comes from. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub(crate) enum Token {
    /// The token itself.
    Text(Zeroizing<String>),
    /// A file that has it, and may have another one later.
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Token"),
            Self::File(file) => write!(f, "Token({})", file.display()),
        }
    }
}

impl Token {
    /// The header's value, as it is now.
    pub(crate) async fn header(&self) -> Result<HeaderValue, Error> {
        match self {
            Self::Text(text) => {
                bearer(text).map_err(|problem| Error::Settings { what: "token".into(), problem })
            }
            Self::File(file) => {
                let wrong = |problem| Error::Token { file: file.clone(), problem };
                let text = read(file).await.map_err(|error| wrong(error.to_string()))?;
                bearer(text.trim_ascii()).map_err(wrong)
            }
        }
    }
}

async fn read(file: &Path) -> std::io::Result<Zeroizing<String>> {
    let file = tokio::fs::File::open(file).await?;
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(MAX_TOKEN).unwrap_or_default()));
    file.take(MAX_TOKEN.saturating_add(1)).read_to_string(&mut text).await?;
    Ok(text)
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    if token.is_empty() {
        return Err("it is empty: expected a token".into());
    }
    if token.len() as u64 > MAX_TOKEN {
        return Err(format!("it has more than {MAX_TOKEN} bytes: expected a token"));
    }
    // The error says nothing of what there is.
    let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    let header = Zeroizing::new(format!("Bearer {token}"));
    let value = HeaderValue::from_str(&header).ok().filter(|_| plain);
    let mut value =
        value.ok_or("it has spaces or other characters that none has: expected one token alone")?;
    value.set_sensitive(true);
    Ok(value)
}
