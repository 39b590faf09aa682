//! Whether a delivery is from who it says: headers and the raw body in, the delivery's id or the
//! reason why not out. Reads no clock and no settings but the source's own.

use axum::http::HeaderMap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use stoker_schemas::Time;

use super::config::{Encoding, Kind, Source};

/// How far a signed timestamp may be from now, seconds: as in the reference libraries.
pub const TOLERANCE_S: i64 = 300;
/// Longest delivery id; it becomes part of an idempotency key.
pub const MAX_ID_BYTES: usize = 128;
/// Signatures looked at in one header: more is not a rotation.
const MAX_SIGNATURES: usize = 16;

/// Standard Webhooks 1.0: the message's id.
pub const WEBHOOK_ID: &str = "webhook-id";
/// When it was signed, seconds since 1970.
pub const WEBHOOK_TIMESTAMP: &str = "webhook-timestamp";
/// Signatures, one or more.
pub const WEBHOOK_SIGNATURE: &str = "webhook-signature";
const GITHUB_SIGNATURE: &str = "x-hub-signature-256";
const GITHUB_DELIVERY: &str = "x-github-delivery";
const GITHUB_EVENT: &str = "x-github-event";

/// What is known of a delivery that is genuine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The sender's id of it: the same delivery again has the same.
    pub id: String,
    /// What it is about, where a header says so.
    pub event: Option<String>,
}

/// Why a delivery is not taken for genuine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A header that must be there is not.
    #[error("the header {0} is missing")]
    Missing(String),
    /// A header cannot be read.
    #[error("the header {0} is not as it should be: {1}")]
    Malformed(String, &'static str),
    /// Signed too long ago: perhaps recorded and sent again.
    #[error("its timestamp is {0} s in the past, {TOLERANCE_S} s are allowed")]
    TooOld(i64),
    /// Signed in the future.
    #[error("its timestamp is {0} s in the future, {TOLERANCE_S} s are allowed")]
    TooNew(i64),
    /// None of the signatures is by one of the secrets.
    #[error("no signature matches the body and a secret of this source")]
    WrongSignature,
    /// The token is not one of the secrets.
    #[error("the bearer token is not a secret of this source")]
    WrongToken,
}

impl Refusal {
    /// What its sender's operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing(_) | Self::Malformed(..) => "check the source's kind and headers in the hooks file",
            Self::TooOld(_) | Self::TooNew(_) => "check both clocks; a recorded delivery cannot be sent again",
            Self::WrongSignature => "check the secret, and that nothing in between rewrites the body",
            Self::WrongToken => "check the token",
        }
    }
}

/// Judges a delivery.
pub fn verify(source: &Source, headers: &HeaderMap, body: &[u8], now: Time) -> Result<Verified, Refusal> {
    match &source.kind {
        Kind::Standard => standard(source, headers, body, now),
        Kind::Github => github(source, headers, body),
        Kind::Hmac { header, prefix, encoding, id_header } => {
            let sent = text(headers, header)?;
            let bare = sent
                .strip_prefix(prefix.as_str())
                .ok_or_else(|| Refusal::Malformed(header.clone(), "it lacks its prefix"))?;
            let signature =
                encoding.decode(bare).ok_or_else(|| Refusal::Malformed(header.clone(), "it cannot be decoded"))?;
            signed(source, &[body], &[signature])?;
            Ok(Verified { id: id_or_digest(headers, id_header.as_deref(), body)?, event: None })
        }
        Kind::Bearer { id_header } => {
            let sent = text(headers, "authorization")?;
            let token = sent.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            let (_, token) =
                token.ok_or_else(|| Refusal::Malformed("authorization".to_owned(), "not a bearer token"))?;
            // Every secret is compared, so that the time tells nothing about which one.
            let matches = source.secrets.iter().filter(|secret| secret.is(token.trim().as_bytes())).count();
            if matches == 0 {
                return Err(Refusal::WrongToken);
            }
            Ok(Verified { id: id_or_digest(headers, id_header.as_deref(), body)?, event: None })
        }
    }
}

