use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::clock::System;
use crate::vault::Policy;

fn machine(name: &str) -> MachineId {
    name.parse().unwrap()
}

fn document(machine: &MachineId, data_keys: Vec<WrappedKey>) -> MachineDocument {
    MachineDocument {
        machine: machine.clone(),
        created: Timestamp(0),
        data_keys,
        certificates: Vec::new(),
        policy: Policy::default(),
    }
}

#[test]
fn a_key_file_is_made_once_and_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kek");
    let made = KeyEncryptionKey::create(&path, &System).unwrap();
    let read = KeyEncryptionKey::load(&path).unwrap();
    assert_eq!((made.id(), *made.secret), (read.id(), *read.secret));
    assert_eq!(made.id().len(), 16);
    assert!(KeyEncryptionKey::create(&path, &System).is_err());
    assert_eq!(KeyEncryptionKey::load(&path).unwrap().id(), made.id());
}

#[test]
fn a_readable_or_senseless_key_file_is_refused_with_the_cure() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kek");
    let write = |content: &[u8], mode| {
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let digits = "0f".repeat(32);
    for mode in [0o640, 0o604, 0o660, 0o601] {
        write(digits.as_bytes(), mode);
        let message = KeyEncryptionKey::load(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("chmod 600 {}", path.display())), "{message}");
    }
    for bad in [&b""[..], &digits.as_bytes()[1..], b"zz", &[0xff; 64], &[b'0'; 5000]] {
        write(bad, 0o600);
        let error = KeyEncryptionKey::load(&path).unwrap_err();
        assert!(matches!(error, SealError::KeyFileContent { .. }), "{error}");
    }
    write(format!("{digits}\n").as_bytes(), 0o400);
    assert_eq!(*KeyEncryptionKey::load(&path).unwrap().secret, [0x0f; 32]);
    std::fs::remove_file(&path).unwrap();
    let message = KeyEncryptionKey::load(&path).unwrap_err().to_string();
    assert!(message.contains("kek"), "{message}");
}

#[test]
fn a_wrapped_key_opens_for_its_machine_and_id_only() {
    let kek = KeyEncryptionKey::of([1; 32].into());
    let (web, db) = (machine("web"), machine("db"));
    let (key, wrapped) = kek.make_data_key(&web, 3, &System, Timestamp(5));
    let opened = kek.unwrap(&web, &wrapped).unwrap();
    assert_eq!((opened.id(), &**opened.secret), (3, &**key.secret));

    let altered = |error| assert!(matches!(error, SealError::WrappedKeyAltered { .. }));
    altered(kek.unwrap(&db, &wrapped).unwrap_err());
    let other_id = WrappedKey { id: 4, ..wrapped.clone() };
    altered(kek.unwrap(&web, &other_id).unwrap_err());
    for digit in 0..wrapped.sealed.len() {
        let mut flipped = wrapped.clone();
        let new = if &wrapped.sealed[digit..=digit] == "0" { "1" } else { "0" };
        flipped.sealed.replace_range(digit..=digit, new);
        altered(kek.unwrap(&web, &flipped).unwrap_err());
    }
    let short = WrappedKey { nonce: "00".into(), ..wrapped.clone() };
    let message = kek.unwrap(&web, &short).unwrap_err().to_string();
    assert!(message.contains("nonce") && message.contains("web"), "{message}");

    let stranger = KeyEncryptionKey::of([2; 32].into());
    let message = stranger.unwrap(&web, &wrapped).unwrap_err().to_string();
    for part in ["data key 3", "web", kek.id(), stranger.id()] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn a_ring_seals_with_the_newest_and_opens_with_all() {
    let kek = KeyEncryptionKey::of([1; 32].into());
    let web = machine("web");
    let wrapped: Vec<_> =
        (1..=3).map(|id| kek.make_data_key(&web, id, &System, Timestamp(0)).1).collect();
    let ring = KeyRing::unwrap(&kek, &document(&web, wrapped.clone())).unwrap();
    assert_eq!(ring.newest().id(), 3);
    assert_eq!(ring.by_id(1).unwrap().id(), 1);
    assert!(ring.by_id(4).is_none());
    let reversed: Vec<_> = wrapped.into_iter().rev().collect();
    for keys in [Vec::new(), reversed] {
        let error = KeyRing::unwrap(&kek, &document(&web, keys)).unwrap_err();
        assert!(matches!(error, SealError::DataKeys { .. }), "{error}");
    }
}

#[test]
fn purposes_have_keys_of_their_own_and_none_is_printed() {
    let kek = KeyEncryptionKey::of([1; 32].into());
    assert_eq!(kek.derive("holdfast vault 1"), kek.derive("holdfast vault 1"));
    assert_ne!(kek.derive("holdfast vault 1"), kek.derive("holdfast vault 2"));
    assert!(!format!("{kek:?}").contains("0101"));
    let (key, _) = kek.make_data_key(&machine("web"), 1, &System, Timestamp(0));
    assert_eq!(format!("{key:?}"), "DataKey(1)");
}
