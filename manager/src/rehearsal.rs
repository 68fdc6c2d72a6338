//! What the signers would do with a request, asked of them without having anything signed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tss_common::bus::{Address, Bus};
use tss_common::wire::{self, Attempt, Rehearsal, Rehearsed, Verdict};
use tss_mpc::{EngineId, Quorum, SignerIndex};
use uuid::Uuid;

use crate::presence::Presence;
use crate::store::{KeyRecord, Request};

/// How long the signers have to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many may be under way at the same time.
const MOST: usize = 256;

/// The rehearsals that are under way.
#[derive(Default)]
pub struct Rehearsals(Mutex<HashMap<Uuid, mpsc::Sender<Rehearsed>>>);

/// There are as many as there may be.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{MOST} dry runs are under way already")]
pub struct TooMany;

/// Takes the place of a rehearsal, and gives it back.
struct Place<'r> {
    rehearsals: &'r Rehearsals,
    request: Uuid,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.rehearsals.under_way().remove(&self.request);
    }
}

impl Rehearsals {
    fn under_way(&self) -> MutexGuard<'_, HashMap<Uuid, mpsc::Sender<Rehearsed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a signer says it would do.
    pub fn deliver(&self, rehearsed: Rehearsed) {
        if let Some(answers) = self.under_way().get(&rehearsed.request) {
            // A full channel means a signer that says the same again and again.
            let _ = answers.try_send(rehearsed);
        }
    }

    /// What each live signer of the key would do with a request; those who are silent are not in it.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn ask(
        &self,
        bus: &Arc<dyn Bus>,
        presence: &Presence,
        engine: EngineId,
        key: &KeyRecord,
        request: &Request,
    ) -> Result<BTreeMap<SignerIndex, Verdict>, TooMany> {
        let live = presence.usable(key, engine);
        let (sender, mut answers) = mpsc::channel(4 * live.len().max(1));
        let _place = {
            let mut under_way = self.under_way();
            if under_way.len() >= MOST {
                return Err(TooMany);
            }
            under_way.insert(request.id, sender);
            Place { rehearsals: self, request: request.id }
        };
        let end = Instant::now() + PATIENCE;
        let patience = SignedDuration::try_from(PATIENCE).unwrap_or(SignedDuration::MAX);
        let expires = Timestamp::now().saturating_add(patience).unwrap_or(Timestamp::MAX);
        let mut asked = 0;
        for &signer in &live {
            let Some(quorum) = quorum(signer, &live, key.threshold.t()) else { continue };
            let rehearsal = Attempt {
                request: request.id,
                attempt: 1,
                intent: request.intent.clone(),
                message: request.message.clone(),
                approvals: request.approvals.clone(),
                engine,
                epoch: key.epoch,
                quorum,
                expires,
                traceparent: None,
            };
            let sent = match wire::to_json(&Rehearsal { rehearsal }) {
                Ok(bytes) => timeout_at(end, bus.publish(Address::Requests(signer), bytes)).await,
                Err(_) => continue,
            };
            match sent {
                Ok(Ok(())) => asked += 1,
                Ok(Err(error)) => tracing::debug!(%signer, %error, "a signer was not asked"),
                Err(_) => break,
            }
        }
        let mut verdicts = BTreeMap::new();
        while verdicts.len() < asked {
            let Ok(Some(Rehearsed { signer, verdict, .. })) = timeout_at(end, answers.recv()).await else {
                break;
            };
            verdicts.insert(signer, verdict);
        }
        Ok(verdicts)
    }
}

/// A quorum of `t` of these signers with this one among them.
fn quorum(signer: SignerIndex, live: &[SignerIndex], t: u8) -> Option<Quorum> {
    let others = live.iter().copied().filter(|&other| other != signer);
    let chosen: Vec<_> = std::iter::once(signer).chain(others).take(t.into()).collect();
    if chosen.len() < usize::from(t) {
        return None;
    }
    Quorum::new(chosen).ok()
}
