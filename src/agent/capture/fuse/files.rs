//! The file system: one directory with a file for each disk.
//!
//! Owns: which request means what. Does not own: bytes ([`super::content`]).

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::content::Content;

/// Bytes of one request, and of the kernel's read-ahead.
const REQUEST_BYTES: u32 = 1 << 20;
/// Nothing changes that the kernel remembers: neither names nor sizes.
const REMEMBER: Duration = Duration::from_secs(3600);
/// Inode of the first disk; 1 is the directory.
const FIRST_INODE: u64 = 2;
/// fallocate(2).
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;
/// lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The directory.
pub(super) struct Files(Vec<Arc<Content>>);

impl Files {
    pub(super) fn new(contents: Vec<Arc<Content>>) -> Self {
        Self(contents)
    }

    fn content(&self, inode: INodeNo) -> Result<&Content, Errno> {
        let at = inode.0.checked_sub(FIRST_INODE).and_then(|at| usize::try_from(at).ok());
        let content = at.and_then(|at| self.0.get(at));
        content.map(Arc::as_ref).ok_or(Errno::ENOENT)
    }

    fn attributes(&self, inode: INodeNo) -> Result<FileAttr, Errno> {
        if inode == INodeNo::ROOT {
            return Ok(attributes(inode, 0, FileType::Directory, 0o550));
        }
        let size_bytes = self.content(inode)?.size_bytes;
        Ok(attributes(inode, size_bytes, FileType::RegularFile, 0o660))
    }
}

/// The agent's user and group own the files; times mean nothing.
fn attributes(ino: INodeNo, size: u64, kind: FileType, perm: u16) -> FileAttr {
    FileAttr {
        ino,
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// What the workload is told.
fn told(error: &io::Error) -> Errno {
    tracing::warn!(%error, "a request for a disk's file was refused");
    error.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
}

/// fallocate: holes and zeros inside the file; there is no room to reserve.
fn zeroed(content: &Content, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
    let room = content.size_bytes.saturating_sub(offset);
    // Beyond the end there is nothing to make zero, and the size stays as it is.
    let length = if mode & KEEP_SIZE != 0 { length.min(room) } else { length };
    let trim = match mode & !KEEP_SIZE {
        PUNCH_HOLE => true,
        ZERO_RANGE => false,
        _ => return Err(Errno::EOPNOTSUPP),
    };
    if length == 0 {
        return Ok(());
    }
    content.zero(offset, length, trim).map_err(|error| told(&error))
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Whatever the kernel allows below is taken.
        let _most = config.set_max_write(REQUEST_BYTES);
        let _most = config.set_max_readahead(REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.iter().position(|content| content.name == name);
        let found = found.filter(|_| parent == INodeNo::ROOT).ok_or(Errno::ENOENT);
        let inode = found.map(|at| INodeNo(FIRST_INODE + at as u64));
        match inode.and_then(|inode| self.attributes(inode)) {
            Ok(attributes) => reply.entry(&REMEMBER, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Ok(attributes) => reply.attr(&REMEMBER, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let attributes = self.attributes(inode);
        let resized = |attributes: &FileAttr| size.is_some_and(|size| size != attributes.size);
        match attributes {
            // A disk has one size.
            Ok(attributes) if resized(&attributes) => reply.error(Errno::EPERM),
            Ok(_) if mode.is_some() || uid.is_some() || gid.is_some() => reply.error(Errno::EPERM),
            Ok(attributes) => reply.attr(&REMEMBER, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.content(inode) {
            // Nobody but the kernel that asks changes the file: what it cached stays true.
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = self.content(inode);
        let read = |content: &Content| content.read(offset, size.into());
        match content.and_then(|content| read(content).map_err(|error| told(&error))) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let content = self.content(inode);
        let write = |content: &Content| content.write(offset, bytes);
        match content.and_then(|content| write(content).map_err(|error| told(&error))) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    /// close(2) promises nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let content = self.content(inode);
        match content.and_then(|content| content.sync().map_err(|error| told(&error))) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let content = self.content(inode);
        match content.and_then(|content| zeroed(content, offset, length, mode)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn lseek(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let sought = self.content(inode).and_then(|content| {
            let offset = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            let found = match whence {
                SEEK_DATA => content.seek(offset, false),
                SEEK_HOLE => content.seek(offset, true),
                _ => return Err(Errno::EINVAL),
            };
            let found =
                found.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_i32))?;
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        match sought {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let itself = [".", ".."].map(|name| (INodeNo::ROOT, FileType::Directory, OsStr::new(name)));
        let disks = self.0.iter().enumerate().map(|(at, content)| {
            let inode = INodeNo(FIRST_INODE + at as u64);
            (inode, FileType::RegularFile, content.name.as_os_str())
        });
        let entries = itself.into_iter().chain(disks).zip(1..);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((inode, kind, name), next) in entries.skip(skip) {
            if reply.add(inode, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    /// Asked for before the first write; this answer is the last that is needed.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    /// Files come from the settings alone.
    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }
}
