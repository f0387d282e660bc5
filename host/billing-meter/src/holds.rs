//! Money and tokens are held before they are spent, and settled by what was spent: a budget is not overshot, however many
//! spend at once.
//!
//! Every write takes the rows of `hold` first and then those of `budget_window` in the order of their key, so that no two
//! wait for each other. Whoever holds is named by the id of its run or of its direct call.

mod afford;
mod exceeded;
mod left;

use std::time::Duration;

use domain::{AgentId, Amount, BudgetId, ConversationId, Money, RunId, Timestamp};
use rust_decimal::Decimal;
use serde::Serialize;
use tenancy::TenantTx;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::budgets::{BudgetError, Scope, Share, Starts, Window};

pub use afford::{Affordable, OUTPUT_TOKENS_DEFAULT, Rates, affordable, fuel_for, unpriced, within};
pub use exceeded::{Exceeded, Refused};
pub use left::{Left, left};

/// The plan's tokens are a budget without an id.
const PLAN: Uuid = Uuid::nil();
/// How long a window is over before it is forgotten: more than the clocks of hosts differ by. Forgotten sooner, it would be
/// whole again for a host whose clock is late.
const OVER: Duration = Duration::from_secs(3600);
/// Windows that are forgotten when one begins: more than one, so that they grow fewer, and few, since a call waits for it.
const FORGOTTEN_MAX: i64 = 16;

/// For whom something is spent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spender<'s> {
    pub agent: Option<AgentId>,
    pub external_user: Option<&'s str>,
    pub conversation: Option<ConversationId>,
    pub run: Option<RunId>,
    /// What the plan allows in a month; `None`: unlimited, or nothing that counts tokens.
    pub tokens_per_month: Option<i64>,
}

/// What is held, or was spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spend {
    pub money: Amount,
    pub tokens: u64,
}

/// A threshold of a budget that a settlement has passed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Crossed {
    pub budget_id: BudgetId,
    pub scope: Scope,
    /// Whose part it is; `*` for a budget of the tenant.
    pub subject: String,
    pub window: Window,
    /// The share of the amount that is passed.
    pub alert_at: Share,
    pub amount: Money,
    pub spent: Money,
}

/// Holds `spend` of every budget in `left`, or of none: then `false`, and the caller rolls back. What `owner` held before
/// is given back first.
pub async fn hold(
    tx: &mut TenantTx,
    owner: Uuid,
    left: &Left,
    spend: Spend,
    until: Timestamp,
) -> Result<bool, BudgetError> {
    if left.is_unlimited() {
        return Ok(true);
    }
    let owns = left.pots.iter().any(|pot| pot.owns);
    let expired = left.now.filter(|_| left.pots.iter().any(|pot| !pot.expired.is_zero()));
    if owns || expired.is_some() {
        lock(tx, owner, left).await?;
    }
    if owns {
        settle(tx, owner, Spend::default()).await?;
    }
    if let Some(now) = expired {
        expire(tx, left, now).await?;
    }
    let (budgets, subjects, starts) = keys(left);
    let asks: Vec<Decimal> = left.pots.iter().map(|pot| pot.ask(spend)).collect();
    let amounts: Vec<Decimal> = left.pots.iter().map(|pot| pot.amount).collect();
    // A window that is there is looked at under its lock, with the amount as it is now.
    let taken = sqlx::query!(
        r#"WITH ask AS (
               SELECT * FROM UNNEST($2::uuid[], $3::text[], $4::timestamptz[], $5::numeric[], $6::numeric[])
                   AS n (budget_id, subject, starts_at, ask, amount)
           ), taken AS (
               INSERT INTO budget_window AS w (tenant_id, budget_id, subject, starts_at, spent, held)
               SELECT $1, a.budget_id, a.subject, a.starts_at, 0, a.ask FROM ask a
               WHERE a.ask <= a.amount
               ORDER BY a.budget_id, a.subject, a.starts_at
               ON CONFLICT (tenant_id, budget_id, subject, starts_at) DO UPDATE SET held = w.held + EXCLUDED.held
               WHERE w.spent + w.held + EXCLUDED.held <= CASE WHEN w.budget_id = $9 THEN $10::numeric ELSE
                   (SELECT b.amount FROM budget b WHERE b.tenant_id = w.tenant_id AND b.budget_id = w.budget_id) END
               RETURNING w.budget_id, w.subject, w.starts_at, (xmax = 0) AS new
           ), kept AS (
               INSERT INTO hold (tenant_id, owner_id, budget_id, subject, starts_at, amount, until)
               SELECT $1, $7, t.budget_id, t.subject, t.starts_at, a.ask, $8
               FROM taken t JOIN ask a USING (budget_id, subject, starts_at)
           )
           SELECT count(*) AS "taken!", coalesce(bool_or(t.new), false) AS "new!" FROM taken t"#,
        tx.tenant().uuid(),
        &budgets,
        &subjects,
        &starts,
        &asks,
        &amounts,
        owner,
        until.offset(),
        PLAN,
        left.pots.iter().find(|pot| pot.budget == PLAN).map(|pot| pot.amount),
    )
    .fetch_one(tx.conn())
    .await?;
    if usize::try_from(taken.taken) != Ok(left.pots.len()) {
        return Ok(false);
    }
    if taken.new {
        forget(tx, left).await?;
    }
    Ok(true)
}

