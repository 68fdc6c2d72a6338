//! What a bus promises, tried on each of them.
//!
//! RabbitMQ is expected at `RABBITMQ_URI`, or on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tss_common::bus::memory::{DeadReason, MemoryBus};
use tss_common::bus::rabbitmq::{RabbitBus, RabbitError, RabbitOptions};
use tss_common::bus::{
    Address, Bus, BusError, BusState, Delivery, MAX_DELIVERIES, MAX_MESSAGE, ROUNDS_CAPACITY, Subscription,
};
use tss_mpc::SignerIndex;

#[path = "support/proxy.rs"]
mod proxy;

/// How long a message that must come may take.
const SOON: Duration = Duration::from_secs(20);

/// How long to wait for a message that must not come.
const A_WHILE: Duration = Duration::from_millis(400);

/// The cases, each on each bus.
macro_rules! contract {
    ($($case:ident,)*) => {
        mod memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::cases::$case(tss_common::bus::memory::MemoryBus::new()).await;
                }
            )*
        }

        mod rabbitmq {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::Broker::run(|broker| async move {
                        let bus = broker.bus().await;
                        super::cases::$case(bus.clone()).await;
                        super::Bus::close(&*bus).await;
                    })
                    .await;
                }
            )*
        }
    };
}

contract! {
    a_request_published_before_anyone_listens_arrives,
    a_result_published_before_anyone_listens_arrives,
    a_round_published_before_anyone_listens_arrives,
    competing_subscribers_share_without_duplicates,
    a_dropped_delivery_comes_back,
    a_requeued_delivery_goes_to_whoever_listens,
    a_rejected_delivery_never_comes_back,
    a_message_that_is_never_acknowledged_is_set_aside,
    what_a_lost_subscriber_held_goes_to_another,
    a_delivery_can_be_acknowledged_after_the_subscription_is_dropped,
    one_signer_does_not_see_what_is_for_another,
    a_signer_and_its_ceremony_do_not_take_each_others_messages,
    requests_keep_their_order,
    rounds_keep_their_order,
    a_full_inbox_for_rounds_drops_the_oldest,
    presence_reaches_everyone,
    presence_is_not_kept,
    a_slow_listener_for_presence_holds_up_nobody,
    a_message_that_is_too_long_is_refused,
    a_subscriber_holds_no_more_than_its_capacity,
    the_bus_is_up,
    closing_ends_subscriptions,
    bodies_of_any_size_arrive_unchanged,
    durable_messages_from_many_tasks_arrive_exactly_once,
    rounds_from_many_tasks_arrive_exactly_once,
}

mod cases {
    use super::*;

    pub(super) async fn a_request_published_before_anyone_listens_arrives(bus: Arc<dyn Bus>) {
        arrives_later(&*bus, Address::Requests(signer(1))).await;
    }

    pub(super) async fn a_result_published_before_anyone_listens_arrives(bus: Arc<dyn Bus>) {
        arrives_later(&*bus, Address::Results).await;
    }

    pub(super) async fn a_round_published_before_anyone_listens_arrives(bus: Arc<dyn Bus>) {
        arrives_later(&*bus, Address::Rounds(signer(1))).await;
        arrives_later(&*bus, Address::Ceremonies(signer(1))).await;
    }

