//! From bytes to the data of server-sent events, with caps before any parser sees them.

use bytes::{Bytes, BytesMut};
use egress::EgressError;
use eventsource_stream::{EventStreamError, Eventsource};
use futures::{Stream, StreamExt, stream::BoxStream};

/// Longest line, and longest event. A real one holds a few tokens, or at most one whole tool call.
const LINE_BYTES_MAX: usize = 256 * 1024;

const TOO_LONG: &str = "a line is longer than 256 KiB";

#[derive(Debug)]
pub(super) enum Fault {
    Transport(EgressError),
    Bad(&'static str),
}

/// The data of each event. Ends after its first fault.
pub(super) fn frames(
    body: BoxStream<'static, Result<Bytes, EgressError>>,
) -> BoxStream<'static, Result<String, Fault>> {
    lines(body)
        .eventsource()
        .map(|event| match event {
            Ok(event) if event.data.len() > LINE_BYTES_MAX => Err(Fault::Bad(TOO_LONG)),
            Ok(event) => Ok(event.data),
            Err(EventStreamError::Transport(fault)) => Err(fault),
            Err(EventStreamError::Utf8(_)) => Err(Fault::Bad("it is not UTF-8")),
            Err(EventStreamError::Parser(_)) => Err(Fault::Bad("it is no event stream")),
        })
        .boxed()
}

/// Whole lines, one by one, each with its end. The event parser looks at all it has again with each piece that it is
/// given, so it must never be given pieces of a line, nor many lines at once.
fn lines(mut body: BoxStream<'static, Result<Bytes, EgressError>>) -> impl Stream<Item = Result<Bytes, Fault>> + Send {
    async_stream::try_stream! {
        let mut pending = BytesMut::new();
        while let Some(piece) = body.next().await {
            let mut piece = piece.map_err(Fault::Transport)?;
            while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                let line = piece.split_to(end + 1);
                if pending.len() + line.len() > LINE_BYTES_MAX {
                    Err(Fault::Bad(TOO_LONG))?;
                }
                if pending.is_empty() {
                    yield line;
                } else {
                    pending.extend_from_slice(&line);
                    yield pending.split().freeze();
                }
            }
            if pending.len() + piece.len() > LINE_BYTES_MAX {
                Err(Fault::Bad(TOO_LONG))?;
            }
            pending.extend_from_slice(&piece);
        }
    }
    .boxed()
}
