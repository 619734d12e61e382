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

    /// Moves a lease's end; false when there is no such lease, or when it ran out before `now`. Such a one stays ended
    /// even while its row is still there: what it kept alive may be half deleted already.
    pub fn renew_lease(&self, lease: &LeaseRow, now: i64) -> Result<bool, Error> {
        let sql = "UPDATE leases SET expires_at = ?2 WHERE id = ?1 AND expires_at > ?3";
        let renewed = self.connection().execute(sql, params![lease.id, lease.expires_at, now]);
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

    /// Removes the leases that have run out by `now`, in milliseconds since the epoch.
    pub fn purge_leases(&self, now: i64) -> Result<(), Error> {
        let purged = self.connection().execute("DELETE FROM leases WHERE expires_at <= ?1", [now]);
        purged.map(drop).map_err(query("purge leases"))
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
        assert!(!store.renew_lease(&lease(1), 0).unwrap());
        store.put_lease(&lease(1)).unwrap();
        assert!(store.renew_lease(&lease(2), 0).unwrap());
        assert_eq!(store.leases().unwrap(), vec![lease(2)]);
        assert!(store.delete_lease("l").unwrap());
        assert!(!store.delete_lease("l").unwrap());
    }

    #[test]
    fn a_lease_that_ran_out_is_not_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let lease = |expires_at| LeaseRow { id: "l".into(), expires_at };
        store.put_lease(&lease(10)).unwrap();
        assert!(!store.renew_lease(&lease(20), 10).unwrap());
        store.purge_leases(9).unwrap();
        assert_eq!(store.leases().unwrap(), vec![lease(10)]);
        store.purge_leases(10).unwrap();
        assert_eq!(store.leases().unwrap(), vec![]);
    }
}
