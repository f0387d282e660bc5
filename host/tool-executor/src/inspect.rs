//! What an upload turns out to be: checked, compiled, and asked to describe itself in a sealed store without grants.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use domain::{Limits, TenantId};
use serde_json::Value;
use tool_api::{
    ArtifactHash, ComponentSource, Function, InspectError, Inspection, NoHost, Rejection, Share, ToolInspector, Upload,
    inspection::{DESCRIPTION_BYTES_MAX, FUNCTIONS_MAX},
    schema::{SCHEMA_BYTES_MAX, Schema},
};

use crate::{
    Executor, Jar,
    cache::Loaded,
    call::{Ended, ended},
    capabilities::logging::locked,
    check,
    contract::{
        Tool,
        toolbox::{self, Description},
    },
    outcome::{self, Limit},
    sandbox::{CallView, Sandbox},
};

/// What a component may consume while it describes itself: it only has to list constants.
const DESCRIBE_LIMITS: Limits =
    Limits { fuel: 200_000_000, memory_bytes: 64 << 20, deadline_ms: 5_000, ..Limits::DEFAULT };
/// Bytes of `requires`: it is shown to people.
const REQUIRES_BYTES_MAX: usize = 64 << 10;

#[async_trait]
impl ToolInspector for Executor {
    async fn inspect(&self, upload: Upload, source: &dyn ComponentSource) -> Result<Inspection, InspectError> {
        let tool = self.jar.admit(&upload, source).await?;
        // Schemas of a stranger are compiled here: no work for a thread that others wait for.
        let described = match &tool.tool {
            Tool::Typed(typed) => {
                let typed = Arc::clone(typed);
                tokio::task::spawn_blocking(move || typed.describe(upload.manifest.as_ref()))
            }
            _ if upload.manifest.is_some() => {
                let words = "the component describes itself through its toolbox; send it without a manifest";
                return Err(Rejection::new("manifest.not_needed", words).into());
            }
            _ => {
                let description = self.jar.describe(&tool, upload.tenant).await?;
                tokio::task::spawn_blocking(move || read(description))
            }
        };
        let (functions, requires) = described.await.map_err(|error| InspectError::Failed(error.into()))??;
        Ok(Inspection { artifact: upload.artifact, functions, requires, contract: tool.contract.clone() })
    }
}

impl Jar {
    /// The code of an upload, compiled in the tenant's turn where this host does not have it.
    async fn admit(&self, upload: &Upload, source: &dyn ComponentSource) -> Result<Arc<Loaded>, InspectError> {
        let known = || async { self.find(upload.artifact).await.map_err(|error| InspectError::Failed(error.into())) };
        if !upload.first
            && let Some(tool) = known().await?
        {
            return Ok(tool);
        }
        let _turn = self.compilations.turn(upload.tenant, Share::default()).await;
        if upload.first
            && let Some(took) = self.compile_time(upload.artifact).await?
        {
            // Its turn is held meanwhile: what is behind it waits as it would for a compilation. What it is answered then,
            // a refusal too, comes from the code that is there.
            tokio::time::sleep(took).await;
        }
        if let Some(tool) = known().await? {
            return Ok(tool);
        }
        let component = source.component().await.map_err(|error| InspectError::Failed(error.into()))?;
        let component = component.ok_or_else(|| InspectError::Failed("the component was deleted meanwhile".into()))?;
        let bytes = component.clone();
        let artifact = tokio::task::spawn_blocking(move || check::check(&bytes).map(|()| ArtifactHash::of(&bytes)))
            .await
            .map_err(|error| InspectError::Failed(error.into()))??;
        if artifact != upload.artifact {
            return Err(InspectError::Failed("the component's bytes are not those of its hash".into()));
        }
        self.find_or_compile(artifact, &component).await
    }

    async fn describe(&self, tool: &Loaded, tenant: TenantId) -> Result<Description, InspectError> {
        let _place = self.place(tenant, Share::default()).await.map_err(|busy| InspectError::Failed(busy.into()))?;
        let limits = DESCRIBE_LIMITS;
        let (started, time) = (Instant::now(), Duration::from_millis(limits.deadline_ms));
        let view = CallView { deadline_unix_ms: self.clock.now().plus(time).unix_ms(), ..CallView::default() };
        let sandbox = Sandbox::new(&limits, view, Arc::new(NoHost), self.clock.clone(), started, started + time);
        let mut store =
            sandbox.into_store(&self.engine, limits.fuel).map_err(|error| InspectError::Failed(error.into()))?;
        let seat = self.cores.seat(tenant, Share::default());
        let ended = ended(&mut store, seat, time, async |store| tool.tool.describe(store).await)
            .await
            .map_err(|error| InspectError::Failed(error.into()))?;
        let outcome = match ended {
            Ended::Answered(description) => return Ok(description),
            Ended::Failed(error) => {
                let (_, _, last_words) = locked(&store.data().log).finish();
                outcome::of_error(&error, last_words, &limits)
            }
            Ended::TimedOut => outcome::of_limit(Limit::Deadline, &limits),
        };
        Err(Rejection::new(
            "toolbox.describe_failed",
            format!("`describe` failed: {}; it runs without any grant and lists the functions", outcome.for_model()),
        )
        .into())
    }
}

