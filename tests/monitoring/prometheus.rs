//! A Prometheus of one test's own: Debian's, in a temporary folder, on a free port.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::monitors::Scrape;

/// How long it may take to start, and to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long alerts are pending here. In the chart it is minutes.
pub(crate) const PENDING: &str = "2s";

/// What is scraped.
pub(crate) struct Target {
    pub(crate) address: String,
    /// The labels with which it is found.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) scrape: Scrape,
}

/// A running Prometheus.
pub(crate) struct Prometheus {
    child: Child,
    folder: TempDir,
    url: String,
    http: reqwest::Client,
}

/// A series of an answer: its labels and, by time, its values.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Prometheus {
    /// One that scrapes each second, and evaluates the chart's rules as often, whose alerts are pending for [`PENDING`].
    pub(crate) async fn start(targets: &[Target]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, yaml) in crate::rules::rule_files() {
            let lines = yaml.lines().map(|line| match line.split_once("for: ") {
                Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: {PENDING}\n"),
                _ => format!("{line}\n"),
            });
            std::fs::write(folder.path().join(format!("{name}.rules.yaml")), lines.collect::<String>())
                .unwrap();
        }
        let jobs: Vec<Value> = targets
            .iter()
            .enumerate()
            .map(|(number, target)| {
                json!({
                    "job_name": format!("target-{number}"),
                    "honor_labels": target.scrape.honor_labels,
                    "relabel_configs": target.scrape.relabelings,
                    "static_configs": [{"targets": [target.address], "labels": target.labels}],
                })
            })
            .collect();
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["*.rules.yaml"],
            "scrape_configs": jobs,
        });
        // JSON is YAML.
        std::fs::write(folder.path().join("prometheus.yml"), config.to_string()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"])
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus of the package `prometheus` is missing: {error}"));
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let mut prometheus = Self { child, folder, url: format!("http://{address}"), http };
        prometheus.until_ready().await;
        prometheus
    }

    async fn until_ready(&mut self) {
        let began = Instant::now();
        loop {
            let answer = self.http.get(format!("{}/-/ready", self.url)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                panic!("Prometheus does not start ({ended:?}):\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn get(&self, path: &str, parameters: &[(&str, String)]) -> Result<Value, String> {
        let url =
            reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), parameters).unwrap();
        let answer = self.http.get(url).send().await.map_err(|error| error.to_string())?;
        let mut answer: Value = answer.json().await.map_err(|error| error.to_string())?;
        if answer["status"] == "success" {
            Ok(answer["data"].take())
        } else {
            Err(answer["error"].to_string())
        }
    }

    /// What a query yields now.
    pub(crate) async fn query(&self, query: &str) -> Result<Vec<Series>, String> {
        let data = self.get("query", &[("query", query.into())]).await?;
        Ok(all(&data, |series| vec![point(&series["value"])]))
    }

    /// What a query yields over a time: seconds since 1970.
    pub(crate) async fn query_range(
        &self,
        query: &str,
        (from, to): (f64, f64),
        step: f64,
    ) -> Result<Vec<Series>, String> {
        let parameters = [
            ("query", query.into()),
            ("start", from.to_string()),
            ("end", to.to_string()),
            ("step", step.to_string()),
        ];
        let data = self.get("query_range", &parameters).await?;
        let points = |series: &Value| series["values"].as_array().unwrap().iter().map(point).collect();
        Ok(all(&data, points))
    }

    /// The alerts that are not at rest: name, severity, and whether it is pending or firing.
    pub(crate) async fn alerts(&self) -> Vec<(String, String, String)> {
        let data = self.get("alerts", &[]).await.unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let alerts = data["alerts"].as_array().unwrap().iter();
        alerts
            .map(|alert| {
                let labels = &alert["labels"];
                (text(&labels["alertname"]), text(&labels["severity"]), text(&alert["state"]))
            })
            .collect()
    }

    /// The addresses of the targets that it cannot scrape, with the reasons.
    pub(crate) async fn unreachable(&self) -> Vec<String> {
        let data = self.get("targets", &[]).await.unwrap();
        let targets = data["activeTargets"].as_array().unwrap().iter();
        targets
            .filter(|target| target["health"] != "up")
            .map(|target| format!("{}: {}", target["scrapeUrl"], target["lastError"]))
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn all(data: &Value, points: impl Fn(&Value) -> Vec<(f64, f64)>) -> Vec<Series> {
    let series = data["result"].as_array().expect("a vector or a matrix").iter();
    series
        .map(|series| Series {
            labels: serde_json::from_value(series["metric"].clone()).unwrap(),
            points: points(series),
        })
        .collect()
}

/// A time and a value, which is text: `NaN`, `+Inf` and `-Inf` are values too.
fn point(value: &Value) -> (f64, f64) {
    (value[0].as_f64().unwrap(), value[1].as_str().unwrap().parse().unwrap())
}
