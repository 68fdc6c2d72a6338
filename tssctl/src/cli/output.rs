//! How answers are printed: as text for people, or as JSON for scripts.

use std::io::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::exit::{Code, Failure};

/// What answers and errors are printed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people.
    Text,
    /// One JSON document; one a line where there are many. Errors too, on standard error.
    Json,
}

/// Prints answers, and nothing else, on standard output.
#[derive(Clone, Copy)]
pub(crate) struct Printer {
    output: Option<Output>,
}

impl Printer {
    pub(crate) fn new(output: Option<Output>) -> Self {
        Self { output }
    }

    /// Whether it prints JSON where that has to be asked for.
    pub(crate) fn is_json(self) -> bool {
        self.output == Some(Output::Json)
    }

    /// What is printed as JSON unless text is asked for.
    pub(crate) fn or_json(self) -> Self {
        Self { output: self.output.or(Some(Output::Json)) }
    }

    /// Prints the one answer.
    pub(crate) fn answer<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        line(&if self.is_json() { serde_json::to_string_pretty(value)? } else { text(value) })
    }

    /// Prints one of many, on a line of its own.
    pub(crate) fn one_of_many<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        line(&if self.is_json() { serde_json::to_string(value)? } else { text(value) })
    }
}

/// Prints lines on standard output. When nobody reads them any more, that is the command's end.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Unread, "nobody reads the output").into())
        }
        written => Ok(written?),
    }
}

/// Labels and values, one a line, the values below each other. Lines without a value are left out.
pub(crate) fn labelled<const N: usize>(lines: [(&str, Option<String>); N]) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or_default();
    let lines = lines.into_iter().filter_map(|(label, value)| Some((label, value?)));
    lines.map(|(label, value)| format!("{label:width$}  {}\n", plain(&value))).collect()
}

/// Rows below a heading, each column as wide as what is in it.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(plain(cell).chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| format!("{:width$}", plain(cell)));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    std::iter::once(line(heading))
        .chain(rows.iter().map(|row| line(row.each_ref().map(String::as_str))))
        .collect()
}

/// A text of somebody else's on a line: what could move a terminal's cursor is shown as an escape.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|char| {
            let escaped: Vec<char> =
                if char.is_control() { char.escape_debug().collect() } else { vec![char] };
            escaped
        })
        .collect()
}

/// The same for a text of several lines.
pub(crate) fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// `1, 3`; a dash for none.
pub(crate) fn quorum(quorum: Option<&[u8]>) -> String {
    let numbers = |quorum: &[u8]| quorum.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    quorum.map_or("-".into(), numbers)
}

/// A time to the second.
pub(crate) fn seconds(time: Timestamp) -> String {
    format!("{time:.0}")
}

/// What a terminal shows while something is waited for.
pub(crate) fn spinner(message: String) -> ProgressBar {
    let progress = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
        progress.set_style(style);
    }
    progress.set_message(message);
    progress.enable_steady_tick(Duration::from_millis(100));
    progress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other_and_no_text_moves_the_cursor() {
        let rows = [["a".into(), "b\u{1b}[2J".into()], ["long".into(), String::new()]];
        assert_eq!(table(["A", "B"], &rows), "A     B\na     b\\u{1b}[2J\nlong\n");
        let lines = labelled([("a", Some("1".into())), ("none", None), ("long", Some("2\n3".into()))]);
        assert_eq!(lines, "a     1\nlong  2\\n3\n");
    }

    #[test]
    fn times_and_quorums_are_short() {
        assert_eq!(seconds("2030-01-02T03:04:05.678Z".parse().unwrap()), "2030-01-02T03:04:05Z");
        assert_eq!((quorum(Some(&[1, 3])).as_str(), quorum(None).as_str()), ("1, 3", "-"));
    }
}
