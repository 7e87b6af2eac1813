//! Whether this kernel lets the program run, and how much of it.
//!
//! Owns: each refusal with its reason and what to do instead. Does not own: the proof that what was
//! copied is right ([`super::proof`]).

use std::path::Path;

/// What the answer rests on; tests make up each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) architecture: &'static str,
    /// `uname -r`.
    pub(super) release: String,
    /// The kernel describes its types in `/sys/kernel/btf/vmlinux`.
    pub(super) types: bool,
    /// Content of `/sys/kernel/security/lockdown`; empty where there is none.
    pub(super) lockdown: String,
    /// Effective capabilities.
    pub(super) capabilities: u64,
}

/// How far it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Possible {
    /// Where and what.
    Data,
    /// Where only, and why.
    Extents(String),
    /// Nothing, and why.
    Nothing(String),
}

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// `bpf_loop` came with it.
const KERNEL_LEAST: (u32, u32) = (5, 17);

impl Facts {
    /// Those of this machine.
    pub(super) fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let capabilities = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        Self {
            architecture: std::env::consts::ARCH,
            release: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default(),
            types: Path::new("/sys/kernel/btf/vmlinux").exists(),
            lockdown: std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default(),
            capabilities: capabilities.unwrap_or_default(),
        }
    }

    /// How far capture can go.
    pub(super) fn judge(&self) -> Possible {
        let nothing = |why: String| Possible::Nothing(format!("{why}; use capture = \"scan\""));
        let has = |capability: u32| self.capabilities >> capability & 1 == 1;
        let release = self.release.trim();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let (major, minor) = KERNEL_LEAST;
        if version < KERNEL_LEAST {
            return nothing(format!("the kernel is {release}, {major}.{minor} or later is needed"));
        }
        if !self.types {
            return nothing(
                "the kernel has no BTF (/sys/kernel/btf/vmlinux is missing)".to_owned(),
            );
        }
        if self.lockdown.contains("[confidentiality]") {
            let why = "the kernel is locked down (confidentiality): no program may read its memory";
            return nothing(why.to_owned());
        }
        let all = has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON));
        if !all {
            return nothing(
                "a capability is missing: run the agent as root, or give it CAP_BPF and CAP_PERFMON \
                 (AmbientCapabilities= of its unit)"
                    .to_owned(),
            );
        }
        if self.architecture != "x86_64" {
            return Possible::Extents(format!(
                "on {} it is not known where the kernel maps memory",
                self.architecture
            ));
        }
        Possible::Data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_obstacle_has_its_own_words_and_the_next_best_way() {
        let good = Facts {
            architecture: "x86_64",
            release: "6.1.0-31-amd64\n".to_owned(),
            types: true,
            lockdown: "none [integrity] confidentiality\n".to_owned(),
            capabilities: 1 << CAP_BPF | 1 << CAP_PERFMON,
        };
        assert_eq!(good.judge(), Possible::Data);
        let root = Facts { capabilities: 1 << CAP_SYS_ADMIN, ..good.clone() };
        assert_eq!(root.judge(), Possible::Data);
        let arm = Facts { architecture: "aarch64", ..good.clone() };
        assert!(matches!(arm.judge(), Possible::Extents(why) if why.contains("aarch64")));
        let cases = [
            (Facts { types: false, ..good.clone() }, "BTF"),
            (Facts { release: "5.16.9".to_owned(), ..good.clone() }, "5.16.9"),
            (Facts { release: "4.19.0-27".to_owned(), ..good.clone() }, "5.17 or later"),
            (Facts { release: String::new(), ..good.clone() }, "5.17 or later"),
            (Facts { capabilities: 1 << CAP_BPF, ..good.clone() }, "CAP_PERFMON"),
            (Facts { capabilities: 1 << CAP_PERFMON, ..good.clone() }, "CAP_BPF"),
            (
                Facts { lockdown: "none integrity [confidentiality]".to_owned(), ..good },
                "locked down",
            ),
        ];
        for (facts, word) in cases {
            let judged = facts.judge();
            let Possible::Nothing(why) = &judged else { panic!("{facts:?}: {judged:?}") };
            assert!(why.contains(word) && why.contains("scan"), "{why}");
        }
    }
}
