//! The weather of a place, from a service that wants a key. The key is a secret that the host adds to the request: this
//! code never holds it.

use belljar_tool::{Error, Result, config, http::Request, progress, tool, toolbox};

/// Where the service is, unless the agent's owner says another address.
const BASE_URL: &str = "https://api.weather.example";

/// As the service answers, and as this tool does.
#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
pub struct Weather {
    place: String,
    /// In words.
    sky: String,
    /// In degrees of the configured unit.
    temperature: f64,
    /// Of the temperature.
    #[serde(default)]
    unit: String,
}

/// The weather in a place right now.
#[tool]
pub fn now(
    /// The name of a town, for example `Oslo`.
    place: String,
) -> Result<Weather> {
    let base = config::get("base_url")?.unwrap_or(BASE_URL.into());
    let unit = config::get("unit")?.unwrap_or("celsius".into());
    progress::report(None, &format!("asking for the weather in {place}"));
    let request = Request::get(format!("{base}/v1/now")).query("place", &place).query("unit", &unit);
    let response = request.header("Accept", "application/json").send()?;
    match response.status() {
        200 => Ok(Weather { unit, ..response.json()? }),
        401 | 403 => Err(Error::new("the weather service does not take the key; set the secret `weather_key` again")),
        404 => Err(Error::new(format!("no place is called `{place}`; try a larger town"))),
        429 => Err(Error::new("the weather service has had enough for now; ask again in a minute")),
        status => Err(Error::new(format!("the weather service answers with status {status}"))),
    }
}

toolbox!(now; requires = {
    http: [{
        host: "api.weather.example",
        methods: ["GET"],
        paths: ["/v1"],
        headers: [{ name: "Authorization", secret: "weather_key", format: "Bearer {}" }],
        reason: "the weather comes from this service, which wants a key",
    }],
    config: {
        unit: "`celsius` (if left out) or `fahrenheit`",
        base_url: "another address of the service, with its own http grant",
    },
});