    async fn arrives_later(bus: &dyn Bus, address: Address) {
        publish(bus, address, "early").await;
        let mut subscription = subscribe(bus, address, 10).await;
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.body, "early");
        delivery.ack();
        assert_silent(&mut subscription).await;
    }

    pub(super) async fn competing_subscribers_share_without_duplicates(bus: Arc<dyn Bus>) {
        for address in [Address::Requests(signer(1)), Address::Results] {
            let mut one = subscribe(&*bus, address, 5).await;
            let mut two = subscribe(&*bus, address, 5).await;
            for n in 0..10_u8 {
                publish(&*bus, address, vec![n]).await;
            }
            // Neither acknowledges, so each gets as many as it may hold.
            let mut held = Vec::new();
            for _ in 0..5 {
                held.push(next(&mut one).await);
                held.push(next(&mut two).await);
            }
            let seen: BTreeSet<u8> = held.iter().map(|delivery| delivery.body[0]).collect();
            assert_eq!(seen, (0..10).collect());
            held.into_iter().for_each(Delivery::ack);
            assert_silent(&mut one).await;
            assert_silent(&mut two).await;
        }
    }

    pub(super) async fn a_dropped_delivery_comes_back(bus: Arc<dyn Bus>) {
        for address in [Address::Requests(signer(1)), Address::Results] {
            let mut subscription = subscribe(&*bus, address, 1).await;
            publish(&*bus, address, "again").await;
            for _ in 0..3 {
                let delivery = next(&mut subscription).await;
                assert_eq!(delivery.body, "again");
                drop(delivery);
            }
            next(&mut subscription).await.ack();
            assert_silent(&mut subscription).await;
        }
    }

    pub(super) async fn a_requeued_delivery_goes_to_whoever_listens(bus: Arc<dyn Bus>) {
        let address = Address::Results;
        let mut one = subscribe(&*bus, address, 1).await;
        publish(&*bus, address, "first").await;
        let held = next(&mut one).await;
        publish(&*bus, address, "second").await;
        let mut two = subscribe(&*bus, address, 2).await;
        // The first subscriber is full.
        let second = next(&mut two).await;
        assert_eq!(second.body, "second");
        drop(one);
        held.settle(tss_common::bus::Settlement::Requeue);
        let first = next(&mut two).await;
        assert_eq!(first.body, "first");
        first.ack();
        second.ack();
        assert_silent(&mut two).await;
    }

    pub(super) async fn a_rejected_delivery_never_comes_back(bus: Arc<dyn Bus>) {
        let address = Address::Requests(signer(1));
        let mut subscription = subscribe(&*bus, address, 10).await;
        publish(&*bus, address, "bad").await;
        publish(&*bus, address, "good").await;
        let bad = next(&mut subscription).await;
        assert_eq!(bad.body, "bad");
        bad.reject();
        let good = next(&mut subscription).await;
        assert_eq!(good.body, "good");
        good.ack();
        assert_silent(&mut subscription).await;
        drop(subscription);
        assert_silent(&mut subscribe(&*bus, address, 10).await).await;
    }

    pub(super) async fn a_message_that_is_never_acknowledged_is_set_aside(bus: Arc<dyn Bus>) {
        let address = Address::Requests(signer(1));
        let mut subscription = subscribe(&*bus, address, 1).await;
        publish(&*bus, address, "poison").await;
        for _ in 0..MAX_DELIVERIES {
            assert_eq!(next(&mut subscription).await.body, "poison");
        }
        assert_silent(&mut subscription).await;
        publish(&*bus, address, "fine").await;
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.body, "fine");
        delivery.ack();
    }

    pub(super) async fn what_a_lost_subscriber_held_goes_to_another(bus: Arc<dyn Bus>) {
        let address = Address::Requests(signer(1));
        let mut lost = subscribe(&*bus, address, 10).await;
        for n in 0..10_u8 {
            publish(&*bus, address, vec![n]).await;
        }
        // It took one and acknowledged one; eight more wait in its hands.
        let held = next(&mut lost).await;
        next(&mut lost).await.ack();
        drop(lost);
        drop(held);
        let mut other = subscribe(&*bus, address, 10).await;
        let mut seen = BTreeSet::new();
        for _ in 0..9 {
            let delivery = next(&mut other).await;
            seen.insert(delivery.body[0]);
            delivery.ack();
        }
        assert_eq!(seen.len(), 9);
        assert!(!seen.contains(&1), "{seen:?}");
        assert_silent(&mut other).await;
    }

    pub(super) async fn a_delivery_can_be_acknowledged_after_the_subscription_is_dropped(bus: Arc<dyn Bus>) {
        let address = Address::Results;
        let mut subscription = subscribe(&*bus, address, 10).await;
        publish(&*bus, address, "one").await;
        let delivery = next(&mut subscription).await;
        drop(subscription);
        let mut other = subscribe(&*bus, address, 10).await;
        assert_silent(&mut other).await;
        delivery.ack();
        assert_silent(&mut other).await;
    }

    pub(super) async fn one_signer_does_not_see_what_is_for_another(bus: Arc<dyn Bus>) {
        for make in [Address::Requests as fn(SignerIndex) -> Address, Address::Rounds] {
            let mut one = subscribe(&*bus, make(signer(1)), 10).await;
            let mut two = subscribe(&*bus, make(signer(2)), 10).await;
            publish(&*bus, make(signer(1)), "for one").await;
            let delivery = next(&mut one).await;
            assert_eq!(delivery.body, "for one");
            delivery.ack();
            assert_silent(&mut two).await;
        }
    }

    pub(super) async fn a_signer_and_its_ceremony_do_not_take_each_others_messages(bus: Arc<dyn Bus>) {
        let [rounds, ceremonies] = [Address::Rounds(signer(1)), Address::Ceremonies(signer(1))];
        for (to, other) in [(rounds, ceremonies), (ceremonies, rounds)] {
            let mut one = subscribe(&*bus, to, 10).await;
            let mut two = subscribe(&*bus, other, 10).await;
            publish(&*bus, to, "mine").await;
            let delivery = next(&mut one).await;
            assert_eq!(delivery.body, "mine");
            delivery.ack();
            assert_silent(&mut two).await;
        }
    }

    pub(super) async fn requests_keep_their_order(bus: Arc<dyn Bus>) {
        keeps_order(&*bus, Address::Requests(signer(1)), 200).await;
    }

    pub(super) async fn rounds_keep_their_order(bus: Arc<dyn Bus>) {
        keeps_order(&*bus, Address::Rounds(signer(1)), 2000).await;
    }

    async fn keeps_order(bus: &dyn Bus, address: Address, count: u32) {
        let mut subscription = subscribe(bus, address, 50).await;
        let publishing = async {
            for n in 0..count {
                publish(bus, address, n.to_be_bytes().to_vec()).await;
            }
        };
        let receiving = async {
            for n in 0..count {
                let delivery = next(&mut subscription).await;
                assert_eq!(delivery.body, n.to_be_bytes()[..]);
                delivery.ack();
            }
        };
        tokio::join!(publishing, receiving);
    }

    pub(super) async fn a_full_inbox_for_rounds_drops_the_oldest(bus: Arc<dyn Bus>) {
        let address = Address::Rounds(signer(1));
        let count = ROUNDS_CAPACITY + 2000;
        for n in 0..count {
            publish(&*bus, address, n.to_be_bytes().to_vec()).await;
        }
        // Nobody confirms rounds: the last of them may still be on their way.
        sleep(A_WHILE).await;
        let mut subscription = subscribe(&*bus, address, 1000).await;
        let mut seen = Vec::new();
        while let Ok(Some(delivery)) = timeout(2 * A_WHILE, subscription.recv()).await {
            seen.push(usize::from_be_bytes(delivery.body[..].try_into().expect("a number")));
        }
        assert!((ROUNDS_CAPACITY..count).contains(&seen.len()), "{}", seen.len());
        assert_eq!(seen, (count - seen.len()..count).collect::<Vec<_>>());
    }

    pub(super) async fn presence_reaches_everyone(bus: Arc<dyn Bus>) {
        let mut everyone = Vec::new();
        for _ in 0..3 {
            everyone.push(subscribe(&*bus, Address::Presence, 10).await);
        }
        for n in 0..5_u8 {
            publish(&*bus, Address::Presence, vec![n]).await;
        }
        for one in &mut everyone {
            for n in 0..5_u8 {
                let delivery = next(one).await;
                assert_eq!(delivery.body, [n][..]);
                delivery.ack();
            }
            assert_silent(one).await;
        }
    }

    pub(super) async fn presence_is_not_kept(bus: Arc<dyn Bus>) {
        publish(&*bus, Address::Presence, "into the void").await;
        let mut subscription = subscribe(&*bus, Address::Presence, 10).await;
        assert_silent(&mut subscription).await;
    }

    pub(super) async fn a_slow_listener_for_presence_holds_up_nobody(bus: Arc<dyn Bus>) {
        let slow = subscribe(&*bus, Address::Presence, 1).await;
        let mut quick = subscribe(&*bus, Address::Presence, 1000).await;
        for n in 0..500_u32 {
            publish(&*bus, Address::Presence, n.to_be_bytes().to_vec()).await;
        }
        for n in 0..500_u32 {
            assert_eq!(next(&mut quick).await.body, n.to_be_bytes()[..]);
        }
        drop(slow);
    }

    pub(super) async fn a_message_that_is_too_long_is_refused(bus: Arc<dyn Bus>) {
        for address in everywhere() {
            let refused = bus.publish(address, vec![0; MAX_MESSAGE + 1].into()).await;
            assert!(
                matches!(refused, Err(BusError::TooLong(length)) if length == MAX_MESSAGE + 1),
                "{refused:?}"
            );
        }
    }

    pub(super) async fn a_subscriber_holds_no_more_than_its_capacity(bus: Arc<dyn Bus>) {
        let address = Address::Requests(signer(1));
        for n in 0..10_u8 {
            publish(&*bus, address, vec![n]).await;
        }
        let mut subscription = subscribe(&*bus, address, 3).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(next(&mut subscription).await);
        }
        assert_silent(&mut subscription).await;
        held.remove(0).ack();
        held.push(next(&mut subscription).await);
        assert_silent(&mut subscription).await;
        held.into_iter().for_each(Delivery::ack);
        for _ in 4..10 {
            next(&mut subscription).await.ack();
        }
    }

    pub(super) async fn the_bus_is_up(bus: Arc<dyn Bus>) {
        assert_eq!(*bus.state().borrow(), BusState::Up);
    }

    pub(super) async fn closing_ends_subscriptions(bus: Arc<dyn Bus>) {
        let mut subscriptions = Vec::new();
        for address in everywhere() {
            subscriptions.push(subscribe(&*bus, address, 10).await);
        }
        publish(&*bus, Address::Results, "held").await;
        let held = next(&mut subscriptions[2]).await;
        let mut state = bus.state();
        timeout(SOON, bus.close()).await.expect("close returns");
        for subscription in &mut subscriptions {
            let ended = timeout(SOON, subscription.recv()).await.expect("the subscription ends");
            assert!(ended.is_none());
        }
        held.ack();
        assert!(matches!(*state.borrow_and_update(), BusState::Down(_)));
        for address in everywhere() {
            let refused = bus.publish(address, "late".into()).await;
            assert!(matches!(refused, Err(BusError::Down(_))), "{refused:?}");
            assert!(matches!(bus.subscribe(address, 1).await, Err(BusError::Down(_))));
        }
        // Once more does no harm.
        timeout(SOON, bus.close()).await.expect("close returns again");
    }

    pub(super) async fn bodies_of_any_size_arrive_unchanged(bus: Arc<dyn Bus>) {
        let bodies: Vec<Bytes> = [0, 1, 255, 4096, 131_064, 131_065, 200_000, MAX_MESSAGE]
            .into_iter()
            .map(|length| (0..length).map(|i| (i % 251) as u8 ^ (i >> 8) as u8).collect())
            .collect();
        for address in everywhere() {
            let mut subscription = subscribe(&*bus, address, 10).await;
            for body in &bodies {
                publish(&*bus, address, body.clone()).await;
                let delivery = next(&mut subscription).await;
                assert!(delivery.body == *body, "{address:?}: {} bytes", body.len());
                delivery.ack();
            }
        }
    }

    pub(super) async fn durable_messages_from_many_tasks_arrive_exactly_once(bus: Arc<dyn Bus>) {
        from_many_tasks(bus, Address::Results).await;
    }

    pub(super) async fn rounds_from_many_tasks_arrive_exactly_once(bus: Arc<dyn Bus>) {
        from_many_tasks(bus, Address::Rounds(signer(1))).await;
    }

    async fn from_many_tasks(bus: Arc<dyn Bus>, address: Address) {
        const COUNT: u32 = 2000;
        const TASKS: u32 = 32;
        let mut subscription = subscribe(&*bus, address, 100).await;
        let publishers: Vec<_> = (0..TASKS)
            .map(|task| {
                let bus = Arc::clone(&bus);
                tokio::spawn(async move {
                    for n in (task..COUNT).step_by(TASKS as usize) {
                        publish(&*bus, address, n.to_be_bytes().to_vec()).await;
                    }
                })
            })
            .collect();
        let mut seen = BTreeSet::new();
        for _ in 0..COUNT {
            let delivery = next(&mut subscription).await;
            assert!(seen.insert(number(&delivery)), "twice");
            delivery.ack();
        }
        for publisher in publishers {
            publisher.await.expect("published");
        }
        assert_eq!(seen, (0..COUNT).collect());
        assert_silent(&mut subscription).await;
    }
}

