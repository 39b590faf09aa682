//! The guard of forms: with a session, a form must bring back what its page was given. It is
//! checked here for all of them, before any handler runs, so that none can forget it; the handler
//! sees its own fields only.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use form_urlencoded::{Serializer, parse};

use super::secret;
use crate::http::extract::BODY_WITHIN;
use crate::http::{MAX_FORM_BYTES, Problem};

/// Name of the hidden field.
pub const FIELD: &str = "csrf";
/// Name of the header that does the same for scripts.
const HEADER: &str = "x-csrf-token";

/// Lets a session's write through when it brings its guard; the request without it.
pub async fn guarded(request: Request, csrf: &str) -> Result<Request, Problem> {
    if text(request.headers(), HEADER).is_some_and(|brought| secret::same(brought, csrf)) {
        return Ok(request);
    }
    let kind = text(request.headers(), header::CONTENT_TYPE.as_str()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        // No form can send it, and a browser asks before it lets another site's script do so;
        // that the request is from our own pages was checked before.
        "application/json" => Ok(request),
        "application/x-www-form-urlencoded" => unwrapped(request, csrf).await,
        _ => Err(missing()),
    }
}

async fn unwrapped(request: Request, csrf: &str) -> Result<Request, Problem> {
    let (mut parts, body) = request.into_parts();
    let bytes = match tokio::time::timeout(BODY_WITHIN, to_bytes(body, MAX_FORM_BYTES)).await {
        Err(_) => return Err(Problem::too_slow()),
        Ok(Err(_)) => return Err(Problem::too_large(MAX_FORM_BYTES)),
        Ok(Ok(bytes)) => bytes,
    };
    let (rest, is_good) = without_guard(&bytes, csrf);
    if !is_good {
        return Err(missing());
    }
    parts.headers.insert(header::CONTENT_LENGTH, rest.len().into());
    Ok(Request::from_parts(parts, Body::from(rest)))
}

/// The other fields, and whether the guard was there and right.
fn without_guard(form: &Bytes, csrf: &str) -> (String, bool) {
    let mut rest = Serializer::new(String::new());
    let mut is_good = false;
    for (name, value) in parse(form) {
        if name == FIELD {
            is_good |= secret::same(&value, csrf);
        } else {
            rest.append_pair(&name, &value);
        }
    }
    (rest.finish(), is_good)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn missing() -> Problem {
    let detail = "this form does not belong to your session: it is from an earlier login or from another page";
    Problem::forbidden(detail, "load the page again, then press the button again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_taken_out_and_the_rest_stays() {
        let form = Bytes::from_static(b"id=1&csrf=right&id=2&filter=phase%3Ddead%26cause%3Dx&empty=");
        assert_eq!(
            without_guard(&form, "right"),
            ("id=1&id=2&filter=phase%3Ddead%26cause%3Dx&empty=".to_owned(), true)
        );
        assert!(!without_guard(&form, "wrong").1);
        assert!(!without_guard(&Bytes::from_static(b"id=1"), "right").1);
        assert!(!without_guard(&Bytes::from_static(b"csrf=&id=1"), "right").1);
    }
}
