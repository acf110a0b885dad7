//! Every bound that more than one crate relies on, with its derivation. A role's own settings stand in its config.

use std::time::Duration;

/// Largest content of a message, bytes (protocol.md).
pub const CONTENT_MAX_BYTES: usize = 64 * 1024;

/// Largest WebSocket message and HTTP body, bytes: a content whose every byte is escaped in JSON at worst as `\u00xx`
/// would be six times as large; ordinary text at most doubles, and the envelope fits the rest.
pub const FRAME_MAX_BYTES: usize = 3 * CONTENT_MAX_BYTES;

/// Largest page of a list or of history (protocol.md).
pub const PAGE_MAX: usize = 100;

/// A socket that missed more events than this in a room gets a `gap` instead (protocol.md).
pub const STREAM_MAX_MISSED: u64 = 1_000;

/// Up to this many members everyone hears everyone's receipts and presence (protocol.md, `limits.receipt_members`).
pub const RECEIPT_MEMBERS_MAX: u32 = 100;

/// Most members that a room can be created with; more are added one by one. One creation is one transaction, and its
/// events (about 250 bytes each) must fit a batch.
pub const CREATE_MEMBERS_MAX: usize = 1_000;

/// A command surfaces within this time or is void (I4, protocol.md).
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(10);

/// How far ahead of server time a command's id may be (protocol.md).
pub const ID_AHEAD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Time for each step before a socket is live: header, upgrade, hello (protocol.md).
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long before its access token ends a socket is told (protocol.md).
pub const TOKEN_WARNING: Duration = Duration::from_secs(60);

/// Interval of `ping` frames; two missed ones close the socket.
pub const HEARTBEAT: Duration = Duration::from_secs(25);

/// Largest batch of one poll, bytes; also the most that one answer of history holds.
pub const BATCH_MAX_BYTES: usize = 4 * 1024 * 1024;

/// What may wait for one socket, bytes; beyond it the socket is lagging (I7). Room for two full contents and a page
/// of ordinary messages.
pub const OUTBOX_MAX_BYTES: usize = 256 * 1024;

const _: () = assert!(OUTBOX_MAX_BYTES > FRAME_MAX_BYTES, "one frame must always fit an empty outbox");
const _: () = assert!(BATCH_MAX_BYTES > PAGE_MAX * 2 * 1024, "an ordinary page must fit one batch");
const _: () = assert!(CREATE_MEMBERS_MAX * 512 < BATCH_MAX_BYTES, "a creation must fit one batch");
