//! Chooses the engines and puts the roles together.
use crate::config::Settings;
pub fn serve(settings: Settings) -> anyhow::Result<()> {
    drop(settings);
    Ok(())
}
