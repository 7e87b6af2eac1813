//! Strangers that sit, or come when there is no place: bounded in number and time. What ten thousand
//! of them cost a whole server is in `tests/flood.rs`.

use std::time::Duration;

use holdfast::format::wire::Hello;
use holdfast::model::Epoch;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

use crate::agent::{Agent, hello, request, write};
use crate::bounded;
use crate::pki::connect;
use crate::server::{Server, limits};

/// The server ends a connection without a word, and soon.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    let heard = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut byte)).await;
    assert!(matches!(heard, Ok(Ok(0) | Err(_))), "still open: {heard:?}");
}

#[tokio::test]
async fn sitting_strangers_do_not_keep_an_agent_out() {
    bounded(async {
        let few = holdfast::settings::LimitSettings {
            handshakes_max: 4,
            handshake_timeout: Duration::from_secs(1000),
            ..limits()
        };
        let server = Server::start(few).await;
        let mut sitting = Vec::new();
        for _ in 0..8 {
            let socket = TcpStream::connect(("127.0.0.1", server.port)).await;
            sitting.push(socket.unwrap());
        }
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        ended(&mut sitting[0]).await;
        drop(agent);
        let (mut agent, _) =
            Agent::welcomed(&server, &pair, Hello { epoch: Epoch(1), ..hello("web-1") }).await;
        let sequence = agent.record(write(0, 512)).await;
        agent.durable(sequence).await;
    })
    .await;
}

#[tokio::test]
async fn a_stranger_has_the_handshakes_time_and_no_more() {
    bounded(async {
        let hasty = holdfast::settings::LimitSettings {
            handshake_timeout: Duration::from_secs(3),
            idle_timeout: Duration::from_secs(1000),
            ..limits()
        };
        let server = Server::start(hasty).await;
        // Says nothing; and through TLS, but asks nothing.
        let mut silent = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        let connector = server.ca.client(Some(&server.ca.machine("web-1")));
        let mut idle = connect(&connector, server.port).await.unwrap();
        ended(&mut silent).await;
        ended(&mut idle).await;
    })
    .await;
}

#[tokio::test]
async fn one_machines_connections_do_not_take_the_places_of_others() {
    bounded(async {
        let few = holdfast::settings::LimitSettings { connections_max: 16, ..limits() };
        let server = Server::start(few).await;
        let pair = server.ca.machine("web-1");
        let mut held = Vec::new();
        for _ in 0..40 {
            let (answer, stream) = request(&server, &pair, "GET /healthz HTTP/1.1").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            held.push(stream);
        }
        let mut bytes = Vec::new();
        held[0].read_to_end(&mut bytes).await.ok(); // to its end: a newer one took its place
        let mut agent = Agent::tracking(&server, &server.ca.machine("web-2"), "web-2").await;
        agent.durable(3).await;
        // The agent of the same machine is the newest.
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        drop(held);
    })
    .await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_at_once() {
    bounded(async {
        let one = holdfast::settings::LimitSettings { connections_max: 1, ..limits() };
        let server = Server::start(one).await;
        let pair = server.ca.machine("web-1");
        let mut agent = Agent::tracking(&server, &pair, "web-1").await;
        agent.durable(3).await;
        assert!(connect(&server.ca.client(Some(&pair)), server.port).await.is_err());
        let sequence = agent.record(write(0, 512)).await;
        agent.durable(sequence).await;
    })
    .await;
}
