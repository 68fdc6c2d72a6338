//! `audit`.

use std::path::PathBuf;

use clap::Subcommand;
use tss_common::audit::Head;
use tssctl::audit::{self, ShowOptions};
use uuid::Uuid;

use super::output::Printer;

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that nothing in a log was changed, removed, inserted or moved.
    Verify {
        /// The logs, signer1.audit.jsonl ….
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// A head that was kept elsewhere, as this command prints it: the log must still contain it.
        #[arg(long, value_name = "ENTRIES:HASH")]
        head: Option<Head>,
    },
    /// Show what is in logs, several merged by time, and check them meanwhile.
    Show {
        /// The logs, signer1.audit.jsonl ….
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Only what is about this request.
        #[arg(long)]
        request: Option<Uuid>,
        /// Print the lines as they stand in the logs; the same as --output json.
        #[arg(long)]
        json: bool,
    },
}

/// Runs `audit`.
pub(crate) fn run(command: AuditCommand, printer: Printer) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        AuditCommand::Verify { files, head } => audit::verify(&files, head, &mut out),
        AuditCommand::Show { files, request, json } => {
            let options = ShowOptions { request, json: json || printer.is_json() };
            for warning in audit::show(&files, options, &mut out)? {
                eprintln!("{warning}");
            }
            Ok(())
        }
    }
}
