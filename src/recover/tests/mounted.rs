//! Points over NBD.

use super::*;
use crate::nbd::{Client, Server};

struct Mount {
    runtime: tokio::runtime::Runtime,
    world: World,
    directory: tempfile::TempDir,
    server: Server,
}

fn mount(writable: bool) -> Mount {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (world, reader) = runtime.block_on(async {
        let world = World::after(&story()).await;
        world.snapshot(7).await;
        let reader = world.opened("seq:12", "root").await.unwrap();
        (world, reader)
    });
    let handle = runtime.handle().clone();
    let mounted = match writable {
        true => Mounted::writable(reader, handle, directory.path()).unwrap(),
        false => Mounted::read_only(reader, handle),
    };
    let socket = directory.path().join("mount.sock");
    let server = Server::bind(&socket, "root", Arc::new(mounted)).unwrap();
    Mount { runtime, world, directory, server }
}

impl Mount {
    fn client(&self) -> Client {
        Client::connect(self.server.socket(), "root").unwrap()
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![1; SIZES[0]];
        self.client().read(0, &mut bytes).unwrap();
        bytes
    }
}

#[test]
fn a_mount_reads_as_the_point() {
    let mount = mount(false);
    let mut client = mount.client();
    assert!(client.read_only());
    assert!(mount.read() == mount.world.states[12].disks[0]);
    assert!(client.write(0, &[1; 512], false).is_err());
    let mut zeros = vec![true; SIZES[0]];
    let mut at = 0;
    for extent in client.block_status(0, SIZES[0] as u64).unwrap() {
        let end = at + extent.length as usize;
        zeros[at..end].fill(extent.zero);
        at = end;
    }
    assert_eq!(at, SIZES[0]);
    let bytes = mount.read();
    let lies = zeros.iter().zip(&bytes).any(|(zero, byte)| *zero && *byte != 0);
    assert!(!lies && zeros.contains(&true) && zeros.contains(&false));
    mount.server.stop();
}

#[test]
fn a_damaged_frame_is_an_error_and_the_rest_is_served() {
    let mount = mount(false);
    mount.runtime.block_on(async {
        let entries = mount.world.entries().await;
        let entry = entries.iter().find(|entry| entry.first == Sequence(8)).unwrap();
        mount.world.flip(&delta_name(&mount.world.machine, entry), 200).await;
    });
    let mut client = mount.client();
    let error = client.read(40 * 512, &mut [0; 512]).unwrap_err().to_string();
    assert!(error.contains("EIO"), "{error}");
    client.read(0, &mut [0; 4096]).unwrap();
}

#[test]
fn writes_go_to_the_overlay_and_the_point_stays() {
    let mount = mount(true);
    let mut client = mount.client();
    let mut expected = mount.world.states[12].disks[0].clone();
    let objects = || mount.runtime.block_on(mount.world.store.list("")).unwrap();
    let before = objects();
    // Parts of granules, their borders, several granules, the short last one.
    for (round, (sector, sectors)) in
        [(1, 1), (7, 2), (0, 49), (47, 2), (12, 8), (15, 17), (48, 1)].into_iter().enumerate()
    {
        let place = sector * 512..(sector + sectors) * 512;
        if round % 3 == 1 {
            client.zero(place.start as u64, place.len() as u64).unwrap();
            expected[place].fill(0);
        } else if round != 2 {
            expected[place.clone()].fill(round as u8 + 1);
            client.write(place.start as u64, &expected[place], round % 2 == 0).unwrap();
        } else {
            client.trim(8 * 512, 8 * 512).unwrap();
            expected[8 * 512..16 * 512].fill(0);
        }
        client.flush().unwrap();
        assert!(mount.read() == expected, "after write {round}");
    }
    assert_eq!(objects(), before, "the store is as it was");
    let point = mount.runtime.block_on(mount.world.read("seq:12")).unwrap();
    assert!(point == mount.world.states[12].disks);
    let names: Vec<_> = std::fs::read_dir(mount.directory.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "the overlay has no name: {names:?}");
    mount.server.stop();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]

    #[test]
    fn an_overlay_equals_an_array(
        writes in proptest::collection::vec((0usize..49, 1usize..20, 0u8..4), 1..30),
    ) {
        let mount = mount(true);
        let mut client = mount.client();
        let mut expected = mount.world.states[12].disks[0].clone();
        for (sector, sectors, byte) in writes {
            let place = sector * 512..(sector + sectors).min(49) * 512;
            expected[place.clone()].fill(byte);
            match byte {
                0 => client.zero(place.start as u64, place.len() as u64).unwrap(),
                _ => client.write(place.start as u64, &expected[place], false).unwrap(),
            }
            let mut read = vec![9; expected.len()];
            client.read(0, &mut read).unwrap();
            proptest::prop_assert!(read == expected);
        }
    }
}
