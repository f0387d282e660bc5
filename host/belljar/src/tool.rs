//! `belljar tool`: what a tool's author does.

mod embedded;
mod new;
mod push;
mod run;

use std::{fs, path::Path};

use anyhow::Context;

pub(crate) use self::{new::new, push::push, run::run};

fn read_component(path: &Path) -> anyhow::Result<bytes::Bytes> {
    Ok(fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?.into())
}
