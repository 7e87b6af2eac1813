//! The protocol's core, sans-io: frames and watermarks in, records and messages out.
//!
//! Owns: what an agent may say, and when; what it is told. Does not own: sockets, time limits
//! ([`super::patience`]), who may be connected ([`super::machine`]), the rules of the stream itself
//! ([`super::stream`]). It is made by a hello that was accepted, so nothing can be admitted before.

use std::fmt::Display;

use super::credit::Credit;
use super::stream::StreamState;
use crate::format::wire::{
    self, Ack, BookmarkReply, Capture, FrameHeader, FrameKind, FromAgent, Hello, Progress, Refusal,
    Refuse, Welcome,
};
use crate::model::{
    Change, DiskSpec, Epoch, EpochBegin, Generation, MachineId, Payload, Record, Sequence, ServerId,
};
use crate::observe::{DiskCapture, error_chain};

/// What a welcome says beside the stream's own state.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Who serves the machine.
    pub server: ServerId,
    /// Under which ownership.
    pub generation: Generation,
    /// The stream is published through here.
    pub published: Sequence,
    /// How often the policy wants a bookmark, ms.
    pub bookmark_interval_ms: u32,
}

/// What a frame of a live session means.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The next record of the stream.
    Admit(Record),
    /// How the agent is.
    Progress(Progress),
    /// How well the changes of a disk are known.
    Capture(DiskCapture),
    /// What became of a bookmark request.
    Bookmark(BookmarkReply),
    /// The agent leaves; nothing follows.
    Goodbye,
}

/// One welcomed connection of one agent.
#[derive(Debug)]
pub struct Session {
    disks: Vec<DiskSpec>,
    /// The agent knows another history than the stream's: only a new epoch makes them one.
    must_begin_epoch: bool,
    credit: Credit,
    told: Ack,
}

/// The hello in a connection's first frame, when its sender may claim what it claims.
///
/// # Errors
/// The refusal to send.
pub fn greet(machine: &MachineId, header: &FrameHeader, payload: Payload) -> Result<Hello, Refuse> {
    if header.kind() != FrameKind::Hello {
        let text = format_args!("the first frame is {:?}, not a hello", header.kind());
        return Err(refuse(Refusal::Protocol, text));
    }
    // Before anything else of it: the rest of the layout belongs to the version.
    let version = wire::spoken_version(&payload.to_bytes()).unwrap_or(wire::VERSION);
    if version != wire::VERSION {
        let text = format_args!(
            "the agent speaks version {version}, this server speaks {}: upgrade the older",
            wire::VERSION
        );
        return Err(refuse(Refusal::Version, text));
    }
    let hello = match wire::decode_from_agent(header, payload) {
        Ok(FromAgent::Hello(hello)) => hello,
        Ok(_) => return Err(refuse(Refusal::Protocol, "the first frame is not a hello")),
        Err(error) => return Err(refuse(Refusal::Protocol, error)),
    };
    if hello.machine != *machine {
        let text = format_args!(
            "the certificate is for machine {machine}, the hello claims {}",
            hello.machine
        );
        return Err(refuse(Refusal::Identity, text));
    }
    Ok(hello)
}

impl Session {
    /// Begins a session behind `stream`, all of which is durable. `window` is what may be in flight.
    ///
    /// # Errors
    /// The refusal to send when the agent's history and the stream's do not fit.
    pub fn begin(
        hello: Hello,
        stream: &StreamState,
        standing: &Standing,
        window: u64,
    ) -> Result<(Self, Welcome), Refuse> {
        check_histories(&hello, stream)?;
        let set_back = hello.witnessed > standing.published;
        if set_back {
            tracing::error!(machine = %hello.machine, witnessed = %hello.witnessed,
                published = %standing.published,
                "the store was set back: the machine begins a new epoch");
        }
        let must_begin_epoch = begins_epoch(&hello, stream.epoch, standing.published);
        let mut credit = Credit::new();
        credit.grant(window);
        let told = Ack {
            durable: stream.sequence,
            published: standing.published,
            credit_limit: credit.limit(),
        };
        let welcome = Welcome {
            server: standing.server.clone(),
            generation: standing.generation,
            epoch: stream.epoch,
            durable: told.durable,
            published: told.published,
            credit_limit: told.credit_limit,
            bookmark_interval_ms: standing.bookmark_interval_ms,
        };
        let session = Self { disks: hello.disks, must_begin_epoch, credit, told };
        Ok((session, welcome))
    }

