//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).

use crate::lanes::{RowStart, Words};

pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block: four words from a counter and a key.
#[must_use]
pub(crate) fn block(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    rounds(counter, &schedule(key))
}

/// A block after a round for each key.
#[inline(always)]
pub(crate) fn rounds([mut c0, mut c1, mut c2, mut c3]: [u32; 4], keys: &[[u32; 2]]) -> [u32; 4] {
    for [k0, k1] in keys {
        let p0 = u64::from(c0) * u64::from(MULTIPLIERS[0]);
        let p1 = u64::from(c2) * u64::from(MULTIPLIERS[1]);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
    }
    [c0, c1, c2, c3]
}

/// The keys of the rounds.
pub(crate) type Keys = [[u32; 2]; ROUNDS];

/// The keys of the rounds that a key leads to.
#[must_use]
pub(crate) fn schedule(key: [u32; 2]) -> Keys {
    core::array::from_fn(|round| {
        [0, 1].map(|word| key[word].wrapping_add(WEYL[word].wrapping_mul(round as u32)))
    })
}

/// Words of sixteen blocks, in the pairs of [`Words::last_round`].
pub(crate) type Pairs<W> = [[W; 2]; 2];

/// Work in steps that go between the steps of other work, each once and in order.
pub trait Beside {
    /// One of them.
    fn step<const I: usize>(&mut self);

    /// All of them.
    #[inline(always)]
    fn all(&mut self) {
        // Written out: a loop stays a loop, whose state then moves between registers.
        macro_rules! steps {
            ($($i:literal)*) => {$( self.step::<$i>(); )*};
        }
        steps!(0 1 2 3 4 5 6 7 8 9 10 11 12 13);
    }
}

/// No work.
pub(crate) struct Nothing;

impl Beside for Nothing {
    #[inline(always)]
    fn step<const I: usize>(&mut self) {}
}

/// Chains of sixteen blocks each on their way, two rounds done.
///
/// They do not depend on each other, so the multiplications of one fill the waiting time of the other. And two of them
/// leave units of the processor free that the polynomials of other words want: the seven rounds of each before the
/// last are [steps](Beside).
#[derive(Clone, Copy)]
pub(crate) struct Chains<'a, W: Words, const N: usize> {
    states: [W::Rounds; N],
    keys: &'a Keys,
}

// Loops by index and no `map`: a closure is not told to be inlined into the level's function, and an iterator takes
// an array of vectors through memory.
impl<'a, W: Words, const N: usize> Chains<'a, W, N> {
    /// From whole counters.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    pub(crate) fn of_counters(counters: [[W; 4]; N], keys: &'a Keys) -> Self {
        let mut states = [W::begin_rounds(counters[0]); N];
        for i in 1..N {
            states[i] = W::begin_rounds(counters[i]);
        }
        for key in [keys[0], keys[1]] {
            for i in 0..N {
                states[i] = W::round(states[i], key);
            }
        }
        Self { states, keys }
    }

    /// From the first words of counters that share the others.
    #[inline(always)]
    pub(crate) fn of_row(first_words: [W; N], row: &RowStart, keys: &'a Keys) -> Self {
        let mut states = [W::begin_rounds_of_row(first_words[0], row); N];
        for i in 1..N {
            states[i] = W::begin_rounds_of_row(first_words[i], row);
        }
        Self { states, keys }
    }

    /// The words, all rounds done.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    pub(crate) fn words(mut self) -> [Pairs<W>; N] {
        if W::BLOCK_BY_BLOCK {
            let keys = &self.keys[2..];
            let mut words = [W::last_rounds(self.states[0], keys); N];
            for i in 1..N {
                words[i] = W::last_rounds(self.states[i], keys);
            }
            return words;
        }
        self.all();
        self.last_round()
    }

    /// The words, all rounds but the last done.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    pub(crate) fn last_round(self) -> [Pairs<W>; N] {
        let mut words = [W::last_round(self.states[0], self.keys[ROUNDS - 1]); N];
        for i in 1..N {
            words[i] = W::last_round(self.states[i], self.keys[ROUNDS - 1]);
        }
        words
    }
}

