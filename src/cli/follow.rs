//! Prints what has no end, and goes on where it was when the connection breaks off.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Method;
use serde_json::Value;

use super::call::Call;
use super::client::{Content, Letter, Problem};
use super::run::Session;
use super::wait::DETACHED;
use super::{output, say};
use crate::error::{Error, ErrorBody, Kind, Result};

/// The pause before asking again.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a controller or an agent may be away.
const AWAY: Duration = Duration::from_mins(1);
/// The longest event, in bytes.
const LONGEST: usize = 4 << 20;

/// How a connection ended.
enum Ended {
    /// To be gone on with.
    BrokenOff,
    Failed(Problem),
    /// Nobody reads what is printed.
    Unread,
}

/// Goes on until Ctrl-C.
pub(super) async fn follow(session: &Session<'_>, mut call: Call) -> Result<u8, Problem> {
    tokio::select! {
        exit = go_on(session, &mut call) => exit,
        _ = tokio::signal::ctrl_c() => Ok(DETACHED),
    }
}

async fn go_on(session: &Session<'_>, call: &mut Call) -> Result<u8, Problem> {
    let mut heard: Option<Instant> = None;
    loop {
        let problem = match once(session, call, &mut heard).await {
            Ended::Unread => return Ok(0),
            Ended::BrokenOff => None,
            Ended::Failed(problem) => Some(problem),
        };
        if let Some(problem) = problem {
            let is_passing = matches!(problem.error.kind(), Kind::Unavailable | Kind::Busy);
            if !is_passing || heard.is_none_or(|heard| heard.elapsed() >= AWAY) {
                return Err(problem);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks, and prints what comes; notes in `call` from where to go on, and when it last heard
/// anything.
async fn once(session: &Session<'_>, call: &mut Call, heard: &mut Option<Instant>) -> Ended {
    let opened = match call.question() {
        Ok(question) => {
            let (method, body) = (Method::GET, Content::Nothing);
            session
                .client
                .open(Letter { method, uri: question.uri, headers: Vec::new(), body })
                .await
        }
        Err(error) => return Ended::Failed(error.into()),
    };
    let mut opened = match opened {
        Ok(opened) if opened.status.is_success() => opened,
        Ok(refused) => {
            let reply = refused.whole().await;
            return Ended::Failed(reply.map_or_else(Problem::from, Problem::from));
        }
        Err(error) => return Ended::Failed(error.into()),
    };
    let mut events = Parser::default();
    // A connection that breaks off is opened again.
    while let Some(Ok(frame)) = opened.body.frame().await {
        *heard = Some(Instant::now());
        let Ok(part) = frame.into_data() else { continue };
        events.buffer.extend_from_slice(&part);
        while let Some(event) = events.next() {
            if event.name == "end" {
                return ended(session, &event);
            }
            let Ok(entry) = serde_json::from_str::<Value>(&event.data) else { continue };
            let is_json = session.globals.json;
            let line = if is_json { format!("{entry}\n") } else { output::line(call.row, &entry) };
            if !is_read(&line) {
                return Ended::Unread;
            }
            if let Some(id) = event.id {
                call.params.insert("after".to_owned(), id.into());
            }
        }
        if events.buffer.len() > LONGEST {
            let what = "the controller sent an event without an end";
            return Ended::Failed(Error::new(Kind::Internal, what).into());
        }
    }
    Ended::BrokenOff
}

/// What the last event says.
fn ended(session: &Session<'_>, event: &Event) -> Ended {
    let told: Value = serde_json::from_str(&event.data).unwrap_or_default();
    let kind = serde_json::from_value(told["kind"].clone()).unwrap_or(Kind::Internal);
    let message = told["message"].as_str().unwrap_or("the controller did not say why").to_owned();
    if matches!(kind, Kind::Unavailable | Kind::Busy | Kind::Expired) {
        if session.globals.debug {
            say(&super::text::flat(&message));
        }
        return Ended::BrokenOff;
    }
    let (problems, not_restored) = (Vec::new(), Vec::new());
    let error: Error = ErrorBody { kind, message, problems, not_restored }.into();
    Ended::Failed(error.into())
}

/// Prints a line; false where nobody reads it.
fn is_read(line: &str) -> bool {
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}

#[derive(Debug, Default, Eq, PartialEq)]
struct Event {
    id: Option<String>,
    name: String,
    data: String,
}

/// Takes events out of what has come.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
}

impl Parser {
    /// The next event that is here in full. What has no data, such as a comment, is none.
    fn next(&mut self) -> Option<Event> {
        loop {
            let end = self.buffer.windows(2).position(|window| window == b"\n\n")?;
            let bytes: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&bytes);
            let mut event = Event::default();
            for line in text.lines() {
                let (field, value) = line.split_once(": ").unwrap_or((line, ""));
                match field {
                    "id" => event.id = Some(value.to_owned()),
                    "event" => value.clone_into(&mut event.name),
                    "data" => event.data.push_str(value),
                    _ => {}
                }
            }
            if !event.data.is_empty() {
                return Some(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_once_they_are_whole() {
        let mut parser = Parser::default();
        let text =
            "retry: 1\n\n:\n\nid: s=1;i=2\ndata: {\"a\":\"b: c\"}\n\nevent: end\ndata: {}\n\n";
        let mut events = Vec::new();
        for byte in text.bytes() {
            parser.buffer.push(byte);
            events.extend(parser.next());
        }
        let entry = Event {
            id: Some("s=1;i=2".to_owned()),
            name: String::new(),
            data: "{\"a\":\"b: c\"}".to_owned(),
        };
        let end = Event { id: None, name: "end".to_owned(), data: "{}".to_owned() };
        assert_eq!(events, [entry, end]);
    }
}
