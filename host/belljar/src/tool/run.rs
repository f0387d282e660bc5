//! `belljar tool run`: one call in the same jar as the server's.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use domain::{CallId, FunctionName, Grants, Limits, SystemIds, TenantId, message::text_of};
use serde_json::{Value, json};
use tool_api::{CallContext, Finished, Inspection, ToolCall, ToolExecutor as _, ToolInspector as _, schema::Schema};

use crate::{
    cli::{RunArgs, compile_command},
    private_file, serve,
    shown::{duration_us, grouped, size},
    wire::{self, ExecutorSettings},
};

pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let grants = grants(&args.config)?;
    let component = super::read_component(&args.file)?;
    let arguments: Value = serde_json::from_str(&args.arguments).with_context(|| {
        format!("the arguments are not JSON; give an object, such as {} {} '{{}}'", args.file.display(), args.function)
    })?;
    let finished = serve::runtime()?.block_on(Box::pin(async {
        let cache_dir = tempfile::tempdir()?;
        let executor = wire::executor(ExecutorSettings {
            cache_dir: cache_dir.path().to_owned(),
            mac_key: private_file::random_bytes()?,
            compile_command: compile_command()?,
            concurrency: 1,
        })?;
        let inspection = executor.inspect(component).await?;
        let function = checked(&inspection, &args.function, &arguments)?;
        let id = CallId::new(&SystemIds);
        let call = ToolCall {
            id,
            tenant: TenantId::new(&SystemIds),
            tool: "tool".parse()?,
            artifact: inspection.artifact,
            function,
            arguments,
            grants: Arc::new(
                grants
                    .for_call(args.external_user_id.as_deref())
                    .context("a config value asks for `{external_user_id}`: give --external-user-id")?,
            ),
            limits: Limits::DEFAULT,
            context: CallContext {
                idempotency_key: id.to_string(),
                attempt: 1,
                external_user_id: args.external_user_id.clone(),
                ..Default::default()
            },
        };
        anyhow::Ok(executor.call(call).await?)
    }))?;
    if args.json {
        let both = json!({"outcome": finished.outcome, "receipt": finished.receipt});
        println!("{}", serde_json::to_string_pretty(&both)?);
    } else {
        println!("{}", shown(&finished));
    }
    Ok(if finished.outcome.is_error() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn grants(config: &[String]) -> anyhow::Result<Grants> {
    let mut values = BTreeMap::new();
    for text in config {
        let (key, value) = text.split_once('=').with_context(|| format!("--config `{text}`: use KEY=VALUE"))?;
        values.insert(key.to_owned(), value.to_owned());
    }
    let grants = Grants { config: values };
    grants.check()?;
    Ok(grants)
}

/// The function, if the component has it and the arguments fit it.
fn checked(inspection: &Inspection, name: &str, arguments: &Value) -> anyhow::Result<FunctionName> {
    let Some(function) = inspection.functions.iter().find(|function| function.name.as_str() == name) else {
        let names: Vec<&str> = inspection.functions.iter().map(|function| function.name.as_str()).collect();
        bail!("the component has no function `{name}`; it has {}", names.join(", "));
    };
    let wrong = Schema::of_arguments(&function.input_schema)?.check(arguments);
    if !wrong.is_empty() {
        let lines: Vec<String> = wrong
            .iter()
            .map(|field| match field.pointer.as_str() {
                "" => format!("\n  - {}", field.detail),
                pointer => format!("\n  - {pointer}: {}", field.detail),
            })
            .collect();
        bail!("the arguments do not fit `{name}`:{}", lines.concat());
    }
    Ok(function.name.clone())
}

/// Outcome and receipt, for people.
fn shown(finished: &Finished) -> String {
    let Finished { outcome, receipt } = finished;
    let mut lines = vec![match &outcome.code {
        Some(code) => format!("{} ({code})", outcome.status.as_str()),
        None => outcome.status.as_str().to_owned(),
    }];
    let text = text_of(&outcome.content);
    if !text.is_empty() {
        lines.push(text);
    }
    if let Some(structured) = &outcome.structured {
        lines.push(format!("{structured:#}"));
    }
    if let Some(trap) = &outcome.trap {
        lines.push(format!("{}: {}", trap.kind, trap.message));
        lines.extend(trap.frames.iter().map(|frame| format!("  in {frame}")));
    }
    lines.push(String::new());
    lines.push(format!(
        "receipt  {} fuel, {} of memory, {} (ready after {}), {} host calls, {}",
        grouped(receipt.fuel_used),
        size(receipt.memory_peak_bytes),
        duration_us(receipt.total_us),
        duration_us(receipt.instantiate_us),
        receipt.host_call_count,
        receipt.contract,
    ));
    lines.extend(receipt.denied.iter().map(|grant| format!("denied   {grant}")));
    lines.extend(receipt.logs.iter().map(|line| format!("log      {}: {}", line.level, line.text)));
    if receipt.logs_truncated {
        lines.push("log      ... more was cut off".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use tool_api::{ArtifactHash, Function};

    use super::*;

    #[test]
    fn arguments_are_checked_before_the_call() {
        let function = Function {
            name: "greet".parse().unwrap(),
            description: "Greets.".into(),
            input_schema: json!({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}),
            output_schema: None,
        };
        let inspection = Inspection {
            artifact: ArtifactHash::of(b""),
            functions: vec![function],
            requires: json!({}),
            contract: "belljar:tool@0.1.0".into(),
        };
        let told = |name, arguments| checked(&inspection, name, &arguments).map_err(|error| error.to_string());
        assert!(told("greet", json!({"name": "Ada"})).is_ok());
        assert!(told("greet", json!({"name": 1})).unwrap_err().contains("/name"));
        assert!(told("greet", json!({})).unwrap_err().contains("name"));
        assert_eq!(told("great", json!({})).unwrap_err(), "the component has no function `great`; it has greet");
    }

    #[test]
    fn config_is_a_key_and_a_value() {
        assert_eq!(grants(&["zone=a=b".into()]).unwrap().config["zone"], "a=b");
        assert!(grants(&["zone".into()]).is_err());
    }
}
