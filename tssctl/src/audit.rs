//! Reading the signers' audit logs: whether they are whole, and what is in them.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tss_common::audit::{self, Entries, Entry, Event, Finish, Head, NewShare, Problem};
use uuid::Uuid;

/// How much of a file is read at once.
const BUFFER: usize = 256 << 10;

/// What is shown of logs.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShowOptions {
    /// Only what is about this request.
    pub request: Option<Uuid>,
    /// The lines as they are, instead of for a person.
    pub json: bool,
}

/// Checks logs, and says of each that is whole how long it is and where it ends. `head` is one that the
/// log must contain.
///
/// # Errors
/// When `head` is given for other than one log, or naming each log that is not whole, and the line.
pub fn verify(files: &[PathBuf], head: Option<Head>, out: &mut impl Write) -> anyhow::Result<()> {
    anyhow::ensure!(
        head.is_none() || files.len() == 1,
        "--head is of one log: expected one file, got {}",
        files.len()
    );
    let mut problems = Vec::new();
    for file in files {
        match open(file).and_then(|reader| audit::verify(reader, head)) {
            Ok(report) => {
                writeln!(
                    out,
                    "{}: {}, whole, head {}",
                    file.display(),
                    count(report.head.entries, "entry", "entries"),
                    report.head
                )?;
                if report.torn > 0 {
                    writeln!(out, "{}", torn(file, report.torn))?;
                }
            }
            Err(problem) => problems.push(problem.at(file).to_string()),
        }
    }
    ensure_none(&problems)
}

/// Shows the entries of logs, merged by time; entries of one log stay in their order. Checks the logs
/// meanwhile. Returns what is worth a warning.
///
/// # Errors
/// Naming each log that is not whole, and the line, after everything before it has been shown; or
/// when `out` cannot be written.
pub fn show(files: &[PathBuf], options: ShowOptions, out: &mut impl Write) -> anyhow::Result<Vec<String>> {
    let mut logs: Vec<Log> = files.iter().map(|file| Log::open(file, options.request)).collect();
    match print_merged(&mut logs, options, &mut BufWriter::new(out)) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Vec::new()),
        printed => printed.context("the output cannot be written")?,
    }
    let mut warnings = Vec::new();
    let mut problems = Vec::new();
    for Log { file, entries, problem, .. } in logs {
        let bytes = entries.map_or(0, |entries| entries.torn());
        if bytes > 0 {
            warnings.push(torn(&file, bytes));
        }
        problems.extend(problem.map(|problem| problem.at(&file).to_string()));
    }
    ensure_none(&problems)?;
    Ok(warnings)
}

fn print_merged(logs: &mut [Log], options: ShowOptions, out: &mut impl Write) -> io::Result<()> {
    // With equal times, the one named first.
    while let Some((log, entry)) = logs
        .iter_mut()
        .filter(|log| log.next.is_some())
        .min_by_key(|log| log.next.as_ref().map(|entry| entry.time))
        .and_then(|log| log.next.take().map(|entry| (log, entry)))
    {
        if options.json {
            writeln!(out, "{}", entry.line)?;
        } else {
            writeln!(out, "{}", line(&entry))?;
        }
        log.advance(options.request);
    }
    out.flush()
}

/// A log that is being shown.
struct Log {
    file: PathBuf,
    entries: Option<Entries<BufReader<File>>>,
    next: Option<Entry>,
    problem: Option<Problem>,
}

impl Log {
    /// A log at its first entry about `request`, or of any.
    fn open(file: &Path, request: Option<Uuid>) -> Self {
        let (entries, problem) = match open(file) {
            Ok(reader) => (Some(audit::entries(reader, None)), None),
            Err(problem) => (None, Some(problem)),
        };
        let mut log = Self { file: file.to_owned(), entries, next: None, problem };
        log.advance(request);
        log
    }

    /// Goes to the next entry about `request`, or of any.
    fn advance(&mut self, request: Option<Uuid>) {
        let about = |entry: &Entry| {
            request.is_none_or(|request| entry.event.attempt().is_some_and(|(of, _)| of == request))
        };
        for entry in self.entries.iter_mut().flatten() {
            match entry {
                Ok(entry) if about(&entry) => return self.next = Some(entry),
                Ok(_) => {}
                Err(problem) => return self.problem = Some(problem),
            }
        }
    }
}

fn open(file: &Path) -> Result<BufReader<File>, Problem> {
    Ok(BufReader::with_capacity(BUFFER, File::open(file)?))
}

