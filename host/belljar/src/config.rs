//! Every setting, typed. The only place that reads the environment.
//!
//! A flag wins over the environment, and that over a file. All mistakes are told at once.

mod sources;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use domain::{ExposeSecret, SecretString};
use gateway::RedisUrl;
use model_providers::{Endpoint, EndpointKind, KeyOf};
use tenancy::{
    DbSettings,
    seal::{Kek, MasterKey},
};
use zeroize::Zeroizing;

use crate::{
    cli::{DevArgs, MigrateArgs, RotateArgs, SealingArgs, ServeArgs},
    config::sources::Sources,
};

/// Shortest operator token: 128 bits, if they are random.
const OPERATOR_TOKEN_CHARS_MIN: usize = 32;
/// Connections to the database when nobody says: commits of 16 to 64 connections share a flush.
const DATABASE_CONNECTIONS_DEFAULT: u32 = 32;
/// More would be refused by a Postgres with its usual 100.
const DATABASE_CONNECTIONS_MAX: u32 = 1_000;
/// Connections of `keys rotate`: it works in one transaction after the other.
const ROTATE_CONNECTIONS: u32 = 2;
/// Runs at the same time when nobody says. A run that waits for a model costs little.
const CONCURRENT_RUNS_DEFAULT: usize = 256;
const CONCURRENT_RUNS_MAX: usize = 100_000;
/// Each reserves gigabytes of address space, of which a process has 128 TiB.
const CONCURRENT_TOOL_CALLS_MAX: u32 = 1_000;
/// Seconds for running work after a signal to stop: what supervisors usually allow.
const DRAIN_SECONDS_DEFAULT: u64 = 30;
const DRAIN_SECONDS_MAX: u64 = 3_600;

/// Said of what should be one.
const NO_REDIS_URL: &str = "is not the URL of a Redis: use redis://HOST:PORT, or rediss:// for TLS";

/// Lines of the log when nobody says. At `info` sqlx repeats each notice of the server.
const LOG_DEFAULT: &str = "info,sqlx=warn";

/// Model providers of the platform, by name.
pub type Platform = BTreeMap<String, Endpoint>;

/// What `serve` is started with.
pub struct Serve {
    pub listen: SocketAddr,
    pub operator_listen: SocketAddr,
    /// `None` only when the operator's listener is on loopback.
    pub operator_token: Option<SecretString>,
    pub database: DbSettings,
    pub master_key: MasterKey,
    pub cache_dir: PathBuf,
    pub concurrent_runs: usize,
    pub concurrent_tool_calls: u32,
    pub drain: Duration,
    pub allow_egress: Vec<SocketAddr>,
    /// What replicas share. `None`: each is on its own.
    pub redis_url: Option<SecretString>,
    pub platform: Platform,
    pub log: Log,
}

/// What `dev` is started with.
pub(crate) struct Dev {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) operator_listen: SocketAddr,
    pub(crate) seed: bool,
    pub(crate) allow_egress: Vec<SocketAddr>,
    /// Where compiled example tools may be; the first one that exists is taken.
    pub(crate) tools_dirs: Vec<PathBuf>,
    /// `None`: a private cluster.
    pub(crate) owner_database_url: Option<SecretString>,
    pub(crate) redis_url: Option<SecretString>,
    pub(crate) platform: Platform,
    pub(crate) log: Log,
}

/// What `keys rotate` is started with.
pub(crate) struct Rotate {
    pub(crate) database: DbSettings,
    pub(crate) master_key: MasterKey,
    pub(crate) log: Log,
}

/// What `migrate` is started with.
pub(crate) struct Migrate {
    pub(crate) owner_database_url: SecretString,
    pub(crate) check: bool,
}

/// Which lines of the log are written, and how.
#[derive(Debug, Clone)]
pub struct Log {
    /// As `tracing_subscriber::EnvFilter` reads it: `info`, `warn,gateway=debug`.
    pub filter: String,
    pub json: bool,
}

/// Settings that cannot be used. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[error("{}", listed(.0))]
pub struct Mistakes(Vec<String>);

fn listed(mistakes: &[String]) -> String {
    match mistakes {
        [mistake] => mistake.clone(),
        _ => format!("{} settings are wrong:\n  - {}", mistakes.len(), mistakes.join("\n  - ")),
    }
}

