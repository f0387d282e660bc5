//! Which addresses are public. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a stranger's URL may lead to this address.
///
/// Everything that the IANA special-purpose registries do not call globally reachable is refused, and an address that
/// carries another one inside is as public as the one inside.
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u32) -> (Ipv4Addr, u32) {
    (Ipv4Addr::new(a, b, c, d), prefix)
}

const REFUSED_V4: [(Ipv4Addr, u32); 16] = [
    v4(0, 0, 0, 0, 8),        // this network, unspecified
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // carrier-grade NAT, metadata of some clouds
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // a cloud's host agent, in public space
    v4(169, 254, 0, 0, 16),   // link-local, metadata
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocol assignments, metadata of some clouds
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 88, 99, 0, 24),   // 6to4 relays
    v4(192, 168, 0, 0, 16),   // private
    v4(198, 18, 0, 0, 15),    // benchmarking
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 4),      // multicast
    v4(240, 0, 0, 0, 4),      // reserved, broadcast
];

fn is_public_v4(address: Ipv4Addr) -> bool {
    !REFUSED_V4
        .iter()
        .any(|(network, prefix)| (address.to_bits() ^ network.to_bits()).checked_shr(32 - prefix) == Some(0))
}

const fn v6(a: u16, b: u16, c: u16, prefix: u32) -> (Ipv6Addr, u32) {
    (Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

/// Inside 2000::/3. Outside of it nothing is public: unspecified, loopback, IPv4-compatible, unique local, link-local,
/// site-local, multicast, discard, segment routing, and what is not assigned yet.
const REFUSED_V6: [(Ipv6Addr, u32); 3] = [
    v6(0x2001, 0, 0, 23),     // protocol assignments: benchmarking, ORCHID, and others
    v6(0x2001, 0xdb8, 0, 32), // documentation
    v6(0x3fff, 0, 0, 20),     // documentation
];

fn is_public_v6(address: Ipv6Addr) -> bool {
    match inner_v4(address) {
        Some(inner) => inner.into_iter().all(is_public_v4),
        None => within(address, v6(0x2000, 0, 0, 3)) && !REFUSED_V6.iter().any(|network| within(address, *network)),
    }
}

/// The IPv4 addresses that a gateway would send a packet for this address to.
///
/// The local-use translation prefix 64:ff9b:1::/48 is not here: where it keeps the IPv4 address is a local choice, so
/// that it is refused whole.
fn inner_v4(address: Ipv6Addr) -> Option<Vec<Ipv4Addr>> {
    let [a, b, c, d, .., g, h] = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let interface = (address.segments()[4], address.segments()[5]);
    match (a, b) {
        _ if address.to_ipv4_mapped().is_some() => Some(vec![join(g, h)]),
        _ if within(address, (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96)) => Some(vec![join(g, h)]), // NAT64
        (0x2002, _) => Some(vec![join(b, c)]),                                                               // 6to4
        // Teredo: its server, and its client with every bit turned over.
        (0x2001, 0) => Some(vec![join(c, d), join(!g, !h)]),
        // ISATAP: a tunnel's address in any network.
        _ if matches!(interface, (0 | 0x200, 0x5efe)) && within(address, v6(0x2000, 0, 0, 3)) => Some(vec![join(g, h)]),
        _ => None,
    }
}

fn within(address: Ipv6Addr, (network, prefix): (Ipv6Addr, u32)) -> bool {
    (address.to_bits() ^ network.to_bits()).checked_shr(128 - prefix) == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public() {
        let addresses = "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 \
            127.255.255.254 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 172.16.0.1 \
            172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 192.168.255.255 \
            198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.255 224.0.0.1 239.255.255.255 240.0.0.1 \
            254.1.1.1 255.255.255.255 :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 \
            ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 \
            64:ff9b::a9fe:a9fe 64:ff9b:1::10.0.0.1 64:ff9b:1::8.8.8.8 64:ff9b:1:a00:0:100:: 100::1 \
            100:0:0:1::1 2001::1 2001:0:7f00:1::8000:7ffe 2001:0:808:808::80ff:fffe \
            2001:0:a00:1::f7f7:f7f7 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2001:1ff:ffff::1 \
            2002:7f00:1::1 2002:a00:1::1 2002:a9fe:a9fe:: 2002:c0a8:1:: 2a00::5efe:10.0.0.1 \
            2a00::200:5efe:127.0.0.1 3fff::1 3fff:fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 \
            fd20:ce::254 fe80::1 fe80::a9fe:a9fe febf::1 fec0::1 feff::1 ff02::1 ff0e::1";
        for text in addresses.split_whitespace() {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn addresses_that_are_public() {
        let addresses = "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 \
            168.63.129.15 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.1 \
            192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 2001:200::1 \
            2001:4860:4860::8888 2606:4700:4700::1111 2a00:1450:4001:81b::200e ::ffff:8.8.8.8 \
            64:ff9b::8.8.8.8 2002:808:808::1 2001:0:808:808::f7f7:f7f7 2a00::5efe:8.8.8.8";
        for text in addresses.split_whitespace() {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
