//! What a run or a call may spend is held before it is spent. Where others hold what is missing, it waits a little.

use std::time::{Duration, Instant};

use agent_config::{
    Binding,
    agents::{AgentSpec, ModelChoice},
    webhooks::EventKind,
};
use billing_meter::{
    BudgetError, Exceeded, Left, PriceBook, Spend, Spender,
    holds::{self, OUTPUT_TOKENS_DEFAULT, Rates, affordable, fuel_for},
    prices,
};
use domain::{
    Amount, Ids, Kind, Limits, Problem, RunId, Timestamp,
    message::{Part, text_of},
};
use model_providers::{Usage, output_tokens, tokens};
use serde_json::json;
use tenancy::{Tenant, TenantTx};
use uuid::Uuid;

use crate::{
    AgentRuntime,
    calls::NamedCall,
    configured::{models, reference},
    drive::Driver,
    load::{Candidate, Loaded},
    runs::{End, RunError, StopReason},
    webhooks,
};

/// How long a step waits for what others hold. Longer than most model calls take.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// The first pause; each is twice the one before, up to the longest, and by chance up to a half longer.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(320);
/// What a kept reply has used stays held for so long after the run's deadline. By then some process has ended the run.
const OWED_AFTER: Duration = Duration::from_secs(24 * 3600);
/// A direct call may wait so long for its turn, besides its own deadline, before its hold expires.
const TURN_MAX: Duration = Duration::from_secs(60);

/// What bounds a run's spending.
#[derive(Debug, Clone)]
pub(crate) struct Purse {
    /// Whether the tenant has a budget, or its plan a quota: without, nothing is held.
    pub(crate) is_bounded: bool,
    pub(crate) tokens_per_month: Option<i64>,
    /// The agent's `limits.max_cost`.
    pub(crate) max_cost: Option<Amount>,
    /// By the run's committed steps.
    pub(crate) spent: Amount,
    /// The run's.
    pub(crate) deadline: Timestamp,
}

impl Purse {
    /// Until when is held what a reply has used that is kept: whoever goes on with the run bills it, however long after
    /// the lease. `None`: nothing is held.
    pub(crate) fn owed_until(&self) -> Option<Timestamp> {
        self.is_bounded.then(|| self.deadline.plus(OWED_AFTER))
    }

    fn is_open(&self) -> bool {
        !self.is_bounded && self.max_cost.is_none()
    }

    /// The less of what budgets and what `max_cost` leave.
    fn rest(&self, left: &Left) -> Option<Amount> {
        let rest = self.max_cost.map(|max| max.less(self.spent));
        rest.into_iter().chain(left.money()).min()
    }
}

/// What is held for one model call.
pub(crate) struct Held {
    /// The most that any of the models may say.
    pub(crate) output_tokens: u32,
    most: Spend,
    /// Whether money, and whether tokens are bounded.
    bounded: (bool, bool),
}

impl Held {
    /// What is billed of what was reported or counted: no more than was held.
    pub(crate) fn billed(&self, book: &PriceBook, provider: &str, model: &str, usage: Usage) -> Usage {
        let reported = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens);
        let (input_tokens, cached_input_tokens, output_tokens) =
            holds::within(book, provider, model, reported, self.most, self.bounded);
        Usage { input_tokens, cached_input_tokens, output_tokens, ..usage }
    }
}

/// What a model may say by what the agent sets, where something bounds it.
pub(crate) fn wanted(choice: &ModelChoice) -> u32 {
    choice.max_output_tokens.unwrap_or_else(|| output_tokens(&choice.options, OUTPUT_TOKENS_DEFAULT))
}

