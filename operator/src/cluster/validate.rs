//! Step 2: is what a TssCluster asks for possible? Its schema has been checked by the API server.

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::{Resource as _, ResourceExt as _};
use tss_common::config::check_name;
use tss_mpc::{DerivationPath, Threshold};

use super::names;
use super::record::KeyRecord;
use crate::crd::{KeySourceKind, TssCluster, TssClusterSpec};

/// A TssCluster that can be built.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The object itself, as long as it is not deleted.
    pub uid: String,
    /// The reference by which objects go when it goes.
    pub owner: OwnerReference,
    /// How many of how many signers sign.
    pub threshold: Threshold,
    /// The network's name on the bus, in the shares and in what is signed.
    pub network: String,
    /// The port that traces are sent to.
    pub traces_port: Option<u16>,
    /// When its shares are made anew.
    pub schedule: Option<Schedule>,
    /// What it asks for.
    pub spec: TssClusterSpec,
}

/// Times at which something is done, in UTC.
#[derive(Clone, Debug)]
pub struct Schedule(Crontab);

impl Schedule {
    fn parse(text: &str) -> Result<Self, String> {
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::UTC;
        let schedule = cronexpr::parse_crontab_with(text, options).map_err(|error| error.to_string())?;
        // One that never comes is found out now: no date has passed since.
        schedule.find_next(MakeTimestamp(Timestamp::UNIX_EPOCH)).map_err(|error| error.to_string())?;
        Ok(Self(schedule))
    }

    /// The first time after this one.
    pub fn after(&self, time: Timestamp) -> Option<Timestamp> {
        self.0.find_next(MakeTimestamp(time)).ok().map(|time| time.timestamp())
    }
}

/// Why a TssCluster cannot be built: what is wrong, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// The cluster that an object asks for.
///
/// # Errors
/// [`Invalid`], for a person.
pub fn validate(object: &TssCluster) -> Result<Cluster, Invalid> {
    let spec = &object.spec;
    let name = object.name_any();
    let namespace = object.namespace().ok_or_else(|| Invalid("it has no namespace".into()))?;
    let uid = object.uid().ok_or_else(|| Invalid("it has no uid".into()))?;
    let owner = object.controller_owner_ref(&()).ok_or_else(|| Invalid("it has no uid".into()))?;
    let count = |number: i32| u8::try_from(number).unwrap_or(0);
    let threshold = Threshold::new(count(spec.threshold), count(spec.signers))
        .map_err(|error| Invalid(format!("threshold, signers: {error}")))?;
    let network = spec.network_name.clone().unwrap_or_else(|| format!("{namespace}-{name}"));
    check_name(&network).map_err(|expected| {
        Invalid(format!(
            "the network's name would be {network}: {expected}: set networkName to a shorter one"
        ))
    })?;
    spec.derivation_path
        .parse::<DerivationPath>()
        .map_err(|error| Invalid(format!("derivationPath: {error}")))?;
    let named = spec.key_source.existing_secrets.as_ref();
    match (spec.key_source.kind, named) {
        (KeySourceKind::Generate, None) => {}
        (KeySourceKind::ExistingSecrets, Some(named))
            if named.secrets.len() == usize::from(threshold.n()) => {}
        _ => {
            return Err(Invalid(format!(
                "keySource: expected either Generate, or ExistingSecrets with the names of {} Secrets",
                threshold.n()
            )));
        }
    }
    let schedule = spec.refresh.as_ref().and_then(|refresh| refresh.schedule.as_deref());
    let schedule = schedule.map(Schedule::parse).transpose().map_err(|error| {
        Invalid(format!("refresh.schedule: expected five fields of cron, as in `0 3 * * 0`: {error}"))
    })?;
    let traces_port = spec.traces.as_ref().map(|traces| port_of(&traces.otlp_endpoint)).transpose()?;
    Ok(Cluster { name, namespace, uid, owner, threshold, network, traces_port, schedule, spec: spec.clone() })
}

/// The port that a URL leads to.
fn port_of(url: &str) -> Result<u16, Invalid> {
    let port = reqwest::Url::parse(url).map(|url| url.port_or_known_default());
    port.ok().flatten().ok_or_else(|| Invalid(format!("traces.otlpEndpoint: expected a URL, not {url}")))
}

impl Cluster {
    /// The cluster as it is while its key is this one: another threshold comes with other shares.
    pub fn with_key(&self, key: &KeyRecord) -> Self {
        Self { threshold: key.threshold(), ..self.clone() }
    }

    /// The indices of its signers.
    pub fn indices(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.threshold.n()
    }

    /// Where programs in the Kubernetes cluster find the manager.
    pub fn manager_url(&self) -> String {
        names::manager_url(self.spec.manager.scheme(), &self.namespace, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixtures::{CLUSTER, object};
    use crate::crd::Refresh;

    fn with_schedule(schedule: &str) -> Result<Cluster, Invalid> {
        let mut object = object(CLUSTER);
        object.spec.refresh = Some(Refresh { schedule: Some(schedule.into()), older_than: None });
        validate(&object)
    }

    #[test]
    fn a_schedule_that_is_none_or_never_comes_is_refused_and_named() {
        for schedule in ["0 3 * *", "0 0 3 * * 0", "0 3 30 2 *", "@daily", "0 24 * * *", "", "x x x x x"] {
            let Err(Invalid(why)) = with_schedule(schedule) else { panic!("{schedule} is accepted") };
            assert!(why.starts_with("refresh.schedule: expected five fields of cron"), "{why}");
        }
    }

    #[test]
    fn a_schedule_is_in_utc_and_its_next_time_is_after_the_one_before() {
        let schedule = with_schedule("0 3 * * 0").unwrap().schedule.unwrap();
        let after = |time: &str| schedule.after(time.parse().unwrap()).unwrap().to_string();
        assert_eq!(after("2026-01-01T00:00:00Z"), "2026-01-04T03:00:00Z");
        assert_eq!(after("2026-01-04T02:59:59Z"), "2026-01-04T03:00:00Z");
        assert_eq!(after("2026-01-04T03:00:00Z"), "2026-01-11T03:00:00Z");
        let leap = with_schedule("0 0 29 2 *").unwrap().schedule.unwrap();
        let next = leap.after("2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(next.to_string(), "2028-02-29T00:00:00Z");
    }
}
