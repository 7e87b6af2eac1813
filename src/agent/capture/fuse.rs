//! `capture = "fuse"`: disks as files `DIRECTORY/DISK.img`, for loop devices and whatever wants a
//! file. It stands in the way of every write, as the NBD server does, and serves the same export.
//!
//! Owns: the mount and its end. Does not own: what a request does ([`files`], [`content`]).

mod content;
mod files;
mod mounts;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};

use crate::model::DiskName;
use crate::nbd::Export;

use content::Content;
use files::Files;

/// Threads that carry out requests of one mount: as many writes are under way at a time. Each has a
/// buffer of 1 MiB in use.
const THREADS: usize = 4;
/// What the mount table names as the source of our mounts.
const SOURCE: &str = "holdfast-agent";

/// Disks presented as files. Dropping it ends them.
pub(in crate::agent) struct Mounted {
    directory: PathBuf,
    contents: Vec<Arc<Content>>,
    session: Option<BackgroundSession>,
}

/// Presents each disk as a file in `directory`, which is made if need be, and must be empty.
///
/// # Errors
/// When something else is mounted or stands there, or the system does not allow it. Says the cure.
pub(in crate::agent) fn mount(
    directory: &Path,
    disks: &[(DiskName, Arc<dyn Export>)],
) -> io::Result<Mounted> {
    let directory = mounts::clear(directory)?;
    let contents: Vec<Arc<Content>> =
        disks.iter().map(|(name, export)| Arc::new(Content::new(name, export))).collect();
    let begin = |acl| Session::new(Files::new(contents.clone()), &directory, &config(acl));
    // Everybody whom the files' permissions let: root's loop devices beside the agent's own user.
    let session = match begin(SessionACL::All) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            tracing::info!(directory = %directory.display(), %error,
                "only the agent's user sees the disks: user_allow_other in /etc/fuse.conf lets others");
            begin(SessionACL::Owner)
        }
        other => other,
    };
    let session = session.and_then(Session::spawn).map_err(|error| {
        let cure =
            "as another user than root, fusermount3 (package fuse3) and /dev/fuse are needed";
        io::Error::new(error.kind(), format!("{error}; {cure}"))
    })?;
    Ok(Mounted { directory, contents, session: Some(session) })
}

fn config(acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(SOURCE.to_owned()),
        MountOption::Subtype(SOURCE.to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    config.acl = acl;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
}

impl Mounted {
    /// Refuses every request from here on, after those under way were answered, and takes the
    /// files away. Who still has one open (a loop device) gets errors.
    pub(in crate::agent) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(session) = self.session.take() else { return };
        for content in &self.contents {
            content.end();
        }
        // Unmounts if nobody has a file open. Its threads are not waited for: they live until the
        // last user closes, and have nothing to serve any more.
        drop(session);
        if let Err(error) = mounts::detach_ours(&self.directory) {
            let directory = self.directory.display();
            tracing::warn!(%directory, %error, "the disks stay mounted without an agent");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.end();
    }
}
