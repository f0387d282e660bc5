-- 0007, agent-config and agent-runtime: secrets, key-value entries, manifests, recordings; and rotation of the
-- key-encryption key. The release before this one works on it: every new column has a default, and data keys stay as they
-- are until `belljar keys rotate` is run.

-- The key-encryption key that a data key is sealed under, by its id. NULL: the one derived from the master key.
ALTER TABLE data_key ADD COLUMN kek text CHECK (kek ~ '^[0-9a-f]{16}$');
GRANT UPDATE (sealed, kek) ON data_key TO belljar_app;

-- A secret of a tenant, sealed. `hosts`: where requests may carry it without a further right; empty for everywhere that a
-- grant says.
CREATE TABLE secret (
    tenant_id        uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    name             text NOT NULL,
    sealed           bytea NOT NULL,
    data_key_version integer NOT NULL,
    hosts            text[] NOT NULL DEFAULT '{}',
    readable         boolean NOT NULL DEFAULT false,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name),
    FOREIGN KEY (tenant_id, data_key_version) REFERENCES data_key (tenant_id, version)
);
CALL wall('secret');
GRANT SELECT, INSERT, UPDATE, DELETE ON secret TO belljar_app;

-- What tools stored. Keys are compared by bytes, so that a page ends where the next begins, whatever the locale.
CREATE TABLE kv_entry (
    tenant_id  uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    namespace  text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    value      bytea NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, namespace, key)
);
CALL wall('kv_entry');
GRANT SELECT, INSERT, UPDATE, DELETE ON kv_entry TO belljar_app;

-- What a tenant's entries come to. Changed with them, in the same transaction, and locked first: writers of one tenant
-- take turns, so that the sums are exact and no two of them wait for each other.
CREATE TABLE kv_usage (
    tenant_id uuid PRIMARY KEY REFERENCES tenant ON DELETE CASCADE,
    bytes     bigint NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    entries   bigint NOT NULL DEFAULT 0 CHECK (entries >= 0)
);
CALL wall('kv_usage');
GRANT SELECT, INSERT, UPDATE ON kv_usage TO belljar_app;

-- The JSON part that came beside the bytes of a typed component.
ALTER TABLE tool_version ADD COLUMN manifest jsonb;
-- Calls of this binding are recorded.
ALTER TABLE binding ADD COLUMN record boolean NOT NULL DEFAULT false;

-- What the host gave to a call, so that it can be run again.
CREATE TABLE recording (
    tenant_id  uuid NOT NULL,
    call_id    uuid NOT NULL,
    body       jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, call_id),
    FOREIGN KEY (tenant_id, call_id) REFERENCES tool_call (tenant_id, call_id) ON DELETE CASCADE
);
CALL wall('recording');
GRANT SELECT, INSERT ON recording TO belljar_app;
