//! What a signer signs: its own rules, in a file that it reads again when it changes.
//!
//! A manager decides what it asks for; a policy decides what this signer takes part in, whatever the
//! manager says. Without one a signer signs everything that it is asked for.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tss_common::approval::MAX_APPROVALS;
use tss_common::config::check_name;
use tss_common::ed25519::VerifyingKey;
use tss_common::intent::HashAlgorithm;
use tss_common::labels;
use tss_common::wire::{Attempt, Ending};
use tss_mpc::DerivationPath;
use tss_mpc::key::PathError;
use uuid::Uuid;

use crate::metrics::SignerMetrics;

/// The longest policy, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// How often the file is looked at. Kubernetes replaces a mounted file by swapping a link to its folder,
/// which a watch on the file itself does not see.
const POLL: Duration = Duration::from_secs(2);
/// For how long a changed file must stay as it is before it is used: it may be half written, and half a
/// policy forbids less than the whole.
const SETTLE: Duration = Duration::from_millis(100);
/// The window of the rate limit.
const WINDOW: Duration = Duration::from_secs(60);
/// How many items of a list a text names.
const NAMED: usize = 16;

/// A policy. What is absent is not restricted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    keys: Option<Allowed<KeyName>>,
    paths: Option<Allowed<PathPattern>>,
    hashes: Option<Allowed<HashAlgorithm>>,
    requests_per_minute: Option<Number<1, 100_000>>,
    max_validity: Option<Number<1, 315_360_000>>,
    approvals: Option<Approvers>,
}

labels! {
    /// A rule that an attempt can break.
    pub enum Rule {
        /// `keys`.
        Key = "key",
        /// `paths`.
        Path = "path",
        /// `hashes`.
        Hash = "hash",
        /// `max_validity`.
        Expiry = "expiry",
        /// `requests_per_minute`.
        Rate = "rate",
        /// `[approvals]`.
        Approvals = "approvals",
    }
}

/// Why a policy keeps its signer out of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy: {reason}")]
pub struct Denied {
    /// The rule.
    pub rule: Rule,
    /// What is wrong and what was expected, for the caller.
    pub reason: String,
}

impl From<Denied> for Ending {
    /// Too many requests a minute are no fault of the request: it may succeed later, or elsewhere.
    fn from(denied: Denied) -> Self {
        match denied.rule {
            Rule::Rate => Self::Unable(denied.to_string()),
            Rule::Key | Rule::Path | Rule::Hash | Rule::Expiry | Rule::Approvals => {
                Self::Refused(denied.to_string())
            }
        }
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// Naming the line, what is wrong with it, and what was expected.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.trim_ascii().is_empty() {
            // What a full disk leaves of a file must not lift every rule.
            return Err("it is empty: expected rules, or a comment if there shall be none".into());
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| format!("it is not text after byte {}: expected UTF-8", error.valid_up_to()))?;
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Whether the policy lets its signer take part in an attempt, apart from the rate; yields the names
    /// of those whose approvals counted.
    ///
    /// # Errors
    /// [`Denied`], by the first rule that is broken.
    pub fn check(&self, attempt: &Attempt, now: Timestamp) -> Result<Vec<String>, Denied> {
        let intent = &attempt.intent;
        let denied = |rule, reason| Err(Denied { rule, reason });
        if let Some(keys) = &self.keys
            && !keys.0.iter().any(|key| key.0 == intent.key)
        {
            return denied(
                Rule::Key,
                format!("key {} is not allowed: expected {}", intent.key, keys.one_of()),
            );
        }
        if let Some(paths) = &self.paths
            && !paths.0.iter().any(|pattern| pattern.matches(&intent.path))
        {
            let expected = paths.one_of();
            return denied(Rule::Path, format!("path {} is not allowed: expected {expected}", intent.path));
        }
        if let Some(hashes) = &self.hashes
            && !hashes.0.contains(&intent.hash)
        {
            let expected = hashes.one_of();
            return denied(Rule::Hash, format!("hash {} is not allowed: expected {expected}", intent.hash));
        }
        if let Some(Number(seconds)) = self.max_validity {
            let latest =
                now.saturating_add(SignedDuration::from_secs(seconds.into())).unwrap_or(Timestamp::MAX);
            let expected = format!("expected a time at most {seconds} s ahead");
            match intent.not_after {
                None => return denied(Rule::Expiry, format!("not_after is absent: {expected}")),
                Some(time) if time > latest => {
                    return denied(Rule::Expiry, format!("not_after {time} is too late: {expected}"));
                }
                Some(_) => {}
            }
        }
        self.approvals.as_ref().map_or(Ok(Vec::new()), |approvers| {
            approvers.check(attempt).map_err(|reason| Denied { rule: Rule::Approvals, reason })
        })
    }

    /// How many approvals a request needs.
    pub fn approvals_required(&self) -> usize {
        self.approvals.as_ref().map_or(0, |approvers| approvers.required)
    }

