//! `completion` and `man`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::exit::Failure;
use super::{Arguments, output};

#[derive(Args)]
pub(crate) struct CompletionArguments {
    /// The shell.
    shell: Shell,
}

#[derive(Args)]
pub(crate) struct ManArguments {
    /// The command whose page is printed, as in `man token make`; tssctl's own without.
    command: Vec<String>,
    /// Write all pages into this folder, instead of printing one.
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    out: Option<PathBuf>,
}

/// Runs `completion`.
pub(crate) fn completion(arguments: &CompletionArguments) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "tssctl", &mut script);
    output::line(&String::from_utf8(script).context("a script is text")?)
}

/// Runs `man`.
pub(crate) fn man(arguments: &ManArguments) -> anyhow::Result<()> {
    let mut command = Arguments::command();
    if let Some(folder) = &arguments.out {
        let write = || {
            std::fs::create_dir_all(folder)?;
            clap_mangen::generate_to(command, folder)
        };
        return write().with_context(|| folder.display().to_string());
    }
    // Names and flags of commands are complete only then.
    command.build();
    let mut page = Vec::new();
    Man::new(find(command, &arguments.command)?).render(&mut page)?;
    output::line(&String::from_utf8(page).context("a page is text")?)
}

fn find(mut command: Command, names: &[String]) -> anyhow::Result<Command> {
    for name in names {
        let sub = command.find_subcommand(name).cloned();
        command =
            sub.ok_or_else(|| Failure::usage(format!("`{}` has no command `{name}`", command.get_name())))?;
    }
    Ok(command)
}
