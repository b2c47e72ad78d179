//! The objects of a task that are too large to travel with it: fetched before it begins.

use std::io::{self, Read};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Shared;
use super::link::Asker;
use crate::error::{Error, Kind, Result};
use crate::job::{Content, Task};
use crate::link::{Answer, Ask, Link};

/// Sees to it that the executor has every object that `task` names.
pub(super) fn objects<L: Link + 'static>(agent: &Shared<L>, task: &Task) -> Result<()> {
    let large = task.objects.iter().filter(|(_, content)| content.bytes.is_none());
    for (name, content) in large {
        if agent.executor().has_object(&content.digest) {
            continue;
        }
        let mut parts = Parts::new(agent, task, name, content);
        let kept = agent.executor().keep_object(&content.digest, &mut parts);
        // What the link said is closer to the cause than what came of it.
        parts.failure.map_or(kept, Err)?;
    }
    Ok(())
}

/// An object as a stream, of which not more than was announced is ever read.
struct Parts<'a, L> {
    agent: &'a Shared<L>,
    link: Asker<L>,
    task: &'a Task,
    name: &'a str,
    size: u64,
    fetched: u64,
    part: io::Cursor<Vec<u8>>,
    failure: Option<Error>,
}

impl<'a, L: Link + 'static> Parts<'a, L> {
    fn new(agent: &'a Shared<L>, task: &'a Task, name: &'a str, content: &Content) -> Self {
        let link = Asker::new((agent.links)());
        let part = io::Cursor::default();
        Self { agent, link, task, name, size: content.size, fetched: 0, part, failure: None }
    }

    fn fetch(&mut self) -> Result<()> {
        if self.task.left(self.agent.clock().uptime()) == 0 {
            let message = "its deadline passed while what it needs was fetched";
            return Err(Error::new(Kind::Expired, message));
        }
        let (job, object) = (self.task.job.clone(), self.name.to_owned());
        let mut ask = Ask::Fetch { job, object, offset: self.fetched };
        let part = match self.link.ask(self.agent, &mut ask)? {
            Answer::Part(part) => STANDARD.decode(part).unwrap_or_default(),
            _ => Vec::new(),
        };
        self.fetched += part.len() as u64;
        if part.is_empty() || self.fetched > self.size {
            let message =
                format!("object {:?} is not what it was when the job was made", self.name);
            return Err(Error::new(Kind::Conflict, message));
        }
        self.part = io::Cursor::new(part);
        Ok(())
    }
}

impl<L: Link + 'static> Read for Parts<'_, L> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.part.read(buffer)?;
        if read > 0 || buffer.is_empty() || self.fetched == self.size {
            return Ok(read);
        }
        if let Err(error) = self.fetch() {
            let message = error.to_string();
            self.failure = Some(error);
            return Err(io::Error::other(message));
        }
        self.part.read(buffer)
    }
}
