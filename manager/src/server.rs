//! How a manager is listened to: over TLS where it has a certificate.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How long a client may take to make its connection safe, and then to ask for the first time.
const GREETING: Duration = Duration::from_secs(10);

/// How long a connection may be idle between two requests.
const IDLE: Duration = Duration::from_secs(75);

/// How long requests under way get when the server stops, of the 30 seconds that Kubernetes gives a Pod.
const DRAIN: Duration = Duration::from_secs(20);

/// Serves until `stop`; then requests under way get some seconds to end. Over TLS, and not otherwise, if `tls` says how.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<RustlsConfig>,
    routes: Router,
    stop: CancellationToken,
) -> io::Result<()> {
    let handle = Handle::<SocketAddr>::new();
    let mut server = axum_server::Server::from_listener(listener)
        .acceptor(NoDelayAcceptor::new())
        .handle(handle.clone())
        .first_request_timeout(GREETING)
        .http1_only();
    server.http_builder().http1().header_read_timeout(IDLE);
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
