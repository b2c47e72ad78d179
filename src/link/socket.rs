//! Questions as frames on a private Unix socket, whose ends the kernel vouches for.
//!
//! A frame is its length, four bytes with the highest first, and that many bytes of JSON. One that
//! is too long or not what was expected ends the connection: there is no telling where the next
//! begins, and nothing is lost by asking anew.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Answer, Ask, Desk, Link, Stream};
use crate::error::{Error, ErrorBody, Kind, Result};

/// The longest frame that either side accepts, in bytes.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;
/// How much longer than the wait that it asks for a question may remain unanswered.
const PATIENCE: Duration = Duration::from_mins(1);
/// What is asked of the kernel at a time.
const CHUNK: usize = 64 * 1024;
/// How much a connection keeps of its buffer between frames.
const KEPT: usize = 256 * 1024;

/// Asks over the socket at a path, and connects again when the other end was restarted.
pub struct SocketLink {
    path: PathBuf,
    peer_uid: u32,
    open: Option<(UnixStream, Vec<u8>)>,
}

impl SocketLink {
    /// The process that listens at `path` must run as `peer_uid`.
    pub fn new(path: impl Into<PathBuf>, peer_uid: u32) -> Self {
        Self { path: path.into(), peer_uid, open: None }
    }

    fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(&self.path).map_err(|error| {
            let path = self.path.display();
            Error::new(Kind::Unavailable, format!("cannot reach the controller at {path}: {error}"))
        })?;
        let peer = socket_peercred(&stream).map_err(|error| broken(error.into()))?.uid.as_raw();
        admit(peer, self.peer_uid)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
        Ok(stream)
    }
}

impl Link for SocketLink {
    fn ask(&mut self, ask: &Ask) -> Result<Answer> {
        // Taken out, and so closed, if anything goes wrong.
        let (mut stream, mut buffer) = match self.open.take() {
            Some(open) => open,
            None => (self.connect()?, Vec::new()),
        };
        let wait = if let Ask::Next(next) = ask { next.wait_ms } else { 0 };
        let patience = PATIENCE + Duration::from_millis(wait);
        stream.write_all(&frame(ask)?).map_err(broken)?;
        let answer: Result<Answer, ErrorBody> = loop {
            if let Some(answer) = take(&mut buffer)? {
                break answer;
            }
            let begun = buffer.len();
            buffer.resize(begun + CHUNK, 0);
            await_answer(&stream, patience)?;
            let read = stream.read(&mut buffer[begun..]).map_err(broken)?;
            buffer.truncate(begun + read);
            if read == 0 {
                return Err(Error::new(Kind::Unavailable, "the controller hung up"));
            }
        };
        self.open = Some((stream, buffer));
        answer.map_err(Into::into)
    }
}

/// Waits until there is something to read. Whoever waits in `read` itself is also woken when the
/// other end takes the question out of the socket, for nothing.
fn await_answer(stream: &UnixStream, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|error| {
            Error::new(Kind::Internal, "a limit is out of range").because(error)
        })?;
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(broken(std::io::ErrorKind::TimedOut.into())),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(broken(error.into())),
        }
    }
}

/// Answers one agent connection until it closes. The agent must run as `agent_uid`.
pub async fn serve(
    stream: tokio::net::UnixStream,
    agent_uid: u32,
    mut desk: impl Desk,
) -> Result<()> {
    admit(stream.peer_cred().map_err(broken)?.uid(), agent_uid)?;
    let mut stream = Stream::new(stream).map_err(broken)?;
    let mut buffer = Vec::new();
    loop {
        let ask: Ask = loop {
            if let Some(ask) = take(&mut buffer)? {
                break ask;
            }
            if stream.read_buf(&mut buffer).await.map_err(broken)? == 0 {
                let rest = buffer.len();
                return if rest == 0 { Ok(()) } else { Err(refused("the last frame is cut off")) };
            }
        };
        // An outcome counts, whoever is left to hear that it does.
        let ends_with_the_agent = !matches!(ask, Ask::Finish(_));
        let answer = desk.answer(ask);
        let answer = if ends_with_the_agent {
            tokio::select! {
                biased;
                answer = answer => answer,
                // Nobody is left to be handed anything or to go on telling, which is to be known at
                // once; or somebody does not wait for answers.
                read = stream.read_buf(&mut buffer) => match read.map_err(broken)? {
                    0 => return Ok(()),
                    _ => return Err(refused("a question came before the last was answered")),
                },
            }
        } else {
            answer.await
        };
        let answer = answer.map_err(|error| error.body());
        stream.write_all(&frame(&answer)?).await.map_err(broken)?;
    }
}