fn standard(source: &Source, headers: &HeaderMap, body: &[u8], now: Time) -> Result<Verified, Refusal> {
    let id = id(headers, WEBHOOK_ID)?;
    let timestamp = text(headers, WEBHOOK_TIMESTAMP)?;
    let seconds: i64 =
        timestamp.parse().map_err(|_| Refusal::Malformed(WEBHOOK_TIMESTAMP.to_owned(), "not seconds since 1970"))?;
    let signatures: Vec<_> = text(headers, WEBHOOK_SIGNATURE)?
        .split_ascii_whitespace()
        .take(MAX_SIGNATURES)
        // Other versions (v1a, asymmetric) may stand beside ours.
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix("v1,")?).ok())
        .collect();
    if signatures.is_empty() {
        return Err(Refusal::Malformed(WEBHOOK_SIGNATURE.to_owned(), "it holds no v1 signature"));
    }
    signed(source, &[id.as_bytes(), b".", timestamp.as_bytes(), b".", body], &signatures)?;
    // After the signature: a stranger learns nothing about our clock.
    let age = (now.unix_micros() / 1_000_000).saturating_sub(seconds);
    match age {
        _ if age > TOLERANCE_S => Err(Refusal::TooOld(age)),
        _ if age < -TOLERANCE_S => Err(Refusal::TooNew(age.saturating_neg())),
        _ => Ok(Verified { id, event: None }),
    }
}

fn github(source: &Source, headers: &HeaderMap, body: &[u8]) -> Result<Verified, Refusal> {
    let sent = text(headers, GITHUB_SIGNATURE)?;
    let bare = sent.strip_prefix("sha256=").and_then(|hex| Encoding::Hex.decode(hex));
    let signature =
        bare.ok_or_else(|| Refusal::Malformed(GITHUB_SIGNATURE.to_owned(), "not sha256= and hexadecimal"))?;
    signed(source, &[body], &[signature])?;
    let event = text(headers, GITHUB_EVENT).ok().map(str::to_owned);
    Ok(Verified { id: id(headers, GITHUB_DELIVERY)?, event })
}

fn signed(source: &Source, parts: &[&[u8]], signatures: &[Vec<u8>]) -> Result<(), Refusal> {
    let pairs = source.secrets.iter().flat_map(|secret| signatures.iter().map(move |signature| (secret, signature)));
    // Counted rather than searched: no early end that could be timed.
    match pairs.filter(|(secret, signature)| secret.verifies(parts, signature)).count() {
        0 => Err(Refusal::WrongSignature),
        _ => Ok(()),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str, Refusal> {
    let value = headers.get(name).ok_or_else(|| Refusal::Missing(name.to_owned()))?;
    value.to_str().map_err(|_| Refusal::Malformed(name.to_owned(), "not text"))
}

fn id(headers: &HeaderMap, name: &str) -> Result<String, Refusal> {
    let id = text(headers, name)?;
    if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Refusal::Malformed(name.to_owned(), "an id has 1 to 128 printable characters and no spaces"));
    }
    Ok(id.to_owned())
}

