//! A request's events: server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>), of which
//! the manager sends one kind.

use std::collections::VecDeque;
use std::time::Duration;

use futures::{Stream, stream};
use reqwest::{Response, StatusCode};
use uuid::Uuid;

use crate::Error;
use crate::client::{Call, Client};
use crate::tries::Tries;
use crate::types::Status;

/// The longest event, in bytes. A reason is the longest thing in it.
const MAX_EVENT: usize = 64 << 10;

/// How long a connection may be silent before another one is opened.
const SILENCE: Duration = Duration::from_secs(60);

/// The states of a request, from now on.
pub(crate) fn of(client: Client, id: Uuid) -> impl Stream<Item = Result<Status, Error>> + Send {
    let follower = Follower { tries: client.tries(), client, id, connection: None, last: None };
    stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next().await {
            Ok(Some(status)) => Some((Ok(status), Some(follower))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// Who follows a request, over as many connections as it takes.
struct Follower {
    client: Client,
    id: Uuid,
    tries: Tries,
    connection: Option<(Response, Parser)>,
    last: Option<Status>,
}

impl Follower {
    /// The next state that is another; none after the final one.
    async fn next(&mut self) -> Result<Option<Status>, Error> {
        if self.last.as_ref().is_some_and(|last| last.status.is_final()) {
            return Ok(None);
        }
        loop {
            match self.receive().await {
                Ok(Some(status)) => {
                    // The manager answers: what fails from now on is another failure.
                    self.tries = self.client.tries();
                    if self.last.as_ref() != Some(&status) {
                        self.last = Some(status.clone());
                        return Ok(Some(status));
                    }
                }
                Ok(None) => {
                    self.connection = None;
                    // Not at once: whoever closes connections may be going down.
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(error) => {
                    self.connection = None;
                    self.tries.after(error).await?;
                }
            }
        }
    }

    /// The next event; none when the connection has ended.
    async fn receive(&mut self) -> Result<Option<Status>, Error> {
        if self.connection.is_none() {
            let id = self.id.to_string();
            let response = self.client.follow(&Call::get(&["requests", &id, "events"])).await?;
            self.connection = Some((response, Parser::default()));
        }
        let Some((response, parser)) = &mut self.connection else { return Ok(None) };
        let status = response.status();
        loop {
            if let Some(event) = parser.next() {
                return serde_json::from_str(&event).map(Some).map_err(|error| self.malformed(status, error));
            }
            match tokio::time::timeout(SILENCE, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    if let Err(problem) = parser.feed(&bytes) {
                        return Err(self.malformed(status, problem));
                    }
                }
                Ok(Err(error)) => return Err(self.client.unreachable(error)),
                Ok(Ok(None)) | Err(_) => return Ok(None),
            }
        }
    }

    fn malformed(&self, status: StatusCode, problem: impl ToString) -> Error {
        let call = format!("GET /requests/{}/events", self.id);
        Error::Malformed { call, status, problem: problem.to_string() }
    }
}

/// Cuts bytes into the data of `status` events.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    after_return: bool,
    kind: String,
    data: String,
    ready: VecDeque<String>,
}

impl Parser {
    fn next(&mut self) -> Option<String> {
        self.ready.pop_front()
    }

    /// Takes bytes as they come, wherever they are cut.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        for &byte in bytes {
            // A line ends with \n, \r or both.
            let both = std::mem::replace(&mut self.after_return, byte == b'\r') && byte == b'\n';
            match byte {
                _ if both => {}
                b'\n' | b'\r' => self.end_line()?,
                _ => self.line.push(byte),
            }
            if self.line.len().saturating_add(self.data.len()) > MAX_EVENT {
                return Err(format!("an event has more than {MAX_EVENT} bytes"));
            }
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), String> {
        let line = String::from_utf8(std::mem::take(&mut self.line)).map_err(|_| "an event is not UTF-8")?;
        if line.is_empty() {
            let (kind, data) = (std::mem::take(&mut self.kind), std::mem::take(&mut self.data));
            if kind == "status" && !data.is_empty() {
                self.ready.push_back(data);
            }
            return Ok(());
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.kind = value.to_owned(),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // A comment that keeps the connection open, or something that is not asked for.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::default();
        for chunk in chunks {
            parser.feed(chunk).unwrap();
        }
        std::iter::from_fn(|| parser.next()).collect()
    }

    #[test]
    fn events_are_told_apart_however_they_are_cut() {
        let text = ":hello\r\n\r\nid: 7\r\nevent: status\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\n\
                    event: other\ndata: x\n\nevent:status\ndata:{}\n\ndata: {\"of no kind\": 1}\n\n\
                    event: status\rdata: 3\r\revent: status\ndata: not ended";
        let expected = ["{\"a\":\n1}", "{}", "3"];
        assert_eq!(parse(&[text.as_bytes()]), expected);
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(parse(&bytes), expected);
    }

    #[test]
    fn an_event_without_end_or_of_no_text_is_refused() {
        let long = vec![b'a'; MAX_EVENT + 1];
        assert!(Parser::default().feed(&long).unwrap_err().contains("more than 65536 bytes"));
        let line = [b"data: ".to_vec(), vec![b'a'; 1000], b"\n".to_vec()].concat();
        let many = line.repeat(MAX_EVENT / 1000 + 1);
        assert!(Parser::default().feed(&many).is_err());
        assert!(Parser::default().feed(b"data: \xff\n").is_err());
    }
}
