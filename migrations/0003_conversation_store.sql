-- 0003, conversation-store: conversations and their messages.

CREATE TABLE conversation (
    tenant_id        uuid NOT NULL,
    conversation_id  uuid NOT NULL,
    agent_id         uuid NOT NULL,
    external_user_id text,
    title            text,
    metadata         jsonb NOT NULL DEFAULT '{}',
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id),
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agent (tenant_id, agent_id) ON DELETE CASCADE
);
CREATE INDEX conversation_by_agent ON conversation (tenant_id, agent_id, conversation_id);
CREATE INDEX conversation_by_user ON conversation (tenant_id, external_user_id, conversation_id);
CALL wall('conversation');
GRANT SELECT, INSERT, UPDATE, DELETE ON conversation TO belljar_app;

-- `position` counts from 1 within the conversation. Messages never change.
CREATE TABLE message (
    tenant_id       uuid NOT NULL,
    conversation_id uuid NOT NULL,
    position        integer NOT NULL,
    message_id      uuid NOT NULL,
    role            text NOT NULL CHECK (role IN ('user', 'assistant', 'tool')),
    parts           jsonb NOT NULL,
    run_id          uuid,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id, position),
    CONSTRAINT message_id UNIQUE (tenant_id, message_id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversation (tenant_id, conversation_id) ON DELETE CASCADE
);
CREATE INDEX message_by_run ON message (tenant_id, run_id, position) WHERE run_id IS NOT NULL;
CALL wall('message');
GRANT SELECT, INSERT ON message TO belljar_app;
