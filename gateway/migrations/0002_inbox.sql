-- What providers told and was verified, kept until it is handed to the service it belongs to.
CREATE TABLE inbox (
    provider TEXT NOT NULL,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    account TEXT NOT NULL,
    livemode BIGINT NOT NULL,
    body BYTEA NOT NULL,
    query TEXT NOT NULL,
    received_at BIGINT NOT NULL,
    outcome TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    finished_at BIGINT,
    erased BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (provider, event_id)
);

CREATE INDEX inbox_finished ON inbox (erased, finished_at) WHERE finished_at IS NOT NULL;

-- How far each stream of changes has been turned into jobs.
CREATE TABLE watch_cursor (
    stream TEXT NOT NULL PRIMARY KEY,
    cursor TEXT NOT NULL
);

INSERT INTO watch_cursor (stream, cursor) VALUES ('payments', '');
