-- Attempts at provider calls, one row each, whatever became of them.
CREATE TABLE attempts (
    id               INTEGER PRIMARY KEY,
    run              INTEGER,                    -- runs.n; none for texts that are embedded together
    at               INTEGER NOT NULL,           -- its end
    call             TEXT    NOT NULL,
    node             TEXT    NOT NULL,
    number           INTEGER NOT NULL,           -- within its call, from 1
    provider         TEXT    NOT NULL,
    endpoint         TEXT    NOT NULL,
    model            TEXT    NOT NULL,
    key              TEXT    NOT NULL,           -- its label
    class            TEXT    NOT NULL,
    phase            TEXT    NOT NULL,           -- how far it came
    outcome          TEXT    NOT NULL,           -- ok, or a code
    status           INTEGER,
    source           TEXT    NOT NULL,           -- of the figures
    input_tokens     INTEGER NOT NULL,
    output_tokens    INTEGER NOT NULL,
    cached_tokens    INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    price            TEXT,                       -- [input, cached input, output], of a million
    cost_micros      INTEGER,
    ms               INTEGER NOT NULL,
    first_output_ms  INTEGER
) STRICT;
CREATE INDEX attempts_run ON attempts (run) WHERE run IS NOT NULL;
CREATE INDEX attempts_of_no_run ON attempts (at) WHERE run IS NULL;
