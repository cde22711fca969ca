//! The node's keyring and its file, and sealing with the keyring.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;

use super::{Error, Identity, files};
use conclave_crypto as crypto;
use conclave_crypto::{Aad, KeyId, KeyStatus, Keyring, MasterKey, ROTATE_AFTER_USES};

/// The number of seals that one write of the keyring's file reserves: enough for some minutes under load.
const RESERVE_USES: u64 = 1 << 20;

/// The largest keyring file. A node cannot create so many keys in its lifetime.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Seals and opens the node's stored data, and manages its data keys. It reserves uses of the active
/// key in advance, and rotates the key before it reaches its limit. Clones share the keyring.
#[derive(Clone)]
pub struct Keys {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    identity: Identity,
    /// Holding this lock also permits writing the file.
    master_key: Mutex<MasterKey>,
    keyring: ArcSwap<Keyring>,
}

impl Keys {
    pub(super) const FILE: &str = "keyring";

    /// Writes the first keyring of a new directory.
    pub(super) fn create(
        dir: &Path,
        identity: Identity,
        master_key: MasterKey,
    ) -> Result<Self, Error> {
        let path = dir.join(Self::FILE);
        let keyring = Keyring::generate().map_err(Error::keys(&path))?.reserve(RESERVE_USES);
        let keys = Self::new(path, identity, master_key, keyring);
        let master_key = keys.lock();
        keys.inner.write(&keys.inner.keyring.load(), &master_key)?;
        drop(master_key);
        Ok(keys)
    }

    /// Opens the keyring without writing. Sealing reserves uses when it needs them.
    pub(super) fn open(
        dir: &Path,
        identity: Identity,
        master_key: MasterKey,
    ) -> Result<Self, Error> {
        let path = dir.join(Self::FILE);
        let file = files::read_small(&path, FILE_BYTES_MAX)?
            .ok_or_else(|| Error::Missing { path: path.clone() })?;
        let keyring = {
            let identity_bytes = identity.encode();
            let aad = aad_of_file(&identity, &identity_bytes);
            Keyring::unwrap(&file, &master_key, &aad).map_err(Error::keys(&path))?
        };
        Ok(Self::new(path, identity, master_key, keyring))
    }

    fn new(path: PathBuf, identity: Identity, master_key: MasterKey, keyring: Keyring) -> Self {
        let master_key = Mutex::new(master_key);
        let keyring = ArcSwap::from_pointee(keyring);
        Self { inner: Arc::new(Inner { path, identity, master_key, keyring }) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, MasterKey> {
        self.inner.master_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seals data that is stored at `key` of `place`.
    pub(super) fn seal(&self, place: &str, key: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let aad = self.aad(place, key);
        loop {
            match crypto::seal(&self.inner.keyring.load(), &aad, plain) {
                Err(crypto::Error::ReservationSpent { key_id }) => self.reserve(key_id)?,
                sealed => return sealed.map_err(Error::keys(&self.inner.path)),
            }
        }
    }

    /// Opens data that is stored at `key` of `place`.
    pub(super) fn open_sealed(
        &self,
        place: &str,
        key: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, crypto::Error> {
        crypto::open(&self.inner.keyring.load(), &self.aad(place, key), sealed)
    }

    fn aad<'a>(&'a self, place: &'a str, key: &'a [u8]) -> Aad<'a> {
        let Identity { cluster_id, node_id, .. } = &self.inner.identity;
        Aad { cluster_id, node_id: *node_id, place, key }
    }

    /// Reserves more uses of the active key, or rotates it if it has reached its limit.
    fn reserve(&self, spent: KeyId) -> Result<(), Error> {
        let rotates = self.inner.keyring.load().active_uses() >= ROTATE_AFTER_USES;
        self.change(|keyring| match keyring.active() == spent {
            // Another thread has already rotated the key.
            false => Ok(keyring.clone()),
            true if rotates => keyring.install().map(|next| next.reserve(RESERVE_USES)),
            true => Ok(keyring.reserve(RESERVE_USES)),
        })
    }

    /// Rotates the data key: new data is sealed under a new key. The old keys still open data. A
    /// later start retires them when no data is sealed under them.
    pub fn rotate(&self) -> Result<KeyId, Error> {
        self.change(|keyring| keyring.install().map(|next| next.reserve(RESERVE_USES)))?;
        Ok(self.inner.keyring.load().active())
    }

    /// Wraps the keyring under another master key. The previous master key no longer opens the directory.
    pub fn rekey(&self, new: MasterKey) -> Result<(), Error> {
        let mut master_key = self.lock();
        self.inner.write(&self.inner.keyring.load(), &new)?;
        *master_key = new;
        Ok(())
    }

    /// The data keys, oldest first.
    pub fn status(&self) -> Vec<KeyStatus> {
        self.inner.keyring.load().status()
    }

    /// The id of the master key.
    pub fn master_key_id(&self) -> String {
        self.lock().id()
    }

    /// The master key, which wraps the data key of a backup.
    pub(super) fn master_key(&self) -> MasterKey {
        self.lock().clone()
    }

    pub(super) fn active(&self) -> KeyId {
        self.inner.keyring.load().active()
    }

    /// Retires a key that no longer seals any data.
    pub(super) fn retire(&self, key_id: KeyId) -> Result<(), Error> {
        self.change(|keyring| keyring.retire(key_id))
    }

    /// Changes the keyring, first on disk and then in memory. Every change uses this function.
    fn change(
        &self,
        next: impl FnOnce(&Keyring) -> Result<Keyring, crypto::Error>,
    ) -> Result<(), Error> {
        let master_key = self.lock();
        let next = next(&self.inner.keyring.load()).map_err(Error::keys(&self.inner.path))?;
        self.inner.write(&next, &master_key)?;
        self.inner.keyring.store(Arc::new(next));
        Ok(())
    }
}

impl Inner {
    fn write(&self, keyring: &Keyring, master_key: &MasterKey) -> Result<(), Error> {
        let identity_bytes = self.identity.encode();
        let file = keyring
            .wrap(master_key, &aad_of_file(&self.identity, &identity_bytes))
            .map_err(Error::keys(&self.path))?;
        files::write_atomically(&self.path, &file)
    }
}

/// Returns the associated data that binds the keyring's file to every byte of the identity.
fn aad_of_file<'a>(identity: &'a Identity, identity_bytes: &'a [u8]) -> Aad<'a> {
    Aad {
        cluster_id: &identity.cluster_id,
        node_id: identity.node_id,
        place: "keyring",
        key: identity_bytes,
    }
}

impl Error {
    pub(super) fn keys(path: &Path) -> impl FnOnce(crypto::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Keys { path, source }
    }
}
