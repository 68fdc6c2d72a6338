//! What becomes of requests when a part of the network fails and comes back.
//!
//! Manager and signers are processes of their own; RabbitMQ and MongoDB are real, and cut off by a proxy
//! in front of them.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, SemaphorePermit};

#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/installation.rs"]
mod processes;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/proxy.rs"]
mod proxy;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "support/server.rs"]
mod server;

use processes::{Installation, Process, START, get, mongodb_uri, post, rabbitmq_uri};
use proxy::Proxy;
use server::Server;

/// How long everything together may take to recover.
const RECOVERY: Duration = Duration::from_secs(90);

/// How much memory a signer may hold when it has nothing to do.
const IDLE_SIGNER: u64 = 64 << 20;

/// How many networks run at the same time.
static NETWORKS: Semaphore = Semaphore::const_new(2);

async fn turn() -> SemaphorePermit<'static> {
    NETWORKS.acquire().await.unwrap()
}

/// A URI as `host:port` of its server and what stands before and after that.
fn split(uri: &str, default_port: u16) -> (String, String, String) {
    let (scheme, rest) = uri.split_once("://").expect("a URI");
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (format!("{user}@"), host),
        None => (String::new(), authority),
    };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let server = if has_port { host.to_owned() } else { format!("{host}:{default_port}") };
    (format!("{scheme}://{user}"), server, path.to_owned())
}

/// A proxy in front of RabbitMQ that is still cut; the network uses it.
async fn cut_off_rabbitmq(installation: &mut Installation) -> Proxy {
    let (before, server, after) = split(&rabbitmq_uri(), 5672);
    let proxy = Proxy::cut_off(server).await;
    installation.set("TSS_RABBITMQ_URI", &format!("{before}127.0.0.1:{}{after}", proxy.port()));
    proxy
}

/// A proxy in front of MongoDB that is still cut; the network uses it.
async fn cut_off_mongodb(installation: &mut Installation) -> Proxy {
    let (before, server, after) = split(&mongodb_uri(), 27017);
    let proxy = Proxy::cut_off(server).await;
    // Otherwise the driver would ask the server for its own address, and use that.
    let after = match after.as_str() {
        "" => "/?directConnection=true".to_owned(),
        path if path.contains('?') => format!("{path}&directConnection=true"),
        path => format!("{path}?directConnection=true"),
    };
    installation.set("TSS_MONGODB_URI", &format!("{before}127.0.0.1:{}{after}", proxy.port()));
    proxy
}

/// Status and text of a GET.
async fn text(url: &str) -> Option<(u16, String)> {
    let response = reqwest::get(url).await.ok()?;
    Some((response.status().as_u16(), response.text().await.ok()?))
}

