//! The SSH door: where it is, and whose keys open it.

use berth_types::ssh::{AddSshKey, SshDoor, SshKey, SshKeys};
use http::Method;

use crate::transport::{Call, encode};
use crate::{Client, Error};

impl Client {
    /// Where the SSH door is; it is opened if need be.
    pub async fn ssh(&self) -> Result<SshDoor, Error> {
        self.call(Call::new(Method::GET, "/v1/ssh", "open the SSH door")).await
    }

    /// The keys that open it.
    pub async fn ssh_keys(&self) -> Result<SshKeys, Error> {
        self.call(Call::new(Method::GET, "/v1/ssh/keys", "list the keys of the SSH door")).await
    }

    /// Lets a public key, a line of OpenSSH's format, open it.
    pub async fn add_ssh_key(&self, key: &str) -> Result<SshKey, Error> {
        let call = Call::new(Method::POST, "/v1/ssh/keys", "add a key of the SSH door");
        self.call(call.json(&AddSshKey { key: key.to_owned() })?).await
    }

    /// Lets the key of this fingerprint open it no more; connections that it has opened stay.
    pub async fn delete_ssh_key(&self, fingerprint: &str) -> Result<(), Error> {
        let path = format!("/v1/ssh/keys/{}", encode(fingerprint));
        self.call_empty(Call::new(Method::DELETE, path, format!("remove the key {fingerprint}"))).await
    }
}
