//! The noise contract (`docs/noise.md`): a pure function of (seed, draw, row, column).

use crate::Execution;
use crate::lanes::{Floats, LANES, Vectors, Words, store};
use crate::level::{Kernel, dispatch};
use crate::math::{half_circle, half_turn, radius};
use crate::philox::{self, Chains};
use crate::split::{Span, for_each, pieces, spans, threads_for};

/// Columns that one Philox block serves.
pub const BLOCK: usize = 4;

/// Slots whose noise is made together: with sixteen lanes a vector of blocks gives four vectors of values.
pub(crate) const GROUP: usize = 4;

/// The block of each lane, counted from the first of a group: what [`Words::last_round`] and [`Words::weave`] then
/// give, without a move between the quarters of a vector, are slots of sixteen neighbours.
const ORDER: [u32; LANES] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];

/// The block of each lane, counted from the first of its slot.
const WITHIN_SLOT: [u32; LANES] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];

/// Counter words 2 and 3 of [`fold_in`]; the second is beyond every row number.
const FOLD_IN_DOMAIN: [u32; 2] = [0x464F_4C44, 0xFFFF_FFFF];

/// The row number of each row.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Consecutive numbers from this one on.
    From(u64),
    /// These numbers.
    Listed(&'a [i64]),
}

impl Rows<'_> {
    #[inline(always)]
    fn number(self, row: usize) -> u64 {
        match self {
            Rows::From(first) => first.wrapping_add(row as u64),
            Rows::Listed(numbers) => numbers[row] as u64,
        }
    }
}

/// One stream of noise.
#[derive(Clone, Copy, Debug)]
pub struct Noise<'a> {
    /// The key.
    pub seed: u64,
    /// Number of the draw.
    pub draw: u32,
    /// Row numbers.
    pub rows: Rows<'a>,
}

impl Noise<'_> {
    /// The keys of the rounds.
    pub(crate) fn keys(&self) -> philox::Keys {
        philox::schedule([self.seed as u32, (self.seed >> 32) as u32])
    }

    /// The counter words that the blocks of a row share.
    #[inline(always)]
    fn shared(&self, row: usize) -> [u32; 3] {
        let number = self.rows.number(row);
        [self.draw, number as u32, (number >> 32) as u32]
    }

    /// The counters of any four slots.
    #[inline(always)]
    fn scattered<W: Words>(&self, slots: [(usize, usize); GROUP]) -> [W; 4] {
        let numbers = slots.map(|(row, _)| self.rows.number(row));
        let columns = W::repeat(slots.map(|(_, column)| (column / BLOCK) as u32));
        [
            columns.add(W::load(&WITHIN_SLOT)),
            W::splat(self.draw),
            W::repeat(numbers.map(|number| number as u32)),
            W::repeat(numbers.map(|number| (number >> 32) as u32)),
        ]
    }
}

/// What becomes of words.
pub trait Distribution {
    /// Two values from each two words, for several vectors of them.
    fn transform<W: Words, const N: usize>(pairs: [[W; 2]; N]) -> [[W::Floats; 2]; N];
}

/// Standard normals by Box-Muller on word pairs.
#[derive(Clone, Copy, Debug)]
pub struct Normal;

impl Distribution for Normal {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(pairs: [[W; 2]; N]) -> [[W::Floats; 2]; N] {
        let (mut first, mut second) = ([pairs[0][0]; N], [pairs[0][1]; N]);
        for i in 1..N {
            [first[i], second[i]] = pairs[i];
        }
        let (radii, points) = (radius(first), half_circle(second));
        let mut values = [[W::Floats::splat(0.0); 2]; N];
        for i in 0..N {
            let r = half_turn(radii[i], second[i]);
            values[i] = [r.mul(points[i].0), r.mul(points[i].1)];
        }
        values
    }
}

/// Uniforms on [0, 1): the upper 24 bits of a word.
#[derive(Clone, Copy, Debug)]
pub struct Uniform;

impl Distribution for Uniform {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(pairs: [[W; 2]; N]) -> [[W::Floats; 2]; N] {
        let mut values = [[W::Floats::splat(0.0); 2]; N];
        for i in 0..N {
            values[i] = [unit(pairs[i][0]), unit(pairs[i][1])];
        }
        values
    }
}

/// The upper 24 bits of a word, as the bits of a float: uniforms for those who compare integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upper24;

impl Distribution for Upper24 {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(pairs: [[W; 2]; N]) -> [[W::Floats; 2]; N] {
        let mut values = [[W::Floats::splat(0.0); 2]; N];
        for i in 0..N {
            values[i] = [upper(pairs[i][0]), upper(pairs[i][1])];
        }
        values
    }
}

#[inline(always)]
fn upper<W: Words>(word: W) -> W::Floats {
    word.shift_right::<8>().to_floats()
}

