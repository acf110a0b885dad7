//! Free ports of loopback.

use std::net::{Ipv4Addr, TcpListener};

/// So many ports that were free a moment ago, no two the same.
pub(crate) fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    // All are bound before the first is let go.
    let bound = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    Ok(bound.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect::<Result<_, _>>()?)
}
