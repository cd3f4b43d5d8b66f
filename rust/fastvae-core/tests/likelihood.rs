//! Log-probabilities: every level and thread count gives the same bits, and they are right.

mod strategies;
mod truth;

use fastvae_core::ops::{self, Density, KlGrad, KlTarget, LogVariance, LogVarianceGrad, Observed, Value};
use fastvae_core::{Execution, Level, Matrix, noise};
use half::{bf16, f16};
use proptest::prelude::*;
use strategies::{Case, Dtype, Extent, Grid, bits, cases, config, plain, under_every_execution};
use truth::{Format, Observation, Truth, check};

/// Uniform on [-1/2, 1/2).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64).map(|i| noise::fold_in(seed, i) as u32 as f32 / u32::MAX as f32 - 0.5).collect()
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    (0..count as u64).map(|i| noise::fold_in(seed, i) as u8).collect()
}

fn alone() -> Execution {
    Execution { level: Level::best(), threads: 1 }
}

/// Data of a likelihood: rows that are repeated for every sample.
struct Data<X> {
    values: Grid<X>,
    rows: usize,
    max: u8,
}

impl<X: Copy + Into<f64>> Data<X> {
    fn observed(&self) -> Observed<'_, X> {
        Observed { values: self.values.matrix(), max: self.max }
    }

    /// What a row of the parameters meets, times what stands for 1.
    fn at(&self, row: usize, column: usize) -> f64 {
        self.values.at(row % self.rows, column)
    }
}

/// The data that the rows of a case meet, as bytes and as numbers of the arithmetic; samples share it where they can.
fn data<T: Dtype>(case: &Case, samples: usize) -> (Data<u8>, Data<T::Math>)
where
    T::Math: Dtype,
{
    let (rows, columns) = case.shape;
    let shared = if rows.is_multiple_of(samples) { samples } else { 1 };
    let shape = (rows / shared, columns);
    let values = Grid::bytes(shape, case.distances[2], noise::fold_in(case.seed, 2));
    let bytes = Data { values, rows: shape.0, max: 255 };
    (bytes, Data { values: case.grid_of(2, shape), rows: shape.0, max: 1 })
}

/// The parameters of a case: logits or means, and logarithms of variances; of the latter also one for all.
struct Parameters<T: Dtype> {
    first: Grid<T>,
    logvars: Grid<T>,
    logvar: T::Math,
}

impl<T: Dtype> Parameters<T>
where
    T::Math: Dtype,
{
    fn new(case: &Case) -> Self {
        let values = Extent::Ordinary.value(noise::fold_in(case.seed, 5));
        Self { first: case.grid(0), logvars: case.grid(1), logvar: T::Math::nearest(values) }
    }

    fn densities(&self) -> [Density<'_, T>; 2] {
        let mean = self.first.matrix();
        [LogVariance::Each(self.logvars.matrix()), LogVariance::All(self.logvar)]
            .map(|logvar| Density { mean, logvar })
    }
}

