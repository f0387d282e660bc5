//! Budgets: how much money one subject, or each of a kind, may spend in a day, a month or ever.

mod amount;
mod error;
mod period;

use domain::{
    Amount, BudgetId, ConversationId, FieldError, Money, RunId, Timestamp,
    ids::Ids,
    page::{Page, PageRequest},
};
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use tenancy::TenantTx;
use time::OffsetDateTime;
use uuid::Uuid;

pub use amount::{Limit, Share, Shares};
pub use error::BudgetError;
pub(crate) use period::Starts;
pub use period::Window;

/// Budgets of one tenant: those that apply are read with every step.
const BUDGETS_MAX: i64 = 1_000;
/// Thresholds of one budget.
const ALERTS_MAX: usize = 10;
/// Largest amount, in the currency's units: no sum of such amounts loses a digit.
const AMOUNT_MAX: u64 = 1_000_000_000_000;
/// Longest subject in bytes: the longest `external_user_id`.
const SUBJECT_BYTES_MAX: usize = 256;
/// The subject of a budget that each subject of its scope has for itself.
pub const EACH: &str = "*";

/// Whose spending a budget bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Tenant,
    Agent,
    ExternalUser,
    Conversation,
    Run,
}

/// A budget as the caller asks for it.
#[derive(Debug, Clone, PartialEq, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetSpec {
    pub scope: Scope,
    /// An id; for `external_user` the caller's own; or `*`: each has the amount for itself. The scope `tenant` needs none.
    #[serde(default)]
    pub subject: Option<String>,
    pub window: Window,
    #[schema(value_type = Money)]
    pub amount: Limit,
    /// A webhook is told when so much of the amount is spent: shares such as 0.8.
    #[serde(default)]
    pub alert_at: Shares,
}

/// A merge patch: what is absent stays, `null` removes.
#[derive(Debug, Clone, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BudgetPatch {
    #[serde(default)]
    #[schema(value_type = Option<Money>)]
    pub amount: Option<Limit>,
    #[serde(default, deserialize_with = "amount::present")]
    #[schema(value_type = Option<Vec<Share>>)]
    pub alert_at: Option<Option<Shares>>,
}

/// A budget and what is left of it in its present window.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Budget {
    pub id: BudgetId,
    pub scope: Scope,
    /// `*`: each subject has the amount for itself.
    pub subject: String,
    pub window: Window,
    pub amount: Money,
    pub alert_at: Shares,
    /// With the subject `*`, these three are of `spent_by`.
    pub spent: Money,
    /// Kept for steps and calls that are going on.
    pub held: Money,
    pub remaining: Money,
    /// With the subject `*`: who has the least left, or who was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent_by: Option<String>,
    /// Null for the window `total`.
    pub resets_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// `currency` is that of the present price book.
pub async fn create(
    tx: &mut TenantTx,
    spec: BudgetSpec,
    currency: &str,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<Budget, BudgetError> {
    let subject = subject(&spec, &tx.tenant().to_string());
    let wrong = [subject.as_ref().err().cloned(), bad_limit(&spec.amount, currency), bad_shares(&spec.alert_at)];
    let wrong: Vec<FieldError> = wrong.into_iter().flatten().collect();
    let (true, Ok(subject)) = (wrong.is_empty(), subject) else { return Err(BudgetError::Invalid(wrong)) };
    let id = BudgetId::new(ids);
    let made = sqlx::query!(
        "INSERT INTO budget (tenant_id, budget_id, scope, subject, period, amount, currency, alert_at, created_at,
                             updated_at)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $9
         WHERE (SELECT count(*) FROM budget WHERE tenant_id = $1) < $10",
        tx.tenant().uuid(),
        id.uuid(),
        spec.scope.as_str(),
        subject,
        spec.window.as_str(),
        spec.amount.amount.decimal(),
        currency,
        &spec.alert_at.decimals(),
        now.offset(),
        BUDGETS_MAX,
    )
    .execute(tx.conn())
    .await?;
    if made.rows_affected() == 0 {
        return Err(BudgetError::TooMany(BUDGETS_MAX));
    }
    get(tx, id, None, now).await
}

/// Newest first.
pub async fn list(tx: &mut TenantTx, page: PageRequest, now: Timestamp) -> Result<Page<Budget>, BudgetError> {
    let rows = rows(tx, None, None, page.after, page.rows(), now).await?;
    Ok(Page::cut(rows, page, |budget: &Budget| budget.id.uuid()))
}

/// `subject`: of a budget for each, whose spending is told.
pub async fn get(
    tx: &mut TenantTx,
    id: BudgetId,
    subject: Option<&str>,
    now: Timestamp,
) -> Result<Budget, BudgetError> {
    rows(tx, Some(id), subject, None, 1, now).await?.pop().ok_or(BudgetError::NotFound)
}

