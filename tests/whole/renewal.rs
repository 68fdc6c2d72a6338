//! New shares on a real node, while requests come all the time: for the same signers, for more and for fewer, and for one
//! that has lost everything.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use age::secrecy::ExposeSecret as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::kubectl::{Namespace, operator, tssctl};
use crate::verify::{assert_signature, ethereum_address};
use crate::{PATIENCE, cluster, condition, ready, request, sign};

/// A file for its owner alone; `tssctl` takes no other.
fn private(file: &Path, content: &[u8]) {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).unwrap();
    file.write_all(content).unwrap();
}

/// Two who hold backups: what they open them with, and what backups are encrypted to.
fn holders(folder: &Path) -> Vec<Vec<String>> {
    let holder = |name: &str| {
        let identity = age::x25519::Identity::generate();
        private(&folder.join(name), identity.to_string().expose_secret().as_bytes());
        vec![identity.to_public().to_string()]
    };
    ["alice", "bob"].map(holder).into()
}

/// That the backups in these Secrets are of this key, by the drill of docs/backup.md.
fn assert_backed_up(namespace: &Namespace, demo: &Value, folder: &Path) {
    let secrets = demo["status"]["backups"]["secrets"].as_array().unwrap();
    assert_eq!(secrets.len(), demo["status"]["signers"].as_array().unwrap().len());
    let mut attestations = Vec::new();
    for secret in secrets.iter().map(|secret| secret.as_str().unwrap()) {
        let encoded = namespace.get(&format!("secret/{secret}"))["data"]["backup"].clone();
        let file = folder.join(secret);
        private(&file, &BASE64_STANDARD.decode(encoded.as_str().unwrap()).unwrap());
        let drill =
            ["backup", "attest", secret, "--identity", "alice", "--identity", "bob", "--challenge", "drill"];
        let attestation = format!("{secret}.attestation");
        std::fs::write(folder.join(&attestation), tssctl(folder, &drill)).unwrap();
        attestations.push(attestation);
    }
    let public_key = demo["status"]["publicKey"].as_str().unwrap();
    let mut verify = vec!["backup", "verify", "--challenge", "drill", "--expect-public-key", public_key];
    verify.extend(attestations.iter().map(String::as_str));
    tssctl(folder, &verify);
}

/// How long it takes until a key has new shares and all signers run with them.
const RENEWAL: Duration = Duration::from_secs(300);

/// Waits until all signers run with shares of this epoch; yields the TssCluster.
fn renewed(namespace: &Namespace, what: &str, epoch: u64, threshold: &str) -> Value {
    let started = Instant::now();
    let mut kept = None;
    namespace.until(what, RENEWAL, || {
        let status = namespace.get("tsscluster/demo")["status"].clone();
        if kept.is_none() && status["epoch"] == epoch {
            kept = Some(started.elapsed());
        }
        let retired = status["retiredShares"].as_array().is_some_and(|retired| !retired.is_empty());
        status["epoch"] == epoch && status["threshold"] == threshold && retired
    });
    let (all, kept) = (started.elapsed().as_secs_f64(), kept.unwrap_or_default().as_secs_f64());
    println!("{what}: new shares after {kept:.0} s, all signers run with them after {all:.0} s");
    let demo = namespace.get("tsscluster/demo");
    assert_eq!(condition(&demo, "SharesCurrent")["status"], "True", "{demo}");
    assert_eq!(condition(&demo, "Ready")["status"], "True", "{demo}");
    assert!(demo["status"].get("renewal").is_none(), "{demo}");
    demo
}

fn now() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}

