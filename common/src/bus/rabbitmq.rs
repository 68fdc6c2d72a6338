//! RabbitMQ.
//!
//! What a cluster `c` has on the broker; each side declares what it uses, so that nothing need be
//! set up beforehand and a message waits for a subscriber that was never there:
//!
//! | exchange | queue | kind of queue |
//! |---|---|---|
//! | `tss.c.requests`, topic | `tss.c.requests.{i}`, key `{i}` | quorum, full at [`DURABLE_CAPACITY`] |
//! | `tss.c.results`, direct | `tss.c.results` | quorum, full at [`DURABLE_CAPACITY`] |
//! | `tss.c.rounds`, direct | `tss.c.rounds.{i}`, key `{i}` | classic, drops the oldest at [`ROUNDS_CAPACITY`] |
//! | `tss.c.presence`, fanout | one for each subscriber, exclusive | classic, drops the oldest |
//! | `tss.c.dead`, fanout | `tss.c.dead` | quorum, drops the oldest |
//!
//! There are two connections. A broker that is short of memory or disk stops reading from
//! connections that publish; on one of their own, acknowledgements still get through, and they are
//! what frees its memory. Each connection is supervised by a task that connects it again.
//!
//! With `amqps://`, the broker's certificate is checked against the system's certificate
//! authorities; `SSL_CERT_FILE` names a file with others.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use lapin::message::Delivery as Arrival;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicPublishOptions,
    BasicQosOptions, BasicRejectOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::tcp::{AMQPUriTcpExt, OwnedTLSConfig, TLSConfig};
use lapin::types::{AMQPValue, DeliveryTag, FieldTable, LongLongInt, LongString, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{
    AsyncTcpStream, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    Event, ExchangeKind,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Address, Bus, BusError, BusState, DURABLE_BYTES, DURABLE_CAPACITY, Delivery, MAX_DELIVERIES, MAX_MESSAGE,
    ROUNDS_BYTES, ROUNDS_CAPACITY, ROUNDS_TTL, Settlement, Subscription,
};
use crate::backoff::Backoff;

/// How long publishing takes at most: until the message is confirmed, or handed to the system.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a TCP connection and its TLS handshake take at most.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection takes at most, all in all; longer than [`DIAL_TIMEOUT`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it takes at most to start or to end a subscription.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long each step of closing takes at most: what is under way, each channel, each connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause after the first failed attempt to connect or to subscribe. It doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often either side shows that it is there, in seconds, unless the URI says `heartbeat`. A
/// broker that is silent for twice as long is given up.
const HEARTBEAT: u16 = 10;

/// How many durable messages are on their way to the broker at once.
const LANES: u32 = 64;

/// How many other messages are on their way to the system at once.
const WRITES: u32 = 128;

/// For how long a declaration is taken to hold. Inboxes for rounds expire: see [`INBOX_EXPIRY`].
const DECLARED_FOR: Duration = Duration::from_secs(60);

/// After how long the inbox of a signer is removed when nobody listens or publishes.
const INBOX_EXPIRY: Duration = Duration::from_secs(10 * 60);

/// How many heartbeats and notices wait for one subscriber before the oldest is dropped.
const PRESENCE_CAPACITY: usize = 1024;

/// How many dead letters are kept before the oldest is dropped.
const DEAD_CAPACITY: usize = 10_000;

/// Where RabbitMQ is, and whose messages travel.
#[derive(Clone)]
pub struct RabbitOptions {
    /// `amqp://user:password@host:port/vhost`, or `amqps://` for TLS. Without a virtual host, or
    /// with an empty one, it is `/`.
    pub uri: String,
    /// The cluster whose messages travel: `[a-z0-9-]{1,63}`.
    pub cluster: String,
    /// What the connections are called in RabbitMQ's own views.
    pub connection_name: String,
}

impl fmt::Debug for RabbitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitOptions")
            .field("cluster", &self.cluster)
            .field("connection_name", &self.connection_name)
            .finish_non_exhaustive()
    }
}

/// Why there is no bus at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RabbitError {
    /// The URI cannot be used. What it says of user and password is not repeated here.
    #[error("not a RabbitMQ URI: {0}")]
    Uri(String),
    /// There is no Tokio runtime to keep the bus connected.
    #[error("a RabbitMQ bus needs a Tokio runtime")]
    NoRuntime,
}

/// A bus whose messages a RabbitMQ broker keeps and passes on.
#[derive(Debug)]
pub struct RabbitBus {
    /// What the tasks share.
    shared: Arc<Shared>,
    /// The tasks of the subscriptions, which end when this is dropped.
    subscriptions: Mutex<JoinSet<()>>,
    /// The tasks that keep the connections, which end when this is dropped.
    supervisors: Mutex<JoinSet<()>>,
}

