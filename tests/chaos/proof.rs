//! What must hold whatever happened: looked up in the database and in the audit logs, and computed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::BufReader;

use futures::TryStreamExt as _;
use k256::ecdsa::signature::hazmat::PrehashVerifier as _;
use k256::ecdsa::{Signature, VerifyingKey};
use mongodb::Collection;
use mongodb::bson::{self, Bson, Document, doc};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tss_common::audit::{self, Event, Finish};
use tss_mpc::ShareDocument;
use uuid::Uuid;

use crate::installation::get;
use crate::load::{Answer, Entry};
use crate::network::{Network, SIGNERS};

/// The derivation path of the project's configuration.
const PATH: &str = "0/1/2";

/// The requests in the database.
pub(crate) async fn requests(network: &Network) -> Collection<Document> {
    let client = mongodb::Client::with_uri_str(network.mongodb.uri()).await.unwrap();
    client.database(network.cluster()).collection("signing_requests")
}

pub(crate) fn bson_id(id: Uuid) -> bson::Uuid {
    bson::Uuid::from_bytes(id.into_bytes())
}

pub(crate) fn request_id(document: &Document) -> Uuid {
    match document.get("_id") {
        Some(Bson::Binary(binary)) => Uuid::from_slice(&binary.bytes).unwrap(),
        other => panic!("no id: {other:?}"),
    }
}

pub(crate) fn integer(document: &Document, name: &str) -> i64 {
    match document.get(name) {
        Some(Bson::Int32(number)) => (*number).into(),
        Some(Bson::Int64(number)) => *number,
        other => panic!("{name}: {other:?}"),
    }
}

/// A signature: r and s, in hex.
type RS = (String, String);

/// How often what happened, of the requests that were looked at.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) completed: usize,
    pub(crate) failed: BTreeMap<Uuid, String>,
    /// Requests that more than one session signed: signers ended one that no manager heard of.
    pub(crate) signed_again: usize,
    /// Requests that no manager would take.
    pub(crate) given_up: usize,
}

/// The key, as the signers' shares have it.
pub(crate) struct Key {
    public_key: String,
    verifying_key: VerifyingKey,
}

impl Key {
    pub(crate) fn of(share: &ShareDocument) -> Self {
        let core = &share.core;
        let key =
            core.secp256k1().unwrap().public_key.derive(&core.chain_code, &PATH.parse().unwrap()).unwrap();
        let public_key = key.to_string();
        let bytes = hex::decode(&public_key).unwrap();
        Self { public_key, verifying_key: VerifyingKey::from_sec1_bytes(&bytes).unwrap() }
    }

    /// That an answer holds this key's signature of a message; yields it.
    fn check(&self, answer: &Value, message: &str) -> RS {
        let text = |name: &str| answer[name].as_str().unwrap_or_else(|| panic!("no {name}: {answer}"));
        assert_eq!(text("public_key"), self.public_key, "{answer}");
        let signature = Signature::from_slice(&hex::decode(text("compact")).unwrap()).unwrap();
        self.verifying_key.verify_prehash(&Sha256::digest(message), &signature).unwrap();
        (text("r").to_owned(), text("s").to_owned())
    }
}

/// Checks that each request that was acknowledged has ended, once, with a valid signature or a true
/// reason, the same for its client, in the database and in the audit logs.
pub(crate) async fn check(network: &Network, key: &Key, entries: &[Entry], logs: &Logs) -> Tally {
    let keys: Vec<&str> = entries.iter().map(|entry| entry.idempotency_key.as_str()).collect();
    let requests = requests(network).await;
    let found = requests.find(doc! { "idempotency.key": { "$in": keys } });
    let found: Vec<Document> = found.await.unwrap().try_collect().await.unwrap();
    let mut stored: HashMap<String, Document> = HashMap::new();
    for document in found {
        let key = document.get_document("idempotency").unwrap().get_str("key").unwrap().to_owned();
        assert!(stored.insert(key, document).is_none(), "two requests under one idempotency key");
    }
    let mut tally = Tally::default();
    for entry in entries {
        let Some((id, ..)) = entry.accepted else {
            assert!(entry.given_up, "neither accepted nor refused: {entry:#?}");
            tally.given_up += 1;
            continue;
        };
        let document = stored.get(&entry.idempotency_key);
        let document =
            document.unwrap_or_else(|| panic!("acknowledged, and not in the database: {entry:#?}"));
        assert_eq!(request_id(document), id);
        let state = document.get_document("state").unwrap();
        let status = state.get_str("status").unwrap();
        let signatures = logs.signatures.get(&id).cloned().unwrap_or_default();
        tally.signed_again += usize::from(signatures.len() > 1);
        match &entry.ended {
            Some((Answer::Signed(answer), _)) => {
                let told = key.check(answer, &entry.message);
                assert_eq!(status, "Completed", "{document}");
                let signature = state.get_document("signature").unwrap();
                let field = |name: &str| signature.get_str(name).unwrap().to_owned();
                assert_eq!((field("r"), field("s")), told, "the client was told what stands");
                let logged = signatures.values().any(|(signature, _)| *signature == told);
                assert!(logged, "{id}: no signer has written down this signature, but {signatures:?}");
                tally.completed += 1;
            }
            Some((Answer::Failed(reason), _)) => {
                assert_eq!((status, state.get_str("reason").unwrap()), ("Failed", reason.as_str()));
                // The only reason that there can be here: nobody cheats, and nobody refuses.
                assert!(reason.starts_with("not signed in time: "), "{id}: {reason}");
                let time = |name: &str| document.get_str(name).unwrap();
                assert!(time("finished_at") >= time("deadline"), "{id}: not in time, in time: {document}");
                tally.failed.insert(id, reason.clone());
            }
            Some((Answer::Wrong(answer), _)) => panic!("{id}: {answer}"),
            None => panic!("{id} has not ended"),
        }
    }
    tally
}

