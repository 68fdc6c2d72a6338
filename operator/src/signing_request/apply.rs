//! Does what is to be done next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::build::{Plan, SignBody};
use super::cause::Cause;
use super::manager::{Attempts, Ending, Manager, Managers, NotTaken};
use super::validate::Request;
use super::{Error, answer, update_status};
use crate::crd::{SignatureStatus, SigningRequest};

/// How many requests of one cluster wait at the same time for their signatures. The others ask again and again, so
/// that a cluster which signs nothing does not hold up the requests of all others.
const WAITING: usize = 96;

/// What became of what was to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Nothing was to be done.
    Left,
    /// Nothing was to be done before this time.
    LeftUntil(Timestamp),
    /// It waits for something, and no manager has it.
    Waits(Cause),
    /// A manager may have it, and does not say.
    Unsure(Cause),
    /// A manager has taken it under this id.
    Taken(Uuid),
    /// A manager is at it.
    Signing {
        /// How far it is.
        attempts: Attempts,
        /// Whether the manager waited for it.
        waited: bool,
    },
    /// It is signed.
    Signed {
        /// The signature.
        signature: Box<SignatureStatus>,
        /// Whose it is.
        attempts: Attempts,
    },
    /// It is not signed, and never will be.
    Failed {
        /// Why.
        cause: Cause,
        /// Who tried, where anyone did.
        attempts: Option<Attempts>,
    },
}

/// What was done.
#[derive(Debug)]
pub struct Applied {
    /// The object as it now is, but for what became of it.
    pub object: SigningRequest,
    /// What became of it.
    pub outcome: Outcome,
    /// How long a manager waited for a signature meanwhile.
    pub waited: Duration,
}

/// Does what is to be done next.
#[derive(Debug)]
pub struct Applier {
    /// The managers.
    pub managers: Managers,
    /// Stops what waits.
    pub stop: CancellationToken,
    waiting: Mutex<HashMap<(String, String), usize>>,
}

impl Applier {
    /// Does what is to be done until `stop`.
    pub fn new(managers: Managers, stop: CancellationToken) -> Self {
        Self { managers, stop, waiting: Mutex::default() }
    }

    /// Does what is to be done next.
    ///
    /// # Errors
    /// When the API server cannot be asked, or the object is another by now.
    pub async fn apply(
        &self,
        api: &Api<SigningRequest>,
        object: SigningRequest,
        plan: Plan<'_>,
    ) -> Result<Applied, Error> {
        let mut waited = Duration::ZERO;
        let mut object = object;
        let outcome = match plan {
            Plan::Leave => Outcome::Left,
            Plan::LeaveUntil(time) => Outcome::LeftUntil(time),
            Plan::Delete => {
                delete(api, &object).await?;
                Outcome::Left
            }
            Plan::Fail(cause) => Outcome::Failed { cause, attempts: None },
            Plan::Wait(cause) => Outcome::Waits(cause),
            Plan::Submit { request, body, first } => match self.manager(request) {
                Err(cause) if first => Outcome::Waits(cause),
                Err(cause) => Outcome::Unsure(cause),
                Ok(manager) => {
                    // Written before it is sent: an operator that starts anew knows by it that a manager may have it.
                    if first {
                        let status = update_status::submitting(&object, Timestamp::now());
                        object = update_status::write(api, object, status).await?;
                    }
                    submit(&manager, request, &body, first).await
                }
            },
            Plan::Ask { request, id, wait } => {
                let place = self.wait_for(request);
                let wait = if place.is_some() { wait } else { Duration::ZERO };
                let began = Instant::now();
                let asked = async {
                    match self.manager(request) {
                        Ok(manager) => ask(&manager, request, id, wait).await,
                        Err(cause) => Outcome::Unsure(cause),
                    }
                };
                let outcome = tokio::select! {
                    outcome = asked => outcome,
                    () = self.stop.cancelled() => Outcome::Left,
                };
                waited = began.elapsed();
                outcome
            }
        };
        Ok(Applied { object, outcome, waited })
    }

    fn manager(&self, request: &Request) -> Result<Manager, Cause> {
        self.managers.of(request.scheme, &request.namespace, &request.cluster)
    }

    /// A place among those who wait for their signatures, if there is one.
    fn wait_for(&self, request: &Request) -> Option<Place<'_>> {
        let cluster = (request.namespace.clone(), request.cluster.clone());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(cluster.clone()).or_default();
        if *count >= WAITING {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Place { waiting: &self.waiting, cluster })
    }
}

/// A place among those who wait, until it is dropped.
struct Place<'a> {
    waiting: &'a Mutex<HashMap<(String, String), usize>>,
    cluster: (String, String),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = waiting.entry(std::mem::take(&mut self.cluster)) {
            *count.get_mut() = count.get().saturating_sub(1);
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Deletes exactly this object, as it is.
async fn delete(api: &Api<SigningRequest>, object: &SigningRequest) -> Result<(), Error> {
    let preconditions = Preconditions {
        resource_version: object.metadata.resource_version.clone(),
        uid: object.metadata.uid.clone(),
    };
    let options = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    match api.delete(object.metadata.name.as_deref().unwrap_or_default(), &options).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn submit(manager: &Manager, request: &Request, body: &SignBody, first: bool) -> Outcome {
    match manager.sign(&request.key, body).await {
        Ok(id) => Outcome::Taken(id),
        // That this try did not arrive says nothing of an earlier one.
        Err(NotTaken::Surely(cause)) if first => Outcome::Waits(cause),
        Err(NotTaken::Surely(cause) | NotTaken::Perhaps(cause)) => Outcome::Unsure(cause),
        Err(NotTaken::Never(said)) => {
            let expired = request.not_after.is_some_and(|time| Timestamp::now() >= time);
            Outcome::Failed { cause: answer::rejection(said, expired), attempts: None }
        }
    }
}

async fn ask(manager: &Manager, request: &Request, id: Uuid, wait: Duration) -> Outcome {
    let told = async {
        let ending = manager.ending(id, wait).await?;
        // A finished status never changes: it is written once, when all of it is known.
        let attempts = manager.attempts(id).await?;
        Ok(match ending {
            None => Outcome::Signing { attempts, waited: !wait.is_zero() },
            Some(Ending::Signed(signed)) => {
                let signature = Box::new(answer::signature(*signed, id, request)?);
                Outcome::Signed { signature, attempts }
            }
            Some(Ending::Failed(said)) => {
                Outcome::Failed { cause: answer::failure(said), attempts: Some(attempts) }
            }
        })
    };
    // What a manager has taken is never sent to it again, not even when it has lost it: the signers may have signed
    // it, and a second request would have it signed a second time, perhaps after its deadline. A database that comes
    // back, or is restored, still answers.
    told.await.unwrap_or_else(Outcome::Unsure)
}