/// The upper 24 bits of a word as a fraction.
#[inline(always)]
fn unit<W: Words>(word: W) -> W::Floats {
    word.shift_right::<8>().signed_to_floats().mul(W::Floats::splat(1.0 / 16_777_216.0))
}

/// The values of blocks, as four slots for each chain.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
fn values<W: Words, D: Distribution, const CHAINS: usize>(
    words: [[[W; 2]; 2]; CHAINS],
) -> [[W::Floats; GROUP]; CHAINS] {
    let mut values = [[W::Floats::splat(0.0); GROUP]; CHAINS];
    if CHAINS == 2 {
        let [a, b, c, d] = D::transform([words[0][0], words[0][1], words[1][0], words[1][1]]);
        values[0] = slots::<W>(a, b);
        values[1] = slots::<W>(c, d);
    } else {
        for i in 0..CHAINS {
            let [even, odd] = D::transform(words[i]);
            values[i] = slots::<W>(even, odd);
        }
    }
    values
}

/// The slots of a chain.
#[inline(always)]
fn slots<W: Words>(even: [W::Floats; 2], odd: [W::Floats; 2]) -> [W::Floats; GROUP] {
    let ([a, c], [b, d]) = (W::weave(even[0], even[1]), W::weave(odd[0], odd[1]));
    [a, b, c, d]
}

/// What is done with a slot: a stretch of a row of up to sixteen columns.
///
/// Not a closure, which cannot be told to be inlined: see [`Kernel`].
pub(crate) trait Visit<L: Vectors> {
    /// Takes the slot that begins at a column of a row, with its noise (zeros where none is wanted).
    fn slot(&mut self, row: usize, column: usize, noise: L::F32);

    /// Takes two groups of slots from a column on, all whole and of one row.
    ///
    /// Worth a body of its own, without a branch between the slots: the compiler moves the arithmetic of a slot behind
    /// the branches before it, and what was to run side by side then runs one after the other.
    #[inline(always)]
    fn groups(&mut self, row: usize, column: usize, noise: [[L::F32; GROUP]; 2]) {
        one_by_one(self, row, column, noise);
    }
}

/// Visits the slots of two groups.
#[inline(always)]
pub(crate) fn one_by_one<L: Vectors, V: Visit<L> + ?Sized>(
    visitor: &mut V,
    row: usize,
    mut column: usize,
    noise: [[L::F32; GROUP]; 2],
) {
    for group in noise {
        for slot in group {
            visitor.slot(row, column, slot);
            column += LANES;
        }
    }
}

/// Visits the slots of a span in row-major order, with the noise of each still in registers.
///
/// The span starts at a multiple of sixteen columns.
#[inline(always)]
pub(crate) fn walk<L: Vectors, D: Distribution>(noise: &Noise, span: Span, visitor: &mut impl Visit<L>) {
    if L::CHAINS == 1 {
        walk_in_chains::<L, D, 1>(noise, span, visitor);
    } else {
        walk_in_chains::<L, D, 2>(noise, span, visitor);
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
fn walk_in_chains<L: Vectors, D: Distribution, const CHAINS: usize>(
    noise: &Noise,
    span: Span,
    visitor: &mut impl Visit<L>,
) {
    let keys = noise.keys();
    let end = span.column + span.columns;
    let (mut row, mut column) = (span.row, span.column);
    while row < span.row + span.rows {
        if L::WRITTEN_OUT && column + 2 * GROUP * LANES <= end {
            let start = philox::row_start(noise.shared(row), &keys);
            while column + 2 * GROUP * LANES <= end {
                let first = L::U32::load(&ORDER).add(L::U32::splat((column / BLOCK) as u32));
                let second = first.add(L::U32::splat(LANES as u32));
                let words = Chains::of_row([first, second], &start).words(&keys);
                visitor.groups(row, column, values::<L::U32, D, 2>(words));
                column += 2 * GROUP * LANES;
            }
            if column == end {
                (row, column) = (row + 1, span.column);
            }
            continue;
        }
        // The end of a row and the beginning of the next ones with it.
        let mut slots = [[(row, column); GROUP]; CHAINS];
        let mut used = 0;
        while used < CHAINS * GROUP && row < span.row + span.rows {
            slots[used / GROUP][used % GROUP] = (row, column);
            used += 1;
            column += LANES;
            if column >= end {
                (row, column) = (row + 1, span.column);
            }
        }
        let mut counters = [noise.scattered::<L::U32>(slots[0]); CHAINS];
        for i in 1..CHAINS {
            counters[i] = noise.scattered(slots[i]);
        }
        let values = values::<L::U32, D, CHAINS>(Chains::of_counters(counters).words(&keys));
        for i in 0..used {
            let (row, column) = slots[i / GROUP][i % GROUP];
            visitor.slot(row, column, values[i / GROUP][i % GROUP]);
        }
    }
}

/// The noise of one slot in eight draws that follow each other, by fours, from the one of `noise` on.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
pub(crate) fn draws<L: Vectors, D: Distribution>(
    noise: &Noise,
    keys: &philox::Keys,
    row: usize,
    column: usize,
) -> [[L::F32; GROUP]; 2] {
    let [draw, low, high] = noise.shared(row);
    let columns = L::U32::splat((column / BLOCK) as u32).add(L::U32::load(&WITHIN_SLOT));
    let first = L::U32::splat(draw).add(L::U32::repeat([0, 1, 2, 3]));
    let second = first.add(L::U32::splat(GROUP as u32));
    let [low, high] = [L::U32::splat(low), L::U32::splat(high)];
    let counters = [[columns, first, low, high], [columns, second, low, high]];
    let mut values = if L::CHAINS == 1 {
        let [a] = values::<L::U32, D, 1>(Chains::of_counters([counters[0]]).words(keys));
        let [b] = values::<L::U32, D, 1>(Chains::of_counters([counters[1]]).words(keys));
        [a, b]
    } else {
        values::<L::U32, D, 2>(Chains::of_counters(counters).words(keys))
    };
    for i in 0..2 {
        for j in 0..GROUP {
            values[i][j] = values[i][j].in_step();
        }
    }
    values
}

/// Visits the slots of a span likewise, where no noise is wanted.
#[inline(always)]
pub(crate) fn walk_quietly<L: Vectors>(span: Span, visitor: &mut impl Visit<L>) {
    let none = L::F32::splat(0.0);
    for row in span.row..span.row + span.rows {
        for column in (span.column..span.column + span.columns).step_by(LANES) {
            visitor.slot(row, column, none);
        }
    }
}

struct FillSpan<'a, D> {
    noise: &'a Noise<'a>,
    span: Span,
    target: &'a mut [f32],
    distribution: core::marker::PhantomData<D>,
}

impl<D: Distribution> Kernel for FillSpan<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(mut self) {
        walk::<L, D>(self.noise, self.span, &mut self);
    }
}

