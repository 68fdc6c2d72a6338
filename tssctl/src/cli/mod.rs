//! The command line.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | where the manager is, whom to believe, who asks: flags, variables, the profile |
//! | [`profile`] | the file with profiles, and `profile` |
//! | [`sign`] | `sign` |
//! | [`requests`] | `status`, `watch`, `requests` |
//! | [`keys`] | `keys` |
//! | [`overview`] | `overview`, `health` |
//! | [`verify`] | `verify` |
//! | [`token`] | `token` |
//! | [`network`] | `devnet`, `keygen`, `import-legacy`, `bench` |
//! | [`key`] | `key`: `split`, `import`, `reconstruct` |
//! | [`refresh`] | `key refresh` |
//! | [`backup`] | `backup` |
//! | [`approve`] | `approver`, `approve` |
//! | [`audit`] | `audit` |
//! | [`shell`] | `completion`, `man` |
//! | [`output`] | how answers are printed |
//! | [`exit`] | how errors are, and the exit code that each has |

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tss_common::version;

use output::{Output, Printer};

mod approve;
mod audit;
mod backup;
mod connection;
pub(crate) mod exit;
mod key;
mod keys;
mod network;
mod output;
mod overview;
mod profile;
mod refresh;
mod requests;
mod shell;
mod sign;
mod token;
mod verify;

/// The command line of the TSS network: threshold signatures without a private key in one place.
#[derive(Parser)]
#[command(name = "tssctl", version = version::FULL, after_help = exit::HELP)]
pub(crate) struct Arguments {
    /// How answers and errors are printed. Without it, `sign` and `status` print JSON and the others text.
    /// `devnet`, `keygen`, `import-legacy`, `key import`, `bench` and `audit verify` print text, always; `backup attest`
    /// prints JSON.
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) output: Option<Output>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a manager and all signers in one process, for development. The first start makes a key.
    Devnet(network::DevnetArguments),
    /// Make a new key: a share file and an identity for each signer, and the roster.
    Keygen(network::KeygenArguments),
    /// Take over a key of `multi-party-ecdsa` (GG18, GG20), together with all its other signers, each on its own
    /// machine with its own file; writes this signer's share and prints the public key, which stays.
    ImportLegacy(network::ImportLegacyArguments),
    /// Have new shares made of a key; split an existing private key for its signers, take such a key over, or put one
    /// together again as the last resort.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Check signers' backups, without a network and without having enough of them open in one place.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Have a message signed; prints the signature.
    Sign(sign::SignArguments),
    /// Make an approver's key; prints the public key, for the signers' policies.
    Approver(approve::ApproverArguments),
    /// Approve that a text is signed; shows what is approved and prints the approval as a line of JSON.
    Approve(approve::ApproveArguments),
    /// Show how far a request is.
    Status(requests::StatusArguments),
    /// Show how far a request is, a line at each change, until it has ended.
    Watch(requests::WatchArguments),
    /// List the requests, newest first, which takes a token of an administrator; or show all that is told of one.
    Requests(requests::RequestsArguments),
    /// Show the keys, and what they go by elsewhere.
    Keys(keys::KeysArguments),
    /// Check a signature against a public key, without a network.
    Verify(verify::VerifyArguments),
    /// Show what the manager sees of the network, and has done lately.
    Overview(overview::OverviewArguments),
    /// Show whether a signature can be made now, and each part's state. Takes no token.
    Health(overview::HealthArguments),
    /// Make or show a token, which says to a manager who asks.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Keep under a name where a manager is, and how to be believed there.
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// Put a network under load and compare it with its engine's own ceiling.
    Bench(network::BenchArguments),
    /// Read the signers' audit logs, without a network.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Print what makes a shell complete commands and flags.
    Completion(shell::CompletionArguments),
    /// Print a manual page, or write all of them into a folder.
    Man(shell::ManArguments),
}

/// Reads the command line; help, versions and what is wrong with it are printed already.
pub(crate) fn parse() -> Result<Arguments, ExitCode> {
    Arguments::try_parse().map_err(|error| exit::report_usage(&error))
}

/// Does what the command line says.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let printer = Printer::new(arguments.output);
    match arguments.command {
        Command::Devnet(arguments) => network::devnet(arguments).await,
        Command::Keygen(arguments) => network::keygen(&arguments),
        Command::ImportLegacy(arguments) => network::import_legacy(arguments).await,
        Command::Key(command) => key::run(command, printer).await,
        Command::Backup(command) => backup::run(command, printer),
        Command::Sign(arguments) => sign::run(arguments, printer).await,
        Command::Approver(arguments) => approve::make_key(&arguments, printer),
        Command::Approve(arguments) => approve::run(arguments),
        Command::Status(arguments) => requests::status(&arguments, printer).await,
        Command::Watch(arguments) => requests::watch(&arguments, printer).await,
        Command::Requests(arguments) => requests::list(arguments, printer).await,
        Command::Keys(arguments) => keys::run(&arguments, printer).await,
        Command::Verify(arguments) => verify::run(&arguments, printer),
        Command::Overview(arguments) => overview::overview(&arguments, printer).await,
        Command::Health(arguments) => overview::health(&arguments, printer).await,
        Command::Token(command) => token::run(command, printer),
        Command::Profile(command) => profile::run(command, printer),
        Command::Bench(arguments) => network::bench(arguments).await,
        Command::Audit(command) => audit::run(command, printer),
        Command::Completion(arguments) => shell::completion(&arguments),
        Command::Man(arguments) => shell::man(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Each command with its subcommands, as they are typed.
    fn commands(command: &clap::Command, before: &str) -> Vec<String> {
        let mut all = Vec::new();
        for sub in command.get_subcommands() {
            let name = format!("{before} {}", sub.get_name());
            all.extend(commands(sub, &name));
            all.push(name);
        }
        all
    }

    #[test]
    fn the_command_line_has_no_contradictions_and_docs_name_every_command() {
        let command = Arguments::command();
        command.clone().debug_assert();
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tssctl.md");
        let text = std::fs::read_to_string(docs).unwrap();
        let all = commands(&command, "tssctl");
        assert!(all.len() > 20, "{all:?}");
        for name in all {
            assert!(text.contains(&name), "`{name}` is missing in docs/tssctl.md");
        }
        for code in exit::HELP.lines().skip(1) {
            let (code, meaning) = code.trim().split_once("  ").unwrap();
            let row = format!("| {code} | {} |", meaning.trim());
            assert!(text.contains(&row), "`{row}` is missing in docs/tssctl.md");
        }
    }
}
