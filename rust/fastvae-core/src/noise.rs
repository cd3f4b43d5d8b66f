//! The noise contract (`docs/noise.md`): a pure function of (seed, draw, row, column).

use crate::Execution;
use crate::lanes::{Floats, LANES, RowStart, Vectors, Words, store};
use crate::level::{Kernel, dispatch};
use crate::math::{half_circle, half_turn, radius};
use crate::philox::{self, Beside, Chains, Nothing, Pairs};
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

    /// The chains of two groups of slots that are rows of so many of them.
    #[inline(always)]
    fn chains_of_rows<'k, L: Vectors, const PER_ROW: usize>(
        &self,
        first: Slot,
        keys: &'k philox::Keys,
    ) -> Chains<'k, L::U32, 2> {
        let group = |i: usize| [0, 1, 2, 3].map(|j| slot_of_rows::<PER_ROW>(first, i * GROUP + j));
        Chains::of_counters([self.scattered(group(0)), self.scattered(group(1))], keys)
    }

    /// The counters of any four slots.
    #[inline(always)]
    fn scattered<W: Words>(&self, slots: [Slot; GROUP]) -> [W; 4] {
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
    /// Two values from each two words, for several vectors of them; other work goes between the steps.
    fn transform<W: Words, const N: usize>(
        pairs: [[W; 2]; N],
        beside: &mut impl Beside,
    ) -> [[W::Floats; 2]; N];
}

/// Standard normals by Box-Muller on word pairs.
#[derive(Clone, Copy, Debug)]
pub struct Normal;

impl Distribution for Normal {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(
        pairs: [[W; 2]; N],
        beside: &mut impl Beside,
    ) -> [[W::Floats; 2]; N] {
        let (mut first, mut second) = ([pairs[0][0]; N], [pairs[0][1]; N]);
        for i in 1..N {
            [first[i], second[i]] = pairs[i];
        }
        let radii = radius(first, beside);
        beside.step::<8>();
        beside.step::<9>();
        let points = half_circle(second, beside);
        beside.step::<13>();
        let mut values = [[radii[0]; 2]; N];
        for i in 0..N {
            let radius = half_turn(radii[i], second[i]);
            values[i] = [radius.mul(points[i].0), radius.mul(points[i].1)];
        }
        values
    }
}

/// Uniforms on [0, 1): the upper 24 bits of a word.
#[derive(Clone, Copy, Debug)]
pub struct Uniform;

