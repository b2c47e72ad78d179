//! Questions as frames on a private Unix socket, whose ends the kernel vouches for.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{Answer, Ask, Desk, Link};
use crate::error::{Error, ErrorBody, Kind, Result};
use crate::job::{decode, encode};

const MAX_FRAME: usize = 4 * 1024 * 1024;

/// Asks over the socket at a path, and connects again when the other end was restarted.
pub struct SocketLink {
    path: PathBuf,
    peer_uid: u32,
    stream: Option<UnixStream>,
}

impl SocketLink {
    /// The process that listens at `path` must run as `peer_uid`.
    pub fn new(path: impl Into<PathBuf>, peer_uid: u32) -> Self {
        Self { path: path.into(), peer_uid, stream: None }
    }

    async fn exchange(&mut self, ask: &Ask) -> Result<Result<Answer, ErrorBody>> {
        // Taken out, and so closed, if anything goes wrong or the caller stops waiting.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => UnixStream::connect(&self.path).await.map_err(broken)?,
        };
        admit(&stream, self.peer_uid)?;
        send(&mut stream, ask).await?;
        let answer = receive(&mut stream).await?;
        self.stream = Some(stream);
        answer.ok_or_else(|| Error::new(Kind::Unavailable, "the controller hung up"))
    }
}

#[async_trait]
impl Link for SocketLink {
    async fn ask(&mut self, ask: Ask) -> Result<Answer> {
        self.exchange(&ask).await?.map_err(Into::into)
    }
}

/// Answers one agent connection until it closes.
pub async fn serve(mut stream: UnixStream, agent_uid: u32, mut desk: impl Desk) -> Result<()> {
    admit(&stream, agent_uid)?;
    while let Some(ask) = receive(&mut stream).await? {
        let answer = desk.answer(ask).await;
        send(&mut stream, &answer.map_err(|error| error.body())).await?;
    }
    Ok(())
}

/// Checks who is at the other end, which the kernel recorded when the socket was connected.
fn admit(stream: &UnixStream, uid: u32) -> Result<()> {
    let peer = stream.peer_cred().map_err(broken)?.uid();
    if peer == uid {
        Ok(())
    } else {
        Err(Error::new(Kind::Denied, format!("peer runs as uid {peer}, not {uid}")))
    }
}

async fn send(stream: &mut UnixStream, message: &impl Serialize) -> Result<()> {
    let body = encode(message)?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    stream.write_all(&[&length, &body[..]].concat()).await.map_err(broken)
}

async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result.map_err(broken)?,
    };
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(Error::new(Kind::InvalidInput, format!("frame of {length} bytes")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(broken)?;
    decode(&body).map(Some)
}

fn broken(error: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, "the agent socket failed").because(error)
}
