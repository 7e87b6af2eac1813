//! Walking the directory.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::if_found;
use super::objects::modified;
use super::root::Root;
use super::{Listed, ObjectName, Result};
use crate::store::rules::io_error;

impl Root {
    /// Objects whose name begins with `prefix`, sorted by name.
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut rows = Vec::new();
        let start = match prefix.rsplit_once('/') {
            None => String::new(),
            // A prefix that is no path of names names nothing, and must not lead out of here.
            Some((path, _)) if ObjectName::new(path).is_ok() => path.to_owned(),
            Some(_) => return Ok(rows),
        };
        self.walk(&start, prefix, &mut rows)
            .map_err(|error| io_error(&self.store, format!("{prefix}*"), "listing", error))?;
        rows.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    fn walk(&self, path: &str, prefix: &str, rows: &mut Vec<Listed>) -> io::Result<()> {
        // What vanishes while it is being listed is not listed.
        let entries = if_found(std::fs::read_dir(self.path.join(path)))?;
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            let Some(part) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let text = match path {
                "" => part,
                _ => format!("{path}/{part}"),
            };
            let Ok(name) = ObjectName::new(text) else {
                continue; // hidden, or not ours (`lost+found`)
            };
            let Some(metadata) = if_found(entry.metadata())? else {
                continue;
            };
            if metadata.is_dir() {
                let text = name.as_str();
                if text.starts_with(prefix) || prefix.starts_with(&format!("{text}/")) {
                    self.walk(text, prefix, rows)?;
                }
            } else if metadata.is_file() && name.as_str().starts_with(prefix) {
                rows.push(Listed { name, length: metadata.len(), modified: modified(&metadata) });
            }
        }
        Ok(())
    }
}

/// All directories under `top` that hold a file called `marker`.
pub(super) fn directories_with(
    top: &Path,
    marker: &str,
    found: &mut Vec<PathBuf>,
) -> io::Result<()> {
    for entry in if_found(std::fs::read_dir(top))?.into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories_with(&entry.path(), marker, found)?;
        } else if entry.file_name() == marker {
            found.push(top.to_owned());
        }
    }
    Ok(())
}
