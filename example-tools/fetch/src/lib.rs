//! A page of a host that the agent's owner granted, as text.

use belljar_tool::{Error, Result, http::Request, tool, toolbox};
use std::io::Read as _;

/// More than this a model does not want to read, in characters.
const CHARACTERS_MAX: usize = 8_000;
/// What is read of a page at most, in bytes: markup is most of many pages.
const BYTES_MAX: u64 = 512 * 1024;

#[derive(Debug, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Page {
    /// 200 where all went well.
    status: u16,
    media_type: String,
    text: String,
    /// Whether there is more of it than `text`.
    cut: bool,
}

/// Reads a page from the web. Only the hosts that were granted answer.
#[tool]
pub fn get(
    /// The whole address, for example `https://example.com/news`.
    url: String,
    /// How many characters of text to answer with; 8000 at most, and if left out.
    characters: Option<usize>,
) -> Result<Page> {
    let mut response = Request::get(url).header("Accept", "text/html, text/plain, application/json").send()?;
    let (status, media_type) = (response.status(), response.header("content-type").unwrap_or_default().to_owned());
    if let (300..400, Some(location)) = (status, response.header("location")) {
        return Err(Error::new(format!("the page has moved to {location}; ask for that address")));
    }
    let mut body = Vec::new();
    response.by_ref().take(BYTES_MAX).read_to_end(&mut body)?;
    let body = String::from_utf8_lossy(&body);
    let text = if media_type.starts_with("text/html") { words(&body) } else { body.trim().to_owned() };
    let wanted = characters.unwrap_or(CHARACTERS_MAX).min(CHARACTERS_MAX);
    let short: String = text.chars().take(wanted).collect();
    let cut = short.len() < text.len() || response.read(&mut [0])? > 0;
    Ok(Page { status, media_type, text: short, cut })
}

toolbox!(get; requires = { http: [{ host: "example.com", methods: ["GET"], reason: "pages are read from there" }] });

/// The text between the tags, but for scripts and styles, with one space where there was any.
fn words(html: &str) -> String {
    let mut text = String::new();
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        text.push(' ');
        let lower = |text: &str| text.chars().take(10).collect::<String>().to_ascii_lowercase();
        let end = ["script", "style", "!--"].into_iter().find(|name| lower(tag).starts_with(name));
        rest = match end {
            Some("!--") => tag.split_once("-->").map_or("", |(_, rest)| rest),
            Some(name) => tag
                .match_indices("</")
                .find(|(at, _)| lower(&tag[at + 2..]).starts_with(name))
                .map_or("", |(at, _)| &tag[at..]),
            None => tag.split_once('>').map_or("", |(_, rest)| rest),
        };
    }
    text.push_str(rest);
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    let text = plain.iter().fold(text, |text, (entity, sign)| text.replace(entity, sign));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
