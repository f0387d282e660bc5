//! Reads the catalog and fails on any table, constraint, function or role that breaks a rule.

use kit::TestDb;
use sqlx::PgConnection;

/// Tables that belong to no tenant, on purpose.
const GLOBAL: [&str; 4] = ["_sqlx_migrations", "plan", "price_book", "operator_idempotency"];

async fn offenders(connection: &mut PgConnection, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).bind(GLOBAL.map(String::from).to_vec()).fetch_all(connection).await.unwrap()
}

/// Tables, partitions and child tables of our schema that must have a wall.
macro_rules! tenant_tables {
    ($rest:literal) => {
        concat!(
            "WITH t AS (SELECT c.oid, c.relname::text AS name, c.relrowsecurity, c.relforcerowsecurity, c.relkind
             FROM pg_class c WHERE c.relnamespace = 'belljar'::regnamespace AND c.relkind IN ('r', 'p')
             AND c.relname <> ALL ($1)), first AS (SELECT t.oid, a.attnum FROM t JOIN pg_attribute a
             ON a.attrelid = t.oid AND a.attname = 'tenant_id' AND a.attnotnull) ",
            $rest
        )
    };
}

#[tokio::test]
async fn every_tenant_table_has_its_wall() {
    let db = TestDb::start().await;
    let mut catalog = db.superuser().await;
    let count: i64 = sqlx::query_scalar(tenant_tables!("SELECT count(*) FROM t"))
        .bind(GLOBAL.map(String::from).to_vec())
        .fetch_one(&mut catalog)
        .await
        .unwrap();
    assert!(count >= 19, "the query finds the tables: {count}");
    for (rule, query) in [
        ("has a tenant_id", tenant_tables!("SELECT name FROM t WHERE oid NOT IN (SELECT oid FROM first)")),
        ("enables and forces row security", tenant_tables!("SELECT name FROM t WHERE NOT (relrowsecurity AND relforcerowsecurity)")),
        (
            "has a policy for the application role with USING and WITH CHECK on the tenant",
            tenant_tables!(
                "SELECT name FROM t WHERE NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid AND p.polcmd = '*'
                 AND p.polroles = ARRAY['belljar_app'::regrole::oid]
                 AND pg_get_expr(p.polqual, p.polrelid) LIKE '(tenant_id = %current_tenant())'
                 AND pg_get_expr(p.polwithcheck, p.polrelid) LIKE '(tenant_id = %current_tenant())')"
            ),
        ),
        (
            "has no other policy that lets the application role in",
            tenant_tables!(
                "SELECT name || '.' || p.polname FROM t JOIN pg_policy p ON p.polrelid = t.oid
                 WHERE p.polname <> 'tenant' AND p.polroles <> ARRAY['belljar_door'::regrole::oid]"
            ),
        ),
        (
            "starts its primary key with tenant_id",
            tenant_tables!(
                "SELECT name FROM t JOIN first USING (oid) WHERE NOT EXISTS (SELECT FROM pg_constraint k
                 WHERE k.conrelid = t.oid AND k.contype = 'p' AND k.conkey[1] = first.attnum)"
            ),
        ),
        (
            "starts every unique index and exclusion with tenant_id",
            tenant_tables!(
                "SELECT i.indexrelid::regclass::text FROM t JOIN first USING (oid) JOIN pg_index i ON i.indrelid = t.oid
                 WHERE (i.indisunique OR i.indisexclusion) AND i.indkey[0] <> first.attnum"
            ),
        ),
        (
            "has tenant_id in every foreign key between tenant tables",
            tenant_tables!(
                "SELECT k.conname::text FROM t JOIN first USING (oid) JOIN pg_constraint k ON k.conrelid = t.oid
                 WHERE k.contype = 'f' AND k.confrelid IN (SELECT oid FROM t) AND NOT first.attnum = ANY (k.conkey)"
            ),
        ),
    ] {
        assert_eq!(offenders(&mut catalog, query).await, Vec::<String>::new(), "every tenant table {rule}");
    }
}

