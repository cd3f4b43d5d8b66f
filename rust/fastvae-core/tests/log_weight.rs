//! Samples with their log weights: the samples of `latent_forward`, and the same bits on every level, thread
//! count and division into parts.

use fastvae_core::noise::{self, Normal};
use fastvae_core::ops::{self, KlTarget};
use fastvae_core::{Element, Execution, Level, Matrix, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;

/// Shapes around the sizes at which slots, blocks, segments and spans begin.
fn shapes() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        (1_usize..5, 1_usize..70),
        (1_usize..200, 1_usize..6),
        (1_usize..3, 4090_usize..4100),
        (1_usize..3, 16380_usize..16390),
        Just((9000, 2)),
    ]
}

fn values<T>(count: usize, seed: u64, convert: impl Fn(f32) -> T) -> Vec<T> {
    (0..count as u64)
        .map(|i| {
            let bits = noise::fold_in(seed, i) as u32;
            convert(match bits % 256 {
                0 => f32::INFINITY,
                1 => f32::NAN,
                2 => 0.0,
                3 => -300.0,
                _ => (bits as f32 / u32::MAX as f32 - 0.5) * 8.0,
            })
        })
        .collect()
}

/// Bits, with one bit pattern for all NaN: which one an operation on two gives is not specified.
fn bits<T: Copy + Into<f64>>(values: &[T]) -> Vec<u64> {
    values
        .iter()
        .map(|&value| if value.into().is_nan() { u64::MAX } else { value.into().to_bits() })
        .collect()
}

struct Inputs<T: Element> {
    mu: Vec<T>,
    logvar: Vec<T>,
    grad_z: Vec<T>,
    grad_log_weight: Vec<T::Math>,
    samples: usize,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<T: Element> Inputs<T> {
    fn matrix<'a>(&self, data: &'a [T]) -> Matrix<'a, T> {
        Matrix::new(data, self.rows, self.columns, self.stride)
    }
}

const NOISE: Noise<'static> = Noise { seed: 0x1234_5678_9ABC_DEF0, draw: 3, rows: Rows::From(1 << 40) };

/// z, the log weights, and the gradients for every choice of used outputs.
fn everything<T>(execution: Execution, inputs: &Inputs<T>) -> Vec<Vec<u64>>
where
    T: Element + Into<f64>,
    T::Math: Into<f64>,
{
    let &Inputs { samples, rows, columns, .. } = inputs;
    let (mu, logvar) = (inputs.matrix(&inputs.mu), inputs.matrix(&inputs.logvar));
    let zero = <T::Math as From<f32>>::from(0.0);
    let mut z = vec![T::ZERO; samples * rows * columns];
    let mut log_weight = vec![zero; samples * rows];
    ops::log_weight_forward(execution, mu, logvar, &NOISE, samples, &mut z, &mut log_weight);
    let mut results = vec![bits(&z), bits(&log_weight)];
    let grad_z = Matrix::contiguous(&inputs.grad_z, samples * rows, columns);
    let grad_weight = Matrix::contiguous(&inputs.grad_log_weight, samples * rows, 1);
    for (of_z, of_weight) in
        [(Some(grad_z), Some(grad_weight)), (Some(grad_z), None), (None, Some(grad_weight))]
    {
        let (mut grad_mu, mut grad_logvar) = (vec![T::ZERO; rows * columns], vec![T::ZERO; rows * columns]);
        let grads = [&mut grad_mu[..], &mut grad_logvar[..]];
        ops::log_weight_backward(execution, mu, logvar, &NOISE, samples, of_z, of_weight, grads);
        results.extend([bits(&grad_mu), bits(&grad_logvar)]);
    }
    results
}

