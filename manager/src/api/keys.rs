//! `GET /keys`, `GET /keys/{id}`: public keys, and what they go by elsewhere.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use serde::{Deserialize, Serialize};
use tss_mpc::{DerivationPath, PublicKey, Scheme};
use utoipa::{IntoParams, ToSchema};

use super::problem::{Kind, Problem};
use super::schema;
use crate::auth::Caller;
use crate::service::Shared;
use crate::store::KeyRecord;

/// `?path=0/1/2`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct At {
    /// Of which derived key to tell; the configured one where absent.
    #[param(value_type = Option<schema::DerivationPath>)]
    path: Option<DerivationPath>,
}

/// All keys of the cluster.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Keys)]
pub struct List {
    keys: Vec<Key>,
}

/// A key.
#[derive(Debug, Serialize, ToSchema)]
pub struct Key {
    /// Its id.
    key: String,
    /// How often its shares have been made anew.
    epoch: u64,
    #[schema(value_type = schema::Scheme)]
    scheme: Scheme,
    /// How many signers sign.
    threshold: u8,
    /// How many there are.
    signers: u8,
    /// The root's.
    #[schema(value_type = schema::PublicKey)]
    public_key: PublicKey,
    /// The BIP-32 chain code of the root, 64 hex digits: with it, everybody can derive the public keys below.
    #[schema(value_type = schema::Hex32)]
    chain_code: String,
    derived: Derived,
}

/// The key at a path.
#[derive(Debug, Serialize, ToSchema)]
pub struct Derived {
    #[schema(value_type = schema::DerivationPath)]
    path: DerivationPath,
    #[schema(value_type = schema::PublicKey)]
    public_key: PublicKey,
    addresses: Addresses,
}

/// What a public key goes by elsewhere.
#[derive(Debug, Serialize, ToSchema)]
pub struct Addresses {
    /// In mixed case (EIP-55).
    #[schema(pattern = "^0x[0-9A-Fa-f]{40}$")]
    ethereum: String,
    /// Pay to public key hash, on the main network: `1…`.
    #[schema(pattern = "^1[1-9A-HJ-NP-Za-km-z]{25,33}$")]
    bitcoin_p2pkh: String,
    /// Pay to witness public key hash, on the main network: `bc1q…`. None begins with `bc1p`: those are of Schnorr keys.
    #[schema(pattern = "^bc1q[02-9ac-hj-np-z]{38}$")]
    bitcoin_p2wpkh: String,
}

/// All keys
///
/// Those on record, in the order of their ids, each with the key at the path that is asked for.
#[utoipa::path(
    get,
    path = "/keys",
    operation_id = "keys",
    tag = "keys",
    security(("bearer" = [])),
    params(At),
    responses((status = 200, description = "The keys.", body = List)),
    extensions(("x-problems" = json!([Kind::InvalidRequest]))),
)]
pub async fn list(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<At>, QueryRejection>,
) -> Result<Json<List>, Problem> {
    let path = path(&shared, query)?;
    let seen = shared.keys.all().into_iter().filter(|record| caller.may_use_key(&record.id));
    let keys = seen.map(|record| describe(record, &path)).collect::<Result<_, _>>()?;
    Ok(Json(List { keys }))
}

/// One key
///
/// With the key at the path that is asked for, and its addresses.
#[utoipa::path(
    get,
    path = "/keys/{id}",
    operation_id = "key",
    tag = "keys",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The key's id.", example = json!("default")), At),
    responses((status = 200, description = "The key.", body = Key)),
    extensions(("x-problems" = json!([Kind::UnknownKey, Kind::InvalidRequest]))),
)]
pub async fn one(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<At>, QueryRejection>,
) -> Result<Json<Key>, Problem> {
    let path = path(&shared, query)?;
    let Path(id) = id.map_err(|_| Kind::UnknownKey)?;
    let record = find(&shared, &caller, &id)?;
    describe(record, &path).map(Json)
}

/// The key of this id. One that the caller is not to use is as if it were not there.
///
/// # Errors
/// [`Kind::UnknownKey`].
pub fn find(shared: &Shared, caller: &Caller, id: &str) -> Result<KeyRecord, Problem> {
    let found = shared.keys.get(id).filter(|_| caller.may_use_key(id));
    found.ok_or_else(|| Kind::UnknownKey.into())
}

fn path(shared: &Shared, query: Result<Query<At>, QueryRejection>) -> Result<DerivationPath, Problem> {
    let Query(At { path }) = query?;
    Ok(path.unwrap_or_else(|| shared.config.path.clone()))
}

/// The public key at a path.
///
/// # Errors
/// [`Problem`] when the path derives none, a chance of 2⁻¹²⁷.
pub fn derive(record: &KeyRecord, path: &DerivationPath) -> Result<PublicKey, Problem> {
    let derived = record.public_key.derive(&record.chain_code, path);
    derived.ok_or_else(|| {
        Problem::new(Kind::InvalidRequest, format!("`path`: {path} derives no key: expected another path"))
    })
}

fn describe(record: KeyRecord, path: &DerivationPath) -> Result<Key, Problem> {
    let derived = derive(&record, path)?;
    Ok(Key {
        epoch: record.epoch,
        scheme: Scheme::EcdsaSecp256k1,
        threshold: record.threshold.t(),
        signers: record.threshold.n(),
        public_key: record.public_key,
        chain_code: hex::encode(record.chain_code),
        derived: Derived {
            path: path.clone(),
            public_key: derived,
            addresses: Addresses {
                ethereum: derived.ethereum_address(),
                bitcoin_p2pkh: derived.bitcoin_p2pkh_address(),
                bitcoin_p2wpkh: derived.bitcoin_address(),
            },
        },
        key: record.id,
    })
}