/// Asks again and again until `found` finds something in the answer.
async fn until<T, A: std::fmt::Debug, F: Future<Output = A>>(
    what: &str,
    processes: &[&Process],
    ask: impl Fn() -> F,
    found: impl Fn(&A) -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        let answer = ask().await;
        if let Some(found) = found(&answer) {
            return found;
        }
        if began.elapsed() > RECOVERY {
            let logs: Vec<String> = processes.iter().map(|process| process.log()).collect();
            panic!("{what}: not after {RECOVERY:?}, {answer:?}\n{}", logs.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until `/health` says something.
async fn until_health(
    what: &str,
    installation: &Installation,
    processes: &[&Process],
    is: impl Fn(&Value) -> bool,
) {
    let url = format!("{}/health", installation.url());
    until(
        what,
        processes,
        || get(&url),
        |answer| answer.as_ref().filter(|(_, health)| is(health)).map(|_| ()),
    )
    .await;
}

async fn until_logged(process: &Process, part: &str) {
    until(part, &[process], || async {}, |()| process.log().contains(part).then_some(())).await;
}

/// Asks for a signature; yields the request's id if it was accepted.
async fn submit(installation: &Installation, message: &str) -> Option<String> {
    let (status, _, body) =
        post(&format!("{}/sign", installation.url()), &json!({"message": message})).await?;
    (status == 201).then(|| body["request_id"].as_str().expect("an id").to_owned())
}

/// A request that was accepted: id and message.
type Accepted = (String, String);

/// Makes requests that must be accepted.
async fn submit_all(
    installation: &Installation,
    messages: impl IntoIterator<Item = String>,
) -> Vec<Accepted> {
    let requests = messages
        .into_iter()
        .map(|message| async move { (submit(installation, &message).await.expect("accepted"), message) });
    futures::future::join_all(requests).await
}

/// Waits until all requests are signed, and checks the signatures.
async fn until_signed(
    installation: &Installation,
    accepted: &[Accepted],
    processes: &[&Process],
) -> Vec<Value> {
    let signatures = accepted.iter().map(|(id, message)| async move {
        let url = format!("{}/signature/{id}?wait=10s", installation.url());
        let (status, signed) = until(
            &format!("request {id}"),
            processes,
            || get(&url),
            |answer| answer.clone().filter(|(status, _)| !matches!(status, 202 | 503)),
        )
        .await;
        if status != 200 {
            let logs: Vec<String> = processes.iter().map(|process| process.log()).collect();
            panic!("request {id}: {status} {signed}\n{}", logs.join("\n"));
        }
        assert_signs(&signed, message);
        signed
    });
    futures::future::join_all(signatures).await
}

fn assert_signs(signed: &Value, message: &str) {
    use k256::ecdsa::{Signature, VerifyingKey, signature::hazmat::PrehashVerifier as _};
    let bytes = |name: &str| hex::decode(signed[name].as_str().unwrap()).unwrap();
    let key = VerifyingKey::from_sec1_bytes(&bytes("public_key")).unwrap();
    let signature = Signature::from_slice(&bytes("compact")).unwrap();
    key.verify_prehash(&Sha256::digest(message), &signature).unwrap();
}

async fn status(installation: &Installation, id: &str) -> Value {
    get(&format!("{}/status/{id}", installation.url())).await.expect("the manager answers").1
}

fn quorum(status: &Value) -> BTreeSet<u64> {
    status["quorum"].as_array().expect("a quorum").iter().map(|index| index.as_u64().unwrap()).collect()
}

/// The sum of a manager's metric.
async fn metric(installation: &Installation, name: &str) -> f64 {
    let (_, metrics) = text(&format!("{}/metrics", installation.url())).await.expect("the manager answers");
    let values = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    values.map(|value| value.parse::<f64>().unwrap()).sum()
}

async fn assert_unavailable(installation: &Installation, part: &str) {
    let (status, headers, problem) =
        post(&format!("{}/sign", installation.url()), &json!({"message": "refused"})).await.unwrap();
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (503, "application/problem+json"),
        "{problem}"
    );
    assert_eq!(problem["type"], "urn:tss-network:problem:unavailable");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(part)), "{problem}");
    assert!(headers["retry-after"].to_str().unwrap().parse::<u32>().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_start_first_wait_for_rabbitmq_and_mongodb() {
    let _turn = turn().await;
    let mut installation = Installation::new();
    installation.keygen();
    let mut rabbitmq = cut_off_rabbitmq(&mut installation).await;
    let mut mongodb = cut_off_mongodb(&mut installation).await;
    let manager = installation.start("manager", &[]);
    let signers = installation.start("signer", &[]);
    let both = [&manager, &signers];
    let (ready, store, bus) = (
        format!("{}/readyz", installation.url()),
        "the store is unreachable",
        "the message bus is unreachable",
    );
    let says = |answer: &Option<(u16, String)>, has: &[&str], lacks: &[&str]| {
        let (status, text) = answer.as_ref()?;
        let fits = *status == 503
            && has.iter().all(|part| text.contains(part))
            && !lacks.iter().any(|part| text.contains(part));
        fits.then_some(())
    };
    until("both are missing", &both, || text(&ready), |answer| says(answer, &[store, bus], &[])).await;
    for process in both {
        until_logged(process, "no connection to RabbitMQ").await;
        until_logged(process, "retry_in_ms").await;
    }
    until_logged(&manager, "the store is not ready; trying again").await;
    let (alive, _) = text(&format!("{}/livez", installation.url())).await.unwrap();
    assert_eq!(alive, 200);

    rabbitmq.restore().await;
    until("MongoDB is missing", &both, || text(&ready), |answer| says(answer, &[store], &[bus])).await;
    mongodb.restore().await;
    installation.until_healthy(&both).await;
    let accepted = submit_all(&installation, ["at last".to_owned()]).await;
    until_signed(&installation, &accepted, &both).await;
    installation.clean_up().await;
}

/// What was accepted before a server goes away is signed when it is back; meanwhile nothing is accepted.
async fn outage(part: &str, cut_off: impl AsyncFn(&mut Installation) -> Proxy, refusal: &str) {
    let _turn = turn().await;
    let mut installation = Installation::new();
    installation.keygen();
    installation.set("TSS_SIGNING_TIMEOUT", "60");
    let mut proxy = cut_off(&mut installation).await;
    proxy.restore().await;
    let (manager, signers) = (installation.start("manager", &[]), installation.start("signer", &[]));
    let both = [&manager, &signers];
    installation.until_healthy(&both).await;

    for round in 0..2 {
        // The answer to the last one comes right before the cut.
        let accepted =
            submit_all(&installation, (0..10).map(|number| format!("{part} {round} {number}"))).await;
        proxy.cut().await;
        until_health("the outage", &installation, &both, |health| health[part] == "down").await;
        let (status, health) = get(&format!("{}/health", installation.url())).await.unwrap();
        assert_eq!((status, &health["status"]), (503, &json!("unavailable")), "{health}");
        // Those who watch are told so.
        let (status, overview) = get(&format!("{}/overview", installation.url())).await.unwrap();
        assert_eq!((status, &overview[part]), (200, &json!("down")), "{overview}");
        assert_unavailable(&installation, refusal).await;
        proxy.restore().await;
        until_signed(&installation, &accepted, &both).await;
        installation.until_healthy(&both).await;
    }
    let after = submit_all(&installation, ["afterwards".to_owned()]).await;
    until_signed(&installation, &after, &both).await;
    assert_eq!(metric(&installation, "tss_requests_total{outcome=\"failed\"}").await, 0.0);
    installation.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_rabbitmq_loses_no_request() {
    outage("bus", cut_off_rabbitmq, "the message bus is unreachable").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_mongodb_loses_no_request() {
    outage("store", cut_off_mongodb, "the store is unreachable").await;
}

/// Without its indexes a database lets an idempotency key be used twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mongodb_that_comes_back_empty_has_its_indexes_before_a_request_is_accepted() {
    let _turn = turn().await;
    let mut installation = Installation::new();
    installation.keygen();
    let mut proxy = cut_off_mongodb(&mut installation).await;
    proxy.restore().await;
    let (manager, signers) = (installation.start("manager", &[]), installation.start("signer", &[]));
    let both = [&manager, &signers];
    installation.until_healthy(&both).await;

    let client = mongodb::Client::with_uri_str(mongodb_uri()).await.unwrap();
    let database = client.database(installation.cluster());
    proxy.cut().await;
    until_health("the outage", &installation, &both, |health| health["store"] == "down").await;
    database.drop().await.unwrap();
    proxy.restore().await;
    installation.until_healthy(&both).await;
    let requests = database.collection::<mongodb::bson::Document>("signing_requests");
    let indexes = requests.list_index_names().await.unwrap();
    assert!(indexes.contains(&"idempotency_keys".to_owned()), "{indexes:?}");
    let after = submit_all(&installation, ["afterwards".to_owned()]).await;
    until_signed(&installation, &after, &both).await;
    installation.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_restart_of_rabbitmq_loses_no_request() {
    const REQUESTS: usize = 50;
    let _turn = turn().await;
    let broker = Server::rabbitmq().await;
    let mut installation = Installation::new();
    installation.keygen();
    installation.set("TSS_SIGNING_TIMEOUT", "120");
    installation.set("TSS_RABBITMQ_URI", &broker.uri());
    let (manager, signers) = (installation.start("manager", &[]), installation.start("signer", &[]));
    let both = [&manager, &signers];
    installation.until_healthy(&both).await;

    // A stream of requests: one that is refused is made again, as a caller does.
    let installation = Arc::new(installation);
    let (count, mut counted) = tokio::sync::watch::channel(0);
    let stream = tokio::spawn({
        let installation = installation.clone();
        async move {
            let (mut accepted, mut refused) = (Vec::new(), 0);
            while accepted.len() < REQUESTS {
                let message = format!("request {}", accepted.len());
                match submit(&installation, &message).await {
                    Some(id) => accepted.push((id, message)),
                    None => {
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
                count.send_replace(accepted.len());
            }
            (accepted, refused)
        }
    });
    counted.wait_for(|&accepted| accepted >= REQUESTS / 2).await.unwrap();
    broker.stop().await;
    broker.start().await;
    let (accepted, refused) = stream.await.unwrap();
    assert!(refused > 0, "the restart fell into the stream");
    until_signed(&installation, &accepted, &both).await;
    installation.until_healthy(&both).await;
    assert_eq!(metric(&installation, "tss_requests_accepted_total").await, REQUESTS as f64);
    assert_eq!(metric(&installation, "tss_requests_total{outcome=\"completed\"}").await, REQUESTS as f64);
    drop((manager, signers));
    broker.stop().await;
    Arc::into_inner(installation).unwrap().clean_up().await;
}

/// A manager that dies leaves no request behind, nor does one that starts in its place do one twice.
async fn manager_dies(store: &str) {
    const REQUESTS: usize = 30;
    let _turn = turn().await;
    let mut installation = Installation::new();
    installation.keygen();
    installation.set("TSS_SIGNING_TIMEOUT", "120");
    installation.set("TSS_STORE", store);
    let (manager, signers) = (installation.start("manager", &[]), installation.start("signer", &[]));
    installation.until_healthy(&[&manager, &signers]).await;
    let url = format!("{}/sign", installation.url());
    let client = reqwest::Client::new();
    let make = async |number: usize| {
        let message = format!("message {number}");
        let request = client.post(&url).header("idempotency-key", number.to_string());
        let answer = request.json(&json!({"message": message})).send().await.expect("an answer");
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        (status, (body["request_id"].as_str().unwrap_or_default().to_owned(), message))
    };
    let mut accepted = Vec::new();
    for number in 0..REQUESTS {
        if number == REQUESTS / 2 {
            // From here on no request is done before the manager dies.
            until_signed(&installation, &accepted[..5], &[&manager, &signers]).await;
            signers.signal("STOP");
        }
        let (status, request) = make(number).await;
        assert_eq!(status, 201);
        accepted.push(request);
    }
    let before = until_signed(&installation, &accepted[..5], &[&manager, &signers]).await;
    manager.kill();

    let manager = installation.start("manager", &[]);
    signers.signal("CONT");
    let both = [&manager, &signers];
    installation.until_healthy(&both).await;
    let signed = until_signed(&installation, &accepted, &both).await;
    assert_eq!(signed[..5], before, "what was signed before stays as it is");
    let taken_over = metric(&installation, "tss_requests_taken_over_total").await;
    assert!(taken_over >= (REQUESTS / 2) as f64, "{taken_over}");
    assert_eq!(metric(&installation, "tss_requests_total{outcome=\"completed\"}").await, taken_over);
    for (number, request) in accepted.iter().enumerate() {
        let (status, again) = make(number).await;
        assert_eq!((status, &again), (200, request), "the caller's own second try finds the request");
    }
    assert_eq!(until_signed(&installation, &accepted, &both).await, signed);
    assert_eq!(metric(&installation, "tss_requests_accepted_total").await, 0.0);
    installation.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_dies_leaves_no_request_behind_in_mongodb() {
    manager_dies("mongodb").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_dies_leaves_no_request_behind_in_its_own_file() {
    manager_dies("embedded").await;
}

/// A manager and three signers in processes of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_for_a_request_do_not_hold_up_a_manager_that_stops() {
    let _turn = turn().await;
    let installation = Installation::new();
    installation.keygen();
    let manager = installation.start("manager", &[]);
    // There are no signers.
    let began = Instant::now();
    let id = loop {
        match submit(&installation, "nobody signs this").await {
            Some(id) => break id,
            None => assert!(began.elapsed() < START, "{}", manager.log()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let url = installation.url();
    // It has asked, and is waiting, when it has had no answer for a while.
    let client = reqwest::Client::new();
    let mut waits = tokio::spawn(client.get(format!("{url}/signature/{id}?wait=60s")).send());
    let answered = tokio::time::timeout(Duration::from_secs(2), &mut waits).await;
    assert!(answered.is_err(), "{answered:?}");
    let mut events = client.get(format!("{url}/requests/{id}/events")).send().await.unwrap();
    let first = events.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"event: status"), "{first:?}");
    let began = Instant::now();
    manager.stop();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "it stopped after {took:?}");
    assert_eq!(waits.await.unwrap().unwrap().status(), 202);
    assert_eq!(events.chunk().await.unwrap(), None, "the stream ends in good order");
    installation.clean_up().await;
}

async fn one_each(installation: &Installation) -> (Process, [Process; 3]) {
    let manager = installation.start("manager", &[]);
    let signers = ["1", "2", "3"].map(|index| installation.start("signer", &["--index", index]));
    let [one, two, three] = &signers;
    installation.until_healthy(&[&manager, one, two, three]).await;
    until_health("three signers", installation, &[&manager, one, two, three], |health| {
        health["signers"]["live"] == json!([1, 2, 3])
    })
    .await;
    (manager, signers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_signers_sign_without_the_third_and_one_says_that_it_is_alone() {
    let _turn = turn().await;
    let installation = Installation::new();
    installation.keygen();
    let (manager, [one, two, three]) = one_each(&installation).await;
    three.kill();
    let accepted = submit_all(&installation, (0..10).map(|number| format!("without 3: {number}"))).await;
    until_signed(&installation, &accepted, &[&manager, &one, &two]).await;
    for (id, _) in &accepted {
        assert_eq!(quorum(&status(&installation, id).await), [1, 2].into());
    }

    two.kill();
    until_health("one signer", &installation, &[&manager, &one], |health| {
        health["signers"]["live"] == json!([1])
    })
    .await;
    let (unwell, _) = get(&format!("{}/health", installation.url())).await.unwrap();
    assert_eq!(unwell, 503);
    let patient = submit_all(&installation, ["patient".to_owned()]).await;
    let deadline = Timestamp::now() + SignedDuration::from_secs(6);
    let body = json!({"message": "in a hurry", "not_after": deadline.to_string()});
    let (accepted, _, hurried) = post(&format!("{}/sign", installation.url()), &body).await.unwrap();
    assert_eq!(accepted, 201, "{hurried}");
    let id = hurried["request_id"].as_str().unwrap();
    let (failed, problem) = get(&format!("{}/signature/{id}?wait=30s", installation.url())).await.unwrap();
    assert!(Timestamp::now() < deadline + SignedDuration::from_secs(15), "it ends at its deadline");
    assert_eq!((failed, &problem["type"]), (409, &json!("urn:tss-network:problem:request-failed")));
    let reason = &status(&installation, id).await["reason"];
    assert_eq!(reason, &problem["detail"]);
    assert!(reason.as_str().unwrap().contains("fewer than 2 usable signers were alive"), "{reason}");

    let two = installation.start("signer", &["--index", "2"]);
    let signers = [&manager, &one, &two];
    installation.until_healthy(&signers).await;
    until_signed(&installation, &patient, &signers).await;
    let accepted = submit_all(&installation, ["together".to_owned()]).await;
    until_signed(&installation, &accepted, &signers).await;
    assert_eq!(quorum(&status(&installation, &accepted[0].0).await), [1, 2].into());
    installation.clean_up().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_signer_is_replaced_and_used_again_once_it_thaws() {
    let _turn = turn().await;
    let installation = Installation::new();
    installation.keygen();
    let (manager, [one, two, three]) = one_each(&installation).await;
    let all = [&manager, &one, &two, &three];
    let accepted = submit_all(&installation, (0..5).map(|number| format!("warm {number}"))).await;
    until_signed(&installation, &accepted, &all).await;
    // What a signature needed is given back.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for signer in [&one, &two, &three] {
        let resident = signer.resident();
        println!("an idle signer holds {} MiB", resident >> 20);
        assert!(resident <= IDLE_SIGNER, "an idle signer holds {} KiB", resident >> 10);
    }

    three.signal("STOP");
    let accepted = submit_all(&installation, (0..12).map(|number| format!("frozen {number}"))).await;
    until_signed(&installation, &accepted, &all).await;
    let mut most = 0;
    for (id, _) in &accepted {
        let status = status(&installation, id).await;
        assert_eq!((&status["status"], quorum(&status)), (&json!("Completed"), [1, 2].into()));
        most = most.max(status["attempts"].as_u64().unwrap());
    }
    assert!(most >= 2, "some request was tried with the frozen signer first");

    three.signal("CONT");
    let began = Instant::now();
    loop {
        let accepted = submit_all(&installation, [format!("thawed after {:?}", began.elapsed())]).await;
        until_signed(&installation, &accepted, &all).await;
        if quorum(&status(&installation, &accepted[0].0).await).contains(&3) {
            break;
        }
        assert!(began.elapsed() < START, "signer 3 is used again\n{}", three.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    installation.clean_up().await;
}