/// Gives back what `owner` holds and counts what it has spent, in the windows where it held. Returns the thresholds that
/// are passed by it.
pub async fn settle(tx: &mut TenantTx, owner: Uuid, spent: Spend) -> Result<Vec<Crossed>, BudgetError> {
    let rows = sqlx::query!(
        r#"WITH gone AS (
               DELETE FROM hold WHERE tenant_id = $1 AND owner_id = $2 RETURNING budget_id, subject, starts_at, amount
           ), locked AS (
               SELECT w.budget_id, w.subject, w.starts_at, g.amount
               FROM budget_window w JOIN gone g USING (budget_id, subject, starts_at)
               WHERE w.tenant_id = $1
               ORDER BY w.budget_id, w.subject, w.starts_at
               FOR UPDATE OF w
           ), done AS (
               UPDATE budget_window w
               SET held = w.held - l.amount, spent = w.spent + CASE WHEN w.budget_id = $3 THEN $4::numeric ELSE $5 END
               FROM locked l
               WHERE w.tenant_id = $1 AND w.budget_id = l.budget_id AND w.subject = l.subject
                 AND w.starts_at = l.starts_at
               RETURNING w.budget_id, w.subject, w.starts_at, w.spent, w.alerted
           )
           SELECT d.budget_id, d.subject, d.starts_at, d.spent, b.scope, b.period, b.amount, b.currency,
                  s.share AS "share!"
           FROM done d
           JOIN budget b ON b.tenant_id = $1 AND b.budget_id = d.budget_id
           JOIN LATERAL (SELECT max(share) AS share FROM unnest(b.alert_at) AS share
                         WHERE share > d.alerted AND d.spent >= share * b.amount) s ON s.share IS NOT NULL
           WHERE $5 > 0"#,
        tx.tenant().uuid(),
        owner,
        PLAN,
        Decimal::from(spent.tokens),
        spent.money.decimal(),
    )
    .fetch_all(tx.conn())
    .await?;
    let mut crossed = Vec::with_capacity(rows.len());
    for row in rows {
        sqlx::query!(
            "UPDATE budget_window SET alerted = $5
             WHERE tenant_id = $1 AND budget_id = $2 AND subject = $3 AND starts_at = $4",
            tx.tenant().uuid(),
            row.budget_id,
            row.subject,
            row.starts_at,
            row.share,
        )
        .execute(tx.conn())
        .await?;
        let money = |amount| Money { amount: Amount::rounded(amount), currency: row.currency.clone() };
        crossed.push(Crossed {
            budget_id: row.budget_id.into(),
            scope: Scope::parse(&row.scope).ok_or(BudgetError::Unreadable)?,
            window: Window::parse(&row.period).ok_or(BudgetError::Unreadable)?,
            alert_at: Share::of(row.share),
            amount: money(row.amount),
            spent: money(row.spent),
            subject: row.subject,
        });
    }
    Ok(crossed)
}

/// Gives back what `owner` holds: it has spent nothing.
pub async fn release(tx: &mut TenantTx, owner: Uuid) -> Result<(), BudgetError> {
    settle(tx, owner, Spend::default()).await.map(drop)
}

