//! Which jars an engine consists of, and where they lie. Fetching them is `scripts/jars.sh`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

/// Where `scripts/jars.sh` puts jars: outside of the clone, so that a fresh one has them already.
fn cache() -> anyhow::Result<PathBuf> {
    Ok(std::env::home_dir().context("this user has no home directory")?.join(".cache/posthaste/jars"))
}

/// The class path of a list (`engines/NAME.jars`), each of its jars by its full path.
///
/// # Errors
/// With what to do about it, where a jar is missing. A jar that is there was checked when it was fetched.
pub(crate) fn class_path(name: &str, list: &str) -> anyhow::Result<String> {
    let cache = cache()?;
    let mut paths = Vec::new();
    for line in list.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let path = cache.join(path_of(line).with_context(|| format!("engines/{name}.jars: {line}"))?);
        if !path.exists() {
            bail!("{} is missing: run scripts/jars.sh engines/{name}.jars", path.display());
        }
        paths.push(path);
    }
    ensure!(!paths.is_empty(), "engines/{name}.jars is empty");
    std::env::join_paths(paths)?.into_string().map_err(|path| anyhow::anyhow!("not UTF-8: {}", path.display()))
}

/// The full path of the jar of an artifact, which the class path has as well.
pub(crate) fn path(name: &str, list: &str, artifact: &str) -> anyhow::Result<PathBuf> {
    let line = list.lines().find(|line| line.split(':').nth(1) == Some(artifact));
    let path = line.and_then(path_of).with_context(|| format!("engines/{name}.jars has no {artifact}"))?;
    Ok(cache()?.join(path))
}

/// Where a jar lies below the cache: `GROUP/ARTIFACT-VERSION[-CLASSIFIER].jar`.
fn path_of(line: &str) -> Option<PathBuf> {
    let (_, coordinates) = line.split_once(' ')?;
    let mut parts = coordinates.splitn(3, ':');
    let (group, artifact, version) = (parts.next()?, parts.next()?, parts.next()?);
    Some(Path::new(group).join(format!("{artifact}-{}.jar", version.replace(':', "-"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jar_lies_where_the_script_puts_it() {
        let path = |line| path_of(line).unwrap().into_os_string().into_string().unwrap();
        assert_eq!(path("00ff org.slf4j:slf4j-api:1.7.36"), "org.slf4j/slf4j-api-1.7.36.jar");
        assert_eq!(path("00ff io.netty:netty-epoll:4.1.0:linux-x86_64"), "io.netty/netty-epoll-4.1.0-linux-x86_64.jar");
        assert_eq!(path_of("org.slf4j:slf4j-api:1.7.36"), None);
    }
}
