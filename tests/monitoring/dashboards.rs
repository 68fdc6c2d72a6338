//! The dashboards, as far as these tests understand them, and what each must have.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::promql::selectors;

/// A dashboard.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dashboard {
    pub(crate) uid: String,
    pub(crate) title: String,
    description: String,
    schema_version: u32,
    tags: Vec<String>,
    templating: Templating,
    pub(crate) panels: Vec<Panel>,
}

#[derive(Debug, Deserialize)]
struct Templating {
    list: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    /// What Grafana asks, for a variable of type `query`.
    #[serde(default)]
    query: serde_json::Value,
}

impl Variable {
    fn definition(&self) -> Option<&str> {
        (self.kind == "query").then(|| self.query["query"].as_str().expect("a query"))
    }
}

/// What stands in a rectangle of a dashboard.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Panel {
    id: u32,
    #[serde(rename = "type")]
    pub(crate) kind: Kind,
    pub(crate) title: String,
    #[serde(default)]
    description: String,
    pub(crate) grid_pos: GridPos,
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
    #[serde(default)]
    pub(crate) field_config: FieldConfig,
    datasource: Option<Datasource>,
}

/// What a panel shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A heading.
    Row,
    /// A number for each series.
    Stat,
    /// A line for each series.
    Timeseries,
}

/// Where a panel is. A dashboard is 24 wide.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct GridPos {
    pub(crate) x: i32,
    pub(crate) y: i32,
    pub(crate) w: i32,
    pub(crate) h: i32,
}

impl GridPos {
    fn overlaps(self, other: Self) -> bool {
        self.x < other.x + other.w
            && other.x < self.x + self.w
            && self.y < other.y + other.h
            && other.y < self.y + self.h
    }
}

/// A query of a panel.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    ref_id: String,
    pub(crate) expr: String,
    pub(crate) legend_format: String,
    #[serde(default)]
    instant: bool,
}

