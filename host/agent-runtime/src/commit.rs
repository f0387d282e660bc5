//! One step, one transaction: messages, tool calls, usage, the step, its events and the run's end land together or not
//! at all, so that the bill and the conversation cannot disagree.

use std::{collections::HashMap, sync::Arc};

use billing_meter::{
    Spend, holds,
    prices::PriceBook,
    usage::{self, Cause, NewEvent as NewUsage, Used},
};
use conversation_store::messages::{self, Message, NewMessage};
use domain::{
    AgentId, AgentName, Amount, ApiKeyId, CallId, ConversationId, Ids, MessageId, RunId, Timestamp,
    message::{Part, Role},
};
use model_providers::{ModelRef, Usage};
use serde_json::json;
use tenancy::TenantTx;

use crate::{
    Lease,
    calls::CallResult,
    events::{self, NewEvent},
    intents::StepSends,
    recordings,
    runs::{End, RunError, RunUsage},
    spending,
    summary::{self, Summary},
    tool_calls::{self, NewToolCall, Origin},
    trace::Trace,
};

/// Whose step it is, and who writes it. The same for all steps of a run.
pub(crate) struct Writer<'w> {
    pub(crate) run: RunId,
    pub(crate) lease: Lease,
    pub(crate) agent: AgentId,
    pub(crate) conversation: ConversationId,
    pub(crate) api_key: Option<ApiKeyId>,
    pub(crate) external_user_id: Option<&'w str>,
    pub(crate) book: &'w PriceBook,
    /// Whether something is held for the run.
    pub(crate) is_bounded: bool,
    pub(crate) ids: &'w dyn Ids,
    pub(crate) now: Timestamp,
}

/// What a step did.
pub(crate) struct StepDone {
    pub(crate) number: u32,
    pub(crate) model: ModelRef,
    /// The provider as the price book names it.
    pub(crate) billed_provider: String,
    pub(crate) usage: Usage,
    pub(crate) makes: Makes,
    pub(crate) message: MessageId,
    pub(crate) text: String,
    /// What the model said besides text and calls: see `Reply::extra`.
    pub(crate) extra: Vec<Part>,
    /// In the order the model asked for them.
    pub(crate) calls: Vec<CallResult>,
    /// Of each result, what the model reads.
    pub(crate) result_bytes: usize,
    pub(crate) started_at: Timestamp,
    pub(crate) trace: Trace,
    /// Under which its calls send.
    pub(crate) sends: Arc<StepSends>,
}

/// What becomes of what the model said.
pub(crate) enum Makes {
    /// A message of the conversation.
    Message,
    /// A summary; `None`: it did not come about.
    Summary(Option<Summary>),
}

impl StepDone {
    /// What it takes of budgets.
    pub(crate) fn spent(&self, money: Amount) -> Spend {
        Spend { money, tokens: self.usage.input_tokens.saturating_add(self.usage.output_tokens) }
    }

    pub(crate) fn fuel(&self) -> u64 {
        self.calls.iter().filter_map(|result| result.receipt.as_ref()).map(|receipt| receipt.fuel_used).sum()
    }
}

/// What a step costs, by the events that will bill it.
pub(crate) struct Bill {
    events: Vec<NewUsage>,
    pub(crate) cost: Amount,
    pub(crate) prices: HashMap<CallId, Amount>,
}

/// Pure: the usage events of a step and their sum.
pub(crate) fn bill(writer: &Writer<'_>, step: &StepDone) -> Bill {
    let cause = |dedup: String| Cause {
        dedup,
        agent_id: Some(writer.agent),
        run_id: Some(writer.run),
        api_key_id: writer.api_key,
        external_user_id: writer.external_user_id.map(str::to_owned),
        ..Cause::default()
    };
    let Usage { input_tokens, cached_input_tokens, output_tokens, .. } = step.usage;
    let mut events: Vec<NewUsage> = Used::model(input_tokens, cached_input_tokens, output_tokens)
        .into_iter()
        .map(|used| NewUsage {
            cause: Cause {
                provider: Some(step.billed_provider.clone()),
                model: Some(step.model.name.clone()),
                ..cause(format!("{}/{}/{}", writer.run, step.number, used.kind().as_str()))
            },
            used,
        })
        .collect();
    let mut prices = HashMap::new();
    for result in &step.calls {
        let Some(receipt) = &result.receipt else { continue };
        let cause = Cause {
            call_id: Some(result.call.id),
            tool: Some(result.call.tool.clone()),
            function: Some(result.call.function.clone()),
            ..cause(String::new())
        };
        let used = call_usage(result.call.id, receipt, &cause);
        let price = used.iter().map(|event| writer.book.price(&event.used, None, None).amount).sum();
        prices.insert(result.call.id, price);
        events.extend(used);
    }
    let price = |event: &NewUsage| {
        writer.book.price(&event.used, event.cause.provider.as_deref(), event.cause.model.as_deref()).amount
    };
    let cost = events.iter().map(price).sum();
    Bill { events, cost, prices }
}

