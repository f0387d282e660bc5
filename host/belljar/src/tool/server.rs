//! The server that a tool's author speaks to.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use domain::{ExposeSecret, SecretString};
use egress::{ChosenBy, Egress, Request};
use futures::TryStreamExt;
use http::{
    HeaderMap, HeaderValue, Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::Value;
use url::Url;

use crate::{
    config,
    dev::{self, DevFile},
};

/// A large component takes a minute or two to compile.
const ANSWER_SECONDS_MAX: u64 = 300;
/// Longest answer that is read: a version lists at most 128 functions with their schemas.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Where it is, and the key that opens it.
pub(super) struct Server {
    pub(super) url: Url,
    key: SecretString,
}

/// What is sent to it.
pub(super) struct Sent {
    pub(super) media_type: HeaderValue,
    pub(super) body: Bytes,
}

impl Server {
    /// From the environment, and what it does not say from the nearest `dev.json`.
    pub(super) fn find(from: &Path) -> anyhow::Result<Server> {
        let (url, key) = config::server();
        let file = match (&url, &key) {
            (Some(_), Some(_)) => None,
            _ => nearest_dev_file(from),
        };
        let missing = "no server is known here: start `belljar dev` in this folder or one above it, or set BELLJAR_URL \
                       and BELLJAR_API_KEY";
        let url = url.or_else(|| file.as_ref().map(|file| file.base_url.clone())).context(missing)?;
        let key = key.or_else(|| file.map(|file| SecretString::from(file.api_key))).context(missing)?;
        // Without the slash the last segment of a path would be replaced.
        let url =
            Url::parse(&format!("{}/", url.trim_end_matches('/'))).with_context(|| format!("`{url}` is no URL"))?;
        Ok(Server { url, key })
    }

    /// Asks, and answers the JSON of a success. A refusal is an error in the server's words.
    pub(super) async fn ask(&self, method: Method, url: Url, sent: Option<Sent>) -> anyhow::Result<Value> {
        let mut headers = HeaderMap::new();
        let mut key = HeaderValue::try_from(format!("Bearer {}", self.key.expose_secret()))
            .context("the API key has characters that no key has")?;
        key.set_sensitive(true);
        headers.insert(AUTHORIZATION, key);
        let body = match sent {
            Some(Sent { media_type, body }) => {
                headers.insert(CONTENT_TYPE, media_type);
                body
            }
            None => Bytes::new(),
        };
        let request = Request {
            method,
            url: url.into(),
            headers,
            body,
            // Who types the command chose the server.
            chosen_by: ChosenBy::Operator,
            first_byte: Duration::from_secs(ANSWER_SECONDS_MAX),
            between_bytes: Duration::from_secs(ANSWER_SECONDS_MAX),
            body_bytes_max: ANSWER_BYTES_MAX,
        };
        let answer = Egress::new(Vec::new())?.send(request).await?;
        let chunks: Vec<Bytes> = answer.body.try_collect().await?;
        let status = answer.status;
        let answer = serde_json::from_slice::<Value>(&chunks.concat()).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        match (answer["code"].as_str(), answer["detail"].as_str()) {
            (Some(code), Some(detail)) => bail!("{detail} ({code})"),
            _ => bail!("the server answered {status}; is {} a Belljar?", self.url),
        }
    }
}

fn nearest_dev_file(from: &Path) -> Option<DevFile> {
    from.ancestors()
        .map(|folder: &Path| -> PathBuf { folder.join(dev::DATA_DIR_DEFAULT).join(dev::DEV_FILE) })
        .find_map(|path| DevFile::read(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_dev_file_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        assert!(nearest_dev_file(&inner).is_none());
        std::fs::create_dir_all(root.path().join(".belljar")).unwrap();
        let file = DevFile {
            base_url: "http://127.0.0.1:1".into(),
            operator_url: "http://127.0.0.1:2".into(),
            api_key: "bj_test_x".into(),
            operator_token: "t".into(),
            tenant_id: domain::TenantId::from(uuid::Uuid::nil()),
            database_url: "postgres://a".into(),
            owner_database_url: "postgres://b".into(),
            superuser_database_url: None,
        };
        std::fs::write(root.path().join(".belljar/dev.json"), serde_json::to_string(&file).unwrap()).unwrap();
        assert_eq!(nearest_dev_file(&inner).unwrap().base_url, "http://127.0.0.1:1");
    }
}