/// One address of each kind.
fn everywhere() -> [Address; 4] {
    [Address::Requests(signer(1)), Address::Rounds(signer(1)), Address::Results, Address::Presence]
}

fn signer(index: u8) -> SignerIndex {
    SignerIndex::new(index).expect("a valid index")
}

async fn publish(bus: &dyn Bus, to: Address, body: impl Into<Bytes>) {
    bus.publish(to, body.into()).await.expect("published");
}

async fn subscribe(bus: &dyn Bus, at: Address, capacity: u16) -> Subscription {
    bus.subscribe(at, capacity).await.expect("subscribed")
}

/// The next message, which must come soon.
async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(SOON, subscription.recv()).await.expect("a message in time").expect("an open subscription")
}

/// No message comes.
async fn assert_silent(subscription: &mut Subscription) {
    if let Ok(delivery) = timeout(A_WHILE, subscription.recv()).await {
        panic!("expected no message, got {:?}", delivery.map(|delivery| delivery.body.len()));
    }
}

/// A body as a number.
fn number(delivery: &Delivery) -> u32 {
    u32::from_be_bytes(delivery.body[..].try_into().expect("four bytes"))
}

async fn wait_until(bus: &dyn Bus, mut is: impl FnMut(&BusState) -> bool) {
    let mut state = bus.state();
    timeout(SOON, state.wait_for(|state| is(state))).await.expect("a state in time").expect("a bus");
}

