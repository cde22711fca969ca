//! The buffer in which the leader collects a component that a client pushes.

use std::{sync::Mutex, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::lock;
use conclave_types::{ComponentId, components::ComponentPart, error::Error};

/// The time without a request after which a push makes room for another.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// The buffer in which a component is collected before it goes into the log.
#[derive(Default)]
pub(super) struct Stage {
    collected: Mutex<Option<Collected>>,
    /// Held while a component is loaded and proposed. A client that retries after its timeout waits here.
    pub(super) finishing: tokio::sync::Mutex<()>,
}

struct Collected {
    component: ComponentId,
    total_bytes: u64,
    bytes: BytesMut,
    heard: Instant,
}

impl Stage {
    /// Adds a piece. Returns the offset of the next piece, or, as the inner error, the complete bytes.
    pub(super) fn collect(&self, piece: &ComponentPart) -> Result<Result<u64, Bytes>, Error> {
        let ComponentPart { component, total_bytes, at, bytes, .. } = piece;
        let mut stage = lock(&self.collected);
        match &*stage {
            Some(other) if other.component != *component && other.heard.elapsed() < IDLE_MAX => {
                return Err(Error::busy(format!(
                    "component {} is being pushed: components are pushed one at a time, try again when it is done",
                    other.component
                )));
            }
            Some(same) if same.component == *component && same.total_bytes == *total_bytes => {}
            _ => {
                *stage = Some(Collected {
                    component: *component,
                    total_bytes: *total_bytes,
                    bytes: BytesMut::new(),
                    heard: Instant::now(),
                });
            }
        }
        let Some(collected) = stage.as_mut() else { return Ok(Ok(0)) };
        collected.heard = Instant::now();
        let have = collected.bytes.len() as u64;
        if *at == have {
            collected.bytes.extend_from_slice(bytes);
        }
        let have = collected.bytes.len() as u64;
        Ok(if have == *total_bytes {
            Err(Bytes::copy_from_slice(&collected.bytes))
        } else {
            Ok(have)
        })
    }

    /// Returns the component that is being collected, loaded or proposed.
    pub(super) fn component(&self) -> Option<ComponentId> {
        lock(&self.collected).as_ref().map(|collected| collected.component)
    }

    /// Discards this component, if it is the one that is being collected.
    pub(super) fn clear(&self, component: ComponentId) {
        let mut stage = lock(&self.collected);
        if stage.as_ref().is_some_and(|collected| collected.component == component) {
            *stage = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn piece(component: u8, at: u64, bytes: &'static [u8]) -> ComponentPart {
        let (component, bytes) = (ComponentId([component; 32]), Bytes::from_static(bytes));
        ComponentPart { component, total_bytes: 6, at, bytes, about: None }
    }

    #[test]
    fn pieces_are_collected_in_order_however_often_they_come() {
        let stage = Stage::default();
        let collect = |at, bytes| stage.collect(&piece(1, at, bytes)).unwrap();
        assert_eq!(collect(3, b"def"), Ok(0), "from the beginning, please");
        assert_eq!(collect(0, b"abc"), Ok(3));
        assert_eq!(collect(0, b"abc"), Ok(3));
        assert_eq!(collect(3, b"def"), Err(Bytes::from_static(b"abcdef")));
        assert_eq!(collect(3, b"def"), Err(Bytes::from_static(b"abcdef")), "asked again");
    }

    #[test]
    fn one_component_is_pushed_at_a_time() {
        let stage = Stage::default();
        stage.collect(&piece(1, 0, b"abc")).unwrap().unwrap();
        let error = stage.collect(&piece(2, 0, b"abc")).unwrap_err();
        assert!(error.to_string().contains("one at a time"), "{error}");
        stage.clear(ComponentId([2; 32]));
        assert!(stage.collect(&piece(2, 0, b"abc")).is_err());
        stage.clear(ComponentId([1; 32]));
        assert_eq!(stage.collect(&piece(2, 0, b"abc")).unwrap(), Ok(3));
    }
}
