//! `migrate` and `serve` as an operator runs them: a database with passwords, an owner that is no superuser.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use private_postgres::{Cluster, Durability, Options, SUPERUSER};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::process::{Dev, Running, belljar, client};

const DATABASE: &str = "jar";
const OWNER: &str = "belljar_owner";
const APPLICATION: &str = "belljar_app";
const OWNER_PASSWORD: &str = "owners-password";
const APPLICATION_PASSWORD: &str = "applications-password";
const OPERATOR_TOKEN: &str = "0123456789abcdef0123456789abcdef";
const MASTER_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

async fn execute(url: &str, statements: &[&str]) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    for statement in statements {
        connection.execute(AssertSqlSafe((*statement).to_owned())).await.unwrap();
    }
    connection.close().await.unwrap();
}

/// A cluster that asks everybody but its superuser for a password, with an empty database.
async fn cluster(home: &Path) -> Cluster {
    let options = Options { data_dir: home.join("given"), durability: Durability::Throwaway, settings: Vec::new() };
    let cluster = Cluster::start(options).unwrap();
    let superuser = cluster.url(SUPERUSER, "postgres");
    let mut connection = PgConnection::connect(&superuser).await.unwrap();
    let rules: String = sqlx::query_scalar("SHOW hba_file").fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    fs::write(rules, format!("local all {SUPERUSER} trust\nlocal all all scram-sha-256\n")).unwrap();
    let role = format!("CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD '{OWNER_PASSWORD}'");
    let database = format!("CREATE DATABASE {DATABASE} OWNER {OWNER}");
    execute(&superuser, &["SELECT pg_reload_conf()", &role, &database]).await;
    cluster
}

fn url(cluster: &Cluster, role: &str, password: &str) -> String {
    let mut url = url::Url::parse(&cluster.url(role, DATABASE)).unwrap();
    url.set_password(Some(password)).unwrap();
    url.to_string()
}

/// `belljar migrate`.
fn migrate(home: &Path, owner_url: &str, more: &[&str]) -> (bool, String) {
    let mut command = belljar(home);
    told(command.arg("migrate").args(more).env("BELLJAR_OWNER_DATABASE_URL", owner_url).output().unwrap())
}

fn told(output: Output) -> (bool, String) {
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(words).unwrap())
}

/// `belljar serve`: secrets in the environment, the rest in a file.
fn serve(home: &Path, database_url: &str) -> Command {
    let settings = "listen = \"127.0.0.1:0\"\noperator_listen = \"127.0.0.1:0\"\ncache_dir = \"compiled\"\n\
                    database_connections = 4\ndrain_seconds = 5\nallow_egress = [\"10.0.0.7:443\"]\n";
    fs::write(home.join("belljar.toml"), settings).unwrap();
    let mut command = belljar(home);
    command
        .args(["serve", "--config", "belljar.toml"])
        .env("BELLJAR_DATABASE_URL", database_url)
        .env("BELLJAR_MASTER_KEY", MASTER_KEY)
        .env("BELLJAR_OPERATOR_TOKEN", OPERATOR_TOKEN)
        .env("BELLJAR_LOG_FORMAT", "json");
    command
}

/// Where it listens, tenants' address first, as its log says.
fn addresses(home: &Path) -> Option<(String, String)> {
    let log = fs::read_to_string(home.join("log")).unwrap();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.map(|line| line["fields"].clone()).find(|fields| fields["message"] == "listening")?;
    let url = |name: &str| Some(format!("http://{}", line[name].as_str()?));
    Some((url("tenant")?, url("operator")?))
}