impl<L: Vectors, D: Distribution> Visit<L> for FillSpan<'_, D> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let (stretch, at) = self.span.stretch(row, column);
        store(noise, &mut self.target[stretch], at);
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    fn groups(&mut self, row: usize, column: usize, noise: [[L::F32; GROUP]; 2]) {
        let (stretch, at) = self.span.stretch(row, column);
        let target = &mut self.target[stretch][at..at + 2 * GROUP * LANES];
        for i in 0..2 {
            for j in 0..GROUP {
                store(noise[i][j], target, (i * GROUP + j) * LANES);
            }
        }
    }
}

/// Fills a contiguous matrix with noise.
///
/// # Panics
/// If `target` is not `rows * columns` long, or fewer row numbers are listed than there are rows.
pub fn sample<D: Distribution>(
    execution: Execution,
    noise: &Noise,
    rows: usize,
    columns: usize,
    target: &mut [f32],
) {
    assert_eq!(target.len(), rows * columns, "target has the wrong length");
    if let Rows::Listed(numbers) = noise.rows {
        assert_eq!(numbers.len(), rows, "one row number per row");
    }
    let spans = spans(rows, columns);
    let targets = pieces(target, spans.iter().map(Span::elements));
    let items: Vec<_> = spans.iter().copied().zip(targets).collect();
    for_each(items, threads_for(rows * columns, execution.threads), |(span, target)| {
        let distribution = core::marker::PhantomData::<D>;
        dispatch(execution.level, FillSpan { noise, span, target, distribution });
    });
}

/// A new seed from a seed and a tag.
#[must_use]
pub fn fold_in(seed: u64, tag: u64) -> u64 {
    let counter = [tag as u32, (tag >> 32) as u32, FOLD_IN_DOMAIN[0], FOLD_IN_DOMAIN[1]];
    let [low, high, ..] = philox::block(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(low) | u64::from(high) << 32
}

/// Fills `target` with the order that sorts the 63-bit keys of rows `0..n`, ties by row.
///
/// # Errors
/// If the keys do not fit in memory.
pub fn permutation(
    seed: u64,
    draw: u32,
    target: &mut [i64],
) -> Result<(), std::collections::TryReserveError> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut keyed = Vec::new();
    keyed.try_reserve_exact(target.len())?;
    keyed.extend((0..target.len() as u64).map(|row| {
        let [low, high, ..] = philox::block([0, draw, row as u32, (row >> 32) as u32], key);
        ((u64::from(high) << 32 | u64::from(low)) >> 1, row)
    }));
    keyed.sort_unstable();
    for (slot, (_, row)) in target.iter_mut().zip(keyed) {
        *slot = row as i64;
    }
    Ok(())
}
