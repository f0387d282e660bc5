//! Clients that do what customers do, and do not give up: every request has an idempotency key and is sent again, to the
//! next host, until it is answered.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    chaos::reader::Reader,
    effects::KEY_HEADER,
    fleet::text,
    script::effect_arguments,
    server::{Answer, Tenant},
};

/// How long one operation is tried: a few leases.
const OPERATION_MAX: Duration = Duration::from_secs(150);
/// How long one decision is tried before the run is looked at again.
const DECISION_MAX: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(150);
const LOOK: Duration = Duration::from_millis(200);
/// Between two operations of one client.
const PAUSE: Duration = Duration::from_millis(100);
/// Turns of one conversation before the next is begun.
const TURNS: usize = 6;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Say,
    Calc,
    /// An effect under a grant that sends the call's key along.
    Keyed,
    /// An effect that nobody can recognise.
    Bare,
    Streamed,
    Note,
    Approve,
    /// A tool with an effect and one without, side by side.
    Both,
    Background,
    DirectCalc,
    DirectKeyed,
}

impl Kind {
    const ALL: [Kind; 11] = [
        Kind::Say,
        Kind::Calc,
        Kind::Keyed,
        Kind::Bare,
        Kind::Streamed,
        Kind::Note,
        Kind::Approve,
        Kind::Both,
        Kind::Background,
        Kind::DirectCalc,
        Kind::DirectKeyed,
    ];

    pub(crate) fn is_direct(self) -> bool {
        matches!(self, Kind::DirectCalc | Kind::DirectKeyed)
    }

    fn agent(self) -> &'static str {
        match self {
            Kind::Bare => "bare",
            Kind::Approve => "guarded",
            _ => "clerk",
        }
    }

    /// The word of the user's message that the model acts on.
    fn word(self) -> &'static str {
        match self {
            Kind::Say => "say",
            Kind::Calc | Kind::Streamed | Kind::Background => "calc",
            Kind::Keyed | Kind::Bare => "effect",
            Kind::Note => "note",
            Kind::Approve => "approve",
            Kind::Both => "both",
            Kind::DirectCalc | Kind::DirectKeyed => "",
        }
    }
}

/// One operation and what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    /// The product has said that it has it.
    pub(crate) accepted: bool,
    pub(crate) run: Option<String>,
    pub(crate) failure: Option<String>,
}

impl Done {
    pub(crate) fn op(&self) -> String {
        format!("op-{}", self.number)
    }
}

/// What all clients share.
pub(crate) struct Work {
    pub(crate) tenant: Tenant,
    /// Where the hosts are.
    pub(crate) urls: Vec<String>,
    pub(crate) effects: String,
    pub(crate) stop: AtomicBool,
    next: AtomicU64,
    turn: AtomicUsize,
    done: Mutex<Vec<Done>>,
    /// Answers that were no answer, and why a request was sent again.
    again: Mutex<BTreeMap<String, usize>>,
}

/// One customer.
struct Client<'w> {
    work: &'w Work,
    user: String,
    /// By agent: the conversation, and how many turns it has.
    conversations: HashMap<&'static str, (String, usize)>,
}

impl Work {
    pub(crate) fn new(tenant: Tenant, urls: Vec<String>, effects: String) -> Work {
        Work {
            tenant,
            urls,
            effects,
            stop: AtomicBool::default(),
            next: AtomicU64::new(1),
            turn: AtomicUsize::default(),
            done: Mutex::default(),
            again: Mutex::default(),
        }
    }