pub fn serve(args: &ServeArgs) -> anyhow::Result<Serve> {
    let flags = [
        ("role", args.role.clone()),
        ("listen", args.listen.clone()),
        ("operator_listen", args.operator_listen.clone()),
        ("operator_token_file", args.operator_token_file.clone()),
        ("database_url", args.database_url.clone()),
        ("database_connections", args.database_connections.clone()),
        ("cache_dir", args.cache_dir.clone()),
        ("concurrent_runs", args.concurrent_runs.clone()),
        ("concurrent_tool_calls", args.concurrent_tool_calls.clone()),
        ("drain_seconds", args.drain_seconds.clone()),
        ("allow_egress", (!args.allow_egress.is_empty()).then(|| args.allow_egress.join(","))),
        ("redis_url", args.redis_url.clone()),
    ];
    let flags = flags.into_iter().chain(sealing_flags(&args.sealing));
    let file = args.config.clone().or_else(|| variable("BELLJAR_CONFIG").map(PathBuf::from));
    Ok(read_serve(Sources::new(flags, variable, file), platform(), log())?)
}

pub(crate) fn rotate(args: &RotateArgs) -> anyhow::Result<Rotate> {
    let flags = [("database_url", args.database_url.clone())].into_iter().chain(sealing_flags(&args.sealing));
    let file = args.config.clone().or_else(|| variable("BELLJAR_CONFIG").map(PathBuf::from));
    Ok(read_rotate(Sources::new(flags, variable, file), log())?)
}

fn sealing_flags(args: &SealingArgs) -> [(&'static str, Option<String>); 3] {
    [
        ("master_key_file", args.master_key_file.clone()),
        ("key_encryption_key_file", args.key_encryption_key_file.clone()),
        ("previous_key_encryption_keys_file", args.previous_key_encryption_keys_file.clone()),
    ]
}

fn read_rotate(mut sources: Sources, log: Log) -> Result<Rotate, Mistakes> {
    let (url, master_key) = (read_database_url(&mut sources), read_master_key(&mut sources));
    match (url, master_key, sources.mistakes().as_slice()) {
        (Some(url), Some(master_key), []) => {
            let database = DbSettings { url, connections: ROTATE_CONNECTIONS };
            Ok(Rotate { database, master_key, log })
        }
        (.., mistakes) => Err(Mistakes(mistakes.to_vec())),
    }
}

fn read_database_url(sources: &mut Sources) -> Option<SecretString> {
    let url = sources.secret("database_url");
    match url.as_ref().map(|url| scheme_is_postgres(url.expose_secret())) {
        Some(true) => {}
        Some(false) => {
            let name = sources.name("database_url");
            sources.mistake(format!("{name} is not a database URL: use postgres://ROLE:PASSWORD@HOST:PORT/DATABASE"));
        }
        None => sources.mistake(
            "BELLJAR_DATABASE_URL is missing: set it to the URL of the application role, \
             postgres://belljar_app:PASSWORD@HOST:PORT/DATABASE"
                .into(),
        ),
    }
    url
}

fn read_serve(mut sources: Sources, platform: Platform, log: Log) -> Result<Serve, Mistakes> {
    if let Some(role) = sources.text("role")
        && role != "all"
    {
        let name = sources.name("role");
        sources.mistake(format!("{name} is `{role}`: `all` is the only role so far, others come later"));
    }
    let listen = sources.parsed("listen", "an address and a port, such as 127.0.0.1:8080");
    let operator_listen = sources
        .parsed("operator_listen", "an address and a port, such as 127.0.0.1:8081")
        .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8081)));
    let operator_token = sources.secret("operator_token");
    match &operator_token {
        None if !operator_listen.ip().is_loopback() => {
            let name = sources.name("operator_listen");
            sources.mistake(format!(
                "{name} is {operator_listen}, which others can reach: set BELLJAR_OPERATOR_TOKEN, or listen on 127.0.0.1"
            ));
        }
        Some(token) if token.expose_secret().chars().count() < OPERATOR_TOKEN_CHARS_MIN => {
            sources.mistake(format!(
                "the operator's token is shorter than {OPERATOR_TOKEN_CHARS_MIN} characters and may be guessed: use \
                 `openssl rand -hex 32`"
            ));
        }
        _ => {}
    }
    let database_url = read_database_url(&mut sources);
    let master_key = read_master_key(&mut sources);
    let cache_dir = sources.text("cache_dir").map(PathBuf::from);
    if cache_dir.is_none() {
        sources.mistake("BELLJAR_CACHE_DIR is missing: name a directory that nobody else may write".into());
    }
    let connections = sources.number("database_connections", 2, DATABASE_CONNECTIONS_MAX);
    let concurrent_runs = sources.number("concurrent_runs", 1, CONCURRENT_RUNS_MAX);
    let concurrent_tool_calls = sources.number("concurrent_tool_calls", 1, CONCURRENT_TOOL_CALLS_MAX);
    let drain = sources.number("drain_seconds", 1, DRAIN_SECONDS_MAX);
    let redis_url = sources.secret("redis_url");
    if redis_url.as_ref().is_some_and(|url| RedisUrl::new(url).is_err()) {
        let name = sources.name("redis_url");
        sources.mistake(format!("{name} {NO_REDIS_URL}"));
    }
    let allow_egress = sources.list("allow_egress", "addresses and ports, such as 10.0.0.7:443");
    let (Some(url), Some(master_key), Some(cache_dir), []) =
        (database_url, master_key, cache_dir, sources.mistakes().as_slice())
    else {
        return Err(Mistakes(sources.mistakes().clone()));
    };
    Ok(Serve {
        listen: listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080))),
        operator_listen,
        operator_token,
        database: DbSettings { url, connections: connections.unwrap_or(DATABASE_CONNECTIONS_DEFAULT) },
        master_key,
        cache_dir,
        concurrent_runs: concurrent_runs.unwrap_or(CONCURRENT_RUNS_DEFAULT),
        concurrent_tool_calls: concurrent_tool_calls.unwrap_or(tool_executor::CONCURRENCY_DEFAULT),
        drain: Duration::from_secs(drain.unwrap_or(DRAIN_SECONDS_DEFAULT)),
        allow_egress,
        redis_url,
        platform,
        log,
    })
}

