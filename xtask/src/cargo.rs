//! Running cargo from a program that cargo runs.

use std::process::Command;

/// A cargo as a shell would start it. What `cargo run` sets for us (`CARGO_PKG_NAME` and the like) would be seen by
/// build scripts that watch those variables, and everything above them would be compiled again at every turn.
pub(crate) fn command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"]
            .iter()
            .any(|own| name.as_encoded_bytes().starts_with(own.as_bytes()))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}
