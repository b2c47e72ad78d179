//! Takes the audit log along: writes an export to a file while it comes.
//!
//! The answer is one document of JSON, and may be long. What comes goes through a channel to a
//! thread that reads it as such and writes line by line; of the document no more is in memory than
//! a line and what waits in the channel.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::Method;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::call::Call;
use super::client::{Content, Letter, Problem};
use super::files::Lines;
use super::run::{Session, put};
use super::text::flat;
use crate::error::{Error, Kind, Result};

/// How many pieces of the answer wait to be written, of as many bytes as a connection gives.
const WAITING: usize = 16;

/// Writes the whole log to the file named by `--output`.
pub(super) async fn export(session: &Session<'_>, call: &Call) -> Result<u8, Problem> {
    let path = PathBuf::from(call.extras.get("output").map_or("", String::as_str));
    let (uri, headers, body) = (call.question()?.uri, Vec::new(), Content::Nothing);
    let mut opened =
        session.client.open(Letter { method: Method::GET, uri, headers, body }).await?;
    if !opened.status.is_success() {
        return Err(opened.whole().await?.into());
    }
    let (sender, pieces) = mpsc::channel(WAITING);
    let to = path.clone();
    let writing = tokio::task::spawn_blocking(move || write(&to, pieces));
    while let Some(frame) = opened.body.frame().await {
        let piece = match frame {
            Ok(frame) => frame.into_data().map(Ok).ok(),
            Err(error) => Some(Err(io::Error::other(error))),
        };
        // Whoever writes no more says why below.
        if let Some(piece) = piece
            && sender.send(piece).await.is_err()
        {
            break;
        }
    }
    drop(sender);
    let written = writing
        .await
        .map_err(|error| Error::new(Kind::Internal, "cannot write what comes").because(error))?;
    let (count, place) = (written?, flat(&path.display().to_string()));
    put(&if session.globals.json {
        format!("{}\n", json!({ "output": place, "entries": count }))
    } else {
        format!(
            "\n  Wrote {count} entries to {place}\n  Check them with `osapi audit verify {place}`\n"
        )
    })?;
    Ok(0)
}

/// Writes what comes of an export, and says how many entries it has.
fn write(path: &Path, pieces: mpsc::Receiver<io::Result<Bytes>>) -> Result<u64> {
    let mut writing =
        Writing { lines: Lines::create(path)?, items: 0, ends: None, total: None, fault: None };
    let reader = BufReader::new(Pieces { receiver: pieces, rest: Bytes::new() });
    let mut document = serde_json::Deserializer::from_reader(reader);
    let read = document.deserialize_map(&mut writing).and_then(|()| document.end());
    if let Some(fault) = writing.fault {
        return Err(fault);
    }
    let broken = |why: &str| {
        let message = format!("{why}; nothing is written to {}", path.display());
        Error::new(Kind::Unavailable, message)
    };
    read.map_err(|error| broken("the controller's answer broke off").because(error))?;
    let Writing { mut lines, items, ends, total, .. } = writing;
    let Some(ends) = ends.filter(|_| total == Some(items)) else {
        return Err(broken("the controller's answer does not tell how much there is"));
    };
    lines.add(&json!({ "ends": ends, "entries": items }).to_string())?;
    lines.end()?;
    Ok(items)
}

/// What has come, to be read as one.
struct Pieces {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let length = into.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

/// An export on its way into a file.
struct Writing {
    lines: Lines,
    items: u64,
    ends: Option<Value>,
    total: Option<u64>,
    /// Why nothing more can be written.
    fault: Option<Error>,
}

impl Writing {
    fn add(&mut self, line: &Value) -> Result<(), &'static str> {
        self.lines.add(&line.to_string()).map_err(|error| {
            self.fault = Some(error);
            "cannot write it"
        })
    }
}

impl<'de> Visitor<'de> for &mut Writing {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an export of the audit log")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "items" => map.next_value_seed(Each(|item| {
                    self.items += 1;
                    self.add(&item)
                }))?,
                "links" => map.next_value_seed(Each(|link| self.add(&json!({ "link": link }))))?,
                "ends" => self.ends = Some(map.next_value()?),
                "total_items" => self.total = Some(map.next_value()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A list, of which each is done with before the next is read.
struct Each<F>(F);

impl<'de, F: FnMut(Value) -> Result<(), &'static str>> DeserializeSeed<'de> for Each<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(Value) -> Result<(), &'static str>> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(one) = list.next_element()? {
            (self.0)(one).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