    /// The rules in one line, a few KiB at most.
    pub fn summary(&self) -> String {
        let rules = [
            self.keys.as_ref().map(|keys| format!("keys {keys}")),
            self.paths.as_ref().map(|paths| format!("paths {paths}")),
            self.hashes.as_ref().map(|hashes| format!("hashes {hashes}")),
            self.requests_per_minute.map(|Number(most)| format!("at most {most} requests a minute")),
            self.max_validity.map(|Number(seconds)| format!("valid for at most {seconds} s")),
            self.approvals.as_ref().map(Approvers::to_string),
        ];
        let rules: Vec<String> = rules.into_iter().flatten().collect();
        if rules.is_empty() { "nothing is denied".into() } else { rules.join("; ") }
    }
}

/// A list of what is allowed: at least one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<T>", bound = "T: Deserialize<'de>")]
struct Allowed<T>(Vec<T>);

impl<T> TryFrom<Vec<T>> for Allowed<T> {
    type Error = &'static str;
    fn try_from(items: Vec<T>) -> Result<Self, &'static str> {
        if items.is_empty() {
            return Err("the list is empty: expected at least one; leave the key out to allow all");
        }
        Ok(Self(items))
    }
}

impl<T: fmt::Display> fmt::Display for Allowed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&listed(&self.0))
    }
}

impl<T: fmt::Display> Allowed<T> {
    fn one_of(&self) -> String {
        if self.0.len() == 1 { self.to_string() } else { format!("one of {self}") }
    }
}

/// The first items of a list, and how many others there are.
fn listed<T: fmt::Display>(items: &[T]) -> String {
    let mut text = items.iter().take(NAMED).map(T::to_string).collect::<Vec<_>>().join(", ");
    if let Some(more) = items.len().checked_sub(NAMED).filter(|&more| more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// A number from `LEAST` to `MOST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
struct Number<const LEAST: u32, const MOST: u32>(u32);

impl<const LEAST: u32, const MOST: u32> TryFrom<i64> for Number<LEAST, MOST> {
    type Error = String;
    fn try_from(number: i64) -> Result<Self, String> {
        let within = u32::try_from(number).ok().filter(|number| (LEAST..=MOST).contains(number));
        within.map(Self).ok_or_else(|| format!("{number}: expected {LEAST} to {MOST}"))
    }
}

/// The id of a key.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct KeyName(String);

impl TryFrom<String> for KeyName {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        check_name(&name).map_err(|problem| format!("key {name:?}: {problem}"))?;
        Ok(Self(name))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which paths are meant: one step after the other, `None` for any.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct PathPattern(Vec<Option<u32>>);

impl PathPattern {
    fn matches(&self, path: &DerivationPath) -> bool {
        let steps = path.steps();
        self.0.len() == steps.len()
            && self.0.iter().zip(steps).all(|(wanted, step)| wanted.is_none_or(|wanted| wanted == *step))
    }
}

impl FromStr for PathPattern {
    type Err = PathError;
    fn from_str(text: &str) -> Result<Self, PathError> {
        // With a number in the place of each `*` it is a path.
        let numbers: Vec<&str> = text.split('/').map(|step| if step == "*" { "0" } else { step }).collect();
        let path: DerivationPath = numbers.join("/").parse()?;
        let steps = text.strip_prefix("m/").unwrap_or(text).split('/');
        Ok(Self(
            path.steps().iter().zip(steps).map(|(&number, step)| (step != "*").then_some(number)).collect(),
        ))
    }
}

impl TryFrom<String> for PathPattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error| format!("path {text:?}: {error}; `*` stands for one step"))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("m");
        }
        let steps = self.0.iter().map(|step| step.map_or("*".into(), |number| number.to_string()));
        f.write_str(&steps.collect::<Vec<_>>().join("/"))
    }
}

/// Who can approve, and how many of them have to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ApprovalRules")]
struct Approvers {
    required: usize,
    /// By name, for texts; the keys are all different.
    names: BTreeMap<VerifyingKey, String>,
}

/// `[approvals]` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovalRules {
    required: i64,
    approvers: BTreeMap<ApproverName, VerifyingKey>,
}

/// What a policy calls an approver.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct ApproverName(String);

impl TryFrom<String> for ApproverName {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        // Names stand in answers and logs.
        let readable = name.chars().all(|c| c.is_alphanumeric() || " .-_@+".contains(c));
        if name.trim().is_empty() || name.len() > 64 || !readable {
            return Err(format!(
                "approver {:?}: expected a name of 1 to 64 bytes: letters, digits, spaces and any of . - _ @ +",
                name.chars().take(80).collect::<String>()
            ));
        }
        Ok(Self(name))
    }
}

impl TryFrom<ApprovalRules> for Approvers {
    type Error = String;
    fn try_from(rules: ApprovalRules) -> Result<Self, String> {
        let mut names = BTreeMap::new();
        for (ApproverName(name), key) in rules.approvers {
            if let Some(first) = names.insert(key, name.clone()) {
                return Err(format!(
                    "`approvals.approvers`: {first} and {name} have the same key: expected one key for each"
                ));
            }
        }
        if names.is_empty() {
            return Err("`approvals.approvers`: it is empty: expected at least one, as in \
                        alice = \"<64 hex digits>\"; leave [approvals] out to need none"
                .into());
        }
        let most = names.len().min(MAX_APPROVALS);
        let required = usize::try_from(rules.required).ok().filter(|count| (1..=most).contains(count));
        let required = required.ok_or_else(|| {
            let what = if most == names.len() {
                "the number of approvers"
            } else {
                "the number of approvals that a request can have"
            };
            format!("`approvals.required`: {}: expected 1 to {most}, {what}", rules.required)
        })?;
        Ok(Self { required, names })
    }
}

