-- 0004, agent-runtime: runs, their steps, tool calls and events.

-- One turn of the loop. `leased_by` drives it until `leased_until`, unless it renews.
CREATE TABLE run (
    tenant_id           uuid NOT NULL,
    run_id              uuid NOT NULL,
    agent_id            uuid NOT NULL,
    revision            integer NOT NULL,
    conversation_id     uuid NOT NULL,
    external_user_id    text,
    api_key_id          uuid,
    context             jsonb NOT NULL DEFAULT '{}',
    metadata            jsonb NOT NULL DEFAULT '{}',
    status              text NOT NULL
        CHECK (status IN ('queued', 'running', 'waiting_for_approval', 'completed', 'failed', 'cancelled')),
    stop_reason         text,
    error_code          text,
    error_detail        text,
    steps               integer NOT NULL DEFAULT 0,
    input_tokens        bigint NOT NULL DEFAULT 0,
    cached_input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens       bigint NOT NULL DEFAULT 0,
    fuel                bigint NOT NULL DEFAULT 0,
    cost                numeric NOT NULL DEFAULT 0,
    currency            text NOT NULL,
    cancel_requested    boolean NOT NULL DEFAULT false,
    leased_by           uuid,
    leased_until        timestamptz,
    deadline            timestamptz NOT NULL,
    created_at          timestamptz NOT NULL,
    started_at          timestamptz,
    ended_at            timestamptz,
    PRIMARY KEY (tenant_id, run_id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversation (tenant_id, conversation_id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, agent_id, revision) REFERENCES agent_revision (tenant_id, agent_id, revision) ON DELETE CASCADE
);
-- One run at a time per conversation.
CREATE UNIQUE INDEX run_active ON run (tenant_id, conversation_id)
    WHERE status IN ('queued', 'running', 'waiting_for_approval');
CREATE INDEX run_by_conversation ON run (tenant_id, conversation_id);
CREATE INDEX run_queued ON run (created_at) WHERE status = 'queued';
CREATE INDEX run_leased ON run (leased_until) WHERE status = 'running';
CREATE INDEX run_by_agent ON run (tenant_id, agent_id, run_id);
CALL wall('run');
GRANT SELECT, INSERT, UPDATE ON run TO belljar_app;
CREATE POLICY door ON run FOR ALL TO belljar_door USING (status IN ('queued', 'running'));
GRANT SELECT, UPDATE (status, leased_by, leased_until, started_at) ON run TO belljar_door;

-- One model call, and the tool calls it asked for.
CREATE TABLE step (
    tenant_id           uuid NOT NULL,
    run_id              uuid NOT NULL,
    step                integer NOT NULL,
    provider            text NOT NULL,
    model               text NOT NULL,
    input_tokens        bigint NOT NULL,
    cached_input_tokens bigint NOT NULL,
    output_tokens       bigint NOT NULL,
    fuel                bigint NOT NULL,
    cost                numeric NOT NULL,
    started_at          timestamptz NOT NULL,
    ended_at            timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, run_id, step),
    FOREIGN KEY (tenant_id, run_id) REFERENCES run (tenant_id, run_id) ON DELETE CASCADE
);
CALL wall('step');
GRANT SELECT, INSERT ON step TO belljar_app;

-- One call of one function, with its outcome and receipt. `run_id` is NULL for a direct call. `receipt` is NULL when
-- the call did not begin.
CREATE TABLE tool_call (
    tenant_id        uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    call_id          uuid NOT NULL,
    run_id           uuid,
    step             integer,
    agent_id         uuid,
    external_user_id text,
    tool             text NOT NULL,
    hash             bytea,
    function         text NOT NULL,
    arguments        jsonb NOT NULL,
    status           text NOT NULL,
    outcome          jsonb NOT NULL,
    receipt          jsonb,
    price            numeric NOT NULL DEFAULT 0,
    currency         text NOT NULL,
    price_book       integer NOT NULL,
    created_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, call_id),
    FOREIGN KEY (tenant_id, run_id, step) REFERENCES step (tenant_id, run_id, step) ON DELETE CASCADE
);
CREATE INDEX tool_call_by_run ON tool_call (tenant_id, run_id, call_id);
CALL wall('tool_call');
GRANT SELECT, INSERT ON tool_call TO belljar_app;

-- What a client that follows a run is told. `seq` counts from 1. `part` 0 is the event itself; 1 is the text that the
-- model streamed after it, whole.
CREATE TABLE run_event (
    tenant_id uuid NOT NULL,
    run_id    uuid NOT NULL,
    seq       integer NOT NULL,
    part      smallint NOT NULL CHECK (part IN (0, 1)),
    type      text NOT NULL,
    data      jsonb NOT NULL,
    PRIMARY KEY (tenant_id, run_id, seq, part),
    FOREIGN KEY (tenant_id, run_id) REFERENCES run (tenant_id, run_id) ON DELETE CASCADE
);
CALL wall('run_event');
GRANT SELECT, INSERT ON run_event TO belljar_app;
