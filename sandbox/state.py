"""
Everything the sandbox knows, in one SQLite file.

A request's whole effect (objects, idempotency key, ledger line, webhooks to send) is one transaction that commits
before the answer leaves, so a killed sandbox has either done all of it or none.
"""

import fcntl
import json
import os
import secrets
import sqlite3
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

Json = dict[str, Any]

SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL UNIQUE, label TEXT NOT NULL,
    created_at INTEGER NOT NULL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS objects_by_label ON objects (kind, label);
CREATE TABLE IF NOT EXISTS idempotency_keys (
    key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, request_id TEXT NOT NULL, status INTEGER NOT NULL,
    body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, at INTEGER NOT NULL, provider TEXT NOT NULL, method TEXT NOT NULL, path TEXT NOT NULL,
    status INTEGER NOT NULL, outcome TEXT NOT NULL, fault TEXT, idempotency_key TEXT, object_id TEXT,
    request TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS faults (
    number INTEGER PRIMARY KEY, provider TEXT NOT NULL, path TEXT NOT NULL, kind TEXT NOT NULL, options TEXT NOT NULL,
    times INTEGER NOT NULL, hits INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS webhooks (
    number INTEGER PRIMARY KEY, provider TEXT NOT NULL, subject TEXT NOT NULL, object_id TEXT NOT NULL,
    url TEXT NOT NULL, body BLOB NOT NULL, token TEXT NOT NULL, created_at INTEGER NOT NULL, due_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, state TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS webhooks_waiting ON webhooks (due_at) WHERE state = 'waiting';
CREATE INDEX IF NOT EXISTS webhooks_by_object ON webhooks (object_id);
CREATE TABLE IF NOT EXISTS webhook_attempts (
    webhook INTEGER NOT NULL, at INTEGER NOT NULL, milliseconds INTEGER NOT NULL, status INTEGER, error TEXT);
CREATE INDEX IF NOT EXISTS attempts_by_webhook ON webhook_attempts (webhook);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

ALPHANUMERIC = string.ascii_letters + string.digits


class State:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = alone(Path(f"{path}.lock"))
        path.touch(mode=0o600)
        for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
            with suppress(FileNotFoundError):
                name.chmod(0o600)
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._connection.row_factory = sqlite3.Row
        # NORMAL under WAL loses nothing to a killed process, only to a power cut.
        self._connection.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {SCHEMA}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Never held across an await: the event loop's one thread is what keeps two of them apart."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()
        os.close(self._lock)


def alone(file: Path) -> int:
    """Lock the file for this process; OSError says that another one has the sandbox's state open."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(lock, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError(f"another process has {file.with_suffix('')} open") from None
    return lock


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def random_id(prefix: str, length: int = 24) -> str:
    return prefix + "".join(secrets.choice(ALPHANUMERIC) for _ in range(length))


def put(db: sqlite3.Connection, kind: str, body: Json, *, id: str, label: str = "") -> None:
    db.execute(
        "INSERT INTO objects (kind, id, label, created_at, body) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET body = excluded.body, label = excluded.label",
        (kind, id, label, now_ms(), json.dumps(body)),
    )


def get(db: sqlite3.Connection, kind: str, id: str) -> Json | None:
    row = db.execute("SELECT body FROM objects WHERE kind = ? AND id = ?", (kind, id)).fetchone()
    return None if row is None else json.loads(row["body"])


def newest(db: sqlite3.Connection, kind: str, limit: int) -> list[Json]:
    rows = db.execute("SELECT body FROM objects WHERE kind = ? ORDER BY number DESC LIMIT ?", (kind, limit))
    return [json.loads(row["body"]) for row in rows]


def secret(db: sqlite3.Connection, name: str, made_up: str) -> str:
    """The secret of that name, which is `made_up` if there is none yet."""
    db.execute("INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (name, made_up))
    return str(db.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()["value"])
