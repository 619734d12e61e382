-- Schema 2. A change of meaning gets a new number and a migration; columns are only ever added.

-- One row, the counter that stamps every other row.
CREATE TABLE revision (value INTEGER NOT NULL);
INSERT INTO revision VALUES (0);

CREATE TABLE sandboxes (
    id              TEXT PRIMARY KEY,
    idempotency_key TEXT UNIQUE,
    lease           TEXT,
    -- berth_types::sandbox::Sandbox as JSON
    record          TEXT NOT NULL,
    -- seconds since the epoch at which a sandbox that is no longer running was found so
    ended_at        INTEGER,
    revision        INTEGER NOT NULL,
    -- what another daemon needs to take it over while it runs, as JSON of the node's (since schema 2)
    resume          TEXT
) STRICT;
CREATE INDEX sandboxes_lease ON sandboxes (lease);

CREATE TABLE leases (
    id         TEXT PRIMARY KEY,
    -- milliseconds since the epoch
    expires_at INTEGER NOT NULL,
    revision   INTEGER NOT NULL
) STRICT;

CREATE TABLE cache (
    kind      TEXT NOT NULL,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    -- seconds since the epoch
    last_used INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT;
