//! The OpenAPI document: it is current, it is what the server says, and it has every route.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use reqwest::Method;
use serde_json::Value;
use stoker_producer::http::access::{Fingerprint, new_token};
use stoker_producer::http::{Access, openapi};
use support::{SOON, Server};

/// Set, it rewrites the checked-in file instead of comparing it.
const BLESS: &str = "STOKER_BLESS";

#[test]
fn the_published_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/json/openapi.json");
    let text = format!("{:#}\n", openapi::document());
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(known == text, "schemas/json/openapi.json is not what the code says; {BLESS}=1 rewrites it");
}

#[tokio::test]
async fn a_server_says_what_it_asks_for() {
    let server = Server::start().await;
    let told: Value = reqwest::get(server.url("/v1/openapi.json")).await.unwrap().json().await.unwrap();
    let mut expected = openapi::document().clone();
    assert!(expected.as_object_mut().unwrap().remove("security").is_some());
    assert_eq!(told, expected, "without tokens nothing has to be shown");
}

/// Every reference leads somewhere, and every part that can be referred to is.
#[test]
fn references_lead_somewhere_and_nothing_is_left_over() {
    let document = openapi::document();
    let mut found = BTreeSet::new();
    references(document, &mut found);
    for reference in &found {
        let pointer = reference.strip_prefix('#').expect("a reference into the document");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    for kind in ["schemas", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            assert!(found.contains(&format!("#/components/{kind}/{name}")), "{name} is not used");
        }
    }
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// What is read and what is written under one name must be one thing.
#[test]
fn no_schema_has_two_shapes() {
    assert_eq!(openapi::ambiguous(), Vec::<String>::new());
}

/// The methods of every path are those of the document, and no path is left out of it.
#[tokio::test]
async fn routes_and_operations_are_the_same() {
    let server = Server::start().await;
    let client = reqwest::Client::builder().no_proxy().timeout(SOON).build().unwrap();
    let document = openapi::document();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let asked = path.replace("{n}", "1").replace(['{', '}'], "");
        for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let answer = client.request(method.clone(), server.url(&asked)).send().await.unwrap();
            let is_documented = operations.get(method.as_str().to_lowercase()).is_some();
            assert_eq!(answer.status() != 405, is_documented, "{method} {path}: {}", answer.status());
        }
    }
    let routes = routes_of(&server.routes);
    let documented: BTreeSet<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert!(documented.is_subset(&routes), "the list of routes was not understood: {routes:?}");
    let is_api =
        |path: &&String| ["/v1", "/hooks", "/health", "/ready", "/metrics"].iter().any(|top| path.starts_with(top));
    let api: BTreeSet<_> = routes.iter().filter(is_api).cloned().collect();
    assert_eq!(api, documented, "a route that is not in the table of operations");
}

/// What the document says of tokens is so: without one, the operations that need one say 401, and
/// no other does.
#[tokio::test]
async fn operations_that_need_a_token_ask_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens.toml");
    let known = Fingerprint::of(&new_token().unwrap());
    std::fs::write(&tokens, format!("[[token]]\nname = \"ada\"\nrole = \"read\"\nsha256 = \"{known}\"\n")).unwrap();
    let server = Server::start_with(Access::from_file(&tokens).unwrap()).await;
    let client = reqwest::Client::builder().no_proxy().timeout(SOON).build().unwrap();
    let document = openapi::document();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let asked = path.replace("{n}", "1").replace(['{', '}'], "");
            let answer = client.request(method.clone(), server.url(&asked)).send().await.unwrap();
            let is_free = operation["security"] == serde_json::json!([]);
            assert_eq!(answer.status() != 401, is_free, "{method} {path}: {}", answer.status());
        }
    }
}

/// A router lists its paths only when it is printed.
fn routes_of(printed: &str) -> BTreeSet<String> {
    printed.split('"').filter(|part| part.starts_with('/')).map(str::to_owned).collect()
}
