//! The HTTP API as an OpenAPI 3.1 document, made from the same `table` as the router and from the
//! types that handlers read and write. A copy is checked in with the rest of the contract.

mod document;
mod operation;
mod shapes;
mod table;

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::Value;

use self::document::Writer;
use self::operation::Endpoint;
use super::{Api, guard};

/// Made once: it cannot change while the program runs.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| Writer::default().document(&all()));

fn all() -> Vec<Endpoint> {
    let mut endpoints = table::endpoints();
    endpoints.push(table::deliveries());
    endpoints
}

/// The document about a server with tokens.
pub fn document() -> &'static Value {
    &DOCUMENT
}

/// Names that stand for one thing in requests and for another in answers; there must be none.
pub fn ambiguous() -> Vec<String> {
    Writer::default().ambiguous(&all())
}

/// Routes behind the gate.
pub(super) fn routes() -> Router<Api> {
    table::endpoints().into_iter().fold(Router::new(), |router, endpoint| router.route(endpoint.path, endpoint.route))
}

/// Routes in front of it.
pub(super) fn free_routes() -> Router<Api> {
    let deliveries = table::deliveries();
    Router::new().route(deliveries.path, deliveries.route).method_not_allowed_fallback(guard::wrong_method)
}

/// `GET /v1/openapi.json`: what this very server asks for.
async fn serve(State(api): State<Api>) -> Response {
    if api.access().is_closed() {
        return Json(document()).into_response();
    }
    let mut open = document().clone();
    if let Some(document) = open.as_object_mut() {
        document.remove("security");
    }
    ([(header::CONTENT_TYPE, "application/json")], open.to_string()).into_response()
}
