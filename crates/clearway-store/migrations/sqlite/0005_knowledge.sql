-- Documents that can be searched: files of a configured folder, or uploaded ones of a collection.
CREATE TABLE kb_documents (
    n           INTEGER PRIMARY KEY,
    id          BLOB    NOT NULL UNIQUE,
    tenant      TEXT    NOT NULL,               -- '' for what the configuration names
    source      TEXT    NOT NULL,               -- a configured name, or a collection's id
    path        TEXT    NOT NULL,
    owner       TEXT,
    state       INTEGER NOT NULL,               -- 0 pending, 1 indexed, 2 failed
    hash        BLOB    NOT NULL,               -- of its bytes; empty while nobody read them
    size        INTEGER NOT NULL,
    modified_ms INTEGER NOT NULL,
    recipe      TEXT    NOT NULL,               -- how it was read and cut
    file        BLOB,                           -- kb_files.id
    chunks      INTEGER NOT NULL,
    about       TEXT    NOT NULL,               -- JSON
    body        BLOB,                           -- packed
    created_at  INTEGER NOT NULL,
    changed_at  INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX kb_documents_path ON kb_documents (tenant, source, path);
CREATE INDEX kb_documents_file ON kb_documents (file) WHERE file IS NOT NULL;
CREATE INDEX kb_documents_pending ON kb_documents (n) WHERE state = 0;

CREATE TABLE kb_chunks (
    document    INTEGER NOT NULL,               -- kb_documents.n
    ord         INTEGER NOT NULL,
    hash        BLOB    NOT NULL,               -- of its text
    data        BLOB    NOT NULL,               -- packed
    PRIMARY KEY (document, ord)
) STRICT, WITHOUT ROWID;
CREATE INDEX kb_chunks_hash ON kb_chunks (hash);

-- What a model made of a text; shared by all chunks with that text.
CREATE TABLE kb_vectors (
    hash        BLOB    NOT NULL,
    model       TEXT    NOT NULL,
    data        BLOB    NOT NULL,
    PRIMARY KEY (hash, model)
) STRICT, WITHOUT ROWID;

-- Collections that people made, and the files they sent.
CREATE TABLE kb_collections (
    id          BLOB    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    owner       TEXT,
    about       TEXT    NOT NULL,               -- JSON
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX kb_collections_tenant ON kb_collections (tenant, created_at);

CREATE TABLE kb_files (
    id          BLOB    NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    owner       TEXT,
    size        INTEGER NOT NULL,
    about       TEXT    NOT NULL,               -- JSON
    data        BLOB    NOT NULL,               -- packed
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX kb_files_tenant ON kb_files (tenant, created_at);
