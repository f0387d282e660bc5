//! Failures of a request as words of a recording, and back.

use std::mem::discriminant;

use wasmtime_wasi_http::Error;

/// A name in the words of `wasi:http`, and the failure that says no more than that.
type Plain = (&'static str, fn() -> Error);

const PLAIN: &[Plain] = &[
    ("DNS-timeout", || Error::DnsTimeout),
    ("destination-not-found", || Error::DestinationNotFound),
    ("destination-unavailable", || Error::DestinationUnavailable),
    ("destination-IP-prohibited", || Error::DestinationIpProhibited),
    ("destination-IP-unroutable", || Error::DestinationIpUnroutable),
    ("connection-refused", || Error::ConnectionRefused),
    ("connection-terminated", || Error::ConnectionTerminated),
    ("connection-timeout", || Error::ConnectionTimeout),
    ("connection-read-timeout", || Error::ConnectionReadTimeout),
    ("connection-write-timeout", || Error::ConnectionWriteTimeout),
    ("connection-limit-reached", || Error::ConnectionLimitReached),
    ("TLS-protocol-error", || Error::TlsProtocolError),
    ("TLS-certificate-error", || Error::TlsCertificateError),
    ("HTTP-request-denied", || Error::HttpRequestDenied),
    ("HTTP-request-length-required", || Error::HttpRequestLengthRequired),
    ("HTTP-request-method-invalid", || Error::HttpRequestMethodInvalid),
    ("HTTP-request-URI-invalid", || Error::HttpRequestUriInvalid),
    ("HTTP-request-URI-too-long", || Error::HttpRequestUriTooLong),
    ("HTTP-response-incomplete", || Error::HttpResponseIncomplete),
    ("HTTP-response-timeout", || Error::HttpResponseTimeout),
    ("HTTP-upgrade-failed", || Error::HttpUpgradeFailed),
    ("HTTP-protocol-error", || Error::HttpProtocolError),
    ("loop-detected", || Error::LoopDetected),
    ("configuration-error", || Error::ConfigurationError),
];
const DNS: &str = "DNS-error";
const REQUEST_BODY: &str = "HTTP-request-body-size";
const RESPONSE_BODY: &str = "HTTP-response-body-size";
const INTERNAL: &str = "internal-error";

/// What cannot be said is an internal error, without more.
pub(super) fn words(error: &Error) -> String {
    if let Some((name, _)) = PLAIN.iter().find(|(_, make)| discriminant(&make()) == discriminant(error)) {
        return (*name).to_owned();
    }
    let (name, more) = match error {
        Error::DnsError { rcode, .. } => (DNS, rcode.clone()),
        Error::HttpRequestBodySize(bytes) => (REQUEST_BODY, bytes.map(|bytes| bytes.to_string())),
        Error::HttpResponseBodySize(bytes) => (RESPONSE_BODY, bytes.map(|bytes| bytes.to_string())),
        Error::InternalError(text) => (INTERNAL, text.clone()),
        _ => (INTERNAL, None),
    };
    more.map_or_else(|| name.to_owned(), |more| format!("{name} {more}"))
}

pub(super) fn of_words(words: &str) -> Error {
    if let Some((_, make)) = PLAIN.iter().find(|(name, _)| *name == words) {
        return make();
    }
    let (name, more) = words.split_once(' ').map_or((words, None), |(name, more)| (name, Some(more)));
    match name {
        DNS => Error::DnsError { rcode: more.map(str::to_owned), info_code: None },
        REQUEST_BODY => Error::HttpRequestBodySize(more.and_then(|more| more.parse().ok())),
        RESPONSE_BODY => Error::HttpResponseBodySize(more.and_then(|more| more.parse().ok())),
        _ => Error::InternalError(more.map(str::to_owned)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_its_words() {
        let told = [
            Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None },
            Error::HttpResponseBodySize(Some(10)),
            Error::HttpRequestBodySize(None),
            Error::InternalError(Some("two words".into())),
            Error::InternalError(None),
        ];
        for error in PLAIN.iter().map(|(_, make)| make()).chain(told) {
            assert_eq!(format!("{:?}", of_words(&words(&error))), format!("{error:?}"));
        }
        assert_eq!(words(&Error::HttpResponseTransferCoding(Some("x".into()))), "internal-error");
    }
}