/// Holds the most that the request can cost. `None`: nothing bounds it.
pub(crate) async fn hold_for_model(
    driver: &Driver<'_>,
    turn: &Loaded,
    candidates: &[Candidate],
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Result<Option<Held>, End> {
    let purse = &turn.purse;
    if purse.is_open() {
        return Ok(None);
    }
    let models = || candidates.iter().map(|candidate| (candidate.billed.as_str(), candidate.model.name.as_str()));
    let rates = Rates::of(&turn.book, models());
    let spec = &turn.agent.spec;
    let wanted = u64::from(spec.fallback_models.iter().map(wanted).fold(wanted(&spec.model), u32::max));
    let input = turn.asked_tokens;
    let afford = |left: &Left| affordable(rates, input, wanted, purse.rest(left), left.tokens());
    let held = |found: holds::Affordable, left: &Left| {
        let output_tokens = u32::try_from(found.output_tokens).unwrap_or(u32::MAX);
        let bounded = (purse.rest(left).is_some(), left.tokens().is_some());
        Some(Held { output_tokens, most: found.most, bounded })
    };
    let of_the_run = afford(&Left::default()).ok_or(End::completed(StopReason::Budget))?;
    if !purse.is_bounded {
        return Ok(held(of_the_run, &Left::default()));
    }
    driver.durable().await;
    let mut waiting = Waiting::new(driver.runtime);
    loop {
        let tried = async {
            let mut tx = driver.tenant.begin().await?;
            let (left, until) = left(driver, turn, &mut tx).await?;
            let wrong = left.foreign(&turn.book).or_else(|| holds::unpriced(&turn.book, models()));
            if let Some(wrong) = wrong.filter(|_| left.is_money()) {
                return Ok(Tried::Ends(failed(StopReason::Error, &wrong)));
            }
            let (now, unheld) = (afford(&left), afford(&left.unheld()));
            let Some(unheld) = unheld else {
                let refused = left.unheld().refuses(rates.least(input, wanted));
                return Ok(Tried::Ends(exceeded(refused.map(|refused| refused.exceeded))));
            };
            // An answer that is short only because others hold something for a moment is a bad one.
            match now.filter(|found| found.output_tokens == unheld.output_tokens || waiting.is_over()) {
                Some(found) if holds::hold(&mut tx, turn.run.id.uuid(), &left, found.most, until).await? => {
                    commit(tx, &left).await?;
                    Ok(Tried::Held(held(found, &left)))
                }
                _ => Ok(Tried::HeldByOthers),
            }
        };
        match waiting.over(tried.await, halt).await? {
            Some(held) => return Ok(held),
            None => continue,
        }
    }
}

/// Holds what a step's calls may cost besides what the step has `used`, and bounds their fuel by it. An error: it is not
/// paid for.
pub(crate) async fn hold_for_calls(
    driver: &Driver<'_>,
    turn: &Loaded,
    used: Spend,
    calls: &mut [&mut NamedCall],
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Result<(), End> {
    let purse = &turn.purse;
    let limits: Vec<Limits> = calls.iter().filter_map(|call| turn.functions.limits(call)).collect();
    if limits.is_empty() || purse.is_open() {
        return Ok(());
    }
    let afford = |left: &Left| {
        let rest = purse.rest(left).map(|rest| rest.less(used.money));
        fuel_for(&turn.book, &limits, rest)
    };
    let (mut paid, _) = afford(&Left::default()).ok_or(End::completed(StopReason::Budget))?;
    if purse.is_bounded {
        let owner = turn.run.id.uuid();
        let (mut waiting, mut gave_back) = (Waiting::new(driver.runtime), false);
        paid = loop {
            let tried = async {
                let mut tx = driver.tenant.begin().await?;
                let (left, until) = left(driver, turn, &mut tx).await?;
                let Some(unheld) = afford(&left.unheld()) else {
                    return Ok(Tried::Ends(exceeded(left.unheld().scarcest())));
                };
                let found = afford(&left).filter(|found| *found == unheld || waiting.is_over());
                if let Some((limits, cost)) = found {
                    let spend = Spend { money: used.money + cost, ..used };
                    if holds::hold(&mut tx, owner, &left, spend, until).await? {
                        commit(tx, &left).await?;
                        return Ok(Tried::Held(limits));
                    }
                } else if !std::mem::replace(&mut gave_back, true) {
                    // What the model's answer did not need is given back first: whoever waits here holds nothing that
                    // another one waits for.
                    holds::keep(&mut tx, owner, used, until).await?;
                    tx.commit().await?;
                }
                Ok(Tried::HeldByOthers)
            };
            let tried = tried.await;
            if let Some(paid) = waiting.over(tried, halt).await? {
                break paid;
            }
        };
    }
    let mut paid = paid.into_iter();
    for call in calls {
        if turn.functions.limits(call).is_some() {
            call.fuel_max = paid.next().map_or(0, |limits| limits.fuel);
        }
    }
    Ok(())
}

/// In the transaction that commits a step or ends a run: what was held and is not spent is given back.
pub(crate) async fn settle(
    tx: &mut TenantTx,
    owner: Uuid,
    run: Option<RunId>,
    spent: Spend,
    ids: &dyn Ids,
    now: Timestamp,
) -> Result<(), RunError> {
    for crossed in holds::settle(tx, owner, spent).await? {
        webhooks::notify(tx, EventKind::BudgetThreshold, run, json!(crossed), ids, now).await?;
    }
    Ok(())
}

/// Why a call outside of a run is not made.
#[derive(Debug, thiserror::Error)]
pub enum Unpaid {
    #[error(transparent)]
    Exceeded(#[from] Exceeded),
    #[error(transparent)]
    Budget(#[from] BudgetError),
}

impl Problem for Unpaid {
    fn kind(&self) -> Kind {
        match self {
            Unpaid::Exceeded(error) => error.kind(),
            Unpaid::Budget(error) => error.kind(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Unpaid::Exceeded(error) => error.code(),
            Unpaid::Budget(error) => error.code(),
        }
    }
}

/// Holds what a call outside of a run may cost by this book, which it is to be billed by, and bounds its fuel by it. To be
/// settled, or released with `AgentRuntime::release`.
pub(crate) async fn hold_for_call(
    mut tx: TenantTx,
    owner: Uuid,
    external_user: Option<&str>,
    limits: Limits,
    book: &PriceBook,
    now: Timestamp,
) -> Result<Limits, Unpaid> {
    let spender = Spender { external_user, ..Spender::default() };
    let left = holds::left(&mut tx, owner, &spender, now).await?;
    if left.is_unlimited() {
        return Ok(limits);
    }
    if let Some(foreign) = left.foreign(book) {
        return Err(foreign.into());
    }
    let until = now.plus(Duration::from_millis(limits.deadline_ms) + TURN_MAX);
    if let Some((paid, money)) = fuel_for(book, &[limits], left.money())
        && holds::hold(&mut tx, owner, &left, Spend { money, tokens: 0 }, until).await?
    {
        tx.commit().await.map_err(BudgetError::from)?;
        return Ok(paid.first().copied().unwrap_or(limits));
    }
    // One that is missing has just been deleted: nothing is exceeded then, and the next try goes through.
    Err(left.scarcest().map_or(BudgetError::NotFound.into(), Unpaid::from))
}

impl AgentRuntime {
    /// Gives back what a call holds that was not made.
    pub(crate) async fn release(&self, tenant: &Tenant, owner: Uuid) {
        let released = async {
            let mut tx = tenant.begin().await?;
            holds::release(&mut tx, owner).await?;
            Ok::<(), BudgetError>(tx.commit().await?)
        };
        if let Err(error) = released.await {
            tracing::warn!(error = %error, "a call that was not made holds of budgets until its hold expires");
        }
    }
}

/// Why a turn is refused before anything of it is stored: whatever the model answers, to read what is said costs more than
/// is left. What others hold may come back, and does not count.
pub(crate) async fn refused_at_the_door(
    book: &PriceBook,
    left: &Left,
    agent: &AgentSpec<Binding>,
    said: &[Vec<Part>],
) -> Option<Exceeded> {
    if left.is_unlimited() {
        return None;
    }
    let left = left.unheld();
    let refused = |input: u64| {
        let least = models(agent).flat_map(|choice| {
            let model = reference(choice);
            // With which key it is asked is not known yet.
            [prices::own_key(&model.provider), model.provider]
                .map(|provider| Rates::of(book, [(provider.as_str(), model.name.as_str())]).least(input, 1))
        });
        left.refuses(least.min_by_key(|spend| spend.money)?).map(|refused| refused.exceeded)
    };
    let texts: Vec<String> = said.iter().map(|parts| text_of(parts)).collect();
    // A token has a byte at least: where that much is left, nothing needs to be counted.
    refused((agent.system_prompt.len() + texts.iter().map(String::len).sum::<usize>()) as u64)?;
    tokens::load().await;
    refused(tokens::count(&agent.system_prompt) + texts.iter().map(|text| tokens::count(text)).sum::<u64>())
}

async fn left(driver: &Driver<'_>, turn: &Loaded, tx: &mut TenantTx) -> Result<(Left, Timestamp), BudgetError> {
    let parts = &driver.runtime.0.parts;
    let now = parts.clock.now();
    let spender = Spender {
        agent: Some(turn.agent.id),
        external_user: turn.run.external_user_id.as_deref(),
        conversation: Some(turn.run.conversation_id),
        run: Some(turn.run.id),
        tokens_per_month: turn.purse.tokens_per_month,
    };
    // What a kept reply has used is billed, however late.
    let owed_until = turn.pending.as_ref().and_then(|_| turn.purse.owed_until());
    let until = owed_until.unwrap_or_else(|| now.plus(parts.settings.lease));
    Ok((holds::left(tx, turn.run.id.uuid(), &spender, now).await?, until))
}

/// A hold of money is on the disk before it is spent. One of tokens alone, which every turn of a small plan takes, is not
/// worth the wait: it is lost only if the server crashes, together with what would have raced it.
async fn commit(tx: TenantTx, left: &Left) -> Result<(), BudgetError> {
    if left.is_money() {
        tx.commit().await?
    } else {
        tx.commit_soon().await?
    }
    Ok(())
}

fn failed(reason: StopReason, why: &Exceeded) -> End {
    End::failed(reason, why.code(), why.to_string())
}

fn exceeded(why: Option<Exceeded>) -> End {
    why.map_or_else(|| End::completed(StopReason::Budget), |why| failed(StopReason::Budget, &why))
}

/// What one try to hold came to.
enum Tried<T> {
    Held(T),
    Ends(End),
    HeldByOthers,
}

/// Waits between tries.
struct Waiting<'r> {
    runtime: &'r AgentRuntime,
    since: Instant,
    pauses: u32,
}

impl<'r> Waiting<'r> {
    fn new(runtime: &'r AgentRuntime) -> Self {
        Self { runtime, since: Instant::now(), pauses: 0 }
    }

    /// From now on what there is will do.
    fn is_over(&self) -> bool {
        self.since.elapsed() >= WAIT_MAX
    }

    /// `None`: after a pause, try again.
    async fn over<T>(
        &mut self,
        tried: Result<Tried<T>, BudgetError>,
        halt: &mut (impl Future<Output = End> + Unpin),
    ) -> Result<Option<T>, End> {
        match tried {
            Ok(Tried::Held(held)) => return Ok(Some(held)),
            Ok(Tried::Ends(end)) => return Err(end),
            Ok(Tried::HeldByOthers) if self.since.elapsed() > WAIT_MAX + PAUSE_MAX * 4 => {
                let words = "other runs hold what is left of the budget; try again when they have ended";
                return Err(End::failed(StopReason::Budget, "budget.exceeded", words));
            }
            Ok(Tried::HeldByOthers) => {}
            // While the database is away, so is the run's commit; the lease bounds how long that lasts.
            Err(error) if error.kind() == Kind::Unavailable => {
                tracing::warn!(error = %error, "nothing can be held of budgets yet");
            }
            Err(error) => {
                tracing::error!(error = %error, cause = ?error, "nothing can be held of budgets");
                let words =
                    "the platform failed to look at the budgets; every finished step is kept: send the message again";
                return Err(End::failed(StopReason::Error, "run.internal_error", words));
            }
        }
        let pause = (PAUSE_FIRST * 2u32.saturating_pow(self.pauses)).min(PAUSE_MAX);
        self.pauses = self.pauses.saturating_add(1).min(16);
        // The last bits of an id are random.
        let chance = u32::from(self.runtime.0.parts.ids.uuid().as_bytes()[15]);
        tokio::select! {
            biased;
            end = &mut *halt => Err(end),
            () = tokio::time::sleep(pause + pause * chance / 512) => Ok(None),
        }
    }
}
