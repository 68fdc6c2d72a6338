//! The audit log's reader: what was changed is found, and a log that is refused stays as it is.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tss_common::audit::{AuditLog, Damage, Head, Problem, entries, verify};
use tss_common::intent::hash_fields;
use tss_fuzz::{AUDIT_LOG, Input, shown, signer};

/// The head of the fixture.
static HEAD: LazyLock<Head> = LazyLock::new(|| {
    let report = verify(AUDIT_LOG.as_bytes(), None).expect("the fixture is a whole log");
    assert_eq!((report.torn, report.head.entries), (0, AUDIT_LOG.lines().count() as u64));
    report.head
});

/// A file of this process, where files are cheap if there is such a place.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("tss-fuzz-audit-{}", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() {
        0..=31 => drop(read(input.rest())),
        32..=95 => edited(&input.edit(AUDIT_LOG.as_bytes())),
        96..=223 => sealed(input),
        224..=247 => head(&String::from_utf8_lossy(input.rest())),
        kind => opened(input, kind % 2 == 0),
    }
});

/// Reads a log in both ways, which say the same.
fn read(log: &[u8]) -> Result<Head, Problem> {
    let verified = verify(log, None);
    let mut lines = entries(log, None);
    let mut count = 0;
    let mut problem = None;
    for entry in &mut lines {
        match entry {
            Ok(entry) => {
                count += 1;
                assert_eq!(entry.seq, count);
                let written = serde_json::to_value(&entry.event).expect("an event has a JSON form");
                let read = serde_json::from_value(written).expect("what was written is read");
                assert_eq!(entry.event, read);
            }
            Err(error) => problem = Some(error),
        }
    }
    assert!(lines.next().is_none());
    match (&verified, &problem) {
        (Ok(report), None) => {
            assert_eq!((lines.head(), lines.torn()), (report.head, report.torn));
            assert_eq!(report.head.entries, count);
            assert_eq!(report.signer.is_some(), count > 0);
        }
        // Only reading the entries looks at all of an event.
        (_, Some(Problem::Line { damage: Damage::Malformed(_), .. })) => {}
        (Err(error), Some(problem)) => assert_eq!(error.to_string(), problem.to_string()),
        _ => panic!("{} but {}", shown(&verified), shown(&problem)),
    }
    verified.map(|report| report.head)
}

/// Of the log that was written, at most the beginning of another line can be added unseen.
fn edited(log: &[u8]) {
    drop(read(log));
    if let Ok(report) = verify(log, Some(*HEAD)) {
        let torn = log.strip_prefix(AUDIT_LOG.as_bytes()).expect("a changed log was not noticed");
        assert_eq!((report.head, report.torn), (*HEAD, torn.len()));
    }
}

/// A chain over contents that the input says: they reach what is behind the hash.
fn sealed(mut input: Input<'_>) {
    let mut log = Vec::new();
    let mut head = Head::default();
    while !input.is_empty() && head.entries < 4 {
        let prev = hex::encode(head.hash);
        let seq = head.entries + 1;
        let kind = input.byte();
        let piece = input.short();
        let start = log.len();
        let time = "2026-01-02T03:04:05Z";
        match kind % 4 {
            0 => log.extend_from_slice(piece),
            1 => {
                log.extend(format!(r#"{{"seq":{seq},"prev":"{prev}","#).bytes());
                log.extend_from_slice(piece);
            }
            2 => {
                log.extend(
                    format!(r#"{{"seq":{seq},"prev":"{prev}","time":"{time}","signer":1,"event":"#).bytes(),
                );
                log.extend_from_slice(piece);
            }
            _ => {
                // A true event, edited.
                let events: Vec<&str> = AUDIT_LOG.lines().filter_map(event).collect();
                let event = input.pick(&events);
                log.extend(
                    format!(r#"{{"seq":{seq},"prev":"{prev}","time":"{time}","signer":1,"event":"#).bytes(),
                );
                log.extend(Input::new(piece).edit(event.as_bytes()));
            }
        }
        let hash = hash_fields("tss.network/audit/v1", &[&log[start..]]);
        log.extend(format!(",\"hash\":\"{}\"}}\n", hex::encode(hash)).bytes());
        head = Head { entries: seq, hash };
    }
    if let Ok(found) = read(&log) {
        assert_eq!(found, head);
    }
}

/// The event in a line.
fn event(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(r#""event":"#)?;
    rest.rsplit_once(r#","hash":""#).map(|(event, _)| event)
}

fn head(text: &str) {
    if let Ok(head) = text.parse::<Head>() {
        assert_eq!(head.to_string().parse(), Ok(head));
    }
}

/// A file that is refused is not touched. Of one that is opened, only a torn line is cut off.
fn opened(mut input: Input<'_>, known: bool) {
    let log = input.edit(AUDIT_LOG.as_bytes());
    let expected = known.then_some(*HEAD);
    std::fs::write(&*FILE, &log).expect("the folder can be written to");
    let result = AuditLog::open(&FILE, signer(1), expected);
    let after = std::fs::read(&*FILE).expect("it is still there");
    match &result {
        Err(_) => assert!(after == log, "a refused log was changed"),
        Ok(opened) => {
            let torn = log.strip_prefix(&*after).expect("more than the end of the log was changed");
            let report = verify(&*log, expected).expect("it was opened");
            assert_eq!((opened.head(), torn.len()), (report.head, report.torn));
        }
    }
    let verified = verify(&*log, expected);
    assert_eq!(
        result.is_ok(),
        verified.is_ok_and(|report| report.signer.is_none_or(|found| found == signer(1)))
    );
    std::fs::remove_file(&*FILE).expect("it is still there");
}
