//! What an agent sends is bounded, and what it cannot send in time is not lost.

use std::sync::Arc;

use holdfast::clock::{Clock, System};
use holdfast::model::{Change, Record};

use crate::machine::{Machine, blocking, export, noise, settled};
use crate::server::{Direct, Server};
use crate::stream::{equals_source, no_violations};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_agent_sends_no_faster_and_goes_to_bitmap_mode_when_its_buffer_is_full() {
    // The machine's clock runs 20 times as fast: 1.25 MiB in a second of ours.
    let rate = 64 << 10;
    let mut machine = Machine::new(&[3 << 20], 1 << 20);
    machine.settings.bandwidth_bytes_per_second_max = Some(rate);
    let server = Server::new(16 << 20);
    let began = System.monotonic();
    let agent = machine.start(Arc::new(Direct(Arc::clone(&server)))).await;
    settled(&agent).await;
    let elapsed = (System.monotonic() - began) * 20;
    let received = server.held().received_bytes;
    let most = elapsed.as_secs_f64() * rate as f64 + f64::from(2 << 20);
    assert!(received >= 3 << 20 && (received as f64) < most, "{received} bytes in {elapsed:?}");

    let disk = export(&agent, 0);
    let payloads: Vec<_> = (0..48).map(|n| noise(65536, n + 9)).collect();
    blocking(move || {
        for (n, payload) in (0..).zip(payloads) {
            disk.write(n * 65536, payload.into(), false).unwrap();
        }
    })
    .await;
    settled(&agent).await;
    let held = server.held();
    let begins = |record: &&Record| matches!(record.change, Change::CatchUpBegin(_));
    assert!(held.log.iter().filter(begins).count() > 1, "the buffer was full");
    drop(held);
    no_violations(&server);
    equals_source(&server, &machine);
}
