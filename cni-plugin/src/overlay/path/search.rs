//! Which size to try next.

use super::Verdict;

/// A search for the largest packet that a path carries, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    /// What every path carries.
    floor: u32,
    /// What the link carries.
    top: u32,
    /// The largest that was answered.
    low: Option<u32>,
    /// The smallest that was not.
    high: Option<u32>,
    /// Sizes that are likely just right or just too large.
    guesses: Vec<u32>,
    silent: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send a packet of this size, and one of [`Search::floor`] after it.
    Try(u32),
    /// Nothing: this is how it is.
    Done(Verdict),
}

impl Search {
    /// A search from `floor` to `top`; `known` is what the path carried last time.
    pub fn new(floor: u32, top: u32, known: Option<u32>) -> Self {
        let mut search = Self {
            floor: floor.min(top),
            top,
            low: None,
            high: None,
            guesses: Vec::new(),
            silent: false,
        };
        search.guess(known);
        search
    }

    /// The size of which an answer says that the other end answers at all.
    pub fn floor(&self) -> u32 {
        self.floor
    }

    /// The next step.
    pub fn step(&self) -> Step {
        let (low, high) = match (self.low, self.high) {
            _ if self.silent => return Step::Done(Verdict::Silent),
            (Some(low), _) if low >= self.top => return Step::Done(Verdict::Whole),
            (_, None) => return Step::Try(self.top),
            (low, Some(high)) => (low.unwrap_or(self.floor), high),
        };
        if low + 1 >= high {
            return Step::Done(Verdict::Narrow(low));
        }
        let fitting = |guess: &&u32| low < **guess && **guess < high;
        let guess = self.guesses.iter().find(fitting);
        Step::Try(guess.copied().unwrap_or(low + (high - low) / 2))
    }

    /// A packet of this size was answered.
    pub fn answered(&mut self, size: u32) {
        self.low = self.low.max(Some(size));
    }

    /// A packet of this size was not, and one of [`Search::floor`] was. `hint` is what somebody on
    /// the way says to pass.
    pub fn lost(&mut self, size: u32, hint: Option<u32>) {
        self.silent = size <= self.floor;
        self.high = Some(self.high.map_or(size, |high| high.min(size)));
        self.low = self.low.max(Some(self.floor));
        self.guess(hint);
    }

    /// Nothing is answered.
    pub fn unanswered(&mut self) {
        self.silent = true;
    }

    /// If it is the right one, two packets prove it.
    fn guess(&mut self, size: Option<u32>) {
        if let Some(size) = size {
            self.guesses.insert(0, size);
            self.guesses.insert(1, size.saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Searches a path that carries `carries`, and tells its size where `tells`; gives what was found
    /// and by how many packets.
    fn search(mut search: Search, carries: u32, tells: bool) -> (Verdict, usize) {
        for packets in 0.. {
            match search.step() {
                Step::Done(verdict) => return (verdict, packets),
                Step::Try(size) if size <= carries => search.answered(size),
                Step::Try(_) if carries < search.floor() => search.unanswered(),
                Step::Try(size) => search.lost(size, tells.then_some(carries)),
            }
            assert!(packets < 100, "{search:?}");
        }
        unreachable!()
    }

    #[test]
    fn a_path_that_is_as_it_was_costs_few_packets() {
        let new = |known| Search::new(576, 1500, known);
        for (known, carries, tells, expect) in [
            (None, 1500, false, (Verdict::Whole, 1)),
            (None, 9000, false, (Verdict::Whole, 1)),
            (Some(1400), 1500, false, (Verdict::Whole, 1)),
            (Some(1400), 1400, false, (Verdict::Narrow(1400), 3)),
            (None, 1400, true, (Verdict::Narrow(1400), 3)),
            (Some(1300), 1400, true, (Verdict::Narrow(1400), 3)),
            (None, 0, false, (Verdict::Silent, 1)),
            (Some(1400), 0, false, (Verdict::Silent, 1)),
            (None, 576, true, (Verdict::Narrow(576), 2)),
        ] {
            assert_eq!(
                search(new(known), carries, tells),
                expect,
                "{known:?} {carries}"
            );
        }
        // A link that carries no more than it must.
        assert_eq!(
            search(Search::new(1280, 1280, None), 1280, false).0,
            Verdict::Whole
        );
        let mut odd = Search::new(1280, 1280, None);
        odd.lost(1280, None);
        assert_eq!(odd.step(), Step::Done(Verdict::Silent));
    }

    proptest! {
        #[test]
        fn the_size_is_found_to_the_byte(
            floor in 576u32..1281,
            top in 1281u32..65536,
            carries in 576u32..65536,
            known in proptest::option::of(0u32..70000),
            tells: bool,
        ) {
            let (verdict, packets) = search(Search::new(floor, top, known), carries, tells);
            let expect = match carries {
                _ if carries >= top => Verdict::Whole,
                _ if carries < floor => Verdict::Silent,
                _ => Verdict::Narrow(carries),
            };
            prop_assert_eq!(verdict, expect);
            prop_assert!(packets <= 20, "{}", packets);
        }

        #[test]
        fn a_hint_that_lies_costs_no_truth(carries in 576u32..1500, hint: u32) {
            let mut search = Search::new(576, 1500, None);
            let mut packets = 0;
            let verdict = loop {
                match search.step() {
                    Step::Done(verdict) => break verdict,
                    Step::Try(size) if size <= carries => search.answered(size),
                    Step::Try(size) => search.lost(size, Some(hint)),
                }
                packets += 1;
                prop_assert!(packets < 40);
            };
            prop_assert_eq!(verdict, Verdict::Narrow(carries));
        }
    }
}