/// The usage events of one call.
pub(crate) fn call_usage(id: CallId, receipt: &tool_api::Receipt, cause: &Cause) -> Vec<NewUsage> {
    Used::tool_call(receipt.fuel_used, receipt.memory_peak_bytes, receipt.total_us)
        .into_iter()
        .map(|used| NewUsage {
            cause: Cause { dedup: format!("{id}/{}", used.kind().as_str()), ..cause.clone() },
            used,
        })
        .collect()
}

/// What a run's row has come to, and what the model has said last.
pub(crate) struct Committed {
    /// As it is called now: a run at an older revision may have begun under another name.
    pub(crate) agent: AgentName,
    pub(crate) steps: u32,
    pub(crate) usage: RunUsage,
    pub(crate) cost: Amount,
    /// Of this step.
    pub(crate) message: Option<Message>,
}

/// Writes a step, the run's end, or both. `RunError::Fenced` when the run is another process's now, or when others have
/// taken what was held for the step while this process was stopped: nothing is written.
pub(crate) async fn commit(
    tx: &mut TenantTx,
    writer: &Writer<'_>,
    step: Option<(&StepDone, &Bill)>,
    end: Option<&End>,
    told: &[NewEvent],
) -> Result<Committed, RunError> {
    let mut committed = write_run(tx, writer, step, end, told).await?;
    if let Some((step, bill)) = step {
        match &step.makes {
            Makes::Message => committed.message = write_messages(tx, writer, step).await?,
            Makes::Summary(None) => {}
            Makes::Summary(Some(summary)) => {
                summary::insert(tx, writer.conversation, (writer.run, step.number), summary, writer.now).await?;
            }
        }
        write_calls(tx, writer, step, bill).await?;
        usage::record(tx, writer.book, &bill.events, writer.ids, writer.now).await?;
    }
    if writer.is_bounded {
        // What a kept reply has used is held for longer than any lease, and is billed in any case.
        let can_be_redone = step.is_some_and(|(step, _)| !step.sends.is_kept());
        if can_be_redone && holds::lapsed(tx, writer.run.uuid()).await? {
            return Err(RunError::Fenced);
        }
        let spent = step.map(|(step, bill)| step.spent(bill.cost)).unwrap_or_default();
        spending::settle(tx, writer.run.uuid(), Some(writer.run), spent, writer.ids, writer.now).await?;
    }
    Ok(committed)
}

/// The run's row, its step and its events. First of all: the row's lock orders us and whoever else wants the run, and
/// where it is another's, nothing is written.
async fn write_run(
    tx: &mut TenantTx,
    writer: &Writer<'_>,
    step: Option<(&StepDone, &Bill)>,
    end: Option<&End>,
    told: &[NewEvent],
) -> Result<Committed, RunError> {
    let done = step.map(|(step, _)| step);
    let usage = done.map(|step| step.usage).unwrap_or_default();
    let error = end.and_then(|end| end.error.as_ref());
    let events::Columns { seqs, parts, kinds, data } = events::Columns::of(told);
    let row = sqlx::query!(
        r#"
        WITH fenced AS (
            UPDATE run SET
                steps = steps + CASE WHEN $5::integer IS NULL THEN 0 ELSE 1 END,
                input_tokens = input_tokens + $6, cached_input_tokens = cached_input_tokens + $7,
                output_tokens = output_tokens + $8, fuel = fuel + $9, cost = cost + $10,
                pending = NULL, status = coalesce($11, status), stop_reason = $12, error_code = $13, error_detail = $14,
                ended_at = CASE WHEN $11::text IS NULL THEN NULL ELSE $15::timestamptz END, output = $16
            WHERE tenant_id = $1 AND run_id = $2 AND leased_by = $3 AND fence = $4 AND status = 'running'
            RETURNING run_id, agent_id, steps, input_tokens, cached_input_tokens, output_tokens, fuel, cost
        ), stepped AS (
            INSERT INTO step (tenant_id, run_id, step, provider, model, input_tokens, cached_input_tokens, output_tokens,
                              fuel, cost, started_at, ended_at, trace, text_bytes)
            SELECT $1, run_id, $5, $17, $18, $6, $7, $8, $9, $10, $19, $15, $20, $21 FROM fenced
            WHERE $5 IS NOT NULL
        ), told AS (
            INSERT INTO run_event (tenant_id, run_id, seq, part, type, data)
            SELECT $1, f.run_id, e.seq, e.part, e.type, e.data
            FROM fenced f, unnest($22::int[], $23::smallint[], $24::text[], $25::jsonb[]) AS e (seq, part, type, data)
        )
        SELECT a.name AS agent, f.steps, f.input_tokens, f.cached_input_tokens, f.output_tokens, f.fuel, f.cost
        FROM fenced f JOIN agent a ON a.tenant_id = $1 AND a.agent_id = f.agent_id
        "#,
        tx.tenant().uuid(),
        writer.run.uuid(),
        writer.lease.worker,
        writer.lease.fence(),
        done.map(|step| step.number.cast_signed()),
        usage.input_tokens.cast_signed(),
        usage.cached_input_tokens.cast_signed(),
        usage.output_tokens.cast_signed(),
        done.map_or(0, StepDone::fuel).cast_signed(),
        step.map_or(Amount::ZERO, |(_, bill)| bill.cost).decimal(),
        end.map(|end| end.status.as_str()),
        end.map(|end| end.reason.as_str()),
        error.map(|error| error.code.as_str()),
        error.map(|error| error.detail.as_str()),
        writer.now.offset(),
        end.and_then(|end| end.output.as_ref()),
        done.map(|step| step.model.provider.as_str()),
        done.map(|step| step.model.name.as_str()),
        done.map(|step| step.started_at.offset()),
        done.map(|step| json!(step.trace)),
        done.map(|step| i32::try_from(step.text.len()).unwrap_or(i32::MAX)),
        &seqs,
        &parts,
        &kinds,
        &data,
    )
    .fetch_optional(tx.conn())
    .await?
    .ok_or(RunError::Fenced)?;
    Ok(Committed {
        agent: row.agent.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
        steps: row.steps.cast_unsigned(),
        usage: RunUsage {
            input_tokens: row.input_tokens.cast_unsigned(),
            cached_input_tokens: row.cached_input_tokens.cast_unsigned(),
            output_tokens: row.output_tokens.cast_unsigned(),
            fuel: row.fuel.cast_unsigned(),
        },
        cost: Amount::rounded(row.cost),
        message: None,
    })
}

