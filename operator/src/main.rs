//! `operator`: reconciles `TssCluster` and `SigningRequest`; writes their definitions; stores what a
//! key generation has made; tests whether a network signs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kube::ResourceExt as _;
use tss_common::{process, version};
use tss_operator::crd;
use tss_operator::program::{self, LogOptions, RunOptions};
use tss_operator::sign_test::{self, SignTestOptions};
use tss_operator::store::{self, StoreOptions};

/// The Kubernetes operator of the TSS network. Without a command it runs.
#[derive(Parser)]
#[command(name = program::PROGRAM, version = version::FULL)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Look after TssClusters and SigningRequests.
    Run(RunOptions),
    /// Print the definitions of TssCluster and SigningRequest.
    Crds {
        /// Write them to this folder instead, a file each.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Put files into a new Secret: the end of key generation in the cluster.
    Store {
        #[command(flatten)]
        store: StoreOptions,
        #[command(flatten)]
        log: LogOptions,
    },
    /// Have a TssCluster sign a message, and check the signature.
    SignTest {
        #[command(flatten)]
        test: SignTestOptions,
        #[command(flatten)]
        log: LogOptions,
    },
}

fn main() -> ExitCode {
    process::main(|| async {
        match Arguments::parse_from(with_command(std::env::args_os().collect())).command {
            Command::Run(options) => program::run(options).await,
            Command::Crds { out } => crds(out.as_deref()),
            Command::Store { store, log } => {
                log.init();
                let client = program::client_without_retries(program::config().await?)?;
                store::store(&client, &store).await
            }
            Command::SignTest { test, log } => {
                log.init();
                let client = program::client_without_retries(program::config().await?)?;
                sign_test::sign_test(&client, &test).await
            }
        }
    })
}

/// `operator` and `operator --flag` are `operator run` and `operator run --flag`.
fn with_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let first = arguments.get(1).map(|first| first.to_string_lossy().into_owned());
    let run = first.is_none_or(|first| {
        first.starts_with('-') && !["-h", "--help", "-V", "--version"].contains(&first.as_str())
    });
    if run && !arguments.is_empty() {
        arguments.insert(1, "run".into());
    }
    arguments
}

fn crds(out: Option<&Path>) -> anyhow::Result<()> {
    for definition in crd::definitions() {
        let yaml = crd::yaml(&definition)?;
        match out {
            Some(folder) => {
                let file = folder.join(format!("{}.yaml", definition.name_any()));
                std::fs::create_dir_all(folder)
                    .and_then(|()| std::fs::write(&file, yaml))
                    .with_context(|| file.display().to_string())?;
            }
            None => print!("---\n{yaml}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_runs() {
        let command = |arguments: &[&str]| {
            let all = ["operator"].iter().chain(arguments).map(OsString::from).collect();
            with_command(all).get(1).map(|first| first.to_string_lossy().into_owned())
        };
        assert_eq!(command(&[]).as_deref(), Some("run"));
        assert_eq!(command(&["--leader-election"]).as_deref(), Some("run"));
        assert_eq!(command(&["crds"]).as_deref(), Some("crds"));
        assert_eq!(command(&["--help"]).as_deref(), Some("--help"));
    }
}
