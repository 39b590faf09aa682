//! What a connection runs over: TCP or TLS, with a bound on what it brings before lapin parses it.
//!
//! lapin takes a stream from outside as the TCP stream of a runtime, so there is one here: tokio, with other streams.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::{FutureExt, Stream};
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::{AMQPUriTcpExt, OwnedTLSConfig},
    uri::AMQPUri,
};

use super::nesting::NestingLimit;

/// lapin's own stream, encrypted or not.
type Wire = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Connects and opens an AMQP connection. Must be called within tokio's runtime.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
) -> lapin::Result<Connection> {
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), BoundedStreams(Tokio::current())));
    let plain = Runtime::new(Tokio::current());
    let open = async move |uri: AMQPUri, _: Runtime<RuntimeParts<Tokio, BoundedStreams>>| {
        let wire = uri.connect_with_config_async(tls.as_ref(), &plain).await?;
        Ok(AsyncTcpStream::Plain(Bounded::new(wire)))
    };
    Connection::connector(uri, runtime, open, properties).await
}

/// A stream that brings no headers which nest too deep.
struct Bounded<S> {
    stream: S,
    nesting: NestingLimit,
}

impl<S> Bounded<S> {
    fn new(stream: S) -> Self {
        Self { stream, nesting: NestingLimit::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.nesting.pass(&mut buf[..read]);
        Poll::Ready(Ok(read))
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.stream).poll_read_vectored(cx, bufs))?;
        let mut left = read;
        for buf in bufs {
            let filled = left.min(buf.len());
            this.nesting.pass(&mut buf[..filled]);
            left -= filled;
        }
        Poll::Ready(Ok(read))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_close(cx)
    }
}

/// tokio's reactor, whose streams are bounded.
#[derive(Debug, Clone)]
struct BoundedStreams(Tokio);

impl Reactor for BoundedStreams {
    type TcpStream = Bounded<Wire>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, dur: Duration) -> Self::Sleep {
        self.0.sleep(dur)
    }

    fn interval(&self, dur: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(dur)
    }

    fn tcp_connect_addr(&self, addr: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        self.0.tcp_connect_addr(addr).map(|tcp| Ok(Bounded::new(AsyncTcpStream::Plain(tcp?))))
    }
}