/// Without an id of the sender's, the same body is the same delivery.
fn id_or_digest(headers: &HeaderMap, header: Option<&str>, body: &[u8]) -> Result<String, Refusal> {
    match header {
        Some(name) => id(headers, name),
        None => Ok(Encoding::Hex.encode(&Sha256::digest(body))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::hooks::HooksConfig;

    /// When the vector of Standard Webhooks was signed.
    const SIGNED_S: i64 = 1_614_265_330;
    const STANDARD_BODY: &[u8] = br#"{"test": 2432232314}"#;
    const STANDARD_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const GITHUB_BODY: &[u8] = b"Hello, World!";
    const GITHUB_HEX: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn source(settings: &str) -> Source {
        let text = format!("[[source]]\nname = \"a\"\n{settings}\n[source.job]\nimage = \"golden\"");
        HooksConfig::parse(&text, Path::new("."), &|_| None).unwrap().sources.remove("a").unwrap()
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn at(seconds: i64) -> Time {
        Time::from_unix_micros(seconds * 1_000_000)
    }

    fn standard_with(signature: &str, now: Time) -> Result<Verified, Refusal> {
        let source = source(
            "kind = \"standard\"\nsecrets = [\"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\", \
             \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"]",
        );
        let id = (WEBHOOK_ID, "msg_p5jXN8AQM9LWM0D4loKWxJek");
        let sent = headers(&[id, (WEBHOOK_TIMESTAMP, "1614265330"), (WEBHOOK_SIGNATURE, signature)]);
        verify(&source, &sent, STANDARD_BODY, now)
    }

    #[test]
    fn the_vector_of_standard_webhooks() {
        let good = Verified { id: "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(), event: None };
        assert_eq!(standard_with(STANDARD_SIGNATURE, at(SIGNED_S)), Ok(good.clone()), "by the second secret");
        let several = format!("v1a,b3RoZXI= v1,AAAA {STANDARD_SIGNATURE} v2,x");
        assert_eq!(standard_with(&several, at(SIGNED_S + 300)), Ok(good.clone()));
        assert_eq!(standard_with(STANDARD_SIGNATURE, at(SIGNED_S - 300)), Ok(good));
        assert_eq!(standard_with(STANDARD_SIGNATURE, at(SIGNED_S + 301)), Err(Refusal::TooOld(301)));
        assert_eq!(standard_with(STANDARD_SIGNATURE, at(SIGNED_S - 301)), Err(Refusal::TooNew(301)));
        let wrong = STANDARD_SIGNATURE.replace("g0hM", "g1hM");
        assert_eq!(standard_with(&wrong, at(SIGNED_S)), Err(Refusal::WrongSignature));
        assert_eq!(standard_with(&wrong, at(0)), Err(Refusal::WrongSignature), "a stranger learns no time");
        for none in ["", "v1a,b3RoZXI=", "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="] {
            assert!(matches!(standard_with(none, at(SIGNED_S)), Err(Refusal::Malformed(..))), "{none}");
        }
    }

    #[test]
    fn the_vector_of_github() {
        let source = source("kind = \"github\"\nsecrets = [\"It's a Secret to Everybody\"]");
        let signature = format!("sha256={GITHUB_HEX}");
        let (signed, id) = (("x-hub-signature-256", signature.as_str()), ("x-github-delivery", "d-1"));
        let sent = headers(&[signed, id, ("x-github-event", "push")]);
        let good = Verified { id: "d-1".to_owned(), event: Some("push".to_owned()) };
        assert_eq!(verify(&source, &sent, GITHUB_BODY, at(0)), Ok(good));
        assert_eq!(verify(&source, &sent, b"Hello, World", at(0)), Err(Refusal::WrongSignature));
        let missing = |name: &str| Err(Refusal::Missing(name.to_owned()));
        assert_eq!(verify(&source, &headers(&[signed]), GITHUB_BODY, at(0)), missing("x-github-delivery"));
        let sha1 = headers(&[("x-hub-signature", "sha1=00"), id]);
        assert_eq!(verify(&source, &sha1, GITHUB_BODY, at(0)), missing("x-hub-signature-256"));
        let long = "d".repeat(MAX_ID_BYTES + 1);
        for bad in ["", "a b", &long] {
            let sent = headers(&[signed, ("x-github-delivery", bad)]);
            assert!(matches!(verify(&source, &sent, GITHUB_BODY, at(0)), Err(Refusal::Malformed(..))), "{bad}");
        }
    }

    #[test]
    fn generic_signatures_and_tokens() {
        let kind = "kind = \"hmac\"\nheader = \"X-Sig\"\nsecrets = [\"It's a Secret to Everybody\"]";
        let plain = source(kind);
        let hex = verify(&plain, &headers(&[("x-sig", GITHUB_HEX)]), GITHUB_BODY, at(0)).unwrap();
        assert_eq!(hex.id.len(), 64, "without an id, the body's digest");
        assert!(verify(&plain, &headers(&[("x-sig", "75x1")]), GITHUB_BODY, at(0)).is_err());
        let base64 = source(&format!("{kind}\nencoding = \"base64\"\nprefix = \"v0=\"\nid_header = \"X-Id\""));
        let signature = format!("v0={}", Encoding::Base64.encode(&Encoding::Hex.decode(GITHUB_HEX).unwrap()));
        let sent = headers(&[("x-sig", &signature), ("x-id", "7")]);
        assert_eq!(verify(&base64, &sent, GITHUB_BODY, at(0)).unwrap().id, "7");
        let bearer = source("kind = \"bearer\"\nsecrets = [\"the first token...\", \"the second token..\"]");
        let token = |token: &str| verify(&bearer, &headers(&[("authorization", token)]), b"{}", at(0)).map(drop);
        assert_eq!(token("Bearer the second token.."), Ok(()));
        assert_eq!(token("Bearer the third token..."), Err(Refusal::WrongToken));
        assert!(matches!(token("Basic dTpw"), Err(Refusal::Malformed(..))));
    }
}
