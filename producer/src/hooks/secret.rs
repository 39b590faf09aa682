//! Secrets of webhooks: read from the settings, an environment variable or a file, compared in
//! constant time, and never shown.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Before the base64 of a Standard Webhooks secret.
pub const STANDARD_PREFIX: &str = "whsec_";
/// Sizes that Standard Webhooks 1.0 allows for a secret, bytes.
const STANDARD_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Shortest other secret, bytes: below this it can be guessed offline from one delivery.
const MIN_BYTES: usize = 16;
/// Secrets of one source at once: the old, the new, and room for a mistake.
pub const MAX_SECRETS: usize = 8;
/// A file of secrets is a few lines.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// A key that a sender and we share.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// The bytes of the text themselves.
    pub fn plain(text: &str) -> Result<Self, String> {
        if text.len() < MIN_BYTES {
            return Err(format!("is shorter than {MIN_BYTES} bytes; make one with openssl rand -hex 32"));
        }
        Ok(Self(text.as_bytes().to_vec()))
    }

    /// `whsec_` and base64, as Standard Webhooks writes them.
    pub fn standard(text: &str) -> Result<Self, String> {
        let encoded = text.strip_prefix(STANDARD_PREFIX).ok_or("does not begin with whsec_")?;
        // Not the decoder's own words: they quote bytes of the secret.
        let bytes = STANDARD.decode(encoded).map_err(|_| "is not base64 after whsec_")?;
        if !STANDARD_BYTES.contains(&bytes.len()) {
            return Err(format!("holds {} bytes, Standard Webhooks takes 24 to 64", bytes.len()));
        }
        Ok(Self(bytes))
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        // HMAC takes keys of every length; the other arm is never reached, and would sign nothing
        // that this secret's owner signs.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).unwrap_or_else(|_| Hmac::new(&Default::default()));
        for part in parts {
            mac.update(part);
        }
        mac
    }

    /// HMAC-SHA256 over the parts.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.mac(parts).finalize().into_bytes().into()
    }

    /// A Standard Webhooks signature, as in its header.
    pub fn standard_signature(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mac = self.sign(&[id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body]);
        format!("v1,{}", STANDARD.encode(mac))
    }

    /// Whether a signature is ours, in constant time.
    pub fn verifies(&self, parts: &[&[u8]], signature: &[u8]) -> bool {
        self.mac(parts).verify_slice(signature).is_ok()
    }

    /// Whether a text is this secret. Digests are compared: not even its length shows.
    pub fn is(&self, text: &[u8]) -> bool {
        Sha256::digest(&self.0).ct_eq(&Sha256::digest(text)).into()
    }
}

/// Lines of a file of secrets; empty lines are skipped.
pub fn read_file(path: &Path) -> Result<Vec<String>, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_checked_and_never_shown() {
        let standard = Secret::standard("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(format!("{standard:?}"), "Secret(…)");
        for (wrong, says) in [("MfKQ", "whsec_"), ("whsec_%%", "base64"), ("whsec_AAAA", "3 bytes")] {
            let error = Secret::standard(wrong).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(Secret::plain("short").unwrap_err().contains("16 bytes"));
        assert!(Secret::plain("It's a Secret to Everybody").unwrap().is(b"It's a Secret to Everybody"));
        assert!(!Secret::plain("It's a Secret to Everybody").unwrap().is(b"It's a Secret"));
    }
}
