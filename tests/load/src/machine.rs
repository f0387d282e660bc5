//! What this machine does, measured in the same minute as everything else: its disk, its database, its cores.

use std::{
    fs::File,
    hint::black_box,
    io::{Seek, SeekFrom, Write},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use sqlx::{Connection, PgConnection};

use crate::figures::median;

/// Writes of 8 kB that are waited for: as many as take well under a second on a slow disk.
const PROBES: usize = 64;
/// How long burners burn.
const BURN: Duration = Duration::from_millis(200);

/// The median time of writing 8 kB and waiting for the disk, in this folder.
pub(crate) fn fdatasync(folder: &Path) -> Result<Duration> {
    let mut file: File = tempfile::tempfile_in(folder)?;
    let page = [7; 8192];
    file.write_all(&page)?;
    file.sync_all()?;
    let mut took = Vec::with_capacity(PROBES);
    for _ in 0..PROBES {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&page)?;
        let began = Instant::now();
        file.sync_data()?;
        took.push(began.elapsed());
    }
    Ok(median(&mut took))
}

/// The median time of a transaction that inserts one row: what one commit takes, the round trips included.
pub(crate) async fn commit(superuser_url: &str) -> Result<Duration> {
    let mut database = PgConnection::connect(superuser_url).await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS public.probe (n bigint)").execute(&mut database).await?;
    let mut took = Vec::with_capacity(PROBES);
    for n in 0..PROBES {
        let began = Instant::now();
        sqlx::query("INSERT INTO public.probe VALUES ($1)").bind(n as i64).execute(&mut database).await?;
        took.push(began.elapsed());
    }
    database.close().await?;
    Ok(median(&mut took))
}

/// Tells the planner how large tables are, now.
pub(crate) async fn analyze(superuser_url: &str) -> Result<()> {
    let mut database = PgConnection::connect(superuser_url).await?;
    sqlx::query("ANALYZE").execute(&mut database).await?;
    Ok(database.close().await?)
}

/// How many times the work of one burning thread two do.
pub(crate) fn two_burners() -> f64 {
    let one = burn();
    let two: u64 = thread::scope(|scope| {
        let burners = [scope.spawn(burn), scope.spawn(burn)];
        burners.into_iter().map(|burner| burner.join().unwrap_or_default()).sum()
    });
    two as f64 / one.max(1) as f64
}

fn burn() -> u64 {
    let (began, mut turns, mut state) = (Instant::now(), 0, 1_u64);
    while began.elapsed() < BURN {
        for _ in 0..10_000 {
            state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
        turns += 1;
    }
    turns
}

/// As many open files as the system allows: each stream is one.
pub(crate) fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