impl Distribution for Uniform {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(
        pairs: [[W; 2]; N],
        beside: &mut impl Beside,
    ) -> [[W::Floats; 2]; N] {
        beside.all();
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
    fn transform<W: Words, const N: usize>(
        pairs: [[W; 2]; N],
        beside: &mut impl Beside,
    ) -> [[W::Floats; 2]; N] {
        beside.all();
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

/// The values of two chains' words, as two groups of slots.
#[inline(always)]
fn values<W: Words, D: Distribution>(
    words: [Pairs<W>; 2],
    beside: &mut impl Beside,
) -> [[W::Floats; GROUP]; 2] {
    let [[a, b], [c, d]] = words;
    let [a, b, c, d] = D::transform([a, b, c, d], beside);
    [slots::<W>(a, b), slots::<W>(c, d)]
}

/// The values of a single chain's words, as a group of slots.
#[inline(always)]
fn values_of_one<W: Words, D: Distribution>([words]: [Pairs<W>; 1]) -> [W::Floats; GROUP] {
    let [even, odd] = D::transform(words, &mut Nothing);
    slots::<W>(even, odd)
}

/// The slots of a chain.
#[inline(always)]
fn slots<W: Words>(even: [W::Floats; 2], odd: [W::Floats; 2]) -> [W::Floats; GROUP] {
    let ([a, c], [b, d]) = (W::weave(even[0], even[1]), W::weave(odd[0], odd[1]));
    [a, b, c, d]
}

/// Where a slot begins: the row and the column.
pub(crate) type Slot = (usize, usize);

/// What is done with a slot: a stretch of a row of up to sixteen columns.
///
/// Not a closure, which cannot be told to be inlined: see [`Kernel`].
pub(crate) trait Visit<L: Vectors> {
    /// Whether narrow rows are [taken together](Visit::rows): code for each number of slots that a row may have.
    const ROWS: bool = false;

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

    /// Takes rows that are two groups of slots together, `PER_ROW` of each, from the first slot of one on; for the same
    /// reason.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    fn rows<const PER_ROW: usize>(&mut self, first: Slot, noise: [[L::F32; GROUP]; 2]) {
        for i in 0..2 {
            for j in 0..GROUP {
                let (row, column) = slot_of_rows::<PER_ROW>(first, i * GROUP + j);
                self.slot(row, column, noise[i][j]);
            }
        }
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

/// Where a slot of rows begins that have so many of them.
#[inline(always)]
pub(crate) fn slot_of_rows<const PER_ROW: usize>((row, column): Slot, slot: usize) -> Slot {
    (row + slot / PER_ROW, column + slot % PER_ROW * LANES)
}

/// Visits the slots of a span in row-major order, with the noise of each still in registers.
///
/// The span starts at a multiple of sixteen columns.
#[inline(always)]
pub(crate) fn walk<L: Vectors, D: Distribution>(noise: &Noise, span: Span, visitor: &mut impl Visit<L>) {
    let keys = noise.keys();
    let done = walk_narrow::<L, D, _>(noise, &keys, span, visitor);
    if done == span.rows {
        return;
    }
    let span = Span { row: span.row + done, rows: span.rows - done, ..span };
    if L::ROUNDS_BESIDE {
        walk_ahead::<L, D>(Way::new(noise, &keys, span), visitor);
    } else {
        walk_step_by_step::<L, D>(noise, &keys, span, visitor);
    }
}

/// Visits narrow rows as long as they fill two groups, and says how many those are.
///
/// Latents of that size are what most models have.
#[inline(always)]
fn walk_narrow<L: Vectors, D: Distribution, V: Visit<L>>(
    noise: &Noise,
    keys: &philox::Keys,
    span: Span,
    visitor: &mut V,
) -> usize {
    if !V::ROWS || !L::WRITTEN_OUT {
        return 0;
    }
    match span.columns.div_ceil(LANES) {
        1 => walk_rows::<L, D, 1>(noise, keys, span, visitor),
        2 => walk_rows::<L, D, 2>(noise, keys, span, visitor),
        4 => walk_rows::<L, D, 4>(noise, keys, span, visitor),
        _ => 0,
    }
}

/// The same for a number of slots in a row that the compiler knows.
#[inline(always)]
fn walk_rows<L: Vectors, D: Distribution, const PER_ROW: usize>(
    noise: &Noise,
    keys: &philox::Keys,
    span: Span,
    visitor: &mut impl Visit<L>,
) -> usize {
    let step = 2 * GROUP / PER_ROW;
    let rows = span.rows / step * step;
    if rows == 0 {
        return 0;
    }
    let (mut row, end) = (span.row, span.row + rows);
    if L::ROUNDS_BESIDE {
        let mut words = noise.chains_of_rows::<L, PER_ROW>((row, span.column), keys).words();
        while row < end {
            // As in `walk_ahead`.
            let next = if row + step < end { row + step } else { row };
            let mut chains = noise.chains_of_rows::<L, PER_ROW>((next, span.column), keys);
            let values = values::<_, D>(words, &mut chains);
            words = chains.last_round();
            visitor.rows::<PER_ROW>((row, span.column), values);
            row += step;
        }
    } else {
        while row < end {
            let words = noise.chains_of_rows::<L, PER_ROW>((row, span.column), keys).words();
            visitor.rows::<PER_ROW>((row, span.column), values::<_, D>(words, &mut Nothing));
            row += step;
        }
    }
    rows
}

#[inline(always)]
fn walk_step_by_step<L: Vectors, D: Distribution>(
    noise: &Noise,
    keys: &philox::Keys,
    span: Span,
    visitor: &mut impl Visit<L>,
) {
    let end = span.column + span.columns;
    let (mut row, mut column) = (span.row, span.column);
    while row < span.row + span.rows {
        if L::WRITTEN_OUT && column + 2 * GROUP * LANES <= end {
            let start = philox::row_start(noise.shared(row), keys);
            while column + 2 * GROUP * LANES <= end {
                let words = Chains::of_row(two_groups::<L::U32>(column), &start, keys).words();
                visitor.groups(row, column, values::<L::U32, D>(words, &mut Nothing));
                column += 2 * GROUP * LANES;
            }
            if column == end {
                (row, column) = (row + 1, span.column);
            }
            continue;
        }
        // The end of a row and the beginning of the next ones with it.
        let mut slots = [(row, column); GROUP];
        let mut used = 0;
        while used < GROUP && row < span.row + span.rows {
            slots[used] = (row, column);
            used += 1;
            column += LANES;
            if column >= end {
                (row, column) = (row + 1, span.column);
            }
        }
        let words = Chains::of_counters([noise.scattered::<L::U32>(slots)], keys).words();
        let values = values_of_one::<L::U32, D>(words);
        for i in 0..used {
            let (row, column) = slots[i];
            visitor.slot(row, column, values[i]);
        }
    }
}

/// The words of the slots to come are made beside the values of those that are visited.
#[inline(always)]
fn walk_ahead<L: Vectors, D: Distribution>(mut way: Way, visitor: &mut impl Visit<L>) {
    let last = way.span.row + way.span.rows;
    let mut here = (way.span.row, way.span.column);
    let mut words = way.chains::<L::U32>(here).words();
    while here.0 < last {
        // A loop of its own where the next ones are of the same row, too: without a branch.
        while way.is_whole(here.1 + 2 * GROUP * LANES) {
            let next = (here.0, here.1 + 2 * GROUP * LANES);
            let mut chains = way.whole(next);
            let values = values::<_, D>(words, &mut chains);
            words = chains.last_round();
            visitor.groups(here.0, here.1, values);
            here = next;
        }
        let (next, used) = way.after(here);
        // Behind the last ones there is nothing to do beside them; that it is done nevertheless keeps one loop.
        let mut chains = way.chains(if next.0 < last { next } else { here });
        let values = values::<_, D>(words, &mut chains);
        words = chains.last_round();
        if way.is_whole(here.1) {
            visitor.groups(here.0, here.1, values);
        } else {
            way.visit_slots::<L>(here, used, values, visitor);
        }
        here = next;
    }
}

/// The first counter words of two groups of slots.
#[inline(always)]
fn two_groups<W: Words>(column: usize) -> [W; 2] {
    let first = W::load(&ORDER).add(W::splat((column / BLOCK) as u32));
    [first, first.add(W::splat(LANES as u32))]
}

/// The way through the slots of a span in row-major order, two groups of them at a time.
struct Way<'a> {
    noise: &'a Noise<'a>,
    keys: &'a philox::Keys,
    span: Span,
    /// The row whose rounds begin so.
    row: usize,
    start: RowStart,
}

impl<'a> Way<'a> {
    #[inline(always)]
    fn new(noise: &'a Noise<'a>, keys: &'a philox::Keys, span: Span) -> Self {
        let start = philox::row_start(noise.shared(span.row), keys);
        Self { noise, keys, span, row: span.row, start }
    }

    /// Whether two groups of whole slots begin at a column.
    #[inline(always)]
    fn is_whole(&self, column: usize) -> bool {
        column + 2 * GROUP * LANES <= self.span.column + self.span.columns
    }

    /// A number of columns on, or at the beginning of the next row.
    #[inline(always)]
    fn on(&self, (row, column): (usize, usize), columns: usize) -> (usize, usize) {
        if column + columns < self.span.column + self.span.columns {
            (row, column + columns)
        } else {
            (row + 1, self.span.column)
        }
    }

    /// What comes two groups on, and how many slots they have: of the row where they are whole, else of the end of the
    /// row and the beginning of the next ones with it, as far as there are any.
    #[inline(always)]
    fn after(&self, mut slot: (usize, usize)) -> ((usize, usize), usize) {
        if self.is_whole(slot.1) {
            return (self.on(slot, 2 * GROUP * LANES), 2 * GROUP);
        }
        let mut used = 0;
        while used < 2 * GROUP && slot.0 < self.span.row + self.span.rows {
            slot = self.on(slot, LANES);
            used += 1;
        }
        (slot, used)
    }

    /// The chains of these two groups.
    #[inline(always)]
    fn chains<W: Words>(&mut self, slot: (usize, usize)) -> Chains<'a, W, 2> {
        if self.is_whole(slot.1) { self.whole(slot) } else { self.scattered(slot) }
    }

    /// The chains of whole slots.
    #[inline(always)]
    fn whole<W: Words>(&mut self, slot: (usize, usize)) -> Chains<'a, W, 2> {
        if self.row != slot.0 {
            (self.row, self.start) = (slot.0, philox::row_start(self.noise.shared(slot.0), self.keys));
        }
        Chains::of_row(two_groups(slot.1), &self.start, self.keys)
    }

    /// The chains of slots of several rows.
    #[inline(always)]
    fn scattered<W: Words>(&self, mut slot: (usize, usize)) -> Chains<'a, W, 2> {
        let mut slots = [[slot; GROUP]; 2];
        for i in 0..2 * GROUP {
            slots[i / GROUP][i % GROUP] = slot;
            let next = self.on(slot, LANES);
            if next.0 < self.span.row + self.span.rows {
                slot = next;
            }
        }
        Chains::of_counters([self.noise.scattered(slots[0]), self.noise.scattered(slots[1])], self.keys)
    }