impl RabbitBus {
    /// A bus that is connecting. It goes on trying until it is closed or dropped; see
    /// [`Bus::state`].
    ///
    /// # Errors
    /// [`RabbitError`]: the URI is malformed, or this is called outside a Tokio runtime.
    pub fn connect(options: RabbitOptions) -> Result<Arc<Self>, RabbitError> {
        let uri = parse(&options.uri)?;
        let runtime = Handle::try_current().map_err(|_| RabbitError::NoRuntime)?;
        let shared = Arc::new(Shared {
            broker: Broker::new(uri, &options.connection_name),
            names: Arc::new(Names(format!("tss.{}", options.cluster))),
            links: [Link::new(), Link::new()],
            downs: Mutex::new([const { None }; 2]),
            state: watch::Sender::new(BusState::Down(CONNECTING.into())),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
            oversized: AtomicU64::new(0),
            idle: Arc::default(),
        });
        let mut supervisors = JoinSet::new();
        for role in [Role::Publish, Role::Consume] {
            shared.report(role, Some(CONNECTING.into()));
            supervisors.spawn_on(Arc::clone(&shared).supervise(role), &runtime);
        }
        Ok(Arc::new(Self { shared, subscriptions: Mutex::default(), supervisors: Mutex::new(supervisors) }))
    }

