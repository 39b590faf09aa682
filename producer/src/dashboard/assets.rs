//! The style sheet and the script, inside the program: nothing to build, install or fetch.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

const CSS: &str = include_str!("../../assets/stoker.css");
const JS: &str = include_str!("../../assets/stoker.js");
const ICON: &str = include_str!("../../assets/icon.svg");
const DOCS_JS: &str = include_str!("../../assets/docs.js");

/// Address of the style sheet. It changes with every release, so that caches never mix two.
pub const CSS_PATH: &str = concat!("/assets/stoker-", env!("CARGO_PKG_VERSION"), ".css");
/// Address of the script.
pub const JS_PATH: &str = concat!("/assets/stoker-", env!("CARGO_PKG_VERSION"), ".js");
/// Address of the icon. Without one, browsers ask for a `/favicon.ico` that is not there.
pub const ICON_PATH: &str = concat!("/assets/icon-", env!("CARGO_PKG_VERSION"), ".svg");
/// Address of the script that starts the viewer of the API's document.
pub const DOCS_JS_PATH: &str = concat!("/assets/docs-", env!("CARGO_PKG_VERSION"), ".js");

/// `GET /assets/{name}`
pub async fn file(Path(name): Path<String>) -> Response {
    let path = format!("/assets/{name}");
    let (kind, body) = match path.as_str() {
        CSS_PATH => ("text/css; charset=utf-8", CSS),
        JS_PATH => ("text/javascript; charset=utf-8", JS),
        ICON_PATH => ("image/svg+xml", ICON),
        DOCS_JS_PATH => ("text/javascript; charset=utf-8", DOCS_JS),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    // One version has one content; asking again once an hour is for those who build their own.
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=3600")], body).into_response()
}