impl Approvers {
    fn check(&self, attempt: &Attempt) -> Result<Vec<String>, String> {
        let approvals = &attempt.approvals;
        if approvals.len() > MAX_APPROVALS {
            return Err(format!("{} approvals: expected at most {MAX_APPROVALS}", approvals.len()));
        }
        let mut counted = BTreeMap::new();
        for approval in approvals {
            let Some(name) = self.names.get(&approval.approver) else { continue };
            if !counted.contains_key(&approval.approver) && approval.verify(&attempt.intent).is_ok() {
                counted.insert(approval.approver, name.clone());
            }
        }
        let mut counted: Vec<String> = counted.into_values().collect();
        counted.sort();
        if counted.len() < self.required {
            let there = if counted.is_empty() { "none".into() } else { listed(&counted) };
            return Err(format!("{self} are needed: got {there}"));
        }
        Ok(counted)
    }
}

impl fmt::Display for Approvers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&String> = self.names.values().collect();
        names.sort();
        write!(f, "approvals by {} of {}", self.required, listed(&names))
    }
}

/// Which requests a signer took part in during the last minute. As long as its limit at most.
#[derive(Clone, Debug, Default)]
pub struct RateLimit {
    order: VecDeque<(Instant, Asked)>,
    known: HashSet<Asked>,
}

/// A request, and the hash of the intent it came with.
type Asked = (Uuid, [u8; 32]);

impl RateLimit {
    /// Whether a request is one of at most `most` different ones in any minute. A further attempt of one
    /// that was let in is let in, and not counted again.
    pub fn admit(&mut self, most: u32, now: Instant, request: Uuid, intent: [u8; 32]) -> bool {
        while let Some((time, asked)) = self.order.front()
            && now.saturating_duration_since(*time) >= WINDOW
        {
            self.known.remove(asked);
            self.order.pop_front();
        }
        let asked = (request, intent);
        if self.known.contains(&asked) {
            return true;
        }
        if self.order.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            return false;
        }
        self.order.push_back((now, asked));
        self.known.insert(asked)
    }
}

/// Why a signer does not start with a policy.
#[derive(Debug, thiserror::Error)]
#[error("policy file {}: {problem}", file.display())]
pub struct PolicyError {
    file: PathBuf,
    problem: String,
}

/// The policy in force, and what is known of it.
#[derive(Clone, Debug)]
pub struct PolicyInfo {
    /// The policy; one that denies nothing where there is no file.
    pub policy: Arc<Policy>,
    /// SHA-256 of the file; `None` where there is none.
    pub sha256: Option<[u8; 32]>,
}

/// A signer's policy file: the policy in force, and the watch over the file.
pub struct PolicyFile {
    file: Option<PathBuf>,
    current: watch::Sender<PolicyInfo>,
    /// What the last look at the file showed: its hash, or why it could not be read.
    seen: Mutex<Result<[u8; 32], String>>,
    rate: Mutex<RateLimit>,
    metrics: SignerMetrics,
}

impl PolicyFile {
    /// Reads the policy; without a file, one that denies nothing.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no policy.
    pub fn open(file: Option<PathBuf>, metrics: SignerMetrics) -> Result<Self, PolicyError> {
        let (policy, sha256) = match &file {
            None => (Policy::default(), None),
            Some(file) => {
                let wrong = |problem| PolicyError { file: file.clone(), problem };
                let bytes = read(file).map_err(wrong)?;
                let policy = Policy::parse(&bytes).map_err(wrong)?;
                metrics.policy_valid(true);
                (policy, Some(Sha256::digest(&bytes).into()))
            }
        };
        let seen = Mutex::new(sha256.ok_or_else(String::new));
        let current = watch::Sender::new(PolicyInfo { policy: Arc::new(policy), sha256 });
        Ok(Self { file, current, seen, rate: Mutex::default(), metrics })
    }

    /// The policy in force, now and whenever it changes.
    pub fn changes(&self) -> watch::Receiver<PolicyInfo> {
        self.current.subscribe()
    }

    /// Whether the policy in force lets its signer take part in an attempt; counts it for the rate if so.
    /// Yields the names of those whose approvals counted.
    ///
    /// # Errors
    /// [`Denied`], by the first rule that is broken.
    pub fn check(&self, attempt: &Attempt, now: Timestamp) -> Result<Vec<String>, Denied> {
        self.check_at(attempt, now, Instant::now())
    }

    /// What [`PolicyFile::check`] would say. Nothing is counted, neither for the rate nor as refused.
    ///
    /// # Errors
    /// [`Denied`], by the first rule that is broken.
    pub fn rehearse(&self, attempt: &Attempt, now: Timestamp) -> Result<Vec<String>, Denied> {
        let mut rate = self.rate().clone();
        self.judge(attempt, now, |most| {
            rate.admit(most, Instant::now(), attempt.request, attempt.intent.hash())
        })
    }

