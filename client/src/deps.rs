//! What a client takes from outside: time, randomness, the network. A simulator hands in its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemas::{Clock, Entropy, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::journal::Journal;

/// A connection's both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The way to the server.
#[async_trait]
pub trait Connector: Send + Sync {
    /// A new connection. An error that holds an [`Error`](crate::Error) is passed on as that one; any other means that
    /// the server can't be reached.
    async fn connect(&self) -> io::Result<Box<dyn Stream>>;
}

/// What a client is handed.
#[derive(Clone)]
pub struct Deps {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness of ids and pauses.
    pub entropy: Arc<dyn Entropy>,
    /// The way to the server.
    pub connector: Arc<dyn Connector>,
    /// What must survive this process.
    pub journal: Arc<dyn Journal>,
}

/// This system's clock.
pub struct SystemClock(std::time::Instant);

impl SystemClock {
    /// Counts from now.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros() / 1_000)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    fn micros(&self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// This system's randomness.
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    #[expect(clippy::expect_used, reason = "a system without randomness can't make ids that nobody else makes")]
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the system has randomness");
    }
}

/// TCP to one host.
pub struct TcpConnector {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl TcpConnector {
    pub(crate) async fn dial(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.dial().await?))
    }
}