#[test]
fn shares_are_made_anew_for_others_and_for_who_lost_its_own_while_everything_asked_for_is_signed() {
    operator();
    let namespace = Namespace::new("renewed");
    let mut demo = cluster("demo");
    demo["spec"]["signingTimeoutSeconds"] = json!(60);
    let folder = tempfile::tempdir().unwrap();
    demo["spec"]["backup"] = json!({"holders": holders(folder.path())});
    namespace.apply(&demo);
    let first = ready(&namespace, "demo");
    let addresses = &first["status"]["addresses"];
    let derived = addresses["publicKey"].as_str().unwrap();
    assert_eq!(addresses["ethereum"], ethereum_address(derived));

    let over = AtomicBool::new(false);
    let (asked, last) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                let name = format!("load-{asked}");
                namespace.apply(&request(&name, "demo", &json!({"message": name, "deadlineSeconds": 300})));
                asked += 1;
                std::thread::sleep(Duration::from_millis(400));
            }
            asked
        });
        // Whatever goes wrong, the load comes to its end.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let until_then = Over(&over);

        // The same signers. What they had stays where it was, and is told to be of no use any more.
        let before = namespace.secrets();
        namespace.patch("tsscluster/demo", &json!({"refresh": {"olderThan": now()}}));
        let demo = renewed(&namespace, "refreshed", 2, "2-of-3");
        assert_eq!(&demo["status"]["addresses"], addresses);
        let after = namespace.secrets();
        assert!(before.iter().all(|secret| after.contains(secret)), "{after:?}");
        let retired = demo["status"]["retiredShares"].as_array().unwrap();
        assert_eq!(retired.len(), 3);
        for (secret, signer) in retired.iter().zip(demo["status"]["signers"].as_array().unwrap()) {
            let secret = secret.as_str().unwrap();
            assert!(secret.contains("-e1-") && signer["share"].as_str().unwrap().contains("-e2-"), "{demo}");
            namespace.run(&["delete", "secret", secret]);
        }
        sign(&namespace, "refreshed", &demo, "the shares before are gone");

        // Each epoch has backups of its own.
        namespace.wait("tsscluster/demo", "BackedUp", PATIENCE);
        let demo = namespace.get("tsscluster/demo");
        assert_eq!(demo["status"]["backups"]["epoch"], 2);
        assert_backed_up(&namespace, &demo, folder.path());

        // More signers, of whom more sign; and as many as before.
        namespace.patch("tsscluster/demo", &json!({"threshold": 3, "signers": 5}));
        let demo = renewed(&namespace, "3-of-5", 3, "3-of-5");
        assert_eq!(&demo["status"]["addresses"], addresses);
        assert_eq!(namespace.count("statefulsets"), 5);
        sign(&namespace, "three-of-five", &demo, "three sign");
        namespace.patch("tsscluster/demo", &json!({"threshold": 2, "signers": 3}));
        let demo = renewed(&namespace, "2-of-3", 4, "2-of-3");
        assert_eq!(&demo["status"]["addresses"], addresses);
        assert_eq!(namespace.count("statefulsets"), 3);
        sign(&namespace, "two-of-three", &demo, "two sign");

        // A node is lost for ever, and with it all that a signer had: its share, its volume, its identity.
        let lost = demo["status"]["signers"][1]["share"].as_str().unwrap();
        namespace.run(&["delete", "secret", lost, "demo-signer-2-identity"]);
        namespace.run(&["delete", "persistentvolumeclaim", "data-demo-signer-2-0", "--wait=false"]);
        namespace.run(&["delete", "pod", "demo-signer-2-0", "--grace-period=0", "--force"]);
        namespace.until("signer 2 waits for what it lost", PATIENCE, || {
            namespace.get("tsscluster/demo")["status"]["readySigners"] == "2/3"
        });
        namespace.patch("tsscluster/demo", &json!({"refresh": {"olderThan": now()}}));
        let demo = renewed(&namespace, "recovered", 5, "2-of-3");
        assert_eq!(&demo["status"]["addresses"], addresses);
        assert_eq!(demo["status"]["readySigners"], "3/3");
        let with_2 = (0..20).any(|i| {
            let name = format!("recovered-{i}");
            sign(&namespace, &name, &demo, "as before");
            let quorum = namespace.get(&format!("signingrequest/{name}"))["status"]["quorum"].clone();
            quorum.as_array().unwrap().contains(&json!(2))
        });
        assert!(with_2, "signer 2 signs again");
        drop(until_then);
        (load.join().unwrap(), demo)
    });

    let mut longest = 0;
    for i in 0..asked {
        let name = format!("load-{i}");
        namespace.wait(&format!("signingrequest/{name}"), "Complete", PATIENCE);
        let signed = namespace.get(&format!("signingrequest/{name}"));
        assert_signature(&signed, &last, &name);
        let time = |pointer: &str| -> jiff::Timestamp {
            signed.pointer(pointer).unwrap().as_str().unwrap().parse().unwrap()
        };
        let waited = time("/status/finishedAt").duration_since(time("/metadata/creationTimestamp"));
        longest = longest.max(waited.as_secs());
    }
    println!("{asked} requests came meanwhile, and all of them are signed, after {longest} s at most");
}