#[tokio::test]
async fn an_operator_migrates_serves_and_lets_a_tenant_in() {
    let home = tempfile::tempdir().unwrap();
    let (home, cluster) = (home.path(), cluster(home.path()).await);
    let owner = url(&cluster, OWNER, OWNER_PASSWORD);

    let (fine, words) = migrate(home, &owner, &["--check"]);
    assert!(!fine && words.contains("migrations are missing: run `belljar migrate`"), "{words}");
    let (fine, words) = migrate(home, &owner, &[]);
    assert!(fine && words.contains("from version 0 to "), "{words}");
    let (fine, words) = migrate(home, &owner, &["--check"]);
    assert!(fine && words.contains("is at this program's version"), "{words}");
    let (fine, words) = migrate(home, &owner, &[]);
    assert!(fine, "once more changes nothing: {words}");
    execute(&owner, &[&format!("ALTER ROLE {APPLICATION} PASSWORD '{APPLICATION_PASSWORD}'")]).await;
    let application = url(&cluster, APPLICATION, APPLICATION_PASSWORD);
    let (fine, words) = migrate(home, &application, &["--check"]);
    assert!(fine, "whoever may read the schema may ask: {words}");

    // The walls need a role that they hold.
    for (role, password) in [(OWNER, OWNER_PASSWORD), (SUPERUSER, "")] {
        let (fine, words) = told(serve(home, &url(&cluster, role, password)).output().unwrap());
        let refusal = format!("the role `{role}` could read other tenants' rows");
        assert!(!fine && words.contains(&refusal) && words.contains("belljar_app"), "{words}");
        assert!(!words.contains(OWNER_PASSWORD), "{words}");
    }

    let mut server = Running::start(&mut serve(home, &application), home);
    let (tenants, operators) = server.wait(home, async || addresses(home)).await;
    let http = client();
    assert_eq!(http.get(format!("{operators}/readyz")).send().await.unwrap().status().as_u16(), 200);
    let post = async |path: &str, token: &str, body: Value| {
        http.post(format!("{operators}/operator/v1{path}")).bearer_auth(token).json(&body).send().await.unwrap()
    };
    assert_eq!(post("/tenants", "another token", json!({"name": "ada"})).await.status().as_u16(), 401);
    let made = post("/tenants", OPERATOR_TOKEN, json!({"name": "ada"})).await;
    assert_eq!(made.status().as_u16(), 201);
    let tenant: Value = made.json().await.unwrap();
    let path = format!("/tenants/{}/api-keys", tenant["id"].as_str().unwrap());
    let minted = post(&path, OPERATOR_TOKEN, json!({"name": "first", "scopes": ["admin"]})).await;
    assert_eq!(minted.status().as_u16(), 201);
    let key: Value = minted.json().await.unwrap();
    let ask = http.get(format!("{tenants}/v1/tenant")).bearer_auth(key["key"].as_str().unwrap());
    let answer = ask.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let seen: Value = answer.json().await.unwrap();
    assert_eq!((&seen["id"], &seen["name"]), (&tenant["id"], &json!("ada")));

    let log = || fs::read_to_string(home.join("log")).unwrap();
    assert_eq!(server.stop(), Some(0), "{}", log());
    for secret in [APPLICATION_PASSWORD, MASTER_KEY, OPERATOR_TOKEN, key["key"].as_str().unwrap()] {
        assert!(!log().contains(secret), "a secret is in the log: {}", log());
    }
    assert!(log().contains("all work has ended"), "{}", log());
    cluster.stop().unwrap();
}

/// `belljar keys rotate`, in the settings of `serve`.
fn rotate(home: &Path, database_url: &str, current: &str, previous: &str) -> (bool, String) {
    let mut command = belljar(home);
    command
        .args(["keys", "rotate"])
        .env("BELLJAR_DATABASE_URL", database_url)
        .env("BELLJAR_MASTER_KEY", MASTER_KEY)
        .env("BELLJAR_KEY_ENCRYPTION_KEY", current)
        .env("BELLJAR_PREVIOUS_KEY_ENCRYPTION_KEYS", previous);
    told(command.output().unwrap())
}

