//! Keys and their comparison.
//!
//! A put compares about fifteen keys, most of which share a prefix. WebAssembly has no `memcmp`,
//! and the compiler's own implementation compares single bytes: a profile showed its loop as the
//! hottest spot of a put. This implementation compares eight bytes at a time. The next hottest spot
//! was fetching each key from its own heap allocation. Short keys are therefore stored inside the
//! tree's node.

use std::{cmp::Ordering, ops::Deref};

use equivalent::{Comparable, Equivalent};
use smol_str::SmolStr;

/// A key, ordered by its bytes like `str`. Cloning shares a long key and copies one of up to 23 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(SmolStr);

impl Deref for Key {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self(SmolStr::new(key))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.0.as_bytes(), other.0.as_bytes())
    }
}

/// A borrowed key for lookups.
#[derive(Clone, Copy)]
pub(crate) struct Sought<'a>(pub(crate) &'a str);

impl Equivalent<Key> for Sought<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.0 == *key.0
    }
}

impl Comparable<Key> for Sought<'_> {
    fn compare(&self, key: &Key) -> Ordering {
        compare(self.0.as_bytes(), key.0.as_bytes())
    }
}

/// Compares like `[u8]::cmp`.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.len().min(b.len());
    let (a_common, b_common) = (&a[..common], &b[..common]);
    let (a_words, b_words) = (a_common.as_chunks::<8>().0, b_common.as_chunks::<8>().0);
    for (a_word, b_word) in a_words.iter().zip(b_words) {
        if a_word != b_word {
            return u64::from_be_bytes(*a_word).cmp(&u64::from_be_bytes(*b_word));
        }
    }
    // The last word may overlap bytes that were compared already; these are equal.
    let rest = match (a_common.last_chunk::<8>(), b_common.last_chunk::<8>()) {
        (Some(a_word), Some(b_word)) => {
            u64::from_be_bytes(*a_word).cmp(&u64::from_be_bytes(*b_word))
        }
        _ => a_common.iter().cmp(b_common),
    };
    rest.then(a.len().cmp(&b.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_are_ordered_as_their_bytes(a in "[ab]{0,30}", b in "[ab]{0,30}", c in ".{0,20}") {
            for (a, b) in [(&a, &b), (&a, &c), (&c, &b), (&a, &a)] {
                prop_assert_eq!(compare(a.as_bytes(), b.as_bytes()), a.cmp(b));
                prop_assert_eq!(Key::from(a.as_str()).cmp(&Key::from(b.as_str())), a.cmp(b));
                prop_assert_eq!(Sought(a).compare(&Key::from(b.as_str())), a.cmp(b));
            }
        }
    }
}
