//! Samples with their log weights: the samples of `latent_forward`, and the same bits on every level, thread
//! count and division into parts.

mod strategies;
mod truth;

use fastvae_core::noise::{self, Normal};
use fastvae_core::ops::{self, KlTarget};
use fastvae_core::{Execution, Level, Matrix, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;
use strategies::{Case, Dtype, Grid, bits, cases, config, plain, under_every_execution};
use truth::{Format, Truth, Weighted, check};

const NOISE: Noise<'static> = Noise { seed: 0x1234_5678_9ABC_DEF0, draw: 3, rows: Rows::From(1 << 40) };

/// A posterior and the gradients that reach its samples and their weights.
struct Inputs<T: Dtype> {
    mu: Grid<T>,
    logvar: Grid<T>,
    grad_z: Grid<T>,
    grad_weight: Grid<T::Math>,
    samples: usize,
    shape: (usize, usize),
}

impl<T: Dtype> Inputs<T>
where
    T::Math: Dtype,
{
    fn new(case: &Case, samples: usize) -> Self {
        let (rows, columns) = case.shape;
        Self {
            mu: case.grid(0),
            logvar: case.grid(1),
            grad_z: case.grid_of(2, (samples * rows, columns)),
            grad_weight: case.grid_of(3, (samples * rows, 1)),
            samples,
            shape: case.shape,
        }
    }

    /// Elements of all samples.
    fn elements(&self) -> usize {
        self.samples * self.shape.0 * self.shape.1
    }

    fn forward(&self, execution: Execution) -> (Vec<T>, Vec<T::Math>) {
        let mut z = vec![T::ZERO; self.elements()];
        let mut log_weight = vec![T::Math::nearest(0.0); self.samples * self.shape.0];
        let (mu, logvar) = (self.mu.matrix(), self.logvar.matrix());
        ops::log_weight_forward(execution, mu, logvar, &NOISE, self.samples, &mut z, &mut log_weight);
        (z, log_weight)
    }

    /// The gradients of mu and logvar, by way of z, of the weight or of both.
    fn backward(&self, execution: Execution, [of_z, of_weight]: [bool; 2]) -> [Vec<T>; 2] {
        let elements = self.shape.0 * self.shape.1;
        let mut grads = [vec![T::ZERO; elements], vec![T::ZERO; elements]];
        ops::log_weight_backward(
            execution,
            self.mu.matrix(),
            self.logvar.matrix(),
            &NOISE,
            self.samples,
            of_z.then(|| self.grad_z.matrix()),
            of_weight.then(|| self.grad_weight.matrix()),
            grads.each_mut().map(|grad| &mut grad[..]),
        );
        grads
    }

    /// The noise of every sample, one after the other.
    fn eps(&self) -> Vec<f32> {
        let (rows, columns) = self.shape;
        let mut eps = vec![0.0; self.elements()];
        for (k, eps) in eps.chunks_mut((rows * columns).max(1)).enumerate() {
            let noise = Noise { draw: NOISE.draw + k as u32, ..NOISE };
            noise::sample::<Normal>(plain(), &noise, rows, columns, eps);
        }
        eps
    }
}

/// Which outputs have a gradient: z and the weight.
const USED: [[bool; 2]; 3] = [[true, true], [true, false], [false, true]];

/// Compares z, the weights and the gradients for every choice of used outputs, of all executions with those of one.
fn check_bits<T: Dtype>(case: &Case, samples: usize)
where
    T::Math: Dtype,
{
    let inputs = Inputs::<T>::new(case, samples);
    let everything = |execution| {
        let (z, log_weight) = inputs.forward(execution);
        let grads = USED.map(|used| inputs.backward(execution, used).map(|grad| bits(&grad)));
        (bits(&z), bits(&log_weight), grads)
    };
    let expected = everything(plain());
    under_every_execution(inputs.elements(), |execution| {
        assert_eq!(expected, everything(execution), "{} {execution:?}", T::NAME);
    });
    let (mu, logvar) = (inputs.mu.matrix(), inputs.logvar.matrix());
    for k in 0..samples {
        let noise = Noise { draw: NOISE.draw + k as u32, ..NOISE };
        let mut z = vec![T::ZERO; case.elements()];
        ops::latent_forward(plain(), mu, logvar, Some((&noise, &mut z)), KlTarget::Nowhere);
        assert_eq!(bits(&z), expected.0[k * case.elements()..][..case.elements()], "sample {k}");
    }
}

/// Compares weights and gradients with the truth; the samples are those of `latent_forward`, whose are right.
fn check_truth<T: Dtype>(case: &Case, samples: usize)
where
    T::Math: Dtype,
{
    let inputs = Inputs::<T>::new(case, samples);
    let ((rows, columns), math) = (case.shape, Format::of_math::<T>());
    let eps = inputs.eps();
    let weighted = |sample: usize, row: usize, column: usize| Weighted {
        mu: inputs.mu.at(row, column),
        logvar: inputs.logvar.at(row, column),
        eps: f64::from(eps[(sample * rows + row) * columns + column]),
    };
    let of_row = |index: usize| {
        let terms = (0..columns).flat_map(|at| weighted(index / rows, index % rows, at).terms::<T>());
        truth::sum_rounded(terms, math, 9)
    };
    let weights: Vec<Truth> = (0..samples * rows).map(of_row).collect();
    let gradients = USED.map(|[of_z, of_weight]| {
        let of_place = |(row, column)| {
            let each: Vec<[Truth; 2]> = (0..samples)
                .map(|sample| {
                    let index = sample * rows + row;
                    let of_z = of_z.then(|| inputs.grad_z.at(index, column));
                    let of_weight = of_weight.then(|| inputs.grad_weight.at(index, 0));
                    weighted(sample, row, column).gradients::<T>(of_z, of_weight)
                })
                .collect();
            [0, 1].map(|input| truth::sum_rounded(each.iter().map(|truths| truths[input]), math, 8))
        };
        case.places().map(of_place).collect::<Vec<_>>()
    });
    under_every_execution(inputs.elements(), |execution| {
        let (_, log_weight) = inputs.forward(execution);
        for (got, &truth) in log_weight.into_iter().zip(&weights) {
            check::<T>("log weight", got, truth, math);
        }
        for (used, truths) in USED.into_iter().zip(&gradients) {
            let [of_mu, of_logvar] = inputs.backward(execution, used);
            for ((of_mu, of_logvar), truth) in of_mu.into_iter().zip(of_logvar).zip(truths) {
                check::<T>("gradient of mu by samples", of_mu, truth[0], Format::of::<T>());
                check::<T>("gradient of logvar by samples", of_logvar, truth[1], Format::of::<T>());
            }
        }
    });
}

/// How many samples: fewer than a run of eight, runs, and some beyond them. A large case has few.
fn samples() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..=3, 7_usize..=9, 16_usize..=19]
}

/// As many samples as a case has room for.
fn limited(samples: usize, case: &Case) -> usize {
    if case.elements() > 20_000 { samples.min(2) } else { samples }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits(case in cases(), samples in samples()) {
        let samples = limited(samples, &case);
        check_bits::<f32>(&case, samples);
        check_bits::<f64>(&case, samples);
        check_bits::<bf16>(&case, samples);
        check_bits::<f16>(&case, samples);
    }

    #[test]
    fn weights_and_gradients_are_right(case in cases(), samples in samples()) {
        let samples = limited(samples, &case);
        check_truth::<f32>(&case, samples);
        check_truth::<f64>(&case, samples);
        check_truth::<bf16>(&case, samples);
        check_truth::<f16>(&case, samples);
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
