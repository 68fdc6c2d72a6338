//! Share files of `multi-party-ecdsa` 0.7 and 0.8, with its GG18 and GG20 protocols: what is needed of them to take the
//! key over.
//!
//! A GG18 file is a tuple: `(Keys, SharedKeys, party, vss[], paillier_ek[], y_sum)`, as its example `gg18_keygen_client`
//! writes it; a GG20 file is a `LocalKey`, as `gg20_keygen` does. A threshold t there means that t + 1 signers sign.
//! Only the shares are taken: of the Paillier keys, which is where thefts from such systems began, nothing is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tss_mpc::{ForeignShare, PublicKey, SignerIndex, Threshold};
use zeroize::Zeroizing;

/// The longest file that is read, in bytes. One of 16 parties has a few hundred kilobytes.
const MAX_FILE: u64 = 16 << 20;

/// The curve's name in such files.
const CURVE: &str = "secp256k1";

/// Reads one signer's file, and checks that it agrees with itself.
///
/// # Errors
/// Saying what is wrong with it, but nothing secret of it.
pub fn read(file: &Path) -> anyhow::Result<ForeignShare> {
    let read = || {
        let mut json = Zeroizing::new(Vec::new());
        let mut opened = File::open(file)?.take(MAX_FILE + 1);
        // Sized first: a buffer that grows leaves copies behind.
        json.reserve_exact(usize::try_from(opened.get_ref().metadata()?.len().min(MAX_FILE))? + 1);
        opened.read_to_end(&mut json)?;
        anyhow::ensure!(json.len() as u64 <= MAX_FILE, "it is longer than {MAX_FILE} bytes");
        parse(&json)
    };
    read().with_context(|| file.display().to_string())
}

/// The share in the text of a file.
fn parse(json: &[u8]) -> anyhow::Result<ForeignShare> {
    let expected = "expected a share file of `multi-party-ecdsa`: a tuple of six (GG18), or an object with \
                    `keys_linear`, `pk_vec` and `y_sum_s` (GG20)";
    match json.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => serde_json::from_slice::<Gg18>(json).context(expected)?.share(),
        Some(b'{') => serde_json::from_slice::<Gg20>(json).context(expected)?.share(),
        _ => anyhow::bail!(expected),
    }
}

/// What `gg18_keygen_client` writes.
#[derive(Deserialize)]
struct Gg18(IgnoredAny, SharedKeys, u16, Vec<VerifiableSecretSharing>, IgnoredAny, Point);

/// What `gg20_keygen` writes.
#[derive(Deserialize)]
struct Gg20 {
    keys_linear: SharedKeys,
    pk_vec: Vec<Point>,
    y_sum_s: Point,
    i: u16,
    t: u16,
    n: u16,
}

#[derive(Deserialize)]
struct SharedKeys {
    y: Point,
    x_i: Scalar,
}

/// What one dealer made public of its polynomial.
#[derive(Deserialize)]
struct VerifiableSecretSharing {
    parameters: Parameters,
    commitments: Vec<Point>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
struct Parameters {
    threshold: u16,
    share_count: u16,
}

/// As `curv-kzen` writes a point since 0.7: compressed, or not.
#[derive(Deserialize)]
struct Point {
    curve: String,
    point: Vec<u8>,
}

/// As `curv-kzen` writes a scalar since 0.7.
#[derive(Deserialize)]
struct Scalar {
    curve: String,
    scalar: Zeroizing<[u8; 32]>,
}

impl Gg18 {
    fn share(self) -> anyhow::Result<ForeignShare> {
        let Self(_, keys, party, dealers, _, y_sum) = self;
        let parameters = dealers.first().context("it has no verifiable secret sharing")?.parameters;
        let agree = dealers.iter().all(|dealer| dealer.parameters == parameters);
        anyhow::ensure!(agree, "its parties have not shared the key with the same threshold");
        let threshold = threshold(parameters)?;
        let commitments = dealers
            .iter()
            .map(|dealer| dealer.commitments.iter().map(Point::public_key).collect())
            .collect::<anyhow::Result<Vec<Vec<_>>>>()?;
        let public_shares = ForeignShare::public_shares(threshold, &commitments)?;
        keys.share(party, threshold, public_shares, &y_sum)
    }
}

impl Gg20 {
    fn share(self) -> anyhow::Result<ForeignShare> {
        let threshold = threshold(Parameters { threshold: self.t, share_count: self.n })?;
        let points = self.pk_vec.iter().map(Point::public_key).collect::<anyhow::Result<Vec<_>>>()?;
        anyhow::ensure!(
            points.len() == usize::from(threshold.n()),
            "`pk_vec` has {} public shares: expected {}",
            points.len(),
            threshold.n()
        );
        let public_shares = threshold.signers().zip(points).collect();
        self.keys_linear.share(self.i, threshold, public_shares, &self.y_sum_s)
    }
}

impl SharedKeys {
    fn share(
        self,
        party: u16,
        threshold: Threshold,
        public_shares: BTreeMap<SignerIndex, PublicKey>,
        y_sum: &Point,
    ) -> anyhow::Result<ForeignShare> {
        let index = u8::try_from(party).ok().and_then(|index| SignerIndex::new(index).ok());
        let index =
            index.with_context(|| format!("party {party}: expected one of 1 to {}", threshold.n()))?;
        let public_key = y_sum.public_key()?;
        anyhow::ensure!(
            self.y.public_key()? == public_key,
            "it names two public keys: that of the shares is not {public_key}"
        );
        anyhow::ensure!(self.x_i.curve == CURVE, "a share of the curve {}: expected {CURVE}", self.x_i.curve);
        Ok(ForeignShare::new(index, threshold, &self.x_i.scalar, public_shares, public_key)?)
    }
}

impl Point {
    fn public_key(&self) -> anyhow::Result<PublicKey> {
        anyhow::ensure!(self.curve == CURVE, "a point of the curve {}: expected {CURVE}", self.curve);
        Ok(PublicKey::from_sec1(&self.point)?)
    }
}

fn threshold(Parameters { threshold, share_count }: Parameters) -> anyhow::Result<Threshold> {
    let parties = threshold.checked_add(1).zip(Some(share_count));
    let parties = parties.and_then(|(t, n)| Some((u8::try_from(t).ok()?, u8::try_from(n).ok()?)));
    let (t, n) =
        parties.with_context(|| format!("threshold {threshold} of {share_count} parties is too much"))?;
    Threshold::new(t, n)
        .with_context(|| format!("threshold {threshold} of {share_count} parties, so that {t} of them sign"))
}
