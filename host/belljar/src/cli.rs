//! The commands, and what their words mean.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{config, dev, keys, migrate, serve, tool};

/// The hidden command that compiles one component, in a process that may be killed.
const COMPILE_COMMAND: &str = "compile-component";

/// Agents that use sealed WebAssembly tools, for many tenants.
#[derive(Debug, Parser)]
#[command(name = "belljar", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything here: a private Postgres, example tools, two agents and a key.
    Dev(DevArgs),
    /// Serve in production. Every setting is a flag, an environment variable BELLJAR_NAME or a line of a TOML file.
    Serve(ServeArgs),
    /// Bring the database to this version, as the role that owns it.
    Migrate(MigrateArgs),
    /// The key that seals the tenants' data keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Write, try and upload tools.
    #[command(subcommand)]
    Tool(ToolCommand),
    /// Compile one component (used by the program itself).
    #[command(name = COMPILE_COMMAND, hide = true)]
    CompileComponent,
}

/// Uses the Postgres programs on this machine, or the database of DATABASE_URL (a URL of a role that owns it and may
/// create roles). Answers with the built-in demo model, or with a real one when OPENAI_API_KEY,
/// ANTHROPIC_API_KEY or GEMINI_API_KEY is set.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Where the database, the keys and dev.json are kept.
    #[arg(long, value_name = "DIR", default_value = dev::DATA_DIR_DEFAULT)]
    pub(crate) data_dir: PathBuf,
    /// Address of the API. Port 0 takes a free one and writes it to dev.json.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Address of the operator's API, health and metrics.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8081")]
    pub(crate) operator_listen: SocketAddr,
    /// Make the tenant and its key, but no tools and no agents.
    #[arg(long)]
    pub(crate) no_seed: bool,
    /// A private address that tenants' URLs may reach. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) allow_egress: Vec<SocketAddr>,
    /// A Redis in which several servers share rate limits and tell each other of runs. Or BELLJAR_REDIS_URL.
    #[arg(long, value_name = "URL")]
    pub(crate) redis_url: Option<String>,
    /// Where the compiled example tools are.
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) tools_dir: Option<PathBuf>,
}

/// Texts, not values: `config` reads all of them, so that all mistakes are told at once.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// A TOML file with settings, named as the flags with `_` for `-`.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What this process hosts. `all` is the only role so far.
    #[arg(long, value_name = "ROLE")]
    pub role: Option<String>,
    /// Address of the API. [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Address of the operator's API, health and metrics. [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub operator_listen: Option<String>,
    /// A file with the operator's token. Or BELLJAR_OPERATOR_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub operator_token_file: Option<String>,
    /// The database, as the application role. Better in BELLJAR_DATABASE_URL: other users see a process's flags.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Connections to the database at most, beside one that listens. [default: 32]
    #[arg(long, value_name = "NUMBER")]
    pub database_connections: Option<String>,
    #[command(flatten)]
    pub sealing: SealingArgs,
    /// Where compiled tools are kept: a directory that nobody else may write.
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// Runs that this process drives at the same time. [default: 256]
    #[arg(long, value_name = "NUMBER")]
    pub concurrent_runs: Option<String>,
    /// Tool calls that this process runs at the same time. [default: 64]
    #[arg(long, value_name = "NUMBER")]
    pub concurrent_tool_calls: Option<String>,
    /// Seconds that running work is given when the process is told to stop. [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub drain_seconds: Option<String>,
    /// A private address that tenants' URLs may reach. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub allow_egress: Vec<String>,
    /// A Redis in which replicas share rate limits and tell each other of runs. With a password, better in
    /// BELLJAR_REDIS_URL: other users see a process's flags.
    #[arg(long, value_name = "URL")]
    pub redis_url: Option<String>,
}

/// The keys under which secrets are sealed. Their texts are in files or in the environment, never in a flag.
#[derive(Debug, Default, Args)]
pub struct SealingArgs {
    /// A file with the master key, 64 hex digits. Or BELLJAR_MASTER_KEY.
    #[arg(long, value_name = "FILE")]
    pub master_key_file: Option<String>,
    /// A file with the key that seals the tenants' data keys, 64 hex digits. Or BELLJAR_KEY_ENCRYPTION_KEY. [default: one
    /// derived from the master key]
    #[arg(long, value_name = "FILE")]
    pub key_encryption_key_file: Option<String>,
    /// A file with the keys that did so before, one a line. Or BELLJAR_PREVIOUS_KEY_ENCRYPTION_KEYS, separated by commas.
    #[arg(long, value_name = "FILE")]
    pub previous_key_encryption_keys_file: Option<String>,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Seal every tenant's data key under the present key-encryption key. Servers may run meanwhile.
    Rotate(RotateArgs),
}

