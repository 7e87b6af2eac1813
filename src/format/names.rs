//! Where objects stand in the store: every name in one place. Listed in `docs/formats/manifest.md`.

use crate::model::{
    DeltaId, DiskName, Epoch, Generation, MachineId, ObjectName, Sequence, ServerId,
};

fn name(text: String) -> ObjectName {
    ObjectName::new(text).expect("made of checked names and hexadecimal digits")
}

/// `machines/<machine>/manifest`
#[must_use]
pub fn manifest(machine: &MachineId) -> ObjectName {
    name(format!("machines/{machine}/manifest"))
}

/// `machines/<machine>/pages/<id>`
#[must_use]
pub fn manifest_page(machine: &MachineId, id: DeltaId) -> ObjectName {
    name(format!("machines/{machine}/pages/{id}"))
}

/// Prefix of all manifest pages of a machine.
#[must_use]
pub fn manifest_pages(machine: &MachineId) -> String {
    format!("machines/{machine}/pages/")
}

/// `machines/<machine>/log/<generation>-<first>-<last>-<id>`, numbers as 16 hexadecimal digits.
#[must_use]
pub fn delta(
    machine: &MachineId,
    generation: Generation,
    first: Sequence,
    last: Sequence,
    id: DeltaId,
) -> ObjectName {
    let (g, f, l) = (generation.0, first.0, last.0);
    name(format!("machines/{machine}/log/{g:016x}-{f:016x}-{l:016x}-{id}"))
}

/// Prefix of all deltas of a machine.
#[must_use]
pub fn deltas(machine: &MachineId) -> String {
    format!("machines/{machine}/log/")
}

/// What a delta's name says: generation, first, last, id.
#[must_use]
pub fn parse_delta(
    machine: &MachineId,
    object: &ObjectName,
) -> Option<(Generation, Sequence, Sequence, DeltaId)> {
    let rest = object.as_str().strip_prefix(&deltas(machine))?;
    let mut parts = rest.splitn(4, '-');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let (g, f, l) = (Generation(number()?), Sequence(number()?), Sequence(number()?));
    let id = DeltaId::parse(parts.next()?)?;
    (delta(machine, g, f, l, id) == *object).then_some((g, f, l, id))
}

/// `machines/<machine>/machine`: the vault's document of it (keys, certificates, policy).
#[must_use]
pub fn machine_document(machine: &MachineId) -> ObjectName {
    name(format!("machines/{machine}/machine"))
}

/// `machines/<machine>/points`: applied watermark and snapshot points.
#[must_use]
pub fn points_document(machine: &MachineId) -> ObjectName {
    name(format!("machines/{machine}/points"))
}

/// `machines/<machine>/pins/<id>`: a running recovery that needs its point.
#[must_use]
pub fn pin(machine: &MachineId, id: &str) -> ObjectName {
    name(format!("machines/{machine}/pins/{id}"))
}

/// Prefix of all pins of a machine.
#[must_use]
pub fn pins(machine: &MachineId) -> String {
    format!("machines/{machine}/pins/")
}

/// Prefix of everything about machines.
pub const MACHINES: &str = "machines/";

/// `seed/asrseeddisk-<machine>-<disk>-<epoch>`
#[must_use]
pub fn seed_disk(machine: &MachineId, disk: &DiskName, epoch: Epoch) -> ObjectName {
    name(format!("seed/asrseeddisk-{machine}-{disk}-{epoch}"))
}

/// Prefix of all seed disks.
pub const SEED_DISKS: &str = "seed/";

/// `vault/machines/<machine>`: the roll of machines; listing it does not list every delta.
#[must_use]
pub fn machine_roll_entry(machine: &MachineId) -> ObjectName {
    name(format!("{MACHINE_ROLL}{machine}"))
}

/// Prefix of the roll of machines.
pub const MACHINE_ROLL: &str = "vault/machines/";

/// `vault/site`
#[must_use]
pub fn site_document() -> ObjectName {
    name("vault/site".to_owned())
}

/// `vault/servers/<server>`
#[must_use]
pub fn server_document(server: &ServerId) -> ObjectName {
    name(format!("{SERVERS}{server}"))
}

/// Prefix of all process servers.
pub const SERVERS: &str = "vault/servers/";

/// `vault/assignments/<machine>`: which process server shall serve it.
#[must_use]
pub fn assignment(machine: &MachineId) -> ObjectName {
    name(format!("vault/assignments/{machine}"))
}

/// `vault/tokens/<id>`: a token's hash and what it allows.
#[must_use]
pub fn token_document(id: &str) -> ObjectName {
    name(format!("vault/tokens/{id}"))
}

/// Prefix of all tokens.
pub const TOKENS: &str = "vault/tokens/";
