//! The build cache: content keys and what they led to.

use rusqlite::{OptionalExtension, params};

use crate::{Error, Store, query};

/// A row of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRow {
    /// What kind of key it is.
    pub kind: String,
    /// The key.
    pub key: String,
    /// What it led to.
    pub value: String,
    /// When it was last asked for or written, in seconds since the epoch.
    pub last_used: i64,
}

impl Store {
    /// Everything that is remembered, by kind and key. Not a use of it.
    pub fn cache_rows(&self) -> Result<Vec<CacheRow>, Error> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<Vec<CacheRow>> {
            let sql = "SELECT kind, key, value, last_used FROM cache ORDER BY kind, key";
            let mut rows = connection.prepare(sql)?;
            let rows = rows.query_map([], |row| {
                Ok(CacheRow {
                    kind: row.get(0)?,
                    key: row.get(1)?,
                    value: row.get(2)?,
                    last_used: row.get(3)?,
                })
            })?;
            rows.collect()
        };
        read().map_err(query("read the build cache"))
    }

    /// Forgets these rows, but for those that were written anew or used since they were read. Says how many went.
    pub fn forget_rows(&self, rows: &[CacheRow]) -> Result<usize, Error> {
        let mut connection = self.connection();
        let mut forget = || -> rusqlite::Result<usize> {
            let transaction = connection.transaction()?;
            let sql = "DELETE FROM cache WHERE kind = ?1 AND key = ?2 AND value = ?3 AND last_used = ?4";
            let mut gone = 0;
            for row in rows {
                gone += transaction.execute(sql, params![row.kind, row.key, row.value, row.last_used])?;
            }
            transaction.commit()?;
            Ok(gone)
        };
        forget().map_err(query("write the build cache"))
    }

    /// Remembers what another machine did, `(kind, key, value)`; what is remembered here already stays. All or nothing.
    pub fn take_rows(&self, rows: &[(String, String, String)]) -> Result<usize, Error> {
        let mut connection = self.connection();
        let mut take = || -> rusqlite::Result<usize> {
            let transaction = connection.transaction()?;
            let sql = "INSERT INTO cache (kind, key, value, last_used) VALUES (?1, ?2, ?3, unixepoch())
                       ON CONFLICT DO NOTHING";
            let mut taken = 0;
            for (kind, key, value) in rows {
                taken += transaction.execute(sql, [kind, key, value])?;
            }
            transaction.commit()?;
            Ok(taken)
        };
        take().map_err(query("write the build cache"))
    }

    /// What was remembered for `key`, and notes that it was used.
    pub fn cached(&self, kind: &str, key: &str) -> Result<Option<String>, Error> {
        let sql = "UPDATE cache SET last_used = unixepoch() WHERE kind = ?1 AND key = ?2 RETURNING value";
        let found = self.connection().query_row(sql, [kind, key], |row| row.get(0)).optional();
        found.map_err(query("look into the build cache"))
    }

    /// Remembers `value` for `key`, replacing what was there.
    pub fn remember(&self, kind: &str, key: &str, value: &str) -> Result<(), Error> {
        let sql = "INSERT INTO cache (kind, key, value, last_used) VALUES (?1, ?2, ?3, unixepoch())
                   ON CONFLICT DO UPDATE SET value = ?3, last_used = unixepoch()";
        let written = self.connection().execute(sql, params![kind, key, value]);
        written.map(drop).map_err(query("write the build cache"))
    }

    /// Forgets `key`.
    pub fn forget(&self, kind: &str, key: &str) -> Result<(), Error> {
        let deleted =
            self.connection().execute("DELETE FROM cache WHERE kind = ?1 AND key = ?2", [kind, key]);
        deleted.map(drop).map_err(query("write the build cache"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_forgotten_only_as_they_were_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.remember("step", "a", "1").unwrap();
        store.remember("step", "b", "2").unwrap();
        let rows = store.cache_rows().unwrap();
        assert_eq!(rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        store.remember("step", "a", "another").unwrap();
        assert_eq!(store.forget_rows(&rows).unwrap(), 1);
        assert_eq!(store.cached("step", "a").unwrap().as_deref(), Some("another"));
        assert_eq!(store.cached("step", "b").unwrap(), None);
    }

    #[test]
    fn rows_of_other_machines_replace_none_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.remember("step", "a", "ours").unwrap();
        let row = |key: &str| ("step".to_owned(), key.to_owned(), "theirs".to_owned());
        assert_eq!(store.take_rows(&[row("a"), row("b")]).unwrap(), 1);
        assert_eq!(store.cached("step", "a").unwrap().as_deref(), Some("ours"));
        assert_eq!(store.cached("step", "b").unwrap().as_deref(), Some("theirs"));
    }

    #[test]
    fn the_last_value_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.cached("step", "k").unwrap(), None);
        store.remember("step", "k", "1").unwrap();
        store.remember("step", "k", "2").unwrap();
        store.remember("image", "k", "3").unwrap();
        assert_eq!(store.cached("step", "k").unwrap().as_deref(), Some("2"));
        store.forget("step", "k").unwrap();
        assert_eq!(store.cached("step", "k").unwrap(), None);
        assert_eq!(store.cached("image", "k").unwrap().as_deref(), Some("3"));
    }
}
