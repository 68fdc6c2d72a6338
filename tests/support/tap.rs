//! Listens in on what signers say to each other: a queue of the test's own gets a copy of it all.

use std::time::Duration;

use futures::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, Consumer};
use tokio::time::{Instant, timeout_at};
use tss_common::envelope::Header;

/// Sees the header of each envelope of a cluster from now on, once for each signer it goes to.
pub(crate) struct Tap {
    /// The queue is gone with it.
    _connection: Connection,
    consumer: Consumer,
}

impl Tap {
    /// Listens in on a cluster of so many signers, whose exchanges are there.
    ///
    /// # Errors
    /// When the broker is away.
    pub(crate) async fn open(uri: &str, cluster: &str, signers: u8) -> lapin::Result<Self> {
        let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let own =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), own, FieldTable::default()).await?;
        for signer in 1..=signers {
            let (exchange, key) = (format!("tss.{cluster}.rounds"), signer.to_string());
            let options = QueueBindOptions::default();
            channel
                .queue_bind(queue.name().clone(), exchange.into(), key.into(), options, FieldTable::default())
                .await?;
        }
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consumer =
            channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default()).await?;
        Ok(Self { _connection: connection, consumer })
    }

    /// The next envelope's header; `None` when none comes before the deadline.
    pub(crate) async fn next(&mut self, deadline: Instant) -> Option<Header> {
        let delivery = timeout_at(deadline, self.consumer.next()).await.ok()?;
        let delivery = delivery.expect("the broker stays").expect("the broker stays");
        Some(Header::peek(&delivery.data).expect("signers send envelopes"))
    }

    /// The first envelope of which this holds.
    pub(crate) async fn until(&mut self, patience: Duration, holds: impl Fn(&Header) -> bool) -> Header {
        let deadline = Instant::now() + patience;
        loop {
            let header = self.next(deadline).await;
            let header = header.unwrap_or_else(|| panic!("no such envelope within {patience:?}"));
            if holds(&header) {
                return header;
            }
        }
    }
}
