//! `belljar tool`: what a tool's author does.

mod embedded;
mod local;
mod new;
mod push;
mod replay;
mod run;
mod server;

use std::{fs, path::Path};

use anyhow::Context;
use serde::de::DeserializeOwned;
use tool_api::Manifest;

pub(crate) use self::{new::new, push::push, replay::replay, run::run};

fn read_component(path: &Path) -> anyhow::Result<bytes::Bytes> {
    Ok(fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?.into())
}

fn read_manifest(path: Option<&Path>) -> anyhow::Result<Option<Manifest>> {
    path.map(read_json).transpose()
}

fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| anyhow::anyhow!("`{}` cannot be used: {error}", path.display()))
}