    /// Works until it is stopped, and finishes what was begun.
    pub(crate) async fn client(self: Arc<Work>, number: usize) {
        let mut client = Client { work: &self, user: format!("user-{number}"), conversations: HashMap::new() };
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let kind = Kind::ALL[number as usize % Kind::ALL.len()];
            let mut done = Done { number, kind, accepted: false, run: None, failure: None };
            if let Err(failure) = client.operate(&mut done).await {
                done.failure = Some(failure);
                // It may be busy for good: the next operation is not to suffer from it.
                client.conversations.remove(kind.agent());
            }
            self.lock_done().push(done);
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub(crate) fn done(&self) -> Vec<Done> {
        self.lock_done().clone()
    }

    pub(crate) fn again(&self) -> BTreeMap<String, usize> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock_done(&self) -> std::sync::MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next host in turn.
    fn somewhere(&self) -> Tenant {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.tenant.at(self.urls[turn % self.urls.len()].clone())
    }

    async fn again_because(&self, why: String) {
        *self.again.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
        tokio::time::sleep(AGAIN).await;
    }

    /// Sends it until somebody answers: not with a broken connection, not with "later".
    async fn insist(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
        until: Instant,
    ) -> Result<Answer, String> {
        let mut last = String::from("nothing was tried");
        while Instant::now() < until {
            let mut request = self.somewhere().request(method.clone(), path);
            if let Some((key, body)) = body {
                request = request.header("idempotency-key", key).json(body);
            }
            match Answer::of(request).await {
                Ok(answer) if answer.status == 409 || answer.status == 429 || answer.status >= 500 => {
                    last = format!("{} {}", answer.status, text(&answer.body, "code"));
                    self.again_because(last.clone()).await;
                }
                Ok(answer) if answer.status >= 400 => return Err(format!("{}: {}", answer.status, answer.body)),
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    last = format!("{error:#}");
                    self.again_because("the connection broke".into()).await;
                }
            }
        }
        Err(format!("{method} {path} was never answered, at last: {last}"))
    }
}

