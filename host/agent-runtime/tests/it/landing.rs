//! A commit whose answer is lost while it is still under way has taken place once.

use std::time::Duration;

use agent_runtime::{RunStatus, Settings};
use futures::StreamExt;
use kit::FakeExecutor;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::{
    house::{House, say},
    wire::Wire,
};

/// While a test holds the lock, the commit of a step goes on, in the server.
const SLOW_COMMITS: &str = "
    CREATE FUNCTION belljar.waits() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON belljar.step DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION belljar.waits();
    SELECT pg_advisory_lock(7)";

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
        sqlx::raw_sql(SLOW_COMMITS).execute(&mut superuser).await.unwrap();

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