fn ensure_none(problems: &[String]) -> anyhow::Result<()> {
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn torn(file: &Path, bytes: usize) -> String {
    format!(
        "{}: warning: {} without a line end follow, of an entry that a crash cut short or that is being \
         written now; it was never acknowledged",
        file.display(),
        count(bytes as u64, "byte", "bytes")
    )
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// An entry for a person: when, whose log, what, about which request and attempt, and the details.
fn line(entry: &Entry) -> String {
    let (request, attempt) =
        entry.event.attempt().map_or((String::from("-"), String::from("-")), |(request, attempt)| {
            (request.to_string(), attempt.to_string())
        });
    let time = entry.time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ");
    printable(&format!(
        "{time}  signer {:<2}  {:<8}  {request:<36}  attempt {attempt:<3}  {}",
        entry.signer.get(),
        entry.event.kind(),
        details(&entry.event)
    ))
}

fn details(event: &Event) -> String {
    match event {
        Event::Opened { version, cluster, key, epoch, public_key } => {
            format!("version {version}, cluster {cluster}, key {key}, epoch {epoch}, public key {public_key}")
        }
        Event::Policy { hash, approvers, summary } => {
            format!(
                "{summary}; {}; hash {}",
                count((*approvers).into(), "approver", "approvers"),
                hex::encode(hash)
            )
        }
        Event::Accepted { session, intent, intent_hash, quorum, approvers, .. } => {
            let approvers = if approvers.is_empty() { "nobody".to_owned() } else { approvers.join(", ") };
            format!(
                "quorum {quorum:?}, key {}, path {}, {} digest {}, intent {}, session {}, approved by {approvers}",
                intent.key,
                intent.path,
                intent.hash,
                hex::encode(intent.digest),
                short(intent_hash),
                short(&session.0),
            )
        }
        Event::Refused { intent, intent_hash, quorum, reason, .. } => format!(
            "{reason}; quorum {quorum:?}, key {}, path {}, {} digest {}, intent {}",
            intent.key,
            intent.path,
            intent.hash,
            hex::encode(intent.digest),
            short(intent_hash)
        ),
        Event::Finished { session, intent_hash, outcome, signature, reason, .. } => {
            let mut text = String::from(match outcome {
                Finish::Signed => "signed",
                Finish::Aborted => "aborted",
            });
            // Writing to a string cannot fail.
            if let Some(reason) = reason {
                let _ = write!(text, ": {reason}");
            }
            if let Some(signature) = signature {
                let _ = write!(text, ": {}, recid {}", hex::encode(signature.to_compact()), signature.recid);
            }
            let _ = write!(text, "; intent {}", short(intent_hash));
            if let Some(session) = session {
                let _ = write!(text, ", session {}", short(&session.0));
            }
            text
        }
        Event::Cheating { culprits, banned, session, reason, evidence, .. } => format!(
            "by {culprits:?}, {}: {reason}; {} of evidence, session {}",
            if *banned { "banned" } else { "not banned" },
            count(evidence.len() as u64, "piece", "pieces"),
            short(&session.0)
        ),
        Event::Keygen(made) | Event::Import(made) | Event::Renew(made) => {
            let NewShare { session, cluster, key, epoch, threshold, public_key } = made;
            let session = short(&session.0);
            format!(
                "cluster {cluster}, key {key} at epoch {epoch}, {threshold}, public key {public_key}, session {session}"
            )
        }
        Event::Settled { key, epoch } => format!("key {key} at epoch {epoch}, and at none before"),
    }
}

/// The beginning of a hash: enough to find lines that belong together. `--json` has all of it.
fn short(hash: &[u8; 32]) -> String {
    format!("{}…", hex::encode(&hash[..8]))
}

/// A text without characters that a terminal obeys: reasons and names come from others, and must not be
/// able to make a line look like another, or like two.
fn printable(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' | '"' => plain.push(character),
            _ => plain.extend(character.escape_debug()),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tss_common::audit::AuditLog;
    use tss_mpc::{Signature, SignerIndex};

    use super::*;

    fn finished(request: u128, attempt: u32) -> Event {
        let signature = Signature { r: [1; 32], s: [2; 32], recid: 1 };
        Event::Finished {
            request: Uuid::from_u128(request),
            attempt,
            session: None,
            intent_hash: [3; 32],
            outcome: Finish::Signed,
            signature: Some(signature),
            reason: None,
        }
    }

    fn aborted(reason: &str) -> Event {
        Event::Finished {
            request: Uuid::from_u128(7),
            attempt: 1,
            session: None,
            intent_hash: [3; 32],
            outcome: Finish::Aborted,
            signature: None,
            reason: Some(reason.into()),
        }
    }

    /// The logs of signers 1 and 2, written in turns: requests 7, 8, 7, 8 ….
    struct Logs {
        files: Vec<PathBuf>,
        heads: Vec<Head>,
        _dir: TempDir,
    }

    fn logs() -> Logs {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> =
            (1..=2).map(|i| dir.path().join(format!("signer{i}.audit.jsonl"))).collect();
        let mut logs: Vec<AuditLog> = (1..)
            .zip(&files)
            .map(|(i, file)| AuditLog::open(file, SignerIndex::new(i).unwrap(), None).unwrap())
            .collect();
        for attempt in 1..=3 {
            for log in &mut logs {
                for request in [7, 8] {
                    log.append(&[finished(request, attempt)]).unwrap();
                }
            }
        }
        let heads = logs.iter().map(AuditLog::head).collect();
        Logs { files, heads, _dir: dir }
    }

    fn shown(files: &[PathBuf], options: ShowOptions) -> (String, anyhow::Result<Vec<String>>) {
        let mut out = Vec::new();
        let result = show(files, options, &mut out);
        (String::from_utf8(out).unwrap(), result)
    }

    fn verified(files: &[PathBuf], head: Option<Head>) -> (String, Result<(), String>) {
        let mut out = Vec::new();
        let result = verify(files, head, &mut out).map_err(|error| error.to_string());
        (String::from_utf8(out).unwrap(), result)
    }

    /// Cuts this much off the end of a file.
    fn cut(file: &Path, bytes: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
    }

    #[test]
    fn whole_logs_are_told_with_their_heads() {
        let Logs { files, heads, _dir } = logs();
        let line = |i: usize| format!("{}: 6 entries, whole, head {}\n", files[i].display(), heads[i]);
        assert_eq!(verified(&files, None), (line(0) + &line(1), Ok(())));
        assert_eq!(verified(&files[..1], Some(heads[0])), (line(0), Ok(())));
        let (out, result) = verified(&files[..1], Some(heads[1]));
        assert_eq!(out, "");
        assert!(result.unwrap_err().contains("signer1.audit.jsonl: line 6 was replaced"));
        assert!(verified(&files, Some(heads[0])).1.unwrap_err().contains("expected one file, got 2"));
    }

    #[test]
    fn a_torn_line_is_warned_of_and_a_missing_one_is_an_error() {
        let Logs { files, heads, _dir } = logs();
        cut(&files[0], 10);
        let (out, result) = verified(&files[..1], None);
        assert_eq!(result, Ok(()));
        assert!(out.contains("5 entries, whole, head 5:"), "{out}");
        assert!(out.contains("signer1.audit.jsonl: warning: "), "{out}");
        assert!(
            verified(&files[..1], Some(heads[0]))
                .1
                .unwrap_err()
                .ends_with("line 6 is missing: the log ends at line 5, but 6 entries were written")
        );
        let (out, result) = shown(&files, ShowOptions::default());
        assert_eq!(out.lines().count(), 11);
        assert_eq!(result.unwrap().len(), 1);
    }

    #[test]
    fn a_request_is_shown_across_logs_in_order_of_time() {
        let Logs { files, _dir, .. } = logs();
        let request = Some(Uuid::from_u128(7));
        let (out, result) = shown(&files, ShowOptions { request, json: false });
        assert_eq!(result.unwrap(), Vec::<String>::new());
        let lines: Vec<&str> = out.lines().collect();
        let expected: Vec<String> = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3)]
            .map(|(signer, attempt)| {
                format!(
                    "  signer {signer}   finished  {}  attempt {attempt}    signed: 0101",
                    Uuid::from_u128(7)
                )
            })
            .into();
        assert_eq!(lines.len(), expected.len());
        for (line, expected) in lines.iter().zip(&expected) {
            assert!(line[24..].starts_with(expected), "{line} is not {expected}");
        }
        assert!(lines.is_sorted_by_key(|line| &line[..24]));
        // Every line is as it stands in its file.
        let (out, result) = shown(&files, ShowOptions { request: None, json: true });
        assert!(result.is_ok());
        for file in &files {
            let content = std::fs::read_to_string(file).unwrap();
            let signer = &content[content.find("\"signer\"").unwrap()..][..10];
            let own: Vec<&str> = out.lines().filter(|line| line.contains(signer)).collect();
            assert_eq!(own, content.lines().collect::<Vec<_>>());
        }
        let (out, _) = shown(&files, ShowOptions { request: Some(Uuid::from_u128(9)), json: false });
        assert_eq!(out, "");
    }

    #[test]
    fn a_broken_log_is_shown_up_to_its_break_and_named() {
        let Logs { mut files, _dir, .. } = logs();
        let content = std::fs::read_to_string(&files[0]).unwrap();
        std::fs::write(&files[0], content.replacen("\"attempt\":2", "\"attempt\":3", 1)).unwrap();
        files.push(files[0].with_extension("none"));
        let (out, result) = shown(&files, ShowOptions::default());
        // Attempt 1 of signer 1, and all of signer 2.
        assert_eq!(out.lines().filter(|line| line.contains("signer 1 ")).count(), 2);
        assert_eq!(out.lines().filter(|line| line.contains("signer 2 ")).count(), 6);
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("signer1.audit.jsonl: line 3: its hash is not that of its content"),
            "{error}"
        );
        assert!(error.contains("signer1.audit.none: No such file"), "{error}");
        let (out, result) = verified(&files, None);
        assert_eq!(out.lines().count(), 1);
        assert_eq!(result.unwrap_err(), error);
    }

    #[test]
    fn nothing_in_an_entry_can_forge_a_line_or_move_the_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let mut log = AuditLog::open(&file, SignerIndex::MIN, None).unwrap();
        log.append(&[aborted("\"quoted\"\n2026\u{1b}[2K\u{9b}\u{202e}é")]).unwrap();
        let (out, _) = shown(&[file], ShowOptions::default());
        assert!(out.contains("aborted: \"quoted\"\\n2026\\u{1b}[2K\\u{9b}\\u{202e}é; intent 0303"), "{out}");
        assert_eq!(out.lines().count(), 1);
    }
}