    /// Visits slots one after the other.
    #[inline(always)]
    fn visit_slots<L: Vectors>(
        &self,
        mut slot: (usize, usize),
        used: usize,
        values: [[L::F32; GROUP]; 2],
        visitor: &mut impl Visit<L>,
    ) {
        for i in 0..used {
            visitor.slot(slot.0, slot.1, values[i / GROUP % 2][i % GROUP]);
            slot = self.on(slot, LANES);
        }
    }
}

/// The noise of single slots in eight draws that follow each other, by fours, from the one of a [`Noise`] on.
pub(crate) struct Draws<'a, L: Vectors> {
    noise: &'a Noise<'a>,
    keys: &'a philox::Keys,
    /// The slot that is next, and its words where they are made ahead.
    slot: (usize, usize),
    words: Option<[Pairs<L::U32>; 2]>,
}

impl<'a, L: Vectors> Draws<'a, L> {
    /// Begins with the slot at a column of a row.
    #[inline(always)]
    pub(crate) fn new(noise: &'a Noise<'a>, keys: &'a philox::Keys, slot: (usize, usize)) -> Self {
        let mut draws = Self { noise, keys, slot, words: None };
        if L::ROUNDS_BESIDE {
            draws.words = Some(Chains::of_counters(draws.counters(slot), keys).words());
        }
        draws
    }

