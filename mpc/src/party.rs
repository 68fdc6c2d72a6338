//! Who takes part: signer indices, thresholds and quorums.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The largest number of signers a key can have.
pub const MAX_SIGNERS: u8 = 16;

/// A value that names no possible signer, threshold or quorum.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartyError {
    /// The index is not within 1..=[`MAX_SIGNERS`].
    #[error("signer index {0} is out of range: expected 1 to {MAX_SIGNERS}")]
    Index(u8),
    /// The threshold does not satisfy 2 ≤ t ≤ n ≤ [`MAX_SIGNERS`].
    #[error("threshold {t} of {n} is not possible: expected 2 <= threshold <= signers <= {MAX_SIGNERS}")]
    Threshold {
        /// How many signers would be needed.
        t: u8,
        /// How many signers there would be.
        n: u8,
    },
    /// The quorum names a signer twice.
    #[error("a quorum names signer {0} twice")]
    Duplicate(SignerIndex),
}

/// A signer's index, 1..=[`MAX_SIGNERS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct SignerIndex(u8);

impl SignerIndex {
    /// The smallest index, 1.
    pub const MIN: Self = Self(1);

    /// The signer with this index.
    ///
    /// # Errors
    /// [`PartyError::Index`] when it is 0 or above [`MAX_SIGNERS`].
    pub fn new(index: u8) -> Result<Self, PartyError> {
        if (1..=MAX_SIGNERS).contains(&index) { Ok(Self(index)) } else { Err(PartyError::Index(index)) }
    }

    /// The index as a number, 1..=[`MAX_SIGNERS`].
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for SignerIndex {
    type Error = PartyError;
    fn try_from(index: u8) -> Result<Self, PartyError> {
        Self::new(index)
    }
}

impl From<SignerIndex> for u8 {
    fn from(index: SignerIndex) -> u8 {
        index.0
    }
}

impl fmt::Display for SignerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SignerIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many signers a key has and how many of them sign: 2 ≤ t ≤ n ≤ [`MAX_SIGNERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedThreshold", into = "UncheckedThreshold")]
pub struct Threshold {
    t: u8,
    n: u8,
}

#[derive(Serialize, Deserialize)]
struct UncheckedThreshold {
    threshold: u8,
    signers: u8,
}

impl Threshold {
    /// `t` of `n` signers sign.
    ///
    /// # Errors
    /// [`PartyError::Threshold`] unless 2 ≤ t ≤ n ≤ [`MAX_SIGNERS`].
    pub fn new(t: u8, n: u8) -> Result<Self, PartyError> {
        if 2 <= t && t <= n && n <= MAX_SIGNERS {
            Ok(Self { t, n })
        } else {
            Err(PartyError::Threshold { t, n })
        }
    }

    /// How many signers are needed to sign.
    pub fn t(self) -> u8 {
        self.t
    }

    /// How many signers there are.
    pub fn n(self) -> u8 {
        self.n
    }

    /// All signers, in order.
    pub fn signers(self) -> impl Iterator<Item = SignerIndex> {
        (1..=self.n).map(SignerIndex)
    }

    /// Whether a signer of this index exists.
    pub fn contains(self, index: SignerIndex) -> bool {
        index.0 <= self.n
    }
}

impl TryFrom<UncheckedThreshold> for Threshold {
    type Error = PartyError;
    fn try_from(value: UncheckedThreshold) -> Result<Self, PartyError> {
        Self::new(value.threshold, value.signers)
    }
}

impl From<Threshold> for UncheckedThreshold {
    fn from(value: Threshold) -> Self {
        Self { threshold: value.t, signers: value.n }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-of-{}", self.t, self.n)
    }
}

/// The signers chosen for one attempt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<SignerIndex>", into = "Vec<SignerIndex>")]
pub struct Quorum(BTreeSet<SignerIndex>);

impl Quorum {
    /// The quorum of these signers.
    ///
    /// # Errors
    /// [`PartyError::Duplicate`] when a signer stands in it twice.
    pub fn new(signers: impl IntoIterator<Item = SignerIndex>) -> Result<Self, PartyError> {
        let mut set = BTreeSet::new();
        for index in signers {
            if !set.insert(index) {
                return Err(PartyError::Duplicate(index));
            }
        }
        Ok(Self(set))
    }

    /// How many signers it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no signers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this signer takes part.
    pub fn contains(&self, index: SignerIndex) -> bool {
        self.0.contains(&index)
    }

    /// The signers in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = SignerIndex> + '_ {
        self.0.iter().copied()
    }

    /// The signers other than this one, in ascending order.
    pub fn others(&self, me: SignerIndex) -> impl Iterator<Item = SignerIndex> + '_ {
        self.iter().filter(move |&index| index != me)
    }
}

impl TryFrom<Vec<SignerIndex>> for Quorum {
    type Error = PartyError;
    fn try_from(signers: Vec<SignerIndex>) -> Result<Self, PartyError> {
        Self::new(signers)
    }
}

impl From<Quorum> for Vec<SignerIndex> {
    fn from(quorum: Quorum) -> Self {
        quorum.0.into_iter().collect()
    }
}

impl fmt::Debug for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
