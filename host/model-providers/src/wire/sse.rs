//! From bytes to the data of server-sent events, with caps before any parser sees them.

use bytes::{Bytes, BytesMut};
use egress::EgressError;
use eventsource_stream::{EventStreamError, Eventsource};
use futures::{Stream, StreamExt, stream::BoxStream};

/// Longest line, and longest event.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lines {
    /// A real one holds a few tokens, or at most one whole tool call.
    Texts,
    /// One may hold a whole image in base64, 3 MiB of it.
    Images,
}

impl Lines {
    fn bytes_max(self) -> usize {
        match self {
            Lines::Texts => 256 * 1024,
            Lines::Images => 4 * 1024 * 1024,
        }
    }

    fn too_long(self) -> Fault {
        Fault::Bad(match self {
            Lines::Texts => "a line is longer than 256 KiB",
            Lines::Images => "a line is longer than 4 MiB",
        })
    }
}

#[derive(Debug)]
pub(super) enum Fault {
    Transport(EgressError),
    Bad(&'static str),
}

/// The data of each event. Ends after its first fault.
pub(super) fn frames(
    body: BoxStream<'static, Result<Bytes, EgressError>>,
    limit: Lines,
) -> BoxStream<'static, Result<String, Fault>> {
    lines(body, limit)
        .eventsource()
        .map(move |event| match event {
            Ok(event) if event.data.len() > limit.bytes_max() => Err(limit.too_long()),
            Ok(event) => Ok(event.data),
            Err(EventStreamError::Transport(fault)) => Err(fault),
            Err(EventStreamError::Utf8(_)) => Err(Fault::Bad("it is not UTF-8")),
            Err(EventStreamError::Parser(_)) => Err(Fault::Bad("it is no event stream")),
        })
        .boxed()
}

/// Whole lines, one by one, each with its end. The event parser looks at all it has again with each piece that it is
/// given, so it must never be given pieces of a line, nor many lines at once.
fn lines(
    mut body: BoxStream<'static, Result<Bytes, EgressError>>,
    limit: Lines,
) -> impl Stream<Item = Result<Bytes, Fault>> + Send {
    async_stream::try_stream! {
        let mut pending = BytesMut::new();
        while let Some(piece) = body.next().await {
            let mut piece = piece.map_err(Fault::Transport)?;
            while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                let line = piece.split_to(end + 1);
                if pending.len() + line.len() > limit.bytes_max() {
                    Err(limit.too_long())?;
                }
                if pending.is_empty() {
                    yield one(line)?;
                } else {
                    pending.extend_from_slice(&line);
                    yield one(pending.split().freeze())?;
                }
            }
            if pending.len() + piece.len() > limit.bytes_max() {
                Err(limit.too_long())?;
            }
            pending.extend_from_slice(&piece);
        }
    }
    .boxed()
}

/// A line that is one to the event parser too: it also ends lines at a carriage return by itself, and copies all that
/// follows for each of them.
fn one(line: Bytes) -> Result<Bytes, Fault> {
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.contains(&b'\r') { Err(Fault::Bad("a line has a carriage return in it")) } else { Ok(line) }
}