/// `owner` goes on holding so much until `until` at least, or less if it holds less: it has used that, and settles later.
pub async fn keep(tx: &mut TenantTx, owner: Uuid, used: Spend, until: Timestamp) -> Result<(), BudgetError> {
    sqlx::query!(
        "WITH mine AS MATERIALIZED (
             SELECT budget_id, subject, starts_at, amount,
                    least(amount, CASE WHEN budget_id = $3 THEN $4::numeric ELSE $5 END) AS kept
             FROM hold WHERE tenant_id = $1 AND owner_id = $2 FOR UPDATE
         ), changed AS (
             UPDATE hold h SET amount = m.kept, until = greatest(h.until, $6) FROM mine m
             WHERE h.tenant_id = $1 AND h.owner_id = $2 AND h.budget_id = m.budget_id AND h.subject = m.subject
               AND h.starts_at = m.starts_at
         ), locked AS (
             SELECT w.budget_id, w.subject, w.starts_at, m.amount - m.kept AS freed
             FROM budget_window w JOIN mine m USING (budget_id, subject, starts_at)
             WHERE w.tenant_id = $1
             ORDER BY w.budget_id, w.subject, w.starts_at
             FOR UPDATE OF w
         )
         UPDATE budget_window w SET held = w.held - l.freed
         FROM locked l
         WHERE w.tenant_id = $1 AND w.budget_id = l.budget_id AND w.subject = l.subject AND w.starts_at = l.starts_at",
        tx.tenant().uuid(),
        owner,
        PLAN,
        Decimal::from(used.tokens),
        used.money.decimal(),
        until.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// The holds of `owner` count until `until` at least: as long as its lease, or as it owes what it has used.
pub async fn renew(tx: &mut TenantTx, owner: Uuid, until: Timestamp) -> Result<(), BudgetError> {
    sqlx::query!(
        "UPDATE hold SET until = greatest(until, $3) WHERE tenant_id = $1 AND owner_id = $2",
        tx.tenant().uuid(),
        owner,
        until.offset(),
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Whether others have taken of what `owner` held, as it had gone silent. That stays so until the transaction ends.
pub async fn lapsed(tx: &mut TenantTx, owner: Uuid) -> Result<bool, BudgetError> {
    let lapsed = sqlx::query_scalar!(
        "SELECT lapsed FROM hold WHERE tenant_id = $1 AND owner_id = $2 FOR UPDATE",
        tx.tenant().uuid(),
        owner,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(lapsed.contains(&true))
}

/// All windows that `hold` is going to write, in one order: those of the present and those where `owner` held before.
async fn lock(tx: &mut TenantTx, owner: Uuid, left: &Left) -> Result<(), BudgetError> {
    let (budgets, subjects, starts) = keys(left);
    sqlx::query!(
        r#"WITH mine AS (
               SELECT budget_id, subject, starts_at FROM hold WHERE tenant_id = $1 AND owner_id = $2 FOR UPDATE
           )
           SELECT w.budget_id FROM budget_window w
           WHERE w.tenant_id = $1 AND ((w.budget_id, w.subject, w.starts_at) IN (
                     SELECT * FROM UNNEST($3::uuid[], $4::text[], $5::timestamptz[]))
                 OR (w.budget_id, w.subject, w.starts_at) IN (SELECT * FROM mine))
           ORDER BY w.budget_id, w.subject, w.starts_at
           FOR UPDATE"#,
        tx.tenant().uuid(),
        owner,
        &budgets,
        &subjects,
        &starts,
    )
    .fetch_all(tx.conn())
    .await?;
    Ok(())
}

/// Takes from these windows, which are locked, what is held of them by those who have gone silent. Holds that somebody
/// settles now are left to them.
async fn expire(tx: &mut TenantTx, left: &Left, now: Timestamp) -> Result<(), BudgetError> {
    let (budgets, subjects, starts) = keys(left);
    sqlx::query!(
        "WITH dead AS MATERIALIZED (
             SELECT owner_id, budget_id, subject, starts_at, amount FROM hold
             WHERE tenant_id = $1 AND until <= $2 AND amount > 0
               AND (budget_id, subject, starts_at) IN (
                   SELECT * FROM UNNEST($3::uuid[], $4::text[], $5::timestamptz[]))
             FOR UPDATE SKIP LOCKED
         ), zeroed AS (
             UPDATE hold h SET amount = 0, lapsed = true FROM dead d
             WHERE h.tenant_id = $1 AND h.owner_id = d.owner_id AND h.budget_id = d.budget_id AND h.subject = d.subject
               AND h.starts_at = d.starts_at
         ), freed AS (
             SELECT budget_id, subject, starts_at, sum(amount) AS amount FROM dead GROUP BY 1, 2, 3
         )
         UPDATE budget_window w SET held = w.held - f.amount
         FROM freed f
         WHERE w.tenant_id = $1 AND w.budget_id = f.budget_id AND w.subject = f.subject AND w.starts_at = f.starts_at",
        tx.tenant().uuid(),
        now.offset(),
        &budgets,
        &subjects,
        &starts,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// With a window that begins, windows of the same budgets that are over become history, whose ever they are; rows that
/// somebody else writes are left for the next time.
async fn forget(tx: &mut TenantTx, left: &Left) -> Result<(), BudgetError> {
    let Some(now) = left.now else { return Ok(()) };
    let starts = Starts::at(now.minus(OVER));
    let (budgets, ..) = keys(left);
    let begins: Vec<OffsetDateTime> = left.pots.iter().map(|pot| starts.of(pot.window).offset()).collect();
    sqlx::query!(
        "WITH old AS (
             SELECT w.budget_id, w.subject, w.starts_at
             FROM UNNEST($2::uuid[], $3::timestamptz[]) AS n (budget_id, begins)
             JOIN budget_window w ON w.tenant_id = $1 AND w.budget_id = n.budget_id AND w.starts_at < n.begins
             WHERE w.held = 0
             LIMIT $4
             FOR UPDATE OF w SKIP LOCKED
         )
         DELETE FROM budget_window w USING old o
         WHERE w.tenant_id = $1 AND w.budget_id = o.budget_id AND w.subject = o.subject AND w.starts_at = o.starts_at",
        tx.tenant().uuid(),
        &budgets,
        &begins,
        FORGOTTEN_MAX,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

fn keys(left: &Left) -> (Vec<Uuid>, Vec<String>, Vec<OffsetDateTime>) {
    let pots = left.pots.iter();
    (
        pots.clone().map(|pot| pot.budget).collect(),
        pots.clone().map(|pot| pot.subject.clone()).collect(),
        pots.map(|pot| pot.starts_at).collect(),
    )
}
