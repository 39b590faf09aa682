//! `amqps://`: whose certificate is good, and what to do about one that is not.
//!
//! Trusted is what the host trusts (its CA store), and besides that the CA of the settings: most
//! brokers in a private network have a certificate of a CA of their own.

use std::path::Path;

use lapin::tcp::OwnedTLSConfig;
use tokio::io::AsyncReadExt;

/// A bundle of all public CAs is a quarter of this; more is not a file of certificates.
const MAX_CA_BYTES: u64 = 1024 * 1024;
/// How a certificate begins in a PEM file.
const PEM_CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// Read anew for each connection, so that a changed CA needs no restart.
pub(super) async fn settings(ca: Option<&Path>) -> Result<OwnedTLSConfig, String> {
    let Some(path) = ca else { return Ok(OwnedTLSConfig::default()) };
    let wrong = |what: &str| format!("the broker's CA file {} {what}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    let mut text = String::new();
    let read = file.take(MAX_CA_BYTES + 1).read_to_string(&mut text).await;
    let bytes = read.map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    if bytes as u64 > MAX_CA_BYTES {
        return Err(wrong(&format!("is larger than {MAX_CA_BYTES} bytes")));
    }
    // The TLS library skips what it cannot read, and would then trust less than was asked for.
    if !text.contains(PEM_CERTIFICATE) {
        return Err(wrong(&format!("holds no certificate ({PEM_CERTIFICATE})")));
    }
    Ok(OwnedTLSConfig { cert_chain: Some(text), ..OwnedTLSConfig::default() })
}

/// Adds the way out to what rustls says of a certificate. By its words, because lapin wraps the
/// error too deep to be told by type; other words stay as they are.
pub(super) fn explain(error: &str, ca: Option<&Path>) -> String {
    let remedy = if error.contains("UnknownIssuer") || error.contains("BadSignature") {
        match ca {
            Some(path) => format!(
                "neither this host nor the CA in {} vouches for it; name the CA that signed the broker's certificate",
                path.display()
            ),
            None => "no CA that this host trusts vouches for it; name the broker's CA with --broker-ca or \
                     STOKER_BROKER_CA"
                .to_owned(),
        }
    } else if error.contains("NotValidForName") || error.contains("not valid for name") {
        "the certificate is for another host; write the URL with a name that stands in it".to_owned()
    } else if error.contains("Expired") || error.contains("NotValidYet") {
        "renew the broker's certificate, or set this host's clock".to_owned()
    } else if error.contains("InvalidContentType") || error.contains("corrupt message") {
        "is this a TLS port? RabbitMQ's is 5671 by custom; amqp:// is for the other one".to_owned()
    } else {
        return error.to_owned();
    };
    format!("{error}: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_a_certificate_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(settings(Some(&path)).await.unwrap_err().contains("ca.pem cannot be read"));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----").unwrap();
        assert!(settings(Some(&path)).await.unwrap_err().contains("ca.pem holds no certificate"));
        std::fs::write(&path, vec![b' '; 1024 * 1024 + 1]).unwrap();
        assert!(settings(Some(&path)).await.unwrap_err().contains("larger than"));
        std::fs::write(&path, format!("{PEM_CERTIFICATE}\n")).unwrap();
        assert!(settings(Some(&path)).await.is_ok());
        assert_eq!(settings(None).await.unwrap(), OwnedTLSConfig::default());
    }
}
