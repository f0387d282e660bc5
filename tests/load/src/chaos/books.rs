//! What must hold when the dust has settled, recomputed from the rows: nothing lost, nothing doubled, the bill exact.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::Value;
use sqlx::{Connection, PgConnection, Row, postgres::PgRow};

use crate::{
    chaos::work::{Done, Kind},
    effects::Ledger,
    script::{self, op_in},
    upstream::Asked,
};

/// Digits of an amount after its point.
const AMOUNT_SCALE: u32 = 12;
/// Of complaints of one kind, so many are shown.
const SHOWN: usize = 5;

/// Everything that was said and done, as Postgres has it.
pub(crate) struct Books {
    messages: Vec<Message>,
    runs: Vec<Run>,
    steps: Vec<Step>,
    calls: Vec<Call>,
    events: Vec<Event>,
    notes: Vec<String>,
}

struct Message {
    role: String,
    run: Option<String>,
    parts: Value,
}

struct Run {
    id: String,
    status: String,
    cost: Decimal,
}

struct Step {
    run: String,
    step: i32,
    provider: String,
    model: String,
    input: i64,
    cached: i64,
    output: i64,
}

struct Call {
    id: String,
    run: Option<String>,
    tool: String,
    arguments: Value,
    status: String,
    outcome: Value,
    receipt: Option<Value>,
}

impl Call {
    /// The tool was answered by whom it sent to. It answers itself also where it was not.
    fn was_answered(&self) -> bool {
        self.status == "ok" && self.outcome.to_string().replace('\\', "").contains("\"status\":200")
    }
}

struct Event {
    run: Option<String>,
    call: Option<String>,
    kind: String,
    amount: Decimal,
}

