-- 0002, agent-config: tools and their versions, agents and their revisions, provider keys.

CREATE TABLE tool (
    tenant_id  uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    tool_id    uuid NOT NULL,
    name       text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, tool_id),
    CONSTRAINT tool_name UNIQUE (tenant_id, name)
);
CALL wall('tool');
GRANT SELECT, INSERT, DELETE ON tool TO belljar_app;

-- A component's bytes. Per tenant, so that having them says nothing of another tenant.
CREATE TABLE artifact (
    tenant_id  uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    hash       bytea NOT NULL CHECK (length(hash) = 32),
    bytes      bytea NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, hash)
);
-- Wasm is not compressed twice: reading it stays cheap.
ALTER TABLE artifact ALTER COLUMN bytes SET STORAGE EXTERNAL;
CALL wall('artifact');
GRANT SELECT, INSERT, DELETE ON artifact TO belljar_app;

-- `claimed_until`: while compiling, until when the process that admits it is believed to live.
CREATE TABLE tool_version (
    tenant_id        uuid NOT NULL,
    tool_id          uuid NOT NULL,
    hash             bytea NOT NULL,
    number           integer NOT NULL,
    label            text,
    status           text NOT NULL CHECK (status IN ('compiling', 'ready', 'rejected')),
    rejection_code   text,
    rejection_detail text,
    functions        jsonb NOT NULL DEFAULT '[]',
    requires         jsonb NOT NULL DEFAULT '{}',
    contract         text,
    size_bytes       bigint NOT NULL,
    claimed_until    timestamptz NOT NULL,
    created_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, tool_id, hash),
    CONSTRAINT tool_version_number UNIQUE (tenant_id, tool_id, number),
    FOREIGN KEY (tenant_id, tool_id) REFERENCES tool (tenant_id, tool_id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, hash) REFERENCES artifact (tenant_id, hash)
);
CREATE INDEX tool_version_compiling ON tool_version (claimed_until) WHERE status = 'compiling';
CALL wall('tool_version');
GRANT SELECT, INSERT, UPDATE, DELETE ON tool_version TO belljar_app;
CREATE POLICY door ON tool_version FOR ALL TO belljar_door USING (status = 'compiling');
GRANT SELECT, UPDATE (claimed_until) ON tool_version TO belljar_door;

CREATE TABLE agent (
    tenant_id       uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    agent_id        uuid NOT NULL,
    name            text NOT NULL,
    active_revision integer NOT NULL,
    archived_at     timestamptz,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, agent_id)
);
CREATE UNIQUE INDEX agent_name ON agent (tenant_id, name) WHERE archived_at IS NULL;
CALL wall('agent');
GRANT SELECT, INSERT, UPDATE ON agent TO belljar_app;

-- Immutable: the application role cannot update it.
CREATE TABLE agent_revision (
    tenant_id  uuid NOT NULL,
    agent_id   uuid NOT NULL,
    revision   integer NOT NULL,
    body       jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, agent_id, revision),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agent (tenant_id, agent_id) ON DELETE CASCADE
);
CALL wall('agent_revision');
GRANT SELECT, INSERT ON agent_revision TO belljar_app;

-- A tool version given to a revision. The reference to the version keeps it from being deleted; its own reference to the
-- tenant lets it go first when the tenant is erased.
CREATE TABLE binding (
    tenant_id uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    agent_id  uuid NOT NULL,
    revision  integer NOT NULL,
    tool_id   uuid NOT NULL,
    hash      bytea NOT NULL,
    position  integer NOT NULL,
    functions text[],
    grants    jsonb NOT NULL,
    limits    jsonb NOT NULL,
    PRIMARY KEY (tenant_id, agent_id, revision, tool_id),
    FOREIGN KEY (tenant_id, agent_id, revision) REFERENCES agent_revision (tenant_id, agent_id, revision) ON DELETE CASCADE,
    CONSTRAINT binding_version FOREIGN KEY (tenant_id, tool_id, hash) REFERENCES tool_version (tenant_id, tool_id, hash)
);
CREATE INDEX binding_by_version ON binding (tenant_id, tool_id, hash);
CALL wall('binding');
GRANT SELECT, INSERT ON binding TO belljar_app;

-- A tenant's own key for a model provider, sealed.
CREATE TABLE provider_key (
    tenant_id        uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    name             text NOT NULL,
    kind             text NOT NULL CHECK (kind IN ('openai', 'openai_compatible')),
    base_url         text,
    sealed           bytea NOT NULL,
    data_key_version integer NOT NULL,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name),
    FOREIGN KEY (tenant_id, data_key_version) REFERENCES data_key (tenant_id, version)
);
CALL wall('provider_key');
GRANT SELECT, INSERT, UPDATE, DELETE ON provider_key TO belljar_app;
