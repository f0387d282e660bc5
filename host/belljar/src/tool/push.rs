//! `belljar tool push`: a component goes to a server.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use domain::{ExposeSecret, SecretString, ToolName};
use egress::{ChosenBy, Egress, Request};
use futures::TryStreamExt;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::{Value, json};
use url::Url;

use crate::{
    cli::PushArgs,
    config,
    dev::{self, DevFile},
    serve,
};

/// A large component takes a minute or two to compile.
const ANSWER_SECONDS_MAX: u64 = 300;
/// Longest answer that is read: a version lists at most 128 functions with their schemas.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Where to push to.
struct Server {
    url: Url,
    key: SecretString,
}

pub(crate) fn push(args: PushArgs) -> anyhow::Result<ExitCode> {
    let name = match &args.name {
        Some(name) => name.parse()?,
        None => name_of(&args.file)?,
    };
    let component = super::read_component(&args.file)?;
    let server = find_server(&std::env::current_dir()?)?;
    let mut url = server.url.join(&format!("v1/tools/{name}/versions"))?;
    if let Some(label) = &args.label {
        url.query_pairs_mut().append_pair("label", label);
    }
    let mut headers = HeaderMap::new();
    let mut key = HeaderValue::try_from(format!("Bearer {}", server.key.expose_secret()))
        .context("the API key has characters that no key has")?;
    key.set_sensitive(true);
    headers.insert(AUTHORIZATION, key);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/wasm"));
    let request = Request {
        method: Method::POST,
        url: url.into(),
        headers,
        body: component,
        // Who types the command chose the server.
        chosen_by: ChosenBy::Operator,
        first_byte: Duration::from_secs(ANSWER_SECONDS_MAX),
        between_bytes: Duration::from_secs(ANSWER_SECONDS_MAX),
        body_bytes_max: ANSWER_BYTES_MAX,
    };
    let (status, answer) = serve::runtime()?.block_on(Box::pin(async {
        let answer = Egress::new(Vec::new())?.send(request).await?;
        let chunks: Vec<bytes::Bytes> = answer.body.try_collect().await?;
        anyhow::Ok((answer.status, serde_json::from_slice::<Value>(&chunks.concat()).unwrap_or_default()))
    }))?;
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    if !status.is_success() {
        let detail = text("detail");
        match text("code") {
            code if code.is_empty() => bail!("the server answered {status}; is {} a Belljar?", server.url),
            code => bail!("{detail} ({code})"),
        }
    }
    println!("{}", shown(&name, &answer, server.url.as_str()));
    Ok(ExitCode::SUCCESS)
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
    let agent = json!({
        "name": format!("{name}-agent"),
        "system_prompt": "Use your tools.",
        "model": "demo",
        "tools": [{"tool": name, "version": "latest"}],
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

/// From the environment, and what it does not say from the nearest `dev.json`.
fn find_server(from: &Path) -> anyhow::Result<Server> {
    let (url, key) = config::server();
    let file = match (&url, &key) {
        (Some(_), Some(_)) => None,
        _ => nearest_dev_file(from),
    };
    let missing = "no server is known here: start `belljar dev` in this folder or one above it, or set BELLJAR_URL and \
                   BELLJAR_API_KEY";
    let url = url.or_else(|| file.as_ref().map(|file| file.base_url.clone())).context(missing)?;
    let key = key.or_else(|| file.map(|file| SecretString::from(file.api_key))).context(missing)?;
    // Without the slash the last segment of a path would be replaced.
    let url = Url::parse(&format!("{}/", url.trim_end_matches('/'))).with_context(|| format!("`{url}` is no URL"))?;
    Ok(Server { url, key })
}

fn nearest_dev_file(from: &Path) -> Option<DevFile> {
    from.ancestors()
        .map(|folder: &Path| -> PathBuf { folder.join(dev::DATA_DIR_DEFAULT).join(dev::DEV_FILE) })
        .find_map(|path| DevFile::read(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_nearest_dev_file_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        assert!(nearest_dev_file(&inner).is_none());
        std::fs::create_dir_all(root.path().join(".belljar")).unwrap();
        let file = DevFile {
            base_url: "http://127.0.0.1:1".into(),
            operator_url: "http://127.0.0.1:2".into(),
            api_key: "bj_test_x".into(),
            operator_token: "t".into(),
            tenant_id: domain::TenantId::from(uuid::Uuid::nil()),
            database_url: "postgres://a".into(),
            owner_database_url: "postgres://b".into(),
            superuser_database_url: None,
        };
        std::fs::write(root.path().join(".belljar/dev.json"), serde_json::to_string(&file).unwrap()).unwrap();
        assert_eq!(nearest_dev_file(&inner).unwrap().base_url, "http://127.0.0.1:1");
    }
}