/// Give every server the new key and the previous ones first, then rotate, then take the previous ones away. Interrupted,
/// it goes on where it was when it is started again.
#[derive(Debug, Default, Args)]
pub(crate) struct RotateArgs {
    /// A TOML file with settings, named as the flags with `_` for `-`.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The database, as the application role. Better in BELLJAR_DATABASE_URL: other users see a process's flags.
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    #[command(flatten)]
    pub(crate) sealing: SealingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// A TOML file with `owner_database_url`.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The database, as the role that owns it. Or BELLJAR_OWNER_DATABASE_URL, or DATABASE_URL.
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Change nothing; exit with 1 when migrations are missing.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Subcommand)]
enum ToolCommand {
    /// Make a folder with a new tool in Rust and the SDK it needs.
    New {
        /// Lower-case letters, digits and `-`, at most 30.
        name: String,
    },
    /// Call one function of a component here, in the same jar as the server's, without a server.
    Run(RunArgs),
    /// Upload a component to a server.
    Push(PushArgs),
    /// Run a build on what a recorded call was given, offline, and tell what differs. Exits with 1 when something does.
    Replay(ReplayArgs),
}

#[derive(Debug, Default, Args)]
pub(crate) struct RunArgs {
    /// The component, a .wasm file.
    pub(crate) file: PathBuf,
    /// One of its functions.
    pub(crate) function: String,
    /// Its arguments, a JSON object.
    #[arg(value_name = "JSON")]
    pub(crate) arguments: String,
    /// A config value that the tool may read. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) config: Vec<String>,
    /// A file with the grants of the call, JSON as in a binding: `{"http": [{"host": "api.example.com"}]}`.
    #[arg(long, value_name = "FILE")]
    pub(crate) grants: Option<PathBuf>,
    /// A secret that the grants name, from an environment variable. May be repeated.
    #[arg(long, value_name = "NAME=VARIABLE")]
    pub(crate) secret: Vec<String>,
    /// An entry of the key-value store before the call; the key is what follows the last `/`. May be repeated.
    #[arg(long, value_name = "NAMESPACE/KEY=VALUE")]
    pub(crate) entry: Vec<String>,
    /// A private address that the tool may reach. May be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) allow_egress: Vec<SocketAddr>,
    /// A file with the manifest of a component with plain typed exports, JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// The end user for whom the call is made.
    #[arg(long, value_name = "ID")]
    pub(crate) external_user_id: Option<String>,
    /// Print outcome and receipt as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The server and the key are taken from BELLJAR_URL and BELLJAR_API_KEY, else from the .belljar/dev.json of this folder
/// or one above it.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The component, a .wasm file.
    pub(crate) file: PathBuf,
    /// The tool's name. [default: the file's name, with `-` for `_`]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A label for people, such as a version number.
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// A file with the manifest of a component with plain typed exports, JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
}

/// The recording comes from the server, found as by `tool push`, or from a file.
#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The recorded call, `call_...`. Not needed with --recording.
    #[arg(value_name = "CALL", required_unless_present = "recording")]
    pub(crate) call: Option<String>,
    /// The build to try, a .wasm file.
    #[arg(long, value_name = "FILE")]
    pub(crate) wasm: PathBuf,
    /// What `GET /v1/tool-calls/{id}/recording` answered, in a file.
    #[arg(long, value_name = "FILE", conflicts_with = "call")]
    pub(crate) recording: Option<PathBuf>,
    /// A file with the manifest of a component with plain typed exports, JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// Print the comparison as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads the command line, does what it says, and turns an error into words and an exit code.
pub fn main() -> ExitCode {
    // Before anything else: the compile child needs neither a runtime nor settings.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == COMPILE_COMMAND) {
        return tool_executor::compile::child_main();
    }
    let done = match Cli::parse().command {
        Command::Dev(args) => config::dev(args).and_then(dev::main),
        Command::Serve(args) => config::serve(&args).and_then(serve::main),
        Command::Migrate(args) => config::migrate(args).and_then(migrate::main),
        Command::Keys(KeysCommand::Rotate(args)) => config::rotate(&args).and_then(keys::rotate),
        Command::Tool(ToolCommand::New { name }) => tool::new(&name),
        Command::Tool(ToolCommand::Run(args)) => tool::run(args),
        Command::Tool(ToolCommand::Push(args)) => tool::push(args),
        Command::Tool(ToolCommand::Replay(args)) => tool::replay(args),
        Command::CompileComponent => return tool_executor::compile::child_main(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("belljar: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// How to start the compile child: this program again.
pub fn compile_command() -> anyhow::Result<Vec<OsString>> {
    Ok(vec![std::env::current_exe()?.into_os_string(), COMPILE_COMMAND.into()])
}

/// What a person types to start this program from any folder.
pub(crate) fn me() -> String {
    match std::env::args().next() {
        Some(name) if !name.contains('/') => name,
        _ => std::env::current_exe().map_or_else(|_| "belljar".to_owned(), |path| path.display().to_string()),
    }
}

/// An error and its causes. A cause whose words its effect has quoted already is not told again.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(|cause| cause.to_string()).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        effect if effect.contains(&cause) => told,
        effect => format!("{effect}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("disk full").context("cannot write: disk full").context("no dev.json");
        assert_eq!(told(&error), "no dev.json: cannot write: disk full");
    }
}