fn read_master_key(sources: &mut Sources) -> Option<MasterKey> {
    let Some(text) = sources.secret("master_key") else {
        sources.mistake(
            "the master key is missing: set BELLJAR_MASTER_KEY or BELLJAR_MASTER_KEY_FILE to 64 hex digits, made once \
             with `openssl rand -hex 32` and kept safe"
                .into(),
        );
        return None;
    };
    let master_key = match parse_key(&text) {
        Ok(key) => MasterKey::new(*key),
        Err(reason) => {
            sources.mistake(format!("the master key {reason}: use 64 hex digits, from `openssl rand -hex 32`"));
            return None;
        }
    };
    read_keks(sources).map(|(current, previous)| master_key.with_keks(current, previous))
}

/// The key that seals data keys, and those that did before. Without the first, one derived from the master key.
fn read_keks(sources: &mut Sources) -> Option<(Option<Kek>, Vec<Kek>)> {
    let mut keks: Vec<Kek> = Vec::new();
    let mut read = |sources: &mut Sources, which: &str, text: &SecretString| match parse_key(text) {
        Ok(key) => {
            let kek = Kek::new(*key);
            if keks.iter().any(|known| known.id() == kek.id()) {
                sources.mistake(format!("{which} is given twice: name each key-encryption key once"));
            }
            keks.push(kek);
        }
        Err(reason) => {
            sources.mistake(format!("{which} {reason}: use 64 hex digits, from `openssl rand -hex 32`"));
        }
    };
    let before = sources.mistakes().len();
    let current = sources.secret("key_encryption_key");
    if let Some(text) = &current {
        read(sources, "the key-encryption key", text);
    }
    let previous = sources.secret("previous_key_encryption_keys");
    let previous = previous.as_ref().map(|text| text.expose_secret()).unwrap_or_default();
    let listed = previous.split([',', '\n']).map(str::trim).filter(|text| !text.is_empty());
    for (at, text) in (1..).zip(listed) {
        read(sources, &format!("the previous key-encryption key number {at}"), &SecretString::from(text));
    }
    if sources.mistakes().len() > before {
        return None;
    }
    let previous = keks.split_off(usize::from(current.is_some()));
    Some((keks.pop(), previous))
}

/// 64 hex digits that somebody drew.
pub(crate) fn parse_key(text: &SecretString) -> Result<Zeroizing<[u8; 32]>, String> {
    let text = text.expose_secret().trim();
    let mut bytes = Zeroizing::new([0; 32]);
    if text.len() != 64 {
        return Err(format!("has {} characters", text.chars().count()));
    }
    hex::decode_to_slice(text, &mut bytes[..]).map_err(|_| "has characters that are no hex digits".to_owned())?;
    if bytes.iter().all(|byte| *byte == bytes[0]) {
        return Err("is one byte, repeated".to_owned());
    }
    Ok(bytes)
}

