//! The daemon's memory: one SQLite file with sandboxes, leases and the build cache.
//!
//! One process owns it (an exclusive lock beside the file says so), one connection writes it, and every
//! call is short and synchronous: an async caller goes through `spawn_blocking`. Big bytes never come
//! here; layers and image configs live in the image store, command output nowhere.
//!
//! Rows carry the API's own JSON ([`berth_types`]) next to the columns that are searched. A row's
//! `revision` grows with every write of the whole store, so that a change feed can be added without a new format.
//!
//! Fails with [`Error`]; a store of a newer schema is refused, never guessed at.
//!
//! Start reading at [`Store::open`] and `schema.sql`.

mod cache;
mod leases;
mod sandboxes;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

pub use cache::CacheRow;
pub use leases::LeaseRow;
pub use sandboxes::SandboxRow;

/// Schema that this code reads and writes; see `schema.sql`.
const SCHEMA_VERSION: i64 = 2;

/// What leads from each schema to the next, beginning with the first; see [`migrate`].
const MIGRATIONS: [&str; 1] = ["ALTER TABLE sandboxes ADD COLUMN resume TEXT"];

/// How long the lock is waited for: a daemon that no longer listens may still be ending its sandboxes.
const ENDING: Duration = Duration::from_secs(3);

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Opening or creating the file failed.
    #[error("cannot open the database {path}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The lock file beside the database could not be made.
    #[error("cannot open the lock file {path}")]
    LockFile {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another daemon has this data directory.
    #[error("another daemon uses {path}")]
    InUse {
        /// The lock file that it holds.
        path: PathBuf,
    },
    /// The file was written by a newer Berth.
    #[error("the database has schema {found}, this Berth knows up to {known}")]
    NewerSchema {
        /// Version in the file.
        found: i64,
        /// Newest version this code knows.
        known: i64,
    },
    /// A statement failed.
    #[error("cannot {operation} in the database")]
    Query {
        /// What was being done.
        operation: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A row's JSON is not what this version writes.
    #[error("cannot read {what} from the database")]
    Corrupt {
        /// Which row.
        what: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// Whether the disk is full, which is nobody's fault and mends itself once something is deleted.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::Query { source, .. } if source.sqlite_error_code() == Some(ErrorCode::DiskFull))
    }
}

/// The open store. Calls are serialised.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    /// Held for as long as the store is open; the kernel drops it with the process.
    _lock: File,
}

impl Store {
    /// Opens the database in `dir`, making it when it is not there.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has it open, [`Error::NewerSchema`] when a newer Berth wrote it.
    pub fn open(dir: &Path) -> Result<Store, Error> {
        let lock = lock(&dir.join("berth.lock"))?;
        let path = dir.join("berth.db");
        let open = |source| Error::Open { path: path.clone(), source };
        let mut connection = Connection::open(&path).map_err(open)?;
        // WAL with NORMAL: a crash of the daemon loses nothing, a power cut at most the last
        // transactions; the sandboxes they spoke of are gone then too.
        connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(open)?;
        let found: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(open)?;
        if found > SCHEMA_VERSION {
            return Err(Error::NewerSchema { found, known: SCHEMA_VERSION });
        }
        migrate(&mut connection, found).map_err(open)?;
        Ok(Store { connection: Mutex::new(connection), _lock: lock })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic while the lock was held left SQLite itself consistent: transactions roll back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings a file of schema `found` (0 for an empty one) up to ours: as a whole or, when this fails, not at all.
fn migrate(connection: &mut Connection, found: i64) -> Result<(), rusqlite::Error> {
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    match usize::try_from(found) {
        Ok(from @ 1..) => {
            for step in MIGRATIONS.iter().skip(from - 1) {
                transaction.execute_batch(step)?;
            }
        }
        _ => transaction.execute_batch(include_str!("schema.sql"))?,
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

fn lock(path: &Path) -> Result<File, Error> {
    let on = |source| Error::LockFile { path: path.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(on)?;
    let deadline = Instant::now() + ENDING;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(on(source)),
        }
    }
}

fn query(operation: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |source| Error::Query { operation, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(Error::InUse { .. })));
        drop(first);
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::open(dir.path()).unwrap());
        let raw = Connection::open(dir.path().join("berth.db")).unwrap();
        raw.pragma_update(None, "user_version", SCHEMA_VERSION + 1).unwrap();
        drop(raw);
        assert!(matches!(Store::open(dir.path()), Err(Error::NewerSchema { .. })));
    }

    fn with_file(sql: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        Connection::open(dir.path().join("berth.db")).unwrap().execute_batch(sql).unwrap();
        dir
    }

    #[test]
    fn files_of_every_schema_are_read() {
        let first = include_str!("../tests/fixtures/schema-1.sql");
        let second = first.to_owned() + include_str!("../tests/fixtures/schema-2.sql");
        for (sql, resume) in [(first, None), (&second, Some(r#"{"driver":"d"}"#))] {
            let dir = with_file(sql);
            let store = Store::open(dir.path()).unwrap();
            let rows = store.sandboxes().unwrap();
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].sandbox.name, "fixture");
            assert_eq!(rows[0].resume.as_deref(), resume);
            assert_eq!(store.cached("step", "k").unwrap().as_deref(), Some("v"));
        }
    }

    #[test]
    fn an_old_file_becomes_a_new_one_for_good() {
        let columns = |dir: &Path| {
            let raw = Connection::open(dir.join("berth.db")).unwrap();
            let mut names = raw.prepare("SELECT name FROM pragma_table_info('sandboxes')").unwrap();
            let names: Vec<String> =
                names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
            (names, raw.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap())
        };
        let old = with_file(include_str!("../tests/fixtures/schema-1.sql"));
        let new = tempfile::tempdir().unwrap();
        for dir in [&old, &new] {
            let store = Store::open(dir.path()).unwrap();
            let mut row = store.sandboxes().unwrap().into_iter().next();
            if let Some(row) = &mut row {
                row.resume = Some("{}".to_owned());
                store.put_sandbox(row).unwrap();
            }
            drop(store);
            assert_eq!(Store::open(dir.path()).unwrap().sandboxes().unwrap().into_iter().next(), row);
        }
        assert_eq!(columns(old.path()), columns(new.path()));
        assert_eq!(columns(old.path()).1, SCHEMA_VERSION);
    }
}
