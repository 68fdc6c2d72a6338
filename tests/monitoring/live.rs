//! A network under load, scraped by a real Prometheus with the chart's rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::sleep;

use crate::dashboards::{Dashboard, Kind, Panel, dashboards};
use crate::network::{Load, NAME, Network, garble};
use crate::picture::{Content, draw};
use crate::prometheus::Prometheus;
use crate::promql::{Selector, selectors};
use crate::server::{Namespace, in_namespace};

/// How long the load lasts before what is drawn begins: rates need some seconds.
const WARM_UP: Duration = Duration::from_secs(10);

/// How long it lasts then, before and after a signer falls silent.
const LOAD: Duration = Duration::from_secs(15);

/// How long what must happen may take.
const SOON: Duration = Duration::from_secs(60);

/// One test, because a network under load takes long to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_exists_and_a_fault_fires_the_right_alert() {
    in_namespace(async |namespace| {
        let network = Network::start(namespace).await;
        let prometheus = Prometheus::start(network.targets()).await;
        let load = Load::start(network.url());
        sleep(WARM_UP).await;
        let began = now();
        sleep(LOAD).await;
        // One signer falls silent, for so long that sessions with it run out of time.
        network.signal(&[3], "STOP");
        garble(network.cluster()).await;
        sleep(Duration::from_secs(4)).await;
        network.signal(&[3], "CONT");
        sleep(LOAD).await;
        assert_eq!(prometheus.unreachable().await, [""; 0], "Prometheus cannot scrape");

        let window = (began, now());
        let found = [
            missing_series(&prometheus, namespace).await,
            panels_without_data(&prometheus, namespace, window).await,
        ];
        assert!(found.iter().all(Vec::is_empty), "{}", found.concat().join("\n"));
        assert_eq!(
            critical(&prometheus, "firing").await,
            BTreeSet::new(),
            "critical alerts fire without a reason"
        );
        drop(load);

        two_silent_signers_fire_the_alert_for_a_lost_quorum(&prometheus, &network).await;
        network.stop().await;
    })
    .await;
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// What Grafana's variables are here.
fn variables(namespace: &Namespace) -> [(&str, &str); 4] {
    [("__rate_interval", "10s"), ("namespace", &namespace.name), ("cluster", NAME), ("pod", ".*")]
}

/// What dashboards and rules name that no series has.
async fn missing_series(prometheus: &Prometheus, namespace: &Namespace) -> Vec<String> {
    let mut wanted: BTreeMap<Selector, String> = BTreeMap::new();
    let variables = variables(namespace);
    for (name, dashboard) in dashboards() {
        let queries = dashboard.panels.iter().flat_map(|panel| &panel.targets);
        for query in queries.map(|target| target.query(&variables)) {
            wanted.extend(selectors(&query).unwrap().into_iter().map(|selector| (selector, name.clone())));
        }
        for (series, label) in dashboard.variables(&variables) {
            for mut selector in selectors(&series).unwrap() {
                selector.labels.insert(label.clone());
                wanted.insert(selector, name.clone());
            }
        }
    }
    for (name, alert) in crate::rules::alerts() {
        wanted.extend(selectors(&alert.expr).unwrap().into_iter().map(|selector| (selector, name.clone())));
    }

    let mut missing = Vec::new();
    for (selector, by) in wanted {
        let Selector { metric, labels, values } = selector;
        // All that there ever was of it.
        let series = prometheus.query(&format!("last_over_time({metric}[1h])")).await.unwrap();
        if series.is_empty() {
            missing.push(format!("{by}: there is no metric {metric}"));
            continue;
        }
        for label in labels {
            if !series.iter().any(|series| series.labels.contains_key(&label)) {
                missing.push(format!("{by}: {metric} has no label {label}"));
            }
        }
        for (label, value) in values {
            if !series.iter().any(|series| series.labels.get(&label) == Some(&value)) {
                missing.push(format!("{by}: {metric} never has {label}={value}"));
            }
        }
    }
    missing
}

/// The queries of panels that yield no number. Draws the dashboards.
async fn panels_without_data(
    prometheus: &Prometheus,
    namespace: &Namespace,
    window: (f64, f64),
) -> Vec<String> {
    let mut without = Vec::new();
    let pictures = std::env::var_os("PICTURES").map_or_else(
        || crate::folder("target/pictures"),
        |folder| crate::folder("").join(PathBuf::from(folder)),
    );
    std::fs::create_dir_all(&pictures).unwrap();
    for (name, dashboard) in dashboards() {
        let mut contents = Vec::new();
        for panel in &dashboard.panels {
            let content = ask(prometheus, namespace, panel, window).await;
            without.extend(content.without_data().map(|what| format!("{name}: {}: {what}", panel.title)));
            contents.push(content);
        }
        let Dashboard { title, panels, .. } = &dashboard;
        draw(&pictures.join(format!("{name}.svg")), title, panels, &contents, window);
    }
    without
}

/// What a panel shows.
async fn ask(prometheus: &Prometheus, namespace: &Namespace, panel: &Panel, window: (f64, f64)) -> Content {
    let mut content = Content::default();
    for target in &panel.targets {
        let query = target.query(&variables(namespace));
        let answer = match panel.kind {
            Kind::Row => Ok(Vec::new()),
            Kind::Stat => prometheus.query(&query).await,
            Kind::Timeseries => prometheus.query_range(&query, window, 1.0).await,
        };
        content.add(&target.legend_format, &query, answer);
    }
    content
}

/// The names of the critical alerts in this state.
async fn critical(prometheus: &Prometheus, state: &str) -> BTreeSet<String> {
    let alerts = prometheus.alerts().await.into_iter();
    alerts
        .filter(|(_, severity, found)| severity == "critical" && found == state)
        .map(|(name, ..)| name)
        .collect()
}

async fn two_silent_signers_fire_the_alert_for_a_lost_quorum(prometheus: &Prometheus, network: &Network) {
    let lost = BTreeSet::from(["TssQuorumLost".to_owned()]);
    network.signal(&[2, 3], "STOP");
    let began = Instant::now();
    let mut was_pending = false;
    loop {
        was_pending |= critical(prometheus, "pending").await.contains("TssQuorumLost");
        let firing = critical(prometheus, "firing").await;
        if !firing.is_empty() {
            assert_eq!(firing, lost, "other alerts fire");
            break;
        }
        assert!(began.elapsed() < SOON, "two of three signers are silent, and after {SOON:?} nothing fires");
        sleep(Duration::from_millis(200)).await;
    }
    assert!(was_pending, "it fired before it was pending");
    println!(
        "two of three signers fell silent: TssQuorumLost fires after {:.1} s",
        began.elapsed().as_secs_f64()
    );

    network.signal(&[2, 3], "CONT");
    let began = Instant::now();
    while prometheus.alerts().await.iter().any(|(name, ..)| name == "TssQuorumLost") {
        assert!(began.elapsed() < SOON, "the signers are back, and after {SOON:?} the alert still fires");
        sleep(Duration::from_millis(200)).await;
    }
    println!("they are back: it is resolved after {:.1} s", began.elapsed().as_secs_f64());
}
