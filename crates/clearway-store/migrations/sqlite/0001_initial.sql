-- Ids are 16-byte blobs. Rows refer to each other by their integer `n`, which is half as wide in
-- every index. Times are milliseconds since 1970. JSON is text.
--
-- Payload tables are rowid tables: message-sized rows in a WITHOUT ROWID table spill into overflow
-- pages and more than double the file.

CREATE TABLE instances (
    id          BLOB    NOT NULL PRIMARY KEY,
    lease_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE threads (
    n          INTEGER PRIMARY KEY,
    id         BLOB    NOT NULL,
    tenant     TEXT    NOT NULL,
    owner      TEXT,
    -- A dialect's own name; the id is derived from tenant, dialect and parts, so its uniqueness is
    -- the key's.
    dialect    TEXT,
    key_parts  TEXT,
    metadata   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    active     INTEGER,            -- runs.n
    ord        INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    head       INTEGER,            -- checkpoints.n
    version    INTEGER NOT NULL    -- newest delta of all branches
) STRICT;
CREATE UNIQUE INDEX threads_id ON threads (id);

-- The hot row: rewritten by every commit, so nothing wide lives here.
-- status: 0 blocked, 1 ready, 2 running, 3 waiting, 4 success, 5 error, 6 timeout, 7 cancelled
CREATE TABLE runs (
    n               INTEGER PRIMARY KEY,
    id              BLOB    NOT NULL,
    thread          INTEGER NOT NULL,           -- threads.n
    thread_ord      INTEGER NOT NULL,
    generation      INTEGER NOT NULL,           -- of the thread, at admission
    status          INTEGER NOT NULL CHECK (status BETWEEN 0 AND 7),
    priority        INTEGER NOT NULL CHECK (priority BETWEEN 1 AND 5),
    front           INTEGER NOT NULL,           -- 1: came to interrupt, goes before other blocked runs
    cancel          INTEGER NOT NULL DEFAULT 0, -- 1: somebody wants it to end
    idle            INTEGER NOT NULL,           -- 1: claimed, and no superstep committed since
    trimmed         INTEGER NOT NULL DEFAULT 0, -- 1: ended, and its deltas are dropped
    fence           INTEGER NOT NULL,
    attempt         INTEGER NOT NULL,
    fruitless       INTEGER NOT NULL,
    step            INTEGER NOT NULL,
    commits         INTEGER NOT NULL,
    next_seq        INTEGER NOT NULL,           -- at the last commit; run_log may go on beyond it
    committed_seq   INTEGER NOT NULL,
    checkpoint      INTEGER,                    -- checkpoints.n
    instance        BLOB,
    promoted        BLOB,                       -- id of the run that this one's last commit made ready
    created_at      INTEGER NOT NULL,
    ready_at        INTEGER NOT NULL,
    started_at      INTEGER,
    ended_at        INTEGER,
    deadline_at     INTEGER,
    worked_ms       INTEGER NOT NULL,
    input_tokens    INTEGER NOT NULL,
    output_tokens   INTEGER NOT NULL,
    rebilled_tokens INTEGER NOT NULL,
    calls           INTEGER NOT NULL,
    tenant          TEXT    NOT NULL,
    owner           TEXT,
    agent           TEXT    NOT NULL,
    pool            TEXT    NOT NULL,
    door            TEXT    NOT NULL,
    next            TEXT    NOT NULL,
    spent           TEXT    NOT NULL,
    failure         TEXT
) STRICT;
CREATE UNIQUE INDEX runs_id ON runs (id);
-- A thread has at most one active run. The database refuses what the code should never try.
CREATE UNIQUE INDEX runs_active ON runs (thread) WHERE status IN (1, 2, 3);
CREATE INDEX runs_ready ON runs (pool, priority, tenant, ready_at, id) WHERE status = 1;
CREATE INDEX runs_running ON runs (instance) WHERE status = 2;
CREATE INDEX runs_blocked ON runs (thread, front DESC, thread_ord) WHERE status = 0;
CREATE INDEX runs_deadline ON runs (deadline_at, id)
    WHERE deadline_at IS NOT NULL AND status IN (0, 1, 3);
CREATE INDEX runs_untrimmed ON runs (ended_at) WHERE ended_at IS NOT NULL AND trimmed = 0;
-- Lists of what goes on and of what went wrong must not wade through what went well.
CREATE INDEX runs_open ON runs (id) WHERE status < 4;
CREATE INDEX runs_failed ON runs (id) WHERE status > 4;
CREATE INDEX runs_thread ON runs (thread, id);

-- The part of a run that is written once.
CREATE TABLE run_inputs (
    run              INTEGER PRIMARY KEY,       -- runs.n
    parent           BLOB,
    working_limit_ms INTEGER,
    metadata         TEXT NOT NULL,
    input            BLOB NOT NULL              -- packed
) STRICT;

-- Events as segments. (run, end_seq) finds the tail, and where any number is, without a row.
CREATE TABLE run_log (
    id        INTEGER PRIMARY KEY,
    run       INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    end_seq   INTEGER NOT NULL,
    fence     INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    bytes     BLOB    NOT NULL
) STRICT;
CREATE UNIQUE INDEX run_log_end ON run_log (run, end_seq);

CREATE TABLE checkpoints (
    n        INTEGER PRIMARY KEY,
    id       BLOB    NOT NULL,
    thread   INTEGER NOT NULL,
    parent   INTEGER,
    run      INTEGER NOT NULL,
    step     INTEGER NOT NULL,
    source   TEXT    NOT NULL,
    next     TEXT    NOT NULL,
    versions TEXT    NOT NULL,                  -- {channel: version}
    at       INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX checkpoints_id ON checkpoints (id);

-- A channel is the chain of its deltas by `previous`; branches share what is below them.
CREATE TABLE deltas (
    id       INTEGER PRIMARY KEY,
    thread   INTEGER NOT NULL,
    channel  TEXT    NOT NULL,
    version  INTEGER NOT NULL,
    previous INTEGER NOT NULL,
    op       INTEGER NOT NULL,
    total    INTEGER NOT NULL,                  -- bytes on the chain since its last assignment
    data     BLOB,
    blob     INTEGER,                           -- blobs.id, instead of data
    CHECK ((data IS NULL) <> (blob IS NULL))
) STRICT;
CREATE UNIQUE INDEX deltas_version ON deltas (thread, channel, version);

-- The newest snapshot of each channel; older ones could be made again from deltas.
CREATE TABLE snapshots (
    id      INTEGER PRIMARY KEY,
    thread  INTEGER NOT NULL,
    channel TEXT    NOT NULL,
    version INTEGER NOT NULL,
    total   INTEGER NOT NULL,                   -- the delta's, where it was taken
    size    INTEGER NOT NULL,                   -- unpacked
    data    BLOB    NOT NULL                    -- packed
) STRICT;
CREATE UNIQUE INDEX snapshots_channel ON snapshots (thread, channel);

-- Large values, once per tenant: a tenant never learns that another has the same.
CREATE TABLE blobs (
    id     INTEGER PRIMARY KEY,
    tenant TEXT    NOT NULL,
    hash   BLOB    NOT NULL,
    data   BLOB    NOT NULL                     -- packed
) STRICT;
CREATE UNIQUE INDEX blobs_hash ON blobs (tenant, hash);

CREATE TABLE idempotency (
    tenant TEXT    NOT NULL,
    route  TEXT    NOT NULL,
    key    TEXT    NOT NULL,
    body   BLOB    NOT NULL,
    run    INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    PRIMARY KEY (tenant, route, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_at ON idempotency (at);
