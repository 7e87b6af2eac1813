//! Finding the disk of a guest that is meant.
//!
//! Owns: what counts as a device's name. Does not own: what is done with it.

use serde_json::{Value, json};

use super::error::MirrorError;
use super::names::Names;
use super::qmp::Qmp;

/// A guest's disk inside QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Device {
    /// The node that the guest writes to.
    pub(super) node: String,
    /// Bytes.
    pub(in crate::agent) size_bytes: u64,
    /// The guest's device sits on it, with no other node between.
    pub(super) topmost: bool,
    /// Names of our dirty bitmaps.
    pub(super) bitmaps: Vec<String>,
    /// Those on other nodes, each with its node's name: of a disk that the device had before. What was written to
    /// this one since is in none of them.
    pub(super) elsewhere: Vec<(String, String)>,
    /// The one of them that records, if they hold every write that the agent may have missed.
    pub(super) recording: Option<String>,
}

/// Looks for `device`: a drive's or device's id, its path in QEMU, or the name of a node.
///
/// # Errors
/// When there is none of that name (the error lists those there are), or another job mirrors it.
pub(super) fn find(qmp: &mut Qmp, device: &str, names: &Names) -> Result<Device, MirrorError> {
    let drives = qmp.execute("query-block", json!({}))?;
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    choose(&drives, &nodes, qmp.monitor(), device, names)
}

/// The guest's device that sits on `node`, by its path in QEMU.
///
/// # Errors
/// When QEMU cannot be asked.
pub(super) fn above(qmp: &mut Qmp, node: &str) -> Result<Option<String>, MirrorError> {
    let drives = qmp.execute("query-block", json!({}))?;
    let mut drives = drives.as_array().into_iter().flatten();
    let found = drives.find(|drive| drive["inserted"]["node-name"] == node);
    Ok(found.and_then(|drive| drive_names(drive).last()))
}

fn choose(
    drives: &Value,
    nodes: &Value,
    monitor: &str,
    device: &str,
    names: &Names,
) -> Result<Device, MirrorError> {
    let (none, socket) = (Vec::new(), monitor.to_owned());
    let drives = drives.as_array().unwrap_or(&none);
    let nodes = nodes.as_array().unwrap_or(&none);
    let named = |node: &str| nodes.iter().find(|one| one["node-name"] == node);
    let drive = drives.iter().find(|drive| drive_names(drive).any(|name| name == device));
    let inserted = drive.and_then(|drive| drive["inserted"]["node-name"].as_str());
    let Some(node) = named(inserted.unwrap_or(device)) else {
        let mut known: Vec<String> = drives.iter().flat_map(drive_names).collect();
        if known.is_empty() {
            let name = |node: &Value| node["node-name"].as_str().map(str::to_owned);
            known = nodes.iter().filter_map(name).collect();
        }
        return Err(MirrorError::NoDevice { socket, device: device.to_owned(), known });
    };
    let name = node["node-name"].as_str().unwrap_or_default();
    let driver = node["drv"].as_str().unwrap_or_default();
    let jobs = ["mirror_top", "commit_top", "copy-before-write"];
    if jobs.contains(&driver) && name != names.filter {
        let (device, found) = (device.to_owned(), driver.to_owned());
        return Err(MirrorError::AlreadyMirrored { socket, device, found });
    }
    let Some(size_bytes) = node["image"]["virtual-size"].as_u64() else {
        let detail = format!("QEMU does not say how large node {name} is");
        return Err(MirrorError::State(detail));
    };
    let bitmap_name = |bitmap: &Value| {
        let name = bitmap["name"].as_str().filter(|name| names.is_bitmap(name))?;
        Some(name.to_owned())
    };
    let bitmaps = node["dirty-bitmaps"].as_array().unwrap_or(&none);
    let ours: Vec<&Value> = bitmaps.iter().filter(|one| bitmap_name(one).is_some()).collect();
    let believed = |one: &&Value| one["inconsistent"] != true && one["name"] != names.unread;
    let recording = ours.iter().find(|one| one["recording"] == true);
    let recording = recording.filter(|_| ours.iter().all(believed));
    let recording = recording.and_then(|one| bitmap_name(one));
    let bitmaps = ours.into_iter().filter_map(bitmap_name).collect();
    let others = nodes.iter().filter(|node| node["node-name"] != name);
    let elsewhere = others.flat_map(|node| {
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
        let node = node["node-name"].as_str().unwrap_or_default();
        bitmaps.filter_map(bitmap_name).map(move |bitmap| (node.to_owned(), bitmap))
    });
    let elsewhere = elsewhere.collect();
    let topmost = drives.iter().any(|drive| drive["inserted"]["node-name"] == name);
    Ok(Device { node: name.to_owned(), size_bytes, topmost, bitmaps, elsewhere, recording })
}

