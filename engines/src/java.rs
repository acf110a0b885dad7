//! The Java that engines run on.

use std::process::Command;

use anyhow::{Context, ensure};

/// Looks whether there is a Java: Kafka 4 needs 17 or newer, Cassandra 5 needs 11 or 17.
///
/// # Errors
/// With what to install.
pub(crate) fn need() -> anyhow::Result<()> {
    let version = Command::new("java").arg("-version").output();
    let version =
        version.context("there is no java: install a JDK 17 (Debian: apt-get install openjdk-17-jdk-headless)")?;
    ensure!(version.status.success(), "java does not run: {}", String::from_utf8_lossy(&version.stderr));
    Ok(())
}