    /// How many messages longer than [`MAX_MESSAGE`] arrived and were rejected.
    pub fn oversized(&self) -> u64 {
        self.shared.oversized.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Bus for RabbitBus {
    async fn publish(&self, to: Address, body: Bytes) -> Result<(), BusError> {
        if body.len() > MAX_MESSAGE {
            return Err(BusError::TooLong(body.len()));
        }
        let session = self.shared.publisher()?;
        let slots = if to.is_durable() { &session.free_lanes } else { &session.free_writes };
        let names = Arc::clone(&self.shared.names);
        let publishing = async {
            let slot = Arc::clone(slots).acquire_owned().await.map_err(down)?;
            // In a task of its own, so that a message that was begun keeps its slot until the
            // connection is rid of it, even when the caller no longer waits: that bounds how much
            // waits here.
            let sending = tokio::spawn(Arc::clone(&session).send(names, to, body, slot));
            sending.await.unwrap_or_else(|error| Err(unconfirmed(error)))
        };
        timeout(PUBLISH_TIMEOUT, publishing)
            .await
            .unwrap_or_else(|_| Err(unconfirmed("the broker does not answer")))
    }

    async fn subscribe(&self, at: Address, capacity: u16) -> Result<Subscription, BusError> {
        if self.shared.closing.is_cancelled() {
            return Err(down(CLOSED));
        }
        let capacity = capacity.max(1);
        let (deliveries, subscription) = mpsc::channel(usize::from(capacity));
        let (ready, started) = oneshot::channel();
        {
            let mut subscriptions = lock(&self.subscriptions);
            // Those that have ended are forgotten.
            while subscriptions.try_join_next().is_some() {}
            let idle = Idle::new(&self.shared.idle);
            let listening = Arc::clone(&self.shared).keep_listening(at, capacity, deliveries, ready, idle);
            subscriptions.spawn(listening);
        }
        if self.shared.link(Role::Consume).session.borrow().is_some() {
            // What is published next is for this subscriber too. If it cannot start, it starts later.
            let _ = timeout(SETUP_TIMEOUT, started).await;
        }
        Ok(subscription)
    }

    fn state(&self) -> watch::Receiver<BusState> {
        self.shared.state.subscribe()
    }

    fn is_listening(&self) -> bool {
        self.shared.idle.load(Ordering::SeqCst) == 0
    }

    async fn close(&self) {
        // First the subscriptions, which send what was acknowledged, then the connections.
        self.shared.closing.cancel();
        end(&self.subscriptions).await;
        self.shared.closed.cancel();
        end(&self.supervisors).await;
        self.shared.state.send_replace(BusState::Down(CLOSED.into()));
    }
}

/// Why the bus is down before it was ever up.
const CONNECTING: &str = "connecting";

/// Why the bus is down for good.
const CLOSED: &str = "the bus is closed";

/// Waits for tasks that were asked to end, and ends those that do not.
async fn end(tasks: &Mutex<JoinSet<()>>) {
    let mut tasks = std::mem::take(&mut *lock(tasks));
    let ending = async { while tasks.join_next().await.is_some() {} };
    // Those that take longer end as the set is dropped.
    let _ = timeout(CLOSE_TIMEOUT * 3, ending).await;
}

/// Locks. Nothing here panics while it holds a lock, and what a lock guards is never half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nothing was sent.
fn down(why: impl fmt::Display) -> BusError {
    BusError::Down(why.to_string())
}

/// Something may have been sent.
fn unconfirmed(why: impl fmt::Display) -> BusError {
    BusError::Unconfirmed(why.to_string())
}

/// Reads a URI, mending what its parser gets wrong.
fn parse(text: &str) -> Result<AMQPUri, RabbitError> {
    // One of the parser's complaints repeats the whole URI, with its password.
    let mut uri: AMQPUri = text.parse().map_err(|why: String| RabbitError::Uri(why.replace(text, "…")))?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    // The parser takes any IPv6 address for localhost.
    let authority =
        text.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or(""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if let Some(bracketed) = host.strip_prefix('[') {
        let address = bracketed.split_once(']').and_then(|(address, _)| address.parse::<Ipv6Addr>().ok());
        uri.authority.host =
            address.ok_or_else(|| RabbitError::Uri("invalid IPv6 address".into()))?.to_string();
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    Ok(uri)
}

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
enum Role {
    /// Sending messages.
    Publish,
    /// Receiving them.
    Consume,
}

impl Role {
    /// What it is called in logs and in RabbitMQ's own views.
    fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Consume => "consume",
        }
    }
}

/// What the tasks of a bus share.
#[derive(Debug)]
struct Shared {
    /// How to reach the broker.
    broker: Broker,
    /// What things are called there.
    names: Arc<Names>,
    /// The connections, by [`Role`].
    links: [Link; 2],
    /// Why each connection is down, if it is, by [`Role`].
    downs: Mutex<[Option<String>; 2]>,
    /// Up when both connections are.
    state: watch::Sender<BusState>,
    /// Cancelled when the bus is being closed: subscriptions end, nothing more is published.
    closing: CancellationToken,
    /// Cancelled when subscriptions have ended: connections end.
    closed: CancellationToken,
    /// How many messages were longer than a bus carries.
    oversized: AtomicU64,
    /// How many subscriptions have not started, or not again.
    idle: Arc<AtomicUsize>,
}

/// A subscription that has not started, or not again, for as long as this lives.
struct Idle(Arc<AtomicUsize>);

impl Idle {
    fn new(idle: &Arc<AtomicUsize>) -> Self {
        idle.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(idle))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection that is made again whenever it is lost.
#[derive(Debug)]
struct Link {
    /// The connection, while there is one.
    session: watch::Sender<Option<Arc<Session>>>,
}

impl Link {
    /// One that is not connected yet.
    fn new() -> Self {
        Self { session: watch::Sender::new(None) }
    }
}

impl Shared {
    /// The connection for a role.
    fn link(&self, role: Role) -> &Link {
        &self.links[role as usize]
    }

    /// The connection to publish on.
    fn publisher(&self) -> Result<Arc<Session>, BusError> {
        if self.closing.is_cancelled() {
            return Err(down(CLOSED));
        }
        let session = self.link(Role::Publish).session.borrow().clone();
        match session {
            Some(session) if !session.connection.status().blocked() => Ok(session),
            _ => Err(down(lock(&self.downs)[Role::Publish as usize].as_deref().unwrap_or("reconnecting"))),
        }
    }

    /// Says why the connection for a role is down, or that it is up.
    fn report(&self, role: Role, why: Option<String>) {
        let mut downs = lock(&self.downs);
        downs[role as usize] = why;
        let state = downs.iter().flatten().next().map_or(BusState::Up, |why| BusState::Down(why.clone()));
        self.state.send_if_modified(|known| {
            let changed = *known != state;
            *known = state;
            changed
        });
    }

    /// Keeps the connection for a role, until the bus is closed.
    async fn supervise(self: Arc<Self>, role: Role) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let broker = &self.broker;
        loop {
            let connected = tokio::select! {
                () = self.closed.cancelled() => return,
                connected = broker.connect(role) => connected,
            };
            let why = match connected {
                Ok(session) => {
                    tracing::info!(broker = %broker.shown, role = role.as_str(), "connected to RabbitMQ");
                    let since = Instant::now();
                    let session = Arc::new(session);
                    self.link(role).session.send_replace(Some(Arc::clone(&session)));
                    self.report(role, None);
                    let why = tokio::select! {
                        () = self.closed.cancelled() => None,
                        why = self.watch(role, &session) => Some(why),
                    };
                    self.report(role, Some(why.clone().unwrap_or_else(|| CLOSED.into())));
                    self.link(role).session.send_replace(None);
                    session.end().await;
                    let Some(why) = why else { return };
                    backoff.reset_after(since.elapsed());
                    why
                }
                Err(why) => {
                    self.report(role, Some(why.clone()));
                    why
                }
            };
            let pause = backoff.delay();
            tracing::warn!(
                broker = %broker.shown,
                role = role.as_str(),
                error = why,
                retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "no connection to RabbitMQ"
            );
            tokio::select! {
                () = self.closed.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Waits for the connection to be lost, and says why it was.
    async fn watch(&self, role: Role, session: &Session) -> String {
        let mut events = pin!(session.connection.events_listener());
        let status = session.connection.status();
        // It may have been lost before its events were listened to.
        if !status.connected() {
            return "lost at once".into();
        }
        loop {
            tokio::select! {
                event = events.next() => match event {
                    // Channels report their errors here too.
                    Some(Event::Error(error)) if !status.connected() => return error.to_string(),
                    Some(Event::ConnectionBlocked(why)) => {
                        tracing::warn!(role = role.as_str(), why, "RabbitMQ takes no messages");
                        self.report(role, Some(format!("RabbitMQ takes no messages: {why}")));
                    }
                    Some(Event::ConnectionUnblocked) => {
                        tracing::info!(role = role.as_str(), "RabbitMQ takes messages again");
                        self.report(role, None);
                    }
                    Some(_) => {}
                    None => return "ended".into(),
                },
                // A connection that the broker closed without an error is no event.
                () = session.suspected.notified() => if !status.connected() {
                    return "closed by the broker".into();
                },
            }
        }
    }
}

/// How to reach the broker.
struct Broker {
    /// Where it is, and who asks.
    uri: AMQPUri,
    /// The same without the password, for logs.
    shown: String,
    /// What the connections are called.
    name: String,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("uri", &self.shown).field("name", &self.name).finish()
    }
}

impl Broker {
    /// The broker at a URI.
    fn new(uri: AMQPUri, name: &str) -> Self {
        let (user, host, port) = (&uri.authority.userinfo.username, &uri.authority.host, uri.authority.port);
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let vhost = if uri.vhost == "/" { "%2f" } else { &uri.vhost };
        let shown = format!("{}://{user}:***@{host}:{port}/{vhost}", uri.scheme);
        Self { uri, shown, name: name.to_owned() }
    }

    /// Connects once.
    async fn connect(&self, role: Role) -> Result<Session, String> {
        let name = LongString::from(format!("{} ({})", self.name, role.as_str()));
        // Recovery is left to the supervisor: what the library does by itself is off by default.
        let properties = ConnectionProperties::default().with_connection_name(name);
        let scissors = Scissors(Socket::default());
        let socket = scissors.0.clone();
        let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
        let connecting = Connection::connector(
            self.uri.clone(),
            runtime,
            async move |uri: AMQPUri, runtime| {
                let dialling = async {
                    // In the clear first, so that the socket can be got hold of.
                    let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri.clone() };
                    let stream = plain.connect_with_config_async(TLSConfig::default(), &runtime).await?;
                    if let AsyncTcpStream::Plain(stream) = &stream {
                        socket.hold(stream.get_ref().as_fd().try_clone_to_owned()?.into());
                    }
                    match uri.scheme {
                        AMQPScheme::AMQP => Ok(stream),
                        AMQPScheme::AMQPS => {
                            stream.into_tls(&uri.authority.host, OwnedTLSConfig::default().as_ref()).await
                        }
                    }
                };
                let timed_out = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
                Ok(timeout(DIAL_TIMEOUT, dialling).await.unwrap_or_else(timed_out)?)
            },
            properties,
        );
        let connection = timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| "the broker does not answer".to_owned())?
            .map_err(|error| error.to_string())?;
        Ok(Session::new(connection, scissors))
    }
}

/// A connection's socket, to be cut when nobody needs the connection any more. The library runs each
/// connection on a thread that ends with the socket, and not before, whatever state it is in.
#[derive(Clone, Debug, Default)]
struct Socket(Arc<Mutex<Wire>>);

/// What is known of a [`Socket`].
#[derive(Debug, Default)]
enum Wire {
    /// Not there yet.
    #[default]
    Awaited,
    /// In use.
    Open(TcpStream),
    /// Cut; so is whatever comes yet.
    Cut,
}

impl Socket {
    /// Remembers the socket.
    fn hold(&self, stream: TcpStream) {
        let mut wire = lock(&self.0);
        if let Wire::Cut = *wire {
            shut(&stream);
        } else {
            *wire = Wire::Open(stream);
        }
    }
}

/// Cuts a socket when dropped.
#[derive(Debug)]
struct Scissors(Socket);

impl Scissors {
    /// There is nothing to cut any more.
    fn put_down(&self) {
        *lock(&self.0.0) = Wire::Cut;
    }
}

impl Drop for Scissors {
    fn drop(&mut self) {
        if let Wire::Open(stream) = std::mem::replace(&mut *lock(&self.0.0), Wire::Cut) {
            shut(&stream);
        }
    }
}

/// Ends a TCP connection.
fn shut(stream: &TcpStream) {
    // It may have ended by itself.
    let _ = stream.shutdown(Shutdown::Both);
}

/// One connection, until it is lost.
#[derive(Debug)]
struct Session {
    /// The connection.
    connection: Connection,
    /// Told when something failed, so that the supervisor looks whether the connection did.
    suspected: Notify,
    /// What was declared, and when.
    declared: Mutex<HashMap<Address, Instant>>,
    /// Held while declaring, and while opening the channel for what is not confirmed.
    preparing: tokio::sync::Mutex<()>,
    /// Idle channels on which messages are confirmed. Each carries one message at a time. The library
    /// attaches a message that the broker returned to whichever confirmation comes next on its
    /// channel; with several messages under way on one, it would name the wrong one, and a message
    /// that went nowhere would pass for stored. It also numbers messages before it queues them, so
    /// that two publishers could get each other's confirmations.
    lanes: Mutex<Vec<Channel>>,
    /// Bounds how many lanes there are.
    free_lanes: Arc<Semaphore>,
    /// The channel on which nothing is confirmed.
    unconfirmed: Mutex<Option<Channel>>,
    /// Bounds how many messages wait there.
    free_writes: Arc<Semaphore>,
    /// Cuts the socket when this is dropped.
    scissors: Scissors,
}

impl Session {
    /// A connection on which nothing happened yet.
    fn new(connection: Connection, scissors: Scissors) -> Self {
        Self {
            connection,
            suspected: Notify::new(),
            declared: Mutex::default(),
            preparing: tokio::sync::Mutex::default(),
            lanes: Mutex::default(),
            free_lanes: Arc::new(Semaphore::new(LANES as usize)),
            unconfirmed: Mutex::default(),
            free_writes: Arc::new(Semaphore::new(WRITES as usize)),
            scissors,
        }
    }

    /// Closes the connection, in order if it is still there.
    async fn end(&self) {
        if !self.connection.status().connected() {
            return;
        }
        // What is under way first. The channels are left alone: they end with the connection, and the
        // library takes it for an error when one is being closed by then.
        let idle = async {
            let _lanes = self.free_lanes.acquire_many(LANES).await;
            let _writes = self.free_writes.acquire_many(WRITES).await;
        };
        let _ = timeout(CLOSE_TIMEOUT, idle).await;
        let closing = self.connection.close(200, "closing".into());
        match timeout(CLOSE_TIMEOUT, closing).await {
            // The library ends the rest by itself, and would take a cut for an error.
            Ok(Ok(())) => self.scissors.put_down(),
            Ok(Err(error)) => tracing::debug!(%error, "the connection to RabbitMQ was not closed in order"),
            Err(_) => tracing::debug!("RabbitMQ did not close the connection in time"),
        }
    }

    /// Sends a message, keeping its slot until the connection is rid of it.
    async fn send(
        self: Arc<Self>,
        names: Arc<Names>,
        to: Address,
        body: Bytes,
        _slot: OwnedSemaphorePermit,
    ) -> Result<(), BusError> {
        let sent = async {
            self.declare(&names, to).await.map_err(down)?;
            if to.is_durable() {
                self.send_confirmed(&names, to, &body).await
            } else {
                self.send_unconfirmed(&names, to, &body).await
            }
        };
        let sent = sent.await;
        if sent.is_err() {
            // The broker may have lost what was declared.
            lock(&self.declared).remove(&to);
            self.suspected.notify_one();
        }
        sent
    }

    /// Sends a message that the broker stores, and waits until it has.
    async fn send_confirmed(&self, names: &Names, to: Address, body: &[u8]) -> Result<(), BusError> {
        let lane = self.lane().await.map_err(down)?;
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let confirming = async {
            lane.basic_publish(names.exchange(to), Names::key(to), options, body, properties).await?.await
        };
        let confirmation: Confirmation = confirming.await.map_err(unconfirmed)?;
        lock(&self.lanes).push(lane);
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                Err(unconfirmed(format!("returned by the broker: {}", returned.reply_text)))
            }
            Confirmation::Nack(None) => Err(unconfirmed("refused by the broker: the queue may be full")),
            Confirmation::NotRequested => Err(unconfirmed("confirmations are off")),
        }
    }

