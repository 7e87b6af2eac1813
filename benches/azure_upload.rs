//! The store `azure:` against the bare loops of Azure's client, into a sink on loopback that takes
//! everything: blocks of 8 MiB and pages of 4 MiB, 4, 16 and 64 at once.
//!
//!     cargo bench --bench azure_upload -- --gib 4
//!
//! One line for each: MB/s and CPU seconds per GiB of this process (the sink is another one) and the
//! most memory that a run had, ours and bare in turns, and the medians of the turns' quotients.
//! Without `--gib` a few MiB show that it works.

#![allow(missing_docs, clippy::unwrap_used, reason = "a measuring program")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use azure_core::http::{ClientOptions, RetryOptions, Transport, Url, new_http_client};
use azure_storage_blob::models::HttpRange;
use azure_storage_blob::{BlobContainerClient, BlobContainerClientOptions};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use holdfast::clock::{Clock, System};
use holdfast::model::ObjectName;
use holdfast::settings::store_url;
use holdfast::store::{BlockId, LeaseId, PageBody, PageGuard, PageWrite, Store};

const BLOCK: usize = 8 << 20;
const PAGES: usize = 4 << 20;
/// The sink says that every page blob is this long.
const PAGE_BLOB: u64 = 1 << 40;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "sink") {
        return sink();
    }
    let gib = args.iter().position(|arg| arg == "--gib").map(|at| args[at + 1].parse().unwrap());
    let bytes = gib.map_or(64 << 20, |gib: u64| gib << 30);
    let rounds = if gib.is_some() { 8 } else { 1 };
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child =
        command.arg("sink").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut port = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(compare(port.trim(), bytes, rounds));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a run took.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    cpu: f64,
    /// The most memory that the process had during the run.
    memory_bytes: u64,
}

async fn compare(port: &str, bytes: u64, rounds: usize) {
    let endpoint = format!("http://127.0.0.1:{port}/acct/box");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("key"), "a2V5").unwrap();
    let text = format!(
        "azure:{endpoint}?auth=shared-key&file=key&requests-per-second=100000&mib-per-second=100000"
    );
    let store = holdfast::store::open(&store_url(&text, directory.path()).unwrap()).unwrap();
    let client_options = ClientOptions {
        retry: RetryOptions::none(),
        transport: Some(Transport::new(new_http_client(None))),
        ..ClientOptions::default()
    };
    let options = BlobContainerClientOptions { client_options, ..Default::default() };
    let bare =
        BlobContainerClient::new(Url::parse(&endpoint).unwrap(), None, Some(options)).unwrap();
    println!(
        "what   streams |   ours MB/s  s/GiB    MiB |   bare MB/s  s/GiB    MiB | MB/s ×  CPU ×"
    );
    for streams in [4, 16, 64] {
        for kind in ["blocks", "pages"] {
            let mut turns = Vec::new();
            for round in 0..rounds {
                let ours = async || measured(our_run(&store, kind, bytes, streams)).await;
                let bare = async || measured(bare_run(&bare, kind, bytes, streams)).await;
                // Whoever runs first finds other caches.
                turns.push(if round % 2 == 0 {
                    let first = ours().await;
                    (first, bare().await)
                } else {
                    let first = bare().await;
                    (ours().await, first)
                });
            }
            line(kind, streams, bytes, &turns);
        }
    }
}

