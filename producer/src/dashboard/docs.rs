//! `GET /docs`: the API's document to read and to try, in Swagger UI. Its files are in the program;
//! nothing is fetched from elsewhere.

use axum::Router;
use axum::http::{StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use maud::{DOCTYPE, html};
use swagger_ui_dist::{ApiDefinition, OpenApiSource, generate_routes};

use super::assets::{DOCS_JS_PATH, ICON_PATH};
use crate::http::Api;

const PAGE: &str = "/docs";
const SCRIPT: &str = "/docs/swagger-ui-bundle.js";
const STYLE: &str = "/docs/swagger-ui.css";

/// As on our own pages, except that the viewer writes styles into its elements and brings its
/// pictures inside its style sheet. Scripts come from files of ours here, too.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The page and the two files of the viewer that it needs; the viewer's own page, whose script is
/// inline, is not among them.
pub fn routes() -> Router<Api> {
    let viewer = generate_routes(ApiDefinition {
        uri_prefix: PAGE,
        api_definition: OpenApiSource::Uri("/v1/openapi.json"),
        title: None,
    });
    // One version has one content, as with our own files.
    let kept = map_response(async |response: Response| ([(header::CACHE_CONTROL, "max-age=3600")], response));
    Router::new()
        .route_service(SCRIPT, viewer.clone())
        .route_service(STYLE, viewer)
        .layer(kept)
        .route(PAGE, get(page))
        .route(&format!("{PAGE}/"), get(async || Redirect::permanent(PAGE)))
}

async fn page() -> Response {
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "API · Stoker" }
                link rel="icon" href=(ICON_PATH);
                link rel="stylesheet" href=(STYLE);
                script src=(SCRIPT) defer {}
                script src=(DOCS_JS_PATH) defer {}
            }
            body {
                main #main {
                    div #viewer {
                        noscript { "This viewer needs script; the document itself is at " a href="/v1/openapi.json" { "/v1/openapi.json" } "." }
                    }
                }
            }
        }
    };
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "same-origin"),
    ];
    (StatusCode::OK, headers, markup.into_string()).into_response()
}
