use billing_meter::{PriceError, Used, prices, usage};
use domain::{Problem, SystemIds, page::PageRequest};
use kit::TestDb;

use crate::{event, now, record, span, start};

fn default() -> prices::Prices {
    prices::Prices::default_book().unwrap()
}

#[tokio::test]
async fn without_a_book_nothing_has_a_price() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let error = prices::current(&mut tenant.begin().await.unwrap()).await.unwrap_err();
    assert!(matches!(error, PriceError::NotInstalled));
}

#[tokio::test]
async fn the_default_book_is_installed_once_and_never_over_another() {
    let db = start().await;
    let mut tx = db.db.global().await.unwrap();
    let mut dearer = default();
    dearer.tool.fuel_per_billion = "1".parse().unwrap();
    let second = prices::publish(&mut tx, dearer.clone(), now()).await.unwrap();
    prices::install_default(&mut tx, now()).await.unwrap();
    assert_eq!((second.version, second.tool), (2, dearer.tool));
    assert_eq!(prices::get(&mut tx, 2).await.unwrap(), Some(second));
    assert_eq!(prices::get(&mut tx, 1).await.unwrap().unwrap().models, default().models);
    for absent in [0, 3, u32::MAX] {
        assert_eq!(prices::get(&mut tx, absent).await.unwrap(), None);
    }
    let first = prices::list(&mut tx, PageRequest { limit: 1, after: None }).await.unwrap();
    let rest = prices::list(&mut tx, PageRequest { limit: 1, after: first.next }).await.unwrap();
    assert_eq!((first.data[0].version, rest.data[0].version, rest.next), (2, 1, None));
}

#[tokio::test]
async fn a_book_that_is_not_valid_is_not_published() {
    let db = start().await;
    let mut tx = db.db.global().await.unwrap();
    let wrong = prices::Prices { currency: "dollars".into(), ..default() };
    let error = prices::publish(&mut tx, wrong, now()).await.unwrap_err();
    assert_eq!((error.code(), error.fields()[0].pointer.as_str()), ("price_book.invalid", "/currency"));
    let books = prices::list(&mut tx, PageRequest::default()).await.unwrap();
    assert_eq!(books.data.iter().map(|book| book.version).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_published_book_never_changes() {
    let db = start().await;
    for statement in ["UPDATE price_book SET currency = 'EUR'", "DELETE FROM price_book"] {
        let mut tx = db.db.global().await.unwrap();
        let error = sqlx::query(statement).execute(tx.conn()).await.unwrap_err();
        assert!(error.to_string().contains("permission denied"), "{error}");
    }
}

#[tokio::test]
async fn what_was_used_keeps_the_price_of_its_time() {
    let db = start().await;
    let tenant = db.tenant("ada").await;
    let old = record(&tenant, &[event("old", Used::ToolFuel { fuel: 1_000_000_000 })], now()).await;
    let mut tx = db.db.global().await.unwrap();
    let mut euros = default();
    euros.currency = "EUR".into();
    euros.tool.fuel_per_billion = "0.5".parse().unwrap();
    let book = prices::publish(&mut tx, euros, now()).await.unwrap();
    tx.commit().await.unwrap();
    record(&tenant, &[event("new", Used::ToolFuel { fuel: 1_000_000_000 })], now()).await;

    let mut tx = tenant.begin().await.unwrap();
    let events = crate::all(&mut tx, span(), 10).await;
    assert_eq!((events[1].price_book, &events[1].amount), (1, &old[0].amount));
    let first = prices::get(&mut db.db.global().await.unwrap(), 1).await.unwrap().unwrap();
    assert_eq!(first.price(&Used::ToolFuel { fuel: 1_000_000_000 }, None, None).amount, old[0].amount.amount);

    // Two currencies are never added up.
    let report = usage::totals(&mut tx, span().0, span().1, &[]).await.unwrap();
    let shown = |money: &domain::Money| format!("{} {}", money.amount, money.currency);
    assert_eq!(report.totals.iter().map(|group| shown(&group.cost)).collect::<Vec<_>>(), ["0.5 EUR", "0.00005 USD"]);
    assert_eq!((report.total.events, report.total.quantities.fuel), (2, 2_000_000_000));
    assert_eq!(shown(&report.total.cost), "0.5 EUR");
    assert_eq!(report.other_currencies.iter().map(shown).collect::<Vec<_>>(), ["0.00005 USD"]);

    // A run that began with the first book goes on with it.
    let more = usage::record(&mut tx, &first, &[event("run", Used::ToolFuel { fuel: 7 })], &SystemIds, now()).await;
    assert_eq!((more.unwrap()[0].price_book, book.version), (1, 2));
}