    fn check_at(&self, attempt: &Attempt, now: Timestamp, clock: Instant) -> Result<Vec<String>, Denied> {
        self.judge(attempt, now, |most| {
            self.rate().admit(most, clock, attempt.request, attempt.intent.hash())
        })
        .inspect_err(|denied| self.metrics.policy_refused(denied.rule))
    }

    fn rate(&self) -> MutexGuard<'_, RateLimit> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds an attempt against all rules; `admit` is asked last, with how many requests a minute there may be.
    fn judge(
        &self,
        attempt: &Attempt,
        now: Timestamp,
        admit: impl FnOnce(u32) -> bool,
    ) -> Result<Vec<String>, Denied> {
        let policy = self.current.borrow().policy.clone();
        let approvers = policy.check(attempt, now)?;
        match policy.requests_per_minute {
            Some(Number(most)) if !admit(most) => {
                let reason = format!("this signer takes part in at most {most} requests a minute");
                Err(Denied { rule: Rule::Rate, reason })
            }
            _ => Ok(approvers),
        }
    }

    /// Looks at the file, and puts its policy in force if it has changed and is good. Otherwise the one
    /// before stays in force, so that a slip of the pen neither stops a signer nor lifts its rules.
    pub async fn reload(&self) {
        let Some(file) = &self.file else { return };
        let found = look(file).await;
        if *self.seen.lock().unwrap_or_else(PoisonError::into_inner) == hash_of(&found) {
            return;
        }
        sleep(SETTLE).await;
        self.take_up(file, found).await;
    }

    /// Deals with a change, unless it is not what the file shows any more: then somebody is writing it,
    /// and the next look may find it whole.
    async fn take_up(&self, file: &Path, found: Result<Vec<u8>, String>) {
        if look(file).await != found {
            return;
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = hash_of(&found);
        let parsed = found.and_then(|bytes| {
            Ok(PolicyInfo {
                policy: Arc::new(Policy::parse(&bytes)?),
                sha256: Some(Sha256::digest(&bytes).into()),
            })
        });
        match parsed {
            Ok(info) => {
                self.current.send_replace(info);
                self.metrics.policy_valid(true);
                tracing::info!("the policy file changed; {self}");
            }
            Err(problem) => {
                self.metrics.policy_valid(false);
                let file = file.display();
                tracing::error!(%file, %problem, "the policy file cannot be used: the policy before stays; {self}");
            }
        }
    }

    /// Looks at the file every [`POLL`] until `stop`.
    pub async fn watch(&self, stop: &CancellationToken) {
        while self.file.is_some() {
            tokio::select! {
                () = sleep(POLL) => self.reload().await,
                () = stop.cancelled() => return,
            }
        }
    }
}

impl fmt::Display for PolicyFile {
    /// What is in force, as a sentence's second half.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.current.borrow().clone();
        match (&self.file, info.sha256) {
            (Some(file), Some(sha256)) => {
                let (file, sha256) = (file.display(), hex::encode(sha256));
                write!(f, "its policy is {file} (sha256 {sha256}): {}", info.policy.summary())
            }
            _ => f.write_str("it has no policy, so it signs whatever a manager asks for"),
        }
    }
}

fn hash_of(found: &Result<Vec<u8>, String>) -> Result<[u8; 32], String> {
    found.as_ref().map(|bytes| Sha256::digest(bytes).into()).map_err(String::clone)
}

