//! Secrets: how they are made, and what is kept of them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Begins every token, so that people and secret scanners know one when they see it.
const TOKEN_PREFIX: &str = "stk_";
/// 256 bits.
const SECRET_BYTES: usize = 32;
/// Longest text that is taken for a secret; nothing longer is even hashed.
pub const MAX_SECRET_BYTES: usize = 256;

/// The system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes: {0}")]
pub struct NoRandomness(#[from] getrandom::Error);

/// What is kept of a secret: its SHA-256. A slow hash protects what people think up; these are 256
/// random bits, which nobody guesses however fast he hashes.
#[derive(Clone, Copy)]
pub struct Fingerprint([u8; SECRET_BYTES]);

impl Fingerprint {
    /// Of a secret.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl PartialEq for Fingerprint {
    /// Takes as long for a near miss as for a far one.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Fingerprint {}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("must be {} hexadecimal digits, as `stoker token new` writes them", 2 * SECRET_BYTES);
        let mut bytes = [0; SECRET_BYTES];
        if text.len() != 2 * SECRET_BYTES || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// A new secret, safe in headers, cookies and forms.
pub fn random() -> Result<String, NoRandomness> {
    let mut bytes = [0; SECRET_BYTES];
    getrandom::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// A new token.
pub fn new_token() -> Result<String, NoRandomness> {
    Ok(format!("{TOKEN_PREFIX}{}", random()?))
}

/// Whether two secrets are the same, in a time that does not tell how much of them is.
pub fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_different_and_known_by_their_fingerprint_only() {
        let (one, other) = (new_token().unwrap(), new_token().unwrap());
        assert!(one.starts_with("stk_") && one.len() == 4 + 43, "{one}");
        assert_ne!(Fingerprint::of(&one), Fingerprint::of(&other));
        let kept = Fingerprint::of(&one).to_string();
        assert_eq!(kept.parse(), Ok(Fingerprint::of(&one)));
        assert_eq!(
            Fingerprint::of("abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "as sha256sum has it"
        );
    }

    #[test]
    fn what_is_no_fingerprint_is_refused() {
        for wrong in ["", "abc", &"g".repeat(64), &"a".repeat(63), &"\u{e9}".repeat(32)] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
