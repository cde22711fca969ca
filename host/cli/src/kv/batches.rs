//! Batches of keys and values.

use conclave_client::proto::kv::put_request::Content;

/// Maximum number of operations of `kv.v1.KV/Batch`.
pub(crate) const OPERATIONS_MAX: usize = 128;
/// Maximum size of its keys and values in bytes.
pub(crate) const BYTES_MAX: usize = 1 << 20;
/// Maximum overhead of a key and a value beside their own bytes: tags, lengths and the time to live.
const OVERHEAD_BYTES: usize = 48;

/// A key, its value and its time to live.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) content: Content,
    /// Milliseconds; 0: the key does not expire.
    pub(crate) ttl_ms: i64,
}

impl Pair {
    pub(crate) fn text((key, text): (String, String)) -> Self {
        Self { key, content: Content::Text(text), ttl_ms: 0 }
    }

    /// The bytes of the key and the value.
    pub(crate) fn bytes(&self) -> usize {
        let value = match &self.content {
            Content::Text(text) => text.len(),
            Content::Value(bytes) => bytes.len(),
        };
        self.key.len() + value
    }
}

/// Iterator that fills batches in order. A pair that is too large for any batch gets a batch of its
/// own, so that the node's error names it.
pub(crate) struct Batches<I: Iterator<Item = Pair>> {
    pairs: std::iter::Peekable<I>,
}

/// Divides `pairs` into batches.
pub(crate) fn batches<I: IntoIterator<Item = Pair>>(pairs: I) -> Batches<I::IntoIter> {
    Batches { pairs: pairs.into_iter().peekable() }
}

impl<I: Iterator<Item = Pair>> Iterator for Batches<I> {
    type Item = Vec<Pair>;

    fn next(&mut self) -> Option<Vec<Pair>> {
        let first = self.pairs.next()?;
        let mut bytes = cost(&first);
        let mut batch = vec![first];
        while batch.len() < OPERATIONS_MAX
            && let Some(pair) = self.pairs.next_if(|pair| bytes + cost(pair) <= BYTES_MAX)
        {
            bytes += cost(&pair);
            batch.push(pair);
        }
        Some(batch)
    }
}

fn cost(pair: &Pair) -> usize {
    pair.bytes() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(at: usize, value_bytes: usize) -> Pair {
        Pair::text((format!("key-{at:06}"), "v".repeat(value_bytes)))
    }

    #[test]
    fn small_pairs_fill_batches_by_count() {
        let sizes: Vec<_> =
            batches((0..300).map(|at| pair(at, 10))).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [128, 128, 44]);
    }

    #[test]
    fn a_pair_that_fits_nowhere_goes_alone() {
        let pairs = vec![pair(0, 10), pair(1, BYTES_MAX + 1), pair(2, 10), pair(3, 10)];
        let sizes: Vec<_> = batches(pairs).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [1, 1, 2]);
    }

    #[test]
    fn nothing_makes_no_batch() {
        assert_eq!(batches(Vec::new()).count(), 0);
    }

    proptest! {
        #[test]
        fn order_and_limits_hold(sizes in prop::collection::vec(0..200_000_usize, 0..60)) {
            let pairs: Vec<_> = sizes.iter().enumerate().map(|(at, &b)| pair(at, b)).collect();
            let cut: Vec<_> = batches(pairs.clone()).collect();
            for batch in &cut {
                prop_assert!(batch.len() <= OPERATIONS_MAX);
                prop_assert!(batch.iter().map(cost).sum::<usize>() <= BYTES_MAX);
            }
            prop_assert_eq!(cut.concat(), pairs);
        }
    }
}