/// What was found to be wrong, by promise.
#[derive(Default)]
pub(crate) struct Complaints(BTreeMap<&'static str, Vec<String>>);

impl Complaints {
    pub(crate) fn add(&mut self, promise: &'static str, what: String) {
        self.0.entry(promise).or_default().push(what);
    }

    pub(crate) fn count(&self, promise: &str) -> usize {
        self.0.get(promise).map_or(0, Vec::len)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn shown(&self) -> String {
        let shown = self.0.iter().map(|(promise, all)| {
            let first: Vec<&str> = all.iter().take(SHOWN).map(String::as_str).collect();
            format!("{} x {promise}:\n    {}", all.len(), first.join("\n    "))
        });
        shown.collect::<Vec<_>>().join("\n  ")
    }
}

pub(crate) const LOST: &str = "an accepted message was lost";
pub(crate) const DOUBLED: &str = "a message was doubled";
pub(crate) const BILL: &str = "the bill differs from the receipts";
pub(crate) const EFFECTS: &str = "an effect was repeated without the same key, or is missing";
pub(crate) const UNFINISHED: &str = "a run has not ended";
pub(crate) const STORED: &str = "a tool's entry was lost or doubled";

impl Books {
    pub(crate) async fn read(superuser_url: &str) -> Result<Books> {
        let mut database = PgConnection::connect(superuser_url).await?;
        let messages = rows(&mut database, "SELECT role, run_id::text, parts FROM belljar.message").await?;
        let runs = rows(&mut database, "SELECT run_id::text, status, cost FROM belljar.run").await?;
        let steps = rows(
            &mut database,
            "SELECT run_id::text, step, provider, model, input_tokens, cached_input_tokens, output_tokens
             FROM belljar.step",
        )
        .await?;
        let calls = rows(
            &mut database,
            "SELECT call_id::text, run_id::text, tool, arguments, status, outcome, receipt FROM belljar.tool_call",
        )
        .await?;
        let events =
            rows(&mut database, "SELECT run_id::text, call_id::text, kind, amount FROM belljar.usage_event").await?;
        let notes = rows(
            &mut database,
            "SELECT convert_from(value, 'UTF8') AS note FROM belljar.kv_entry WHERE key LIKE 'note-%'",
        )
        .await?;
        database.close().await?;
        Ok(Books {
            messages: all(&messages, |row| {
                Ok(Message { role: row.try_get("role")?, run: row.try_get("run_id")?, parts: row.try_get("parts")? })
            })?,
            runs: all(&runs, |row| {
                Ok(Run { id: row.try_get("run_id")?, status: row.try_get("status")?, cost: row.try_get("cost")? })
            })?,
            steps: all(&steps, |row| {
                Ok(Step {
                    run: row.try_get("run_id")?,
                    step: row.try_get("step")?,
                    provider: row.try_get("provider")?,
                    model: row.try_get("model")?,
                    input: row.try_get("input_tokens")?,
                    cached: row.try_get("cached_input_tokens")?,
                    output: row.try_get("output_tokens")?,
                })
            })?,
            calls: all(&calls, |row| {
                Ok(Call {
                    id: row.try_get("call_id")?,
                    run: row.try_get("run_id")?,
                    tool: row.try_get("tool")?,
                    arguments: row.try_get("arguments")?,
                    status: row.try_get("status")?,
                    outcome: row.try_get("outcome")?,
                    receipt: row.try_get("receipt")?,
                })
            })?,
            events: all(&events, |row| {
                Ok(Event {
                    run: row.try_get("run_id")?,
                    call: row.try_get("call_id")?,
                    kind: row.try_get("kind")?,
                    amount: row.try_get("amount")?,
                })
            })?,
            notes: all(&notes, |row| row.try_get("note"))?,
        })
    }

    /// Every operation's message is there once if it was accepted, and never twice; so is its answer.
    pub(crate) fn check_messages(&self, done: &[Done], complaints: &mut Complaints) {
        let (mut asked, mut answered) = (HashMap::<&str, usize>::new(), HashMap::<&str, usize>::new());
        let (mut called, mut results) = (HashMap::<&str, usize>::new(), HashMap::<&str, usize>::new());
        for message in &self.messages {
            for part in message.parts.as_array().into_iter().flatten() {
                let (text, id) = (part["text"].as_str().unwrap_or_default(), part["id"].as_str().unwrap_or_default());
                match (part["type"].as_str().unwrap_or_default(), message.role.as_str()) {
                    ("tool_call", _) => *called.entry(id).or_default() += 1,
                    ("tool_result", _) => *results.entry(id).or_default() += 1,
                    (_, "user") => op_in(text).into_iter().for_each(|op| *asked.entry(op).or_default() += 1),
                    (_, "assistant") => {
                        let op = text.strip_prefix("Done with ").and_then(|rest| rest.split_once(':'));
                        op.into_iter().for_each(|(op, _)| *answered.entry(op).or_default() += 1);
                    }
                    _ => {}
                }
            }
        }
        for one in done.iter().filter(|done| !done.kind.is_direct()) {
            let op = one.op();
            let (asked, answered) = (asked.get(op.as_str()), answered.get(op.as_str()));
            if one.accepted && asked.is_none() {
                complaints.add(LOST, format!("{op} {:?}: nothing in run {:?}", one.kind, one.run));
            }
            if one.failure.is_none() && answered.is_none() {
                complaints.add(LOST, format!("{op} {:?}: its answer", one.kind));
            }
            for (what, count) in [("the message", asked), ("the answer", answered)] {
                if let Some(count) = count.filter(|count| **count > 1) {
                    complaints.add(DOUBLED, format!("{op} {:?}: {what}, {count} times", one.kind));
                }
            }
        }
        for (id, count) in &called {
            if *count > 1 || results.get(id) != Some(&1) {
                complaints.add(DOUBLED, format!("call {id}: {count} times, with {:?} results", results.get(id)));
            }
        }
        for run in self.runs.iter().filter(|run| !matches!(run.status.as_str(), "completed" | "failed" | "cancelled")) {
            complaints.add(UNFINISHED, format!("{} is {}", run.id, run.status));
        }
    }

    /// The bill is what the receipts and the model's own account come to, to the last digit. Answers its sum.
    pub(crate) fn check_bill(&self, book: &Value, asked: &[Asked], complaints: &mut Complaints) -> Result<Decimal> {
        let mut owed: BTreeMap<(String, String, String), Vec<Decimal>> = BTreeMap::new();
        let mut owe = |run: &str, call: &str, kind: &str, quantity: Decimal, price: Decimal, per: u64| {
            if !quantity.is_zero() {
                let exact = quantity * price / Decimal::from(per);
                let amount = exact.round_dp_with_strategy(AMOUNT_SCALE, RoundingStrategy::MidpointNearestEven);
                owed.entry((run.into(), call.into(), kind.into())).or_default().push(amount);
            }
        };
        let ops: HashMap<&str, &str> = self
            .messages
            .iter()
            .filter(|message| message.role == "user")
            .filter_map(|message| {
                let text = message.parts.as_array()?.iter().find_map(|part| part["text"].as_str())?;
                Some((message.run.as_deref()?, op_in(text)?))
            })
            .collect();
        // What the model has said to its end: what it was not done with is billed by nobody.
        let told: BTreeSet<(&str, usize)> =
            asked.iter().filter(|asked| asked.whole).map(|asked| (asked.op.as_str(), asked.step)).collect();
        for step in &self.steps {
            let prices = model_prices(book, &step.provider, &step.model);
            let [input, cached, output] = prices.context("a model without a price")?;
            let million = 1_000_000;
            owe(&step.run, "", "model_input_tokens", (step.input - step.cached).into(), input, million);
            owe(&step.run, "", "model_cached_input_tokens", step.cached.into(), cached, million);
            owe(&step.run, "", "model_output_tokens", step.output.into(), output, million);
            // And those tokens are the ones that the model said.
            let Some(op) = ops.get(step.run.as_str()) else {
                complaints.add(BILL, format!("run {} has a step and no message", step.run));
                continue;
            };
            let number = script::number(op).context("an operation's number")?;
            let said = script::tokens(number, step.step as usize);
            let billed = (step.input as u64, step.cached as u64, step.output as u64);
            if billed != (said.input, said.cached, said.output) || !told.contains(&(op, step.step as usize)) {
                complaints.add(BILL, format!("{op}, step {}: billed {billed:?}, the model said {said:?}", step.step));
            }
        }
        for call in &self.calls {
            let Some(receipt) = &call.receipt else { continue };
            let number = |field: &str| receipt[field].as_u64().with_context(|| format!("{field} of a receipt"));
            let price = |field: &str| decimal(&book["tool"][field]);
            let run = call.run.as_deref().unwrap_or_default();
            owe(run, &call.id, "tool_fuel", number("fuel_used")?.into(), price("fuel_per_billion")?, 1_000_000_000);
            let byte_us = u128::from(number("memory_peak_bytes")?) * u128::from(number("total_us")?);
            let byte_seconds = Decimal::from(byte_us) / Decimal::from(1_000_000);
            owe(run, &call.id, "tool_memory_byte_seconds", byte_seconds, price("memory_gib_second")?, 1 << 30);
        }
        let mut billed: BTreeMap<(String, String, String), Vec<Decimal>> = BTreeMap::new();
        let mut by_run: HashMap<&str, Decimal> = HashMap::new();
        for event in &self.events {
            let (run, call) = (event.run.clone().unwrap_or_default(), event.call.clone().unwrap_or_default());
            billed.entry((run, call, event.kind.clone())).or_default().push(event.amount.normalize());
            *by_run.entry(event.run.as_deref().unwrap_or_default()).or_default() += event.amount;
        }
        for amounts in owed.values_mut().chain(billed.values_mut()) {
            amounts.iter_mut().for_each(|amount| *amount = amount.normalize());
            amounts.sort();
        }
        for cause in owed.keys().chain(billed.keys()).collect::<BTreeSet<_>>() {
            let (owed, billed) = (owed.get(cause), billed.get(cause));
            if owed != billed {
                complaints.add(BILL, format!("{cause:?}: owed {owed:?}, billed {billed:?}"));
            }
        }
        for run in &self.runs {
            let events = by_run.get(run.id.as_str()).copied().unwrap_or_default();
            if run.cost != events {
                complaints.add(BILL, format!("run {} costs {}, its events {events}", run.id, run.cost));
            }
        }
        Ok(self.events.iter().map(|event| event.amount).sum())
    }

    /// An effect that came more than once came under one key; one whose call is told to have answered has come.
    /// Answers how many calls were answered.
    pub(crate) fn check_effects(&self, done: &[Done], ledger: &Ledger, complaints: &mut Complaints) -> usize {
        let mut answered = 0;
        let mut keys: HashMap<&str, &str> = HashMap::new();
        for (op, came) in ledger {
            let distinct: BTreeSet<&Option<String>> = came.iter().collect();
            if came.len() > 1 && (distinct.len() > 1 || distinct.contains(&None)) {
                complaints.add(EFFECTS, format!("{op} came {} times, under {distinct:?}", came.len()));
            }
            for key in came.iter().flatten() {
                let other = keys.insert(key, op);
                if other.is_some_and(|other| other != op) {
                    complaints.add(EFFECTS, format!("{op} and {other:?} came under one key"));
                }
            }
        }
        let kinds: HashMap<String, Kind> = done.iter().map(|done| (done.op(), done.kind)).collect();
        for call in self.calls.iter().filter(|call| call.tool == "effects") {
            let path = call.arguments["asks"][0]["path"].as_str().unwrap_or_default();
            let op = path.rsplit('/').next().unwrap_or_default();
            let came = ledger.get(op).map_or(0, Vec::len);
            answered += usize::from(call.was_answered());
            if call.was_answered() && came == 0 {
                complaints.add(EFFECTS, format!("{op}: its call {} answered, and nothing came", call.id));
            }
            if call.status == "outcome_unknown" && matches!(kinds.get(op), Some(Kind::Keyed | Kind::Both)) {
                complaints.add(EFFECTS, format!("{op}: its outcome is unknown, though it has a key"));
            }
        }
        answered
    }

    /// A note of each call that answered, once.
    pub(crate) fn check_notes(&self, complaints: &mut Complaints) {
        let mut stored: HashMap<&str, usize> = HashMap::new();
        self.notes.iter().for_each(|note| *stored.entry(note).or_default() += 1);
        let mut answered: HashMap<&str, usize> = HashMap::new();
        for call in self.calls.iter().filter(|call| call.tool == "notes" && call.status == "ok") {
            *answered.entry(call.arguments["text"].as_str().unwrap_or_default()).or_default() += 1;
        }
        for note in stored.keys().chain(answered.keys()).collect::<BTreeSet<_>>() {
            let (stored, answered) = (stored.get(note).copied(), answered.get(note).copied());
            if stored != Some(1) || answered != Some(1) {
                complaints.add(STORED, format!("{note}: stored {stored:?} times, answered {answered:?} times"));
            }
        }
    }

    pub(crate) fn steps(&self) -> usize {
        self.steps.len()
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }

    pub(crate) fn calls_that_came_to(&self, status: &str) -> usize {
        self.calls.iter().filter(|call| call.status == status).count()
    }
}

/// Of the entries of these fakes' models, which are exact.
fn model_prices(book: &Value, provider: &str, model: &str) -> Option<[Decimal; 3]> {
    let entries = book["models"].as_array()?;
    let entry = entries.iter().find(|entry| entry["provider"] == provider && entry["model"] == model)?;
    let price = |field: &str| decimal(&entry[field]).ok();
    Some([price("input_per_million")?, price("cached_input_per_million")?, price("output_per_million")?])
}

fn decimal(value: &Value) -> Result<Decimal> {
    Ok(Decimal::from_str_exact(value.as_str().context("a price in a string")?)?)
}

async fn rows(database: &mut PgConnection, statement: &'static str) -> Result<Vec<PgRow>> {
    Ok(sqlx::query(statement).fetch_all(database).await?)
}

fn all<T>(rows: &[PgRow], read: impl Fn(&PgRow) -> Result<T, sqlx::Error>) -> Result<Vec<T>> {
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}
