//! `tssctl`: the command line of the TSS network.

use std::process::ExitCode;

use tss_common::process;

mod cli;

fn main() -> ExitCode {
    let arguments = match cli::parse() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let output = arguments.output;
    process::main_with(|| cli::run(arguments), |error| cli::exit::report(error, output))
}
