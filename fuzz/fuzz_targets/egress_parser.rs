//! URLs of tenants and of tools: what passes leads over https to a name, or to an address that anybody may reach.

#![no_main]

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use domain::grants::http::Scheme;
use egress::{Egress, Target};
use libfuzzer_sys::fuzz_target;
use url::Host;

static EGRESS: LazyLock<Egress> = LazyLock::new(|| Egress::new(Vec::new()).expect("clients"));

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    passes(text);
    passes(&format!("https://{text}"));
    passes(&format!("https://{text}/path"));
    // A tool names the parts; what the parser makes of them is what is granted and sent.
    let (authority, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    if let Ok(target) = Target::of_parts(Scheme::Https, authority, path) {
        let granted = target.with_method("GET");
        assert!(granted.path.starts_with('/') && !granted.host.is_empty(), "{granted:?}");
        assert!(granted.host.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()), "{granted:?}");
        assert!(!granted.host.contains(['/', '@', '?', '#', '\\']), "{granted:?}");
        let sent = target.without_query();
        assert!(sent.starts_with("https://") && !sent.contains(['?', '#']), "{sent}");
        passes(sent);
    }
});

fn passes(text: &str) {
    let Ok(url) = EGRESS.check_url(text) else { return };
    assert_eq!(url.scheme(), "https", "{text}");
    assert!(url.username().is_empty() && url.password().is_none(), "{text}");
    match url.host().expect("a host") {
        Host::Ipv4(address) => assert!(is_reachable_v4(address), "{text}"),
        Host::Ipv6(address) => assert!(is_reachable_v6(address), "{text}"),
        Host::Domain(name) => {
            let bare = name.trim_end_matches('.');
            // An address with too many dots behind it: no resolver takes it for one, and it is judged as one all the same.
            assert!(bare.parse().map_or(true, is_reachable_v4) && bare != "localhost", "{text}");
            assert!(!bare.ends_with(".localhost"), "{text}");
            // Resolvers take numbers of any notation for addresses.
            let last = name.strip_suffix('.').unwrap_or(name).rsplit('.').next().unwrap_or_default();
            assert!(!last.bytes().all(|b| b.is_ascii_digit()) || last.is_empty(), "{text}");
            assert!(!(last.starts_with("0x") && last[2..].bytes().all(|b| b.is_ascii_hexdigit())), "{text}");
        }
    }
}

/// Not from the same table as the host's: from the names that the standard library has for networks.
fn is_reachable_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    !(address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_unspecified()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && b & 0xc0 == 64)
        || (a == 198 && b & 0xfe == 18))
}

fn is_reachable_v6(address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let inner = |high: u16, low: u16| is_reachable_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match (a, b) {
        (0, 0) => [c, d, e, f] == [0, 0, 0, 0xffff] && inner(g, h),
        (0x64, 0xff9b) => [c, d, e, f] == [0; 4] && inner(g, h),
        (0x2002, _) => inner(b, c),
        (0x2001, 0xdb8) => false,
        _ => a & 0xe000 == 0x2000,
    }
}
