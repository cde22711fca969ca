//! Identity file: cluster id, node id and initial component of a data directory.
//!
//! ```text
//! 0   8  magic "CNCLVNID"
//! 8   2  version: 2, or 3 if a backup was restored into the directory
//! 10  8  node id
//! 18 16  incarnation: random, drawn when the directory was created
//! 34 32  component id of the cluster's initial component
//! 66  2  n, the length of the cluster id
//! 68  n  cluster id, UTF-8
//!    32  version 3: restore id
//!    32  version 3: seed of the state machine's randomness
//!    32  BLAKE3 of all bytes before
//! ```
//! The file is readable without a key, so that a wrong directory is reported before a key is
//! needed. It still cannot be forged, because the keyring is bound to every byte of it.

use std::path::Path;

use super::{Error, files};
use conclave_types::{ComponentId, NodeId};

const MAGIC: &[u8; 8] = b"CNCLVNID";
const VERSION: u16 = 2;
/// The version of a directory into which a backup was restored.
const RESTORED_VERSION: u16 = 3;
const FILE_BYTES_MAX: u64 = 4096;

/// The identity of a data directory. Written once, and never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster id.
    pub cluster_id: String,
    /// The node id.
    pub node_id: NodeId,
    /// A random value, drawn when the directory was created. A new directory for the same node has another.
    pub incarnation: [u8; 16],
    /// The id of the cluster's initial component.
    pub component_id: ComponentId,
    /// The origin of the directory, if a backup was restored into it.
    pub restored: Option<Restored>,
}

/// The origin of a data directory into which a backup was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Identifies the backup, the new cluster and its members. The same on all nodes of the cluster.
    pub restore_id: [u8; 32],
    /// The seed of the state machine's randomness in the cluster that the backup was taken from.
    pub seed: [u8; 32],
}

impl Identity {
    /// Returns the seed of the state machine's randomness, which is the same on every node. A
    /// restored cluster keeps the seed of the cluster that its backup was taken from.
    pub fn seed(&self) -> [u8; 32] {
        let own = || *blake3::hash(self.cluster_id.as_bytes()).as_bytes();
        self.restored.map_or_else(own, |restored| restored.seed)
    }

