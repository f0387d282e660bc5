//! What can be used as a model, and every price that a bill can name.

use agent_config::provider_keys;
use axum::extract::State;
use billing_meter::{
    PriceBook, Used,
    prices::{self, own_key},
};
use rust_decimal::Decimal;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    Gateway,
    answer::Answer,
    caller::Caller,
    json::Json,
    page::List,
    path::{BookVersion, Name, Named},
};

/// The provider and name of the model that needs no key.
const DEMO: &str = "demo";

/// A model, as an agent's `model` names it.
#[derive(Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct Model {
    /// What to write as `model`. Behind `*` stands any model that the provider has.
    id: String,
    provider: String,
    name: String,
    /// Whether it is reached with the tenant's own key.
    own_key: bool,
    currency: String,
    #[schema(value_type = String, example = "0.15")]
    input_per_million: Decimal,
    #[schema(value_type = String, example = "0.075")]
    cached_input_per_million: Decimal,
    #[schema(value_type = String, example = "0.60")]
    output_per_million: Decimal,
}

/// The models that can be used, with their present prices: the demo model, the platform's and those of the tenant's own
/// keys. Any key.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = List<Model>)))]
pub(crate) async fn list(State(gateway): State<Gateway>, caller: Caller) -> Answer<List<Model>> {
    let mut tx = caller.tenant().begin().await?;
    let book = prices::current(&mut tx).await?;
    let keys = provider_keys::list(&mut tx).await?.data;
    let own: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
    Ok(Json(List::whole(usable(&book, &gateway.platform_providers, &own))))
}

/// A version of the price book. Any key.
#[utoipa::path(get, path = "/v1/price-books/{version}", responses((status = 200, body = PriceBook)))]
pub(crate) async fn price_book(
    State(gateway): State<Gateway>,
    _: Caller,
    Named(version): Named<BookVersion>,
) -> Answer<PriceBook> {
    let mut tx = gateway.db.global().await?;
    let book = prices::get(&mut tx, version.0).await?;
    Ok(Json(book.ok_or(BookVersion::NOT_FOUND)?))
}

fn usable(book: &PriceBook, platform: &[String], own: &[&str]) -> Vec<Model> {
    let mut models = vec![model(book, DEMO, DEMO, DEMO.into(), false)];
    // A key of the tenant's stands in front of the platform's provider of that name.
    for provider in platform.iter().filter(|name| *name != DEMO && !own.contains(&name.as_str())) {
        let listed = book.models.iter().filter(|entry| entry.provider == *provider && !entry.model.contains('*'));
        let names = listed.map(|entry| entry.model.as_str()).chain(["*"]);
        models.extend(names.map(|name| model(book, provider, name, format!("{provider}/{name}"), false)));
    }
    models.extend(own.iter().map(|provider| model(book, provider, "*", format!("{provider}/*"), true)));
    models
}

fn model(book: &PriceBook, provider: &str, name: &str, id: String, own: bool) -> Model {
    let billed = if own { own_key(provider) } else { provider.to_owned() };
    let price = |used| book.price(&used, Some(&billed), Some(name)).unit_price;
    Model {
        id,
        provider: provider.into(),
        name: name.into(),
        own_key: own,
        currency: book.currency.clone(),
        input_per_million: price(Used::ModelInput { tokens: 1 }),
        cached_input_per_million: price(Used::ModelCachedInput { tokens: 1 }),
        output_per_million: price(Used::ModelOutput { tokens: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use billing_meter::prices::Prices;
    use domain::Timestamp;

    use super::*;

    #[test]
    fn what_can_be_used_has_a_price() {
        let prices = Prices::default_book().unwrap();
        let Prices { currency, models, default_model, tool } = prices;
        let created_at = Timestamp::from_unix_us(0);
        let book = PriceBook { version: 1, currency, models, default_model, tool, created_at };
        let lines = |platform: &[String], own: &[&str]| -> Vec<String> {
            let models = usable(&book, platform, own);
            models
                .into_iter()
                .map(|model| format!("{} {} {}", model.id, model.input_per_million, model.own_key))
                .collect()
        };
        assert_eq!(lines(&[], &["acme"]), ["demo 0.1 false", "acme/* 0.1 true"]);
        let platform = lines(&["demo".into(), "openai".into()], &[]);
        assert_eq!((platform[0].as_str(), platform[1].as_str()), ("demo 0.1 false", "openai/gpt-4o 2.5 false"));
        assert!(platform.iter().all(|line| !line.starts_with("demo/")), "{platform:?}");
        assert_eq!(lines(&["openai".into()], &["openai"]), ["demo 0.1 false", "openai/* 0.1 true"]);
    }
}
