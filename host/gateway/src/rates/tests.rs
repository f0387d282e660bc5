use domain::SystemIds;

use super::*;

fn asker(requests_per_minute: u32) -> Asker {
    Asker { tenant: TenantId::new(&SystemIds), requests_per_minute, bound_key: None }
}

fn bound(asker: Asker) -> Asker {
    Asker { bound_key: Some(ApiKeyId::new(&SystemIds)), ..asker }
}

fn told(standing: &Standing) -> (String, String) {
    let mut headers = HeaderMap::new();
    standing.tell(&mut headers);
    let header = |name| headers[name].to_str().unwrap().to_owned();
    (header(RATE_LIMIT), header(RATE_LIMIT_POLICY))
}

#[test]
fn a_minute_has_no_more_requests_than_its_quota() {
    let mut debts = Debts::default();
    let (ada, now) = (asker(3).quotas(), Duration::from_secs(100));
    for left in ["2;t=20", "1;t=40", "0;t=60"] {
        let standing = debts.take(&ada, now);
        standing.check().unwrap();
        assert_eq!(told(&standing), (format!("\"default\";r={left}"), "\"default\";q=3;w=60".into()));
    }
    let refused = debts.take(&ada, now);
    assert_eq!(told(&refused).0, "\"default\";r=0;t=60");
    let error = refused.check().unwrap_err();
    assert_eq!((error.retry_after_seconds(), error.code()), (Some(20), "rate_limit.exceeded"));
    // What was refused is not charged.
    assert_eq!(debts.take(&ada, now + Duration::from_millis(19_999)).check().unwrap_err().seconds, 1);
    debts.take(&ada, now + Duration::from_secs(20)).check().unwrap();
    debts.take(&ada, now + Duration::from_secs(20)).check().unwrap_err();
    debts.take(&asker(3).quotas(), now).check().unwrap();
}

#[test]
fn every_quota_lets_in_exactly_itself() {
    for requests in [1, 2, 3, 7, 60, 119, 1_200, 99_999] {
        let (mut debts, quotas) = (Debts::default(), asker(requests).quotas());
        for _ in 0..requests {
            debts.take(&quotas, Duration::ZERO).check().unwrap();
        }
        debts.take(&quotas, Duration::ZERO).check().unwrap_err();
        for at in 0..requests {
            debts.take(&quotas, WINDOW + WINDOW / requests * at).check().unwrap();
        }
    }
}

#[test]
fn a_bound_key_takes_a_part_and_leaves_the_rest() {
    let mut debts = Debts::default();
    let ada = asker(8);
    let (browser, other) = (bound(ada), bound(ada));
    debts.take(&browser.quotas(), Duration::ZERO).check().unwrap();
    let second = debts.take(&browser.quotas(), Duration::ZERO);
    second.check().unwrap();
    assert_eq!(told(&second).0, "\"default\";r=6;t=15, \"key\";r=0;t=60");
    assert_eq!(told(&second).1, "\"default\";q=8;w=60, \"key\";q=2;w=60");
    let refused = debts.take(&browser.quotas(), Duration::ZERO).check().unwrap_err();
    assert!(refused.to_string().contains("this API key may make 2 requests"), "{refused}");
    debts.take(&other.quotas(), Duration::ZERO).check().unwrap();
    // What the key was refused is not its tenant's.
    for _ in 0..5 {
        debts.take(&ada.quotas(), Duration::ZERO).check().unwrap();
    }
    debts.take(&ada.quotas(), Duration::ZERO).check().unwrap_err();
    debts.take(&other.quotas(), Duration::ZERO).check().unwrap_err();
}

#[test]
fn debts_that_are_paid_are_forgotten() {
    let mut debts = Debts::default();
    for _ in 0..=DEBTS_SWEPT_AT {
        debts.take(&asker(60_000_000).quotas(), Duration::ZERO);
    }
    debts.take(&asker(1).quotas(), WINDOW);
    debts.sweep_at = 0;
    debts.take(&asker(1).quotas(), WINDOW);
    assert!(debts.paid_at.len() <= 2, "{}", debts.paid_at.len());
}