impl Client<'_> {
    async fn operate(&mut self, done: &mut Done) -> Result<(), String> {
        let until = Instant::now() + OPERATION_MAX;
        if done.kind.is_direct() {
            return self.call(done, until).await;
        }
        let (op, agent) = (done.op(), done.kind.agent());
        let mut body = json!({"message": format!("{op} {}", done.kind.word()), "external_user_id": self.user});
        match self.conversations.get(agent) {
            Some((id, turns)) if *turns < TURNS => body["conversation_id"] = json!(id),
            _ => drop(self.conversations.remove(agent)),
        }
        let path = format!("/v1/agents/{agent}/chat");
        if done.kind == Kind::Streamed {
            body["stream"] = json!(true);
            return self.read(done, &path, &body, until).await;
        }
        if done.kind == Kind::Background {
            body["background"] = json!(true);
        }
        let answer = self.work.insist(Method::POST, &path, Some((&op, &body)), until).await?;
        self.began(done, &answer.body);
        let turn = self.ended(done, answer.body, until).await?;
        expect(done, &turn)
    }

    fn began(&mut self, done: &mut Done, turn: &Value) {
        done.accepted = true;
        done.run = turn["run"]["id"].as_str().map(str::to_owned);
        if let Some(conversation) = turn["conversation_id"].as_str() {
            let turns = &mut self.conversations.entry(done.kind.agent()).or_insert((conversation.to_owned(), 0)).1;
            *turns += 1;
        }
    }

    /// Looks at the run until it has ended, and decides what waits for a decision.
    async fn ended(&self, done: &Done, mut turn: Value, until: Instant) -> Result<Value, String> {
        let run = done.run.as_deref().ok_or("an answer without a run")?;
        let mut last = turn["run"].clone();
        while !matches!(last["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
            if Instant::now() > until {
                return Err(format!("run {run} is still {}", last["status"]));
            }
            for call in last["pending_approvals"].as_array().into_iter().flatten() {
                let call = text(call, "id");
                let decision = if done.number.is_multiple_of(3) { "deny" } else { "approve" };
                let body = json!({"decision": decision, "reason": "as agreed", "decided_by": self.user});
                let path = format!("/v1/runs/{run}/tool-calls/{call}/decision");
                let key = format!("{}-decision", done.op());
                // Refused for good, it was decided before: the run goes on, and that is looked at below.
                let patience = until.min(Instant::now() + DECISION_MAX);
                let _ = self.work.insist(Method::POST, &path, Some((&key, &body)), patience).await;
            }
            tokio::time::sleep(LOOK).await;
            last = self.work.insist(Method::GET, &format!("/v1/runs/{run}"), None, until).await?.body;
        }
        if last["status"] != "completed" {
            return Err(format!("run {run} {}: {}", last["status"], last["error"]));
        }
        if turn["message"].is_null() || turn["run"]["status"] != "completed" {
            // As a new client would see it.
            let path = format!("/v1/conversations/{}/messages?limit=100", text(&last, "conversation_id"));
            let messages = self.work.insist(Method::GET, &path, None, until).await?.body;
            let said =
                messages["data"].as_array().into_iter().flatten().rfind(|message| message["role"] == "assistant");
            turn["message"] = said.cloned().unwrap_or_default();
        }
        Ok(turn)
    }

    /// Reads the run's events, on another host whenever the one breaks off.
    async fn read(&mut self, done: &mut Done, path: &str, body: &Value, until: Instant) -> Result<(), String> {
        let (op, mut reader) = (done.op(), Reader::default());
        while !reader.has_ended() {
            if Instant::now() > until {
                return Err(format!("the events of {:?} did not end", done.run));
            }
            let somewhere = self.work.somewhere();
            let request = match &done.run {
                None => somewhere.request(Method::POST, path).header("idempotency-key", &op).json(body),
                Some(run) => {
                    let request = somewhere.request(Method::GET, &format!("/v1/runs/{run}/events"));
                    match reader.last_id() {
                        Some(id) => request.header("last-event-id", id),
                        None => request,
                    }
                }
            };
            let broke = match request.timeout(until.saturating_duration_since(Instant::now())).send().await {
                Ok(response) if response.status().is_success() => {
                    reader.read(response).await?;
                    if let Some(started) = reader.started().filter(|_| done.run.is_none()) {
                        self.began(done, &started);
                    }
                    "a stream broke off".to_owned()
                }
                Ok(response)
                    if response.status().is_client_error() && !matches!(response.status().as_u16(), 409 | 429) =>
                {
                    return Err(format!("{}: {}", response.status(), response.text().await.unwrap_or_default()));
                }
                Ok(response) => format!("{} to a stream", response.status().as_u16()),
                Err(_) => "the connection broke".to_owned(),
            };
            if !reader.has_ended() {
                self.work.again_because(broke).await;
            }
        }
        let turn = reader.ended(&op)?;
        if done.run.is_none() {
            self.began(done, &turn);
        }
        expect(done, &turn)
    }

    async fn call(&self, done: &mut Done, until: Instant) -> Result<(), String> {
        let op = done.op();
        let (tool, body) = match done.kind {
            Kind::DirectKeyed => (
                "effects",
                json!({
                    "function": "send", "arguments": effect_arguments(&op, &self.work.effects),
                    "grants": {"http": [keyed_grant(&self.work.effects)]},
                }),
            ),
            _ => ("sums", json!({"function": "evaluate", "arguments": {"expression": format!("{} + 1", done.number)}})),
        };
        let path = format!("/v1/tools/{tool}/versions/latest/calls");
        let answer = self.work.insist(Method::POST, &path, Some((&op, &body)), until).await?.body;
        done.accepted = true;
        match answer["outcome"]["status"].as_str() {
            Some("ok" | "outcome_unknown") => Ok(()),
            _ => Err(format!("the call came to {}", answer["outcome"])),
        }
    }
}

/// A grant under which the call's key goes out.
pub(crate) fn keyed_grant(effects: &str) -> Value {
    let mut grant = bare_grant(effects);
    grant["idempotency_header"] = json!(KEY_HEADER);
    grant
}

pub(crate) fn bare_grant(effects: &str) -> Value {
    json!({"host": effects, "methods": ["POST"], "plain_http": true})
}

/// The answer is the one that the script gives.
fn expect(done: &Done, turn: &Value) -> Result<(), String> {
    let (status, said) = (&turn["run"]["status"], text(&turn["message"], "content"));
    if status == "failed" || status == "cancelled" {
        return Err(format!("the run {status}: {}", turn["run"]["error"]));
    }
    let computed = (done.number + 1).to_string();
    let fits = match done.kind {
        Kind::Calc | Kind::Streamed | Kind::Background | Kind::Both => said.contains(&computed),
        _ => true,
    };
    match said.starts_with(&format!("Done with {}:", done.op())) && fits {
        true => Ok(()),
        false => Err(format!("it said `{said}` to {}", done.op())),
    }
}