#[tokio::test]
async fn an_operator_changes_the_key_that_seals_data_keys() {
    let home = tempfile::tempdir().unwrap();
    let (home, cluster) = (home.path(), cluster(home.path()).await);
    let owner = url(&cluster, OWNER, OWNER_PASSWORD);
    let (fine, words) = migrate(home, &owner, &[]);
    assert!(fine, "{words}");
    execute(&owner, &[&format!("ALTER ROLE {APPLICATION} PASSWORD '{APPLICATION_PASSWORD}'")]).await;
    let application = url(&cluster, APPLICATION, APPLICATION_PASSWORD);
    let [first, second] = ["0a", "0b"].map(|byte| byte.repeat(31) + "ff");

    // A tenant with a secret, sealed under the key that is derived from the master key.
    let mut server = Running::start(&mut serve(home, &application), home);
    let (tenants, operators) = server.wait(home, async || addresses(home)).await;
    let http = client();
    let post = async |path: &str, body: Value| -> Value {
        let request = http.post(format!("{operators}/operator/v1{path}")).bearer_auth(OPERATOR_TOKEN).json(&body);
        request.send().await.unwrap().json().await.unwrap()
    };
    let tenant = post("/tenants", json!({"name": "ada"})).await;
    let path = format!("/tenants/{}/api-keys", tenant["id"].as_str().unwrap());
    let key = post(&path, json!({"name": "all", "scopes": ["admin"]})).await["key"].as_str().unwrap().to_owned();
    let put = async |tenants: &str, name: &str| {
        let request = http.put(format!("{tenants}/v1/secrets/{name}")).bearer_auth(&key);
        request.json(&json!({"value": "hunter2"})).send().await.unwrap().status().as_u16()
    };
    assert_eq!(put(&tenants, "token").await, 201);
    assert_eq!(server.stop(), Some(0));

    for (current, previous, expected) in [
        (&first, "", "1 data keys were sealed under the present key-encryption key, 0 were so already"),
        (&first, "", "0 data keys were sealed under the present key-encryption key, 1 were so already"),
        (&second, first.as_str(), "1 data keys were sealed under the present key-encryption key, 0 were so already"),
    ] {
        let (fine, words) = rotate(home, &application, current, previous);
        assert!(fine && words.contains(expected), "{words}");
        assert!(!words.contains(&first[..16]) && !words.contains(&second[..16]), "{words}");
    }
    let (fine, words) = rotate(home, &application, &first, "");
    assert!(!fine && words.contains("previous_key_encryption_keys"), "{words}");
    let mut command = serve(home, &application);
    let mut server = Running::start(command.env("BELLJAR_KEY_ENCRYPTION_KEY", &second), home);
    let (tenants, _) = server.wait(home, async || addresses(home)).await;
    assert_eq!(put(&tenants, "token").await, 200);
    assert_eq!(server.stop(), Some(0));
    let log = fs::read_to_string(home.join("log")).unwrap();
    assert!(!log.contains(&second) && !log.contains("hunter2"), "{log}");
    cluster.stop().unwrap();
}

#[tokio::test]
async fn serve_before_migrate_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let (home, cluster) = (home.path(), cluster(home.path()).await);
    let role = format!("CREATE ROLE {APPLICATION} LOGIN PASSWORD '{APPLICATION_PASSWORD}'");
    execute(&url(&cluster, OWNER, OWNER_PASSWORD), &[&role]).await;
    let application = url(&cluster, APPLICATION, APPLICATION_PASSWORD);
    let (fine, words) = told(serve(home, &application).output().unwrap());
    assert!(!fine && words.contains("run `belljar migrate`"), "{words}");
    let (fine, words) = told(serve(home, &url(&cluster, APPLICATION, "wrong")).output().unwrap());
    assert!(!fine && words.contains("password"), "{words}");
    cluster.stop().unwrap();
}

#[tokio::test]
async fn dev_uses_the_database_that_it_is_given_and_leaves_it_running() {
    let home = tempfile::tempdir().unwrap();
    let (home, cluster) = (home.path(), cluster(home.path()).await);
    let owner = url(&cluster, OWNER, OWNER_PASSWORD);
    for start in ["first", "second"] {
        let dev = Dev::start_with(home, |command| command.env("DATABASE_URL", &owner)).await;
        assert_eq!(dev.state["owner_database_url"], owner);
        assert_eq!(dev.state["superuser_database_url"], Value::Null);
        let turn = json!({"message": "/calc__evaluate {\"expression\": \"6*7\"}"});
        let answer: Value = dev.post("/v1/agents/assistant/chat", turn).send().await.unwrap().json().await.unwrap();
        assert!(answer["message"]["content"].as_str().unwrap().contains("42"), "{start}: {answer}");
        let application = dev.state["database_url"].as_str().unwrap().to_owned();
        assert_eq!(dev.stop(), Some(0));
        execute(&application, &["SELECT 1"]).await;
    }
    assert!(!home.join(".belljar/postgres").exists(), "no cluster of its own");
    cluster.stop().unwrap();
}
