//! What an edge is handed: ports, clock and randomness.

use std::sync::Arc;

use schemas::link::{FanoutPort, HistoryPort};
use schemas::{Clock, EdgeId, Entropy};
use store::Store;
use stream::Log;

use crate::auth::issuers::JwksPort;

/// What an edge is handed.
#[derive(Clone)]
pub struct Deps {
    /// This process; a new one at each start.
    pub edge: EdgeId,
    /// Where commands, receipts and signals go.
    pub log: Arc<dyn Log>,
    /// Accounts, devices, and rows to read once history says that they are settled.
    pub store: Arc<dyn Store>,
    /// Registers interest.
    pub fanout: Arc<dyn FanoutPort>,
    /// Answers for history.
    pub history: Arc<dyn HistoryPort>,
    /// Asks other issuers for their keys.
    pub jwks: Arc<dyn JwksPort>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}
