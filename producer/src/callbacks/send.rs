//! One try at a callback: resolve, judge, connect, sign, post, read the beginning of the answer. On
//! hyper itself, because the connection must go to the address that was judged, and because TLS in
//! the shared HTTP client would be set up for every probe and VMM socket of the worker, too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, Response, body::Incoming, header};
use hyper_util::rt::TokioIo;
use rustls_platform_verifier::Verifier;
use stoker_schemas::Time;
use stoker_schemas::limits::clip;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, crypto::ring};

use super::CallbackConfig;
use super::schedule;
use super::target::{Target, TargetError};
use crate::hooks::verify::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP};

/// For everything, from the name's resolution to the answer: the shorter end of what the standard says.
const WITHIN: Duration = Duration::from_secs(15);
/// For one connection; the name may have other addresses.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read, and kept of it for people.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
const KEPT_ANSWER_BYTES: usize = 200;

/// A receiver's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// How long it asks us to wait.
    pub retry_after: Option<Duration>,
    /// Beginning of its body.
    pub words: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It may not be called.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No connection.
    #[error("no connection to {0}: {1}")]
    Connect(String, String),
    /// Its certificate, or ours to judge it by.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
    /// The exchange broke off.
    #[error("no answer from {0}: {1}")]
    Http(String, String),
    /// It took too long.
    #[error("no answer within {} s", WITHIN.as_secs())]
    Timeout,
}

/// Sends callbacks.
pub struct Sender {
    config: Arc<CallbackConfig>,
    /// Without the host's CAs https cannot be judged; http can still be spoken.
    tls: Result<TlsConnector, String>,
}

impl Sender {
    /// With the CAs that this host trusts.
    pub fn new(config: Arc<CallbackConfig>) -> Self {
        Self { config, tls: tls() }
    }

    /// One try.
    pub async fn send(&self, id: &str, url: &str, body: &str, now: Time) -> Result<Answer, SendError> {
        let tried = tokio::time::timeout(WITHIN, self.exchange(id, url, body, now)).await;
        tried.unwrap_or(Err(SendError::Timeout))
    }

    async fn exchange(&self, id: &str, url: &str, body: &str, now: Time) -> Result<Answer, SendError> {
        let target = Target::parse(url)?;
        let addresses = target.resolve(&self.config.allowed).await?;
        let request = self.request(&target, id, body, now)?;
        let stream = connect(&target, &addresses).await?;
        if target.is_tls {
            let failed = |why: String| SendError::Tls(target.shown(), why);
            let connector = self.tls.as_ref().map_err(|why| failed(why.clone()))?;
            let bare = target.host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(bare).map_err(|e| failed(e.to_string()))?;
            let stream = connector.connect(name, stream).await.map_err(|e| failed(e.to_string()))?;
            post(&target, stream, request, now).await
        } else {
            post(&target, stream, request, now).await
        }
    }

    fn request(&self, target: &Target, id: &str, body: &str, now: Time) -> Result<Request<Full<Bytes>>, SendError> {
        let timestamp = now.unix_micros() / 1_000_000;
        let signatures = self.config.secrets.iter().map(|s| s.standard_signature(id, timestamp, body.as_bytes()));
        let request = Request::post(&target.path)
            .header(header::HOST, target.authority())
            .header(header::USER_AGENT, concat!("stoker/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, "application/json")
            .header(WEBHOOK_ID, id)
            .header(WEBHOOK_TIMESTAMP, timestamp)
            .header(WEBHOOK_SIGNATURE, signatures.collect::<Vec<_>>().join(" "));
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes())));
        request.map_err(|_| TargetError::Address("it cannot stand in a request").into())
    }
}

fn tls() -> Result<TlsConnector, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Verifier::new(provider.clone()).map_err(|e| e.to_string())?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| e.to_string())?.dangerous();
    let config = builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn connect(target: &Target, addresses: &[SocketAddr]) -> Result<TcpStream, SendError> {
    let mut why = String::new();
    for address in addresses {
        match tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = format!("{address}: {error}"),
            Err(_) => why = format!("{address}: no answer within {} s", CONNECT_WITHIN.as_secs()),
        }
    }
    Err(SendError::Connect(target.shown(), why))
}

async fn post<S>(target: &Target, stream: S, request: Request<Full<Bytes>>, now: Time) -> Result<Answer, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |e: hyper::Error| SendError::Http(target.shown(), e.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with this try, however it ends.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await.map_err(failed)?;
    Ok(read(response, now).await)
}

/// The status counts; a body that breaks off or never ends changes nothing about it.
async fn read(response: Response<Incoming>, now: Time) -> Answer {
    let asked = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = asked.and_then(|value| schedule::asked(value, now));
    let status = response.status().as_u16();
    let mut body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let mut words = Vec::new();
    while let Some(Ok(frame)) = body.frame().await
        && words.len() < KEPT_ANSWER_BYTES
    {
        words.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
    }
    let words = clip(&String::from_utf8_lossy(&words), KEPT_ANSWER_BYTES);
    Answer { status, retry_after, words }
}
