//! What the budgets that apply have left: read, then asked. What is asked is pure.

use domain::{Amount, Money, Timestamp};
use rust_decimal::Decimal;
use tenancy::TenantTx;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Exceeded, PLAN, Refused, Spend, Spender};
use crate::{
    budgets::{BudgetError, EACH, Scope, Starts, Window},
    prices::PriceBook,
};

/// What the budgets that apply have left, apart from what the one who asks holds itself.
#[derive(Debug, Clone, Default)]
pub struct Left {
    pub(super) pots: Vec<Pot>,
    pub(super) now: Option<Timestamp>,
}

/// One budget, or the plan's tokens, for one subject in its present window.
#[derive(Debug, Clone)]
pub(super) struct Pot {
    pub(super) budget: Uuid,
    pub(super) subject: String,
    pub(super) starts_at: OffsetDateTime,
    pub(super) window: Window,
    currency: String,
    pub(super) amount: Decimal,
    spent: Decimal,
    /// By others, and not expired.
    held: Decimal,
    /// Held by those who have gone silent.
    pub(super) expired: Decimal,
    /// Whether the one who asks holds of any window.
    pub(super) owns: bool,
}

impl Spender<'_> {
    /// The scopes that apply, each with its subject.
    fn subjects(&self) -> Vec<(Scope, String)> {
        let named = [
            (Scope::Agent, self.agent.map(|id| id.to_string())),
            (Scope::ExternalUser, self.external_user.map(str::to_owned)),
            (Scope::Conversation, self.conversation.map(|id| id.to_string())),
            (Scope::Run, self.run.map(|id| id.to_string())),
        ];
        let named = named.into_iter().filter_map(|(scope, subject)| Some((scope, subject?)));
        std::iter::once((Scope::Tenant, EACH.to_owned())).chain(named).collect()
    }
}

/// What `owner` may still spend.
pub async fn left(tx: &mut TenantTx, owner: Uuid, spender: &Spender<'_>, now: Timestamp) -> Result<Left, BudgetError> {
    let starts = Starts::at(now);
    let (mut scopes, mut subjects, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for (scope, key) in spender.subjects() {
        for subject in [EACH, &key] {
            if subject == EACH || scope != Scope::Tenant {
                scopes.push(scope.as_str().to_owned());
                subjects.push(subject.to_owned());
                keys.push(key.clone());
            }
        }
    }
    let rows = sqlx::query!(
        r#"WITH pot AS (
               SELECT b.budget_id, s.key AS subject, b.period, b.amount, b.currency,
                      CASE b.period WHEN 'day' THEN $5::timestamptz WHEN 'month' THEN $6 ELSE $7 END AS starts_at
               FROM UNNEST($2::text[], $3::text[], $4::text[]) AS s (scope, subject, key)
               JOIN budget b ON b.tenant_id = $1 AND b.scope = s.scope AND b.subject = s.subject
               UNION
               SELECT $8::uuid, '*', 'month', $9::bigint::numeric, '', $6 WHERE $9 IS NOT NULL
           )
           SELECT p.budget_id AS "budget_id!", p.subject AS "subject!", p.period AS "period!",
                  p.amount AS "amount!", p.currency AS "currency!", p.starts_at AS "starts_at!",
                  coalesce(w.spent, 0) AS "spent!",
                  coalesce(w.held, 0) - coalesce(h.own, 0) - coalesce(h.expired, 0) AS "held!",
                  coalesce(h.expired, 0) AS "expired!",
                  EXISTS (SELECT FROM hold o WHERE o.tenant_id = $1 AND o.owner_id = $10) AS "owns!"
           FROM pot p
           LEFT JOIN budget_window w ON w.tenant_id = $1 AND w.budget_id = p.budget_id AND w.subject = p.subject
               AND w.starts_at = p.starts_at
           LEFT JOIN LATERAL (
               SELECT sum(o.amount) FILTER (WHERE o.owner_id = $10) AS own,
                      sum(o.amount) FILTER (WHERE o.owner_id <> $10 AND o.until <= $11) AS expired
               FROM hold o
               WHERE o.tenant_id = $1 AND o.budget_id = p.budget_id AND o.subject = p.subject
                 AND o.starts_at = p.starts_at
           ) h ON true
           ORDER BY 1, 2, 7"#,
        tx.tenant().uuid(),
        &scopes,
        &subjects,
        &keys,
        starts.day.offset(),
        starts.month.offset(),
        starts.total.offset(),
        PLAN,
        spender.tokens_per_month,
        owner,
        now.offset(),
    )
    .fetch_all(tx.conn())
    .await?;
    let pots = rows.into_iter().map(|row| {
        Ok(Pot {
            budget: row.budget_id,
            subject: row.subject,
            starts_at: row.starts_at,
            window: Window::parse(&row.period).ok_or(BudgetError::Unreadable)?,
            currency: row.currency,
            amount: row.amount,
            spent: row.spent,
            held: row.held,
            expired: row.expired,
            owns: row.owns,
        })
    });
    Ok(Left { pots: pots.collect::<Result<_, BudgetError>>()?, now: Some(now) })
}

