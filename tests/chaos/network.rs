//! The network that is tormented: two managers, three signers, each a process; servers of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;
use tss_mpc::ShareDocument;

use crate::disk::Disk;
use crate::installation::{Installation, Process, get};
use crate::load::Ledger;
use crate::server::{Server, free_port};
use crate::tap::Tap;

/// The signers, each with a process and a folder of its own.
pub(crate) const SIGNERS: [u8; 3] = [1, 2, 3];

/// The signer whose folder is a small disk.
pub(crate) const CRAMPED: u8 = 2;

/// The last round of the protocol between two signers, in which each has said all that it will.
pub(crate) const LAST_ROUND: u8 = 3;

/// How long the network has to be whole again after a fault.
const RECOVERY: Duration = Duration::from_secs(240);

/// A process of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Manager(usize),
    Signer(u8),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager(number) => write!(f, "manager {}", number + 1),
            Self::Signer(index) => write!(f, "signer {index}"),
        }
    }
}

/// A running network. What it is made of ends in this order.
pub(crate) struct Network {
    processes: BTreeMap<Part, Process>,
    ports: [u16; 2],
    pub(crate) disk: Disk,
    pub(crate) rabbitmq: Server,
    pub(crate) mongodb: Server,
    installation: Installation,
}

impl Network {
    pub(crate) async fn start() -> Self {
        let (rabbitmq, mongodb) = tokio::join!(Server::rabbitmq(), Server::mongodb());
        let mut installation = Installation::new();
        installation.set("TSS_RABBITMQ_URI", &rabbitmq.uri());
        installation.set("TSS_MONGODB_URI", &mongodb.uri());
        installation.keygen();
        let disk = Disk::mount(installation.folder().join(data_folder(CRAMPED)));
        let ports = [free_port(), free_port()];
        let mut network = Self { processes: BTreeMap::new(), ports, disk, rabbitmq, mongodb, installation };
        for part in [Part::Manager(0), Part::Manager(1)].into_iter().chain(SIGNERS.map(Part::Signer)) {
            network.start_part(part);
        }
        network.until_healthy().await;
        network
    }

    pub(crate) fn cluster(&self) -> &str {
        self.installation.cluster()
    }

    /// Where the managers are.
    pub(crate) fn urls(&self) -> [String; 2] {
        self.ports.map(|port| format!("http://127.0.0.1:{port}"))
    }

    /// What signer 1 holds.
    pub(crate) fn share(&self) -> ShareDocument {
        let document = std::fs::read(self.installation.folder().join("signer1.store")).unwrap();
        ShareDocument::from_json(&document).unwrap()
    }

    /// A signer's audit log.
    pub(crate) fn audit_log(&self, signer: u8) -> PathBuf {
        self.installation.folder().join(data_folder(signer)).join(format!("signer{signer}.audit.jsonl"))
    }

    pub(crate) fn start_part(&mut self, part: Part) {
        let (program, arguments, settings) = match part {
            Part::Manager(number) => {
                ("manager", vec![], ("TSS_MANAGER_PORT", self.ports[number].to_string()))
            }
            Part::Signer(index) => {
                ("signer", vec!["--index".into(), index.to_string()], ("TSS_DATA_DIR", data_folder(index)))
            }
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (name, value) = &settings;
        let process = self.installation.start_as(&part.to_string(), program, &arguments, &[(name, value)]);
        self.processes.insert(part, process);
    }

    pub(crate) fn part(&self, part: Part) -> &Process {
        &self.processes[&part]
    }

    /// Ends a process at once.
    pub(crate) fn kill(&mut self, part: Part) {
        self.processes.remove(&part).expect("it runs").kill();
    }

    /// Stops all processes in good order.
    pub(crate) fn stop(&mut self) {
        std::mem::take(&mut self.processes).into_values().for_each(Process::stop);
    }

    /// Resident memory of each process, in bytes.
    pub(crate) fn resident(&self) -> BTreeMap<Part, u64> {
        self.processes.iter().map(|(part, process)| (*part, process.resident())).collect()
    }

    pub(crate) async fn tap(&self) -> Tap {
        let opened = Tap::open(&self.rabbitmq.uri(), self.cluster(), SIGNERS.len().try_into().unwrap()).await;
        opened.expect("the broker answers")
    }

    /// Whether both managers say that a signature can be made, and know all signers alive.
    async fn is_healthy(&self) -> bool {
        let answers = self.urls().map(|url| async move { get(&format!("{url}/health")).await });
        let answers = futures::future::join_all(answers).await;
        answers
            .iter()
            .flatten()
            .filter(|(status, health)| *status == 200 && health["signers"]["live"] == json!(SIGNERS))
            .count()
            == self.ports.len()
    }

    async fn until_healthy(&self) {
        let began = Instant::now();
        while !self.is_healthy().await {
            assert!(began.elapsed() < RECOVERY, "the network is not healthy after {RECOVERY:?}");
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until the network is whole: both managers are healthy and know all signers, each of them has
    /// had a request signed that it accepted since, and each signer has taken part in a signature since.
    pub(crate) async fn until_whole(&self, since: Instant, ledger: &Ledger) {
        let mut tap = self.tap().await;
        let mut taken_part = BTreeSet::new();
        loop {
            let look = tokio::time::Instant::now() + Duration::from_millis(250);
            while let Some(header) = tap.next(look).await {
                if header.round == LAST_ROUND {
                    taken_part.insert(header.from.get());
                }
            }
            let served = [0, 1].map(|manager| ledger.has_served(manager, since));
            if served == [true; 2] && taken_part.len() == SIGNERS.len() && self.is_healthy().await {
                return;
            }
            assert!(
                since.elapsed() < RECOVERY,
                "the network is not whole after {RECOVERY:?}: signers {taken_part:?} took part, managers have \
                 served {served:?}"
            );
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (part, process) in &self.processes {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            println!(
                "--- the end of what {part} says\n{}",
                lines[lines.len().saturating_sub(80)..].join("\n")
            );
        }
    }
}

fn data_folder(signer: u8) -> String {
    format!("data{signer}")
}