    /// Hands a message to the system.
    async fn send_unconfirmed(&self, names: &Names, to: Address, body: &[u8]) -> Result<(), BusError> {
        let channel = self.unconfirmed().await.map_err(down)?;
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default().with_delivery_mode(TRANSIENT);
        let sending = channel.basic_publish(names.exchange(to), Names::key(to), options, body, properties);
        sending.await.map(|_| ()).map_err(down)
    }

    /// An idle channel on which messages are confirmed. The most recently used goes first, so that
    /// a quiet bus uses one only.
    async fn lane(&self) -> lapin::Result<Channel> {
        loop {
            let idle = lock(&self.lanes).pop();
            match idle {
                Some(lane) if lane.status().connected() => return Ok(lane),
                Some(_) => {}
                None => break,
            }
        }
        let lane = self.connection.create_channel().await?;
        lane.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(lane)
    }

    /// The channel on which nothing is confirmed. There is one, so that what one task sends arrives
    /// in order.
    async fn unconfirmed(&self) -> lapin::Result<Channel> {
        let open = || lock(&self.unconfirmed).clone().filter(|channel| channel.status().connected());
        if let Some(channel) = open() {
            return Ok(channel);
        }
        let _preparing = self.preparing.lock().await;
        if let Some(channel) = open() {
            return Ok(channel);
        }
        let channel = self.connection.create_channel().await?;
        *lock(&self.unconfirmed) = Some(channel.clone());
        Ok(channel)
    }

