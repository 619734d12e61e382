//! User and password for a registry. The password comes by stdin, where other users do not see it.

use std::io;

use berth_types::image::BasicAuth;
use clap::Args;

use crate::failure::Failure;

/// Credentials of a registry; the daemon's configuration holds them otherwise.
#[derive(Debug, Args)]
pub(super) struct Credentials {
    /// User name for the registry
    #[arg(long, requires = "password_stdin")]
    username: Option<String>,
    /// Read the password, one line, from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl Credentials {
    pub(super) fn read(self) -> Result<Option<BasicAuth>, Failure> {
        let Some(username) = self.username else { return Ok(None) };
        let mut line = String::new();
        io::stdin().read_line(&mut line).map_err(Failure::Stdin)?;
        let password = line.trim_end_matches(['\r', '\n']).to_owned();
        Ok(Some(BasicAuth { username, password }))
    }
}