/// The first is what the model has said.
async fn write_messages(tx: &mut TenantTx, writer: &Writer<'_>, step: &StepDone) -> Result<Option<Message>, RunError> {
    let mut parts = said_by_model(step);
    if parts.is_empty() {
        parts.push(Part::text(""));
    }
    let mut new = vec![NewMessage { id: step.message, role: Role::Assistant, parts, run_id: Some(writer.run) }];
    if !step.calls.is_empty() {
        new.push(NewMessage {
            id: MessageId::new(writer.ids),
            role: Role::Tool,
            parts: results_for_model(step),
            run_id: Some(writer.run),
        });
    }
    Ok(messages::append(tx, writer.conversation, &new, writer.now).await?.into_iter().next())
}

/// A step's message: what was thought, then the text, the images and the calls.
pub(crate) fn said_by_model(step: &StepDone) -> Vec<Part> {
    let (thought, shown): (Vec<&Part>, Vec<&Part>) =
        step.extra.iter().partition(|part| matches!(part, Part::Reasoning { .. }));
    let text = (!step.text.is_empty()).then(|| Part::text(step.text.clone()));
    let calls = step.calls.iter().map(|result| Part::ToolCall {
        id: result.call.id,
        provider_id: result.call.asked.provider_id.clone(),
        name: result.call.asked.name.clone(),
        arguments: result.call.asked.arguments.clone(),
    });
    thought.into_iter().cloned().chain(text).chain(shown.into_iter().cloned()).chain(calls).collect()
}

/// What the model reads of a step's calls: behind each result its images.
pub(crate) fn results_for_model(step: &StepDone) -> Vec<Part> {
    step.calls
        .iter()
        .flat_map(|result| {
            let text = Part::ToolResult {
                id: result.call.id,
                provider_id: result.call.asked.provider_id.clone(),
                is_error: result.outcome.is_error(),
                text: cut(result.for_model(), step.result_bytes),
            };
            std::iter::once(text).chain(result.outcome.images_for_model().cloned())
        })
        .collect()
}

fn cut(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let left_out = text.len() - text.floor_char_boundary(bytes);
        text.truncate(text.len() - left_out);
        text.push_str(&format!("\n[{left_out} more bytes were left out; ask for less at a time]"));
    }
    text
}

async fn write_calls(tx: &mut TenantTx, writer: &Writer<'_>, step: &StepDone, bill: &Bill) -> Result<(), RunError> {
    let origin = Origin {
        run: Some((writer.run, step.number)),
        agent: Some(writer.agent),
        external_user_id: writer.external_user_id,
        currency: &writer.book.currency,
        price_book: writer.book.version,
    };
    let calls: Vec<NewToolCall<'_>> = step
        .calls
        .iter()
        .map(|result| NewToolCall {
            id: result.call.id,
            tool: &result.call.tool,
            function: &result.call.function,
            artifact: result.call.artifact,
            arguments: result.call.arguments(),
            outcome: &result.outcome,
            receipt: result.receipt.as_ref(),
            price: bill.prices.get(&result.call.id).copied().unwrap_or(Amount::ZERO),
        })
        .collect();
    tool_calls::record(tx, &origin, &calls, writer.now).await?;
    let recorded = step.calls.iter().filter_map(|result| Some((result.call.id, result.given.as_ref()?)));
    recordings::record(tx, &recorded.collect::<Vec<_>>(), writer.now).await
}
