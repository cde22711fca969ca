//! The encoding of the registry in a snapshot: its metadata in the header, its bytes in
//! chunks before the state's.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::{BYTES_MAX, COMPONENTS_MAX, Known, Registry, Upload};
use conclave_proto::{
    convert::{about_from_wire, about_to_wire, component_id_from_wire},
    raft as wire,
};
use conclave_types::{ComponentId, components::COMPONENT_BYTES_MAX};

/// The reason why the components in a snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the snapshot's components cannot be read: {0}")]
pub struct Unreadable(String);

fn unreadable(reason: impl std::fmt::Display) -> Unreadable {
    Unreadable(reason.to_string())
}

fn id_to_wire(id: &ComponentId) -> Bytes {
    id.0.to_vec().into()
}

impl Registry {
    /// Writes the registry into a snapshot's header.
    pub fn describe(&self, header: &mut wire::SnapshotHeader) {
        header.component_id = id_to_wire(&self.active);
        header.previous_component_id = self.previous.as_ref().map(id_to_wire).unwrap_or_default();
        header.components = self.known.iter().map(|(id, known)| stored(id, known)).collect();
        header.upload = self.upload.as_ref().map(|upload| wire::StoredUpload {
            component_id: id_to_wire(&upload.component),
            total_bytes: upload.total_bytes,
            received_bytes: upload.received_bytes,
            about: Some(about_to_wire(&upload.about)),
        });
    }

    /// Returns the component bytes, which come before the state's. No chunk has bytes of two components.
    pub fn chunks(&self) -> Vec<Bytes> {
        let components = self.known.values().map(|known| known.bytes.clone());
        let upload = self.upload.iter().flat_map(|upload| upload.pieces.iter().cloned());
        components.chain(upload).collect()
    }

    /// Reads the registry, and leaves `chunks` at the first chunk of the state. `None`: the
    /// snapshot was made before snapshots contained components.
    ///
    /// # Errors
    /// Fails if the chunks do not match the header.
    pub fn read<E: std::fmt::Display>(
        header: &wire::SnapshotHeader,
        mut chunks: impl Iterator<Item = Result<Bytes, E>>,
    ) -> Result<Option<Self>, Unreadable> {
        if header.components.is_empty() {
            return Ok(None);
        }
        let total = header.components.iter().map(|component| component.bytes);
        let total = total.fold(0_u64, u64::saturating_add);
        if header.components.len() > COMPONENTS_MAX || total > BYTES_MAX {
            return Err(unreadable("there are more components or bytes than a cluster can have"));
        }
        let id = |bytes: &[u8]| component_id_from_wire(bytes).map_err(unreadable);
        let mut known = BTreeMap::new();
        for component in &header.components {
            let name = id(&component.component_id)?;
            let bytes = gather(&mut chunks, component.bytes)?;
            if ComponentId::of(&bytes) != name {
                return Err(unreadable(format!(
                    "the bytes of component {name} do not match its id"
                )));
            }
            let about = component.about.as_ref().map(about_from_wire).unwrap_or_default();
            let (index, activated_index) = (component.index, component.activated_index);
            known.insert(name, Known { bytes, about, index, activated_index });
        }
        let active = id(&header.component_id)?;
        let previous = match header.previous_component_id.is_empty() {
            true => None,
            false => Some(id(&header.previous_component_id)?),
        };
        if !previous.iter().chain([&active]).all(|id| known.contains_key(id))
            || previous == Some(active)
        {
            return Err(unreadable("the active or the previous component is missing"));
        }
        let upload = header.upload.as_ref().map(|upload| {
            let (total, received) = (upload.total_bytes, upload.received_bytes);
            if total > COMPONENT_BYTES_MAX as u64 || received >= total {
                return Err(unreadable("the unfinished component has an impossible size"));
            }
            let about = upload.about.as_ref().map(about_from_wire).unwrap_or_default();
            let mut read = Upload::new(id(&upload.component_id)?, total, about);
            read.push(gather(&mut chunks, received)?);
            Ok(read)
        });
        let registry = Self { known, active, previous, upload: upload.transpose()? };
        registry.assert_invariants();
        Ok(Some(registry))
    }
}

