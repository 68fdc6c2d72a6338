//! The document of the API (OpenAPI 3.1): what it says beside what each route declares of itself.
//!
//! A handler declares what it takes and answers, and in `x-problems` which problems are its own. What many routes
//! have in common is added here, in one place: problems, how to authorise, and the examples.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;
use tss_common::telemetry::Label as _;
use tss_common::version::VERSION;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::info::LicenseBuilder;
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder,
};

use super::problem::{Kind, Problem};

/// What is said before all routes.
const ABOUT: &str = "\
The manager of a threshold-signature network: takes requests, has them signed by t of n signers, and gives the \
signatures. No private key exists in one place, and none is here.

Ask with `POST /sign`, then fetch with `GET /signature/{id}?wait=10s`. Bodies are JSON objects of at most 1 MiB. \
Every answer that is not what was asked for is a problem (RFC 9457, `application/problem+json`) with a `type` that \
never changes and a `detail` that says what was expected; so are those to paths that are not in this document (404, \
`no-such-route`) and to other methods (405, `method-not-allowed`).";

/// How to authorise.
const BEARER: &str = "\
A JSON Web Token, where the manager is configured with `auth = \"jwt\"`; with `auth = \"none\"` no token is needed. Its \
scopes (claim `scope`, separated by spaces, or the array `scp`) are `sign`, to ask for signatures and to see what one has asked \
for; `read`, to see everybody's; and `admin`, to list them all and to have shares made anew. A token may be limited to keys (`tss_keys`) and to paths that begin with certain \
prefixes (`tss_paths`).";

/// Groups of routes, in the order in which they are read.
const TAGS: [(&str, &str); 4] = [
    ("signing", "Ask for signatures, and get them."),
    ("keys", "Public keys, their addresses, whether a signature is one of theirs, and new shares."),
    ("watching", "For those who watch a manager: people, Kubernetes, Prometheus."),
    ("documentation", "What you read, as data and as a page."),
];

/// What is asked and answered, in a network that was there: see [`Examples`].
const EXAMPLES: &str = include_str!("examples.json");

/// Problems that any route can have.
const OF_ALL: [Kind; 3] = [Kind::MethodNotAllowed, Kind::TimedOut, Kind::Internal];

/// Of those that not everybody may ask, or not too often.
const OF_GUARDED: [Kind; 1] = [Kind::RateLimited];

/// Of those that want to know who asks.
const OF_SECURED: [Kind; 2] = [Kind::Unauthenticated, Kind::Forbidden];

/// Of those with something in their path: nothing there is another path.
const OF_PATHS: [Kind; 1] = [Kind::NoSuchRoute];

/// Of those that take a body.
const OF_BODIES: [Kind; 4] = [Kind::MalformedJson, Kind::BodyTooLarge, Kind::NotJson, Kind::InvalidRequest];

/// An operation's examples.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Examples {
    /// Bodies to send, by what they ask for.
    requests: BTreeMap<String, Value>,
    /// What is answered, by status.
    responses: BTreeMap<String, Value>,
}

/// A document without routes.
pub fn begin() -> OpenApi {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some(BEARER))
        .build();
    let tags = TAGS.map(|(name, about)| TagBuilder::new().name(name).description(Some(about)).build());
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("TSS Network")
                .version(VERSION)
                .description(Some(ABOUT))
                .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build())),
        )
        .tags(Some(tags))
        .components(Some(
            ComponentsBuilder::new()
                .security_scheme("bearer", SecurityScheme::Http(bearer))
                .responses_from_iter(Kind::ALL.iter().map(|&kind| (kind.as_str(), answer(&[kind]))))
                .build(),
        ))
        .build()
}

/// The document of these routes, with all that they have in common; of a manager that asks for tokens, or of one that
/// does not.
pub fn complete(mut document: OpenApi, tokens: bool) -> OpenApi {
    let mut examples: BTreeMap<String, Examples> =
        serde_json::from_str(EXAMPLES).expect("the examples are read by the tests");
    for item in document.paths.paths.values_mut() {
        for operation in operations(item) {
            let id = operation.operation_id.clone().unwrap_or_default();
            add_scopes(operation);
            let guarded = operation.security.is_some();
            if !tokens {
                operation.security = None;
            }
            add_problems(operation, guarded);
            add_examples(operation, examples.remove(&id).unwrap_or_default());
        }
    }
    document
}

/// The operations of a path. No route has another method.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post].into_iter().flatten()
}