    pub(super) const FILE: &str = "identity";

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend_from_slice(MAGIC);
        let version = if self.restored.is_some() { RESTORED_VERSION } else { VERSION };
        file.extend_from_slice(&version.to_be_bytes());
        file.extend_from_slice(&self.node_id.to_be_bytes());
        file.extend_from_slice(&self.incarnation);
        file.extend_from_slice(&self.component_id.0);
        // The configuration allows far shorter ids only. A longer id would make a file
        // that reading rejects.
        let length = u16::try_from(self.cluster_id.len()).unwrap_or(u16::MAX);
        file.extend_from_slice(&length.to_be_bytes());
        file.extend_from_slice(self.cluster_id.as_bytes());
        if let Some(Restored { restore_id, seed }) = &self.restored {
            file.extend_from_slice(restore_id);
            file.extend_from_slice(seed);
        }
        let check = blake3::hash(&file);
        file.extend_from_slice(check.as_bytes());
        file
    }

    /// Reads the identity file. Returns `None` if there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(Self::FILE);
        let Some(file) = files::read_small(&path, FILE_BYTES_MAX)? else { return Ok(None) };
        Self::decode(&file, &path).map(Some)
    }

    fn decode(file: &[u8], path: &Path) -> Result<Self, Error> {
        let damaged = |reason| Error::damaged(path.display().to_string(), reason);
        let (body, check) = file.split_last_chunk::<32>().ok_or(damaged("it is too short"))?;
        let (magic, rest) = body.split_first_chunk::<8>().ok_or(damaged("it is too short"))?;
        if magic != MAGIC {
            return Err(damaged("it does not start with the magic bytes of an identity file"));
        }
        let (version, rest) = rest.split_first_chunk().ok_or(damaged("it is too short"))?;
        let found = u16::from_be_bytes(*version);
        if found > RESTORED_VERSION {
            let known = RESTORED_VERSION;
            return Err(Error::Version { path: path.to_owned(), found, known });
        }
        if found < VERSION {
            return Err(Error::Older { path: path.to_owned(), found, known: VERSION });
        }
        if blake3::hash(body) != *check {
            return Err(damaged("its checksum is wrong"));
        }
        let short = || damaged("it is too short");
        let (node_id, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (incarnation, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (component_id, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (cluster_id, restored) = match found {
            RESTORED_VERSION => {
                let (rest, seed) = rest.split_last_chunk().ok_or_else(short)?;
                let (rest, restore_id) = rest.split_last_chunk().ok_or_else(short)?;
                (rest, Some(Restored { restore_id: *restore_id, seed: *seed }))
            }
            _ => (rest, None),
        };
        if cluster_id.len() != usize::from(u16::from_be_bytes(*length)) {
            return Err(short());
        }
        let cluster_id =
            str::from_utf8(cluster_id).map_err(|_| damaged("the cluster id is not valid UTF-8"))?;
        Ok(Self {
            cluster_id: cluster_id.to_owned(),
            node_id: NodeId::from_be_bytes(*node_id),
            incarnation: *incarnation,
            component_id: ComponentId(*component_id),
            restored,
        })
    }

    /// Rejects a directory of another cluster or node.
    pub(super) fn check(&self, dir: &Path, cluster_id: &str, node_id: NodeId) -> Result<(), Error> {
        let respects = [
            ("cluster", self.cluster_id.clone(), cluster_id.to_owned()),
            ("node", self.node_id.to_string(), node_id.to_string()),
        ];
        for (what, found, expected) in respects {
            if found != expected {
                return Err(Error::Foreign { dir: dir.to_owned(), what, found, expected });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster_id: "blue".into(),
            node_id: 3,
            incarnation: [7; 16],
            component_id: ComponentId([9; 32]),
            restored: None,
        }
    }

    fn restored() -> Identity {
        let restored = Restored { restore_id: [5; 32], seed: [6; 32] };
        Identity { restored: Some(restored), ..identity() }
    }

    /// The golden identity: every later version must read the file that version 2 wrote.
    #[test]
    fn the_format_is_version_2() {
        let golden = "434e434c564e4944000200000000000000030707070707070707070707070707070709090909\
                      0909090909090909090909090909090909090909090909090909090900\
                      04626c7565";
        let golden = golden.replace(char::is_whitespace, "");
        let file = identity().encode();
        assert_eq!(hex::encode(&file[..file.len() - 32]), golden);
        assert_eq!(Identity::decode(&file, Path::new("identity")).unwrap(), identity());
    }

    /// The golden identity of a restored directory.
    #[test]
    fn the_format_of_a_restored_directory_is_version_3() {
        let golden = ["434e434c564e49440003000000000000000307070707070707070707070707070707"]
            .into_iter()
            .map(str::to_owned)
            .chain(["09".repeat(32), "0004626c7565".to_owned(), "05".repeat(32), "06".repeat(32)]);
        let file = restored().encode();
        assert_eq!(hex::encode(&file[..file.len() - 32]), golden.collect::<String>());
        assert_eq!(Identity::decode(&file, Path::new("identity")).unwrap(), restored());
    }

    #[test]
    fn restored_cluster_keeps_the_seed_of_its_backup() {
        assert_eq!(restored().seed(), [6; 32]);
        assert_eq!(identity().seed(), *blake3::hash(b"blue").as_bytes());
    }

    #[test]
    fn any_change_is_refused() {
        for file in [identity().encode(), restored().encode()] {
            refuses_any_change(&file);
        }
    }

    fn refuses_any_change(file: &[u8]) {
        for at in 0..file.len() {
            let mut changed = file.to_vec();
            changed[at] ^= 1;
            assert!(Identity::decode(&changed, Path::new("identity")).is_err(), "byte {at}");
            assert!(Identity::decode(&file[..at], Path::new("identity")).is_err());
        }
    }
    #[test]
    fn a_directory_of_an_earlier_build_is_refused_by_its_version() {
        let mut file = identity().encode();
        file.truncate(file.len() - 32);
        file[8..10].copy_from_slice(&1_u16.to_be_bytes());
        file.extend_from_slice(blake3::hash(&file).as_bytes());
        let refused = Identity::decode(&file, Path::new("identity")).unwrap_err();
        assert!(matches!(refused, Error::Older { found: 1, known: 2, .. }), "{refused}");
    }
}
