//! A connection whose owner is woken only by what it waits for.
//!
//! Tokio's own streams ask the kernel for both kinds of readiness at once. On a Unix socket every
//! message that the peer takes out counts as room to write, so whoever has answered would be woken
//! once more for nothing, which costs both sides as much as the message itself.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys;

/// How much is read at once, in bytes: room is made clean before it is used.
const AT_ONCE: usize = 16 * 1024;

/// A Unix socket for one task.
pub struct Stream {
    socket: AsyncFd<UnixStream>,
    /// Says when there is room; only while the peer takes too little.
    room: Option<AsyncFd<UnixStream>>,
}

impl Stream {
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let socket = sys::watch(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { socket, room: None })
    }

    fn poll_with_room(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = match self.room.take() {
            Some(room) => room,
            None => sys::watch(self.socket.get_ref().try_clone()?, Interest::WRITABLE)?,
        };
        let room = self.room.insert(room);
        loop {
            let mut guard = ready!(room.poll_write_ready(context))?;
            if let Ok(written) = guard.try_io(|socket| socket.get_ref().write(bytes)) {
                drop(guard);
                self.room = None;
                return Poll::Ready(written);
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled_to(buffer.remaining().min(AT_ONCE));
            let Ok(read) = guard.try_io(|socket| socket.get_ref().read(room)) else { continue };
            let read = read?;
            if 0 < read && read < room.len() {
                // That was all: asking again would only be told so.
                guard.clear_ready();
            }
            buffer.advance(read);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.socket.get_ref().write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.poll_with_room(context, bytes)
            }
            written => Poll::Ready(written),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn all_arrives_however_slowly_it_is_taken() {
        let (here, there) = tokio::net::UnixStream::pair().unwrap();
        let (mut here, mut there) = (Stream::new(here).unwrap(), Stream::new(there).unwrap());
        // Many times what a socket holds.
        let sent: Vec<u8> = (0..8 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            here.write_all(&sent).await.unwrap();
            here.shutdown().await.unwrap();
            let mut rest = Vec::new();
            here.read_to_end(&mut rest).await.unwrap();
            rest
        });
        let mut taken = Vec::new();
        there.read_to_end(&mut taken).await.unwrap();
        assert_eq!(taken, expected);
        there.write_all(b"thanks").await.unwrap();
        drop(there);
        assert_eq!(writing.await.unwrap(), b"thanks");
    }

    #[tokio::test]
    async fn whoever_hangs_up_is_noticed() {
        let (here, there) = tokio::net::UnixStream::pair().unwrap();
        let mut here = Stream::new(here).unwrap();
        drop(there);
        assert_eq!(here.read(&mut [0; 8]).await.unwrap(), 0);
        let refused = here.write_all(&[0; 8]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }
}
