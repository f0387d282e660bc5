//! Where a setting comes from: a flag, the environment, a file.

use std::{borrow::Cow, fmt::Display, path::PathBuf, str::FromStr};

use domain::SecretString;
use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format, Toml},
    value::{Dict, Map, Value},
};

/// Every setting that a file or the environment may have.
const SETTINGS: [&str; 20] = [
    "role",
    "listen",
    "operator_listen",
    "operator_token",
    "operator_token_file",
    "database_url",
    "owner_database_url",
    "database_connections",
    "master_key",
    "master_key_file",
    "key_encryption_key",
    "key_encryption_key_file",
    "previous_key_encryption_keys",
    "previous_key_encryption_keys_file",
    "cache_dir",
    "concurrent_runs",
    "concurrent_tool_calls",
    "drain_seconds",
    "allow_egress",
    "redis_url",
];

/// Texts of one origin. Not parsed: `12e5...` is a key before it is a number.
struct Texts {
    origin: &'static str,
    texts: Vec<(&'static str, String)>,
}

impl Provider for Texts {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let texts = self.texts.iter().map(|(key, text)| ((*key).to_owned(), Value::from(text.as_str()))).collect();
        Ok(Profile::Default.collect(texts))
    }
}

const FLAG: &str = "flag";
const ENVIRONMENT: &str = "environment";

/// Settings in layers, and what is wrong with them so far.
pub(super) struct Sources {
    figment: Figment,
    mistakes: Vec<String>,
}

impl Sources {
    pub(super) fn new(
        flags: impl IntoIterator<Item = (&'static str, Option<String>)>,
        variable: impl Fn(&str) -> Option<String>,
        file: Option<PathBuf>,
    ) -> Sources {
        let mut sources = Sources { figment: Figment::new(), mistakes: Vec::new() };
        if let Some(file) = file {
            sources.add_file(file);
        }
        let texts = SETTINGS.iter().filter_map(|key| Some((*key, variable(&variable_name(key))?))).collect();
        sources.add(Texts { origin: ENVIRONMENT, texts });
        let texts = flags.into_iter().filter_map(|(key, text)| Some((key, text?))).collect();
        sources.add(Texts { origin: FLAG, texts });
        sources
    }

    fn add(&mut self, provider: impl Provider) {
        self.figment = std::mem::take(&mut self.figment).merge(provider);
    }

    fn add_file(&mut self, path: PathBuf) {
        let shown = path.display().to_string();
        if !path.is_file() {
            return self.mistake(format!("the settings file `{shown}` does not exist"));
        }
        let toml = Toml::file_exact(path);
        match toml.data() {
            Err(error) => self.mistake(format!("the settings file `{shown}` cannot be read: {error}")),
            Ok(profiles) => {
                for key in profiles.values().flat_map(Dict::keys).filter(|key| !SETTINGS.contains(&key.as_str())) {
                    self.mistake(format!("`{key}` in `{shown}` is no setting; there are {}", SETTINGS.join(", ")));
                }
                self.add(toml);
            }
        }
    }

    pub(super) fn mistake(&mut self, words: String) {
        self.mistakes.push(words);
    }

    pub(super) fn mistakes(&self) -> &Vec<String> {
        &self.mistakes
    }

    /// What the person who set it calls it.
    pub(super) fn name(&self, key: &str) -> String {
        match self.figment.find_metadata(key).map(|metadata| &metadata.name) {
            Some(Cow::Borrowed(FLAG)) => format!("--{}", key.replace('_', "-")),
            Some(Cow::Borrowed(ENVIRONMENT)) | None => variable_name(key),
            Some(_) => format!("`{key}` in the settings file"),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        let value = self.figment.find_value(key).ok()?;
        let text = plain(&value);
        if text.is_none() {
            let name = self.name(key);
            self.mistake(format!("{name} is not a plain value"));
        }
        text
    }

    pub(super) fn parsed<T: FromStr>(&mut self, key: &str, what: &str) -> Option<T> {
        let text = self.text(key)?;
        let parsed = text.parse().ok();
        if parsed.is_none() {
            let name = self.name(key);
            self.mistake(format!("{name} is `{text}`: use {what}"));
        }
        parsed
    }

    pub(super) fn number<T: FromStr + PartialOrd + Display + Copy>(&mut self, key: &str, min: T, max: T) -> Option<T> {
        let what = format!("a number from {min} to {max}");
        let number = self.parsed(key, &what)?;
        if !(min..=max).contains(&number) {
            let name = self.name(key);
            self.mistake(format!("{name} is {number}: use {what}"));
        }
        Some(number)
    }

    /// Separated by commas, or a list in the file.
    pub(super) fn list<T: FromStr>(&mut self, key: &str, what: &str) -> Vec<T> {
        let text = self.text(key).unwrap_or_default();
        let mut items = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.parse() {
                Ok(item) => items.push(item),
                Err(_) => {
                    let name = self.name(key);
                    self.mistake(format!("{name} has `{item}`: use {what}"));
                }
            }
        }
        items
    }

    /// A secret, or the text of the file that `KEY_file` names. Its text is in no mistake.
    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        let file_key = format!("{key}_file");
        match (self.text(key), self.text(&file_key)) {
            (Some(_), Some(_)) => {
                let (name, other) = (self.name(key), self.name(&file_key));
                self.mistake(format!("{name} and {other} are both set: keep one"));
                None
            }
            (Some(text), None) => Some(SecretString::from(text)),
            (None, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(text) => Some(SecretString::from(text.trim())),
                Err(error) => {
                    let name = self.name(&file_key);
                    self.mistake(format!("{name} is `{path}`, which cannot be read: {error}"));
                    None
                }
            },
            (None, None) => None,
        }
    }
}

fn variable_name(key: &str) -> String {
    format!("BELLJAR_{}", key.to_ascii_uppercase())
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        // TOML's numbers are signed.
        Value::Num(..) => value.to_i128().map(|number| number.to_string()),
        Value::Array(_, items) => Some(items.iter().map(plain).collect::<Option<Vec<_>>>()?.join(",")),
        _ => None,
    }
}
