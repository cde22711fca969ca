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

use super::{Error, envelope::NONCE_BYTES, random};

/// How often a data key may seal in its life. The counter in the nonce has 32 bits and starts anew
/// with each random prefix, so this is half of what it holds.
pub const USES_MAX: u64 = 1 << 31;

/// When the holder of the keyring should install a new active key: at a quarter of [`USES_MAX`]. A
/// node that group-commits 2,000 times a second gets there in three days.
pub const ROTATE_AFTER_USES: u64 = USES_MAX / 4;

/// The number of a data key in its keyring. Never reused there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One data key, in memory.
pub(super) struct DataKey {
    id: KeyId,
    created_ms: u64,
    bytes: Zeroizing<[u8; 32]>,
    /// Wipes its key schedule when dropped (feature `zeroize`).
    cipher: Aes256Gcm,
    /// Uses before this key came into memory, as the reservation has them.
    uses_before: u64,
    /// Uses since. Also the counter in the nonce.
    uses_since: AtomicU64,
    /// Random, drawn when this key came into memory.
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

/// A key and how many uses of it may happen before a larger number is on disk.
#[derive(Clone)]
struct Slot {
    key: Arc<DataKey>,
    uses_reserved: u64,
}

/// What an operator may know of a data key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyStatus {
    /// Which.
    pub id: KeyId,
    /// Milliseconds since the Unix epoch, by this node's clock.
    pub created_ms: u64,
    /// How often it has sealed; after a restart, an upper bound.
    pub uses: u64,
    /// Whether it seals; the others only open.
    pub active: bool,
}

/// One key of a keyring as it is stored.
pub(super) struct StoredKey {
    pub(super) id: KeyId,
    pub(super) created_ms: u64,
    pub(super) uses_reserved: u64,
    pub(super) bytes: Zeroizing<[u8; 32]>,
}

/// The data keys of a node: one active, which seals; all of them open.
///
/// An immutable value: what changes it returns a new one, which shares the keys and their counters
/// with the old. The holder writes the new one to disk first and uses it then.
///
/// Invariants: the active key is among the keys; a key's id is its key in the map; ids only grow.
#[derive(Clone)]
pub struct Keyring {
    slots: BTreeMap<KeyId, Slot>,
    active: KeyId,
}

impl Keyring {
    /// A keyring with one random key. Nothing is reserved for it yet.
    pub fn generate() -> Result<Self, Error> {
        let slot = Self::generate_slot(KeyId(1))?;
        Ok(Self { slots: BTreeMap::from([(KeyId(1), slot)]), active: KeyId(1) })
    }

    /// A keyring of one key that several processes know. Each of them draws a random prefix for its nonces, as at every
    /// opening. Nothing is reserved yet.
    pub fn of_key(bytes: [u8; 32]) -> Result<Self, Error> {
        let id = KeyId(1);
        let key = DataKey::new(id, 0, Zeroizing::new(bytes), 0)?;
        let slot = Slot { key: Arc::new(key), uses_reserved: 0 };
        Ok(Self { slots: BTreeMap::from([(id, slot)]), active: id })
    }

    fn generate_slot(id: KeyId) -> Result<Slot, Error> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let created_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let key = DataKey::new(id, created_ms, Zeroizing::new(random()?), 0)?;
        Ok(Slot { key: Arc::new(key), uses_reserved: 0 })
    }

    /// The key that seals.
    pub fn active(&self) -> KeyId {
        self.active
    }

    /// All keys, oldest first.
    pub fn status(&self) -> Vec<KeyStatus> {
        let status = |slot: &Slot| KeyStatus {
            id: slot.key.id,
            created_ms: slot.key.created_ms,
            uses: slot.key.uses(),
            active: slot.key.id == self.active,
        };
        self.slots.values().map(status).collect()
    }

    /// With a new random key, which is the active one. Nothing is reserved for it yet.
    pub fn install(&self) -> Result<Self, Error> {
        let newest = self.slots.keys().next_back().map_or(0, |id| id.0);
        // A keyring would have to rotate every second for a century to get here.
        let id = KeyId(newest.checked_add(1).ok_or(Error::Keyring { reason: "ids used up" })?);
        let mut slots = self.slots.clone();
        slots.insert(id, Self::generate_slot(id)?);
        Ok(Self { slots, active: id })
    }

    /// Without a key. What it sealed is lost: the caller has made sure that there is nothing left.
    pub fn retire(&self, key_id: KeyId) -> Result<Self, Error> {
        if key_id == self.active {
            return Err(Error::Retire { key_id, reason: "is active: rotate first" });
        }
        let mut slots = self.slots.clone();
        match slots.remove(&key_id) {
            Some(_) => Ok(Self { slots, active: self.active }),
            None => Err(Error::Retire { key_id, reason: "is not in the keyring" }),
        }
    }

    /// With `uses` more uses of the active key allowed than it has had. To be on disk before use.
    #[must_use]
    pub fn reserve(&self, uses: u64) -> Self {
        let mut next = self.clone();
        if let Some(slot) = next.slots.get_mut(&self.active) {
            slot.uses_reserved = slot.key.uses().saturating_add(uses).min(USES_MAX);
        }
        next
    }

    /// How often the active key has sealed.
    pub fn active_uses(&self) -> u64 {
        self.slots.get(&self.active).map_or(u64::MAX, |slot| slot.key.uses())
    }

    pub(super) fn key(&self, id: KeyId) -> Option<&DataKey> {
        self.slots.get(&id).map(|slot| &*slot.key)
    }

    /// The active key and a nonce that it has never had and never will again.
    pub(super) fn claim(&self) -> Result<(&DataKey, [u8; NONCE_BYTES]), Error> {
        let spent = Error::ReservationSpent { key_id: self.active };
        let Some(Slot { key, uses_reserved }) = self.slots.get(&self.active) else {
            return Err(spent);
        };
        // Counted only if allowed, in one step: a refused claim that took its count back later could
        // take back the count of another thread's claim, and that nonce would come twice.
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
            // What was reserved counts as used: nobody knows how much of it was.
            let key = Arc::new(DataKey::new(id, created_ms, bytes, uses_reserved)?);
            if slots.insert(id, Slot { key, uses_reserved }).is_some() {
                return Err(Error::Keyring { reason: "a key id appears twice" });
            }
        }
        if !slots.contains_key(&active) {
            return Err(Error::Keyring { reason: "the active key is missing" });
        }
        Ok(Self { slots, active })
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
