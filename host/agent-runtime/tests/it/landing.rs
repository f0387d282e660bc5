//! A commit whose answer is lost while it is still under way has taken place once; one that fails has not at all.

use std::time::Duration;

use agent_runtime::{RunStatus, Settings};
use domain::{Kind, Problem};
use futures::StreamExt;
use kit::FakeExecutor;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    budgets::led,
    house::{House, say},
    puppet::{Act, Puppet},
    wire::Wire,
};

/// While a test holds the lock, the commit of a row of this table goes on, in the server.
async fn slow_commits(superuser: &mut PgConnection, table: &str) {
    let statements = format!(
        "CREATE FUNCTION belljar.waits() RETURNS trigger LANGUAGE plpgsql
         AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON belljar.{table} DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION belljar.waits();
         SELECT pg_advisory_lock(7)"
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(superuser).await.unwrap();
}

/// Until somebody waits in the server for this.
async fn waited_for(superuser: &mut PgConnection, event: &str) {
    let waiting = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = '{event}')"
    );
    let waits = async {
        while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(waiting.clone())).fetch_one(&mut *superuser).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(9), waits).await.unwrap();
}

#[tokio::test]
async fn a_commit_that_is_under_way_when_its_answer_is_lost_is_waited_for() {
    // A step, and a step with the end of its run.
    for (text, steps) in [("/desk__run {\"n\": 1}", 2), ("hello", 1)] {
        let executor = FakeExecutor::echo();
        let mut house = House::new(executor.clone()).await;
        let mut superuser = house.db.superuser().await;
        let wire = Wire::to(&house.db.url()).await;
        house.db.db = wire.db(&house.db.url()).await;
        let ada = house.tenant("ada").await;
        // Nothing but the commit and whoever looks for it wants the run's row.
        let process = house.another(Settings { heartbeat: Duration::from_secs(3600), ..Settings::default() });
        slow_commits(&mut superuser, "step").await;

        let run = process.start(&ada, say(text)).await.unwrap().run;
        waited_for(&mut superuser, "advisory").await;
        wire.cut();
        waited_for(&mut superuser, "transactionid").await;
        sqlx::raw_sql("SELECT pg_advisory_unlock(7)").execute(&mut superuser).await.unwrap();

        let events = process.follow(&ada, run, Default::default()).await.unwrap();
        let kinds: Vec<String> = events.map(|event| event.unwrap().kind).collect().await;
        let turn = process.wait(&ada, run, Duration::from_secs(30)).await.unwrap();
        assert_eq!((turn.run.status, turn.run.error, turn.run.steps), (RunStatus::Completed, None, steps), "{text}");
        assert_eq!(kinds.last().map(String::as_str), Some("run.completed"), "{text}");
        assert_eq!(kinds.iter().filter(|kind| *kind == "step.completed").count(), steps as usize, "{text}");
        assert_eq!((executor.calls().len(), turn.tool_calls.len()), (steps as usize - 1, steps as usize - 1));
        assert_eq!(house.owed(&ada).await, turn.run.cost.amount, "{text}");
    }
}

#[tokio::test]
async fn a_turn_whose_commit_fails_has_asked_the_model_for_nothing_that_stays() {
    let puppet = Puppet::start().await;
    puppet.then([Act::Say("nobody hears this")]).then([Act::Say("hello")]);
    let house = House::with_model(FakeExecutor::echo(), Settings::default(), &puppet).await;
    let ada = house.tenant("ada").await;
    house.agent(&ada, json!({"name": "led", "system_prompt": "", "model": "puppet/x"})).await;
    let mut superuser = house.db.superuser().await;
    slow_commits(&mut superuser, "run").await;

    let (asked, failed) = tokio::join!(
        async {
            waited_for(&mut superuser, "advisory").await;
            puppet.was_asked(1).await;
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event = 'advisory';
                       SELECT pg_advisory_unlock(7); DROP TRIGGER waits ON belljar.run";
            sqlx::raw_sql(end).execute(&mut superuser).await.unwrap();
            puppet.asked().len()
        },
        house.runtime.start(&ada, led("are you there?")),
    );
    assert_eq!(asked, 1, "it is asked while the turn becomes durable");
    assert_eq!(failed.unwrap_err().kind(), Kind::Unavailable);
    for table in ["conversation", "run", "message", "run_event", "usage_event"] {
        let rows = format!("SELECT count(*) FROM belljar.{table}");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(rows)).fetch_one(&mut superuser).await.unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    let turn = house.talk(&ada, led("are you there?")).await;
    assert_eq!(turn.message.unwrap().content, "hello");
}

#[tokio::test]
async fn a_turn_that_becomes_durable_slowly_stays_with_who_accepted_it() {
    let puppet = Puppet::start().await;
    puppet.then([Act::Say("hello")]);
    let settings = Settings { heartbeat: Duration::from_millis(1), ..Settings::default() };
    let house = House::with_model(FakeExecutor::echo(), settings, &puppet).await;
    let ada = house.tenant("ada").await;
    house.agent(&ada, json!({"name": "led", "system_prompt": "", "model": "puppet/x"})).await;
    let mut superuser = house.db.superuser().await;
    slow_commits(&mut superuser, "run").await;

    let (_, started) = tokio::join!(
        async {
            waited_for(&mut superuser, "advisory").await;
            puppet.was_asked(1).await;
            // By now many heartbeats have found no run to keep.
            sqlx::raw_sql("SELECT pg_advisory_unlock(7)").execute(&mut superuser).await.unwrap();
        },
        house.runtime.start(&ada, led("are you there?")),
    );
    let run = started.unwrap().run;
    let events = house.runtime.follow(&ada, run, Default::default()).await.unwrap();
    let kinds = events.map(|event| event.unwrap().kind).collect::<Vec<String>>();
    let kinds = tokio::time::timeout(Duration::from_secs(30), kinds).await.unwrap();
    assert!(!kinds.contains(&"run.resumed".to_owned()), "{kinds:?}");
    assert_eq!(kinds.last().map(String::as_str), Some("run.completed"));
    assert_eq!(puppet.asked().len(), 1);
}