fn line(kind: &str, streams: usize, bytes: u64, turns: &[(Took, Took)]) {
    let of = |value: fn(&(Took, Took)) -> f64| median(turns.iter().map(value).collect());
    let rate = |seconds: f64| bytes as f64 / 1e6 / seconds;
    let cost = |cpu: f64| cpu / (bytes as f64 / f64::from(1 << 30));
    println!(
        "{kind:6} {streams:7} | {:11.0} {:6.2} {:6.0} | {:11.0} {:6.2} {:6.0} | {:6.2} {:6.2}",
        rate(of(|(ours, _)| ours.seconds)),
        cost(of(|(ours, _)| ours.cpu)),
        of(|(ours, _)| ours.memory_bytes as f64 / 1048576.0),
        rate(of(|(_, bare)| bare.seconds)),
        cost(of(|(_, bare)| bare.cpu)),
        of(|(_, bare)| bare.memory_bytes as f64 / 1048576.0),
        of(|(ours, bare)| bare.seconds / ours.seconds),
        of(|(ours, bare)| ours.cpu / bare.cpu),
    );
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measured(run: impl Future<Output = ()>) -> Took {
    // 5: what `VmHWM` says begins anew.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (start, cpu) = (System.monotonic(), cpu());
    run.await;
    let elapsed: Duration = System.monotonic() - start;
    Took { seconds: elapsed.as_secs_f64(), cpu: self::cpu() - cpu, memory_bytes: peak() }
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// CPU seconds of this process so far, of all its threads.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

fn name(at: u64) -> ObjectName {
    ObjectName::new(format!("log/{at}")).unwrap()
}

async fn our_run(store: &Arc<dyn Store>, kind: &str, bytes: u64, streams: usize) {
    let size = if kind == "blocks" { BLOCK } else { PAGES };
    let body = Bytes::from(vec![7; size]);
    let guard = PageGuard { lease: LeaseId([1; 16]), sequence_number: 0 };
    let requests = (0..bytes / size as u64).map(|at| {
        let (store, body) = (Arc::clone(store), body.clone());
        let pages = kind == "pages";
        async move {
            if pages {
                let write = PageWrite { offset: at * PAGES as u64, body: PageBody::Data(body) };
                store.write_pages(&name(at % 64), &[write], &guard).await.unwrap();
            } else {
                store.stage_block(&name(at % 64), BlockId(at as u32), body).await.unwrap();
            }
        }
    });
    stream::iter(requests).buffer_unordered(streams).for_each(async |()| ()).await;
}

async fn bare_run(container: &BlobContainerClient, kind: &str, bytes: u64, streams: usize) {
    let size = if kind == "blocks" { BLOCK } else { PAGES };
    let body = Bytes::from(vec![7; size]);
    let requests = (0..bytes / size as u64).map(|at| {
        let blob = container.blob_client(name(at % 64).as_str());
        let (body, pages) = (body.clone(), kind == "pages");
        async move {
            let length = body.len() as u64;
            if pages {
                let start = at * PAGES as u64;
                let range: HttpRange = (start..start + length).into();
                let pages = blob.page_blob_client();
                pages.upload_pages(body.into(), length, range, None).await.unwrap();
            } else {
                let id = format!("{at:08x}").into_bytes();
                let blocks = blob.block_blob_client();
                blocks.stage_block(&id, length, body.into(), None).await.unwrap();
            }
        }
    });
    stream::iter(requests).buffer_unordered(streams).for_each(async |()| ()).await;
}

/// Takes every request and says that it was done.
fn sink() {
    // The measuring program holds the other end, however it ends.
    std::thread::spawn(|| {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || swallow(stream).ok());
    }
}

fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            head.push_str(&line.to_ascii_lowercase());
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut left: usize = length.map_or(0, |text| text.trim().parse().unwrap());
        while left > 0 {
            let most = left.min(buffer.len());
            left -= reader.read(&mut buffer[..most])?;
        }
        let answer = match head.starts_with("head ") {
            true => format!(
                "HTTP/1.1 200 OK\r\nx-ms-request-id: 1\r\nx-ms-blob-type: PageBlob\r\netag: \"1\"\r\ncontent-length: {PAGE_BLOB}\r\n\r\n"
            ),
            false => "HTTP/1.1 201 Created\r\nx-ms-request-id: 1\r\netag: \"1\"\r\ncontent-length: 0\r\n\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes())?;
    }
}
