//! A loop device whose writes the test holds back or fails: over a file that this process serves through
//! FUSE, with direct I/O, so that reads pass a write that is held. It fails every discard. Takes root.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL,
    WriteFlags,
};

use super::loops::Loop;

const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    hold: Option<Range<u64>>,
    held: Vec<(u64, Vec<u8>, ReplyWrite)>,
    fail: Option<Range<u64>>,
    /// Reads that touched what is held back.
    passed: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

/// The device, and what stands on it. Writes that are held go through when it is dropped.
pub struct Held {
    shared: Arc<Shared>,
    pub device: Option<Loop>,
    session: Option<BackgroundSession>,
    _folder: tempfile::TempDir,
}

impl Held {
    pub fn new(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::default());
        shared.state.lock().unwrap().bytes = vec![0; bytes as usize];
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("held".to_owned())];
        config.acl = SessionACL::All;
        let session = Session::new(Served(Arc::clone(&shared)), folder.path(), &config);
        let session = Some(session.and_then(Session::spawn).unwrap());
        let mut held = Self { shared, device: None, session, _folder: folder };
        let options = ["--direct-io=on", "-P"];
        held.device = Some(Loop::over(&held._folder.path().join("disk"), &options)?);
        Some(held)
    }

    pub fn path(&self) -> PathBuf {
        self.device.as_ref().unwrap().path.clone()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.shared.state.lock().unwrap().bytes.clone()
    }

    /// Writes that touch the range get no answer from here on, and do not change it.
    pub fn hold(&self, range: Range<u64>) {
        let mut state = self.shared.state.lock().unwrap();
        (state.hold, state.passed) = (Some(range), 0);
    }

    /// Writes that touch the range fail from here on.
    pub fn fail(&self, range: Option<Range<u64>>) {
        self.shared.state.lock().unwrap().fail = range;
    }

    /// Returns when a write is held.
    pub fn holds(&self) {
        let state = self.shared.state.lock().unwrap();
        let wait = Duration::from_secs(60);
        let waited = self.shared.moved.wait_timeout_while(state, wait, |now| now.held.is_empty());
        assert!(!waited.unwrap().1.timed_out(), "no write came");
    }

    /// Whether what is held was read by then: waits so long for it.
    pub fn was_read(&self, wait: Duration) -> bool {
        let state = self.shared.state.lock().unwrap();
        let waited = self.shared.moved.wait_timeout_while(state, wait, |now| now.passed == 0);
        waited.unwrap().0.passed > 0
    }

    /// What is held happens and is answered.
    pub fn let_go(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.hold = None;
        for (offset, bytes, reply) in std::mem::take(&mut state.held) {
            state.put(offset, &bytes);
            reply.written(bytes.len() as u32);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.let_go();
        self.device = None;
        drop(self.session.take());
    }
}

impl State {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let at = offset as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn touches(range: Option<&Range<u64>>, offset: u64, length: usize) -> bool {
    range.is_some_and(|range| offset < range.end && range.start < offset + length as u64)
}

struct Served(Arc<Shared>);

impl Served {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let file = inode == FILE;
        FileAttr {
            ino: inode,
            size: if file { self.0.state.lock().unwrap().bytes.len() as u64 } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: if file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _most = config.set_max_write(1 << 20);
        // A write that is held must not keep the device's worker.
        config
            .add_capabilities(InitFlags::FUSE_ASYNC_DIO)
            .map_err(|_| io::Error::other("FUSE without asynchronous direct I/O"))
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "disk" {
            true => reply.entry(&TTL, &self.attributes(FILE), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.0.state.lock().unwrap();
        if touches(state.hold.as_ref(), offset, size as usize) && !state.held.is_empty() {
            state.passed += 1;
            self.0.moved.notify_all();
        }
        let end = state.bytes.len().min(offset as usize + size as usize);
        reply.data(&state.bytes[(offset as usize).min(end)..end]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.state.lock().unwrap();
        if touches(state.fail.as_ref(), offset, bytes.len()) {
            return reply.error(Errno::EIO);
        }
        if touches(state.hold.as_ref(), offset, bytes.len()) {
            state.held.push((offset, bytes.to_vec(), reply));
            self.0.moved.notify_all();
            return;
        }
        state.put(offset, bytes);
        reply.written(bytes.len() as u32);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }
}
