//! WebDataset's shuffle buffer.

/// Holds samples back, so that they leave in another order (`webdataset.filters._shuffle`).
///
/// Nothing leaves before `initial` samples are there. From then on two come for each that leaves, until the buffer is
/// full, and one for one after that.
pub(super) struct Shuffle<T, P> {
    buffer: Vec<T>,
    size: usize,
    initial: usize,
    /// Whether the sample before was taken in without one leaving, because there is room.
    grew: bool,
    pick: P,
}

impl<T, P: FnMut(usize) -> usize> Shuffle<T, P> {
    /// `pick` chooses a number below the one that it is given.
    pub(super) fn new(size: usize, initial: usize, pick: P) -> Self {
        Self { buffer: Vec::new(), size, initial: initial.min(size), grew: false, pick }
    }

    /// Takes a sample in; perhaps one leaves.
    pub(super) fn push(&mut self, sample: T) -> Option<T> {
        self.buffer.push(sample);
        self.grew = !self.grew && self.buffer.len() < self.size;
        if self.grew || self.buffer.len() < self.initial { None } else { self.pop() }
    }

    /// Lets one leave; `None` when there are no more.
    pub(super) fn pop(&mut self) -> Option<T> {
        let count = self.buffer.len();
        (count > 0).then(|| self.buffer.swap_remove((self.pick)(count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What webdataset 0.2.100 makes of 0 to 19 with a generator that picks 7, 14, 21, … modulo the number of samples.
    #[test]
    fn samples_leave_in_the_order_of_the_python_package() {
        let recorded = [
            (0, 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
            (1, 100, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
            (6, 3, [3, 5, 4, 6, 9, 0, 1, 2, 7, 8, 15, 10, 11, 12, 13, 18, 19, 16, 17, 14]),
            (5, 100, [2, 5, 1, 3, 0, 4, 10, 6, 7, 8, 9, 15, 11, 12, 13, 14, 17, 18, 16, 19]),
            (8, 1, [1, 3, 2, 6, 9, 0, 5, 11, 15, 12, 10, 8, 7, 14, 19, 4, 17, 16, 13, 18]),
            (100, 4, [3, 5, 4, 0, 7, 10, 15, 1, 11, 6, 12, 19, 14, 9, 16, 2, 8, 13, 17, 18]),
        ];
        for (size, initial, order) in recorded {
            let mut step = 0;
            let mut shuffle = Shuffle::new(size, initial, |count| {
                step += 7;
                step % count
            });
            let mut left: Vec<i32> = (0..20).filter_map(|sample| shuffle.push(sample)).collect();
            left.extend(std::iter::from_fn(|| shuffle.pop()));
            assert_eq!(left, order, "{size} {initial}");
        }
    }
}
