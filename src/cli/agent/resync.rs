//! `holdfast agent resync`: everything is sent again, in a new epoch.

use crate::agent;
use crate::cli::Failure;
use crate::cli::output::print;
use crate::settings::AgentSettings;

/// Forgets what is published of the machine's disks.
///
/// # Errors
/// While its agent runs.
pub(super) fn run(settings: &AgentSettings) -> Result<(), Failure> {
    let gone = agent::resync(settings)?;
    let directory = settings.state_directory.display();
    let said = match gone.is_empty() {
        true => format!("{directory} holds no bitmap of a disk"),
        false => {
            let names = gone.iter().filter_map(|path| path.file_stem()?.to_str());
            let names: Vec<&str> = names.collect();
            format!("forgot what is published of {}", names.join(", "))
        }
    };
    print(&format!(
        "{said}: when the agent is started it sends every disk again, in a new epoch; the points of before stay"
    ))
}
