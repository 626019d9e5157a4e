-- Multi-step work: what calls leave behind before their superstep commits, runs that wait without a
-- slot, children, artifacts, schedules and webhooks.

-- What few runs have: {command, break_before, break_after, budget, base, webhook}.
ALTER TABLE run_inputs ADD COLUMN options TEXT;

ALTER TABLE runs ADD COLUMN parent INTEGER;                    -- runs.n
-- checkpoints.n that was the thread's head before the run's first checkpoint: where a rollback leads.
ALTER TABLE runs ADD COLUMN base INTEGER;
ALTER TABLE runs ADD COLUMN rolled_back INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN woken INTEGER NOT NULL DEFAULT 0;  -- 1: somebody woke it since its claim
ALTER TABLE runs ADD COLUMN orphans INTEGER NOT NULL DEFAULT 0;-- 1: ended, and not all its children are told
-- While it waits: {kind, detail, on_child}, since when, and until when.
ALTER TABLE runs ADD COLUMN park TEXT;
ALTER TABLE runs ADD COLUMN parked_at INTEGER;
ALTER TABLE runs ADD COLUMN wake_at INTEGER;
CREATE INDEX runs_parent ON runs (parent, id) WHERE parent IS NOT NULL;
CREATE INDEX runs_children ON runs (parent) WHERE parent IS NOT NULL AND status < 4;
CREATE INDEX runs_wake ON runs (wake_at) WHERE status = 3 AND wake_at IS NOT NULL;
CREATE INDEX runs_orphans ON runs (n) WHERE orphans = 1;

-- Notes of calls whose superstep has not committed yet, and signals to runs (under the run's id).
-- What a run has no more use for is deleted at once if the run wrote it; what it found is only
-- marked until the run has ended, because a rollback needs it again.
CREATE TABLE journal (
    id      INTEGER PRIMARY KEY,
    thread  INTEGER NOT NULL,
    task    BLOB    NOT NULL,
    key     TEXT    NOT NULL,
    data    BLOB    NOT NULL,                   -- packed
    run     INTEGER NOT NULL DEFAULT 0,         -- runs.n that it was written by or for; 0: none
    settled INTEGER                             -- runs.n that has no more use for it
) STRICT;
CREATE UNIQUE INDEX journal_entry ON journal (thread, task, key);

CREATE INDEX checkpoints_thread ON checkpoints (thread, id);
CREATE INDEX checkpoints_run ON checkpoints (run);
UPDATE runs SET base = (SELECT parent FROM checkpoints WHERE run = runs.n ORDER BY n LIMIT 1)
    WHERE status < 4 AND checkpoint IS NOT NULL;
CREATE INDEX threads_updated ON threads (updated_at, n);

CREATE TABLE artifacts (
    id         INTEGER PRIMARY KEY,
    run        INTEGER NOT NULL,                -- runs.n
    thread     INTEGER NOT NULL,                -- threads.n
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    task       BLOB    NOT NULL,
    node       TEXT    NOT NULL,
    media_type TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    sha256     BLOB    NOT NULL,
    blob       INTEGER NOT NULL,                -- blobs.id
    at         INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX artifacts_name ON artifacts (run, name, version);
CREATE INDEX artifacts_thread ON artifacts (thread, name);

CREATE TABLE schedules (
    id         BLOB    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    owner      TEXT,
    name       TEXT,
    thread     BLOB,                            -- threads.id: it may not exist yet
    cron       TEXT,
    timezone   TEXT,
    next_at    INTEGER,
    submit     TEXT    NOT NULL,
    only_at    BLOB,
    created_at INTEGER NOT NULL,
    last_at    INTEGER,
    last_run   BLOB,
    last_error TEXT
) STRICT;
CREATE INDEX schedules_due ON schedules (next_at) WHERE next_at IS NOT NULL;
CREATE UNIQUE INDEX schedules_name ON schedules (tenant, name) WHERE name IS NOT NULL;
CREATE INDEX schedules_thread ON schedules (thread) WHERE thread IS NOT NULL;

-- Webhooks, written in the transaction that ends their run.
CREATE TABLE deliveries (
    id         INTEGER PRIMARY KEY,
    run        BLOB    NOT NULL,
    url        TEXT    NOT NULL,
    attempt    INTEGER NOT NULL DEFAULT 0,
    next_at    INTEGER,                         -- NULL: given up
    created_at INTEGER NOT NULL,
    error      TEXT
) STRICT;
CREATE INDEX deliveries_due ON deliveries (next_at) WHERE next_at IS NOT NULL;

-- Outputs of nodes that may be used again.
CREATE TABLE node_cache (
    id         INTEGER PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    key        BLOB    NOT NULL,
    expires_at INTEGER NOT NULL,
    data       BLOB    NOT NULL                 -- packed
) STRICT;
CREATE UNIQUE INDEX node_cache_key ON node_cache (tenant, key);
CREATE INDEX node_cache_expires ON node_cache (expires_at);

-- Whether anybody still refers to a large value.
CREATE INDEX deltas_blob ON deltas (blob) WHERE blob IS NOT NULL;
CREATE INDEX artifacts_blob ON artifacts (blob);
