//! The session's cookie.

use axum::http::{HeaderMap, HeaderValue, header};

use super::session::LIFETIME;

const NAME: &str = "stoker_session";

/// The session's id that a request brings.
pub fn of(headers: &HeaderMap) -> Option<&str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == NAME).map(|(_, id)| id)
}

/// The header that gives a browser its session.
pub fn give(id: &str, asked: &HeaderMap) -> Option<HeaderValue> {
    header_of(id, LIFETIME.as_secs(), asked)
}

/// The header that takes it away.
pub fn forget(asked: &HeaderMap) -> Option<HeaderValue> {
    header_of("", 0, asked)
}

/// Out of reach for scripts, never sent with other sites' requests, and over TLS only where it was
/// given so: a `Secure` cookie on plain HTTP would be thrown away, and nobody could log in.
fn header_of(id: &str, seconds: u64, asked: &HeaderMap) -> Option<HeaderValue> {
    let is_tls = asked.get("x-forwarded-proto").is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
    let secure = if is_tls { "; Secure" } else { "" };
    let text = format!("{NAME}={id}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_among_others_and_given_so_that_no_script_sees_it() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("a=1; stoker_session=xyz; b=2"));
        assert_eq!(of(&headers), Some("xyz"));
        let plain = give("xyz", &HeaderMap::new()).unwrap();
        assert_eq!(plain, "stoker_session=xyz; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict");
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        assert!(give("xyz", &headers).unwrap().to_str().unwrap().ends_with("; Secure"));
        assert!(forget(&headers).unwrap().to_str().unwrap().contains("=; Path=/; Max-Age=0"));
        assert_eq!(of(&HeaderMap::new()), None);
    }
}
