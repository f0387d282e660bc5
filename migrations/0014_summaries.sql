-- 0014, agent-runtime: summaries of what no longer fits into a model's window.

-- What the messages of a conversation up to `through`, a position, come to: made once, by the step of a run that is named,
-- and sent in their place from then on.
CREATE TABLE summary (
    tenant_id       uuid NOT NULL,
    conversation_id uuid NOT NULL,
    through         integer NOT NULL CHECK (through > 0),
    run_id          uuid NOT NULL,
    step            integer NOT NULL,
    text            text NOT NULL,
    created_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id, through),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversation (tenant_id, conversation_id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, run_id, step) REFERENCES step (tenant_id, run_id, step) ON DELETE CASCADE
);
CREATE INDEX summary_by_run ON summary (tenant_id, run_id, step);
CALL wall('summary');
GRANT SELECT, INSERT ON summary TO belljar_app;
