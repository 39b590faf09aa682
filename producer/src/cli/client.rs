//! Talking to Stoker's API: one request or one stream at a time, problems as errors.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CliError;
use crate::http::Problem;

/// The server is on this machine: it answers at once or is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A thousand jobs are confirmed well within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Largest answer taken.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

/// An answer with the header that says where to read on.
pub struct Piece {
    /// The body.
    pub bytes: Vec<u8>,
    /// Where to read on.
    pub next: u64,
}

impl Client {
    pub fn new(base: Url, by: &str, token: Option<&str>) -> Result<Self, CliError> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) {
            // What is wrong with it is not repeated: it is a secret.
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                CliError::usage("the token is not one that Stoker made", "look at STOKER_TOKEN or --token")
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Ok(value) = HeaderValue::from_str(by) {
            headers.insert("stoker-by", value);
        }
        let built =
            reqwest::Client::builder().connect_timeout(CONNECT_WITHIN).default_headers(headers).no_proxy().build();
        let http = built.map_err(|e| CliError::system("the HTTP client cannot be set up", e, ""))?;
        Ok(Self { http, base })
    }

    /// An address below the server's. Segments are escaped: an id cannot leave its place.
    fn url(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CliError> {
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.body(response).await?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(CliError::Refused(Box::new(problem))),
            Err(_) => Err(CliError::system(
                format!("{} answered {status}", self.base),
                String::from_utf8_lossy(&bytes[..bytes.len().min(300)]),
                "is this a stoker server? check --server",
            )),
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> CliError {
        // The outermost message repeats the URL; the innermost says what happened.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let hint = "start one with `stoker up`, or name it with --server or STOKER_SERVER";
        CliError::system(format!("no answer from the server at {}", self.base), cause, hint)
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, CliError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(&e))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_ANSWER_BYTES {
                let message = format!("the answer is larger than {MAX_ANSWER_BYTES} bytes");
                return Err(CliError::system(message, "", "ask for less at a time"));
            }
        }
        Ok(bytes)
    }

    fn request(&self, method: Method, segments: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        self.http.request(method, self.url(segments, query)).timeout(ANSWER_WITHIN)
    }

    async fn typed<T: DeserializeOwned>(&self, response: Response) -> Result<T, CliError> {
        let bytes = self.body(response).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            let hint = "client and server may be of different versions: stoker doctor";
            CliError::system("the server's answer is not understood", e, hint)
        })
    }

    /// Reads JSON.
    pub async fn get<T: DeserializeOwned>(&self, segments: &[&str], query: &[(&str, String)]) -> Result<T, CliError> {
        let response = self.send(self.request(Method::GET, segments, query)).await?;
        self.typed(response).await
    }

    /// Reads JSON whatever the status says (health).
    pub async fn get_any<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, CliError> {
        let request = self.request(Method::GET, segments, &[]);
        let response = request.send().await.map_err(|e| self.unreachable(&e))?;
        self.typed(response).await
    }

    /// Reads text.
    pub async fn text(&self, segments: &[&str], query: &[(&str, String)]) -> Result<String, CliError> {
        let response = self.send(self.request(Method::GET, segments, query)).await?;
        Ok(String::from_utf8_lossy(&self.body(response).await?).into_owned())
    }

    /// Reads a piece of something longer.
    pub async fn piece(&self, segments: &[&str], query: &[(&str, String)]) -> Result<Piece, CliError> {
        let response = self.send(self.request(Method::GET, segments, query)).await?;
        let next = response.headers().get("stoker-next").and_then(|v| v.to_str().ok()?.parse().ok());
        let next = next.ok_or_else(|| CliError::system("the server did not say where to read on", "", ""))?;
        Ok(Piece { bytes: self.body(response).await?, next })
    }

    /// Sends JSON, reads JSON.
    pub async fn post<T: DeserializeOwned>(&self, segments: &[&str], body: &impl Serialize) -> Result<T, CliError> {
        let response = self.send(self.request(Method::POST, segments, &[]).json(body)).await?;
        self.typed(response).await
    }

    /// Sets something as JSON, reads JSON.
    pub async fn put<T: DeserializeOwned>(&self, segments: &[&str], body: &impl Serialize) -> Result<T, CliError> {
        let response = self.send(self.request(Method::PUT, segments, &[]).json(body)).await?;
        self.typed(response).await
    }

    /// Opens a live stream: no deadline on the whole.
    pub async fn stream(&self, segments: &[&str], query: &[(&str, String)]) -> Result<Response, CliError> {
        self.send(self.http.get(self.url(segments, query))).await
    }
}