#[tokio::test]
async fn the_roles_can_do_no_more_than_they_should() {
    let db = TestDb::start().await;
    let mut catalog = db.superuser().await;
    for (rule, query) in [
        (
            "neither role is powerful",
            "SELECT rolname::text FROM pg_roles WHERE rolname IN ('belljar_app', 'belljar_door')
             AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication) AND $1 IS NOT NULL",
        ),
        (
            "the owner of the tables is no superuser either",
            "SELECT rolname::text FROM pg_roles WHERE rolname = 'belljar_owner' AND (rolsuper OR rolbypassrls) AND $1 IS NOT NULL",
        ),
        (
            "the door cannot log in",
            "SELECT rolname::text FROM pg_roles WHERE rolname = 'belljar_door' AND rolcanlogin AND $1 IS NOT NULL",
        ),
        (
            "neither role is a member of another",
            "SELECT roleid::regrole::text FROM pg_auth_members
             WHERE member IN ('belljar_app'::regrole, 'belljar_door'::regrole) AND $1 IS NOT NULL",
        ),
        (
            "neither role owns a table, and the application role owns nothing",
            "SELECT relname::text FROM pg_class WHERE relowner IN ('belljar_app'::regrole, 'belljar_door'::regrole) AND $1 IS NOT NULL
             UNION ALL SELECT proname::text FROM pg_proc WHERE proowner = 'belljar_app'::regrole",
        ),
        (
            "neither role creates in a schema",
            "SELECT nspname::text || ' ' || r FROM pg_namespace, unnest(ARRAY['belljar_app', 'belljar_door']) r
             WHERE has_schema_privilege(r, oid, 'CREATE') AND $1 IS NOT NULL",
        ),
        (
            "no TRUNCATE, REFERENCES or TRIGGER: they ignore row security",
            "SELECT c.relname::text FROM pg_class c, unnest(ARRAY['belljar_app', 'belljar_door']) r
             WHERE c.relnamespace = 'belljar'::regnamespace AND c.relkind IN ('r', 'p') AND $1 IS NOT NULL
             AND has_table_privilege(r, c.oid, 'TRUNCATE, REFERENCES, TRIGGER')",
        ),
        (
            "what never changes cannot be changed",
            "SELECT t FROM unnest(ARRAY['message', 'tool_call', 'step', 'run_event', 'usage_event', 'agent_revision',
             'binding', 'artifact', 'price_book', 'recording', 'summary']) t
             WHERE has_table_privilege('belljar_app', 'belljar.' || t, 'UPDATE') AND $1 IS NOT NULL",
        ),
        (
            "every definer function is a door: owned by the door role, with a fixed search path, not for everybody",
            "SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'belljar'::regnamespace AND p.prosecdef
             AND $1 IS NOT NULL AND (p.proowner <> 'belljar_door'::regrole OR p.proname NOT LIKE 'door\\_%'
             OR NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)
             OR has_function_privilege('public', p.oid, 'EXECUTE'))",
        ),
        (
            "no view could be read past the walls",
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'belljar'::regnamespace AND relkind IN ('v', 'm') AND $1 IS NOT NULL",
        ),
    ] {
        assert_eq!(offenders(&mut catalog, query).await, Vec::<String>::new(), "{rule}");
    }
}

#[tokio::test]
async fn the_tests_run_as_the_application_role() {
    let db = TestDb::start().await;
    let mut tx = db.db.global().await.unwrap();
    let role: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(tx.conn()).await.unwrap();
    assert_eq!(role, "belljar_app");
}

/// A policy that the planner cannot use as an index condition would scan every tenant's rows.
#[tokio::test]
async fn the_policy_is_an_index_condition() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let mut tx = tenant.begin().await.unwrap();
    sqlx::query("SET LOCAL enable_seqscan = off").execute(tx.conn()).await.unwrap();
    let plan: Vec<String> = sqlx::query_scalar("EXPLAIN SELECT name FROM tool").fetch_all(tx.conn()).await.unwrap();
    assert!(plan.iter().any(|line| line.contains("Index Cond") && line.contains("tenant_id")), "{plan:#?}");
}
