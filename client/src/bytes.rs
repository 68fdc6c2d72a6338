//! Bytes that are hex in JSON.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `N` bytes; twice as many hex digits as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hex<const N: usize>(pub [u8; N]);

/// Any number of bytes; twice as many hex digits as text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HexBytes(pub Vec<u8>);

/// A text that is no such bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got} characters: expected {expected}")]
pub struct NotHex {
    got: usize,
    expected: String,
}

impl<const N: usize> FromStr for Hex<N> {
    type Err = NotHex;

    /// Of hex digits, with or without `0x`.
    fn from_str(text: &str) -> Result<Self, NotHex> {
        let mut bytes = [0; N];
        match hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => Err(NotHex {
                got: text.chars().count(),
                expected: format!("{} hex digits", N.saturating_mul(2)),
            }),
        }
    }
}

impl FromStr for HexBytes {
    type Err = NotHex;

    /// Of hex digits, with or without `0x`.
    fn from_str(text: &str) -> Result<Self, NotHex> {
        match hex::decode(text.strip_prefix("0x").unwrap_or(text)) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => {
                Err(NotHex { got: text.chars().count(), expected: "an even number of hex digits".to_owned() })
            }
        }
    }
}

macro_rules! bytes {
    ($([$($generics:tt)*] $type:ty),*) => {$(
        impl<$($generics)*> fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0))
            }
        }

        impl<$($generics)*> fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl<$($generics)*> TryFrom<String> for $type {
            type Error = NotHex;
            fn try_from(text: String) -> Result<Self, NotHex> {
                text.parse()
            }
        }

        impl<$($generics)*> From<$type> for String {
            fn from(bytes: $type) -> Self {
                bytes.to_string()
            }
        }

        impl<$($generics)*> AsRef<[u8]> for $type {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
    )*};
}

bytes!([const N: usize] Hex<N>, [] HexBytes);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_hex_digits_of_the_right_number() {
        let bytes: Hex<2> = "0x01fF".parse().unwrap();
        assert_eq!((bytes.0, bytes.to_string()), ([1, 255], "01ff".to_owned()));
        assert_eq!(serde_json::to_string(&bytes).unwrap(), "\"01ff\"");
        assert_eq!(serde_json::from_str::<HexBytes>("\"01ff\"").unwrap().0, [1, 255]);
        for text in ["", "01", "01ff02", "01fg", "1ff"] {
            let error = text.parse::<Hex<2>>().unwrap_err().to_string();
            assert!(error.contains("expected 4 hex digits"), "{error}");
        }
        assert!(HexBytes::from_str("123").unwrap_err().to_string().contains("an even number"));
    }
}
