//! A TCP proxy that can be cut, frozen and restored, to see what becomes of a connection.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A proxy in front of one server, on a port of its own that stays the same.
pub(crate) struct Proxy {
    /// Where clients connect.
    address: SocketAddr,
    /// `host:port` of the server.
    server: String,
    /// Whether bytes are held back.
    frozen: watch::Sender<bool>,
    /// Accepts and carries connections, unless the proxy is cut.
    carrying: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy that is cut: nobody listens on its port yet.
    pub(crate) async fn cut_off(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        Self { address, server, frozen: watch::Sender::new(false), carrying: None }
    }

    /// A proxy that carries connections.
    pub(crate) async fn open(server: String) -> Self {
        let mut proxy = Self::cut_off(server).await;
        proxy.restore().await;
        proxy
    }

    /// The port that clients connect to on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Ends all connections and takes no more.
    pub(crate) async fn cut(&mut self) {
        if let Some(carrying) = self.carrying.take() {
            carrying.abort();
            // The port is free once the task is gone.
            let _ = carrying.await;
        }
    }

    /// Takes connections again.
    pub(crate) async fn restore(&mut self) {
        self.cut().await;
        let listener = TcpListener::bind(self.address).await.expect("the proxy's own port");
        let (server, frozen) = (self.server.clone(), self.frozen.subscribe());
        self.carrying = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(carry(client, server.clone(), frozen.clone()));
                while connections.try_join_next().is_some() {}
            }
        }));
    }

    /// Holds back all bytes, or lets them through again. Connections stay.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

/// Carries one connection until either side ends it.
async fn carry(client: TcpStream, server: String, frozen: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    for socket in [&client, &server] {
        let _ = socket.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(from_client, to_server, frozen.clone()) => {}
        () = pump(from_server, to_client, frozen) => {}
    }
}

/// Carries one direction of a connection.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut frozen: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}
