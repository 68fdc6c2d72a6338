//! A RabbitMQ or a MongoDB of one test's own, which it can stop and start again.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use uuid::Uuid;

/// A server on a port that stays the same, with its data in a folder that does too.
pub(crate) struct Server {
    kind: Kind,
    folder: TempDir,
    port: u16,
}

#[derive(Clone, Copy)]
enum Kind {
    RabbitMq,
    MongoDb,
}

impl Server {
    /// A RabbitMQ, started.
    pub(crate) async fn rabbitmq() -> Self {
        Self::new(Kind::RabbitMq).await
    }

    /// A MongoDB, started.
    pub(crate) async fn mongodb() -> Self {
        Self::new(Kind::MongoDb).await
    }

    async fn new(kind: Kind) -> Self {
        let server =
            Self { kind, folder: tempfile::tempdir().expect("a temporary folder"), port: free_port() };
        server.start().await;
        server
    }

    /// Where it is.
    pub(crate) fn uri(&self) -> String {
        match self.kind {
            Kind::RabbitMq => format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port),
            // The MongoDB of the tests searches all that it remembers of retryable writes at each of them.
            Kind::MongoDb => format!("mongodb://127.0.0.1:{}/?retryWrites=false", self.port),
        }
    }

    /// Starts it, and waits until it answers.
    pub(crate) async fn start(&self) {
        let status = tokio::process::Command::from(self.control("start")).status().await;
        assert!(status.expect("the script runs").success(), "{} does not start", self.script());
    }

    /// Stops it in good order. Its data stay.
    pub(crate) async fn stop(&self) {
        let status = tokio::process::Command::from(self.control("stop")).status().await;
        assert!(status.expect("the script runs").success(), "{} does not stop", self.script());
    }

    fn script(&self) -> &'static str {
        match self.kind {
            Kind::RabbitMq => "tests/servers/rabbitmq",
            Kind::MongoDb => "tests/servers/mongodb",
        }
    }

    fn control(&self, what: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(self.script()));
        command.arg(what).arg(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        if what == "start" {
            command.arg(self.port.to_string());
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The test may have stopped it, or be failing already.
        let _ = self.control("stop").status();
    }
}

/// A port that nobody listens on, below those that the system gives to outgoing connections: it stays
/// free while a server is away and others look for it.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = 20_000 + u16::try_from(Uuid::new_v4().as_u128() % 12_000).expect("a small number");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