/// Changes amount and thresholds. What is spent and held stays. Thresholds that are not passed any more are told again; those
/// that are passed by the change itself are not.
pub async fn update(
    tx: &mut TenantTx,
    id: BudgetId,
    patch: BudgetPatch,
    currency: &str,
    now: Timestamp,
) -> Result<Budget, BudgetError> {
    let alert_at = patch.alert_at.map(Option::unwrap_or_default);
    let wrong =
        [patch.amount.as_ref().and_then(|amount| bad_limit(amount, currency)), alert_at.as_ref().and_then(bad_shares)];
    let wrong: Vec<FieldError> = wrong.into_iter().flatten().collect();
    if !wrong.is_empty() {
        return Err(BudgetError::Invalid(wrong));
    }
    let alert_at = alert_at.map(|shares| shares.decimals());
    let touched = sqlx::query!(
        "UPDATE budget
         SET amount = coalesce($3, amount), currency = CASE WHEN $3::numeric IS NULL THEN currency ELSE $4 END,
             alert_at = coalesce($5, alert_at), updated_at = $6
         WHERE tenant_id = $1 AND budget_id = $2",
        tx.tenant().uuid(),
        id.uuid(),
        patch.amount.as_ref().map(|limit| limit.amount.decimal()),
        currency,
        alert_at.as_deref(),
        now.offset(),
    )
    .execute(tx.conn())
    .await?;
    if touched.rows_affected() == 0 {
        return Err(BudgetError::NotFound);
    }
    sqlx::query!(
        "WITH passed AS (
             SELECT w.subject, w.starts_at,
                    coalesce((SELECT max(share) FROM unnest(b.alert_at) AS share WHERE w.spent >= share * b.amount), 0)
                        AS share
             FROM budget_window w JOIN budget b USING (tenant_id, budget_id)
             WHERE w.tenant_id = $1 AND w.budget_id = $2
             ORDER BY w.subject, w.starts_at
             FOR UPDATE OF w
         )
         UPDATE budget_window w SET alerted = p.share
         FROM passed p
         WHERE w.tenant_id = $1 AND w.budget_id = $2 AND w.subject = p.subject AND w.starts_at = p.starts_at
           AND w.alerted <> p.share",
        tx.tenant().uuid(),
        id.uuid(),
    )
    .execute(tx.conn())
    .await?;
    get(tx, id, None, now).await
}