/// The message of the frame that `bytes` begin with, and how many of them it takes; None while
/// there is more to come.
pub fn parse_frame<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<(T, usize)>> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(refused(format!("it announces {length} bytes, more than {MAX_FRAME}")));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    // serde_json refuses what is nested more than 128 deep.
    let message = serde_json::from_slice(body).map_err(|error| refused(error.to_string()))?;
    Ok(Some((message, 4 + length)))
}

/// Takes the first frame out of `buffer`, which afterwards has room for more.
fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>> {
    let Some((message, taken)) = parse_frame(buffer)? else {
        buffer.reserve(CHUNK);
        return Ok(None);
    };
    buffer.drain(..taken);
    if buffer.is_empty() && buffer.capacity() > KEPT {
        *buffer = Vec::new();
    }
    Ok(Some(message))
}

fn frame(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)
        .map_err(|error| Error::new(Kind::Internal, "cannot encode a frame").because(error))?;
    let length = bytes.len() - 4;
    if length > MAX_FRAME {
        let message = format!("a frame of {length} bytes is longer than {MAX_FRAME}");
        return Err(Error::new(Kind::Internal, message));
    }
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Checks who is at the other end, which the kernel recorded when the socket was connected.
fn admit(peer: u32, uid: u32) -> Result<()> {
    if peer == uid {
        return Ok(());
    }
    let message = format!(
        "the other end of the agent socket runs as uid {peer}, not {uid}; start the controller \
         and the agent as the users that each expects"
    );
    Err(Error::new(Kind::Denied, message))
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidInput, format!("cannot read a frame on the agent socket: {why}"))
}

fn broken(error: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("the agent socket failed: {error}")).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_once_it_is_whole() {
        let whole =
            frame(&Ask::Fetch { job: "j".to_owned(), object: "a".repeat(64), offset: 7 }).unwrap();
        for length in 0..whole.len() {
            assert!(parse_frame::<Ask>(&whole[..length]).unwrap().is_none(), "{length}");
        }
        let mut two = [whole.clone(), whole.clone()].concat();
        assert!(matches!(take::<Ask>(&mut two).unwrap(), Some(Ask::Fetch { offset: 7, .. })));
        assert_eq!(two, whole);
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        let tell = format!(r#"{{"tell":[{{"job":"j","data":{deep}}}]}}"#);
        let bodies = ["", "{", "null", r#"{"next":{}}"#, r#"{"sudo":{}}"#, &tell];
        for body in bodies {
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            let bytes = [&length, body.as_bytes()].concat();
            let error = parse_frame::<Ask>(&bytes).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidInput, "{body}");
        }
        assert!(parse_frame::<Ask>(&[0xff; 4]).is_err(), "too long");
    }

    #[tokio::test]
    async fn a_peer_of_another_user_is_refused_by_both() {
        struct Nobody;
        #[async_trait::async_trait]
        impl Desk for Nobody {
            async fn answer(&mut self, _: Ask) -> Result<Answer> {
                Ok(Answer::Done)
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let uid = rustix::process::getuid().as_raw();

        let (here, _there) = tokio::net::UnixStream::pair().unwrap();
        assert_eq!(serve(here, uid + 1, Nobody).await.unwrap_err().kind(), Kind::Denied);

        let ask = move |uid| SocketLink::new(&path, uid).ask(&Ask::Tell(Vec::new()));
        let asked = tokio::task::spawn_blocking(move || (ask(uid + 1), ask(uid)));
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, uid, Nobody));
        }
        let (refused, answered) = asked.await.unwrap();
        assert_eq!(refused.unwrap_err().kind(), Kind::Denied);
        assert!(matches!(answered, Ok(Answer::Done)));
    }

    #[tokio::test]
    async fn an_agent_that_goes_is_missed_although_it_is_not_answered_yet() {
        struct Slow;
        #[async_trait::async_trait]
        impl Desk for Slow {
            async fn answer(&mut self, _: Ask) -> Result<Answer> {
                std::future::pending().await
            }
        }
        let uid = rustix::process::getuid().as_raw();
        let fetch = Ask::Fetch { job: String::new(), object: String::new(), offset: 0 };
        for ask in [Ask::Next(crate::link::Next::default()), Ask::Tell(Vec::new()), fetch] {
            let (here, mut there) = tokio::net::UnixStream::pair().unwrap();
            there.write_all(&frame(&ask).unwrap()).await.unwrap();
            drop(there);
            serve(here, uid, Slow).await.unwrap();
        }
    }
}