#[derive(Clone, Debug, Deserialize)]
struct Datasource {
    uid: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct FieldConfig {
    pub(crate) defaults: Field,
    overrides: Vec<Override>,
}

/// What is different for the series of a name: their colour.
#[derive(Clone, Debug, Deserialize)]
struct Override {
    matcher: ByName,
    properties: [Color; 1],
}

#[derive(Clone, Debug, Deserialize)]
struct ByName {
    options: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Color {
    value: FixedColor,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FixedColor {
    fixed_color: String,
}

/// How values look.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Field {
    pub(crate) unit: String,
    pub(crate) decimals: Option<usize>,
    pub(crate) thresholds: Thresholds,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) custom: Custom,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Thresholds {
    pub(crate) steps: Vec<Step>,
}

/// From this value on, this colour.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Step {
    pub(crate) color: String,
    pub(crate) value: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Mapping {
    pub(crate) options: BTreeMap<String, Shown>,
}

/// What is shown instead of a value.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Shown {
    pub(crate) text: String,
    pub(crate) color: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Custom {
    stacking: Stacking,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Stacking {
    mode: String,
}

impl Panel {
    /// The colour that the series of a name has here, whatever stands beside it.
    pub(crate) fn color_of(&self, name: &str) -> Option<&str> {
        let mut overrides = self.field_config.overrides.iter();
        let found = overrides.find(|other| other.matcher.options == name)?;
        Some(&found.properties[0].value.fixed_color)
    }

    /// Whether its lines stand on each other.
    pub(crate) fn is_stacked(&self) -> bool {
        self.field_config.defaults.custom.stacking.mode == "normal"
    }
}

impl Target {
    /// The query with its variables replaced, as Grafana does it.
    pub(crate) fn query(&self, variables: &[(&str, &str)]) -> String {
        replace(&self.expr, variables)
    }
}

fn replace(text: &str, variables: &[(&str, &str)]) -> String {
    variables.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${name}"), value))
}

/// All of the chart, by the names of their files.
pub(crate) fn dashboards() -> BTreeMap<String, Dashboard> {
    let files = crate::files("charts/tss-network/dashboards", "json");
    let parsed = files.into_iter().map(|(name, json)| {
        let dashboard = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{name}.json: {error}"));
        (name, dashboard)
    });
    parsed.collect()
}

/// What variables may stand for where nothing is asked.
const ANY: [(&str, &str); 4] =
    [("__rate_interval", "1m"), ("namespace", ".*"), ("cluster", ".*"), ("pod", ".*")];

#[test]
fn every_query_and_variable_is_promql_with_known_variables() {
    for (name, dashboard) in dashboards() {
        let queries =
            dashboard.panels.iter().flat_map(|panel| &panel.targets).map(|target| target.query(&ANY));
        let definitions = dashboard.templating.list.iter().filter_map(Variable::definition);
        let selected = definitions.map(|definition| series_of(&replace(definition, &ANY)).0);
        for query in queries.chain(selected) {
            assert!(!query.contains('$'), "{name}: an unknown variable in {query}");
            let found = selectors(&query).unwrap_or_else(|error| panic!("{name}: {query}: {error}"));
            assert!(!found.is_empty(), "{name}: {query} asks for no metric");
        }
    }
}

/// The series that a variable looks for, and the label whose values it offers.
fn series_of(definition: &str) -> (String, String) {
    let inner = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    let parts = inner.and_then(|inner| inner.rsplit_once(", "));
    let (series, label) =
        parts.unwrap_or_else(|| panic!("{definition}: expected label_values(SERIES, LABEL)"));
    (series.to_owned(), label.to_owned())
}

impl Dashboard {
    /// What its variables look for, with the label that they offer, for these variables.
    pub(crate) fn variables(&self, variables: &[(&str, &str)]) -> Vec<(String, String)> {
        let definitions = self.templating.list.iter().filter_map(Variable::definition);
        definitions.map(|definition| series_of(&replace(definition, variables))).collect()
    }
}

#[test]
fn a_person_can_read_every_panel() {
    let mut uids = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        assert!(uids.insert(dashboard.uid.clone()), "{name}: another dashboard has uid {}", dashboard.uid);
        assert!(!dashboard.title.is_empty() && !dashboard.description.is_empty(), "{name}");
        assert!(
            dashboard.tags.contains(&"tss-network".to_owned()),
            "{name}: the dashboards link by this tag"
        );
        // That of Grafana 10.3: newer ones migrate it.
        assert_eq!(dashboard.schema_version, 39, "{name}");
        let first = &dashboard.templating.list[0];
        assert_eq!((first.name.as_str(), first.kind.as_str()), ("datasource", "datasource"), "{name}");
        let mut ids = BTreeSet::new();
        for (number, panel) in dashboard.panels.iter().enumerate() {
            let what = format!("{name}, panel {} ({})", panel.id, panel.title);
            assert!(ids.insert(panel.id), "{what}: another panel has this id");
            assert!(!panel.title.is_empty(), "{what}: no title");
            assert!(panel.grid_pos.x + panel.grid_pos.w <= 24, "{what}: wider than the dashboard");
            for other in &dashboard.panels[..number] {
                assert!(!panel.grid_pos.overlaps(other.grid_pos), "{what} lies over {}", other.title);
            }
            if panel.kind == Kind::Row {
                continue;
            }
            assert!(panel.description.ends_with('.'), "{what}: no description");
            assert!(!panel.field_config.defaults.unit.is_empty(), "{what}: no unit");
            assert!(!panel.field_config.defaults.thresholds.steps.is_empty(), "{what}: no colours");
            let uid = panel.datasource.as_ref().map(|datasource| datasource.uid.as_str());
            assert_eq!(uid, Some("${datasource}"), "{what}: another data source");
            assert!(!panel.targets.is_empty(), "{what}: no query");
            let refs: BTreeSet<_> = panel.targets.iter().map(|target| &target.ref_id).collect();
            assert_eq!(refs.len(), panel.targets.len(), "{what}: queries of the same name");
            for target in &panel.targets {
                assert_eq!(
                    target.instant,
                    panel.kind == Kind::Stat,
                    "{what}: lines need ranges, numbers do not"
                );
            }
        }
    }
    assert!(!uids.is_empty(), "there is no dashboard");
}

#[test]
fn an_alert_that_a_panel_names_exists() {
    let alerts = crate::rules::alerts();
    for (name, dashboard) in dashboards() {
        for panel in &dashboard.panels {
            let words = panel.description.split(|c: char| !c.is_ascii_alphanumeric());
            // `TssCluster` is none.
            for word in words.filter(|word| word.starts_with("Tss") && !word.starts_with("TssCluster")) {
                assert!(alerts.contains_key(word), "{name}, {}: there is no alert {word}", panel.title);
            }
        }
    }
}
