//! A browser sends a session's cookie along whoever made it ask. What it says about that decides:
//! `Sec-Fetch-Site` where it says so (pages over HTTPS or on this machine), `Origin` elsewhere.
//! Both are beyond the reach of a page's script.

use axum::http::{HeaderMap, Uri, header};
use stoker_schemas::limits::clip;

use crate::http::Problem;

const FETCH_SITE: &str = "sec-fetch-site";

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // What is no text is not what a browser sends: it matches nothing.
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Refuses what a page of another site had its visitor's browser ask. `writes` are refused, too,
/// when nothing says where they come from.
pub fn refuse(headers: &HeaderMap, writes: bool) -> Result<(), Problem> {
    let origin = text(headers, header::ORIGIN.as_str());
    let own = match (text(headers, FETCH_SITE), origin) {
        // A proxy may have another name for us than the browser; the browser's word is enough.
        (Some("same-origin"), _) => true,
        // Typed or a bookmark: nobody's page. A link from elsewhere may be followed, not posted.
        (Some("none"), None) => true,
        (Some(_), None) => !writes,
        (_, Some(origin)) => is_own(headers, origin),
        (None, None) => !writes,
    };
    if own {
        return Ok(());
    }
    let detail = match origin {
        Some(origin) => format!("requests from pages of {:?} are not taken with a session", clip(origin, 80)),
        None => "a write with a session must come from a page of this server".to_owned(),
    };
    Err(Problem::forbidden(detail, "programs send a token instead: Authorization: Bearer"))
}

/// Whether an origin is this server under the name it was asked by (or a proxy was: a page cannot
/// set that header for another site).
fn is_own(headers: &HeaderMap, origin: &str) -> bool {
    let Some(authority) = origin.parse::<Uri>().ok().and_then(|uri| uri.into_parts().authority) else { return false };
    let is_it = |host: &str| host.eq_ignore_ascii_case(authority.as_str());
    [header::HOST.as_str(), "x-forwarded-host"].into_iter().filter_map(|name| text(headers, name)).any(is_it)
}

/// Whether a link on another site led here. The browser then leaves out a `SameSite=Strict` cookie
/// even where there is one.
pub fn is_link_from_elsewhere(headers: &HeaderMap) -> bool {
    matches!(text(headers, FETCH_SITE), Some("cross-site" | "same-site"))
        && text(headers, "sec-fetch-mode") == Some("navigate")
}

/// Whether this is an address of ours: a path, nothing that a browser takes for another server.
pub fn is_own_path(path: &str) -> bool {
    // Browsers read a backslash as a slash and skip tabs and line breaks.
    path.starts_with('/') && !path.starts_with("//") && path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_write_comes_from_our_own_pages() {
        let host = ("host", "stoker.example:7070");
        for own in [
            headers(&[host, ("origin", "http://stoker.example:7070")]),
            headers(&[host, ("origin", "https://STOKER.example:7070")]),
            headers(&[host, ("sec-fetch-site", "same-origin"), ("origin", "https://public.example")]),
            headers(&[host, ("x-forwarded-host", "public.example"), ("origin", "https://public.example")]),
        ] {
            assert_eq!(refuse(&own, true), Ok(()), "{own:?}");
        }
        for foreign in [
            headers(&[host]),
            headers(&[host, ("origin", "null")]),
            headers(&[host, ("origin", "http://stoker.example")]),
            headers(&[host, ("origin", "http://stoker.example:7070.evil.example")]),
            headers(&[host, ("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")]),
            headers(&[host, ("sec-fetch-site", "cross-site")]),
            headers(&[host, ("sec-fetch-site", "same-site")]),
        ] {
            assert!(refuse(&foreign, true).is_err(), "{foreign:?}");
        }
    }

    #[test]
    fn a_link_may_be_followed_but_scripts_of_others_may_not_read() {
        let host = ("host", "stoker.example");
        assert_eq!(refuse(&headers(&[host]), false), Ok(()));
        let link = headers(&[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]);
        assert_eq!(refuse(&link, false), Ok(()));
        assert!(is_link_from_elsewhere(&link));
        assert!(!is_link_from_elsewhere(&headers(&[host, ("sec-fetch-site", "same-origin")])));
        assert!(refuse(&headers(&[host, ("origin", "http://evil.example")]), false).is_err());
    }

    #[test]
    fn only_paths_lead_back() {
        for own in ["/", "/jobs?phase=dead&cause=x", "/jobs/0192#a1-0"] {
            assert!(is_own_path(own), "{own}");
        }
        for foreign in
            ["", "jobs", "//evil.example", "/\\evil.example", "/\t/evil.example", "http://evil.example", "/a b"]
        {
            assert!(!is_own_path(foreign), "{foreign:?}");
        }
    }
}
