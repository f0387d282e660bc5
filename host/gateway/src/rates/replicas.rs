//! Debts in Redis: one script a request, so that replicas cannot race.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use domain::{ExposeSecret, SecretString};
use redis::{
    Client, RedisError, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tokio::sync::OnceCell;

use super::{Left, Quota, Standing, WINDOW};

/// A request waits this long for Redis at most: it would rather be counted here than be late.
const REDIS_WAIT: Duration = Duration::from_millis(200);
/// After Redis did not answer, it is left alone for this long.
const REDIS_AWAY: Duration = Duration::from_secs(1);

/// Times are microseconds of Redis's clock, which the replicas share. A microsecond of tolerance: they are fractions.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local window = tonumber(ARGV[1])
local debts, allowed = {}, true
for i, key in ipairs(KEYS) do
    debts[i] = math.max(tonumber(redis.call('GET', key) or '0') - now, 0)
    allowed = allowed and debts[i] + tonumber(ARGV[i + 1]) <= window + 1
end
local told = {}
for i, key in ipairs(KEYS) do
    if allowed then
        debts[i] = debts[i] + tonumber(ARGV[i + 1])
        redis.call('SET', key, string.format('%.3f', now + debts[i]), 'PX', math.ceil(debts[i] / 1000) + 1)
    end
    told[i] = math.floor(debts[i])
end
return {allowed and 1 or 0, told}
";

/// Where Redis is. A URL that is none is refused before anything starts.
#[derive(Clone)]
pub struct RedisUrl(Client);

impl std::fmt::Debug for RedisUrl {
    /// Without its password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisUrl")
    }
}

impl RedisUrl {
    pub fn new(url: &SecretString) -> Result<RedisUrl, RedisError> {
        Ok(RedisUrl(Client::open(url.expose_secret())?))
    }
}

pub(super) struct Replicas {
    client: Client,
    connection: OnceCell<ConnectionManager>,
    script: Script,
    began: Instant,
    /// Milliseconds since the beginning until which Redis is not asked.
    away_until: AtomicU64,
}

impl Replicas {
    pub(super) fn new(url: &RedisUrl) -> Replicas {
        Replicas {
            client: url.0.clone(),
            connection: OnceCell::new(),
            script: Script::new(TAKE),
            began: Instant::now(),
            away_until: AtomicU64::new(0),
        }
    }

    /// `None`: Redis is away.
    pub(super) async fn take(&self, quotas: &[Quota]) -> Option<Standing> {
        let away_until = self.away_until.load(Ordering::Relaxed);
        if self.millis() < away_until {
            return None;
        }
        match tokio::time::timeout(REDIS_WAIT, self.ask(quotas)).await {
            Ok(Ok(standing)) => {
                if away_until > 0 && self.away_until.swap(0, Ordering::Relaxed) > 0 {
                    tracing::info!("requests are counted in Redis again");
                }
                Some(standing)
            }
            Ok(Err(error)) => self.went_away(away_until, &error.to_string()),
            Err(_) => self.went_away(away_until, "no answer in time"),
        }
    }

    fn went_away(&self, before: u64, error: &str) -> Option<Standing> {
        self.away_until.store(self.millis() + REDIS_AWAY.as_millis() as u64, Ordering::Relaxed);
        if before == 0 {
            tracing::warn!(error, "Redis is away: requests are counted by each process on its own");
        }
        None
    }

    fn millis(&self) -> u64 {
        // One more, so that the beginning is not 0, which says that Redis is there.
        self.began.elapsed().as_millis() as u64 + 1
    }

    async fn ask(&self, quotas: &[Quota]) -> Result<Standing, RedisError> {
        let mut connection = self.connection.get_or_try_init(|| self.connect()).await?.clone();
        let mut asked = self.script.prepare_invoke();
        asked.arg(micros(WINDOW));
        // In braces: what is counted together lies together, where Redis is a cluster.
        let of_all = quotas.first().map(|quota| quota.of).unwrap_or_default();
        for quota in quotas {
            asked.key(format!("belljar:rate:{{{of_all}}}:{}", quota.of)).arg(micros(quota.cost()));
        }
        let (allowed, debts): (u8, Vec<u64>) = asked.invoke_async(&mut connection).await?;
        let left =
            quotas.iter().zip(debts).map(|(quota, debt)| Left { quota: *quota, debt: Duration::from_micros(debt) });
        Ok(Standing { left: left.collect(), allowed: allowed == 1 })
    }

    async fn connect(&self) -> Result<ConnectionManager, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(REDIS_WAIT))
            .set_response_timeout(Some(REDIS_WAIT))
            .set_number_of_retries(0)
            .set_max_delay(REDIS_AWAY);
        ConnectionManager::new_with_config(self.client.clone(), config).await
    }
}

/// With their fractions.
fn micros(time: Duration) -> String {
    format!("{}.{:03}", time.as_micros(), time.subsec_nanos() % 1000)
}
