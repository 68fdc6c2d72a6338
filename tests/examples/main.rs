//! The programs in `examples/`, run as their README says, and what they print judged without the libraries that they use.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod bitcoin;
#[allow(dead_code, reason = "each test program uses a part of it")]
#[path = "../support/devnet.rs"]
mod devnet;
mod ethereum;
mod liar;
mod network;
mod program;
#[path = "../support/tokens.rs"]
mod tokens;

use network::Api;
use program::{Variables, run};

/// An example, where its key is, and what tells whether the transaction that it prints is signed with that key.
struct Example {
    name: &'static str,
    path: &'static str,
    check: fn(&[u8], &network::Key),
}

const EXAMPLES: [Example; 3] = [
    Example { name: "ethereum-rust", path: "44/60/0/0/0", check: ethereum::assert_signed },
    Example { name: "ethereum-python", path: "44/60/0/0/0", check: ethereum::assert_signed },
    Example { name: "bitcoin-rust", path: "84/0/0/0/0", check: bitcoin::assert_signed },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_prints_a_transaction_that_the_network_signed_for_a_token_of_least_rights() {
    let api = Api::start().await;
    for Example { name, path, check } in EXAMPLES {
        let token = api.token_for("sign", path);
        let output = run(name, &[("TSS_MANAGER", api.url()), ("TSS_TOKEN", &token)]).await;
        assert!(output.succeeded, "{name}: {output:?}");
        let transaction = output.stdout.trim_end();
        let transaction = hex::decode(transaction.strip_prefix("0x").unwrap_or(transaction));
        check(&transaction.unwrap(), &api.key(path).await);
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_prints_a_transaction_with_a_signature_of_something_else() {
    let api = Api::start().await;
    let liar = liar::start(api.url()).await;
    for Example { name, path, .. } in EXAMPLES {
        let token = api.token_for("sign", path);
        let output = run(name, &[("TSS_MANAGER", &liar), ("TSS_TOKEN", &token)]).await;
        assert!(!output.succeeded && output.stdout.is_empty(), "{name}: {output:?}");
        assert!(output.stderr.contains("do not send it"), "{name}: {}", output.stderr);
    }
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_says_what_to_do_where_there_is_no_manager_or_no_token_that_does() {
    let api = Api::start().await;
    let (nobody, elsewhere) = ("http://127.0.0.1:1", api.token_for("sign", "1/2"));
    for Example { name, .. } in EXAMPLES {
        let cases: [(Variables<'_>, &[&str]); 4] = [
            (&[("TSS_MANAGER", nobody)], &["no answer from the manager at http://127.0.0.1:1", "devnet"]),
            (&[("TSS_MANAGER", "here")], &["expected a URL"]),
            (&[("TSS_MANAGER", api.url())], &["401", "TSS_TOKEN a token", "bearer token is needed"]),
            (&[("TSS_MANAGER", api.url()), ("TSS_TOKEN", &elsewhere)], &["403", "does not allow"]),
        ];
        for (variables, parts) in cases {
            let output = run(name, variables).await;
            assert!(!output.succeeded && output.stdout.is_empty(), "{name} {variables:?}: {output:?}");
            for part in parts {
                assert!(output.stderr.contains(part), "{name}: `{part}` is missing in: {}", output.stderr);
            }
        }
    }
    api.stop().await;
}
