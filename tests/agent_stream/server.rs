//! A process server in memory that speaks the real wire format and believes nothing: it checks that
//! the stream is gapless and legal, and can show any disk at any sequence.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use holdfast::agent::{AgentError, Connection, Dial, Way};
use holdfast::format::wire::{
    Ack, BookmarkReply, BookmarkRequest, FrameHeader, FromAgent, FromServer, HEADER_BYTES, Hello,
    Progress, Redirect, Refuse, Welcome, decode_from_agent, encode_from_server,
};
use holdfast::model::{
    CaptureMode, CatchUp, Change, DiskIndex, Epoch, Generation, Record, Sequence,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// What the server holds, and what it noticed.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) log: Vec<Record>,
    pub(crate) durable: u64,
    pub(crate) published: u64,
    pub(crate) epoch: Epoch,
    pub(crate) catching_up: bool,
    /// Rules that were broken; must stay empty.
    pub(crate) violations: Vec<String>,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) replies: Vec<BookmarkReply>,
    pub(crate) progress: Option<Progress>,
    /// Payload bytes ever received, counting what was sent twice.
    pub(crate) received_bytes: u64,
    /// What the agent said last of each disk.
    pub(crate) captures: BTreeMap<DiskIndex, CaptureMode>,
    pub(crate) goodbyes: u64,
    /// The certificate that each connection showed.
    pub(crate) shown: Vec<Vec<u8>>,
    pub(crate) ask: Vec<BookmarkRequest>,
    pub(crate) refuse: Option<Refuse>,
    /// Nothing is admitted any more; agents are sent there.
    pub(crate) redirect: Option<Redirect>,
    /// The one connection that counts; what an older one still holds is not heard.
    seat: u64,
}

/// The server and its switches.
#[derive(Default)]
pub(crate) struct Server {
    name: OnceLock<&'static str>,
    held: Mutex<Held>,
    /// No connection is accepted.
    pub(crate) away: AtomicBool,
    /// Nothing becomes durable.
    pub(crate) stalled: AtomicBool,
    /// Durable records are not published.
    pub(crate) unpublished: AtomicBool,
    /// Nothing is said any more, and what comes is read and forgotten.
    pub(crate) frozen: AtomicBool,
    /// Credit beyond what is durable.
    pub(crate) window: AtomicU64,
    /// Milliseconds between two acks.
    pub(crate) pace_ms: AtomicU64,
    kill: Notify,
}

impl Server {
    pub(crate) fn new(window: u64) -> Arc<Self> {
        let server = Self::default();
        server.window.store(window, Ordering::Relaxed);
        server.pace_ms.store(2, Ordering::Relaxed);
        Arc::new(server)
    }

    /// One of several.
    pub(crate) fn named(name: &'static str, window: u64) -> Arc<Self> {
        let server = Self::new(window);
        server.name.get_or_init(|| name);
        server
    }

