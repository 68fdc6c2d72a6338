//! A network of real processes against a real RabbitMQ and a real MongoDB.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use uuid::Uuid;

/// How long the parts get to come up. Test programs share two cores.
pub(crate) const START: Duration = Duration::from_secs(60);

/// Where RabbitMQ is: `RABBITMQ_URI`, or this machine.
pub(crate) fn rabbitmq_uri() -> String {
    std::env::var("RABBITMQ_URI").unwrap_or_else(|_| "amqp://localhost:5672".into())
}

/// Where MongoDB is: `MONGODB_URI`, or this machine.
pub(crate) fn mongodb_uri() -> String {
    std::env::var("MONGODB_URI").unwrap_or_else(|_| "mongodb://localhost:27017".into())
}

/// The folder that the programs are built into. Builds them first, in the profile of the tests.
fn programs() -> PathBuf {
    static BUILD: std::sync::Once = std::sync::Once::new();
    BUILD.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        // With a test, so that they are built of the same parts as for `cargo test`, which has built most of them.
        build.args(["build", "--quiet", "--workspace", "--bins", "--test", "manager_service_tests"]);
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "the programs cannot be built");
    });
    let test = std::env::current_exe().expect("this program has a path");
    test.ancestors().nth(2).expect("target/{profile}/deps/{test}").to_owned()
}

/// A configuration, a key and a cluster name of its own, in a temporary folder.
pub(crate) struct Installation {
    folder: TempDir,
    cluster: String,
    port: u16,
    settings: Vec<(String, String)>,
}

impl Installation {
    /// A 2-of-3 network on the servers that the environment names.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let copy = folder.path().join("config");
        std::fs::create_dir(&copy).expect("a new folder");
        for file in ["default.toml", "development.toml"] {
            std::fs::copy(config.join(file), copy.join(file)).expect("the project's configuration");
        }
        // Nothing that an earlier test left in the servers is seen.
        let cluster = format!("test-{}", &Uuid::new_v4().simple().to_string()[..12]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound address").port();
        let mut installation = Self { folder, cluster: cluster.clone(), port, settings: Vec::new() };
        installation.set("TSS_CLUSTER", &cluster);
        installation.set("TSS_MONGODB_DATABASE", &cluster);
        installation.set("TSS_MANAGER_PORT", &port.to_string());
        installation.set("TSS_RABBITMQ_URI", &rabbitmq_uri());
        installation.set("TSS_MONGODB_URI", &mongodb_uri());
        installation
    }

    /// The same with the signers' identities, made one by one, and the roster of what each printed.
    pub(crate) fn with_identities() -> Self {
        let installation = Self::new();
        let parts = ["1", "2", "3"].map(|index| {
            let made = installation.run("signer", &["identity", "--index", index]);
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            String::from_utf8(made.stdout).expect("a part of a roster")
        });
        std::fs::write(installation.folder().join("roster.toml"), parts.concat()).expect("a new file");
        installation
    }

    /// Sets a variable for all programs that start from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs().join(program));
        command.args(arguments).current_dir(self.folder.path());
        // Those of whoever runs the tests; a test may set its own.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TSS_")) {
            command.env_remove(name);
        }
        command.env_remove("TSSCTL_CONFIG").env("XDG_CONFIG_HOME", self.folder.path());
        command.env_remove("RUN_MODE").env_remove("RUST_LOG").envs(self.settings.iter().cloned());
        command
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments).output().expect("the program runs")
    }

    /// Makes the key.
    pub(crate) fn keygen(&self) {
        let output = self.run("tssctl", &["keygen"]);
        assert!(output.status.success(), "keygen: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a program; it ends with what is returned.
    pub(crate) fn start(&self, program: &str, arguments: &[&str]) -> Process {
        self.start_as(&format!("{program}{}", arguments.join("")), program, arguments, &[])
    }

    /// Starts a program with settings that only it has, and a log of this name.
    pub(crate) fn start_as(
        &self,
        name: &str,
        program: &str,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> Process {
        let log = self.folder.path().join(format!("{name}.log"));
        let output = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let child = self
            .command(program, arguments)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .expect("the program starts");
        Process { child, log }
    }

    /// Asks the manager until `/health` says that a signature can be made.
    pub(crate) async fn until_healthy(&self, processes: &[&Process]) {
        let began = Instant::now();
        loop {
            let answer = get(&format!("{}/health", self.url())).await;
            if answer.as_ref().is_some_and(|(status, _)| *status == 200) {
                return;
            }
            if began.elapsed() > START {
                let logs: Vec<String> = processes.iter().map(|process| process.log()).collect();
                panic!(
                    "the network is not healthy after {START:?}: {answer:?}. It needs RabbitMQ at {} (RABBITMQ_URI) \
                     and MongoDB at {} (MONGODB_URI); tests/run services starts both.\n{}",
                    rabbitmq_uri(),
                    mongodb_uri(),
                    logs.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes what the network left in the servers.
    pub(crate) async fn clean_up(self) {
        if let Ok(client) = mongodb::Client::with_uri_str(mongodb_uri()).await {
            let database = client.database(&self.cluster);
            let _ = tokio::time::timeout(Duration::from_secs(10), database.drop()).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(10), remove_topology(&self.cluster)).await;
    }
}

async fn remove_topology(cluster: &str) -> lapin::Result<()> {
    let connection =
        lapin::Connection::connect(&rabbitmq_uri(), lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let queues = (1..=5).flat_map(|i| ["requests", "rounds", "ceremonies"].map(|kind| format!("{kind}.{i}")));
    for queue in queues.chain(["results".into(), "dead".into()]) {
        channel
            .queue_delete(
                format!("tss.{cluster}.{queue}").into(),
                lapin::options::QueueDeleteOptions::default(),
            )
            .await?;
    }
    for exchange in ["requests", "rounds", "ceremonies", "results", "presence", "dead"] {
        let options = lapin::options::ExchangeDeleteOptions::default();
        channel.exchange_delete(format!("tss.{cluster}.{exchange}").into(), options).await?;
    }
    connection.close(200, "done".into()).await
}

/// A running program.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn log(&self) -> String {
        format!("--- {}\n{}", self.log.display(), std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
        kib * 1024
    }

    /// Sends it a signal, as `kill` calls it: `STOP`, `CONT`, `TERM`.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &id]).status();
        assert!(sent.expect("`kill` runs").success(), "process {id} gets no {signal}");
    }

    /// Has it end in good order, and waits until it has.
    pub(crate) fn stop(self) {
        self.stop_and_log();
    }

    /// As [`Process::stop`]; yields its log.
    pub(crate) fn stop_and_log(mut self) -> String {
        self.signal("TERM");
        let began = Instant::now();
        while self.child.try_wait().expect("it is a child").is_none() {
            assert!(began.elapsed() < START, "it does not stop\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.log()
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Status and JSON of a GET; `None` without an answer.
pub(crate) async fn get(url: &str) -> Option<(u16, Value)> {
    let response = client().get(url).send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.json().await.unwrap_or(Value::Null)))
}

/// Status, headers and JSON of a POST of JSON; `None` without an answer.
pub(crate) async fn post(url: &str, body: &Value) -> Option<(u16, reqwest::header::HeaderMap, Value)> {
    let response = client().post(url).json(body).send().await.ok()?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Some((status, headers, response.json().await.unwrap_or(Value::Null)))
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(Duration::from_secs(75)).build().expect("a client")
}
