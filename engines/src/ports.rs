//! Free ports of loopback.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail, ensure};

/// Ports from here on are nobody's in particular.
const LOWEST: u16 = 10_240;

/// So many ports that were free a moment ago, no two the same. None is of those that the system gives to outgoing
/// connections: a server that was killed must find its own free when it comes back.
///
/// # Errors
/// If there are not as many.
pub fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let end = range.split_whitespace().next().and_then(|port| port.parse::<u16>().ok());
    let end = end.with_context(|| format!("ip_local_port_range is {range:?}"))?;
    ensure!(
        end > LOWEST,
        "the system gives ports from {end} on to outgoing connections: there is none below for servers"
    );
    let candidates = usize::from(end - LOWEST);
    // Nobody here is told a port twice, and other processes begin elsewhere.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 131;
    let mut bound = Vec::new();
    for _ in 0..candidates {
        let step = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % candidates;
        let port = LOWEST + u16::try_from(step)?;
        // All are bound before the first is let go.
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            bound.push((port, listener));
        }
        if bound.len() == count {
            return Ok(bound.into_iter().map(|(port, _)| port).collect());
        }
    }
    bail!("there are no {count} free ports from {LOWEST} to {end}")
}