/// The problems that an operation names as its own, and those of all of its kind: a response for each status.
fn add_problems(operation: &mut Operation, guarded: bool) {
    let own = operation.extensions.as_mut().and_then(|extensions| extensions.remove("x-problems"));
    let own: Vec<String> = own.and_then(|own| serde_json::from_value(own).ok()).unwrap_or_default();
    let has_path = operation.parameters.iter().flatten().any(
        |parameter| matches!(parameter, RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Path),
    );
    let applies = |kind: Kind| {
        own.iter().any(|name| name == kind.as_str())
            || OF_ALL.contains(&kind)
            || (OF_GUARDED.contains(&kind) && guarded)
            || (OF_SECURED.contains(&kind) && operation.security.is_some())
            || (OF_PATHS.contains(&kind) && has_path)
            || (OF_BODIES.contains(&kind) && operation.request_body.is_some())
    };
    let mut by_status: BTreeMap<u16, Vec<Kind>> = BTreeMap::new();
    for &kind in Kind::ALL.iter().filter(|&&kind| applies(kind)) {
        by_status.entry(kind.parts().0.as_u16()).or_default().push(kind);
    }
    for (status, kinds) in by_status {
        let response = match kinds[..] {
            [kind] => Ref::from_response_name(kind.as_str()).into(),
            _ => answer(&kinds).into(),
        };
        // What the handler itself declares for a status stands.
        operation.responses.responses.entry(status.to_string()).or_insert(response);
    }
}

/// A response that is one of these problems, all of one status.
fn answer(kinds: &[Kind]) -> Response {
    let about: Vec<_> =
        kinds.iter().map(|kind| format!("`{}`: {}.", kind.as_str(), kind.parts().1)).collect();
    let which = ObjectBuilder::new().property(
        "type",
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(kinds.iter().map(|kind| kind.urn()))),
    );
    let schema = AllOfBuilder::new().item(Ref::from_schema_name("Problem")).item(which);
    let examples = kinds.iter().map(|&kind| {
        let body = serde_json::to_value(Problem::from(kind).into_body()).unwrap_or_default();
        (kind.as_str(), ExampleBuilder::new().summary(kind.parts().1).value(Some(body)).build())
    });
    let content = ContentBuilder::new().schema(Some(schema)).examples_from_iter(examples).build();
    let mut response =
        ResponseBuilder::new().description(about.join(" ")).content("application/problem+json", content);
    for (name, header) in kinds.iter().filter_map(|&kind| header(kind)) {
        response = response.header(name, header);
    }
    response.build()
}

