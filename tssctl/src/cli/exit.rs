//! How errors are printed, and the exit code that each has.

use std::process::ExitCode;

use serde_json::json;
use tss_client::Error;
use tss_client::error::ProblemKind;

use super::output::{self, Output};

/// What the codes mean, for `--help`.
pub(crate) const HELP: &str = "Exit codes:
  0  it was done
  1  it was not done, for another reason than these
  2  the command line, a profile or a file that it names is wrong
  3  the request failed and will not be signed, or the signature is invalid
  4  the request is not signed yet, or not all signers have new shares
  5  the manager cannot be reached
  6  the manager refuses who asks (401, 403)
  7  the manager cannot do it now (429, 503): it is busy, or a part of the network is away";

/// Why a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Nobody reads any more.
    Unread = 0,
    /// Another reason than those below.
    Failed = 1,
    /// The command line, a profile or a file that it names is wrong.
    Usage = 2,
    /// The request failed, or the signature is invalid.
    Unsigned = 3,
    /// The request is not signed yet, or not all signers have new shares.
    Late = 4,
    /// The manager cannot be reached.
    Unreachable = 5,
    /// The manager refuses who asks.
    Refused = 6,
    /// The manager cannot do it now.
    Busy = 7,
}

/// An error with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What the caller has to change.
    pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
        Self::new(Code::Usage, message).into()
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Code {
    fn of(error: &anyhow::Error) -> Self {
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return failure.code;
        }
        match error.downcast_ref::<Error>() {
            Some(error) => Self::of_client(error),
            None => Self::Failed,
        }
    }

    fn of_client(error: &Error) -> Self {
        match error {
            Error::Settings { .. } | Error::Token { .. } => Self::Usage,
            Error::Unreachable { .. } | Error::TimedOut { .. } => Self::Unreachable,
            Error::NotSigned { .. } => Self::Late,
            Error::Problem { kind: ProblemKind::RequestFailed, .. } => Self::Unsigned,
            Error::Problem { status, .. } => match status.as_u16() {
                401 | 403 => Self::Refused,
                429 | 503 => Self::Busy,
                _ => Self::Failed,
            },
            _ => Self::Failed,
        }
    }

    fn exit(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Says what went wrong.
pub(crate) fn report(error: &anyhow::Error, output: Option<Output>) -> ExitCode {
    let code = Code::of(error);
    if code != Code::Unread {
        match output {
            Some(Output::Json) => print_json(error, code),
            _ => eprintln!("error: {}", output::plain_lines(&format!("{error:#}"))),
        }
    }
    code.exit()
}

fn print_json(error: &anyhow::Error, code: Code) {
    let mut body = json!({ "exit_code": code as u8, "message": format!("{error:#}") });
    if let Some(Error::Problem { status, kind, retry_after, .. }) = error.downcast_ref::<Error>() {
        body["status"] = status.as_u16().into();
        body["kind"] = kind.as_str().into();
        if let Some(time) = retry_after {
            body["retry_after"] = time.as_secs().into();
        }
    }
    eprintln!("{}", json!({ "error": body }));
}

/// Says what is wrong with a command line, or shows the help or the version that it asks for.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let json = words.iter().any(|word| word == "--output=json")
        || words.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if json && error.use_stderr() {
        let message = error.render().to_string();
        let message = message.trim().trim_start_matches("error: ");
        eprintln!("{}", json!({ "error": { "exit_code": error.exit_code(), "message": message } }));
    } else {
        // Nobody may be left to read it.
        let _ = error.print();
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_code_is_found_under_what_was_said_above_it() {
        let failure = Failure::usage("no");
        assert_eq!(Code::of(&failure), Code::Usage);
        assert_eq!(Code::of(&Err::<(), _>(failure).context("above").unwrap_err()), Code::Usage);
        let late = Error::NotSigned { request_id: uuid::Uuid::nil(), patience: std::time::Duration::ZERO };
        assert_eq!(Code::of(&Err::<(), _>(late).context("above").unwrap_err()), Code::Late);
        assert_eq!(Code::of(&anyhow::anyhow!("other")), Code::Failed);
    }
}