    /// Declares what an address needs, unless that was done a moment ago.
    async fn declare(&self, names: &Names, address: Address) -> lapin::Result<()> {
        let holds = || lock(&self.declared).get(&address).is_some_and(|at| at.elapsed() < DECLARED_FOR);
        if holds() {
            return Ok(());
        }
        let _preparing = self.preparing.lock().await;
        if holds() {
            return Ok(());
        }
        // On a channel of its own: a declaration that the broker refuses closes its channel.
        let channel = self.connection.create_channel().await?;
        names.declare(&channel, address).await?;
        lock(&self.declared).insert(address, Instant::now());
        channel.close(200, "declared".into()).await
    }
}

/// The delivery mode of what a broker keeps in memory only.
const TRANSIENT: u8 = 1;

/// The delivery mode of what a broker stores.
const PERSISTENT: u8 = 2;

/// What things are called on the broker: `tss.{cluster}`, and more behind it.
#[derive(Debug)]
struct Names(String);

impl Names {
    /// The exchange for an address.
    fn exchange(&self, address: Address) -> ShortString {
        let kind = match address {
            Address::Requests(_) => "requests",
            Address::Rounds(_) => "rounds",
            Address::Ceremonies(_) => "ceremonies",
            Address::Results => "results",
            Address::Presence => "presence",
        };
        format!("{}.{kind}", self.0).into()
    }

    /// What routes a message from its exchange to its queue.
    fn key(address: Address) -> ShortString {
        match address {
            Address::Requests(signer) | Address::Rounds(signer) | Address::Ceremonies(signer) => {
                signer.to_string().into()
            }
            Address::Results => "results".into(),
            Address::Presence => "".into(),
        }
    }