/// All results of both operations on one set of inputs.
fn everything<T, X>(
    execution: Execution,
    case: &Case,
    parameters: &Parameters<T>,
    observed: Observed<X>,
) -> Vec<Vec<u64>>
where
    T: Dtype,
    T::Math: Dtype,
    X: Value<T::Math>,
{
    let ((rows, columns), elements) = (case.shape, case.elements());
    let zero = T::Math::nearest(0.0);
    let first = parameters.first.matrix();
    let (mut per_row, mut per_element, mut total) = (vec![zero; rows], vec![zero; elements], zero);
    let mut results = Vec::new();
    ops::bernoulli_forward(execution, first, observed, KlTarget::Rows(&mut per_row));
    ops::bernoulli_forward(execution, first, observed, KlTarget::Elements(&mut per_element));
    ops::bernoulli_forward(execution, first, observed, KlTarget::Total(&mut total));
    results.extend([bits(&per_row), bits(&per_element), bits(&[total])]);
    let grads = [
        KlGrad::Rows(Matrix::contiguous(&per_row, rows, 1)),
        KlGrad::Elements(Matrix::contiguous(&per_element, rows, columns)),
    ];
    for grad in grads {
        let mut of_logits = vec![T::ZERO; elements];
        ops::bernoulli_backward(execution, first, observed, grad, &mut of_logits);
        results.push(bits(&of_logits));
        for density in parameters.densities() {
            let (mut of_mean, mut of_each, mut of_all) =
                (vec![T::ZERO; elements], vec![T::ZERO; elements], zero);
            let of_logvar = match density.logvar {
                LogVariance::Each(_) => LogVarianceGrad::Each(&mut of_each),
                LogVariance::All(_) => LogVarianceGrad::All(&mut of_all),
            };
            ops::gaussian_backward(execution, density, observed, grad, &mut of_mean, of_logvar);
            results.extend([bits(&of_mean), bits(&of_each), bits(&[of_all])]);
        }
    }
    for density in parameters.densities() {
        let (mut per_row, mut per_element, mut total) = (vec![zero; rows], vec![zero; elements], zero);
        ops::gaussian_forward(execution, density, observed, KlTarget::Rows(&mut per_row));
        ops::gaussian_forward(execution, density, observed, KlTarget::Elements(&mut per_element));
        ops::gaussian_forward(execution, density, observed, KlTarget::Total(&mut total));
        results.extend([bits(&per_row), bits(&per_element), bits(&[total])]);
    }
    results
}

/// Compares the results of every execution with those of one, against bytes and against floats.
fn check_bits<T: Dtype>(case: &Case, samples: usize)
where
    T::Math: Dtype + Value<T::Math>,
{
    let parameters = Parameters::<T>::new(case);
    let (bytes, floats) = data::<T>(case, samples);
    let expected_of_bytes = everything(plain(), case, &parameters, bytes.observed());
    let expected_of_floats = everything(plain(), case, &parameters, floats.observed());
    under_every_execution(case.elements(), |execution| {
        let of_bytes = everything(execution, case, &parameters, bytes.observed());
        assert_eq!(expected_of_bytes, of_bytes, "{} {execution:?}", T::NAME);
        let of_floats = everything(execution, case, &parameters, floats.observed());
        assert_eq!(expected_of_floats, of_floats, "{} {execution:?}", T::NAME);
    });
}

/// The gradients of a log-probability, by element and by row.
struct Incoming<M>([Grid<M>; 2]);

impl<M: Dtype> Incoming<M> {
    fn new(case: &Case) -> Self {
        Self([case.grid(3), case.grid_of(4, (case.shape.0, 1))])
    }

