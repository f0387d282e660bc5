-- 0015, agent-runtime: what a developer is told of a run, and the answer that an agent's `output_schema` asks for. The
-- release before this one leaves all of it NULL.

-- `output`: the answer as it was read.
ALTER TABLE run ADD COLUMN output jsonb;

-- `trace`: what the model was sent, in sizes, and the tries that failed. `text_bytes` and the calls are what it said.
ALTER TABLE step
    ADD COLUMN trace      jsonb,
    ADD COLUMN text_bytes integer NOT NULL DEFAULT 0;
