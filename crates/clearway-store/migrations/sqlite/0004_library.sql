-- Assistants at each of their versions.
CREATE TABLE assistants (
    id          BLOB    NOT NULL,
    tenant      TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    latest      INTEGER NOT NULL,               -- 1: the one that runs take
    owner       TEXT,
    agent       TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    description TEXT,
    data        TEXT    NOT NULL,               -- {config, context, metadata}
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, id, version)
) STRICT;
CREATE UNIQUE INDEX assistants_latest ON assistants (tenant, id) WHERE latest = 1;

-- What is remembered beside threads.
CREATE TABLE items (
    id         INTEGER PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    owner      TEXT    NOT NULL,                -- '' for none
    space      TEXT    NOT NULL,                -- labels joined by dots
    key        TEXT    NOT NULL,
    data       BLOB    NOT NULL,                -- packed
    ttl        INTEGER,                         -- ms
    expires_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX items_key ON items (tenant, owner, space, key);
CREATE INDEX items_expiry ON items (expires_at) WHERE expires_at IS NOT NULL;

-- Their words: rowid is items.id.
CREATE VIRTUAL TABLE items_words USING fts5(
    words, content = '', contentless_delete = 1, tokenize = 'unicode61 remove_diacritics 2'
);

-- How many there are, without counting.
CREATE TABLE items_count (tenant TEXT NOT NULL PRIMARY KEY, n INTEGER NOT NULL) STRICT;
CREATE TRIGGER items_more AFTER INSERT ON items BEGIN
    INSERT INTO items_count (tenant, n) VALUES (NEW.tenant, 1)
        ON CONFLICT (tenant) DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER items_fewer AFTER DELETE ON items BEGIN
    UPDATE items_count SET n = n - 1 WHERE tenant = OLD.tenant;
    DELETE FROM items_words WHERE rowid = OLD.id;
END;