/// The header that a problem is answered with.
fn header(kind: Kind) -> Option<(&'static str, Header)> {
    let (name, r#type, about) = match kind {
        Kind::Unavailable | Kind::Overloaded | Kind::RateLimited => {
            ("Retry-After", Type::Integer, "When to try again, in seconds.")
        }
        Kind::Unauthenticated => ("WWW-Authenticate", Type::String, "`Bearer realm=\"tss\"`."),
        Kind::MethodNotAllowed => ("Allow", Type::String, "The methods that the path has."),
        _ => return None,
    };
    let schema = ObjectBuilder::new().schema_type(r#type);
    Some((name, HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build()))
}

/// In words, which scopes will do.
fn add_scopes(operation: &mut Operation) {
    let required = serde_json::to_value(&operation.security).unwrap_or_default();
    let scopes: BTreeSet<_> = required.as_array().into_iter().flatten().map(scope).collect();
    let scopes = Vec::from_iter(scopes).join(" or ");
    if !scopes.is_empty() {
        let about = operation.description.get_or_insert_default();
        let gap = if about.is_empty() { "" } else { "\n\n" };
        about.push_str(&format!("{gap}Scope: {scopes}."));
    }
}

/// The scope that a requirement names.
fn scope(requirement: &Value) -> String {
    requirement["bearer"][0].as_str().map_or("any".into(), |scope| format!("`{scope}`"))
}

fn add_examples(operation: &mut Operation, Examples { requests, responses }: Examples) {
    if let Some(RefOr::T(body)) = &mut operation.request_body
        && let Some(RefOr::T(content)) = body.content.get_mut("application/json")
    {
        content.examples = requests
            .into_iter()
            .map(|(name, value)| {
                (
                    name.replace(' ', "-"),
                    ExampleBuilder::new().summary(name).value(Some(value)).build().into(),
                )
            })
            .collect();
    }
    for (status, value) in responses {
        if let Some(RefOr::T(response)) = operation.responses.responses.get_mut(&status)
            && let Some((_, RefOr::T(content))) = response.content.get_index_mut(0)
        {
            content.example = Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::routes;

    /// Methods and paths that a router serves. It tells them only to who debugs it.
    fn served(router: &axum::Router<std::sync::Arc<crate::service::Shared>>) -> BTreeSet<(String, String)> {
        let text = format!("{router:?}");
        let (own, _) = text.split_once("fallback_router").unwrap();
        let (routes, paths) = own.split_once("paths: {").unwrap();
        let (paths, _) = paths.split_once("} }").unwrap();
        let mut served = BTreeSet::new();
        for path in paths.split(", ") {
            let (id, path) = path.split_once(": ").unwrap();
            let (_, route) = routes.split_once(&format!("{id}: MethodRouter")).unwrap();
            let (_, methods) = route.split_once("allow_header: Bytes(b\"").unwrap();
            let (methods, _) = methods.split_once('"').unwrap();
            // Whoever serves GET serves HEAD.
            for method in methods.split(',').filter(|&method| method != "HEAD") {
                served.insert((method.to_owned(), path.trim_matches('"').to_owned()));
            }
        }
        served
    }

    #[test]
    fn the_document_has_every_route_that_is_served_and_no_other() {
        for metrics in [false, true] {
            let (router, document) = routes(metrics, |_, group| group).split_for_parts();
            let document = serde_json::to_value(complete(document, metrics)).unwrap();
            let mut documented = BTreeSet::new();
            for (path, item) in document["paths"].as_object().unwrap() {
                for method in item.as_object().unwrap().keys() {
                    documented.insert((method.to_uppercase(), path.clone()));
                }
            }
            let served = served(&router);
            assert_eq!(documented, served);
            assert!(served.contains(&("POST".into(), "/sign".into())), "{served:?}");
            assert_eq!(served.contains(&("GET".into(), "/metrics".into())), metrics);
        }
    }

    #[test]
    fn every_operation_names_what_it_needs_and_can_answer() {
        const OPEN: [&str; 6] = ["/health", "/livez", "/readyz", "/openapi.json", "/docs", "/docs/{file}"];
        for tokens in [false, true] {
            let document =
                serde_json::to_value(complete(routes(true, |_, group| group).into_openapi(), tokens))
                    .unwrap();
            for (path, item) in document["paths"].as_object().unwrap() {
                for (method, operation) in item.as_object().unwrap() {
                    let at = format!("{method} {path}, tokens: {tokens}");
                    let answers = |status: &str| !operation["responses"][status].is_null();
                    let secured = !operation["security"].is_null();
                    let open = OPEN.contains(&path.as_str());
                    assert_eq!(secured, tokens && !open, "{at}");
                    assert!(["401", "403"].iter().all(|status| answers(status) == secured), "{at}");
                    assert_eq!(answers("429"), !open, "{at}");
                    assert!(["405", "408", "500"].iter().all(|status| answers(status)), "{at}");
                    let takes = !operation["requestBody"].is_null();
                    assert!(
                        !takes || ["400", "413", "415", "422"].iter().all(|status| answers(status)),
                        "{at}"
                    );
                    assert!(!path.contains('{') || answers("404"), "{at}");
                    let about = operation["description"].as_str().unwrap_or_default();
                    assert_eq!(about.contains("Scope: "), !open, "{at}");
                    assert!(operation["x-problems"].is_null(), "{at}");
                }
            }
        }
    }

    #[test]
    fn every_example_has_its_operation() {
        let document =
            serde_json::to_value(complete(routes(true, |_, group| group).into_openapi(), false)).unwrap();
        let examples: BTreeMap<String, Examples> = serde_json::from_str(EXAMPLES).unwrap();
        for (id, Examples { requests, responses }) in examples {
            let paths = document["paths"].as_object().unwrap();
            let mut operations = paths.values().flat_map(|item| item.as_object().unwrap().values());
            let operation = operations.find(|operation| operation["operationId"] == *id).unwrap();
            assert_eq!(requests.is_empty(), operation["requestBody"].is_null(), "{id}");
            for (status, answer) in responses {
                let content = &operation["responses"][&status]["content"]["application/json"];
                assert_eq!(content["example"], answer, "{id} {status}");
            }
        }
    }

    #[test]
    fn a_route_that_is_not_declared_is_found() {
        let undeclared = routes(true, |_, group| group).route("/undeclared", axum::routing::get(|| async {}));
        let (router, document) = undeclared.split_for_parts();
        assert!(served(&router).contains(&("GET".into(), "/undeclared".into())));
        assert!(!document.paths.paths.contains_key("/undeclared"));
    }
}