/// A description as functions and `requires`.
fn read(description: Description) -> Result<(Vec<Function>, Value), Rejection> {
    let count = description.functions.len();
    if count > FUNCTIONS_MAX {
        let words = format!("the toolbox has {count} functions; a tool has at most {FUNCTIONS_MAX}");
        return Err(Rejection::new("toolbox.too_many_functions", words));
    }
    if count == 0 {
        return Err(Rejection::new("toolbox.bad_function", "the toolbox has no function; give it at least one"));
    }
    let functions = description.functions.into_iter().map(function).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    if let Some(twice) = functions.iter().find(|function| !names.insert(function.name.as_str())) {
        let words = format!("the function `{}` is there twice; rename one", twice.name);
        return Err(Rejection::new("toolbox.duplicate_function", words));
    }
    Ok((functions, requires(description.requires)))
}

fn function(raw: toolbox::Function) -> Result<Function, Rejection> {
    let name: domain::FunctionName = raw
        .name
        .parse()
        .map_err(|error: domain::names::BadName| Rejection::new("toolbox.bad_function", error.to_string()))?;
    if raw.description.len() > DESCRIPTION_BYTES_MAX {
        return Err(Rejection::new(
            "toolbox.bad_function",
            format!(
                "the description of `{name}` has {} bytes; use at most {DESCRIPTION_BYTES_MAX}",
                raw.description.len()
            ),
        ));
    }
    let input_schema = schema(&name, "input-schema", &raw.input_schema, Schema::of_arguments)?;
    let output_schema =
        raw.output_schema.map(|text| schema(&name, "output-schema", &text, Schema::parse)).transpose()?;
    Ok(Function { name, description: raw.description, input_schema, output_schema })
}

fn schema<E: std::fmt::Display>(
    function: &domain::FunctionName,
    which: &str,
    text: &str,
    parse: impl FnOnce(&Value) -> Result<Schema, E>,
) -> Result<Value, Rejection> {
    let bad = |words: String| Rejection::new("toolbox.bad_schema", format!("the {which} of `{function}`: {words}"));
    if text.len() > SCHEMA_BYTES_MAX {
        return Err(bad(format!("it has {} bytes; use at most {SCHEMA_BYTES_MAX}", text.len())));
    }
    let value: Value = serde_json::from_str(text).map_err(|error| bad(format!("it is not JSON: {error}")))?;
    parse(&value).map_err(|error| bad(error.to_string()))?;
    Ok(value)
}

/// Grants that the tool asks for. What is not a JSON object of a fair size asks for nothing.
fn requires(text: Option<String>) -> Value {
    text.filter(|text| text.len() <= REQUIRES_BYTES_MAX)
        .and_then(|text| serde_json::from_str(&text).ok())
        .filter(Value::is_object)
        .unwrap_or_else(|| Value::Object(Default::default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(name: &str, input_schema: &str) -> toolbox::Function {
        toolbox::Function {
            name: name.into(),
            description: "what it does".into(),
            input_schema: input_schema.into(),
            output_schema: None,
        }
    }

    fn refusal(functions: Vec<toolbox::Function>) -> Option<String> {
        read(Description { functions, requires: None }).err().map(|rejection| rejection.code)
    }

    #[test]
    fn a_description_is_read_or_refused() {
        const OBJECT: &str = r#"{"type":"object"}"#;
        let code = |functions| refusal(functions).unwrap_or_default();
        assert_eq!(code(vec![raw("add", OBJECT), raw("sub", OBJECT)]), "");
        assert_eq!(code(vec![]), "toolbox.bad_function");
        assert_eq!(code(vec![raw("a__b", OBJECT)]), "toolbox.bad_function");
        assert_eq!(code(vec![raw("add", OBJECT), raw("add", OBJECT)]), "toolbox.duplicate_function");
        assert_eq!(code(vec![raw("add", "{")]), "toolbox.bad_schema");
        assert_eq!(code(vec![raw("add", r#"{"type":"string"}"#)]), "toolbox.bad_schema");
        assert_eq!(
            code((0..=FUNCTIONS_MAX).map(|n| raw(&format!("f{n}"), OBJECT)).collect()),
            "toolbox.too_many_functions"
        );
        let long = toolbox::Function { description: "x".repeat(DESCRIPTION_BYTES_MAX + 1), ..raw("add", OBJECT) };
        assert_eq!(code(vec![long]), "toolbox.bad_function");
        let output = toolbox::Function { output_schema: Some("[".into()), ..raw("add", OBJECT) };
        assert_eq!(code(vec![output]), "toolbox.bad_schema");
    }

    #[test]
    fn requires_is_an_object_or_nothing() {
        assert_eq!(requires(Some(r#"{"http":[]}"#.into())), json!({"http": []}));
        for nothing in [None, Some("[]".into()), Some("{".into()), Some("\"x\"".repeat(REQUIRES_BYTES_MAX))] {
            assert_eq!(requires(nothing), json!({}));
        }
    }
}
