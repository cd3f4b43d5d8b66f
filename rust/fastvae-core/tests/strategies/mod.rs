//! What the kernels are tried on: shapes, distances of rows, values, dtypes and ways to run.
//!
//! A test of a kernel draws a [`Case`] (and an extent of its values), fills a [`Grid`] for every input, and runs the
//! kernel [`under_every_execution`].

#![allow(dead_code, reason = "every test file takes what it needs")]

pub(crate) mod threads;

use fastvae_core::{Element, Execution, Level, Matrix, noise};
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::fmt::Debug;

/// Columns of the longest stretch that the kernels sum in one piece, and elements of a span of short rows.
const SEGMENT: usize = if cfg!(miri) { 1 << 9 } else { 1 << 14 };

/// The settings of a property that is tried on so many cases, the same ones in every run; `PROPTEST_CASES` and
/// `PROPTEST_RNG_SEED` ask for more of them and for others.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    let wanted = |name| std::env::var(name).ok();
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: wanted("PROPTEST_CASES").and_then(|cases| cases.parse().ok()).unwrap_or(cases),
        rng_seed: wanted("PROPTEST_RNG_SEED").map_or(RngSeed::Fixed(0), |_| default.rng_seed),
        failure_persistence: None,
        max_shrink_iters: if cfg!(miri) { 0 } else { 200 },
        ..default
    }
}

/// Rows and columns: around the sizes at which blocks, vectors, groups of vectors, segments and spans begin or end.
pub(crate) fn shapes() -> BoxedStrategy<(usize, usize)> {
    let small = prop_oneof![
        (1_usize..6, 1_usize..=5),
        (1_usize..6, 15_usize..=17),
        (1_usize..4, 63_usize..=65),
        (1_usize..4, 127_usize..=129),
        (0_usize..2, 0_usize..2),
    ];
    if cfg!(miri) {
        let shared = prop_oneof![(Just(2_usize), Just(700_usize)), (Just(36_usize), Just(31_usize))];
        return prop_oneof![2 => small, 1 => shared].boxed();
    }
    let large = prop_oneof![
        (1_usize..300, 1_usize..70),
        (1_usize..3, 1000_usize..1050),
        (1_usize..3, SEGMENT - 1..=SEGMENT + 1),
        (SEGMENT - 1..=SEGMENT + 1, Just(1_usize)),
        (SEGMENT / 4 - 1..=SEGMENT / 4 + 1, Just(4_usize)),
    ];
    // Enough for two threads, and for three.
    let shared = prop_oneof![
        (Just(2_usize), Just(40_000_usize)),
        (7_usize..=8, 16_390_usize..=16_400),
        (130_usize..=140, 783_usize..=785),
        (33_000_usize..=33_010, Just(3_usize)),
    ];
    prop_oneof![4 => small, 3 => large, 1 => shared].boxed()
}

/// How far apart the rows of one input are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Distance {
    /// Every row is the same one: an expanded tensor.
    Zero,
    /// Each row begins one element after the one before: rows overlap.
    One,
    /// The row and a gap.
    Gap(usize),
}

impl Distance {
    /// From the beginning of a row to that of the next.
    pub(crate) fn stride(self, columns: usize) -> usize {
        match self {
            Distance::Zero => 0,
            Distance::One => 1,
            Distance::Gap(gap) => columns + gap,
        }
    }
}

/// Every distance, the common ones more often.
pub(crate) fn distances() -> impl Strategy<Value = Distance> {
    prop_oneof![
        1 => Just(Distance::Zero),
        1 => Just(Distance::One),
        2 => Just(Distance::Gap(0)),
        2 => (1_usize..20).prop_map(Distance::Gap),
    ]
}

/// What the values of an input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Those of training, and much smaller ones of either sign.
    Ordinary,
    /// Anything: zeros of either sign, subnormals, infinities, NaN, logvars whose exponentials overflow.
    Extreme,
}

/// Both.
pub(crate) fn extents() -> impl Strategy<Value = Extent> {
    prop_oneof![Just(Extent::Ordinary), Just(Extent::Extreme)]
}

impl Extent {
    /// A value, from any 64 bits.
    pub(crate) fn value(self, bits: u64) -> f64 {
        let symmetric = (bits >> 11) as f64 * 2.0_f64.powi(-52) - 1.0;
        if self == Extent::Extreme {
            match bits % 64 {
                0 => return f64::INFINITY,
                1 => return f64::NEG_INFINITY,
                2 => return f64::NAN,
                3 => return 0.0,
                4 => return -0.0,
                5 => return symmetric * f64::from(f32::MIN_POSITIVE),
                6 => return symmetric * f64::MIN_POSITIVE,
                // Around the logarithms of the largest and the smallest numbers, and of their squares.
                7..=9 => return symmetric * 90.0,
                10..=12 => return symmetric * 210.0,
                13 => return symmetric * 800.0,
                14 => return symmetric * 1600.0,
                15 => return symmetric * 1e30,
                16 => return symmetric * 1e-30,
                _ => {}
            }
        }
        match bits % 4 {
            0 => symmetric * 1e-3,
            1 => symmetric * 1e-6,
            _ => symmetric * 10.0,
        }
    }
}

