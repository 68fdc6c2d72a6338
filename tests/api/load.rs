//! Many clients at once: some go away before they are answered, some ask twice, some never come to the point.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{interval, sleep, timeout};

use crate::network::{Api, SOON};

/// How many requests there are, and how many clients.
const REQUESTS: usize = 10_000;
const CLIENTS: usize = 256;

/// One of so many clients hangs up before it is answered, and one of so many asks twice at once.
const RARELY: usize = 100;

/// How many clients never end their headers.
const SLOW: usize = 500;

/// Asks and hangs up.
async fn hang_up(address: &str, body: &str, key: &str) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /sign HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nidempotency-key: {key}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

async fn metric(api: &Api, line: &str) -> u64 {
    let text = api.get("/metrics").await.text().await.unwrap();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{line} is not in {text}")).parse().unwrap()
}

/// The memory of this process, in MiB: manager, signers and clients are all in it.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_are_each_signed_once_whoever_hangs_up_or_asks_twice() {
    let api = Arc::new(Api::start_with(|config, _| config.limits.rate = 0).await);
    let address = api.url().trim_start_matches("http://").to_owned();
    let next = Arc::new(AtomicUsize::new(0));
    let signed = Arc::new(Mutex::new((BTreeMap::new(), Vec::new())));
    let halfway = Arc::new(Mutex::new(0));
    let client = || {
        let (api, address, next) = (api.clone(), address.clone(), next.clone());
        let (signed, halfway) = (signed.clone(), halfway.clone());
        async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= REQUESTS {
                    return;
                }
                if number == REQUESTS / 2 {
                    *halfway.lock().await = memory();
                }
                let (body, key) =
                    (json!({ "message": format!("message {number}") }), format!("order-{number}"));
                if number % RARELY == 1 {
                    hang_up(&address, &body.to_string(), &key).await;
                }
                let began = Instant::now();
                let ask = async || {
                    let answer = api.ask_as("/sign", &key, &body).await;
                    assert!([200, 201].contains(&answer.status().as_u16()), "{}", answer.status());
                    answer.json::<Value>().await.unwrap()["request_id"].as_str().unwrap().to_owned()
                };
                let ids = if number % RARELY == 2 {
                    join_all([ask(), ask(), ask()]).await
                } else {
                    vec![ask().await]
                };
                assert!(ids.iter().all(|id| *id == ids[0]), "one key, several requests: {ids:?}");
                let signature = loop {
                    let answer = api.get(&format!("/signature/{}?wait=30s", ids[0])).await;
                    if answer.status() == 202 {
                        continue;
                    }
                    assert_eq!(answer.status(), 200, "request {number}");
                    break answer.json::<Value>().await.unwrap();
                };
                let mut signed = signed.lock().await;
                assert_eq!(signature["request_id"], *ids[0]);
                assert_eq!(signed.0.insert(ids[0].clone(), number), None, "one request for two");
                signed.1.push(began.elapsed());
            }
        }
    };
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(client())).collect();
    for client in clients {
        client.await.unwrap();
    }
    let took = began.elapsed();
    let (ids, mut times) = std::mem::take(&mut *signed.lock().await);
    assert_eq!(ids.len(), REQUESTS);
    times.sort_unstable();
    println!(
        "{REQUESTS} requests of {CLIENTS} clients in {:.1} s: p50 {:?}, p99 {:?}; memory {} MiB halfway, {} MiB at the end",
        took.as_secs_f64(),
        times[REQUESTS / 2],
        times[REQUESTS * 99 / 100],
        halfway.lock().await,
        memory()
    );
    // Each was stored and signed once, and nothing is left of any.
    assert_eq!(metric(&api, "tss_requests_accepted_total").await, REQUESTS as u64);
    assert_eq!(metric(&api, "tss_requests_total{outcome=\"completed\"}").await, REQUESTS as u64);
    assert_eq!(metric(&api, "tss_requests_unfinished").await, 0);
    assert_eq!(metric(&api, "tss_requests_active").await, 0);
    // What it keeps of finished requests is bounded, and was full before half of them were asked for.
    assert!(memory() < *halfway.lock().await + 128, "{} MiB", memory());
    Arc::into_inner(api).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_never_come_to_the_point_stop_nobody_and_are_sent_away() {
    let api = Api::start().await;
    let address = api.url().trim_start_matches("http://").to_owned();
    let slow = (0..SLOW).map(|number| {
        let address = address.clone();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            // A third says nothing at all, a third never ends its headers, a third never ends its body.
            let beginning = [
                "",
                "POST /sign HTTP/1.1\r\nhost: x\r\n",
                "POST /sign HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
            ][number % 3];
            stream.write_all(beginning.as_bytes()).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let drip = async {
                let mut drops = interval(Duration::from_secs(1));
                loop {
                    drops.tick().await;
                    if number % 3 != 1 || writer.write_all(b"x-a: b\r\n").await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let mut answer = Vec::new();
            tokio::select! {
                read = reader.read_to_end(&mut answer) => { let _ = read; }
                _ = drip => {}
            }
            String::from_utf8_lossy(&answer).into_owned()
        })
    });
    let slow: Vec<_> = slow.collect();
    sleep(Duration::from_secs(1)).await;
    for number in 0..20 {
        let began = Instant::now();
        let taken: Value =
            api.post("/sign", &json!({ "message": number.to_string() })).await.json().await.unwrap();
        let id = taken["request_id"].as_str().unwrap();
        assert_eq!(api.get(&format!("/signature/{id}?wait=30s")).await.status(), 200);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    for (number, client) in slow.into_iter().enumerate() {
        let answer = timeout(SOON, client).await;
        let answer = answer.unwrap_or_else(|_| panic!("client {number} is not sent away")).unwrap();
        match number % 3 {
            // Whoever has asked is told why.
            2 => assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}"),
            _ => assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}"),
        }
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_connections_are_closed_and_those_before_stay() {
    let api = Api::start_with(|config, _| config.limits.connections = 50).await;
    let address = api.url().trim_start_matches("http://").to_owned();
    let mut open = Vec::new();
    for _ in 0..60 {
        open.push(TcpStream::connect(&address).await.unwrap());
    }
    sleep(Duration::from_millis(500)).await;
    let mut answered = 0;
    for stream in &mut open {
        if stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.is_err() {
            continue;
        }
        let mut answer = [0; 12];
        if timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().is_ok() {
            assert_eq!(&answer, b"HTTP/1.1 200");
            answered += 1;
        }
    }
    assert!((40..=50).contains(&answered), "{answered}");
    drop(open);
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_too_many_or_too_long_are_refused() {
    let api = Api::start().await;
    let address = api.url().trim_start_matches("http://").to_owned();
    let many: String = (0..100).map(|number| format!("x-{number}: a\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(64 << 10));
    for headers in [many, long] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        // It may be refused before all of it is sent.
        let request = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("it is closed");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
    assert_eq!(api.get("/livez").await.status(), 200);
    api.stop().await;
}