/// The seven rounds of each chain before the last.
impl<W: Words, const N: usize> Beside for Chains<'_, W, N> {
    #[inline(always)]
    fn step<const I: usize>(&mut self) {
        const { assert!(N == 1 || N == 2, "fourteen steps are the rounds of two chains") }
        let round = 2 + I / N;
        if round < ROUNDS - 1 {
            self.states[I % N] = W::round(self.states[I % N], self.keys[round]);
        }
    }
}

/// The first two rounds, as far as blocks that share the counter words 1 to 3 have them in common.
#[must_use]
pub(crate) fn row_start([c1, c2, c3]: [u32; 3], keys: &Keys) -> RowStart {
    let product = |word: u32, multiplier: u32| {
        let product = u64::from(word) * u64::from(multiplier);
        ((product >> 32) as u32, product as u32)
    };
    let (high1, low1) = product(c2, MULTIPLIERS[1]);
    let (high0, low0) = product(high1 ^ c1 ^ keys[0][0], MULTIPLIERS[0]);
    RowStart { first: c3 ^ keys[0][1], second: low1 ^ keys[1][0], third: high0 ^ keys[1][1], fourth: low0 }
}

#[cfg(test)]
mod tests {
    use super::{Beside, Chains, block, row_start, schedule};
    use crate::lanes::{Floats, LANES, Vectors, Words};
    use crate::level::{Kernel, Level, dispatch};

    /// The known answers that come with Random123: counter, key, words.
    const KNOWN_ANSWERS: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];

    #[test]
    fn known_answers() {
        for (counter, key, words) in KNOWN_ANSWERS {
            assert_eq!(block(counter, key), words);
        }
    }

    /// The words of sixteen blocks, lane by lane, begun with whole counters and with those of a row.
    struct Lanes([u32; 4], [u32; 2]);

    impl Kernel for Lanes {
        type Output = [[[u32; 4]; LANES]; 2];

        #[inline(always)]
        fn run<L: Vectors>(self) -> Self::Output {
            let Self([first, rest @ ..], key) = self;
            let keys = schedule(key);
            let counting: [u32; LANES] = core::array::from_fn(|lane| first.wrapping_add(lane as u32));
            let firsts = L::U32::load(&counting);
            let others = rest.map(L::U32::splat);
            let counters = [firsts, others[0], others[1], others[2]];
            let row = row_start(rest, &keys);
            let whole = Chains::of_counters([counters, counters], &keys).words();
            let mut of_row = Chains::of_row([firsts, firsts], &row, &keys);
            of_row.all();
            let [a, b] = whole.map(by_lane);
            let [c, d] = of_row.last_round().map(by_lane);
            assert_eq!((a, c), (b, d), "the chains differ");
            [a, c]
        }
    }

    fn by_lane<W: Words>(pairs: [[W; 2]; 2]) -> [[u32; 4]; LANES] {
        let lanes = pairs.map(|pair| {
            pair.map(|words| {
                let mut lanes = [0.0; LANES];
                words.to_floats().store(&mut lanes);
                lanes.map(f32::to_bits)
            })
        });
        core::array::from_fn(|lane| {
            let [first, second] = &lanes[lane % 2];
            let at = lane / 2 * 2;
            [first[at], second[at], first[at + 1], second[at + 1]]
        })
    }

    #[test]
    fn every_lane_of_every_level_has_the_words_of_its_block() {
        for level in Level::available() {
            for (counter, key, _) in KNOWN_ANSWERS {
                let [first, rest @ ..] = counter;
                let truth: [_; LANES] = core::array::from_fn(|lane| {
                    let [second, third, fourth] = rest;
                    block([first.wrapping_add(lane as u32), second, third, fourth], key)
                });
                assert_eq!(dispatch(level, Lanes(counter, key)), [truth; 2], "{level:?}");
            }
        }
    }
}
