//! Leases' rows.

use rusqlite::params;

use crate::{Error, Store, query};

/// A lease as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Identity.
    pub id: String,
    /// When it runs out, in milliseconds since the epoch.
    pub expires_at: i64,
}

impl Store {
    /// Makes a lease.
    pub fn put_lease(&self, lease: &LeaseRow) -> Result<(), Error> {
        let sql =
            "INSERT INTO leases (id, expires_at, revision) VALUES (?1, ?2, (SELECT value FROM revision))";
        let made = self.connection().execute(sql, params![lease.id, lease.expires_at]);
        made.map(drop).map_err(query("write a lease"))
    }

    /// Moves a lease's end; false when there is no such lease (any more).
    pub fn renew_lease(&self, lease: &LeaseRow) -> Result<bool, Error> {
        let sql = "UPDATE leases SET expires_at = ?2 WHERE id = ?1";
        let renewed = self.connection().execute(sql, params![lease.id, lease.expires_at]);
        renewed.map(|rows| rows == 1).map_err(query("renew a lease"))
    }

    /// Every lease.
    pub fn leases(&self) -> Result<Vec<LeaseRow>, Error> {
        let failed = query("list leases");
        let connection = self.connection();
        let mut statement =
            connection.prepare_cached("SELECT id, expires_at FROM leases").map_err(&failed)?;
        let rows = statement
            .query_map([], |row| Ok(LeaseRow { id: row.get(0)?, expires_at: row.get(1)? }))
            .map_err(&failed)?;
        rows.map(|row| row.map_err(&failed)).collect()
    }

    /// Removes a lease; false when there is none.
    pub fn delete_lease(&self, id: &str) -> Result<bool, Error> {
        let deleted = self.connection().execute("DELETE FROM leases WHERE id = ?1", [id]);
        deleted.map(|rows| rows == 1).map_err(query("delete a lease"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_until_it_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let lease = |expires_at| LeaseRow { id: "l".into(), expires_at };
        assert!(!store.renew_lease(&lease(1)).unwrap());
        store.put_lease(&lease(1)).unwrap();
        assert!(store.renew_lease(&lease(2)).unwrap());
        assert_eq!(store.leases().unwrap(), vec![lease(2)]);
        assert!(store.delete_lease("l").unwrap());
        assert!(!store.delete_lease("l").unwrap());
    }
}
