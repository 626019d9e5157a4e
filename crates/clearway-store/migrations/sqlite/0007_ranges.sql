-- Conditions of indexes are evaluated at each write of a row, before and after it. A list of values
-- becomes a temporary table each time, which was a tenth of all that a run costs; a range does not.
DROP INDEX runs_active;
CREATE UNIQUE INDEX runs_active ON runs (thread) WHERE status BETWEEN 1 AND 3;
DROP INDEX runs_deadline;
CREATE INDEX runs_deadline ON runs (deadline_at, id)
    WHERE deadline_at IS NOT NULL AND status <> 2 AND status < 4;

-- From here on `deltas.op` may have 16 added to it: then its data is packed.
