//! How much is asked for at once. What could go wrong: a page of long documents or wide vectors that fills the memory of
//! either side, so the number of records follows the bytes that they were seen to take.

/// Sizes of pages.
#[derive(Debug, Clone, Copy)]
pub struct Pages {
    /// Ids of one listing, at least 2; collections and databases too.
    pub ids: usize,
    /// Bytes that an answer with records should have.
    pub bytes: usize,
    /// Bytes that no answer may exceed.
    pub largest: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Self { ids: 10_000, bytes: 4 << 20, largest: 64 << 20 }
    }
}

/// Bytes of one number of a vector as text, with its comma: a server that prints an f32 as f64 takes up to 22.
const NUMBER: usize = 22;
/// A first guess for the rest of a record.
const REST: usize = 2048;
/// Records of one page, whatever the server allows.
const MOST: usize = 4096;

/// How many records the next page asks for.
#[derive(Debug)]
pub(super) struct Sizer {
    target: usize,
    most: usize,
    next: usize,
}

impl Sizer {
    /// `batch` is the most that the server takes at once.
    pub fn new(dimension: usize, target: usize, batch: usize) -> Self {
        let most = batch.clamp(1, MOST);
        let record = dimension.saturating_mul(NUMBER).saturating_add(REST);
        Self { target, most, next: (target / record).clamp(1, most) }
    }

    pub fn next(&self) -> usize {
        self.next
    }

    /// Learns from a page of `records` that took `bytes`.
    pub fn saw(&mut self, records: usize, bytes: usize) {
        let fits = self.target.saturating_mul(records.max(1)) / bytes.max(1);
        self.next = fits.clamp(1, self.most).min(self.next.saturating_mul(2));
    }

    /// The page was too large: half of it. False when it had one record only.
    pub fn halve(&mut self) -> bool {
        let smaller = self.next > 1;
        self.next = (self.next / 2).max(1);
        smaller
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_follows_the_bytes_of_its_records() {
        let mut s = Sizer::new(1536, 4 << 20, 5461);
        let first = s.next();
        assert!((50..=200).contains(&first), "{first}");
        s.saw(first, first * 100);
        assert_eq!(s.next(), first * 2, "it grows by twice at most");
        s.saw(first, 400 << 20);
        assert_eq!(s.next(), 1, "and shrinks at once");
    }

    #[test]
    fn neither_side_is_asked_for_more_than_it_takes() {
        let mut s = Sizer::new(3, usize::MAX, 100);
        assert_eq!(s.next(), 100);
        s.saw(100, 1);
        assert_eq!(s.next(), 100);
        assert_eq!(Sizer::new(usize::MAX, 4 << 20, 0).next(), 1);
    }

    #[test]
    fn halving_ends_at_one() {
        let mut s = Sizer::new(0, 3 * REST, 100);
        assert_eq!(s.next(), 3);
        assert!(s.halve());
        assert!(!s.halve());
        assert_eq!(s.next(), 1);
    }
}