    /// The queue for an address, unless each subscriber has its own.
    fn queue(&self, address: Address) -> Option<ShortString> {
        match address {
            Address::Requests(signer) => Some(format!("{}.requests.{signer}", self.0).into()),
            Address::Rounds(signer) => Some(format!("{}.rounds.{signer}", self.0).into()),
            Address::Ceremonies(signer) => Some(format!("{}.ceremonies.{signer}", self.0).into()),
            Address::Results => Some(format!("{}.results", self.0).into()),
            Address::Presence => None,
        }
    }

    /// The exchange and the queue for dead letters.
    fn dead(&self) -> ShortString {
        format!("{}.dead", self.0).into()
    }

    /// Declares the exchange for an address, and its queue unless each subscriber has its own.
    async fn declare(&self, channel: &Channel, address: Address) -> lapin::Result<()> {
        let kind = match address {
            Address::Requests(_) => ExchangeKind::Topic,
            Address::Rounds(_) | Address::Ceremonies(_) | Address::Results => ExchangeKind::Direct,
            Address::Presence => ExchangeKind::Fanout,
        };
        let exchange = self.exchange(address);
        declare_exchange(channel, exchange.clone(), kind).await?;
        let Some(queue) = self.queue(address) else { return Ok(()) };
        let arguments = if address.is_durable() {
            declare_exchange(channel, self.dead(), ExchangeKind::Fanout).await?;
            let arguments = table([
                ("x-queue-type", text("quorum")),
                ("x-max-length", number(DEAD_CAPACITY)),
                ("x-overflow", text("drop-head")),
            ]);
            declare_queue(channel, self.dead(), arguments, self.dead(), "".into()).await?;
            table([
                ("x-queue-type", text("quorum")),
                // How often a message may come back, which is once less than it may be delivered.
                ("x-delivery-limit", number(MAX_DELIVERIES.saturating_sub(1) as usize)),
                ("x-dead-letter-exchange", text(self.dead().as_str())),
                ("x-max-length", number(DURABLE_CAPACITY)),
                ("x-max-length-bytes", number(DURABLE_BYTES)),
                ("x-overflow", text("reject-publish")),
            ])
        } else {
            // The queue itself is durable, for RabbitMQ has given up queues that are neither durable
            // nor exclusive, and an exclusive one could keep nothing while its signer is away. Its
            // messages are transient, so nothing of them is written to disk unless memory is short.
            table([
                ("x-queue-type", text("classic")),
                ("x-max-length", number(ROUNDS_CAPACITY)),
                ("x-max-length-bytes", number(ROUNDS_BYTES)),
                ("x-overflow", text("drop-head")),
                ("x-message-ttl", milliseconds(ROUNDS_TTL)),
                ("x-expires", milliseconds(INBOX_EXPIRY)),
            ])
        };
        declare_queue(channel, queue, arguments, exchange, Self::key(address)).await
    }

    /// Declares a queue for one subscriber of presence, and returns its name.
    async fn declare_listener(&self, channel: &Channel) -> lapin::Result<ShortString> {
        let options = QueueDeclareOptions::exclusive().auto_delete();
        let arguments = table([
            ("x-max-length", number(PRESENCE_CAPACITY)),
            ("x-overflow", text("drop-head")),
            ("x-message-ttl", milliseconds(ROUNDS_TTL)),
        ]);
        let queue = channel.queue_declare("".into(), options, arguments).await?.name().clone();
        let exchange = self.exchange(Address::Presence);
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.clone(), exchange, "".into(), options, FieldTable::default()).await?;
        Ok(queue)
    }
}

/// Declares a durable exchange.
async fn declare_exchange(channel: &Channel, name: ShortString, kind: ExchangeKind) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name, kind, options, FieldTable::default()).await
}

/// Declares a durable queue and binds it.
async fn declare_queue(
    channel: &Channel,
    name: ShortString,
    arguments: FieldTable,
    exchange: ShortString,
    key: ShortString,
) -> lapin::Result<()> {
    channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), arguments).await?;
    channel.queue_bind(name, exchange, key, QueueBindOptions::default(), FieldTable::default()).await
}

/// Arguments of a queue.
fn table<const N: usize>(arguments: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert(name.into(), value);
    }
    table
}

/// A text among the arguments of a queue.
fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A number among the arguments of a queue.
fn number(value: usize) -> AMQPValue {
    AMQPValue::LongLongInt(LongLongInt::try_from(value).unwrap_or(LongLongInt::MAX))
}

/// A time among the arguments of a queue.
fn milliseconds(value: Duration) -> AMQPValue {
    AMQPValue::LongLongInt(LongLongInt::try_from(value.as_millis()).unwrap_or(LongLongInt::MAX))
}

/// Why a subscription has to be made again.
struct Lost(String);

impl From<lapin::Error> for Lost {
    fn from(error: lapin::Error) -> Self {
        Self(error.to_string())
    }
}