fn stored(id: &ComponentId, known: &Known) -> wire::StoredComponent {
    wire::StoredComponent {
        component_id: id_to_wire(id),
        bytes: known.bytes.len() as u64,
        about: Some(about_to_wire(&known.about)),
        index: known.index,
        activated_index: known.activated_index,
    }
}

/// Reads the next `length` bytes.
fn gather<E: std::fmt::Display>(
    chunks: &mut impl Iterator<Item = Result<Bytes, E>>,
    length: u64,
) -> Result<Bytes, Unreadable> {
    let length = usize::try_from(length).map_err(unreadable)?;
    let mut bytes = BytesMut::with_capacity(length);
    while bytes.len() < length {
        let chunk = chunks.next().ok_or_else(|| unreadable("some bytes are missing"))?;
        bytes.extend_from_slice(&chunk.map_err(unreadable)?);
    }
    match bytes.len() == length {
        true => Ok(bytes.freeze()),
        false => Err(unreadable("a chunk has bytes of two components")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use conclave_types::components::{About, ComponentPart};

    type Chunks = std::vec::IntoIter<Result<Bytes, String>>;

    /// Returns a registry with two components, of which the second is active, and half of a third.
    fn registry() -> Registry {
        let about = |name: &str| About { name: name.into(), version: "1".into(), state_version: 3 };
        let first = Bytes::from_static(b"the first");
        let mut registry = Registry::begin(ComponentId::of(&first), first, about("first"));
        for (content, end, index) in [(&b"second"[..], 6, 5), (b"the third", 4, 6)] {
            let part = ComponentPart {
                component: ComponentId::of(content),
                total_bytes: content.len() as u64,
                at: 0,
                bytes: Bytes::copy_from_slice(&content[..end]),
                about: Some(about("pushed")),
            };
            registry.apply_part(index, &part).unwrap();
        }
        registry.activate(7, ComponentId::of(b"second"));
        registry
    }

    fn written(registry: &Registry) -> (wire::SnapshotHeader, Vec<Bytes>) {
        let mut header = wire::SnapshotHeader::default();
        registry.describe(&mut header);
        (header, registry.chunks())
    }

    fn all(chunks: Vec<Bytes>) -> Chunks {
        chunks.into_iter().map(Ok).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn what_is_written_is_read_and_the_machines_bytes_are_left() {
        let registry = registry();
        let (header, mut chunks) = written(&registry);
        chunks.push(Bytes::from_static(b"the machine's"));
        let mut chunks = all(chunks);
        let read = Registry::read(&header, &mut chunks).unwrap().unwrap();
        assert_eq!(chunks.next().unwrap().unwrap(), &b"the machine's"[..]);
        assert_eq!((read.active(), read.previous()), (registry.active(), registry.previous()));
        assert!(read.components().eq(registry.components()));
        // The upload continues at its position, with the same hash as without the interruption.
        let mut read = read;
        let rest = ComponentPart {
            component: ComponentId::of(b"the third"),
            total_bytes: 9,
            at: 4,
            bytes: Bytes::from_static(b"third"),
            about: None,
        };
        assert!(read.apply_part(9, &rest).unwrap().whole);
    }

    #[test]
    fn a_snapshot_of_before_has_none() {
        let header = wire::SnapshotHeader::default();
        assert!(Registry::read(&header, all(vec![])).unwrap().is_none());
    }

    #[test]
    fn what_does_not_fit_the_header_is_refused() {
        let (header, chunks) = written(&registry());
        let refused = |header: &wire::SnapshotHeader, chunks: Vec<Bytes>| {
            assert!(Registry::read(header, all(chunks)).is_err());
        };
        refused(&header, chunks[..1].to_vec());
        refused(&header, vec![Bytes::from_static(b"something else entirely")]);
        let mut changed = chunks.clone();
        changed[0] = Bytes::from(vec![0; changed[0].len()]);
        refused(&header, changed);
        let with = |change: fn(&mut wire::SnapshotHeader)| {
            let mut header = header.clone();
            change(&mut header);
            header
        };
        refused(&with(|header| header.component_id = vec![1; 32].into()), chunks.clone());
        refused(&with(|header| header.component_id = vec![1; 5].into()), chunks.clone());
        let twice = |header: &mut wire::SnapshotHeader| {
            header.previous_component_id = header.component_id.clone();
        };
        refused(&with(twice), chunks.clone());
        refused(&with(|header| header.components[0].bytes = u64::MAX), chunks);
    }
}
