//! Goes to the network by itself, past the requests that can be granted.

use belljar_tool::{Result, tool, toolbox};
use std::hint::black_box;
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use wasip2::sockets::{
    instance_network, ip_name_lookup, network::IpAddressFamily, tcp_create_socket, udp_create_socket,
};

/// Connects over TCP.
#[tool]
fn tcp(address: String) -> Result<String> {
    TcpStream::connect(address)?;
    Ok("connected".into())
}

/// Listens on a port.
#[tool]
fn listen() -> Result<String> {
    TcpListener::bind(("127.0.0.1", 0))?;
    Ok("listening".into())
}

/// Sends over UDP.
#[tool]
fn udp(address: String) -> Result<String> {
    UdpSocket::bind(("127.0.0.1", 0))?.send_to(b"hello", address)?;
    Ok("sent".into())
}

/// Looks up a name.
#[tool]
fn name(name: String) -> Result<String> {
    (name, 80).to_socket_addrs()?;
    Ok("found".into())
}

/// Makes TCP sockets for ever.
#[tool]
fn many_tcp() {
    loop {
        std::mem::forget(black_box(tcp_create_socket::create_tcp_socket(IpAddressFamily::Ipv4)));
    }
}

/// Makes UDP sockets for ever.
#[tool]
fn many_udp() {
    loop {
        std::mem::forget(black_box(udp_create_socket::create_udp_socket(IpAddressFamily::Ipv6)));
    }
}

/// Looks up names for ever.
#[tool]
fn many_names() {
    let network = instance_network::instance_network();
    loop {
        let _ = black_box(ip_name_lookup::resolve_addresses(&network, "localhost"));
    }
}

toolbox!(tcp, listen, udp, name, many_tcp, many_udp, many_names);
fn main() {}
