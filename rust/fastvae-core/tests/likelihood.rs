//! Log-probabilities: every level and thread count gives the same bits, and they are right.

use fastvae_core::ops::{self, Density, KlGrad, KlTarget, LogVariance, LogVarianceGrad, Observed, Value};
use fastvae_core::{Element, Execution, Level, Matrix, noise};
use half::{bf16, f16};
use proptest::prelude::*;

/// Shapes around the sizes at which tiles, segments and spans begin.
fn shapes() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        (1_usize..5, 1_usize..70),
        (1_usize..100, 1_usize..6),
        (1_usize..3, 1000_usize..1050),
        (1_usize..3, 16380_usize..16390),
        Just((2, 40000)),
        Just((6000, 3)),
    ]
}

/// A number that is worth trying, from any 32 bits.
fn interesting(bits: u32) -> f32 {
    match bits % 64 {
        0 => f32::INFINITY,
        1 => f32::NEG_INFINITY,
        2 => f32::NAN,
        3 => 0.0,
        4 => -0.0,
        5 => f32::MIN_POSITIVE / 4.0,
        6 => 200.0,
        7 => -300.0,
        8 => f32::MAX,
        _ => (bits as f32 / u32::MAX as f32 - 0.5) * 20.0,
    }
}

/// Uniform on [-1/2, 1/2), or what is worth trying.
fn numbers(count: usize, seed: u64, extreme: bool) -> Vec<f32> {
    (0..count as u64)
        .map(|i| {
            let bits = noise::fold_in(seed, i) as u32;
            if extreme { interesting(bits) } else { bits as f32 / u32::MAX as f32 - 0.5 }
        })
        .collect()
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    (0..count as u64).map(|i| noise::fold_in(seed, i) as u8).collect()
}

fn executions() -> Vec<Execution> {
    let threads = [1, 3];
    Level::available()
        .into_iter()
        .flat_map(|level| threads.map(|threads| Execution { level, threads }))
        .collect()
}

fn alone() -> Execution {
    Execution { level: Level::best(), threads: 1 }
}

/// Bits, with one bit pattern for all NaN: which one an operation on two gives is not specified.
fn bits<T: Copy + Into<f64>>(values: &[T]) -> Vec<u64> {
    values
        .iter()
        .map(|&value| if value.into().is_nan() { u64::MAX } else { value.into().to_bits() })
        .collect()
}

