//! What was used last, as far as it fits into a given amount of memory.

use std::hash::Hash;

use lru::LruCache;

/// A cache that forgets what was not used for longest when it would grow over its limit.
pub(crate) struct Bounded<K: Hash + Eq, V> {
    entries: LruCache<K, (V, usize)>,
    bytes: usize,
    limit: usize,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    /// An empty cache of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, limit }
    }

    /// Memory that its values take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Keeps a value and returns what had to go for it: older ones, or the value itself where it is larger than all that
    /// may be kept.
    pub(crate) fn put(&mut self, key: K, value: V, bytes: usize) -> Vec<V> {
        if bytes > self.limit {
            return vec![value];
        }
        let mut gone = Vec::new();
        if let Some((old, size)) = self.entries.put(key, (value, bytes)) {
            self.bytes -= size;
            gone.push(old);
        }
        self.bytes += bytes;
        while self.bytes > self.limit
            && let Some((_, (old, size))) = self.entries.pop_lru()
        {
            self.bytes -= size;
            gone.push(old);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut cache = Bounded::new(10);
        assert!(cache.put("a", 1, 4).is_empty());
        assert!(cache.put("b", 2, 4).is_empty());
        assert_eq!(cache.get(&"a"), Some(&1));
        assert_eq!(cache.put("c", 3, 4), [2]);
        assert_eq!(["a", "b", "c"].map(|key| cache.get(&key).copied()), [Some(1), None, Some(3)]);
        assert_eq!(cache.put("a", 5, 6), [1]);
        assert_eq!(cache.bytes(), 10);
        assert_eq!(cache.put("d", 7, 11), [7]);
        assert_eq!(cache.put("e", 8, 10).len(), 2);
        assert_eq!(cache.bytes(), 10);
    }
}
