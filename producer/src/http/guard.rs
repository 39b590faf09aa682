//! Without tokens, what comes from elsewhere is turned away. Listening on loopback keeps other machines out; this
//! keeps out web pages that the operator's own browser has open (cross-site requests, and names
//! that an attacker points at 127.0.0.1).

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use stoker_schemas::limits::clip;

use super::Problem;

/// What every answer says: take it as what it is called, and keep no copy.
pub fn harden(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Lets through what is addressed to this machine by a page of this machine or by no page.
pub fn local(request: &Request) -> Result<(), Problem> {
    let header = |name| request.headers().get(name).map(|v| v.to_str().unwrap_or("?"));
    let host = header(header::HOST).or_else(|| request.uri().authority().map(|a| a.as_str())).unwrap_or_default();
    if !is_loopback(host) {
        let hint = "use http://127.0.0.1:<port> or http://localhost:<port>";
        return Err(Problem::forbidden(format!("host {:?} is not this machine", clip(host, 80)), hint));
    }
    match header(header::ORIGIN) {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => {
            let detail = format!("requests from pages of {:?} are not taken", clip(origin, 80));
            Err(Problem::forbidden(detail, ""))
        }
        _ => Ok(()),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// No such route.
pub async fn not_found(request: Request) -> Problem {
    Problem::not_found(format!("nothing is at {}", clip(request.uri().path(), 200)), "the API begins at /v1/jobs")
}

/// No such method there.
pub async fn wrong_method(request: Request) -> Problem {
    let path = clip(request.uri().path(), 200);
    Problem::wrong_method(format!("{} is not taken at {path}", request.method()))
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn only_names_of_this_machine_pass() {
        for good in ["127.0.0.1:7070", "localhost", "LOCALHOST:1", "[::1]:7070", "127.1.2.3"] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in ["", "evil.example", "127.0.0.1.evil.example:7070", "10.0.0.1", "[::2]:1", "localhost.evil"] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }
}
