//! `GET /openapi.json`, `/docs`: what the API is, for programs and for people.
//!
//! The page is made by the reader's browser, of the document; nothing in it comes from elsewhere.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::response::Response;
use utoipa::openapi::OpenApi;

use super::page::served;
use super::problem::{Kind, Problem};

/// The document as JSON, made once.
#[derive(Clone)]
pub struct Document(Bytes);

impl Document {
    /// The text of a document.
    pub fn new(document: &OpenApi) -> Self {
        Self(serde_json::to_vec(document).expect("a document is made of strings and numbers").into())
    }
}

/// This document
///
/// What all routes take and answer, in the format OpenAPI 3.1.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "documentation",
    responses((status = 200, description = "The document.", body = utoipa::openapi::Object, content_type = "application/json")),
)]
pub async fn openapi(Extension(Document(json)): Extension<Document>) -> Response {
    served("application/json", json)
}

/// The document as a page
///
/// For people. It needs no other server than this one.
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "docs",
    tag = "documentation",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
)]
pub async fn page() -> Response {
    served("text/html; charset=utf-8", include_str!("docs/page.html"))
}

/// What the page is made with
///
/// Its style and its script.
#[utoipa::path(
    get,
    path = "/docs/{file}",
    operation_id = "docs_file",
    tag = "documentation",
    params(("file" = inline(super::schema::DocsFile), Path, description = "Which of them.")),
    responses(
        (status = 200, description = "The file.", content((String = "text/css"), (String = "text/javascript"))),
    ),
    extensions(("x-problems" = json!([Kind::NoSuchRoute]))),
)]
pub async fn file(name: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    match name.as_ref().map(|Path(name)| name.as_str()) {
        Ok("page.css") => Ok(served("text/css; charset=utf-8", include_str!("docs/page.css"))),
        Ok("page.js") => Ok(served("text/javascript; charset=utf-8", include_str!("docs/page.js"))),
        _ => Err(Kind::NoSuchRoute.into()),
    }
}
