//! Asking a server in tests.

use reqwest::Response;
use serde_json::Value;

use super::{SOON, Server};

pub struct Client<'a> {
    pub server: &'a Server,
    pub http: reqwest::Client,
}

impl<'a> Client<'a> {
    pub fn of(server: &'a Server) -> Self {
        Self { server, http: reqwest::Client::builder().no_proxy().timeout(SOON).build().unwrap() }
    }

    pub async fn get(&self, path: &str) -> Response {
        self.http.get(self.server.url(path)).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Response {
        self.http.post(self.server.url(path)).json(body).send().await.unwrap()
    }

    pub async fn json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }
}

/// The problem that an answer is.
pub async fn problem(response: Response, status: u16) -> Value {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status);
    problem
}
