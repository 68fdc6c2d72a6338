//! Which metrics and labels an expression names.

use std::collections::BTreeSet;

use promql_parser::label::{METRIC_NAME, MatchOp};
use promql_parser::parser::{self, Expr, LabelModifier};
use promql_parser::util::{ExprVisitor, walk_expr};

/// One selector of an expression, with all that the expression expects of its series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// The labels that it, or something around it, names.
    pub(crate) labels: BTreeSet<String>,
    /// Values that labels are expected to have somewhere: of `=`, and of each alternative of a plain `a|b`.
    pub(crate) values: BTreeSet<(String, String)>,
}

/// The selectors of an expression.
///
/// # Errors
/// When it is not PromQL, or a selector names no metric.
pub(crate) fn selectors(expression: &str) -> Result<Vec<Selector>, String> {
    let expression = parser::parse(expression)?;
    let mut found = Found::default();
    walk_expr(&mut found, &expression)?;
    Ok(found.selectors)
}

#[derive(Default)]
struct Found {
    selectors: Vec<Selector>,
    /// What the expressions around this one group by or match on.
    around: Vec<BTreeSet<String>>,
}

impl ExprVisitor for Found {
    type Error = String;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, String> {
        self.around.push(grouped_by(expression));
        match expression {
            Expr::VectorSelector(selector) => self.add(selector)?,
            Expr::MatrixSelector(selector) => self.add(&selector.vs)?,
            _ => {}
        }
        Ok(true)
    }

    fn post_visit(&mut self, _: &Expr) -> Result<bool, String> {
        self.around.pop();
        Ok(true)
    }
}

impl Found {
    fn add(&mut self, selector: &parser::VectorSelector) -> Result<(), String> {
        if !selector.matchers.or_matchers.is_empty() {
            return Err(format!("{selector}: alternatives between matchers are not understood"));
        }
        let metric = selector.name.clone().ok_or_else(|| format!("{selector} names no metric"))?;
        let mut labels: BTreeSet<String> = self.around.iter().flatten().cloned().collect();
        let mut values = BTreeSet::new();
        for matcher in selector.matchers.matchers.iter().filter(|matcher| matcher.name != METRIC_NAME) {
            labels.insert(matcher.name.clone());
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
            match matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => {
                    values.insert((matcher.name.clone(), matcher.value.clone()));
                }
                MatchOp::Re(_) | MatchOp::NotRe(_) => {
                    let alternatives: Vec<&str> = matcher.value.split('|').collect();
                    if alternatives.iter().all(|value| !value.is_empty() && value.chars().all(plain)) {
                        values.extend(alternatives.iter().map(|&value| (matcher.name.clone(), value.into())));
                    }
                }
            }
        }
        self.selectors.push(Selector { metric, labels, values });
        Ok(())
    }
}

/// The labels by which an expression groups, or on which it matches, what is in it.
fn grouped_by(expression: &Expr) -> BTreeSet<String> {
    let modifier = match expression {
        Expr::Aggregate(aggregate) => aggregate.modifier.as_ref(),
        Expr::Binary(binary) => binary.modifier.as_ref().and_then(|modifier| modifier.matching.as_ref()),
        _ => None,
    };
    match modifier {
        Some(LabelModifier::Include(labels)) => labels.labels.iter().cloned().collect(),
        Some(LabelModifier::Exclude(_)) | None => BTreeSet::new(),
    }
}

#[test]
fn a_selector_carries_what_is_around_it() {
    let found = selectors(
        r#"sum by (cluster) (rate(a_total{x="1", y=~"b|c", z=~".*"}[5m])) / on (cluster) (max by (cluster, part) (b) > 0)"#,
    );
    let set = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect::<BTreeSet<_>>();
    let values = [("x", "1"), ("y", "b"), ("y", "c")].map(|(name, value)| (name.into(), value.into())).into();
    assert_eq!(
        found.unwrap(),
        [
            Selector { metric: "a_total".into(), labels: set(&["cluster", "x", "y", "z"]), values },
            Selector { metric: "b".into(), labels: set(&["cluster", "part"]), values: BTreeSet::new() },
        ]
    );
    assert!(selectors("sum(").is_err());
    assert!(selectors(r#"{job="a"}"#).is_err());
}