    /// The noise of the slot, and on to another.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    pub(crate) fn take<D: Distribution>(&mut self, next: (usize, usize)) -> [[L::F32; GROUP]; 2] {
        let mut values = if let Some(words) = self.words {
            let mut chains = Chains::of_counters(self.counters(next), self.keys);
            let values = values::<L::U32, D>(words, &mut chains);
            self.words = Some(chains.last_round());
            values
        } else {
            let [first, second] = self.counters(self.slot);
            let first = values_of_one::<L::U32, D>(Chains::of_counters([first], self.keys).words());
            let second = values_of_one::<L::U32, D>(Chains::of_counters([second], self.keys).words());
            [first, second]
        };
        self.slot = next;
        for i in 0..2 {
            for j in 0..GROUP {
                values[i][j] = values[i][j].in_step();
            }
        }
        values
    }

    #[inline(always)]
    fn counters(&self, (row, column): (usize, usize)) -> [[L::U32; 4]; 2] {
        let [draw, low, high] = self.noise.shared(row);
        let columns = L::U32::splat((column / BLOCK) as u32).add(L::U32::load(&WITHIN_SLOT));
        let first = L::U32::splat(draw).add(L::U32::repeat([0, 1, 2, 3]));
        let second = first.add(L::U32::splat(GROUP as u32));
        let [low, high] = [L::U32::splat(low), L::U32::splat(high)];
        [[columns, first, low, high], [columns, second, low, high]]
    }
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
    const ROWS: bool = true;

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