/// A dtype of the kernels.
pub(crate) trait Dtype: Element<Math: Into<f64> + Debug> + Into<f64> + Debug {
    /// Its name, for messages.
    const NAME: &'static str;
    /// The number of this dtype nearest to another.
    fn nearest(value: f64) -> Self;
}

impl Dtype for f32 {
    const NAME: &'static str = "float32";
    fn nearest(value: f64) -> Self {
        value as f32
    }
}

impl Dtype for f64 {
    const NAME: &'static str = "float64";
    fn nearest(value: f64) -> Self {
        value
    }
}

impl Dtype for bf16 {
    const NAME: &'static str = "bfloat16";
    fn nearest(value: f64) -> Self {
        bf16::from_f64(value)
    }
}

impl Dtype for f16 {
    const NAME: &'static str = "float16";
    fn nearest(value: f64) -> Self {
        f16::from_f64(value)
    }
}

/// One input of a kernel: rows at some distance, with NaN in the gaps, which no kernel may read.
#[derive(Clone, Debug)]
pub(crate) struct Grid<T> {
    data: Vec<T>,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<T: Dtype> Grid<T> {
    /// Values that are a function of the seed.
    pub(crate) fn new(
        (rows, columns): (usize, usize),
        distance: Distance,
        seed: u64,
        extent: Extent,
    ) -> Self {
        let stride = distance.stride(columns);
        let length = Matrix::<T>::extent(rows, columns, stride).expect("shapes of tests are small");
        let value = |at: usize| {
            let in_a_gap = stride > columns && at % stride >= columns;
            if in_a_gap { f64::NAN } else { extent.value(noise::fold_in(seed, at as u64)) }
        };
        Self { data: (0..length).map(|at| T::nearest(value(at))).collect(), rows, columns, stride }
    }
}

impl<T: Copy + Into<f64>> Grid<T> {
    /// As a kernel takes it.
    pub(crate) fn matrix(&self) -> Matrix<'_, T> {
        Matrix::new(&self.data, self.rows, self.columns, self.stride)
    }

    /// One value, exactly.
    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        self.data[row * self.stride + column].into()
    }
}

impl Grid<u8> {
    /// Bytes as they fall, with 0 and 255 as often as in pictures.
    pub(crate) fn bytes((rows, columns): (usize, usize), distance: Distance, seed: u64) -> Self {
        let stride = distance.stride(columns);
        let length = Matrix::<u8>::extent(rows, columns, stride).expect("shapes of tests are small");
        let value = |bits: u64| match bits % 8 {
            0 => 0,
            1 => 255,
            _ => (bits >> 8) as u8,
        };
        let data = (0..length).map(|at| value(noise::fold_in(seed, at as u64))).collect();
        Self { data, rows, columns, stride }
    }
}

/// The shape of all inputs of a call, and how each of them lies in memory.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Rows and columns.
    pub(crate) shape: (usize, usize),
    /// One for each input; a kernel takes as many as it has.
    pub(crate) distances: [Distance; 6],
    /// Of the values.
    pub(crate) seed: u64,
    /// Of the values.
    pub(crate) extent: Extent,
}

/// Every case.
pub(crate) fn cases() -> impl Strategy<Value = Case> {
    let six = [distances(), distances(), distances(), distances(), distances(), distances()];
    (shapes(), six, any::<u64>(), extents()).prop_map(|(shape, distances, seed, extent)| Case {
        shape,
        distances,
        seed,
        extent,
    })
}

impl Case {
    /// An input of the shape of the case.
    pub(crate) fn grid<T: Dtype>(&self, number: usize) -> Grid<T> {
        self.grid_of(number, self.shape)
    }

    /// An input of another shape.
    pub(crate) fn grid_of<T: Dtype>(&self, number: usize, shape: (usize, usize)) -> Grid<T> {
        Grid::new(shape, self.distances[number], noise::fold_in(self.seed, number as u64), self.extent)
    }

    /// Number of elements of a contiguous output.
    pub(crate) fn elements(&self) -> usize {
        self.shape.0 * self.shape.1
    }

    /// Every row and column, in the order of a contiguous output.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (rows, columns) = self.shape;
        (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
    }
}

/// Every level of this processor, alone and with threads.
fn executions() -> Vec<Execution> {
    let threads = [1, 3];
    Level::available()
        .into_iter()
        .flat_map(|level| threads.map(|threads| Execution { level, threads }))
        .collect()
}

/// Runs kernels in every way there is, and makes sure that several threads worked where so many elements pay for them.
pub(crate) fn under_every_execution(elements: usize, mut kernels: impl FnMut(Execution)) {
    for execution in executions() {
        let used = threads::used_by(|| kernels(execution));
        let several = execution.threads > 1 && threads::pay(elements);
        assert!(used <= execution.threads, "{used} threads under {execution:?}");
        assert!(used > 1 || !several, "one thread did {elements} elements alone, under {execution:?}");
    }
}

/// One thread at the level that every processor has: what all other ways to run are compared with.
pub(crate) fn plain() -> Execution {
    Execution { level: Level::PORTABLE, threads: 1 }
}

/// Bits, with one bit pattern for all NaN: which one an operation on two gives is not specified.
pub(crate) fn bits<T: Copy + Into<f64>>(values: &[T]) -> Vec<u64> {
    values
        .iter()
        .map(|&value| if value.into().is_nan() { u64::MAX } else { value.into().to_bits() })
        .collect()
}
