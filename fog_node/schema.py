"""The tables of the fog node's store."""

from __future__ import annotations

SCHEMA_VERSION = 3

_CHOICES = """
CREATE TABLE IF NOT EXISTS choices (           -- of the encoder `auto`, the newest for each camera and coded size
  camera TEXT NOT NULL,
  width INTEGER NOT NULL,                      -- coded
  height INTEGER NOT NULL,
  at_us INTEGER NOT NULL,                      -- when it was last weighed, by this node's clock
  changes INTEGER NOT NULL,                    -- how often it became another one
  choice BLOB NOT NULL,                        -- JSON, a planning.Choice
  PRIMARY KEY (camera, width, height)
) WITHOUT ROWID;
"""

_ARRIVING = """
CREATE TABLE IF NOT EXISTS arriving (          -- bytes that a tenant's device began to upload: no other may go on there
  digest BLOB PRIMARY KEY,
  tenant TEXT NOT NULL,
  at_us INTEGER NOT NULL
) WITHOUT ROWID;
"""

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS images (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  content_id BLOB NOT NULL UNIQUE,             -- SHA-256 of the JPEG as captured
  camera TEXT NOT NULL,
  capture_us INTEGER NOT NULL,                 -- by this node's clock
  received_us INTEGER NOT NULL,
  width INTEGER NOT NULL,                      -- pixels of the captured frame
  height INTEGER NOT NULL,
  source_bytes INTEGER NOT NULL,               -- as uploaded
  boxes BLOB NOT NULL,                         -- JSON [[x, y, w, h, label], …] in pixels of the captured frame
  labels BLOB NOT NULL,                        -- JSON, the distinct labels
  state TEXT NOT NULL DEFAULT 'received',      -- received, published or bad
  reason TEXT NOT NULL DEFAULT '',             -- why it is bad
  source_held INTEGER NOT NULL DEFAULT 1,      -- what was uploaded is still in the blob store
  upload_digest BLOB,                          -- SHA-256 of a coded upload, its name in the blob store; null: the JPEG
  upload_form INTEGER NOT NULL DEFAULT 1,      -- the contract's UplinkForm
  upload_width INTEGER,                        -- pixels, of a coded upload
  tenant TEXT NOT NULL DEFAULT ''              -- of the device that uploaded it
);
CREATE INDEX IF NOT EXISTS images_by_upload ON images (upload_digest) WHERE upload_digest IS NOT NULL;
CREATE INDEX IF NOT EXISTS images_by_state ON images (state, seq);

CREATE TABLE IF NOT EXISTS sources (
  content_id BLOB NOT NULL REFERENCES images (content_id),
  device TEXT NOT NULL,
  PRIMARY KEY (content_id, device)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS published (
  cursor INTEGER PRIMARY KEY AUTOINCREMENT,    -- never reused
  content_id BLOB NOT NULL UNIQUE REFERENCES images (content_id),
  digest BLOB NOT NULL,                        -- of the record, its name in the blob store
  size INTEGER NOT NULL,
  layers BLOB NOT NULL,                        -- JSON [[kind, codec number, payload bytes], …]
  encode_s REAL NOT NULL,                      -- this image's share of its batch
  published_us INTEGER NOT NULL
);

CREATE INDEX IF NOT EXISTS published_by_digest ON published (digest);

CREATE TABLE IF NOT EXISTS shared (digest BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS record_shared (
  cursor INTEGER NOT NULL REFERENCES published (cursor),
  digest BLOB NOT NULL REFERENCES shared (digest),
  PRIMARY KEY (cursor, digest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS record_shared_by_digest ON record_shared (digest);

CREATE TABLE IF NOT EXISTS shared_sent (
  device TEXT NOT NULL,
  digest BLOB NOT NULL,
  times INTEGER NOT NULL,
  PRIMARY KEY (device, digest)
) WITHOUT ROWID;
{_CHOICES}{_ARRIVING}"""

UPGRADES = {
    1: f"""
ALTER TABLE images ADD COLUMN upload_digest BLOB;
ALTER TABLE images ADD COLUMN upload_form INTEGER NOT NULL DEFAULT 1;
ALTER TABLE images ADD COLUMN upload_width INTEGER;
CREATE INDEX images_by_upload ON images (upload_digest) WHERE upload_digest IS NOT NULL;
CREATE INDEX IF NOT EXISTS published_by_digest ON published (digest);
{_CHOICES}""",
    2: f"""
ALTER TABLE images ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
{_ARRIVING}""",
}
