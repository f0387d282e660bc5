//! A client of a run's events that is cut off at any byte and goes on where it was.

use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

/// Longest silence of a stream: its comments come every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What was read so far.
#[derive(Default)]
pub(crate) struct Reader {
    last_id: Option<String>,
    started: Option<Value>,
    /// Text as it came: the number of the event that it followed, its message, and it.
    said: Vec<(u64, String, String)>,
    terminal: Option<Value>,
    /// How often it was told that another host goes on with the run.
    pub(crate) resumed: usize,
    /// Numbers of events that were told, to find one that is told twice.
    seen: Vec<u64>,
}

impl Reader {
    /// Reads one response up to its end, or to where it breaks.
    pub(crate) async fn read(&mut self, mut response: Response) -> Result<(), String> {
        let mut unread = Vec::new();
        // Broken, silent and ended are all the same: go on elsewhere.
        while let Ok(Ok(Some(bytes))) = tokio::time::timeout(SILENCE_MAX, response.chunk()).await {
            unread.extend_from_slice(&bytes);
            while let Some(at) = unread.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = unread.drain(..at + 2).collect();
                self.take(&String::from_utf8_lossy(&event))?;
            }
            if self.has_ended() {
                break;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &str) -> Result<(), String> {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
        let (Some(kind), Some(data)) = (field("event: "), field("data: ")) else { return Ok(()) };
        let data: Value = serde_json::from_str(data).map_err(|error| format!("an event of broken JSON: {error}"))?;
        let seq = data["seq"].as_u64().ok_or("an event without its number")?;
        self.last_id = field("id: ").map(str::to_owned).or(self.last_id.take());
        match kind {
            "message.delta" => {
                let part = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
                self.said.push((seq, part("message_id"), part("text")));
                return Ok(());
            }
            "run.started" => self.started = Some(data.clone()),
            "run.resumed" => {
                self.resumed += 1;
                let counts = data["restarts_after"].as_u64().ok_or("a resumed run that does not say where")?;
                self.said.retain(|(seq, ..)| *seq <= counts);
                self.seen.retain(|seq| *seq <= counts);
            }
            "run.completed" | "run.failed" | "run.cancelled" => self.terminal = Some(data),
            _ => {}
        }
        if self.seen.contains(&seq) {
            return Err(format!("event {seq} was told twice"));
        }
        self.seen.push(seq);
        Ok(())
    }

    pub(crate) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// The first event, once.
    pub(crate) fn started(&self) -> Option<Value> {
        self.started.clone()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.terminal.is_some()
    }

    /// The turn that the terminal event tells. The text that came in pieces must be the message.
    pub(crate) fn ended(self, op: &str) -> Result<Value, String> {
        let turn = self.terminal.ok_or("the events did not end")?;
        let id = turn["message"]["id"].as_str().unwrap_or_default();
        let came: String =
            self.said.iter().filter(|(_, message, _)| message == id).map(|(.., text)| text.as_str()).collect();
        match turn["message"]["content"].as_str() {
            Some(stored) if stored == came => Ok(turn),
            Some(stored) => Err(format!("{op} was read as `{came}` and is stored as `{stored}`")),
            None => Ok(turn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, kind: &str, data: &str) -> String {
        format!("id: {id}\nevent: {kind}\ndata: {data}\n\n")
    }

    #[test]
    fn text_after_the_last_event_that_counts_is_dropped() {
        let mut reader = Reader::default();
        for text in [
            event("1", "run.started", r#"{"seq": 1}"#),
            event("1.5", "message.delta", r#"{"seq": 1, "message_id": "msg_a", "text": "Hello"}"#),
            event("1025", "run.resumed", r#"{"seq": 1025, "restarts_after": 1}"#),
            event("1025.2", "message.delta", r#"{"seq": 1025, "message_id": "msg_b", "text": "Hi"}"#),
        ] {
            reader.take(&text).unwrap();
        }
        assert_eq!((reader.resumed, reader.last_id()), (1, Some("1025.2")));
        // Text after an event that counts stays: it is the text of before that is void.
        let end = r#"{"seq": 1026, "message": {"id": "msg_b", "content": "Hi"}}"#;
        reader.take(&event("1026", "run.completed", end)).unwrap();
        assert!(reader.ended("op-1").is_ok());
    }

    #[test]
    fn an_event_that_comes_twice_is_noticed() {
        let mut reader = Reader::default();
        reader.take(&event("2", "step.completed", r#"{"seq": 2}"#)).unwrap();
        assert!(reader.take(&event("2", "step.completed", r#"{"seq": 2}"#)).is_err());
    }
}