struct Inputs<T, X> {
    first: Vec<T>,
    second: Vec<T>,
    data: Vec<X>,
    max: u8,
    samples: usize,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// All results of both operations on one set of inputs.
fn everything<T, X>(execution: Execution, inputs: &Inputs<T, X>) -> Vec<Vec<u64>>
where
    T: Element + Into<f64>,
    X: Value<T::Math>,
    T::Math: Into<f64>,
{
    let (rows, columns) = (inputs.samples * inputs.rows, inputs.columns);
    let (first, second) = (
        Matrix::new(&inputs.first, rows, columns, inputs.stride),
        Matrix::new(&inputs.second, rows, columns, inputs.stride),
    );
    let observed =
        Observed { values: Matrix::new(&inputs.data, inputs.rows, columns, inputs.stride), max: inputs.max };
    let elements = rows * columns;
    let zero = <T::Math as From<f32>>::from(0.0);
    let variance = <T::Math as From<f32>>::from(-0.75);
    let densities = [LogVariance::Each(second), LogVariance::All(variance)];
    let (mut per_row, mut per_element) = (vec![zero; rows], vec![zero; elements]);
    let mut results = Vec::new();
    ops::bernoulli_forward(execution, first, observed, KlTarget::Rows(&mut per_row));
    ops::bernoulli_forward(execution, first, observed, KlTarget::Elements(&mut per_element));
    results.extend([bits(&per_row), bits(&per_element)]);
    let grads = [
        KlGrad::Rows(Matrix::contiguous(&per_row, rows, 1)),
        KlGrad::Elements(Matrix::contiguous(&per_element, rows, columns)),
    ];
    for grad in grads {
        let mut of_logits = vec![T::ZERO; elements];
        ops::bernoulli_backward(execution, first, observed, grad, &mut of_logits);
        results.push(bits(&of_logits));
        for logvar in densities {
            let density = Density { mean: first, logvar };
            let (mut of_mean, mut of_each, mut of_all) =
                (vec![T::ZERO; elements], vec![T::ZERO; elements], zero);
            let of_logvar = match logvar {
                LogVariance::Each(_) => LogVarianceGrad::Each(&mut of_each),
                LogVariance::All(_) => LogVarianceGrad::All(&mut of_all),
            };
            ops::gaussian_backward(execution, density, observed, grad, &mut of_mean, of_logvar);
            results.extend([bits(&of_mean), bits(&of_each), bits(&[of_all])]);
        }
    }
    let (mut row_densities, mut densities_each) = (vec![zero; rows], vec![zero; elements]);
    for logvar in densities {
        let density = Density { mean: first, logvar };
        ops::gaussian_forward(execution, density, observed, KlTarget::Rows(&mut row_densities));
        ops::gaussian_forward(execution, density, observed, KlTarget::Elements(&mut densities_each));
        results.extend([bits(&row_densities), bits(&densities_each)]);
    }
    results
}

fn check_all<T, X>(inputs: &Inputs<T, X>)
where
    T: Element + Into<f64>,
    X: Value<T::Math>,
    T::Math: Into<f64>,
{
    let executions = executions();
    let expected = everything(executions[0], inputs);
    for &execution in &executions[1..] {
        assert_eq!(expected, everything(execution, inputs), "{execution:?}");
    }
}

/// One set of numbers in a dtype, against bytes and against floats.
fn check_dtype<T>(
    (rows, columns): (usize, usize),
    (samples, gap): (usize, usize),
    seed: u64,
    extreme: bool,
    convert: impl Fn(f32) -> T,
    widen: impl Fn(f32) -> T::Math,
) where
    T: Element + Into<f64>,
    T::Math: Into<f64> + Value<T::Math>,
{
    let stride = columns + gap;
    let draw = |tag, count| numbers(count, noise::fold_in(seed, tag), extreme);
    let first: Vec<T> = draw(1, samples * rows * stride).into_iter().map(&convert).collect();
    let second: Vec<T> = draw(2, samples * rows * stride).into_iter().map(&convert).collect();
    let data = bytes(rows * stride, noise::fold_in(seed, 3));
    let (first_too, second_too) = (first.clone(), second.clone());
    check_all(&Inputs { first, second, data, max: 255, samples, rows, columns, stride });
    let data = draw(4, rows * stride).into_iter().map(widen).collect();
    let (first, second) = (first_too, second_too);
    check_all(&Inputs::<T, T::Math> { first, second, data, max: 1, samples, rows, columns, stride });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits(
        shape in shapes(), samples in 1_usize..4, gap in 0_usize..3, seed: u64, extreme: bool
    ) {
        let repeated = (samples, gap);
        check_dtype(shape, repeated, seed, extreme, |value| value, |value| value);
        check_dtype(shape, repeated, seed, extreme, f64::from, f64::from);
        check_dtype(shape, repeated, seed, extreme, bf16::from_f32, |value| value);
        check_dtype(shape, repeated, seed, extreme, f16::from_f32, |value| value);
    }

    #[test]
    fn a_sample_meets_the_data_of_its_row(rows in 1_usize..7, samples in 1_usize..5, columns in 1_usize..40, seed: u64) {
        let logits = numbers(samples * rows * columns, seed, false);
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
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

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
    for execution in executions() {
        let matrix = Matrix::contiguous(&logits, 6, 1);
        ops::bernoulli_forward(execution, matrix, observed, KlTarget::Rows(&mut log_prob));
        assert_eq!(log_prob[..4], [0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]);
        assert!(log_prob[4].is_nan(), "and it stays in its row");
        assert!((log_prob[5] + std::f32::consts::LN_2).abs() < 1e-7);
    }
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
