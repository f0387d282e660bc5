//! The model's reply to a step that is not committed yet. Stored with the first request that a call of the step sends, and
//! when the run waits for an approval: whoever goes on with the run does not ask the model again.

use domain::{CallId, MessageId, RunId, Timestamp, message::Part, nul};
use model_providers::{ModelRef, Usage};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tenancy::TenantTx;

use crate::{calls::NamedCall, model::Reply, runs::RunError, step::AskedCall, teller::Teller, trace::Trace};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pending {
    pub(crate) step: u32,
    message: MessageId,
    text: String,
    extra: Vec<Part>,
    provider: String,
    model: String,
    billed: String,
    input_tokens: u64,
    cached_input_tokens: u64,
    output_tokens: u64,
    reported: bool,
    pub(crate) calls: Vec<PendingCall>,
    pub(crate) started_at: Timestamp,
    trace: Trace,
    /// The text is among the stored events.
    pub(crate) is_told: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PendingCall {
    pub(crate) id: CallId,
    provider_id: String,
    name: String,
    arguments: Value,
}

impl Pending {
    pub(crate) fn of(step: u32, reply: &Reply, calls: &[NamedCall], started_at: Timestamp) -> Pending {
        let Usage { input_tokens, cached_input_tokens, output_tokens, reported } = reply.usage;
        Pending {
            step,
            message: reply.message,
            text: reply.text.clone(),
            extra: reply.extra.clone(),
            provider: reply.model.provider.clone(),
            model: reply.model.name.clone(),
            billed: reply.billed.clone(),
            input_tokens,
            cached_input_tokens,
            output_tokens,
            reported,
            calls: calls
                .iter()
                .map(|NamedCall { id, asked, .. }| PendingCall {
                    id: *id,
                    provider_id: asked.provider_id.clone(),
                    name: asked.name.clone(),
                    arguments: asked.arguments.clone(),
                })
                .collect(),
            started_at,
            trace: reply.trace.clone(),
            is_told: false,
        }
    }

    /// Tells the text, as the process before did.
    pub(crate) fn tell(&self, teller: &Teller) {
        if !self.text.is_empty() {
            teller.delta(self.message, &self.text);
            teller.said(self.message, self.text.clone());
        }
    }

    /// Its text is stored with the events.
    pub(crate) fn told(self) -> Pending {
        Pending { is_told: true, ..self }
    }

    /// As the column keeps it.
    pub(crate) fn stored(&self) -> Result<Value, RunError> {
        let mut value = serde_json::to_value(self).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        nul::replace(&mut value);
        Ok(value)
    }

    /// The reply, and the ids under which its calls are known.
    pub(crate) fn reply(self) -> (Reply, Vec<CallId>) {
        let ids = self.calls.iter().map(|call| call.id).collect();
        let calls = self.calls.into_iter().map(|PendingCall { provider_id, name, arguments, .. }| AskedCall {
            provider_id,
            name,
            arguments,
        });
        let reply = Reply {
            model: ModelRef::new(&self.provider, &self.model),
            billed: self.billed,
            usage: Usage {
                input_tokens: self.input_tokens,
                cached_input_tokens: self.cached_input_tokens,
                output_tokens: self.output_tokens,
                reported: self.reported,
            },
            message: self.message,
            text: self.text,
            extra: self.extra,
            calls: calls.collect(),
            cut: None,
            trace: self.trace,
        };
        (reply, ids)
    }
}

pub(crate) async fn of_run(tx: &mut TenantTx, run: RunId) -> Result<Option<Pending>, RunError> {
    let pending = sqlx::query_scalar!(
        "SELECT pending FROM run WHERE tenant_id = $1 AND run_id = $2",
        tx.tenant().uuid(),
        run.uuid(),
    )
    .fetch_optional(tx.conn())
    .await?
    .flatten();
    let pending = pending.map(serde_json::from_value).transpose();
    Ok(pending.map_err(|error| sqlx::Error::Decode(Box::new(error)))?)
}