pub(crate) fn dev(args: DevArgs) -> anyhow::Result<Dev> {
    let beside =
        std::env::current_exe()?.parent().and_then(|folder| folder.parent()).map(|target| target.join("guests"));
    let tools_dirs = match args.tools_dir {
        Some(dir) => vec![dir],
        None => beside.into_iter().chain([PathBuf::from("target/guests")]).collect(),
    };
    let owner_database_url = variable("DATABASE_URL").map(SecretString::from);
    if let Some(url) = &owner_database_url
        && !scheme_is_postgres(url.expose_secret())
    {
        let mistake = "DATABASE_URL is not a database URL: use postgres://OWNER:PASSWORD@HOST:PORT/DATABASE, or unset it \
                       to use a private Postgres";
        return Err(Mistakes(vec![mistake.into()]).into());
    }
    let redis_url = args.redis_url.or_else(|| variable("BELLJAR_REDIS_URL")).map(SecretString::from);
    if redis_url.as_ref().is_some_and(|url| RedisUrl::new(url).is_err()) {
        return Err(Mistakes(vec![format!("--redis-url, or BELLJAR_REDIS_URL, {NO_REDIS_URL}")]).into());
    }
    Ok(Dev {
        data_dir: args.data_dir,
        listen: args.listen,
        operator_listen: args.operator_listen,
        seed: !args.no_seed,
        allow_egress: args.allow_egress,
        tools_dirs,
        owner_database_url,
        redis_url,
        platform: platform(),
        log: log(),
    })
}

pub(crate) fn migrate(args: MigrateArgs) -> anyhow::Result<Migrate> {
    let file = args.config.or_else(|| variable("BELLJAR_CONFIG").map(PathBuf::from));
    let mut sources = Sources::new([("owner_database_url", args.database_url)], variable, file);
    let url = sources.secret("owner_database_url").or_else(|| variable("DATABASE_URL").map(SecretString::from));
    match (url, sources.mistakes().as_slice()) {
        (Some(owner_database_url), []) if scheme_is_postgres(owner_database_url.expose_secret()) => {
            Ok(Migrate { owner_database_url, check: args.check })
        }
        (_, []) => {
            let mistake = "the owner's database URL is missing, or is none: set BELLJAR_OWNER_DATABASE_URL to \
                           postgres://OWNER:PASSWORD@HOST:PORT/DATABASE";
            Err(Mistakes(vec![mistake.into()]).into())
        }
        (_, mistakes) => Err(Mistakes(mistakes.to_vec()).into()),
    }
}

/// Which server `tool push` speaks to, as far as the environment says.
pub(crate) fn server() -> (Option<String>, Option<SecretString>) {
    (variable("BELLJAR_URL"), variable("BELLJAR_API_KEY").map(SecretString::from))
}

/// A secret for `tool run`, from the variable that its `--secret` names.
pub(crate) fn secret_variable(name: &str) -> Option<SecretString> {
    variable(name).map(SecretString::from)
}

/// The platform's own providers: those that the environment has a key for. Their URLs are the operator's word. The names
/// are those of the providers' own clients.
fn platform() -> Platform {
    let providers = [
        ("openai", EndpointKind::Openai, "OPENAI_API_KEY", "OPENAI_BASE_URL"),
        ("anthropic", EndpointKind::Anthropic, "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
        ("gemini", EndpointKind::Gemini, "GEMINI_API_KEY", "GEMINI_BASE_URL"),
    ];
    let with_keys = providers.into_iter().filter_map(|(name, kind, key, base_url)| {
        let api_key = SecretString::from(variable(key)?);
        Some((name.to_owned(), Endpoint { kind, base_url: variable(base_url), api_key, key_of: KeyOf::Platform }))
    });
    with_keys.collect()
}

/// Where a test build ends itself: see `agent_runtime::fault`.
pub(crate) fn fault() -> Option<String> {
    variable("BELLJAR_FAULT")
}

pub(crate) fn log() -> Log {
    Log {
        filter: variable("BELLJAR_LOG").unwrap_or_else(|| LOG_DEFAULT.into()),
        json: variable("BELLJAR_LOG_FORMAT").is_some_and(|format| format == "json"),
    }
}

/// An empty variable is an absent one.
#[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn scheme_is_postgres(url: &str) -> bool {
    ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme))
}

#[cfg(test)]
mod tests;
