//! Prints the API's description: `cargo run -p edge --example openapi > docs/openapi.json`.

fn main() -> Result<(), serde_json::Error> {
    print!("{}", edge::openapi::text()?);
    Ok(())
}