async fn wait_until_listening(bus: &dyn Bus, listening: bool) {
    let waiting = async {
        while bus.is_listening() != listening {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, waiting).await.expect("the subscriptions start or end");
}

fn is_up(state: &BusState) -> bool {
    *state == BusState::Up
}

fn is_down(state: &BusState) -> bool {
    matches!(state, BusState::Down(_))
}

mod memory_only {
    use super::*;

    #[tokio::test]
    async fn dead_letters_can_be_looked_at() {
        let bus = MemoryBus::new();
        let address = Address::Results;
        let mut subscription = subscribe(&*bus, address, 1).await;
        publish(&*bus, address, "bad").await;
        next(&mut subscription).await.reject();
        publish(&*bus, address, "poison").await;
        for _ in 0..MAX_DELIVERIES {
            drop(next(&mut subscription).await);
        }
        assert_silent(&mut subscription).await;
        let dead: Vec<_> =
            bus.dead_letters().into_iter().map(|dead| (dead.to, dead.body, dead.reason)).collect();
        let expected = [
            (address, Bytes::from("bad"), DeadReason::Rejected),
            (address, Bytes::from("poison"), DeadReason::TooManyDeliveries),
        ];
        assert_eq!(dead, expected);
    }

    #[tokio::test]
    async fn dropping_the_bus_ends_subscriptions() {
        let bus = MemoryBus::new();
        let mut subscriptions = Vec::new();
        for address in everywhere() {
            subscriptions.push(subscribe(&*bus, address, 1).await);
        }
        drop(bus);
        for subscription in &mut subscriptions {
            assert!(timeout(SOON, subscription.recv()).await.expect("the subscription ends").is_none());
        }
    }
}

/// RabbitMQ, and a cluster on it that no other test uses.
#[derive(Clone)]
struct Broker {
    uri: lapin::uri::AMQPUri,
    cluster: String,
    admin: Arc<lapin::Connection>,
}

impl Broker {
    /// Runs a test on a cluster of its own, of which nothing is left afterwards.
    async fn run<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(Self) -> F) {
        let broker = Self::reach().await;
        let outcome = tokio::spawn(test(broker.clone())).await;
        broker.clean_up().await;
        if let Err(failed) = outcome {
            std::panic::resume_unwind(failed.into_panic());
        }
    }

    async fn reach() -> Self {
        let text = std::env::var("RABBITMQ_URI").unwrap_or_else(|_| "amqp://localhost:5672".into());
        let uri: lapin::uri::AMQPUri = text.parse().expect("RABBITMQ_URI is a URI");
        let (host, port) = (&uri.authority.host, uri.authority.port);
        let connecting = lapin::Connection::connect(&text, lapin::ConnectionProperties::default());
        let connected = match timeout(Duration::from_secs(10), connecting).await {
            Ok(connected) => connected.map_err(|error| error.to_string()),
            Err(_) => Err("timed out".into()),
        };
        let admin = connected.unwrap_or_else(|error| {
            panic!(
                "RabbitMQ at {host}:{port} is not reachable: set RABBITMQ_URI or run tests/run services ({error})"
            )
        });
        let cluster = format!("test-{}", uuid::Uuid::new_v4().simple());
        Self { uri, cluster, admin: Arc::new(admin) }
    }

    async fn clean_up(&self) {
        for queue in ["requests.1", "requests.2", "rounds.1", "rounds.2", "results", "dead"] {
            let channel = self.admin.create_channel().await.expect("a channel");
            let _ = channel.queue_delete(self.name(queue), Default::default()).await;
        }
        for exchange in ["requests", "rounds", "results", "presence", "dead"] {
            let channel = self.admin.create_channel().await.expect("a channel");
            let _ = channel.exchange_delete(self.name(exchange), Default::default()).await;
        }
        let _ = self.admin.close(200, "done".into()).await;
    }

    /// What something of this cluster is called.
    fn name(&self, of: &str) -> lapin::types::ShortString {
        format!("tss.{}.{of}", self.cluster).into()
    }

    /// A bus that is up.
    async fn bus(&self) -> Arc<RabbitBus> {
        let bus = self.connect(self.uri.to_string());
        wait_until(&*bus, is_up).await;
        bus
    }

    /// A bus that need not be up.
    fn connect(&self, uri: String) -> Arc<RabbitBus> {
        let options =
            RabbitOptions { uri, cluster: self.cluster.clone(), connection_name: "bus_contract".into() };
        RabbitBus::connect(options).expect("a well-formed URI")
    }

    /// `host:port`.
    fn server(&self) -> String {
        format!("{}:{}", self.uri.authority.host, self.uri.authority.port)
    }

    /// The URI by way of a proxy, with a heartbeat in seconds.
    fn through(&self, proxy: &proxy::Proxy, heartbeat: u16) -> String {
        let mut uri = self.uri.clone();
        uri.authority.host = "127.0.0.1".into();
        uri.authority.port = proxy.port();
        uri.query.heartbeat = Some(heartbeat);
        uri.to_string()
    }

    /// Takes a message from a queue.
    async fn fetch(&self, queue: &str) -> Option<lapin::message::BasicGetMessage> {
        let channel = self.admin.create_channel().await.expect("a channel");
        let options = lapin::options::BasicGetOptions { no_ack: true };
        channel.basic_get(self.name(queue), options).await.expect("fetched")
    }
}