/// Deletes a budget with all that it knows of what was spent.
pub async fn delete(tx: &mut TenantTx, id: BudgetId) -> Result<(), BudgetError> {
    let (tenant, id) = (tx.tenant().uuid(), id.uuid());
    let gone = sqlx::query!("DELETE FROM budget WHERE tenant_id = $1 AND budget_id = $2", tenant, id)
        .execute(tx.conn())
        .await?;
    if gone.rows_affected() == 0 {
        return Err(BudgetError::NotFound);
    }
    // Holds before windows, as whoever settles takes them.
    sqlx::query!("DELETE FROM hold WHERE tenant_id = $1 AND budget_id = $2", tenant, id).execute(tx.conn()).await?;
    sqlx::query!("DELETE FROM budget_window WHERE tenant_id = $1 AND budget_id = $2", tenant, id)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Forgets what was spent in a conversation and in its runs, which are erased. Until then it can be asked for.
pub async fn forget(
    tx: &mut TenantTx,
    conversation: ConversationId,
    runs: impl IntoIterator<Item = RunId>,
) -> Result<(), BudgetError> {
    let runs: Vec<String> = runs.into_iter().map(|run| run.to_string()).collect();
    sqlx::query!(
        "DELETE FROM budget_window w USING budget b
         WHERE b.tenant_id = $1 AND w.tenant_id = $1 AND w.budget_id = b.budget_id
           AND (b.scope = 'conversation' AND w.subject = $2 OR b.scope = 'run' AND w.subject = ANY($3))",
        tx.tenant().uuid(),
        conversation.to_string(),
        &runs,
    )
    .execute(tx.conn())
    .await?;
    Ok(())
}

async fn rows(
    tx: &mut TenantTx,
    id: Option<BudgetId>,
    subject: Option<&str>,
    before: Option<Uuid>,
    rows: i64,
    now: Timestamp,
) -> Result<Vec<Budget>, BudgetError> {
    let starts = Starts::at(now);
    let found = sqlx::query_as!(
        Row,
        r#"SELECT b.budget_id, b.scope, b.subject, b.period, b.amount, b.currency,
                  b.alert_at AS "alert_at: Vec<Decimal>", b.created_at, b.updated_at,
                  coalesce(w.spent, 0) AS "spent!", coalesce(w.held, 0) AS "held!", w.subject AS "spent_by?"
           FROM budget b
           LEFT JOIN LATERAL (
               SELECT w.subject, w.spent, w.held - coalesce((
                   SELECT sum(h.amount) FROM hold h
                   WHERE h.tenant_id = w.tenant_id AND h.budget_id = w.budget_id AND h.subject = w.subject
                     AND h.starts_at = w.starts_at AND h.until <= $8), 0) AS held
               FROM budget_window w
               WHERE w.tenant_id = b.tenant_id AND w.budget_id = b.budget_id
                 AND w.starts_at = CASE b.period WHEN 'day' THEN $5::timestamptz WHEN 'month' THEN $6 ELSE $7 END
                 AND ($3::text IS NULL OR b.subject <> '*' OR w.subject = $3)
               ORDER BY w.spent + w.held DESC LIMIT 1
           ) w ON true
           WHERE b.tenant_id = $1 AND ($2::uuid IS NULL OR b.budget_id = $2) AND ($4::uuid IS NULL OR b.budget_id < $4)
           ORDER BY b.budget_id DESC
           LIMIT $9"#,
        tx.tenant().uuid(),
        id.map(BudgetId::uuid),
        subject,
        before,
        starts.day.offset(),
        starts.month.offset(),
        starts.total.offset(),
        now.offset(),
        rows,
    )
    .fetch_all(tx.conn())
    .await?;
    found.into_iter().map(|row| row.budget(subject, starts)).collect()
}

/// The subject as it is kept, or what is wrong with it.
fn subject(spec: &BudgetSpec, tenant: &str) -> Result<String, FieldError> {
    let wrong = |detail: &str| Err(FieldError::new("/subject", detail));
    let given = spec.subject.as_deref();
    match (spec.scope, given) {
        (Scope::Tenant, None) => Ok(EACH.into()),
        (Scope::Tenant, Some(own)) if own == EACH || own == tenant => Ok(EACH.into()),
        (Scope::Tenant, Some(_)) => wrong("leave it out: the scope `tenant` is this tenant"),
        (_, None) => wrong("is missing: an id, or `*` for each"),
        (_, Some(EACH)) => Ok(EACH.into()),
        (Scope::Agent, Some(id)) if id.parse::<domain::AgentId>().is_err() => wrong("not an agent's id, nor `*`"),
        (Scope::Conversation, Some(id)) if id.parse::<domain::ConversationId>().is_err() => {
            wrong("not a conversation's id, nor `*`")
        }
        (Scope::Run, Some(id)) if id.parse::<domain::RunId>().is_err() => wrong("not a run's id, nor `*`"),
        (_, Some(id)) if id.is_empty() || id.len() > SUBJECT_BYTES_MAX || id.chars().any(char::is_control) => {
            wrong(&format!("1 to {SUBJECT_BYTES_MAX} bytes without control characters"))
        }
        (_, Some(id)) => Ok(id.into()),
    }
}

fn bad_limit(limit: &Limit, currency: &str) -> Option<FieldError> {
    let amount = limit.amount.decimal();
    if amount < Decimal::ZERO || amount > Decimal::from(AMOUNT_MAX) {
        return Some(FieldError::new("/amount", format!("an amount from 0 to {AMOUNT_MAX}")));
    }
    let other = limit.currency.as_deref().filter(|given| *given != currency)?;
    Some(FieldError::new("/amount/currency", format!("`{other}` is not {currency}, the currency of the prices")))
}

fn bad_shares(shares: &Shares) -> Option<FieldError> {
    (shares.0.len() > ALERTS_MAX).then(|| FieldError::new("/alert_at", format!("at most {ALERTS_MAX} thresholds")))
}

impl Scope {
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Tenant => "tenant",
            Scope::Agent => "agent",
            Scope::ExternalUser => "external_user",
            Scope::Conversation => "conversation",
            Scope::Run => "run",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Scope> {
        let all = [Scope::Tenant, Scope::Agent, Scope::ExternalUser, Scope::Conversation, Scope::Run];
        all.into_iter().find(|scope| scope.as_str() == text)
    }
}

struct Row {
    budget_id: Uuid,
    scope: String,
    subject: String,
    period: String,
    amount: Decimal,
    currency: String,
    alert_at: Vec<Decimal>,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    spent: Decimal,
    held: Decimal,
    spent_by: Option<String>,
}

impl Row {
    fn budget(self, asked: Option<&str>, starts: Starts) -> Result<Budget, BudgetError> {
        let scope = Scope::parse(&self.scope).ok_or(BudgetError::Unreadable)?;
        let window = Window::parse(&self.period).ok_or(BudgetError::Unreadable)?;
        // Written rounded: this changes nothing.
        let money = |amount: Decimal| Money { amount: Amount::rounded(amount), currency: self.currency.clone() };
        let each = self.subject == EACH && scope != Scope::Tenant;
        Ok(Budget {
            id: self.budget_id.into(),
            scope,
            window,
            amount: money(self.amount),
            alert_at: Shares(self.alert_at.into_iter().map(Share::of).collect()),
            spent: money(self.spent),
            held: money(self.held),
            remaining: money((self.amount - self.spent - self.held).max(Decimal::ZERO)),
            spent_by: if each { asked.map(str::to_owned).or(self.spent_by) } else { None },
            subject: self.subject,
            resets_at: starts.end(window),
            created_at: self.created_at.into(),
            updated_at: self.updated_at.into(),
        })
    }
}