fn check<T>(
    samples: usize,
    (rows, columns): (usize, usize),
    gap: usize,
    seed: u64,
    convert: impl Fn(f32) -> T,
) where
    T: Element + Into<f64>,
    T::Math: Into<f64>,
{
    let stride = columns + gap;
    let inputs = Inputs {
        mu: values(rows * stride, noise::fold_in(seed, 1), &convert),
        logvar: values(rows * stride, noise::fold_in(seed, 2), &convert),
        grad_z: values(samples * rows * columns, noise::fold_in(seed, 3), &convert),
        grad_log_weight: values(samples * rows, noise::fold_in(seed, 4), <T::Math as From<f32>>::from),
        samples,
        rows,
        columns,
        stride,
    };
    let single = Execution { level: Level::PORTABLE, threads: 1 };
    let expected = everything(single, &inputs);
    for level in Level::available() {
        for threads in [1, 3] {
            assert_eq!(expected, everything(Execution { level, threads }, &inputs), "{level:?} {threads}");
        }
    }
    let (mu, logvar) = (inputs.matrix(&inputs.mu), inputs.matrix(&inputs.logvar));
    for k in 0..samples {
        let noise = Noise { draw: NOISE.draw + k as u32, ..NOISE };
        let mut z = vec![T::ZERO; rows * columns];
        ops::latent_forward(single, mu, logvar, Some((&noise, &mut z)), KlTarget::Nowhere);
        assert_eq!(bits(&z), expected[0][k * rows * columns..][..rows * columns], "sample {k}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits(
        samples in 1_usize..20, shape in shapes(), gap in 0_usize..3, seed: u64
    ) {
        let samples = if shape.0 * shape.1 > 5000 { samples.min(9) } else { samples };
        check(samples, shape, gap, seed, |value| value);
        check(samples, shape, gap, seed, f64::from);
        check(samples, shape, gap, seed, bf16::from_f32);
        check(samples, shape, gap, seed, f16::from_f32);
    }

    #[test]
    fn weights_and_gradients_are_right(mu in -3.0_f64..3.0, logvar in -3.0_f64..3.0, seed: u64) {
        let execution = Execution { level: Level::best(), threads: 1 };
        let noise = Noise { seed, draw: 0, rows: Rows::From(0) };
        let mut eps = [0.0_f32];
        noise::sample::<Normal>(execution, &noise, 1, 1, &mut eps);
        let eps = f64::from(eps[0]);
        let (m, l) = ([mu], [logvar]);
        let matrix = |data| Matrix::contiguous(data, 1, 1);
        let (mut z, mut log_weight) = ([0.0], [0.0]);
        ops::log_weight_forward(execution, matrix(&m), matrix(&l), &noise, 1, &mut z, &mut log_weight);
        let value = mu + (logvar / 2.0).exp() * eps;
        let close = |got: f64, truth: f64| (got - truth).abs() < 1e-13 * (1.0 + value * value + eps * eps);
        prop_assert!(close(z[0], value));
        prop_assert!(close(log_weight[0], 0.5 * (eps * eps + logvar - value * value)));
        let (mut grad_mu, mut grad_logvar, one) = ([0.0], [0.0], [1.0]);
        let grads = [&mut grad_mu[..], &mut grad_logvar[..]];
        let upstream = Some(matrix(&one));
        ops::log_weight_backward(execution, matrix(&m), matrix(&l), &noise, 1, None, upstream, grads);
        prop_assert!(close(grad_mu[0], -value));
        prop_assert!(close(grad_logvar[0], 0.5 * (1.0 - value * (value - mu))));
    }
}

#[test]
fn a_posterior_that_is_the_prior_weighs_one() {
    let execution = Execution { level: Level::best(), threads: 1 };
    let zeros = [0.0_f32; 3 * 21];
    let (mut z, mut log_weight) = ([0.0; 5 * 3 * 21], [1.0; 5 * 3]);
    let matrix = Matrix::contiguous(&zeros, 3, 21);
    ops::log_weight_forward(execution, matrix, matrix, &NOISE, 5, &mut z, &mut log_weight);
    assert!(log_weight.iter().all(|&weight| weight == 0.0));
}

#[test]
fn an_empty_row_weighs_one() {
    let execution = Execution { level: Level::best(), threads: 1 };
    let mut log_weight = [1.0_f32; 6];
    let matrix = Matrix::contiguous(&[0.0_f32; 0], 3, 0);
    ops::log_weight_forward(execution, matrix, matrix, &NOISE, 2, &mut [], &mut log_weight);
    assert!(log_weight.iter().all(|&weight| weight == 0.0));
}

#[test]
#[should_panic(expected = "the draws do not fit in 32 bits")]
fn draws_do_not_wrap() {
    let execution = Execution { level: Level::best(), threads: 1 };
    let noise = Noise { draw: u32::MAX, ..NOISE };
    let matrix = Matrix::contiguous(&[0.0_f32], 1, 1);
    ops::log_weight_forward(execution, matrix, matrix, &noise, 2, &mut [0.0; 2], &mut [0.0; 2]);
}
