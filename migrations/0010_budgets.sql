-- 0010, billing-meter: budgets, what of them is spent and held, and who holds it.

-- `subject` is an id, or `*` for each subject of the scope apart.
CREATE TABLE budget (
    tenant_id  uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    budget_id  uuid NOT NULL,
    scope      text NOT NULL CHECK (scope IN ('tenant', 'agent', 'external_user', 'conversation', 'run')),
    subject    text NOT NULL,
    period     text NOT NULL CHECK (period IN ('day', 'month', 'total')),
    amount     numeric NOT NULL CHECK (amount >= 0),
    currency   text NOT NULL,
    alert_at   numeric[] NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, budget_id)
);
CREATE INDEX budget_by_subject ON budget (tenant_id, scope, subject);
CALL wall('budget');
GRANT SELECT, INSERT, UPDATE (amount, currency, alert_at, updated_at), DELETE ON budget TO belljar_app;

-- One subject's part of a budget in one period: in money, or in tokens for the plan's, whose `budget_id` is nil. `held` is
-- the sum of its holds. `alerted` is the largest of the budget's thresholds that was told. No foreign key to the budget:
-- the plan's has none.
CREATE TABLE budget_window (
    tenant_id uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    budget_id uuid NOT NULL,
    subject   text NOT NULL,
    starts_at timestamptz NOT NULL,
    spent     numeric NOT NULL CHECK (spent >= 0),
    held      numeric NOT NULL CHECK (held >= 0),
    alerted   numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_id, budget_id, subject, starts_at)
);
CALL wall('budget_window');
GRANT SELECT, INSERT, UPDATE (spent, held, alerted), DELETE ON budget_window TO belljar_app;

-- What one run, or one direct call, may spend of a window until `until`. An expired hold has the amount zero: its row
-- still says where what the owner spends belongs.
CREATE TABLE hold (
    tenant_id uuid NOT NULL REFERENCES tenant ON DELETE CASCADE,
    owner_id  uuid NOT NULL,
    budget_id uuid NOT NULL,
    subject   text NOT NULL,
    starts_at timestamptz NOT NULL,
    amount    numeric NOT NULL CHECK (amount >= 0),
    until     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, owner_id, budget_id, subject, starts_at)
);
CREATE INDEX hold_by_window ON hold (tenant_id, budget_id, subject, starts_at);
CALL wall('hold');
GRANT SELECT, INSERT, UPDATE (amount, until), DELETE ON hold TO belljar_app;
