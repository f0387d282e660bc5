//! Signatures as Standard Webhooks 1.0 has them: HMAC-SHA256 over `id.timestamp.body`. Pure.

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The header `webhook-signature`: one signature of each key, the newest first.
pub(super) fn header<K: AsRef<[u8]>>(keys: &[K], id: &str, timestamp: i64, body: &str) -> String {
    let signed = |key: &K| {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of every length (RFC 2104)")]
        let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key.as_ref()).expect("a key of any length");
        let mac = mac.chain_update(format!("{id}.{timestamp}.")).chain_update(body);
        format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    };
    keys.iter().map(signed).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn a_signature_is_the_specifications() {
        let key = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", r#"{"test": 2432232314}"#);
        let one = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(header(&[&key[..]], id, 1_614_265_330, body), one);
        let two = header(&[b"another".as_slice(), &key[..]], id, 1_614_265_330, body);
        assert_eq!(two.split(' ').nth(1), Some(one));
        assert_ne!(two.split(' ').next(), Some(one));
    }
}