    /// Takes a frame. `stream` moves on with every admitted record, and only then.
    ///
    /// # Errors
    /// The refusal that ends the connection.
    pub fn handle_frame(
        &mut self,
        stream: &mut StreamState,
        header: &FrameHeader,
        payload: Payload,
    ) -> Result<Event, Refuse> {
        let message = wire::decode_from_agent(header, payload)
            .map_err(|error| refuse(Refusal::Protocol, error))?;
        match message {
            FromAgent::Hello(_) => Err(refuse(Refusal::Protocol, "a second hello")),
            FromAgent::Record(record) => self.admit(stream, header.frame_bytes(), record),
            FromAgent::Progress(progress) => Ok(Event::Progress(progress)),
            FromAgent::Bookmark(reply) => Ok(Event::Bookmark(reply)),
            FromAgent::Capture(Capture { disk, mode, why }) => {
                let spec = self.disks.iter().find(|spec| spec.index == disk);
                let unknown = || {
                    let text =
                        format_args!("a word on disk {}, which the hello does not have", disk.0);
                    refuse(Refusal::Protocol, text)
                };
                let name = spec.ok_or_else(unknown)?.name.clone();
                Ok(Event::Capture(DiskCapture { disk: name, mode, why }))
            }
            FromAgent::Goodbye => Ok(Event::Goodbye),
        }
    }

    /// The newest word on watermarks and credit, when it is news. `window` is what may be in flight
    /// now; nothing while the cache is full.
    pub fn poll_ack(&mut self, durable: Sequence, published: Sequence, window: u64) -> Option<Ack> {
        self.credit.durable_through(durable);
        self.credit.grant(window);
        let ack = Ack {
            durable: durable.max(self.told.durable),
            published: published.max(self.told.published),
            credit_limit: self.credit.limit(),
        };
        let news = ack != self.told;
        self.told = ack;
        news.then_some(ack)
    }

    fn admit(
        &mut self,
        stream: &mut StreamState,
        frame_bytes: u64,
        record: Record,
    ) -> Result<Event, Refuse> {
        // What it was told, not what it could be told: the agent cannot know more.
        if !self.credit.covers(frame_bytes) {
            let (received, limit) = (self.credit.received(), self.told.credit_limit);
            let text = format_args!(
                "record {} of {frame_bytes} bytes after {received} exceeds the credit of {limit}",
                record.sequence
            );
            return Err(refuse(Refusal::Protocol, text));
        }
        match &record.change {
            Change::EpochBegin(begin) if begin.disks != self.disks => {
                let text = format_args!(
                    "record {} begins epoch {} with other disks than the hello's",
                    record.sequence, begin.epoch
                );
                return Err(refuse(Refusal::Protocol, text));
            }
            Change::EpochBegin(_) => {}
            _ if self.must_begin_epoch => {
                let text = format_args!(
                    "record {} continues epoch {}, which this agent does not track in: begin epoch {}",
                    record.sequence,
                    stream.epoch,
                    Epoch(stream.epoch.0.saturating_add(1)),
                );
                return Err(refuse(Refusal::Protocol, text));
            }
            _ => {}
        }
        stream
            .follow(record.sequence, &record.change)
            .map_err(|error| refuse(Refusal::Protocol, error_chain(&error)))?;
        if matches!(record.change, Change::EpochBegin(_)) {
            self.must_begin_epoch = false;
        }
        self.credit.spend(record.sequence, frame_bytes);
        Ok(Event::Admit(record))
    }
}

/// Whether the agent's first record must be an epoch begin, on a stream that is in `epoch`.
fn begins_epoch(hello: &Hello, epoch: Epoch, published: Sequence) -> bool {
    let never_sent = hello.last == Sequence::ZERO;
    let set_back = hello.witnessed > published;
    set_back || hello.epoch < epoch || (hello.epoch > epoch && never_sent)
}

/// Whether whoever says this can be the next life of the agent whose stream `tracks` this: it goes on
/// there, and has given out nothing itself.
pub(super) fn follows(hello: &Hello, tracks: &EpochBegin, published: Sequence) -> bool {
    let begins = hello.epoch == Epoch(0) || begins_epoch(hello, tracks.epoch, published);
    hello.last == Sequence::ZERO && !begins && hello.disks == tracks.disks
}

/// Whether what the agent remembers can be this stream.
fn check_histories(hello: &Hello, stream: &StreamState) -> Result<(), Refuse> {
    if hello.last != Sequence::ZERO && stream.sequence > hello.last {
        let text = format_args!(
            "the stream of {} is at record {}, this agent gave out {} only: somebody else writes it",
            hello.machine, stream.sequence, hello.last
        );
        return Err(refuse(Refusal::Foreign, text));
    }
    if hello.epoch == stream.epoch && stream.epoch != Epoch(0) && hello.disks != stream.disks {
        let text = format_args!(
            "the disks of {} are not those of epoch {}: a change of disks needs a new epoch",
            hello.machine, stream.epoch
        );
        return Err(refuse(Refusal::Protocol, text));
    }
    Ok(())
}

/// A refusal in words.
pub(super) fn refuse(code: Refusal, text: impl Display) -> Refuse {
    Refuse { code, text: text.to_string() }
}

#[cfg(test)]
mod tests;
