//! The data keys of a node.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::Zeroizing;

use super::{Error, random};

/// The maximum number of times that a data key seals. The counter in the nonce has 32 bits and
/// restarts with each random prefix. This is half of its range.
pub const USES_MAX: u64 = 1 << 31;

/// The number of uses after which the holder of the keyring should install a new active key: a
/// quarter of [`USES_MAX`]. A node with 2,000 group commits per second reaches it in three days.
pub const ROTATE_AFTER_USES: u64 = USES_MAX / 4;

/// The length of a nonce: a random prefix and a counter.
pub(super) const NONCE_BYTES: usize = 12;

/// The id of a data key. A keyring never reuses an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One data key in memory.
pub(super) struct DataKey {
    id: KeyId,
    created_ms: u64,
    bytes: Zeroizing<[u8; 32]>,
    /// Wipes its key schedule when dropped (feature `zeroize`).
    cipher: Aes256Gcm,
    /// The uses before this key was loaded into memory: the reservation, as an upper bound.
    uses_before: u64,
    /// The uses since then. Also the counter in the nonce.
    uses_since: AtomicU64,
    /// Random, drawn when this key was loaded into memory.
    nonce_prefix: [u8; 8],
}

impl DataKey {
    fn new(
        id: KeyId,
        created_ms: u64,
        bytes: Zeroizing<[u8; 32]>,
        uses_before: u64,
    ) -> Result<Self, Error> {
        let cipher = Aes256Gcm::new((&*bytes).into());
        let uses_since = AtomicU64::new(0);
        let nonce_prefix = random()?;
        Ok(Self { id, created_ms, bytes, cipher, uses_before, uses_since, nonce_prefix })
    }

    pub(super) fn id(&self) -> KeyId {
        self.id
    }

    pub(super) fn cipher(&self) -> &Aes256Gcm {
        &self.cipher
    }

    fn uses(&self) -> u64 {
        self.uses_before.saturating_add(self.uses_since.load(Ordering::Relaxed))
    }
}

/// A key, and the number of uses allowed before a larger reservation must be on disk.
#[derive(Clone)]
struct Slot {
    key: Arc<DataKey>,
    uses_reserved: u64,
}

/// The status of a data key, for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// The key's id.
    pub id: KeyId,
    /// Milliseconds since the Unix epoch, by this node's clock.
    pub created_ms: u64,
    /// The number of times that the key has sealed. After a restart, an upper bound.
    pub uses: u64,
    /// Whether the key seals. The other keys only open.
    pub active: bool,
}

/// A key of the keyring as stored.
pub(super) struct StoredKey {
    pub(super) id: KeyId,
    pub(super) created_ms: u64,
    pub(super) uses_reserved: u64,
    pub(super) bytes: Zeroizing<[u8; 32]>,
}

/// The data keys of a node. One key is active and seals; every key opens.
///
/// The keyring is an immutable value. Each change returns a new keyring that shares the keys and
/// their use counters with the old one. The holder writes the new keyring to disk before using it.
///
/// Invariants:
/// - The active key is in the map.
/// - Each key is stored under its own id.
/// - Ids only grow.
#[derive(Clone)]
pub struct Keyring {
    slots: BTreeMap<KeyId, Slot>,
    active: KeyId,
}

impl Keyring {
    /// Returns a keyring with one random key and no reservation.
    pub fn generate() -> Result<Self, Error> {
        let slot = Self::generate_slot(KeyId(1))?;
        Ok(Self::new(BTreeMap::from([(KeyId(1), slot)]), KeyId(1)))
    }

    /// Returns a keyring with one key that several processes share, and no reservation. Each
    /// process draws its own random nonce prefix, as after every load.
    pub fn of_key(bytes: [u8; 32]) -> Result<Self, Error> {
        let id = KeyId(1);
        let key = DataKey::new(id, 0, Zeroizing::new(bytes), 0)?;
        let slot = Slot { key: Arc::new(key), uses_reserved: 0 };
        Ok(Self::new(BTreeMap::from([(id, slot)]), id))
    }

    fn new(slots: BTreeMap<KeyId, Slot>, active: KeyId) -> Self {
        let keyring = Self { slots, active };
        keyring.assert_invariants();
        keyring
    }