    /// Each as a kernel takes it, and what it is for an element.
    fn each(&self) -> [(KlGrad<'_, M>, impl Fn(usize, usize) -> f64); 2] {
        [false, true].map(|by_row| {
            let grid = &self.0[usize::from(by_row)];
            let grad = if by_row { KlGrad::Rows(grid.matrix()) } else { KlGrad::Elements(grid.matrix()) };
            (grad, move |row, column| grid.at(row, if by_row { 0 } else { column }))
        })
    }
}

/// Compares a log-probability per element, per row and in total with the sums of true terms.
fn check_log_prob<T: Dtype, const N: usize>(
    what: &str,
    case: &Case,
    terms: &[[Truth; N]],
    (per_element, per_row, total): (&[T::Math], &[T::Math], T::Math),
) {
    let (width, math) = (case.shape.1, Format::of_math::<T>());
    for (&got, terms) in per_element.iter().zip(terms) {
        let truth = truth::sum_rounded(terms.iter().copied(), math, 2);
        check::<T>(what, got, truth, math);
    }
    // What is added up first is a product of the arithmetic: eleven additions follow each other at most.
    let sum = |terms: &[[Truth; N]]| truth::sum_rounded(terms.iter().flatten().copied(), math, 12);
    for (row, &got) in per_row.iter().enumerate() {
        check::<T>(&format!("{what} of a row"), got, sum(&terms[row * width..][..width]), math);
    }
    check::<T>(&format!("{what} in total"), total, sum(terms), math);
}

fn bernoulli_is_right<T: Dtype, X: Value<T::Math> + Into<f64>>(case: &Case, data: &Data<X>)
where
    T::Math: Dtype,
{
    let (logits, incoming): (Grid<T>, _) = (case.grid(0), Incoming::<T::Math>::new(case));
    let zero = T::Math::nearest(0.0);
    let max = f64::from(data.max);
    let of_place = |(row, column)| truth::bernoulli::<T>(logits.at(row, column), data.at(row, column), max);
    let terms: Vec<_> = case.places().map(of_place).collect();
    let gradients = incoming.each().map(|(grad, of)| {
        let of_place = |(row, column)| {
            let x = (data.at(row, column), max);
            truth::bernoulli_gradient::<T>(logits.at(row, column), x, of(row, column))
        };
        (grad, case.places().map(of_place).collect::<Vec<_>>())
    });
    under_every_execution(case.elements(), |execution| {
        let (logits, observed) = (logits.matrix(), data.observed());
        let (mut per_element, mut per_row) = (vec![zero; case.elements()], vec![zero; case.shape.0]);
        let mut total = zero;
        ops::bernoulli_forward(execution, logits, observed, KlTarget::Elements(&mut per_element));
        ops::bernoulli_forward(execution, logits, observed, KlTarget::Rows(&mut per_row));
        ops::bernoulli_forward(execution, logits, observed, KlTarget::Total(&mut total));
        check_log_prob::<T, 2>("log p", case, &terms, (&per_element, &per_row, total));
        for (grad, truths) in &gradients {
            let mut of_logits = vec![T::ZERO; case.elements()];
            ops::bernoulli_backward(execution, logits, observed, *grad, &mut of_logits);
            for (got, &truth) in of_logits.into_iter().zip(truths) {
                check::<T>("gradient of a logit", got, truth, Format::of::<T>());
            }
        }
    });
}

fn gaussian_is_right<T: Dtype, X: Value<T::Math> + Into<f64>>(case: &Case, data: &Data<X>)
where
    T::Math: Dtype,
{
    let (parameters, incoming) = (Parameters::<T>::new(case), Incoming::<T::Math>::new(case));
    let (zero, math) = (T::Math::nearest(0.0), Format::of_math::<T>());
    for density in parameters.densities() {
        let of_place = |(row, column)| Observation {
            steps: data.at(row, column),
            max: f64::from(data.max),
            mean: parameters.first.at(row, column),
            logvar: match density.logvar {
                LogVariance::Each(_) => parameters.logvars.at(row, column),
                LogVariance::All(logvar) => logvar.into(),
            },
        };
        let terms: Vec<_> = case.places().map(|place| of_place(place).terms::<T>()).collect();
        let gradients = incoming.each().map(|(grad, of)| {
            let of_place = |(row, column)| of_place((row, column)).gradients::<T>(of(row, column));
            (grad, case.places().map(of_place).collect::<Vec<_>>())
        });
        under_every_execution(case.elements(), |execution| {
            let observed = data.observed();
            let (mut per_element, mut per_row) = (vec![zero; case.elements()], vec![zero; case.shape.0]);
            let mut total = zero;
            ops::gaussian_forward(execution, density, observed, KlTarget::Elements(&mut per_element));
            ops::gaussian_forward(execution, density, observed, KlTarget::Rows(&mut per_row));
            ops::gaussian_forward(execution, density, observed, KlTarget::Total(&mut total));
            check_log_prob::<T, 3>("log-density", case, &terms, (&per_element, &per_row, total));
            for (grad, truths) in &gradients {
                let (mut of_mean, mut of_each) =
                    (vec![T::ZERO; case.elements()], vec![T::ZERO; case.elements()]);
                let mut of_all = zero;
                let (is_each, target) = match density.logvar {
                    LogVariance::Each(_) => (true, LogVarianceGrad::Each(&mut of_each)),
                    LogVariance::All(_) => (false, LogVarianceGrad::All(&mut of_all)),
                };
                ops::gaussian_backward(execution, density, observed, *grad, &mut of_mean, target);
                for (got, truth) in of_mean.into_iter().zip(truths) {
                    check::<T>("gradient of a mean", got, truth[0], Format::of::<T>());
                }
                if is_each {
                    for (got, truth) in of_each.into_iter().zip(truths) {
                        check::<T>("gradient of a logvar", got, truth[1], Format::of::<T>());
                    }
                } else {
                    let truth = truth::sum_rounded(truths.iter().map(|truth| truth[1]), math, 8);
                    check::<T>("gradient of the logvar of all", of_all, truth, math);
                }
            }
        });
    }
}

/// Both likelihoods, against bytes and against floats.
fn check_truth<T: Dtype>(case: &Case, samples: usize)
where
    T::Math: Dtype + Value<T::Math>,
{
    let (bytes, floats) = data::<T>(case, samples);
    bernoulli_is_right::<T, _>(case, &bytes);
    bernoulli_is_right::<T, _>(case, &floats);
    gaussian_is_right::<T, _>(case, &bytes);
    gaussian_is_right::<T, _>(case, &floats);
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits(case in cases(), samples in 1_usize..4) {
        check_bits::<f32>(&case, samples);
        check_bits::<f64>(&case, samples);
        check_bits::<bf16>(&case, samples);
        check_bits::<f16>(&case, samples);
    }

    #[test]
    fn log_probabilities_and_their_gradients_are_right(case in cases(), samples in 1_usize..4) {
        check_truth::<f32>(&case, samples);
        check_truth::<f64>(&case, samples);
        check_truth::<bf16>(&case, samples);
        check_truth::<f16>(&case, samples);
    }

    #[test]
    fn a_sample_meets_the_data_of_its_row(rows in 1_usize..7, samples in 1_usize..5, columns in 1_usize..40, seed: u64) {
        let logits = numbers(samples * rows * columns, seed);
        let data = bytes(rows * columns, noise::fold_in(seed, 1));
        let mut together = vec![0.0_f32; samples * rows];
        let observed = Observed { values: Matrix::contiguous(&data, rows, columns), max: 255 };
        let all = Matrix::contiguous(&logits, samples * rows, columns);
        ops::bernoulli_forward(alone(), all, observed, KlTarget::Rows(&mut together));
        for (sample, part) in logits.chunks(rows * columns).enumerate() {
            let mut separate = vec![0.0_f32; rows];
            let one = Matrix::contiguous(part, rows, columns);
            ops::bernoulli_forward(alone(), one, observed, KlTarget::Rows(&mut separate));
            prop_assert_eq!(&separate, &together[sample * rows..(sample + 1) * rows]);
        }
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn a_bernoulli_element_is_right(
        logit in prop_oneof![-100.0_f32..100.0, -1.0_f32..1.0, -1e-5_f32..1e-5, Just(3e38), Just(-1e20), -104.0_f32..-80.0],
        pixel in prop_oneof![any::<u8>(), Just(0_u8), Just(255_u8)],
    ) {
        let (mut log_prob, mut slope) = ([0.0_f32], [0.0_f32]);
        let (logits, data, one) = ([logit], [pixel], [1.0_f32]);
        let matrix = Matrix::contiguous(&logits, 1, 1);
        let observed = Observed { values: Matrix::contiguous(&data, 1, 1), max: 255 };
        ops::bernoulli_forward(alone(), matrix, observed, KlTarget::Rows(&mut log_prob));
        let grad = KlGrad::Rows(Matrix::contiguous(&one, 1, 1));
        ops::bernoulli_backward(alone(), matrix, observed, grad, &mut slope);
        let l = f64::from(logit);
        let against = f64::from(if logit > 0.0 { 255 - pixel } else { pixel }) / 255.0;
        let e = (-l.abs()).exp();
        let truth = -(l.abs() * against + e.ln_1p());
        // Below the normal numbers there are only steps.
        let step = f64::from(f32::from_bits(1));
        let error = (f64::from(log_prob[0]) - truth).abs();
        prop_assert!(error <= 3e-7 * truth.abs() + step, "{:?} {}", log_prob, truth);
        // Towards 1 it may cancel: the error is relative to its two terms.
        let s = e / (1.0 + e);
        let truth = if logit > 0.0 { s - against } else { against - s };
        let error = (f64::from(slope[0]) - truth).abs();
        prop_assert!(error <= 3e-7 * (s + against) + step, "{:?} {}", slope, truth);
    }

    #[test]
    fn a_gaussian_element_is_right(
        mean in prop_oneof![-2.0_f32..2.0, -1e4_f32..1e4], logvar in -30.0_f32..30.0, pixel: u8, near: bool
    ) {
        // A mean within rounding of the pixel: its distance has no digit left after a rounded division.
        let mean = if near { f32::from(pixel) / 255.0 * (1.0 + mean * 1e-6) } else { mean };
        let (means, logvars, data, one) = ([mean], [logvar], [pixel], [1.0_f32]);
        let matrix = |values| Matrix::contiguous(values, 1, 1);
        let observed = Observed { values: Matrix::contiguous(&data, 1, 1), max: 255 };
        let (m, l) = (f64::from(mean), f64::from(logvar));
        let distance = f64::from(pixel) / 255.0 - m;
        let square = distance * distance * (-l).exp();
        let constant = std::f64::consts::TAU.ln();
        let density = -0.5 * (l + square + constant);
        for logvar in [LogVariance::Each(matrix(&logvars)), LogVariance::All(logvar)] {
            let model = Density { mean: matrix(&means), logvar };
            let (mut log_prob, mut of_mean, mut of_each, mut of_all) = ([0.0_f32], [0.0_f32], [0.0_f32], 0.0_f32);
            ops::gaussian_forward(alone(), model, observed, KlTarget::Rows(&mut log_prob));
            let of_logvar = match logvar {
                LogVariance::Each(_) => LogVarianceGrad::Each(&mut of_each),
                LogVariance::All(_) => LogVarianceGrad::All(&mut of_all),
            };
            let grad = KlGrad::Rows(Matrix::contiguous(&one, 1, 1));
            ops::gaussian_backward(alone(), model, observed, grad, &mut of_mean, of_logvar);
            let size = 0.5 * (l.abs() + square + constant);
            prop_assert!((f64::from(log_prob[0]) - density).abs() <= 1e-6 * size, "{:?} {}", log_prob, density);
            let truth = distance * (-l).exp();
            prop_assert!((f64::from(of_mean[0]) - truth).abs() <= 1e-6 * truth.abs(), "{:?} {}", of_mean, truth);
            let of_logvar = f64::from(of_each[0] + of_all);
            let truth = 0.5 * (square - 1.0);
            prop_assert!((of_logvar - truth).abs() <= 5e-7 * (square + 1.0), "{} {}", of_logvar, truth);
        }
    }
}

/// -log p in `f64`: the sum over elements of which each is at least 0.
fn cost<'a>(logits: impl Iterator<Item = &'a f64>, data: &[u8]) -> f64 {
    let of_one = |(&l, &x): (&f64, &u8)| {
        let against = f64::from(if l > 0.0 { 255 - x } else { x }) / 255.0;
        l.abs() * against + (-l.abs()).exp().ln_1p()
    };
    let all: Vec<f64> = logits.zip(data).map(of_one).collect();
    // In parts: added to one after the other, thousands would cost `f64` more digits than the kernel loses.
    all.chunks(64).map(|part| part.iter().sum::<f64>()).sum()
}

#[test]
fn a_sum_is_as_right_as_its_terms() {
    // From rows that are all but certain, whose cost is a sum of tiny numbers, to ones of which nothing is known.
    let logit = |size: f64, i: usize| {
        size + (noise::fold_in(7, i as u64) as f64 / 2_f64.powi(64) - 0.5) * size.min(4.0)
    };
    let most = if cfg!(miri) { 300 } else { 40_000 };
    let columns = [1, 2, 16, 100, 128, 129, 300, 784, 1024, 1025, 3000, 16_384, 40_000];
    for columns in columns.into_iter().filter(|&columns| columns <= most) {
        for size in [0.0, 1e-3, 0.1, 1.0, 4.0, 9.0, 16.0, 40.0, 80.0] {
            for certain in [true, false] {
                let logits: Vec<f64> = (0..columns).map(|i| f64::from(logit(size, i) as f32)).collect();
                let narrow: Vec<f32> = logits.iter().map(|&l| l as f32).collect();
                let data = if certain { vec![255; columns] } else { bytes(columns, 9) };
                let observed = Observed { values: Matrix::contiguous(&data, 1, columns), max: 255 };
                let (mut of_floats, mut of_doubles) = ([0.0_f32], [0.0_f64]);
                let matrix = Matrix::contiguous(&narrow, 1, columns);
                ops::bernoulli_forward(alone(), matrix, observed, KlTarget::Rows(&mut of_floats));
                let matrix = Matrix::contiguous(&logits, 1, columns);
                ops::bernoulli_forward(alone(), matrix, observed, KlTarget::Rows(&mut of_doubles));
                let truth = cost(logits.iter(), &data);
                let error = (f64::from(of_floats[0]) + truth).abs() / truth;
                assert!(error <= 2e-7, "{columns} columns, logits of {size}, certain {certain}: {error}");
                let error = (of_doubles[0] + truth).abs() / truth;
                assert!(error <= 4e-15, "{columns} columns of doubles, logits of {size}, {certain}: {error}");
            }
        }
    }
}

#[test]
fn the_kernels_in_double_precision() {
    let logits: Vec<f64> = (0..4001).map(|i| f64::from(i - 2000) / 40.0).collect();
    let data: Vec<f64> = (0..4001).map(|i| f64::from(i % 11) / 10.0).collect();
    let mut log_prob = vec![0.0; logits.len()];
    let matrix = Matrix::contiguous(&logits, 1, logits.len());
    let observed = Observed { values: Matrix::contiguous(&data, 1, data.len()), max: 1 };
    ops::bernoulli_forward(alone(), matrix, observed, KlTarget::Elements(&mut log_prob));
    for ((&value, &l), &x) in log_prob.iter().zip(&logits).zip(&data) {
        let against = if l > 0.0 { 1.0 - x } else { x };
        let truth = -(l.abs() * against + (-l.abs()).exp().ln_1p());
        assert!((value - truth).abs() <= 8e-16 * truth.abs(), "{l} {x} {value} {truth}");
    }
}

#[test]
fn certainty_costs_nothing_or_everything() {
    let logits = [f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0];
    let data = [255_u8, 254, 0, 1, 255, 0];
    let mut log_prob = [0.0_f32; 6];
    let observed = Observed { values: Matrix::contiguous(&data, 6, 1), max: 255 };
    under_every_execution(logits.len(), |execution| {
        let matrix = Matrix::contiguous(&logits, 6, 1);
        ops::bernoulli_forward(execution, matrix, observed, KlTarget::Rows(&mut log_prob));
        assert_eq!(log_prob[..4], [0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
        assert!(log_prob[4].is_nan(), "and it stays in its row");
        assert!((log_prob[5] + std::f32::consts::LN_2).abs() < 1e-7);
    });
}

#[test]
fn an_empty_event_is_certain() {
    let (empty, mut rows) = ([0.0_f32; 0], [1.0_f32; 3]);
    let matrix = Matrix::contiguous(&empty, 3, 0);
    let observed = Observed { values: matrix, max: 1 };
    ops::bernoulli_forward(alone(), matrix, observed, KlTarget::Rows(&mut rows));
    assert!(rows.iter().all(|&log_prob| log_prob == 0.0));
    let density = Density { mean: matrix, logvar: LogVariance::All(3.0) };
    ops::gaussian_forward(alone(), density, observed, KlTarget::Rows(&mut rows));
    assert!(rows.iter().all(|&log_prob| log_prob == 0.0));
}

#[test]
#[should_panic(expected = "4 rows are no multiple of the 3 of the data")]
fn data_that_does_not_repeat_is_refused() {
    let (logits, data) = ([0.0_f32; 4], [0_u8; 3]);
    let observed = Observed { values: Matrix::contiguous(&data, 3, 1), max: 255 };
    let matrix = Matrix::contiguous(&logits, 4, 1);
    ops::bernoulli_forward(alone(), matrix, observed, KlTarget::Rows(&mut [0.0; 4]));
}
