//! What the fuzz targets share: how an input's bytes are read, edits of something valid, and the test
//! key.
//!
//! In the targets a panic is a finding, be it the code's own or that of an assertion.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

use std::collections::BTreeMap;
use std::fmt::Debug;

use tss_mpc::{ShareDocument, SignerIndex};

/// An input, read from its front. Past its end it yields zeros, so that every input means something.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Reads these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next bytes as an array.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.take(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A number below `bound`, or 0 if that is 0, from three bytes.
    pub fn below(&mut self, bound: usize) -> usize {
        let [a, b, c] = self.array();
        u32::from_be_bytes([0, a, b, c]) as usize % bound.max(1)
    }

    /// One of these, from one byte.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    /// The next bytes, as many as are left of `length`.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes preceded by their number, in one byte.
    pub fn short(&mut self) -> &'a [u8] {
        let length = self.byte();
        self.take(length.into())
    }

    /// As [`Input::short`], as a text; what is no UTF-8 is replaced.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.short()).into_owned()
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `original` with up to eight edits, as the rest of the input says: what, and where from the front or
    /// the end.
    pub fn edit(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        for _ in 0..8 {
            if self.is_empty() {
                break;
            }
            let kind = self.byte();
            let at = self.below(bytes.len() + 1);
            let at = if kind & 8 == 0 { at } else { bytes.len() - at };
            match kind % 8 {
                0 => bytes.truncate(at),
                1 => drop(bytes.splice(at..at, self.short().iter().copied())),
                2 => drop(bytes.drain(at..bytes.len().min(at + usize::from(self.byte())))),
                3 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << (self.byte() % 8);
                    }
                }
                4 => {
                    // A piece of itself, from elsewhere.
                    let from = self.below(bytes.len() + 1);
                    let piece = bytes[from..bytes.len().min(from + usize::from(self.byte()))].to_vec();
                    overwrite(&mut bytes, at, &piece);
                }
                5 => bytes = self.rest().to_vec(),
                _ => {
                    let piece = self.short();
                    overwrite(&mut bytes, at, piece);
                }
            }
        }
        bytes
    }
}

fn overwrite(bytes: &mut [u8], at: usize, piece: &[u8]) {
    let length = piece.len().min(bytes.len() - at);
    bytes[at..at + length].copy_from_slice(&piece[..length]);
}

/// Whether an input is one of the few that something slow is done with. By its hash, so that most of what
/// is made from it is not, and an input does the same each time.
pub fn drawn(input: &[u8], one_in: u64) -> bool {
    // FNV-1a, and a last mixing, as its low bits depend on the low bits of the input alone.
    let hash = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)).is_multiple_of(one_in)
}

/// The signer of an index.
pub fn signer(index: u8) -> SignerIndex {
    SignerIndex::new(index).expect("the index is of a signer")
}

/// A text of a value, for types that cannot be compared.
pub fn shown<T: Debug>(value: &T) -> String {
    format!("{value:?}")
}

/// The share documents of signers 1 and 2 of a 2-of-3 key that exists for these tests alone.
pub fn documents() -> BTreeMap<SignerIndex, ShareDocument> {
    let read = |json: &str| ShareDocument::from_json(json.as_bytes()).expect("the fixture is a document");
    [(signer(1), read(SHARE_1)), (signer(2), read(SHARE_2))].into()
}

/// The document of signer 1, see [`documents`].
pub const SHARE_1: &str = include_str!("../fixtures/signer1.json");
const SHARE_2: &str = include_str!("../fixtures/signer2.json");

/// An audit log of signer 1 with an event of each kind.
pub const AUDIT_LOG: &str = include_str!("../fixtures/audit.jsonl");
