//! What an ext4 in an image says about itself.

use std::path::Path;

/// Whether an ext4 has a journal that must be replayed before it is whole.
pub fn needs_recovery(image: &Path) -> bool {
    let said = super::run("dumpe2fs", &[Path::new("-h"), image]).stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let features = said.lines().find(|line| line.starts_with("Filesystem features:"));
    features.unwrap_or_else(|| panic!("{said}")).contains("needs_recovery")
}

/// Checks an ext4 as it stands, writing nothing, so replaying nothing.
pub fn clean_without_journal(image: &Path) {
    super::run("e2fsck", &[Path::new("-fn"), image]);
}