    fn name(&self) -> &'static str {
        self.name.get().unwrap_or(&"ps-1")
    }

    /// Owns the machine from here on, with what `other` had published; whatever else that one had is
    /// lost with it.
    pub(crate) fn take_over(&self, other: &Self) {
        let theirs = other.held();
        let mut held = self.held();
        (held.refuse, held.redirect) = (None, None);
        held.log = theirs.log[..theirs.published as usize].to_vec();
        held.published = theirs.published;
        let published = held.published;
        held.cut(published);
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sitting(&self, seat: u64) -> std::io::Result<MutexGuard<'_, Held>> {
        let held = self.held();
        match held.seat == seat {
            true => Ok(held),
            false => Err(std::io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Ends the connection and forgets what was not durable; with `lost` what was not published.
    pub(crate) fn kill(&self, lost: bool) {
        let mut held = self.held();
        let durable = if lost { held.published } else { held.durable };
        held.cut(durable);
        self.kill.notify_waiters();
    }

    /// The store is set back to an older state, and the server with it.
    pub(crate) fn roll_back(&self, through: u64) {
        let mut held = self.held();
        held.published = through;
        held.cut(through);
        self.kill.notify_waiters();
    }

    /// Waits until an agent has left in order.
    pub(crate) async fn goodbye(&self) {
        for _ in 0..2000 {
            if self.held().goodbyes > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no goodbye came");
    }

    /// Speaks on one connection until it ends.
    pub(crate) async fn serve<T: AsyncRead + AsyncWrite + Send + Unpin>(&self, transport: T) {
        let killed = self.kill.notified();
        tokio::pin!(killed);
        killed.as_mut().enable();
        tokio::select! {
            () = killed => {}
            _ended = self.speak(transport) => {}
        }
    }

    async fn speak<T: AsyncRead + AsyncWrite + Send + Unpin>(
        &self,
        transport: T,
    ) -> std::io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(transport);
        let (FromAgent::Hello(hello), _) = receive(&mut reader).await? else {
            self.held().violations.push("the first frame is no hello".into());
            return Ok(());
        };
        let window = self.window.load(Ordering::Relaxed);
        let (answer, seat) = {
            let mut held = self.held();
            held.hellos.push(hello);
            let durable = held.durable;
            held.cut(durable);
            let seat = held.seat;
            let answer = match (held.refuse.clone(), held.redirect.clone()) {
                (Some(refuse), _) => FromServer::Refuse(refuse),
                (None, Some(redirect)) => FromServer::Redirect(redirect),
                (None, None) => FromServer::Welcome(held.welcome(self.name(), window)),
            };
            (answer, seat)
        };
        send(&mut writer, &answer).await?;
        if !matches!(answer, FromServer::Welcome(_)) {
            return Ok(());
        }
        let (spent, limit) = (AtomicU64::new(0), AtomicU64::new(window));
        tokio::try_join!(
            self.take(&mut reader, seat, &spent, &limit),
            self.tell(&mut writer, seat, &spent, &limit)
        )?;
        Ok(())
    }

    async fn take<R: AsyncRead + Unpin>(
        &self,
        reader: &mut R,
        seat: u64,
        spent: &AtomicU64,
        limit: &AtomicU64,
    ) -> std::io::Result<()> {
        loop {
            let (message, bytes) = receive(reader).await?;
            let mut held = self.sitting(seat)?;
            if held.redirect.is_some() || self.frozen.load(Ordering::Relaxed) {
                continue;
            }
            match message {
                FromAgent::Record(record) => {
                    let spent = spent.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    let limit = limit.load(Ordering::Relaxed);
                    if spent > limit {
                        let text = format!("{spent} bytes were sent, {limit} were allowed");
                        held.violations.push(text);
                    }
                    held.admit(record);
                }
                FromAgent::Progress(progress) => held.progress = Some(progress),
                FromAgent::Capture(capture) => {
                    held.captures.insert(capture.disk, capture.mode);
                }
                FromAgent::Bookmark(reply) => held.replies.push(reply),
                FromAgent::Goodbye => held.goodbyes += 1,
                FromAgent::Hello(_) => held.violations.push("a second hello".into()),
            }
        }
    }

    /// Every few milliseconds what came is durable and published, unless a switch says no.
    async fn tell<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        seat: u64,
        spent: &AtomicU64,
        limit: &AtomicU64,
    ) -> std::io::Result<()> {
        let mut freed = 0;
        loop {
            let pace = self.pace_ms.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(pace)).await;
            if self.frozen.load(Ordering::Relaxed) {
                continue;
            }
            let (ack, asked, last) = {
                let mut held = self.sitting(seat)?;
                if !self.stalled.load(Ordering::Relaxed) {
                    held.durable = held.log.len() as u64;
                    freed = spent.load(Ordering::Relaxed);
                }
                if !self.unpublished.load(Ordering::Relaxed) {
                    held.published = held.durable;
                }
                let credit_limit = freed + self.window.load(Ordering::Relaxed);
                limit.store(credit_limit, Ordering::Relaxed); // before it can be used
                let ack = Ack {
                    durable: Sequence(held.durable),
                    published: Sequence(held.published),
                    credit_limit,
                };
                let refuse = held.refuse.clone().map(FromServer::Refuse);
                let last = refuse.or(held.redirect.clone().map(FromServer::Redirect));
                (ack, std::mem::take(&mut held.ask), last)
            };
            if send(writer, &FromServer::Ack(ack)).await.is_err() {
                // The agent hears nothing any more; what it said last is still to be read.
                return std::future::pending().await;
            }
            for request in asked {
                send(writer, &FromServer::BookmarkRequest(request)).await?;
            }
            if let Some(last) = last {
                send(writer, &last).await?;
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
        }
    }
}

async fn receive<R: AsyncRead + Unpin>(reader: &mut R) -> std::io::Result<(FromAgent, u64)> {
    let mut header = [0; HEADER_BYTES];
    reader.read_exact(&mut header).await?;
    let header = FrameHeader::decode(&header).map_err(std::io::Error::other)?;
    let mut payload = vec![0; header.payload_length() as usize];
    reader.read_exact(&mut payload).await?;
    let message = decode_from_agent(&header, payload.into()).map_err(std::io::Error::other)?;
    Ok((message, header.frame_bytes()))
}

async fn send<W: AsyncWrite + Unpin>(writer: &mut W, message: &FromServer) -> std::io::Result<()> {
    let frame = encode_from_server(message);
    writer.write_all(&frame.header).await?;
    writer.write_all(&frame.payload.to_bytes()).await?;
    writer.flush().await
}

impl Held {
    fn welcome(&self, server: &str, window: u64) -> Welcome {
        Welcome {
            server: server.parse().unwrap(),
            generation: Generation(1),
            epoch: self.epoch,
            durable: Sequence(self.durable),
            published: Sequence(self.published),
            credit_limit: window,
            bookmark_interval_ms: 200,
        }
    }

    fn admit(&mut self, record: Record) {
        let expected = self.log.len() as u64 + 1;
        if record.sequence.0 != expected {
            let text = format!("record {} came where {expected} belongs", record.sequence);
            self.violations.push(text);
            return;
        }
        self.received_bytes += record.change.payload_bytes();
        self.follow(&record);
        self.log.push(record);
    }

    fn follow(&mut self, record: &Record) {
        let at = record.sequence;
        let after_begin = matches!(self.log.last().map(|r| &r.change), Some(Change::EpochBegin(_)));
        let initial = matches!(record.change, Change::CatchUpBegin(CatchUp::InitialReplication));
        if self.log.len() as u64 + 1 == at.0 && after_begin && !initial {
            self.violations.push(format!("record {at} stands before its initial replication"));
        }
        match &record.change {
            Change::EpochBegin(begin) => {
                if begin.epoch.0 != self.epoch.0 + 1 {
                    self.violations.push(format!("record {at} begins {:?}", begin.epoch));
                }
                self.epoch = begin.epoch;
            }
            _ if self.epoch == Epoch(0) => {
                self.violations.push(format!("record {at} before an epoch"))
            }
            Change::CatchUpBegin(_) => self.catching_up = true,
            Change::CatchUpEnd if !self.catching_up => {
                self.violations.push(format!("record {at} ends no catch-up"));
            }
            Change::CatchUpEnd => self.catching_up = false,
            Change::Bookmark(_) if self.catching_up => {
                self.violations.push(format!("record {at} is a bookmark in a catch-up"));
            }
            Change::Bookmark(_) | Change::Write { .. } | Change::Zero { .. } => {}
        }
    }

    /// The log ends here; no connection of before is heard any more.
    fn cut(&mut self, through: u64) {
        self.seat += 1;
        self.durable = through;
        self.log.truncate(through as usize);
        self.epoch = Epoch(0);
        self.catching_up = false;
        for record in std::mem::take(&mut self.log) {
            self.follow(&record);
            self.log.push(record);
        }
    }

    /// Every disk as the stream through `through` has it.
    pub(crate) fn images(&self, through: u64) -> BTreeMap<DiskIndex, Vec<u8>> {
        let mut images = BTreeMap::new();
        for record in &self.log[..through as usize] {
            match &record.change {
                Change::EpochBegin(begin) => {
                    images = (begin.disks.iter())
                        .map(|disk| (disk.index, vec![0; disk.size_bytes as usize]))
                        .collect();
                }
                Change::Write { disk, extent, payload } => {
                    let image: &mut Vec<u8> = images.get_mut(disk).unwrap();
                    image[extent.offset() as usize..extent.end() as usize]
                        .copy_from_slice(&payload.to_bytes());
                }
                Change::Zero { disk, extent } => {
                    let image: &mut Vec<u8> = images.get_mut(disk).unwrap();
                    image[extent.offset() as usize..extent.end() as usize].fill(0);
                }
                _ => {}
            }
        }
        images
    }

    /// Sequences of the bookmarks in the stream, with their names.
    pub(crate) fn bookmarks(&self) -> Vec<(u64, String)> {
        let named = |record: &Record| match &record.change {
            Change::Bookmark(bookmark) => Some((record.sequence.0, bookmark.name.clone())),
            _ => None,
        };
        self.log.iter().filter_map(named).collect()
    }
}

/// Several servers, each at `NAME:9443`, without a network.
pub(crate) struct Site(pub Vec<Arc<Server>>);

#[async_trait]
impl Dial for Site {
    async fn dial(&self, server: &str, way: Way) -> Result<Connection, AgentError> {
        let found = self.0.iter().find(|one| server == format!("{}:9443", one.name()));
        match found {
            Some(found) => Direct(Arc::clone(found)).dial(server, way).await,
            None => Err(AgentError::Dial {
                server: server.to_owned(),
                action: "looking up the name",
                source: "no such server".into(),
            }),
        }
    }
}

/// Connects without a network.
pub(crate) struct Direct(pub Arc<Server>);

#[async_trait]
impl Dial for Direct {
    async fn dial(&self, server: &str, _: Way) -> Result<Connection, AgentError> {
        if self.0.away.load(Ordering::Relaxed) {
            return Err(AgentError::Dial {
                server: server.to_owned(),
                action: "connecting",
                source: "away".into(),
            });
        }
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        let server = Arc::clone(&self.0);
        tokio::spawn(async move { server.serve(theirs).await });
        Ok(Connection::over(ours))
    }
}
