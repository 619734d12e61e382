//! `berth sandbox ls`.

use berth_client::{Client, ListSandboxes};
use berth_types::sandbox::{Page, Sandbox, SandboxState};
use clap::Args;
use jiff::Timestamp;

use crate::Session;
use crate::arguments::key_value;
use crate::failure::Failure;
use crate::output::{age, short_digest, table};

/// Arguments of `berth sandbox ls`.
#[derive(Debug, Args)]
pub struct Ls {
    /// Only those with this label; may be repeated
    #[arg(long = "label", short, value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
}

impl Ls {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let items = all(&session.client().await?, self.labels).await?;
        session.output.result(&Page { items, next: None }, |page| render(&page.items, Timestamp::now()))
    }
}

/// All sandboxes with these labels, page by page.
pub(super) async fn all(client: &Client, labels: Vec<(String, String)>) -> Result<Vec<Sandbox>, Failure> {
    let mut list = ListSandboxes { labels: labels.into_iter().collect(), ..ListSandboxes::default() };
    let mut items = Vec::new();
    loop {
        let page = client.list_sandboxes(&list).await?;
        items.extend(page.items);
        if page.next.is_none() {
            return Ok(items);
        }
        list.after = page.next;
    }
}

fn render(sandboxes: &[Sandbox], now: Timestamp) -> String {
    let rows = sandboxes.iter().map(|sandbox| {
        let labels: Vec<String> =
            sandbox.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let name = if sandbox.name == sandbox.id { "-" } else { &sandbox.name };
        vec![
            sandbox.id.clone(),
            name.to_owned(),
            short_digest(&sandbox.image).to_owned(),
            state(sandbox),
            age(&sandbox.created_at, now),
            labels.join(","),
        ]
    });
    table(&["ID", "NAME", "IMAGE", "STATE", "AGE", "LABELS"], rows)
}

/// Its state, with why it is gone or what it waits for.
pub(super) fn state(sandbox: &Sandbox) -> String {
    let state = match sandbox.state {
        SandboxState::Queued => "queued",
        SandboxState::Starting => "starting",
        SandboxState::Running => "running",
        SandboxState::Stopping => "stopping",
        SandboxState::Lost => "lost",
        SandboxState::Ended => "ended",
    };
    match (&sandbox.reason, &sandbox.queue) {
        (Some(reason), _) => format!("{state}: {reason}"),
        (None, Some(place)) => {
            format!("{state}: place {}, for {}", place.position, place.waits_for.words())
        }
        (None, None) => state.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use berth_types::sandbox::{QueuePlace, WaitsFor};

    use super::*;

    #[test]
    fn sandboxes_are_listed_with_state_and_reason() {
        let sandbox = |id: &str, name: &str, state: SandboxState, reason: Option<&str>| -> Sandbox {
            serde_json::from_value(serde_json::json!({
                "id": id, "name": name, "group": id, "state": state, "reason": reason, "labels": {"job": "j1"},
                "image": "sha256:0123456789abcdef", "resources": {}, "storage_enforced": false, "network": "public",
                "workdir": "/", "user": "root", "created_at": "2026-01-01T00:00:00Z",
            }))
            .unwrap()
        };
        let place = QueuePlace { position: 3, waits_for: WaitsFor::Memory };
        let queued = Sandbox { queue: Some(place), ..sandbox("03", "03", SandboxState::Queued, None) };
        let list = [
            sandbox("01", "01", SandboxState::Running, None),
            sandbox("02", "web", SandboxState::Lost, Some("out of memory")),
            queued,
        ];
        insta::assert_snapshot!(render(&list, "2026-01-01T00:05:00Z".parse().unwrap()), @r"
        ID  NAME  IMAGE         STATE                        AGE    LABELS
        01  -     0123456789ab  running                      5 min  job=j1
        02  web   0123456789ab  lost: out of memory          5 min  job=j1
        03  -     0123456789ab  queued: place 3, for memory  5 min  job=j1
        ");
    }
}
