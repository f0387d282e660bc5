//! `belljar tool run`: one call in the same jar as the server's.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use domain::{CallId, FunctionName, Grants, Limits, SecretName, SystemIds, message::text_of};
use egress::Egress;
use serde_json::{Value, json};
use tool_api::{
    CallContext, Change, Finished, HostCall, Inspection, OpenSecret, Operation, Share, ToolCall, ToolExecutor as _,
    schema::Schema,
};

use super::local::{self, Jar, MemoryHost};
use crate::{
    cli::RunArgs,
    config, serve,
    shown::{duration_us, grouped, size},
};

/// Characters of a value that are shown of an entry.
const VALUE_CHARS_SHOWN: usize = 200;

pub(crate) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let grants = grants(&args)?;
    let secrets = secrets(&args.secret, &grants, config::secret_variable)?;
    let host = MemoryHost::new(entries(&args.entry)?);
    let component = super::read_component(&args.file)?;
    let arguments: Value = serde_json::from_str(&args.arguments).with_context(|| {
        format!(
            "the arguments are not JSON; give an object, such as: belljar tool run {} {} '{{}}'",
            args.file.display(),
            args.function
        )
    })?;
    let finished = serve::runtime()?.block_on(Box::pin(async {
        let jar = Jar::start(Egress::new(args.allow_egress.clone())?)?;
        let inspection = jar.inspect(component, super::read_manifest(args.manifest.as_deref())?).await?;
        let function = checked(&inspection, &args.function, &arguments)?;
        let id = CallId::new(&SystemIds);
        let call = ToolCall {
            id,
            tenant: jar.tenant,
            tool: "tool".parse()?,
            artifact: inspection.artifact,
            function,
            arguments,
            grants: Arc::new(
                grants
                    .for_call(args.external_user_id.as_deref())
                    .context("a grant asks for `{external_user_id}`: give --external-user-id")?,
            ),
            secrets: Arc::new(secrets),
            limits: Limits::DEFAULT,
            context: CallContext {
                idempotency_key: id.to_string(),
                attempt: 1,
                external_user_id: args.external_user_id.clone(),
                ..Default::default()
            },
            share: Share::default(),
            record: false,
        };
        anyhow::Ok(jar.executor.call(call, Arc::new(host)).await?)
    }))?;
    if args.json {
        let changes: Vec<Value> = finished.changes.iter().map(change_json).collect();
        let all = json!({"outcome": finished.outcome, "receipt": finished.receipt, "changes": changes});
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        println!("{}", shown(&finished));
    }
    Ok(if finished.outcome.is_error() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Of the file, and the config values of the command line.
fn grants(args: &RunArgs) -> anyhow::Result<Grants> {
    let mut grants: Grants = args.grants.as_deref().map(super::read_json).transpose()?.unwrap_or_default();
    for text in &args.config {
        let (key, value) = text.split_once('=').with_context(|| format!("--config `{text}`: use KEY=VALUE"))?;
        grants.config.insert(key.to_owned(), value.to_owned());
    }
    grants.check()?;
    Ok(grants)
}

/// The secrets that the grants name: each must be given.
fn secrets(
    given: &[String],
    grants: &Grants,
    variable: impl Fn(&str) -> Option<domain::SecretString>,
) -> anyhow::Result<BTreeMap<SecretName, OpenSecret>> {
    let mut secrets = BTreeMap::new();
    for text in given {
        let (name, from) = text.split_once('=').with_context(|| format!("--secret `{text}`: use NAME=VARIABLE"))?;
        let name: SecretName = name.parse()?;
        let value = variable(from).with_context(|| format!("the variable {from} of --secret {name} is not set"))?;
        let readable = grants.secrets.contains(&name);
        secrets.insert(name, OpenSecret { value, readable });
    }
    let missing: BTreeSet<&SecretName> =
        grants.secret_names().into_iter().filter(|name| !secrets.contains_key(*name)).collect();
    match missing.first() {
        Some(name) => bail!("the grants name the secret `{name}`: give --secret {name}=VARIABLE"),
        None => Ok(secrets),
    }
}

fn entries(given: &[String]) -> anyhow::Result<BTreeMap<(String, String), Bytes>> {
    let entry = |text: &String| {
        let (place, value) = text.split_once('=')?;
        let (namespace, key) = place.rsplit_once('/')?;
        Some(((namespace.to_owned(), key.to_owned()), Bytes::copy_from_slice(value.as_bytes())))
    };
    given.iter().map(|text| entry(text).with_context(|| format!("--entry `{text}`: use NAMESPACE/KEY=VALUE"))).collect()
}

/// The function, if the component has it and the arguments fit it.
fn checked(inspection: &Inspection, name: &str, arguments: &Value) -> anyhow::Result<FunctionName> {
    let function = local::function(inspection, name)?;
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
    let Finished { outcome, receipt, changes, .. } = finished;
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
    lines.extend(receipt.host_calls.iter().map(|call| format!("host     {}", host_call(call))));
    lines.extend(receipt.secrets_used.iter().map(|name| format!("secret   {name}")));
    lines.extend(changes.iter().map(|change| format!("entry    {}", change_line(change))));
    lines.extend(receipt.denied.iter().map(|grant| format!("denied   {grant}")));
    lines.extend(receipt.logs.iter().map(|line| format!("log      {}: {}", line.level, line.text)));
    if receipt.logs_truncated {
        lines.push("log      ... more was cut off".to_owned());
    }
    lines.join("\n")
}

/// One use of a capability, for people.
fn host_call(call: &HostCall) -> String {
    let target = call.target.as_ref().map(|target| format!(" {target}")).unwrap_or_default();
    let grant = call.grant.as_ref().map(|grant| format!(", by the grant `{grant}`")).unwrap_or_default();
    let error = call.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    format!(
        "{}.{}{target}, {} in, {} out, {}{grant}{error}",
        call.interface,
        call.function,
        size(call.bytes_in),
        size(call.bytes_out),
        duration_us(call.duration_us)
    )
}

fn change_line(change: &Change) -> String {
    let Change { namespace, key, operation, .. } = change;
    match operation {
        Operation::Set(value) => {
            let text: String = String::from_utf8_lossy(value).chars().take(VALUE_CHARS_SHOWN).collect();
            format!("{namespace}/{key} = {text} ({})", size(value.len() as u64))
        }
        Operation::Delete => format!("{namespace}/{key} is deleted"),
        Operation::Add(delta) => format!("{namespace}/{key} + {delta}"),
    }
}

fn change_json(change: &Change) -> Value {
    let Change { namespace, key, operation, .. } = change;
    let mut shown = json!({"namespace": namespace, "key": key});
    match operation {
        Operation::Set(value) => shown["set"] = String::from_utf8_lossy(value).into(),
        Operation::Delete => shown["delete"] = true.into(),
        Operation::Add(delta) => shown["add"] = (*delta).into(),
    }
    shown
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
            contract: "belljar:tool@1.0.0".into(),
        };
        let told = |name, arguments| checked(&inspection, name, &arguments).map_err(|error| error.to_string());
        assert!(told("greet", json!({"name": "Ada"})).is_ok());
        assert!(told("greet", json!({"name": 1})).unwrap_err().contains("/name"));
        assert!(told("greet", json!({})).unwrap_err().contains("name"));
        assert_eq!(told("great", json!({})).unwrap_err(), "the component has no function `great`; it has greet");
    }

    #[test]
    fn what_the_command_line_grants_is_read() {
        let args = |config: &str| RunArgs { config: vec![config.into()], ..RunArgs::default() };
        assert_eq!(grants(&args("zone=a=b")).unwrap().config["zone"], "a=b");
        assert!(grants(&args("zone")).is_err());
        let entries = entries(&["notes/ada/today=x=y".into()]).unwrap();
        assert_eq!(entries[&("notes/ada".to_owned(), "today".to_owned())], Bytes::from_static(b"x=y"));
        for bad in ["notes=x", "notes/today"] {
            assert!(super::entries(&[bad.into()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_secret_that_a_grant_names_must_be_given() {
        let grants: Grants = serde_json::from_value(json!({
            "http": [{"host": "a.example", "headers": [{"name": "x-key", "secret": "bound"}]}], "secrets": ["read"],
        }))
        .unwrap();
        let variable = |name: &str| (name == "SET").then(|| domain::SecretString::from("hunter2"));
        let read = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            secrets(&given, &grants, variable).map_err(|error| error.to_string())
        };
        assert!(read(&["bound=SET"]).unwrap_err().contains("--secret read=VARIABLE"));
        assert!(read(&["bound=UNSET", "read=SET"]).unwrap_err().contains("UNSET"));
        let opened = read(&["bound=SET", "read=SET"]).unwrap();
        let readable: Vec<bool> = opened.values().map(|secret| secret.readable).collect();
        assert_eq!(readable, [false, true]);
    }
}