impl Shared {
    /// Keeps a subscription, over as many connections as it takes, until the subscriber leaves or
    /// the bus is closed.
    async fn keep_listening(
        self: Arc<Self>,
        at: Address,
        capacity: u16,
        deliveries: mpsc::Sender<Delivery>,
        ready: oneshot::Sender<()>,
        idle: Idle,
    ) {
        let is_connected = |session: &Option<Arc<Session>>| {
            session.as_ref().is_some_and(|session| session.connection.status().connected())
        };
        let mut ready = Some(ready);
        let mut idle = Some(idle);
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut sessions = self.link(Role::Consume).session.subscribe();
        loop {
            let session = tokio::select! {
                () = self.closing.cancelled() => return,
                () = deliveries.closed() => return,
                session = sessions.wait_for(is_connected) => session.ok().and_then(|session| session.clone()),
            };
            let Some(session) = session else { return };
            let since = Instant::now();
            let listened = self.listen(&session, at, capacity, &deliveries, &mut ready, &mut idle).await;
            let Err(Lost(why)) = listened else { return };
            idle.get_or_insert_with(|| Idle::new(&self.idle));
            if !session.connection.status().connected() {
                // It is not the subscription that failed. The supervisor says why, and pauses.
                session.suspected.notify_one();
                continue;
            }
            drop(session);
            backoff.reset_after(since.elapsed());
            let pause = backoff.delay();
            tracing::warn!(address = ?at, error = why, "a subscription at RabbitMQ ended: it is made again");
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = deliveries.closed() => return,
                () = sleep(pause) => {}
            }
        }
    }

    /// Listens on one connection, until the subscriber leaves or the bus is being closed.
    async fn listen(
        &self,
        session: &Session,
        at: Address,
        capacity: u16,
        deliveries: &mpsc::Sender<Delivery>,
        ready: &mut Option<oneshot::Sender<()>>,
        idle: &mut Option<Idle>,
    ) -> Result<(), Lost> {
        let starting = async {
            let channel = session.connection.create_channel().await?;
            // Without a limit the library would take in all there is.
            channel.basic_qos(capacity, BasicQosOptions::default()).await?;
            self.names.declare(&channel, at).await?;
            let queue = match self.names.queue(at) {
                Some(queue) => queue,
                None => self.names.declare_listener(&channel).await?,
            };
            let options = BasicConsumeOptions::default();
            let consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
            lapin::Result::Ok((channel, consumer))
        };
        let timed_out = |_| Lost("the broker does not answer".into());
        let (channel, consumer) = timeout(SETUP_TIMEOUT, starting).await.map_err(timed_out)??;
        *idle = None;
        if let Some(ready) = ready.take() {
            // Nobody may be waiting.
            let _ = ready.send(());
        }
        let mut listening = Listening { shared: self, at, channel, consumer, deliveries };
        let ended = if at.is_durable() {
            listening.durable().await
        } else {
            listening.transient(u64::from(capacity)).await
        };
        // When the broker answers, it has heard what was acknowledged.
        let closing = listening.channel.close(200, "done".into());
        if let Ok(Err(error)) = timeout(CLOSE_TIMEOUT, closing).await {
            tracing::debug!(address = ?at, %error, "a channel was not closed in order");
        }
        ended
    }
}

/// A subscription on one connection.
struct Listening<'a> {
    /// What the tasks share.
    shared: &'a Shared,
    /// The address.
    at: Address,
    /// Its channel.
    channel: Channel,
    /// What arrives.
    consumer: Consumer,
    /// Where it goes.
    deliveries: &'a mpsc::Sender<Delivery>,
}

