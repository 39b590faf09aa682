//! Which request gets which answer.

use std::sync::Arc;
use std::time::Duration;

use super::request::{Request, RequestError};
use crate::fault::Faults;
use crate::identity;
use crate::status::Status;

/// One answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status code.
    pub code: u16,
    /// Media type of the body.
    pub content_type: &'static str,
    /// The body; not sent for `HEAD`.
    pub body: String,
    /// How long to wait before answering.
    pub delay: Duration,
    /// Whether the body is left out, as for `HEAD`.
    pub head_only: bool,
    /// Whether the machine ends once it is sent.
    pub then_end: bool,
}

/// Whoever runs the machine asks here that it end. Nobody else reaches it: guests do not reach each other.
const SHUTDOWN: &str = "/shutdown";
const ONLY_POST: &str = "only POST\n";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answers of one guest.
#[derive(Debug, Clone)]
pub struct Routes {
    status: Arc<Status>,
    faults: Faults,
}

impl Routes {
    /// Answers from `status`, spoiled by `faults`.
    pub fn new(status: Arc<Status>, faults: Faults) -> Self {
        Self { status, faults }
    }

    /// The counters that the server keeps up.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The answer to a request.
    pub fn answer(&self, request: &Request) -> Response {
        let head_only = request.method == "HEAD";
        if request.path == SHUTDOWN {
            return match request.method.as_str() {
                "POST" => Response { then_end: true, ..plain(202, "the machine ends\n") },
                _ => plain(405, ONLY_POST),
            };
        }
        if !head_only && request.method != "GET" {
            return plain(405, "only GET and HEAD\n");
        }
        let mut response = match request.path.as_str() {
            "/health" => self.health(),
            "/identity" => Response { content_type: JSON, ..plain(200, &identity::show(self.status.vm_id())) },
            "/metrics" => Response { content_type: PROMETHEUS, ..plain(200, &self.status.metrics()) },
            _ => plain(404, "not found; there are /health, /identity, /metrics and /shutdown (POST)\n"),
        };
        response.head_only = head_only;
        response
    }

    fn health(&self) -> Response {
        let code = self.faults.status.unwrap_or(200);
        let body = match &self.faults.body {
            Some(text) => text.clone(),
            None => self.status.health(code < 400),
        };
        Response { content_type: JSON, delay: self.faults.delay, ..plain(code, &body) }
    }
}

/// The answer to what is not a request, or `None` when nobody is left to read it.
pub fn answer_error(error: &RequestError) -> Option<Response> {
    let code = match error {
        RequestError::Malformed(_) => 400,
        RequestError::TooSlow => 408,
        RequestError::TooLarge => 431,
        RequestError::Connection(_) => return None,
    };
    Some(plain(code, &format!("{error}\n")))
}

/// The answer to a connection that is one too many.
pub fn busy() -> Response {
    plain(503, "too many connections\n")
}

impl Response {
    /// The bytes of the answer.
    pub fn to_bytes(&self) -> Vec<u8> {
        let allow = match (self.code, self.body.as_str()) {
            (405, ONLY_POST) => "Allow: POST\r\n",
            (405, _) => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let mut text = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\n{allow}Connection: close\r\n\r\n",
            self.code,
            reason(self.code),
            self.content_type,
            self.body.len(),
        );
        if !self.head_only {
            text.push_str(&self.body);
        }
        text.into_bytes()
    }
}

fn plain(code: u16, body: &str) -> Response {
    Response {
        code,
        content_type: TEXT,
        body: body.to_owned(),
        delay: Duration::ZERO,
        head_only: false,
        then_end: false,
    }
}

/// The phrase has no meaning in HTTP; the common ones are for people who read a trace.
fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(fault: &str, method: &str, path: &str) -> Response {
        let mut faults = Faults::default();
        faults.add(fault);
        let request = Request { method: method.to_owned(), path: path.to_owned() };
        Routes::new(Arc::new(Status::new("vm-1")), faults).answer(&request)
    }

    #[test]
    fn health_is_json_and_names_the_vm() {
        let response = answer("", "GET", "/health");
        assert_eq!((response.code, response.content_type), (200, JSON));
        assert!(response.body.contains(r#""status":"ok""#) && response.body.contains(r#""vmId":"vm-1""#));
    }

    #[test]
    fn faults_spoil_health_and_nothing_else() {
        let fault = "status=503,delay-ms=7";
        let response = answer(fault, "GET", "/health");
        assert_eq!((response.code, response.delay), (503, Duration::from_millis(7)));
        assert!(response.body.contains(r#""status":"unhealthy""#));
        assert_eq!(answer(fault, "GET", "/metrics").code, 200);
        assert_eq!(answer("body=<html>", "GET", "/health").body, "<html>");
    }

    #[test]
    fn head_has_the_length_but_not_the_body() {
        let response = answer("", "HEAD", "/nothing");
        let text = String::from_utf8(response.to_bytes()).unwrap();
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\n"));
        assert!(text.contains(&format!("Content-Length: {}\r\n", response.body.len())));
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn other_methods_are_told_what_is_allowed() {
        let text = String::from_utf8(answer("", "POST", "/health").to_bytes()).unwrap();
        assert!(text.starts_with("HTTP/1.1 405 ") && text.contains("\r\nAllow: GET, HEAD\r\n"));
    }

    #[test]
    fn the_machine_ends_by_post_only() {
        let asked = answer("", "POST", "/shutdown");
        assert_eq!((asked.code, asked.then_end), (202, true));
        for method in ["GET", "HEAD", "DELETE"] {
            let refused = answer("", method, "/shutdown");
            assert_eq!((refused.code, refused.then_end), (405, false), "{method}");
            assert!(String::from_utf8(refused.to_bytes()).unwrap().contains("\r\nAllow: POST\r\n"));
        }
    }

    #[test]
    fn a_vanished_peer_gets_no_answer() {
        let gone = RequestError::Connection(std::io::ErrorKind::UnexpectedEof.into());
        assert_eq!(answer_error(&gone), None);
        assert_eq!(answer_error(&RequestError::TooLarge).map(|r| r.code), Some(431));
    }
}
