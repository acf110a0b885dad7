//! Where an engine has its settings, data and output.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

/// A directory: one that goes with the engine, or one that somebody else keeps.
pub(crate) enum Home {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Home {
    pub(crate) fn temporary(engine: &str) -> anyhow::Result<Self> {
        Ok(Self::Temporary(tempfile::Builder::new().prefix(&format!("posthaste-{engine}-")).tempdir()?))
    }

    pub(crate) fn kept(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        Ok(Self::Kept(dir.canonicalize()?))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }
}
