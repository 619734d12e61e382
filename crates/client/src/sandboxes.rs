//! Sandboxes: create, look at, list, delete.

use std::collections::BTreeMap;

use berth_types::sandbox::{CreateSandbox, Page, Sandbox};
use http::Method;
use serde_json::json;

use crate::transport::{Call, encode};
use crate::{Client, Error};

/// Which sandboxes to list; by default all of them, from the first page on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListSandboxes {
    /// Only those that carry all of these labels.
    pub labels: BTreeMap<String, String>,
    /// At most so many in one page; the daemon's own limit when absent.
    pub limit: Option<u32>,
    /// [`Page::next`] of the page before.
    pub after: Option<String>,
    /// Whether to tell what each uses.
    pub usage: bool,
}

impl ListSandboxes {
    fn path(&self) -> String {
        let labels =
            self.labels.iter().map(|(key, value)| format!("label={}", encode(&format!("{key}={value}"))));
        let limit = self.limit.map(|limit| format!("limit={limit}"));
        let after = self.after.as_ref().map(|after| format!("after={}", encode(after)));
        let usage = self.usage.then(|| "usage=true".to_owned());
        let query: Vec<String> = labels.chain(limit).chain(after).chain(usage).collect();
        if query.is_empty() {
            "/v1/sandboxes".to_owned()
        } else {
            format!("/v1/sandboxes?{}", query.join("&"))
        }
    }
}

impl Client {
    /// Makes a sandbox; returns when it runs, having waited for room as long as the request allows.
    pub async fn create_sandbox(&self, request: &CreateSandbox) -> Result<Sandbox, Error> {
        let operation = format!("create a sandbox of {}", request.image);
        self.call(Call::new(Method::POST, "/v1/sandboxes", operation).json(request)?).await
    }

    /// One sandbox, by id or name.
    pub async fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        self.call(Call::new(Method::GET, sandbox_path(id, ""), format!("look up sandbox {id}"))).await
    }

    /// One page of the sandboxes.
    pub async fn list_sandboxes(&self, list: &ListSandboxes) -> Result<Page<Sandbox>, Error> {
        self.call(Call::new(Method::GET, list.path(), "list sandboxes")).await
    }

    /// Ends a sandbox and removes what it wrote; returns when it is gone.
    pub async fn delete_sandbox(&self, id: &str) -> Result<(), Error> {
        self.call_empty(Call::new(Method::DELETE, sandbox_path(id, ""), format!("delete sandbox {id}"))).await
    }

    /// Lets a sandbox live for so many seconds from now, or until it is deleted.
    pub async fn set_sandbox_ttl(&self, id: &str, ttl_seconds: Option<u64>) -> Result<Sandbox, Error> {
        let call = Call::new(Method::PUT, sandbox_path(id, "/ttl"), format!("set the time of sandbox {id}"));
        self.call(call.json(&json!({ "ttl_seconds": ttl_seconds }))?).await
    }

    /// Binds a sandbox's life to a lease, or unbinds it.
    pub async fn set_sandbox_lease(&self, id: &str, lease: Option<&str>) -> Result<(), Error> {
        let call =
            Call::new(Method::PUT, sandbox_path(id, "/lease"), format!("set the lease of sandbox {id}"));
        self.call_empty(call.json(&json!({ "lease": lease }))?).await
    }
}

/// Path of a sandbox's route; `rest` is appended as it is.
pub(crate) fn sandbox_path(id: &str, rest: &str) -> String {
    format!("/v1/sandboxes/{}{rest}", encode(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_spells_out_its_query() {
        assert_eq!(ListSandboxes::default().path(), "/v1/sandboxes");
        let list = ListSandboxes {
            labels: BTreeMap::from([("job".into(), "a b&c".into()), ("k".into(), "v".into())]),
            limit: Some(5),
            after: Some("x/y".into()),
            usage: true,
        };
        assert_eq!(
            list.path(),
            "/v1/sandboxes?label=job%3Da%20b%26c&label=k%3Dv&limit=5&after=x%2Fy&usage=true"
        );
    }

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(sandbox_path("../images", "/fs"), "/v1/sandboxes/..%2Fimages/fs");
    }
}