    /// Asserts the invariants that do not depend on earlier keyrings.
    fn assert_invariants(&self) {
        assert!(self.slots.contains_key(&self.active), "the active data key is missing");
        let has_own_id = |(id, slot): (&KeyId, &Slot)| *id == slot.key.id;
        assert!(self.slots.iter().all(has_own_id), "a data key is stored under another id");
    }

    fn generate_slot(id: KeyId) -> Result<Slot, Error> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let created_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let key = DataKey::new(id, created_ms, Zeroizing::new(random()?), 0)?;
        Ok(Slot { key: Arc::new(key), uses_reserved: 0 })
    }

    /// The id of the active key.
    pub fn active(&self) -> KeyId {
        self.active
    }

    /// The status of all keys, oldest first.
    pub fn status(&self) -> Vec<KeyStatus> {
        let status = |slot: &Slot| KeyStatus {
            id: slot.key.id,
            created_ms: slot.key.created_ms,
            uses: slot.key.uses(),
            active: slot.key.id == self.active,
        };
        self.slots.values().map(status).collect()
    }

    /// Returns a keyring with a new random active key. The new key has no reservation.
    pub fn install(&self) -> Result<Self, Error> {
        let newest = self.slots.keys().next_back().map_or(0, |id| id.0);
        // Exceeding the range would take one rotation per second for more than a century.
        let id = KeyId(newest.checked_add(1).ok_or(Error::Keyring { reason: "ids used up" })?);
        let mut slots = self.slots.clone();
        slots.insert(id, Self::generate_slot(id)?);
        Ok(Self::new(slots, id))
    }

    /// Returns a keyring without this key. Data sealed under the key can no longer be opened. The
    /// caller must make sure that no such data is left.
    pub fn retire(&self, key_id: KeyId) -> Result<Self, Error> {
        if key_id == self.active {
            return Err(Error::Retire { key_id, reason: "is active: rotate first" });
        }
        let mut slots = self.slots.clone();
        match slots.remove(&key_id) {
            Some(_) => Ok(Self::new(slots, self.active)),
            None => Err(Error::Retire { key_id, reason: "is not in the keyring" }),
        }
    }

    /// Returns a keyring that allows `uses` more uses of the active key. It must be on disk before use.
    #[must_use]
    pub fn reserve(&self, uses: u64) -> Self {
        let mut next = self.clone();
        if let Some(slot) = next.slots.get_mut(&self.active) {
            slot.uses_reserved = slot.key.uses().saturating_add(uses).min(USES_MAX);
        }
        next.assert_invariants();
        next
    }

    /// The number of times that the active key has sealed.
    pub fn active_uses(&self) -> u64 {
        self.slots.get(&self.active).map_or(u64::MAX, |slot| slot.key.uses())
    }

    pub(super) fn key(&self, id: KeyId) -> Option<&DataKey> {
        self.slots.get(&id).map(|slot| &*slot.key)
    }

    /// Returns the active key, and a nonce that is never used again under this key.
    pub(super) fn claim(&self) -> Result<(&DataKey, [u8; NONCE_BYTES]), Error> {
        let spent = Error::ReservationSpent { key_id: self.active };
        let Some(Slot { key, uses_reserved }) = self.slots.get(&self.active) else {
            return Err(spent);
        };
        // Check and increment in one atomic step. If a rejected claim decremented the counter
        // afterwards, it could undo another thread's increment, and a nonce would repeat.
        let allowed = |since: u64| {
            let within = key.uses_before.saturating_add(since) < *uses_reserved;
            (within && since <= u64::from(u32::MAX)).then(|| since + 1)
        };
        let counted =
            key.uses_since.fetch_update(Ordering::Relaxed, Ordering::Relaxed, allowed).ok();
        let Some(counter) = counted.and_then(|since| u32::try_from(since).ok()) else {
            return Err(spent);
        };
        let mut nonce = [0; NONCE_BYTES];
        nonce[..8].copy_from_slice(&key.nonce_prefix);
        nonce[8..].copy_from_slice(&counter.to_be_bytes());
        Ok((key, nonce))
    }

    pub(super) fn stored(&self) -> impl ExactSizeIterator<Item = StoredKey> + '_ {
        self.slots.values().map(|Slot { key, uses_reserved }| StoredKey {
            id: key.id,
            created_ms: key.created_ms,
            uses_reserved: *uses_reserved,
            bytes: key.bytes.clone(),
        })
    }

    pub(super) fn from_stored(keys: Vec<StoredKey>, active: KeyId) -> Result<Self, Error> {
        let mut slots = BTreeMap::new();
        for StoredKey { id, created_ms, uses_reserved, bytes } in keys {
            // The whole reservation counts as used, because the actual number of uses is unknown.
            let key = Arc::new(DataKey::new(id, created_ms, bytes, uses_reserved)?);
            if slots.insert(id, Slot { key, uses_reserved }).is_some() {
                return Err(Error::Keyring { reason: "a key id appears twice" });
            }
        }
        if !slots.contains_key(&active) {
            return Err(Error::Keyring { reason: "the active key is missing" });
        }
        Ok(Self::new(slots, active))
    }

    #[cfg(test)]
    pub(super) fn for_tests(id: u32, bytes: [u8; 32], nonce_prefix: [u8; 8]) -> Self {
        let id = KeyId(id);
        let bytes = Zeroizing::new(bytes);
        let cipher = Aes256Gcm::new((&*bytes).into());
        let uses_since = AtomicU64::new(0);
        let key =
            DataKey { id, created_ms: 0, bytes, cipher, uses_before: 0, uses_since, nonce_prefix };
        let slot = Slot { key: Arc::new(key), uses_reserved: 0 };
        Self { slots: BTreeMap::from([(id, slot)]), active: id }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.status()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::{collections::HashSet, sync::Mutex, thread};

    use super::*;

    #[test]
    fn a_nonce_never_comes_twice_also_from_many_threads_and_openings() {
        let seen = Mutex::new(HashSet::new());
        let bytes = Keyring::generate().unwrap().stored().next().unwrap().bytes;
        for opening in 0..20 {
            let created_ms = 0;
            let uses_reserved = opening * 4000;
            let stored =
                StoredKey { id: KeyId(1), created_ms, uses_reserved, bytes: bytes.clone() };
            let ring = Keyring::from_stored(vec![stored], KeyId(1)).unwrap().reserve(4000);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..1000 {
                            let (_, nonce) = ring.claim().unwrap();
                            assert!(seen.lock().unwrap().insert(nonce));
                        }
                    });
                }
            });
        }
        assert_eq!(seen.lock().unwrap().len(), 80_000);
    }

    #[test]
    fn no_use_goes_beyond_the_reservation_or_the_bound() {
        let ring = Keyring::generate().unwrap();
        assert!(ring.claim().is_err(), "nothing was reserved");
        let ring = ring.reserve(2);
        assert!(ring.claim().is_ok() && ring.claim().is_ok() && ring.claim().is_err());
        let more = ring.reserve(1);
        assert!(more.claim().is_ok() && more.claim().is_err());
        assert_eq!(more.active_uses(), 3);

        let created_ms = 0;
        let bytes = Zeroizing::new([3; 32]);
        let stored = StoredKey { id: KeyId(4), created_ms, uses_reserved: USES_MAX - 1, bytes };
        let ring = Keyring::from_stored(vec![stored], KeyId(4)).unwrap().reserve(1000);
        assert!(ring.claim().is_ok() && ring.claim().is_err());
        let ring = ring.install().unwrap().reserve(1);
        assert_eq!(ring.active(), KeyId(5));
        assert!(ring.claim().is_ok());
    }

    #[test]
    fn keys_are_installed_and_retired_as_values() {
        let first = Keyring::generate().unwrap();
        let second = first.install().unwrap();
        assert_eq!((first.active(), second.active()), (KeyId(1), KeyId(2)));
        assert!(second.retire(KeyId(2)).is_err());
        assert!(second.retire(KeyId(9)).is_err());
        let third = second.retire(KeyId(1)).unwrap().install().unwrap();
        assert_eq!(third.status().iter().map(|key| key.id.0).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn debug_shows_no_key() {
        let ring = Keyring::for_tests(1, [0xab; 32], [0xcd; 8]);
        let shown = format!("{ring:?}");
        assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
    }
}
