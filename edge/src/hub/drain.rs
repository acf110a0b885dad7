//! The end of an edge that stops in order: all sockets hear of it at once and are closed one after the other, so that
//! neither their reconnecting nor their catching up comes in one wave. What was taken from them is finished first.

use std::sync::Arc;
use std::time::Duration;

use schemas::frame::{Control, close};

use super::Hub;
use crate::deps::Deps;
use crate::socket::outbox::Socket;
use crate::socket::wire;

/// Sockets that are closed one after the other are at most so far apart: a few need no time.
const PACE_MAX: Duration = Duration::from_millis(5);

/// How long outcomes are waited for once the last socket has been asked to close; they take milliseconds.
const OUTCOMES: Duration = Duration::from_secs(2);

/// How long sockets may then take to say goodbye: what a session gives its client, and a little more.
const GOODBYES: Duration = Duration::from_millis(2_200);

/// Pause between two looks whether all have gone.
const POLL: Duration = Duration::from_millis(10);

/// When sockets are gone, and over how long they shall come back.
#[derive(Clone, Copy)]
pub(super) struct Drain {
    ends: Duration,
    spread: Duration,
}

impl Drain {
    /// When to come back, ms: after the end of the drain, spread.
    pub(super) fn retry_ms(self, deps: &Deps) -> u32 {
        let mut random = [0; 4];
        deps.entropy.fill(&mut random);
        let part = f64::from(u32::from_be_bytes(random)) / f64::from(u32::MAX);
        let after = self.ends.saturating_sub(deps.clock.elapsed()) + self.spread.mul_f64(part);
        u32::try_from(after.as_millis()).unwrap_or(u32::MAX)
    }
}

impl Hub {
    /// Sends all sockets away: each hears now that it will be closed, is closed in its turn within `over`, after the
    /// outcomes of its commands, and shall come back spread over `spread`. Who comes in later is sent away at once.
    /// Ends when none is left; at the latest a few seconds after `over`.
    pub async fn drain(&self, over: Duration, spread: Duration) {
        let clock = &self.deps.clock;
        let (drain, over, sockets) = {
            let mut state = self.state.lock();
            let sockets: Vec<Arc<Socket>> = state.sessions.values().cloned().collect();
            let over = over.min(PACE_MAX.saturating_mul(u32::try_from(sockets.len()).unwrap_or(u32::MAX)));
            let drain = Drain { ends: clock.elapsed() + over, spread };
            state.drain = Some(drain);
            (drain, over, sockets)
        };
        tracing::info!(sockets = sockets.len(), ?over, "sockets are sent away");
        let (began, count) = (tokio::time::Instant::now(), sockets.len().max(1));
        let leaving: Vec<(Arc<Socket>, u32)> =
            sockets.into_iter().map(|socket| (socket, drain.retry_ms(&self.deps))).collect();
        for (socket, retry_after_ms) in &leaving {
            let frame = Control::Closing { code: close::RESTART, retry_after_ms: *retry_after_ms };
            socket.push(wire::control(frame), false);
        }
        for (n, (socket, retry_after_ms)) in leaving.into_iter().enumerate() {
            let turn = over.mul_f64(n as f64 / count as f64);
            tokio::time::sleep_until(began + turn).await;
            // The same moment as was announced.
            let passed = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
            socket.leave(close::RESTART, Some(retry_after_ms.saturating_sub(passed)));
        }
        if tokio::time::timeout(OUTCOMES, self.empty()).await.is_err() {
            self.close_all(close::RESTART, Some(drain.retry_ms(&self.deps)));
            if tokio::time::timeout(GOODBYES, self.empty()).await.is_err() {
                tracing::warn!(sockets = self.socket_count(), "some sockets did not go");
            }
        }
    }

    async fn empty(&self) {
        while self.socket_count() > 0 {
            tokio::time::sleep(POLL).await;
        }
    }
}
