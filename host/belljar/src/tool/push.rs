//! `belljar tool push`: a component goes to a server.

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use bytes::Bytes;
use domain::ToolName;
use http::{HeaderValue, Method};
use serde_json::{Value, json};
use tool_api::Manifest;

use super::server::{Sent, Server};
use crate::{cli::PushArgs, private_file, serve};

pub(crate) fn push(args: PushArgs) -> anyhow::Result<ExitCode> {
    let name = match &args.name {
        Some(name) => name.parse()?,
        None => name_of(&args.file)?,
    };
    let component = super::read_component(&args.file)?;
    let sent = match super::read_manifest(args.manifest.as_deref())? {
        None => Sent { media_type: HeaderValue::from_static("application/wasm"), body: component },
        Some(manifest) => form(&component, &manifest)?,
    };
    let server = Server::find(&std::env::current_dir()?)?;
    let mut url = server.url.join(&format!("v1/tools/{name}/versions"))?;
    if let Some(label) = &args.label {
        url.query_pairs_mut().append_pair("label", label);
    }
    let version = serve::runtime()?.block_on(Box::pin(server.ask(Method::POST, url, Some(sent))))?;
    println!("{}", shown(&name, &version, server.url.as_str()));
    Ok(ExitCode::SUCCESS)
}

/// Component and manifest as `multipart/form-data` (RFC 7578).
fn form(component: &[u8], manifest: &Manifest) -> anyhow::Result<Sent> {
    // Random, so that no component holds it.
    let boundary = private_file::random_hex()?;
    let part = |name: &str, media_type: &str| {
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\nContent-Type: \
             {media_type}\r\n\r\n"
        )
    };
    let body = [
        part("manifest", "application/json").as_bytes(),
        &serde_json::to_vec(manifest)?,
        b"\r\n",
        part("component", "application/wasm").as_bytes(),
        component,
        format!("\r\n--{boundary}--\r\n").as_bytes(),
    ]
    .concat();
    let media_type = HeaderValue::try_from(format!("multipart/form-data; boundary={boundary}"))?;
    Ok(Sent { media_type, body: Bytes::from(body) })
}

/// What the server says of the new version, and what can be done with it.
fn shown(name: &ToolName, version: &Value, url: &str) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let functions = version["functions"].as_array().cloned().unwrap_or_default();
    let mut lines = vec![format!(
        "`{name}` version {} is {}: {}",
        version["number"],
        text(&version["status"]),
        text(&version["version"])
    )];
    for function in &functions {
        let description = text(&function["description"]);
        let first_line = description.lines().next().unwrap_or_default();
        lines.push(format!("  {}  {first_line}", text(&function["model_name"])));
    }
    let asks = version["requires"].as_object().is_some_and(|requires| !requires.is_empty());
    let mut binding = json!({"tool": name, "version": "latest"});
    if asks {
        lines.push(format!("\nIt asks for these grants:\n\n{:#}", version["requires"]));
        binding["grants"] = "as_requested".into();
    }
    let agent = json!({
        "name": format!("{name}-agent"),
        "system_prompt": "Use your tools.",
        "model": "demo",
        "tools": [binding],
    });
    lines.push(format!(
        "\nGive it to an agent, with an API key in KEY:\n\n  \
         curl -s {url}v1/agents -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' -d '{agent}'"
    ));
    lines.join("\n")
}

/// `target/.../my_tool.wasm` is `my-tool`.
fn name_of(file: &Path) -> anyhow::Result<ToolName> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.replace('_', "-").parse().with_context(|| format!("`{}` does not name a tool; give --name", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_goes_beside_the_component() {
        let manifest: Manifest = serde_json::from_value(json!({"functions": {"f": {"description": "d"}}})).unwrap();
        let Sent { media_type, body } = form(b"\0asm", &manifest).unwrap();
        let boundary = media_type.to_str().unwrap().split_once("boundary=").unwrap().1.to_owned();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(text.matches(&boundary).count(), 3, "{text}");
        assert!(text.contains("name=\"manifest\"") && text.contains("{\"functions\":"), "{text}");
        assert!(text.contains("application/wasm\r\n\r\n\0asm\r\n--"), "{text}");
    }

    #[test]
    fn a_file_names_its_tool() {
        for (file, name) in [
            ("target/wasm32-wasip2/release/my_tool.wasm", Some("my-tool")),
            ("calc.wasm", Some("calc")),
            ("2d.wasm", None),
            ("/", None),
        ] {
            assert_eq!(name_of(Path::new(file)).ok().map(|name| name.to_string()).as_deref(), name, "{file}");
        }
    }
}
