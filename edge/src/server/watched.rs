//! A connection under watch: what its client is about, and a deadline for a client that
//! takes nothing of an answer. Hyper has neither.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// A client that takes nothing for so long is cut (I9).
pub const WRITE_STALL: Duration = Duration::from_secs(10);

/// A connection under watch.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    heard: Heard,
    /// Runs while the client takes nothing; room for it is made only then.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// What the client is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It has not said a word yet.
    Nothing,
    /// It has begun to say something.
    Something,
    /// It has been answered, and rests.
    Enough,
}

const SAID: [Said; 3] = [Said::Nothing, Said::Something, Said::Enough];

/// What the client is about, also where the connection is with hyper.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicU8>);

impl Heard {
    /// It has been answered.
    pub fn answered(&self) {
        self.0.store(Said::Enough as u8, Ordering::Relaxed);
    }

    /// What it is about.
    pub fn said(&self) -> Said {
        SAID.get(usize::from(self.0.load(Ordering::Relaxed))).copied().unwrap_or(Said::Nothing)
    }
}

impl<S> Watched<S> {
    /// Watches from now on.
    pub fn new(stream: S) -> Self {
        Self { stream, heard: Heard::default(), stalled: None }
    }

    /// What the client is about.
    pub fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// Watches no longer.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Cuts a client off that has taken nothing for too long.
    fn watch<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.heard.0.store(Said::Something as u8, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(shut, context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_and_one_that_takes_little_is_not() {
        let (mut client, server) = tokio::io::duplex(1_000);
        let mut server = Watched::new(server);
        let began = Instant::now();
        let writing = async { server.write_all(&[0; 6_000]).await.map(|()| server) };
        let reading = async {
            // Five pieces with pauses just below the deadline, then no more.
            for _ in 0..4 {
                sleep(WRITE_STALL - Duration::from_millis(1)).await;
                client.read_exact(&mut [0; 1_000]).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let error = tokio::select! {
            written = writing => written.map(drop).unwrap_err(),
            () = reading => unreachable!("it waits for ever"),
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed().as_secs(), 49, "four pauses and the deadline");
    }

    #[tokio::test]
    async fn what_a_client_is_about_is_known_from_outside() {
        let (mut client, server) = tokio::io::duplex(1_000);
        let mut server = Watched::new(server);
        let heard = server.heard();
        assert_eq!(heard.said(), Said::Nothing);
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        assert_eq!(heard.said(), Said::Something);
        heard.answered();
        assert_eq!(heard.said(), Said::Enough);
    }
}
