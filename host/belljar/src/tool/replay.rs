//! `belljar tool replay`: another build on what a recorded call was given, offline.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, bail};
use egress::Egress;
use http::Method;
use serde_json::Value;
use tool_api::{
    Share, ToolExecutor as _,
    recorded::{Comparison, RecordedCall, Replay},
};

use super::{
    local::{self, Jar},
    server::Server,
};
use crate::{cli::ReplayArgs, serve, shown::grouped};

/// Characters of a value in a line.
const VALUE_CHARS_SHOWN: usize = 300;

pub(crate) fn replay(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let component = super::read_component(&args.wasm)?;
    let manifest = super::read_manifest(args.manifest.as_deref())?;
    let replay = serve::runtime()?.block_on(Box::pin(async {
        let recorded = recorded(&args).await?;
        if recorded.given.recording.truncated {
            bail!("the recording is not whole: the call was given more than is kept; record one that does less");
        }
        // Nothing is sent in a replay: what is not in the recording is missing.
        let jar = Jar::start(Egress::new(Vec::new())?)?;
        let inspection = jar.inspect(component, manifest).await?;
        local::function(&inspection, recorded.function.as_str())?;
        let call = recorded.again(jar.tenant, inspection.artifact, Share::default());
        let replayed = jar.executor.replay(call, Arc::new(recorded.given.recording.clone())).await?;
        anyhow::Ok(recorded.compare(inspection.artifact, replayed))
    }))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&replay)?);
    } else {
        println!("{}", shown(&replay));
    }
    Ok(if same(&replay) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// From the file, else from the server.
async fn recorded(args: &ReplayArgs) -> anyhow::Result<RecordedCall> {
    if let Some(path) = &args.recording {
        return super::read_json(path);
    }
    let call: domain::CallId = args.call.as_deref().unwrap_or_default().parse().context("CALL is an id, `call_...`")?;
    let server = Server::find(&std::env::current_dir()?)?;
    let url = server.url.join(&format!("v1/tool-calls/{call}/recording"))?;
    let answer = server.ask(Method::GET, url, None).await?;
    serde_json::from_value(answer).context("the server's recording is of another release")
}

/// Another build takes other fuel: that alone is no difference in what it does.
fn same(replay: &Replay) -> bool {
    replay.output.same && replay.host_calls.same && replay.missing.is_empty()
}

/// The comparison as a table, for people.
fn shown(replay: &Replay) -> String {
    let verdict = if same(replay) { "the same" } else { "different" };
    let mut lines = vec![format!("{} on {}: {verdict}", replay.call, replay.version), String::new()];
    let (recorded, replayed) = (replay.fuel.recorded, replay.fuel.replayed);
    lines.push(row("", "recorded", "replayed"));
    lines.push(row("fuel", &grouped(recorded), &format!("{} ({})", grouped(replayed), change(recorded, replayed))));
    differences(&mut lines, "output", &replay.output);
    differences(&mut lines, "host calls", &replay.host_calls);
    lines.extend(replay.missing.iter().map(|asked| row("not recorded", "", asked)));
    lines.join("\n")
}

fn differences(lines: &mut Vec<String>, what: &str, comparison: &Comparison) {
    if comparison.same {
        lines.push(row(what, "the same", "the same"));
        return;
    }
    lines.push(row(what, "", ""));
    for difference in &comparison.differences {
        let at = if difference.at.is_empty() { "/" } else { &difference.at };
        let value = |value: &Option<Value>| value.as_ref().map_or_else(|| "nothing".to_owned(), one_line);
        lines.push(row(&format!("  {at}"), &value(&difference.recorded), &value(&difference.replayed)));
    }
}

fn row(what: &str, recorded: &str, replayed: &str) -> String {
    format!("{what:<24}  {recorded:<36}  {replayed}").trim_end().to_owned()
}

fn one_line(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), |text| text.escape_debug().to_string());
    text.chars().take(VALUE_CHARS_SHOWN).collect()
}

/// In per cent, to a tenth.
fn change(from: u64, to: u64) -> String {
    if from == to {
        return "the same".to_owned();
    }
    let permille = (i128::from(to) - i128::from(from)) * 1000 / i128::from(from.max(1));
    let sign = if to < from { '-' } else { '+' };
    format!("{sign}{}.{} %", permille.abs() / 10, permille.abs() % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuel_changes_in_per_cent() {
        for (from, to, shown) in
            [(1000, 1000, "the same"), (1000, 1234, "+23.4 %"), (1000, 999, "-0.1 %"), (0, 5, "+500.0 %")]
        {
            assert_eq!(change(from, to), shown, "{from} {to}");
        }
    }

    #[test]
    fn a_row_is_one_line_whatever_it_holds() {
        let text = one_line(&Value::from("a\nb\u{1b}[31m"));
        assert!(!text.contains(['\n', '\u{1b}']), "{text}");
        assert_eq!(row("fuel", "1", "2").lines().count(), 1);
    }
}
