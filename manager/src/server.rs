//! How a manager is listened to: over TLS where it has a certificate, by a bounded number of clients.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// How long a client may take to make its connection safe, and then to ask for the first time.
const GREETING: Duration = Duration::from_secs(10);

/// How long a connection may be idle between two requests.
const IDLE: Duration = Duration::from_secs(75);

/// How many headers a request may have, and how many bytes they may take.
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 32 << 10;

/// How long requests under way get when the server stops, of the 30 seconds that Kubernetes gives a Pod.
const DRAIN: Duration = Duration::from_secs(20);

/// How many connections wait to be taken. With the 128 that are usual, clients of a burst are lost without being told, and the
/// system allows more where it has been told to (`net.core.somaxconn`, 4096 by default).
const BACKLOG: u32 = 4096;

/// Listens where clients come in.
///
/// # Errors
/// When the address cannot be had.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port that was listened on a moment ago is free.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop`; then requests under way get some seconds to end. Over TLS, and not otherwise, if `tls` says how.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<RustlsConfig>,
    connections: Connections,
    routes: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let handle = Handle::<SocketAddr>::new();
    let mut server = axum_server::Server::from_listener(listener)
        .acceptor(connections)
        .handle(handle.clone())
        .first_request_timeout(GREETING)
        .http1_only();
    let mut http = server.http_builder().http1();
    http.header_read_timeout(IDLE).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
    let routes = routes.into_make_service();
    let served = async {
        match tls {
            None => server.serve(routes).await,
            Some(config) => {
                let acceptor =
                    |plain| RustlsAcceptor::new(config).handshake_timeout(GREETING).acceptor(plain);
                server.map(acceptor).serve(routes).await
            }
        }
    };
    let told = async {
        stop.cancelled().await;
        handle.graceful_shutdown(Some(DRAIN));
        std::future::pending().await
    };
    tokio::select! {
        result = served => result,
        result = told => result,
    }
}

/// As many connections as there may be at the same time. One more is closed at once: whoever waited would keep a file
/// open all the same.
#[derive(Clone)]
pub(crate) struct Connections(Arc<Semaphore>);

impl Connections {
    pub(crate) fn new(most: u32) -> Self {
        Self(Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(Semaphore::MAX_PERMITS))))
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Connections {
    type Stream = Counted;
    type Service = S;
    type Future = std::future::Ready<io::Result<(Counted, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        std::future::ready(match self.0.clone().try_acquire_owned() {
            Ok(permit) => {
                // Answers are small, and waited for.
                stream.set_nodelay(true).map(|()| (Counted { stream, _permit: permit }, service))
            }
            Err(_) => Err(io::Error::other("there are as many connections as there may be")),
        })
    }
}

/// A connection that counts as one until it ends.
pub(crate) struct Counted {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
