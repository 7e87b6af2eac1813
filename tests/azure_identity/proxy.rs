//! An HTTP proxy that knows CONNECT, with or without a password.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use azure_core::base64;

pub(crate) struct Proxy {
    pub(crate) port: u16,
    tunnels: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) fn start(wanted: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let tunnels = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tunnels);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = Arc::clone(&count);
                std::thread::spawn(move || tunnel(stream, wanted, &count).ok());
            }
        });
        Self { port, tunnels }
    }

    pub(crate) fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::SeqCst)
    }
}

fn tunnel(stream: TcpStream, wanted: Option<&str>, count: &AtomicUsize) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let mut client = stream;
    let expected = wanted.map(|wanted| format!("basic {}", base64::encode(wanted)));
    let given = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization").then(|| value.replace("Basic", "basic"))
    });
    if given != expected {
        return client
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
    }
    let Some(target) = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n");
    };
    // Whatever the name, it is this machine: proxies are asked for no loopback address.
    let port = target.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let mut server = TcpStream::connect(("127.0.0.1", port.unwrap_or_default()))?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    count.fetch_add(1, Ordering::SeqCst);
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        std::io::copy(&mut from_server, &mut to_client).ok();
        to_client.shutdown(std::net::Shutdown::Write).ok();
    });
    std::io::copy(&mut reader, &mut server)?;
    server.shutdown(std::net::Shutdown::Write)
}