/// What the client, the database and the managers say of each of these requests.
pub(crate) async fn what_is_known(network: &Network, entries: &[Entry]) -> Vec<String> {
    let requests = requests(network).await;
    let mut known = Vec::new();
    for entry in entries {
        // By its id and by its idempotency key: an index may say something else than the collection.
        let named = requests.find_one(doc! { "idempotency.key": &entry.idempotency_key }).await;
        let mut said = vec![format!("{:.1} s ago: {entry:?}", entry.began.elapsed().as_secs_f64())];
        said.push(format!("by its idempotency key: {named:?}"));
        if let Some((id, ..)) = entry.accepted {
            let by_id = requests.find_one(doc! { "_id": bson_id(id) }).await;
            said.push(format!("by its id: {by_id:?}"));
            let lapsed = doc! { "_id": bson_id(id), "finished": false, "lease.until": { "$lt": "9" } };
            said.push(format!("as unfinished: {:?}", requests.count_documents(lapsed).await));
            for url in network.urls() {
                said.push(format!("{url}: {:?}", get(&format!("{url}/status/{id}")).await));
            }
        }
        known.push(said.join("\n  "));
    }
    known
}

/// The sessions that ended with a signature: which one, and which signers wrote it down.
type Signed = BTreeMap<[u8; 32], (RS, BTreeSet<u8>)>;

/// What the audit logs say.
#[derive(Default)]
pub(crate) struct Logs {
    /// By request.
    signatures: HashMap<Uuid, Signed>,
    pub(crate) entries: u64,
}

impl Logs {
    /// Reads all of them, and checks that each is whole, that no signer took part in a session twice, and
    /// that no session has two signatures. `ended`: no signer writes any more.
    pub(crate) fn read(network: &Network, ended: bool) -> Self {
        let mut logs = Self::default();
        for signer in SIGNERS {
            let mut sessions = BTreeSet::new();
            let file = BufReader::new(File::open(network.audit_log(signer)).unwrap());
            let mut entries = audit::entries(file, None);
            for entry in entries.by_ref() {
                let entry = entry.unwrap_or_else(|problem| panic!("signer {signer}'s audit log: {problem}"));
                logs.take(signer, entry.event, &mut sessions);
            }
            assert!(!ended || entries.torn() == 0, "signer {signer}'s audit log was cut short");
            assert!(!sessions.is_empty(), "signer {signer} has taken part");
            logs.entries += entries.head().entries;
        }
        logs
    }

    fn take(&mut self, signer: u8, event: Event, sessions: &mut BTreeSet<[u8; 32]>) {
        match event {
            Event::Accepted { session, .. } => {
                assert!(sessions.insert(session.0), "signer {signer} took part in {session} twice");
            }
            Event::Finished { request, session, outcome: Finish::Signed, signature, .. } => {
                let (session, signature) = (session.unwrap(), signature.unwrap());
                assert!(sessions.contains(&session.0), "signer {signer} ended what it had not accepted");
                let signature = (hex::encode(signature.r), hex::encode(signature.s));
                let of_request = self.signatures.entry(request).or_default();
                let (known, by) =
                    of_request.entry(session.0).or_insert_with(|| (signature.clone(), BTreeSet::new()));
                assert_eq!(*known, signature, "session {session} has two signatures");
                assert!(by.insert(signer), "signer {signer} ended session {session} twice");
            }
            Event::Cheating { culprits, reason, .. } => {
                panic!("signer {signer} says that {culprits:?} cheated, and nobody does: {reason}")
            }
            Event::Refused { reason, .. } => panic!("signer {signer} refused an honest request: {reason}"),
            _ => {}
        }
    }
}