/// What people call a drive: `-drive id=`, `-device id=`, and its whole path.
fn drive_names(drive: &Value) -> impl Iterator<Item = String> + use<> {
    let text = |key: &str| drive[key].as_str().unwrap_or_default().to_owned();
    let (device, path) = (text("device"), text("qdev"));
    let id = path.strip_prefix("/machine/peripheral/").and_then(|rest| rest.split('/').next());
    let id = id.unwrap_or_default().to_owned();
    [device, id, path].into_iter().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_device_has_several_names_and_others_are_listed() {
        let names =
            Names::of(&"web-1".parse().unwrap(), &"root".parse().unwrap(), Path::new("/state"));
        let bitmap = names.next_bitmap(&[]);
        let drives = json!([
            { "device": "", "qdev": "/machine/peripheral/vda/virtio-backend",
              "inserted": { "node-name": "root-node" } },
            { "device": "ide0", "qdev": "ide0-dev", "inserted": { "node-name": "ide-node" } },
            { "device": "floppy0" },
        ]);
        let node = |name: &str, driver: &str, bitmaps: Value| {
            json!({ "node-name": name, "drv": driver, "image": { "virtual-size": 512 },
                    "dirty-bitmaps": bitmaps })
        };
        let bitmaps = json!([
            { "name": bitmap, "recording": true, "busy": false },
            { "name": "somebody's", "recording": true },
        ]);
        let mut nodes = json!([
            node("root-node", "qcow2", bitmaps),
            node("ide-node", "mirror_top", json!([])),
            node("below", "qcow2", json!([]))
        ]);
        let monitor = "/run/qmp";
        let find = |nodes: &Value, device: &str| choose(&drives, nodes, monitor, device, &names);
        for device in ["vda", "root-node", "/machine/peripheral/vda/virtio-backend"] {
            let found = find(&nodes, device).unwrap();
            assert_eq!((found.node.as_str(), found.size_bytes), ("root-node", 512));
            assert!(found.topmost);
            assert_eq!(
                (&found.bitmaps[..], found.recording),
                (&[bitmap.clone()][..], Some(bitmap.clone()))
            );
        }
        assert!(!find(&nodes, "below").unwrap().topmost);
        let told = find(&nodes, "ide0").unwrap_err().to_string();
        assert!(told.contains("already mirrored"), "{told}");
        let told = find(&nodes, "vdb").unwrap_err().to_string();
        assert!(told.contains("no device vdb; it has vda, ") && told.contains("ide0"), "{told}");
        assert_eq!(find(&nodes, "vda").unwrap().elsewhere, []);
        let old = [("root-node".to_owned(), bitmap.clone())];
        assert_eq!(find(&nodes, "below").unwrap().elsewhere, old);
        let mut marked = nodes.clone();
        marked[0]["dirty-bitmaps"][1]["name"] = names.unread.clone().into();
        assert_eq!(find(&marked, "vda").unwrap().recording, None, "nor what came before it");
        nodes[0]["dirty-bitmaps"][0]["recording"] = false.into();
        assert_eq!(find(&nodes, "vda").unwrap().recording, None, "nobody knows what came last");
        nodes[0]["dirty-bitmaps"][0]["recording"] = true.into();
        nodes[0]["dirty-bitmaps"][0]["inconsistent"] = true.into();
        assert_eq!(find(&nodes, "vda").unwrap().recording, None);
    }
}
