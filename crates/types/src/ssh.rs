//! The SSH door: where it is, and whose keys open it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `GET /v1/ssh`: how to come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshDoor {
    /// Where it listens, `ADDRESS:PORT`. Unless the daemon is configured with an address it is another one after each start.
    pub address: String,
    /// A line for `known_hosts`: address, algorithm and key.
    pub host_key: String,
    /// On the daemon's machine, a private key that opens the door, readable by the daemon's user alone. Absent when that key
    /// was taken out of those that do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key_path: Option<String>,
}

/// A key that opens the door.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshKey {
    /// `SHA256:…`, as `ssh-keygen -l` shows it.
    pub fingerprint: String,
    /// `ssh-ed25519`, …
    pub algorithm: String,
    /// What its owner wrote beside it; may be empty.
    pub comment: String,
}

/// Answer to `GET /v1/ssh/keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshKeys {
    /// In the order in which they were added.
    pub items: Vec<SshKey>,
}

/// Body of `POST /v1/ssh/keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddSshKey {
    /// A public key as a line of OpenSSH's format: `ssh-ed25519 AAAA… comment`. Options before it are not supported.
    pub key: String,
}