impl Listening<'_> {
    /// Hands on messages that are acknowledged when the subscriber says so.
    async fn durable(&mut self) -> Result<(), Lost> {
        // What the subscriber holds.
        let mut held = FuturesUnordered::new();
        // What arrived and found no room: the subscriber still holds what came over a connection
        // that was lost.
        let mut waiting: Option<Arrival> = None;
        loop {
            tokio::select! {
                biased;
                () = self.shared.closing.cancelled() => {
                    while let Some(Some((tag, settlement))) = held.next().now_or_never() {
                        self.settle(tag, settlement);
                    }
                    return Ok(());
                }
                () = self.deliveries.closed() => break,
                Some((tag, settlement)) = held.next() => self.settle(tag, settlement),
                room = self.deliveries.reserve(), if waiting.is_some() => {
                    let Ok(room) = room else { break };
                    let Some(arrival) = waiting.take() else { continue };
                    let tag = arrival.delivery_tag;
                    let (delivery, settled) = Delivery::new(arrival.data.into());
                    held.push(settled.map(move |settled| (tag, settled.unwrap_or(Settlement::Requeue))));
                    room.send(delivery);
                }
                arrived = self.consumer.next(), if waiting.is_none() => {
                    let arrival = received(arrived)?;
                    if self.is_oversized(&arrival) {
                        self.settle(arrival.delivery_tag, Settlement::Reject);
                    } else {
                        waiting = Some(arrival);
                    }
                }
            }
        }
        // The subscriber left: what it never saw goes back at once, what it holds when it says so.
        let leaving = async {
            self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()).await?;
            if let Some(arrival) = waiting.take() {
                self.give_back(arrival.delivery_tag);
            }
            while let Some(Ok(arrival)) = self.consumer.next().await {
                self.give_back(arrival.delivery_tag);
            }
            lapin::Result::Ok(())
        };
        // If this fails, everything goes back as the channel ends.
        if let Ok(Ok(())) = timeout(SETUP_TIMEOUT, leaving).await {
            loop {
                tokio::select! {
                    biased;
                    settled = held.next() => match settled {
                        Some((tag, settlement)) => self.settle(tag, settlement),
                        None => break,
                    },
                    () = self.shared.closing.cancelled() => break,
                }
            }
        }
        Ok(())
    }

    /// Hands on messages that the broker may forget.
    ///
    /// The broker could forget them as it sends them, which is less work; but then it sends all it
    /// has, and the library keeps it all in memory. So they are acknowledged after all, many at once
    /// while there are many.
    async fn transient(&mut self, capacity: u64) -> Result<(), Lost> {
        let mut unacknowledged = 0;
        let mut last = 0;
        loop {
            let arrived = match self.consumer.next().now_or_never() {
                Some(arrived) if unacknowledged * 2 < capacity => arrived,
                arrived => {
                    if unacknowledged > 0 {
                        unacknowledged = 0;
                        let sent =
                            self.channel.basic_ack(last, BasicAckOptions { multiple: true }).now_or_never();
                        self.log_unsettled(sent);
                    }
                    match arrived {
                        Some(arrived) => arrived,
                        None => tokio::select! {
                            biased;
                            () = self.shared.closing.cancelled() => return Ok(()),
                            () = self.deliveries.closed() => return Ok(()),
                            arrived = self.consumer.next() => arrived,
                        },
                    }
                }
            };
            let arrival = received(arrived)?;
            unacknowledged += 1;
            last = arrival.delivery_tag;
            // One that was delivered before may have been received, and is not to come twice. What was
            // on its way to a subscriber that left, or over a connection that was lost, is so lost.
            if self.is_oversized(&arrival) || arrival.redelivered {
                continue;
            }
            tokio::select! {
                biased;
                () = self.shared.closing.cancelled() => return Ok(()),
                room = self.deliveries.reserve() => match room {
                    Ok(room) => room.send(Delivery::transient(arrival.data.into())),
                    Err(_) => return Ok(()),
                },
            }
        }
    }

    /// Whether a message is longer than a bus carries, which is logged and counted.
    fn is_oversized(&self, arrival: &Arrival) -> bool {
        let oversized = arrival.data.len() > MAX_MESSAGE;
        if oversized {
            self.shared.oversized.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(address = ?self.at, bytes = arrival.data.len(), "a message was too long and was rejected");
        }
        oversized
    }

    /// Tells the broker what becomes of a message. That is queued at once; when it cannot be, the
    /// message comes again.
    fn settle(&self, tag: DeliveryTag, settlement: Settlement) {
        let sent = match settlement {
            Settlement::Ack => self.channel.basic_ack(tag, BasicAckOptions::default()).now_or_never(),
            // Since RabbitMQ 4.3 only a `basic.reject` counts as a delivery that failed, so that
            // [`MAX_DELIVERIES`] is ever reached.
            Settlement::Requeue => {
                self.channel.basic_reject(tag, BasicRejectOptions { requeue: true }).now_or_never()
            }
            Settlement::Reject => {
                self.channel.basic_reject(tag, BasicRejectOptions { requeue: false }).now_or_never()
            }
        };
        self.log_unsettled(sent);
    }

    /// Gives back a message that the subscriber never saw.
    fn give_back(&self, tag: DeliveryTag) {
        let options = BasicNackOptions { multiple: false, requeue: true };
        self.log_unsettled(self.channel.basic_nack(tag, options).now_or_never());
    }

    /// Notes that the broker could not be told.
    fn log_unsettled(&self, sent: Option<lapin::Result<()>>) {
        if let Some(Err(error)) = sent {
            tracing::debug!(address = ?self.at, %error, "a message could not be settled");
        }
    }
}

/// What a consumer yields, or why it yields nothing more.
fn received(arrived: Option<lapin::Result<Arrival>>) -> Result<Arrival, Lost> {
    match arrived {
        Some(arrived) => Ok(arrived?),
        None => Err(Lost("ended by the broker".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_read_as_it_is_meant() {
        for (text, host, port, vhost, heartbeat) in [
            ("amqp://localhost", "localhost", 5672, "/", HEARTBEAT),
            ("amqp://localhost/", "localhost", 5672, "/", HEARTBEAT),
            ("amqp://localhost/%2f", "localhost", 5672, "/", HEARTBEAT),
            ("amqps://u:p%40ss@rabbit.example/tss?heartbeat=3", "rabbit.example", 5671, "tss", 3),
            ("amqp://127.0.0.1:5673", "127.0.0.1", 5673, "/", HEARTBEAT),
            ("amqp://u:p@[::1]:5673/tss", "::1", 5673, "tss", HEARTBEAT),
            ("amqp://[2001:db8::7]?heartbeat=5", "2001:db8::7", 5672, "/", 5),
        ] {
            let uri = parse(text).unwrap();
            assert_eq!(uri.authority.host, host, "{text}");
            assert_eq!(uri.authority.port, port, "{text}");
            assert_eq!(uri.vhost, vhost, "{text}");
            assert_eq!(uri.query.heartbeat, Some(heartbeat), "{text}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let broker = Broker::new(parse("amqps://manager:hunter2@[::1]/").unwrap(), "name");
        assert_eq!(broker.shown, "amqps://manager:***@[::1]:5671/%2f");
        assert!(!format!("{broker:?}").contains("hunter2"));
        let options = RabbitOptions {
            uri: "amqp://manager:hunter2@localhost".into(),
            cluster: "c".into(),
            connection_name: "n".into(),
        };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