mod rabbitmq_only {
    use super::*;
    use crate::proxy::Proxy;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cut_connection_comes_back_with_what_was_not_acknowledged() {
        Broker::run(|broker| async move {
            let mut proxy = Proxy::open(broker.server()).await;
            let bus = broker.connect(broker.through(&proxy, 10));
            wait_until(&*bus, is_up).await;
            let address = Address::Requests(signer(1));
            let mut requests = subscribe(&*bus, address, 10).await;
            let mut rounds = subscribe(&*bus, Address::Rounds(signer(1)), 10).await;
            let mut presence = subscribe(&*bus, Address::Presence, 10).await;
            publish(&*bus, address, "done").await;
            next(&mut requests).await.ack();
            publish(&*bus, address, "not done").await;
            let held = next(&mut requests).await;
            // So that the acknowledgement is not what is cut.
            sleep(A_WHILE).await;

            proxy.cut().await;
            wait_until(&*bus, is_down).await;
            for address in everywhere() {
                let refused = bus.publish(address, "lost".into()).await;
                assert!(matches!(refused, Err(BusError::Down(_) | BusError::Unconfirmed(_))), "{refused:?}");
            }
            // This says nothing to the broker any more.
            held.ack();

            wait_until_listening(&*bus, false).await;
            proxy.restore().await;
            wait_until(&*bus, is_up).await;
            let again = next(&mut requests).await;
            assert_eq!(again.body, "not done");
            again.ack();
            publish(&*bus, address, "more").await;
            let more = next(&mut requests).await;
            assert_eq!(more.body, "more");
            more.ack();
            publish(&*bus, Address::Rounds(signer(1)), "round").await;
            assert_eq!(next(&mut rounds).await.body, "round");
            // Subscriptions come back one by one, and presence is not kept for one that is not back.
            let heard = async {
                loop {
                    publish(&*bus, Address::Presence, "here").await;
                    if timeout(A_WHILE, presence.recv()).await.is_ok_and(|delivery| delivery.is_some()) {
                        break;
                    }
                }
            };
            timeout(SOON, heard).await.expect("presence is heard again");
            assert!(bus.is_listening());
            drop(presence);
            assert_silent(&mut requests).await;
            // Who has left need not start again.
            assert!(bus.is_listening());
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_that_was_confirmed_is_lost_however_often_the_connection_is_cut() {
        Broker::run(|broker| async move {
            let mut proxy = Proxy::open(broker.server()).await;
            let bus = broker.connect(broker.through(&proxy, 10));
            wait_until(&*bus, is_up).await;
            let mut subscription = subscribe(&*bus, Address::Results, 20).await;
            let until = Instant::now() + Duration::from_secs(8);
            let publishers: Vec<_> = (0..8_u32)
                .map(|task| {
                    let bus = Arc::clone(&bus);
                    tokio::spawn(async move {
                        let mut confirmed = BTreeSet::new();
                        let mut n = task << 24;
                        while Instant::now() < until {
                            n += 1;
                            match bus.publish(Address::Results, n.to_be_bytes().to_vec().into()).await {
                                Ok(()) => assert!(confirmed.insert(n)),
                                Err(_) => sleep(Duration::from_millis(20)).await,
                            }
                        }
                        confirmed
                    })
                })
                .collect();
            let receiving = tokio::spawn(async move {
                let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
                while let Ok(Some(delivery)) = timeout(Duration::from_secs(5), subscription.recv()).await {
                    *seen.entry(number(&delivery)).or_default() += 1;
                    delivery.ack();
                }
                seen
            });
            for _ in 0..4 {
                sleep(Duration::from_millis(700)).await;
                proxy.cut().await;
                sleep(Duration::from_millis(300)).await;
                proxy.restore().await;
                wait_until(&*bus, is_up).await;
            }
            let mut confirmed = BTreeSet::new();
            for publisher in publishers {
                confirmed.extend(publisher.await.expect("published"));
            }
            let seen = receiving.await.expect("received");
            let lost: Vec<_> = confirmed.iter().filter(|n| !seen.contains_key(n)).collect();
            assert!(lost.is_empty(), "{} of {} confirmed messages were lost", lost.len(), confirmed.len());
            assert!(confirmed.len() > 500, "{}", confirmed.len());
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_appears_later_is_found() {
        Broker::run(|broker| async move {
            let mut proxy = Proxy::cut_off(broker.server()).await;
            let bus = broker.connect(broker.through(&proxy, 10));
            assert!(is_down(&bus.state().borrow()));
            let mut subscription = subscribe(&*bus, Address::Results, 10).await;
            sleep(A_WHILE).await;
            assert!(is_down(&bus.state().borrow()));
            let refused = bus.publish(Address::Results, "early".into()).await;
            assert!(matches!(refused, Err(BusError::Down(_))), "{refused:?}");
            assert!(!bus.is_listening());
            proxy.restore().await;
            wait_until(&*bus, is_up).await;
            wait_until_listening(&*bus, true).await;
            publish(&*bus, Address::Results, "found").await;
            let delivery = next(&mut subscription).await;
            assert_eq!(delivery.body, "found");
            delivery.ack();
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_that_falls_silent_is_given_up() {
        Broker::run(|broker| async move {
            let proxy = Proxy::open(broker.server()).await;
            let bus = broker.connect(broker.through(&proxy, 1));
            wait_until(&*bus, is_up).await;
            publish(&*bus, Address::Results, "heard").await;
            proxy.freeze(true);
            let began = Instant::now();
            let refused = bus.publish(Address::Results, "unheard".into()).await;
            assert!(matches!(refused, Err(BusError::Unconfirmed(_) | BusError::Down(_))), "{refused:?}");
            assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
            wait_until(&*bus, is_down).await;
            proxy.freeze(false);
            wait_until(&*bus, is_up).await;
            publish(&*bus, Address::Results, "heard again").await;
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_message_that_no_queue_takes_is_not_confirmed_and_the_next_one_is() {
        Broker::run(|broker| async move {
            let bus = broker.bus().await;
            let address = Address::Requests(signer(1));
            publish(&*bus, address, "one").await;
            let channel = broker.admin.create_channel().await.expect("a channel");
            channel.queue_delete(broker.name("requests.1"), Default::default()).await.expect("deleted");
            let lost = bus.publish(address, "two".into()).await;
            assert!(matches!(lost, Err(BusError::Unconfirmed(_))), "{lost:?}");
            publish(&*bus, address, "three").await;
            let mut subscription = subscribe(&*bus, address, 10).await;
            let delivery = next(&mut subscription).await;
            assert_eq!(delivery.body, "three");
            delivery.ack();

            // Without its exchange, a message ends the channel it was sent on.
            channel.exchange_delete(broker.name("requests"), Default::default()).await.expect("deleted");
            let lost = bus.publish(address, "four".into()).await;
            assert!(matches!(lost, Err(BusError::Unconfirmed(_))), "{lost:?}");
            publish(&*bus, address, "five").await;
            let delivery = next(&mut subscription).await;
            assert_eq!(delivery.body, "five");
            delivery.ack();
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn among_many_messages_under_way_the_ones_that_go_nowhere_are_told_apart() {
        Broker::run(|broker| async move {
            let bus = broker.bus().await;
            let (kept, lost) = (Address::Requests(signer(1)), Address::Requests(signer(2)));
            publish(&*bus, kept, "first").await;
            publish(&*bus, lost, "first").await;
            let channel = broker.admin.create_channel().await.expect("a channel");
            // A failure makes the next message declare everything anew, which mends what is missing: so
            // some are lost in each turn and some are not, and each must be told correctly.
            let mut stored = 0;
            for _ in 0..20 {
                publish(&*bus, lost, "before").await;
                stored += 1;
                let (queue, exchange) = (broker.name("requests.2"), broker.name("requests"));
                channel.queue_unbind(queue, exchange, "2".into(), Default::default()).await.expect("unbound");
                let publishing = (0..40).map(|n| {
                    let bus = Arc::clone(&bus);
                    tokio::spawn(async move {
                        let to = if n % 2 == 0 { kept } else { lost };
                        (to, bus.publish(to, "message".into()).await.is_ok())
                    })
                });
                let mut failed = 0;
                for published in publishing.collect::<Vec<_>>() {
                    match published.await.expect("published") {
                        (to, ok) if to == kept => assert!(ok),
                        (_, true) => stored += 1,
                        (_, false) => failed += 1,
                    }
                }
                assert!(failed > 0);
            }
            let mut subscription = subscribe(&*bus, lost, 10).await;
            for _ in 0..stored + 1 {
                next(&mut subscription).await.ack();
            }
            assert_silent(&mut subscription).await;
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_message_that_is_too_long_is_not_passed_on() {
        Broker::run(|broker| async move {
            let bus = broker.bus().await;
            let mut requests = subscribe(&*bus, Address::Requests(signer(1)), 10).await;
            let mut rounds = subscribe(&*bus, Address::Rounds(signer(1)), 10).await;
            let channel = broker.admin.create_channel().await.expect("a channel");
            for exchange in ["requests", "rounds"] {
                let body = vec![0; MAX_MESSAGE + 1];
                let (exchange, options) = (broker.name(exchange), Default::default());
                channel
                    .basic_publish(exchange, "1".into(), options, &body, Default::default())
                    .await
                    .expect("published");
            }
            publish(&*bus, Address::Requests(signer(1)), "short").await;
            publish(&*bus, Address::Rounds(signer(1)), "short").await;
            let delivery = next(&mut requests).await;
            assert_eq!(delivery.body, "short");
            delivery.ack();
            assert_eq!(next(&mut rounds).await.body, "short");
            assert_eq!(bus.oversized(), 2);
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dead_letters_are_kept_on_the_broker() {
        Broker::run(|broker| async move {
            let bus = broker.bus().await;
            let mut subscription = subscribe(&*bus, Address::Results, 1).await;
            publish(&*bus, Address::Results, "bad").await;
            next(&mut subscription).await.reject();
            publish(&*bus, Address::Results, "poison").await;
            for _ in 0..MAX_DELIVERIES {
                drop(next(&mut subscription).await);
            }
            assert_silent(&mut subscription).await;
            for expected in ["bad", "poison"] {
                let dead = broker.fetch("dead").await.expect("a dead letter");
                assert_eq!(dead.delivery.data, expected.as_bytes());
            }
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn closing_forgets_no_acknowledgement() {
        Broker::run(|broker| async move {
            for _ in 0..10 {
                let bus = broker.bus().await;
                let mut subscription = subscribe(&*bus, Address::Results, 10).await;
                publish(&*bus, Address::Results, "once").await;
                next(&mut subscription).await.ack();
                bus.close().await;
            }
            let bus = broker.bus().await;
            let mut subscription = subscribe(&*bus, Address::Results, 10).await;
            assert_silent(&mut subscription).await;
            bus.close().await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_buses_of_different_clusters_do_not_meet() {
        Broker::run(|one| async move {
            Broker::run(|two| async move {
                let (bus, other) = (one.bus().await, two.bus().await);
                for address in everywhere() {
                    let mut there = subscribe(&*other, address, 10).await;
                    let mut here = subscribe(&*bus, address, 10).await;
                    publish(&*bus, address, "here").await;
                    next(&mut here).await.ack();
                    assert_silent(&mut there).await;
                }
                bus.close().await;
                other.close().await;
            })
            .await;
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dropping_the_bus_ends_subscriptions() {
        Broker::run(|broker| async move {
            let bus = broker.bus().await;
            let mut subscription = subscribe(&*bus, Address::Results, 10).await;
            drop(bus);
            assert!(timeout(SOON, subscription.recv()).await.expect("the subscription ends").is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn a_refused_password_is_not_repeated() {
        Broker::run(|broker| async move {
            let mut uri = broker.uri.clone();
            uri.authority.userinfo.username = "nobody".into();
            uri.authority.userinfo.password = "hunter2".into();
            let bus = broker.connect(uri.to_string());
            wait_until(&*bus, |state| matches!(state, BusState::Down(why) if why.contains("ACCESS"))).await;
            assert!(!format!("{:?} {bus:?}", bus.state().borrow()).contains("hunter2"));
            bus.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_malformed_uri_is_refused() {
        for uri in [
            "",
            "localhost",
            "http://user:hunter2@localhost",
            "amqp:user:hunter2@localhost",
            "amqp://user:hunter2@localhost:port",
            "amqp://user:hunter2@localhost:99999",
            "amqp://user:hunter2@[::1",
            "amqp://user:hunter2@localhost/%2f?heartbeat=often",
        ] {
            let options = RabbitOptions { uri: uri.into(), cluster: "c".into(), connection_name: "n".into() };
            let refused = RabbitBus::connect(options).expect_err("refused");
            assert!(matches!(refused, RabbitError::Uri(_)), "{refused:?}");
            assert!(!refused.to_string().contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn without_a_runtime_there_is_no_bus() {
        let options = RabbitOptions {
            uri: "amqp://localhost".into(),
            cluster: "c".into(),
            connection_name: "n".into(),
        };
        assert_eq!(RabbitBus::connect(options).err(), Some(RabbitError::NoRuntime));
    }
}
