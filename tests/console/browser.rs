//! A browser without a window, spoken to as the W3C's WebDriver and Chromium's own protocol say.
//!
//! Of both, the tests need a handful of JSON requests. Libraries for them switch on features of `serde_json` that would
//! then hold for the programs under test as well.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::SOON;

/// Keys, as WebDriver writes them.
pub(crate) const TAB: &str = "\u{e004}";
pub(crate) const ENTER: &str = "\u{e007}";
pub(crate) const ESCAPE: &str = "\u{e00c}";
pub(crate) const LEFT: &str = "\u{e012}";
pub(crate) const DOWN: &str = "\u{e015}";

/// A browser with one page.
pub(crate) struct Browser {
    http: reqwest::Client,
    /// Where its driver takes requests for this session.
    session: String,
    driver: Child,
}

/// Runs a test in a browser of its own, which ends with it whether it fails or not.
pub(crate) async fn in_browser(test: impl AsyncFnOnce(&Browser)) {
    let browser = Browser::start().await;
    let result = AssertUnwindSafe(test(&browser)).catch_unwind().await;
    if result.is_err() {
        let name = std::thread::current().name().unwrap_or("a test").replace("::", "-");
        browser.picture(&format!("failed-{name}")).await;
    }
    browser.stop().await;
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

impl Browser {
    async fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver, of Debian's package chromium-driver");
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let started = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse::<u16>().unwrap();
                }
            }
            panic!("chromedriver ends before it has started");
        };
        let port = tokio::time::timeout(SOON, started).await.expect("chromedriver starts");
        // Read on: it must not find its output closed.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });

        let http = reqwest::Client::builder().timeout(SOON * 2).build().unwrap();
        let driver_url = format!("http://127.0.0.1:{port}");
        // No sandbox: it needs a user that is not root. Containers have little shared memory.
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--lang=en-GB"];
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let new = json!({ "capabilities": { "alwaysMatch": wanted } });
        let answer = post(&http, &format!("{driver_url}/session"), &new).await;
        let id = answer["sessionId"].as_str().expect("a session");
        Self { session: format!("{driver_url}/session/{id}"), http, driver }
    }

    async fn stop(mut self) {
        // With the session, the browser ends.
        let ended = self.http.delete(&self.session).send().await;
        self.driver.kill().await.unwrap();
        assert!(ended.unwrap().status().is_success(), "the browser ends");
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        post(&self.http, &format!("{}{path}", self.session), &body).await
    }

    /// A command of Chromium's own protocol.
    async fn command(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    pub(crate) async fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url })).await;
    }

    /// What a script's `return` returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// What an expression comes to, once it is something: neither null nor false nor empty.
    pub(crate) async fn until(&self, expression: &str) -> Value {
        let began = Instant::now();
        loop {
            let value = self.run(&format!("return ({expression}) || null")).await;
            if !value.is_null() {
                return value;
            }
            assert!(
                began.elapsed() < SOON,
                "not within {SOON:?}: {expression}; the page: {}",
                self.text().await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All that can be read on the page.
    async fn text(&self) -> Value {
        self.run("return document.body.innerText").await
    }

    /// Waits until the element of a selector says something.
    pub(crate) async fn until_said(&self, selector: &str, words: &str) {
        let (selector, words) = (json!(selector), json!(words));
        self.until(&format!("document.querySelector({selector})?.innerText.includes({words})")).await;
    }

    /// Presses keys, one after another.
    pub(crate) async fn press(&self, keys: &[&str]) {
        let strokes: Vec<Value> = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|act| json!({ "type": act, "value": key })))
            .collect();
        let actions = json!([{ "type": "key", "id": "keyboard", "actions": strokes }]);
        self.post("/actions", json!({ "actions": actions })).await;
    }

    /// Types a text where the focus is.
    pub(crate) async fn write(&self, text: &str) {
        let keys: Vec<String> = text.chars().map(String::from).collect();
        self.press(&keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }

    /// The size of what can be seen of the page, in CSS pixels.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// What the reader prefers, as `("prefers-color-scheme", "dark")`.
    pub(crate) async fn prefer(&self, preferences: &[(&str, &str)]) {
        let features: Vec<Value> =
            preferences.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        self.command("Emulation.setEmulatedMedia", json!({ "features": features })).await;
    }

    /// Role and name, as a screen reader says them, of all that has a role.
    pub(crate) async fn read_aloud(&self) -> Vec<(String, String)> {
        let tree = self.command("Accessibility.getFullAXTree", json!({})).await;
        let word = |node: &Value, field: &str| node[field]["value"].as_str().unwrap_or_default().to_owned();
        tree["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|node| (word(node, "role"), word(node, "name")))
            .collect()
    }

    /// Takes a picture, to be looked at: `target/tmp/console/NAME.png`.
    pub(crate) async fn picture(&self, name: &str) {
        let taken = self.command("Page.captureScreenshot", json!({ "format": "png" })).await;
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("console");
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = BASE64_STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), bytes).unwrap();
    }

    /// That the page has asked nobody but `origin` for anything, and that nothing went wrong on it but what is expected:
    /// the browser itself reports each answer that is an error.
    pub(crate) async fn assert_quiet(&self, origin: &str, expected: &[&str]) {
        let reported = self.log("browser").await;
        for entry in &reported {
            let message = entry["message"].as_str().unwrap();
            assert!(expected.iter().any(|words| message.contains(words)), "the page reports: {message}");
        }
        let mut asked = 0;
        for entry in self.log("performance").await {
            let event: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let event = &event["message"];
            if event["method"] == "Network.requestWillBeSent" {
                let url = event["params"]["request"]["url"].as_str().unwrap();
                assert!(url.starts_with(origin), "the page asks for {url}, and not {origin} alone");
                asked += 1;
            }
        }
        assert!(asked > 0, "what the page asks for is seen");
    }

    /// What is new in a log.
    async fn log(&self, kind: &str) -> Vec<Value> {
        let entries = self.post("/se/log", json!({ "type": kind })).await;
        entries.as_array().expect("a list").clone()
    }
}

async fn post(http: &reqwest::Client, url: &str, body: &Value) -> Value {
    let answer = http.post(url).json(body).send().await.expect("chromedriver answers");
    let status = answer.status();
    let mut answer: Value = answer.json().await.expect("an answer in JSON");
    assert!(status.is_success(), "{url}: {answer}");
    answer["value"].take()
}