async fn look(file: &Path) -> Result<Vec<u8>, String> {
    let file = file.to_owned();
    spawn_blocking(move || read(&file)).await.unwrap_or_else(|error| Err(error.to_string()))
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(file).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no regular file".into());
    }
    let mut bytes = Vec::new();
    let mut opened = File::open(file).map_err(|error| error.to_string())?.take(MAX_FILE + 1);
    opened.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it has more than {MAX_FILE} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use tempfile::TempDir;
    use tss_common::approval::Approval;
    use tss_common::ed25519::SigningKey;
    use tss_common::intent::Intent;
    use tss_common::telemetry::render_metrics;
    use tss_mpc::{EngineId, Quorum, SignerIndex};

    use super::*;
    use crate::metrics::Metrics;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed([seed; 32].into())
    }

    fn attempt() -> Attempt {
        Attempt {
            request: Uuid::from_u128(1),
            attempt: 1,
            intent: Intent {
                cluster: "tss".into(),
                key: "default".into(),
                path: "0/1/2".parse().unwrap(),
                hash: HashAlgorithm::Sha256,
                digest: [7; 32],
                not_after: Some(Timestamp::from_second(60).unwrap()),
            },
            message: Vec::new(),
            approvals: Vec::new(),
            engine: EngineId::Dkls23,
            epoch: 1,
            quorum: Quorum::new([1, 2].map(|index| SignerIndex::new(index).unwrap())).unwrap(),
            expires: NOW,
            traceparent: None,
        }
    }

    fn with(change: impl FnOnce(&mut Intent)) -> Attempt {
        let mut attempt = attempt();
        change(&mut attempt.intent);
        attempt
    }

    fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes()).unwrap()
    }

    fn check(policy: &Policy, attempt: &Attempt) -> Result<Vec<String>, (Rule, String)> {
        policy.check(attempt, NOW).map_err(|denied| (denied.rule, denied.to_string()))
    }

    fn assert_says(text: &str, parts: &[&str]) {
        for part in parts {
            assert!(text.contains(part), "`{part}` is missing in: {text}");
        }
    }

    /// `[approvals]` of alice (key 1), bob (2) and carol (3).
    fn approvals(required: i64) -> String {
        let keys = [1, 2, 3].map(|seed| key(seed).verifying_key());
        format!(
            "[approvals]\nrequired = {required}\n[approvals.approvers]\n\
             alice = \"{}\"\nbob = \"{}\"\ncarol = \"{}\"\n",
            keys[0], keys[1], keys[2]
        )
    }

    #[test]
    fn a_whole_policy_is_read_and_summed_up() {
        let text = format!(
            "# ours\nkeys = [\"default\", \"cold\"]\npaths = [\"0/1/*\", \"m\", \"m/7\"]\n\
             hashes = [\"sha256\", \"none\"]\nrequests_per_minute = 600\nmax_validity = 3600\n{}",
            approvals(2)
        );
        assert_eq!(
            policy(&text).summary(),
            "keys default, cold; paths 0/1/*, m, 7; hashes sha256, none; at most 600 requests a minute; \
             valid for at most 3600 s; approvals by 2 of alice, bob, carol"
        );
        assert_eq!(policy(&text).approvals_required(), 2);
        assert_eq!(policy("# nothing").summary(), "nothing is denied");
        assert_eq!(policy("# nothing").approvals_required(), 0);
        assert_eq!(check(&policy("# nothing"), &attempt()), Ok(vec![]));
        let many: Vec<String> = (0..100).map(|number| format!("\"key-{number}\"")).collect();
        let summary = policy(&format!("keys = [{}]", many.join(","))).summary();
        assert_says(&summary, &["key-0, key-1", "key-15 and 84 more"]);
    }

    #[test]
    fn the_documented_example_is_a_policy() {
        let page = include_str!("../../docs/policy.md");
        let example = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let summary = policy(example).summary();
        assert_says(
            &summary,
            &["paths 0/1/*, m", "600 requests", "3600 s", "approvals by 2 of alice, bob, carol"],
        );
    }

    #[test]
    fn an_error_names_the_line_the_key_and_what_was_expected() {
        let alice = key(1).verifying_key();
        let same = format!("[approvals]\nrequired = 1\napprovers = {{ a = \"{alice}\", b = \"{alice}\" }}");
        let long = format!("[approvals]\nrequired = 1\napprovers = {{ {} = \"{alice}\" }}", "x".repeat(65));
        let control = format!("[approvals]\nrequired = 1\napprovers = {{ \"a\\u001b\" = \"{alice}\" }}");
        let crowd: Vec<String> =
            (1..=40).map(|seed| format!("a{seed} = \"{}\"", key(seed).verifying_key())).collect();
        let crowd = format!("[approvals]\nrequired = 33\n[approvals.approvers]\n{}", crowd.join("\n"));
        for (text, parts) in [
            ("", &["empty", "expected rules"][..]),
            (" \n", &["empty", "expected rules"]),
            ("\nkey = []", &["line 2", "unknown field `key`", "`keys`", "`requests_per_minute`"]),
            ("keys = []", &["line 1", "keys", "expected at least one; leave the key out to allow all"]),
            ("#\npaths = []", &["line 2", "paths", "expected at least one"]),
            ("hashes = []", &["line 1", "hashes", "expected at least one"]),
            ("keys = \"default\"", &["line 1", "keys", "expected a sequence"]),
            ("keys = [\n  \"a\",\n  \"B\"]", &["line 1", "keys", "key \"B\"", "1 to 63 lower-case letters"]),
            ("paths = [\"0'/1\"]", &["line 1", "paths", "`0'` is hardened", "0 to 2147483647"]),
            ("paths = [\"0/**\"]", &["line 1", "`**`", "as in `0/1/2`", "`*` stands for one step"]),
            ("paths = [\"m/m\"]", &["line 1", "`m`", "as in `0/1/2`"]),
            ("paths = [\"*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*/*\"]", &["17 steps", "at most 16"]),
            ("hashes = [\"md5\"]", &["line 1", "hashes", "`md5`", "`keccak256`"]),
            ("requests_per_minute = 0", &["line 1", "requests_per_minute", "0: expected 1 to 100000"]),
            ("requests_per_minute = 100001", &["line 1", "100001: expected 1 to 100000"]),
            ("max_validity = -1", &["line 1", "max_validity", "-1: expected 1 to 315360000"]),
            ("max_validity = \"1h\"", &["line 1", "max_validity", "string", "expected"]),
            ("keys = [\"a\"]\nkeys = [\"b\"]", &["line 2", "duplicate key"]),
            ("keys = [\"a\"", &["line 1", "]"]),
            ("\n[approvals]\n", &["line 2", "approvals", "missing field `required`"]),
            ("[approvals]\nrequired = 1", &["line 1", "missing field `approvers`"]),
            ("[approvals]\nneeded = 1", &["line 2", "unknown field `needed`", "`required`"]),
            (
                "[approvals]\nrequired = 1\n[approvals.approvers]\n",
                &["line 1", "`approvals.approvers`", "expected at least one"],
            ),
            (
                "[approvals]\nrequired = 1\n[approvals.approvers]\nalice = \"00\"",
                &["line 4", "alice", "expected 64 hex digits"],
            ),
            (
                &approvals(0),
                &["line 1", "`approvals.required`", "0: expected 1 to 3, the number of approvers"],
            ),
            (&approvals(4), &["`approvals.required`", "4: expected 1 to 3, the number of approvers"]),
            (&approvals(-1), &["`approvals.required`", "-1: expected 1 to 3"]),
            (&crowd, &["33: expected 1 to 32, the number of approvals that a request can have"]),
            (&same, &["`approvals.approvers`", "a and b have the same key", "expected one key for each"]),
            (&long, &["line 3", "1 to 64 bytes"]),
            (&control, &["line 3", "\"a\\u{1b}\"", "letters, digits"]),
        ] {
            let error = Policy::parse(text.as_bytes()).expect_err(text);
            assert_says(&error, parts);
        }
        assert_says(&Policy::parse(b"# \xff").unwrap_err(), &["after byte 2", "expected UTF-8"]);
    }

    #[test]
    fn each_rule_lets_in_what_it_names_and_says_what_it_refuses() {
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        let path = |path: &str| with(|intent| intent.path = path.parse().unwrap());
        let other_key = with(|intent| intent.key = "cold".into());
        let keccak = with(|intent| intent.hash = HashAlgorithm::Keccak256);
        let paths = "paths = [\"0/1/*\", \"m\", \"5\"]";
        for (text, attempt) in [
            ("keys = [\"default\"]", attempt()),
            ("keys = [\"default\", \"cold\"]", other_key.clone()),
            (paths, path("0/1/2")),
            (paths, path("0/1/2147483647")),
            (paths, path("m")),
            (paths, path("5")),
            ("hashes = [\"eip191\", \"keccak256\"]", keccak.clone()),
            ("max_validity = 60", attempt()),
            ("max_validity = 60", with(|intent| intent.not_after = at(1))),
        ] {
            assert_eq!(check(&policy(text), &attempt), Ok(vec![]), "{text}");
        }
        let not_allowed =
            |path: &str| format!("policy: path {path} is not allowed: expected one of 0/1/*, m, 5");
        for (text, attempt, rule, said) in [
            (
                "keys = [\"default\"]",
                other_key,
                Rule::Key,
                "policy: key cold is not allowed: expected default".into(),
            ),
            (paths, path("0/9/9"), Rule::Path, not_allowed("0/9/9")),
            (paths, path("0/1"), Rule::Path, not_allowed("0/1")),
            (paths, path("0/1/2/3"), Rule::Path, not_allowed("0/1/2/3")),
            (paths, path("6"), Rule::Path, not_allowed("6")),
            ("paths = [\"*\"]", path("m"), Rule::Path, "policy: path m is not allowed: expected *".into()),
            (
                "hashes = [\"sha256\", \"eip191\"]",
                keccak,
                Rule::Hash,
                "policy: hash keccak256 is not allowed: expected one of sha256, eip191".into(),
            ),
            (
                "max_validity = 59",
                self::attempt(),
                Rule::Expiry,
                "policy: not_after 1970-01-01T00:01:00Z is too late: expected a time at most 59 s ahead"
                    .into(),
            ),
            (
                "max_validity = 59",
                with(|intent| intent.not_after = None),
                Rule::Expiry,
                "policy: not_after is absent: expected a time at most 59 s ahead".into(),
            ),
        ] {
            assert_eq!(check(&policy(text), &attempt), Err((rule, said)), "{text}");
        }
    }

    #[test]
    fn a_refusal_is_final_but_for_the_rate() {
        let reason = String::from("r");
        for rule in [Rule::Key, Rule::Path, Rule::Hash, Rule::Expiry, Rule::Approvals] {
            let ending = Ending::from(Denied { rule, reason: reason.clone() });
            assert!(matches!(ending, Ending::Refused(said) if said == "policy: r"), "{rule:?}");
        }
        assert!(
            matches!(Denied { rule: Rule::Rate, reason }.into(), Ending::Unable(said) if said == "policy: r")
        );
    }

    #[test]
    fn approvals_of_enough_known_approvers_are_needed_and_each_counts_once() {
        let attempt = attempt();
        let by = |seed| Approval::make(&key(seed), &attempt.intent);
        let mut forged = by(2);
        forged.signature = by(1).signature;
        let (alice, bob, carol, dave) = (by(1), by(2), by(3), by(4));
        let policy = policy(&approvals(2));
        let given = |approvals: Vec<&Approval>| {
            let approvals = approvals.into_iter().cloned().collect();
            check(&policy, &Attempt { approvals, ..attempt.clone() })
        };
        let names = |names: &[&str]| Ok(names.iter().map(ToString::to_string).collect());
        assert_eq!(given(vec![&alice, &bob]), names(&["alice", "bob"]));
        assert_eq!(given(vec![&carol, &dave, &alice]), names(&["alice", "carol"]));
        assert_eq!(given(vec![&carol, &bob, &alice]), names(&["alice", "bob", "carol"]));
        // A bad one does not spoil a good one.
        assert_eq!(given(vec![&forged, &bob, &bob, &alice]), names(&["alice", "bob"]));
        for (approvals, there) in [
            (vec![], "none"),
            (vec![&bob], "bob"),
            (vec![&bob; 32], "bob"),
            (vec![&alice, &dave], "alice"),
            (vec![&forged, &carol], "carol"),
            (vec![&dave, &forged], "none"),
        ] {
            let said = format!("policy: approvals by 2 of alice, bob, carol are needed: got {there}");
            assert_eq!(given(approvals), Err((Rule::Approvals, said)));
        }
        let too_many = given([vec![&alice, &bob], vec![&carol; 31]].concat());
        assert_says(&too_many.unwrap_err().1, &["33 approvals", "expected at most 32"]);
    }

    #[test]
    fn an_approval_of_another_intent_does_not_count() {
        let policy = policy(&approvals(1));
        let approved = Attempt { approvals: vec![Approval::make(&key(1), &attempt().intent)], ..attempt() };
        assert_eq!(check(&policy, &approved), Ok(vec!["alice".into()]));
        let changes: [fn(&mut Intent); 7] = [
            |intent| intent.cluster = "other".into(),
            |intent| intent.key = "other".into(),
            |intent| intent.path = DerivationPath::root(),
            |intent| intent.hash = HashAlgorithm::None,
            |intent| intent.digest[31] ^= 1,
            |intent| intent.not_after = None,
            |intent| intent.not_after = Some(Timestamp::from_second(61).unwrap()),
        ];
        for change in changes {
            let mut attempt = approved.clone();
            change(&mut attempt.intent);
            let (rule, said) = check(&policy, &attempt).unwrap_err();
            assert_eq!(rule, Rule::Approvals, "{:?}", attempt.intent);
            assert_says(&said, &["got none"]);
        }
    }

    #[test]
    fn the_rate_is_that_of_different_requests_in_any_minute() {
        let (mut rate, began) = (RateLimit::default(), Instant::now());
        let mut admit = |seconds: u64, request: u128, intent: u8| {
            let now = began + Duration::from_secs(seconds);
            let admitted = rate.admit(2, now, Uuid::from_u128(request), [intent; 32]);
            assert!(rate.order.len() <= 2 && rate.order.len() == rate.known.len());
            admitted
        };
        assert!(admit(0, 1, 1));
        assert!(admit(30, 2, 1));
        // Further attempts of these are not new; another request, or another intent, is.
        assert!(admit(31, 1, 1) && admit(32, 2, 1));
        assert!(!admit(33, 3, 1) && !admit(33, 1, 2));
        assert!(!admit(59, 3, 1));
        assert!(admit(60, 3, 1));
        assert!(!admit(89, 4, 1));
        assert!(admit(90, 4, 1) && !admit(90, 5, 1));
        // What has left the window is new again.
        assert!(admit(1000, 1, 1));
        // A clock that stands behind is no reason to stop.
        assert!(admit(0, 1, 1) && admit(0, 2, 2) && !admit(0, 3, 3));
    }

    /// A policy file, the signer's view of it, and what that signer counts.
    struct Watched {
        folder: TempDir,
        policy: PolicyFile,
        registry: Registry,
    }

    impl Watched {
        fn start(text: &str) -> Self {
            let (folder, registry) = (tempfile::tempdir().unwrap(), Registry::new());
            let file = folder.path().join("policy.toml");
            std::fs::write(&file, text).unwrap();
            let metrics = Metrics::new(&registry).of(SignerIndex::new(1).unwrap());
            let policy = PolicyFile::open(Some(file), metrics).unwrap();
            Self { folder, policy, registry }
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("policy.toml")
        }

        async fn becomes(&self, text: &str) {
            std::fs::write(self.file(), text).unwrap();
            self.policy.reload().await;
        }

        fn metric(&self, line: &str) -> bool {
            render_metrics(&self.registry).1.lines().any(|shown| shown == line)
        }

        fn assert_in_force(&self, text: &str, valid: bool) {
            let info = self.policy.changes().borrow().clone();
            assert_eq!(*info.policy, policy(text));
            assert_eq!(info.sha256, Some(Sha256::digest(text).into()));
            assert!(self.metric(&format!("tss_signer_policy_valid{{signer=\"1\"}} {}", u8::from(valid))));
        }
    }

    #[test]
    fn what_is_denied_is_counted_by_its_rule_and_only_what_is_let_in_counts_for_the_rate() {
        let watched = Watched::start("requests_per_minute = 1\npaths = [\"0/1/*\"]");
        let (now, check) =
            (Instant::now(), |attempt: &Attempt, now| watched.policy.check_at(attempt, NOW, now));
        let astray = with(|intent| intent.path = DerivationPath::root());
        for _ in 0..3 {
            assert_eq!(check(&astray, now).unwrap_err().rule, Rule::Path);
        }
        let second = Attempt { request: Uuid::from_u128(2), ..attempt() };
        assert_eq!(check(&attempt(), now), Ok(vec![]));
        assert_eq!(check(&Attempt { attempt: 2, ..attempt() }, now), Ok(vec![]));
        let denied = check(&second, now).unwrap_err();
        assert_eq!(denied.to_string(), "policy: this signer takes part in at most 1 requests a minute");
        assert_eq!(check(&second, now + WINDOW), Ok(vec![]));
        let refusals = "tss_signer_policy_refusals_total{rule=";
        assert!(watched.metric(&format!("{refusals}\"path\",signer=\"1\"}} 3")));
        assert!(watched.metric(&format!("{refusals}\"rate\",signer=\"1\"}} 1")));
    }

    #[tokio::test]
    async fn a_good_change_is_taken_up_and_a_bad_one_leaves_the_policy_before() {
        let (first, second) = ("keys = [\"default\"]", "keys = [\"cold\"]");
        let watched = Watched::start(first);
        let mut changes = watched.policy.changes();
        watched.assert_in_force(first, true);
        watched.becomes(first).await;
        assert!(!changes.has_changed().unwrap());

        watched.becomes(second).await;
        watched.assert_in_force(second, true);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();

        for bad in ["keys = []", "", "keys = [\"default\"", &"#".repeat((1 << 20) + 1)] {
            watched.becomes(bad).await;
            watched.assert_in_force(second, false);
            assert!(!changes.has_changed().unwrap());
        }
        // The same as before the bad ones is a change back.
        watched.becomes(second).await;
        watched.assert_in_force(second, true);
        watched.becomes("keys = []").await;
        watched.becomes(first).await;
        watched.assert_in_force(first, true);
        assert!(changes.has_changed().unwrap());
    }

    #[tokio::test]
    async fn a_file_that_vanishes_leaves_its_policy_in_force() {
        let text = "keys = [\"default\"]";
        let watched = Watched::start(text);
        std::fs::remove_file(watched.file()).unwrap();
        watched.policy.reload().await;
        watched.assert_in_force(text, false);
        std::fs::create_dir(watched.file()).unwrap();
        watched.policy.reload().await;
        watched.assert_in_force(text, false);
        std::fs::remove_dir(watched.file()).unwrap();
        watched.becomes(text).await;
        watched.assert_in_force(text, true);
    }

    #[tokio::test]
    async fn a_swapped_link_is_a_change_and_a_file_half_written_is_none() {
        let watched = Watched::start("# one");
        for (folder, text) in [("a", "keys = [\"a\"]"), ("b", "keys = [\"b\"]")] {
            let folder = watched.folder.path().join(folder);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("policy.toml"), text).unwrap();
            let link = watched.folder.path().join("new");
            std::os::unix::fs::symlink(folder.join("policy.toml"), &link).unwrap();
            std::fs::rename(&link, watched.file()).unwrap();
            watched.policy.reload().await;
            watched.assert_in_force(text, true);
        }
        // The first half alone would allow every key.
        let half = "max_validity = 60\n";
        std::fs::write(watched.file(), format!("{half}keys = [\"c\"]\n")).unwrap();
        watched.policy.take_up(&watched.file(), Ok(half.into())).await;
        watched.assert_in_force("keys = [\"b\"]", true);
        watched.policy.reload().await;
        watched.assert_in_force("max_validity = 60\nkeys = [\"c\"]\n", true);
    }

    #[test]
    fn a_bad_policy_at_start_is_an_error_and_none_denies_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.toml");
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).of(SignerIndex::new(1).unwrap());
        let open = |file: &Path| {
            PolicyFile::open(Some(file.to_owned()), metrics.clone()).map(|_| ()).unwrap_err().to_string()
        };
        let name = file.display().to_string();
        assert_says(&open(&file), &["policy file", &name, "No such file"]);
        assert_says(&open(folder.path()), &["policy file", "no regular file"]);
        std::fs::write(&file, "\nkeys = []").unwrap();
        assert_says(&open(&file), &["policy file", &name, "line 2", "expected at least one"]);

        let none = PolicyFile::open(None, metrics.clone()).unwrap();
        assert_eq!(none.check(&attempt(), NOW), Ok(vec![]));
        assert_eq!(none.changes().borrow().sha256, None);
        assert_says(&none.to_string(), &["no policy", "signs whatever a manager asks for"]);
        assert!(!render_metrics(&registry).1.contains("tss_signer_policy_valid"));

        std::fs::write(&file, "keys = [\"default\"]").unwrap();
        let some = PolicyFile::open(Some(file), metrics).unwrap();
        let sha256 = hex::encode(Sha256::digest("keys = [\"default\"]"));
        assert_says(&some.to_string(), &["its policy is", &name, &sha256, "keys default"]);
    }
}
