//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).

use crate::lanes::Words;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block: four words from a counter and a key.
#[must_use]
pub(crate) fn block(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(c0) * u64::from(MULTIPLIERS[0]);
        let p1 = u64::from(c2) * u64::from(MULTIPLIERS[1]);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    [c0, c1, c2, c3]
}

/// The keys of the rounds.
#[must_use]
pub(crate) fn schedule(key: [u32; 2]) -> [[u32; 2]; ROUNDS] {
    core::array::from_fn(|round| {
        [0, 1].map(|word| key[word].wrapping_add(WEYL[word].wrapping_mul(round as u32)))
    })
}

/// `N` times sixteen blocks with one key: four vectors of words each.
///
/// The chains do not depend on each other, so the multiplications of one fill the waiting time of the other.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
pub(crate) fn blocks<W: Words, const N: usize>(
    counters: [[W; 4]; N],
    keys: &[[u32; 2]; ROUNDS],
) -> [[W; 4]; N] {
    // Loops by index and no `map`: a closure is not told to be inlined into the level's function, and an iterator
    // takes an array of vectors through memory.
    let mut states = [W::begin_rounds(counters[0]); N];
    for i in 1..N {
        states[i] = W::begin_rounds(counters[i]);
    }
    for key in keys {
        for state in &mut states {
            *state = W::round(*state, MULTIPLIERS, *key);
        }
    }
    let mut words = counters;
    for i in 0..N {
        words[i] = W::end_rounds(states[i]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::{block, blocks, schedule};
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

    struct Lanes([u32; 4], [u32; 2]);

    impl Kernel for Lanes {
        type Output = [[u32; 4]; LANES];

        #[inline(always)]
        fn run<L: Vectors>(self) -> Self::Output {
            let counter = self.0.map(L::U32::splat);
            let [first, second] = blocks([counter, counter], &schedule(self.1));
            let lanes = first.map(|word| {
                let mut lanes = [0.0; LANES];
                word.to_floats().store(&mut lanes);
                lanes
            });
            let again = second.map(|word| {
                let mut lanes = [0.0; LANES];
                word.to_floats().store(&mut lanes);
                lanes
            });
            assert_eq!(lanes.map(|row| row.map(f32::to_bits)), again.map(|row| row.map(f32::to_bits)));
            core::array::from_fn(|lane| core::array::from_fn(|word| lanes[word][lane].to_bits()))
        }
    }

    #[test]
    fn known_answers_in_every_lane_of_every_level() {
        for level in Level::available() {
            for (counter, key, words) in KNOWN_ANSWERS {
                assert_eq!(dispatch(level, Lanes(counter, key)), [words; LANES], "{level:?}");
            }
        }
    }
}