impl Left {
    /// Nothing bounds what is spent.
    pub fn is_unlimited(&self) -> bool {
        self.pots.is_empty()
    }

    /// Whether the bound is money, not only the plan's tokens.
    pub fn is_money(&self) -> bool {
        self.pots.iter().any(|pot| pot.budget != PLAN)
    }

    /// Of the budget that has the least; `None`: no budget applies.
    pub fn money(&self) -> Option<Amount> {
        let left = self.pots.iter().filter(|pot| pot.budget != PLAN).map(Pot::left);
        left.min().map(|left| Amount::rounded(left.max(Decimal::ZERO)))
    }

    /// Of the plan; `None`: unlimited.
    pub fn tokens(&self) -> Option<u64> {
        let plan = self.pots.iter().find(|pot| pot.budget == PLAN)?;
        Some(u64::try_from(plan.left().max(Decimal::ZERO)).unwrap_or(u64::MAX))
    }

    /// What would be left if nobody else held anything.
    pub fn unheld(&self) -> Left {
        let pots = self.pots.iter().map(|pot| Pot { held: Decimal::ZERO, ..pot.clone() });
        Left { pots: pots.collect(), ..*self }
    }

    /// Why this spending is not paid for.
    pub fn refuses(&self, spend: Spend) -> Option<Refused> {
        let mut lacking = self.pots.iter().filter(|pot| pot.left() < pot.ask(spend));
        let first = lacking.next()?;
        // One that would lack it even if nothing were held says more than one that is held for a moment.
        let spent = std::iter::once(first).chain(lacking).find(|pot| pot.amount - pot.spent < pot.ask(spend));
        Some(Refused { held_by_others: spent.is_none(), exceeded: spent.unwrap_or(first).exceeded(self.now) })
    }

    /// Of the budget that has the least.
    pub fn scarcest(&self) -> Option<Exceeded> {
        let budgets = self.pots.iter().filter(|pot| pot.budget != PLAN);
        budgets.min_by_key(|pot| pot.left()).map(|pot| pot.exceeded(self.now))
    }

    /// A budget in another currency than the prices bounds nothing that can be computed.
    pub fn foreign(&self, book: &PriceBook) -> Option<Exceeded> {
        let foreign = self.pots.iter().find(|pot| pot.budget != PLAN && pot.currency != book.currency)?;
        Some(Exceeded::Currency {
            budget: foreign.budget.into(),
            currency: foreign.currency.clone(),
            prices: book.currency.clone(),
        })
    }
}

impl Pot {
    fn left(&self) -> Decimal {
        self.amount - self.spent - self.held
    }

    pub(super) fn ask(&self, spend: Spend) -> Decimal {
        if self.budget == PLAN { spend.tokens.into() } else { spend.money.decimal() }
    }

    fn exceeded(&self, now: Option<Timestamp>) -> Exceeded {
        let resets_at = now.and_then(|now| Starts::at(now).end(self.window));
        match self.budget {
            PLAN => Exceeded::Tokens { tokens: self.amount.normalize(), resets_at },
            budget => Exceeded::Budget {
                budget: budget.into(),
                amount: Money { amount: Amount::rounded(self.amount), currency: self.currency.clone() },
                window: self.window,
                resets_at,
            },
        }
    }
}
