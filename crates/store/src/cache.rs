//! The build cache: content keys and what they led to.

use rusqlite::{OptionalExtension, params};

use crate::{Error, Store, query};

impl Store {
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
