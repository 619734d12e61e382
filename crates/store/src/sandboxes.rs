//! Sandboxes' rows.

use berth_types::sandbox::Sandbox;
use rusqlite::{OptionalExtension, Row, params};

use crate::{Error, Store, query};

/// A sandbox as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxRow {
    /// What the API shows.
    pub sandbox: Sandbox,
    /// Key that a repeated request would carry.
    pub idempotency_key: Option<String>,
    /// When it was found to be no longer running, in seconds since the epoch.
    pub ended_at: Option<i64>,
    /// What another daemon needs to take it over; absent where it would not outlive this one. The store does not read it.
    pub resume: Option<String>,
}

impl Store {
    /// Writes `row`, replacing the one with the same id.
    pub fn put_sandbox(&self, row: &SandboxRow) -> Result<(), Error> {
        let record = serde_json::to_string(&row.sandbox).map_err(corrupt(&row.sandbox.id))?;
        let failed = query("write a sandbox");
        let mut connection = self.connection();
        let transaction = connection.transaction().map_err(&failed)?;
        transaction.execute("UPDATE revision SET value = value + 1", []).map_err(&failed)?;
        transaction
            .execute(
                "INSERT INTO sandboxes (id, idempotency_key, lease, record, ended_at, revision, resume)
                 VALUES (?1, ?2, ?3, ?4, ?5, (SELECT value FROM revision), ?6)
                 ON CONFLICT (id) DO UPDATE SET lease = ?3, record = ?4, ended_at = ?5,
                     revision = (SELECT value FROM revision), resume = ?6",
                params![
                    row.sandbox.id,
                    row.idempotency_key,
                    row.sandbox.lease,
                    record,
                    row.ended_at,
                    row.resume
                ],
            )
            .map_err(&failed)?;
        transaction.commit().map_err(&failed)
    }

    /// Forgets a sandbox; one that is not there is no error.
    pub fn delete_sandbox(&self, id: &str) -> Result<(), Error> {
        self.connection()
            .execute("DELETE FROM sandboxes WHERE id = ?1", [id])
            .map(drop)
            .map_err(query("delete a sandbox"))
    }

    /// Every sandbox, oldest first.
    pub fn sandboxes(&self) -> Result<Vec<SandboxRow>, Error> {
        let failed = query("list sandboxes");
        let connection = self.connection();
        let mut statement = connection
            .prepare_cached("SELECT id, idempotency_key, record, ended_at, resume FROM sandboxes ORDER BY id")
            .map_err(&failed)?;
        let rows = statement.query_map([], read).map_err(&failed)?;
        rows.map(|row| row.map_err(&failed).and_then(parse)).collect()
    }

    /// The sandbox that a request with this idempotency key made.
    pub fn sandbox_by_key(&self, key: &str) -> Result<Option<SandboxRow>, Error> {
        let sql =
            "SELECT id, idempotency_key, record, ended_at, resume FROM sandboxes WHERE idempotency_key = ?1";
        let row = self.connection().query_row(sql, [key], read).optional();
        row.map_err(query("find a sandbox"))?.map(parse).transpose()
    }

    /// Forgets sandboxes that ended before `time`, in seconds since the epoch.
    pub fn purge_ended(&self, time: i64) -> Result<Vec<String>, Error> {
        let failed = query("purge sandboxes");
        let connection = self.connection();
        let mut statement = connection
            .prepare_cached("DELETE FROM sandboxes WHERE ended_at < ?1 RETURNING id")
            .map_err(&failed)?;
        let ids = statement.query_map([time], |row| row.get(0)).map_err(&failed)?;
        ids.map(|id| id.map_err(&failed)).collect()
    }
}

struct Raw {
    id: String,
    key: Option<String>,
    record: String,
    ended_at: Option<i64>,
    resume: Option<String>,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok(Raw {
        id: row.get(0)?,
        key: row.get(1)?,
        record: row.get(2)?,
        ended_at: row.get(3)?,
        resume: row.get(4)?,
    })
}

fn parse(raw: Raw) -> Result<SandboxRow, Error> {
    let sandbox = serde_json::from_str(&raw.record).map_err(corrupt(&raw.id))?;
    Ok(SandboxRow { sandbox, idempotency_key: raw.key, ended_at: raw.ended_at, resume: raw.resume })
}

fn corrupt(id: &str) -> impl Fn(serde_json::Error) -> Error {
    move |source| Error::Corrupt { what: format!("sandbox {id}"), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, key: Option<&str>) -> SandboxRow {
        let sandbox = serde_json::from_value(serde_json::json!({
            "id": id, "name": id, "group": id, "state": "running", "image": "sha256:00", "labels": {},
            "resources": {}, "storage_enforced": false, "network": "public", "workdir": "/", "user": "",
            "created_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap();
        SandboxRow { sandbox, idempotency_key: key.map(Into::into), ended_at: None, resume: None }
    }

    #[test]
    fn rows_come_back_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut first = row("a", Some("key"));
        store.put_sandbox(&first).unwrap();
        store.put_sandbox(&row("b", None)).unwrap();
        first.ended_at = Some(7);
        first.resume = Some("{}".to_owned());
        store.put_sandbox(&first).unwrap();
        assert_eq!(store.sandboxes().unwrap(), vec![first.clone(), row("b", None)]);
        assert_eq!(store.sandbox_by_key("key").unwrap(), Some(first));
        assert_eq!(store.sandbox_by_key("other").unwrap(), None);
        assert_eq!(store.purge_ended(8).unwrap(), vec!["a".to_owned()]);
        store.delete_sandbox("b").unwrap();
        store.delete_sandbox("b").unwrap();
        assert_eq!(store.sandboxes().unwrap(), vec![]);
    }
}
