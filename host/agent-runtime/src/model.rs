//! One question to the model: its text is told as it comes, its calls are collected.

use domain::{MessageId, Problem, message::Part, nul};
use futures::StreamExt;
use model_providers::{ModelEvent, ModelRef, ModelRequest, ProviderError, Usage, retry, tokens};

use crate::{
    drive::Driver,
    load::{Loaded, request},
    runs::{End, StopReason},
    spending,
    step::AskedCall,
    trace::Trace,
};

/// What a model said, whole or cut.
pub(crate) struct Reply {
    pub(crate) model: ModelRef,
    pub(crate) billed: String,
    pub(crate) usage: Usage,
    pub(crate) message: MessageId,
    pub(crate) text: String,
    /// What the model said besides text and calls: images, and what its provider wants back (`Part::Reasoning`).
    pub(crate) extra: Vec<Part>,
    pub(crate) calls: Vec<AskedCall>,
    /// Why it was cut.
    pub(crate) cut: Option<End>,
    pub(crate) trace: Trace,
}

/// Asks the model and tells its text as it comes. `Err`: nothing came, and nothing is charged.
pub(crate) async fn ask(
    driver: &Driver<'_>,
    turn: &mut Loaded,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Result<Reply, End> {
    let request = request(turn)?;
    ask_for(driver, turn, request, Audience::Followers, halt).await
}

/// Who hears what the model says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    Followers,
    Nobody,
}

/// The same with any request. Its tokens are in `asked_tokens`.
pub(crate) async fn ask_for(
    driver: &Driver<'_>,
    turn: &mut Loaded,
    mut request: ModelRequest,
    audience: Audience,
    halt: &mut (impl Future<Output = End> + Unpin),
) -> Result<Reply, End> {
    let failed = |error: &ProviderError| End::failed(StopReason::Error, error.code(), error.to_string());
    turn.tracer.begin();
    let candidates = turn.candidates.as_ref().map_err(failed)?;
    let held = spending::hold_for_model(driver, turn, candidates, halt).await?;
    request.max_output_tokens = held.as_ref().map(|held| held.output_tokens);
    let ids = driver.runtime.0.parts.ids.clone();
    // The last 32 bits of an id are random.
    let chance = move || f64::from(ids.uuid().as_u128() as u32) / f64::from(u32::MAX);
    let tried: Vec<_> =
        candidates.iter().map(|candidate| (candidate.model.clone(), candidate.provider.clone())).collect();
    let (model, mut stream) = tokio::select! {
        biased;
        end = &mut *halt => return Err(end),
        started = retry::start(&tried, request.clone(), &chance) => started.map_err(|error| failed(&error))?,
    };
    driver.durable().await;
    let billed = candidates.iter().find(|candidate| candidate.model == model).map(|candidate| candidate.billed.clone());
    let mut reply = Reply {
        billed: billed.unwrap_or_else(|| model.provider.clone()),
        model,
        usage: Usage::default(),
        message: MessageId::new(driver.runtime.0.parts.ids.as_ref()),
        text: String::new(),
        extra: Vec::new(),
        calls: Vec::new(),
        cut: None,
        trace: Trace::default(),
    };
    // Thoughts, and calls as they come: counted when the answer is cut.
    let mut unseen = String::new();
    let ended = loop {
        let event = tokio::select! {
            biased;
            end = &mut *halt => { reply.cut = Some(end); break false }
            event = stream.next() => event,
        };
        match event {
            Some(Ok(ModelEvent::Text(text))) => {
                let text = nul::replaced(text);
                if audience == Audience::Followers {
                    driver.teller.delta(reply.message, &text);
                }
                reply.text.push_str(&text);
            }
            Some(Ok(ModelEvent::Unseen(piece))) => unseen.push_str(&piece),
            Some(Ok(ModelEvent::Image { media_type, data })) => reply.extra.push(Part::Image { media_type, data }),
            Some(Ok(ModelEvent::Reasoning(mut data))) => {
                nul::replace(&mut data);
                reply.extra.push(Part::Reasoning { provider: reply.model.provider.clone(), data });
            }
            Some(Ok(ModelEvent::ToolCall { provider_id, name, arguments })) => {
                reply.calls.push(AskedCall { provider_id, name, arguments });
            }
            Some(Ok(ModelEvent::End { usage, .. })) => {
                reply.usage = usage;
                break true;
            }
            Some(Err(error)) => {
                reply.cut = Some(failed(&error));
                break false;
            }
            None => {
                reply.cut = Some(failed(&ProviderError::CutShort { provider: reply.model.provider.clone() }));
                break false;
            }
        }
    };
    if !ended {
        // What came was paid for; what was not reported is counted.
        reply.usage = Usage {
            input_tokens: tokens::count_request(&request),
            cached_input_tokens: 0,
            output_tokens: tokens::count(&reply.text) + tokens::count(&unseen),
            reported: false,
        };
        reply.calls.clear();
    }
    if let Some(held) = held {
        reply.usage = held.billed(&turn.book, &reply.billed, &reply.model.name, reply.usage);
    }
    if !reply.text.is_empty() && audience == Audience::Followers {
        driver.teller.said(reply.message, reply.text.clone());
    }
    reply.trace = turn.tracer.taken();
    Ok(reply)
}
