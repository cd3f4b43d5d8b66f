//! Every kernel is right: at every level and thread count, for every shape, distance of rows and value.
//!
//! A kernel is one function here: it fills its inputs from the case, runs under every execution and compares every
//! number of its outputs with `truth`.

#![allow(clippy::float_cmp, reason = "what is exact is compared exactly")]

mod strategies;
mod truth;

use fastvae_core::noise::{self, Normal, Uniform};
use fastvae_core::ops::{self, Gaussians, KlGrad, KlTarget};
use fastvae_core::{Execution, Level, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;
use strategies::{Case, Dtype, Grid, cases, config, executions};
use truth::{Format, Truth, check};

/// The noise of a case; its row numbers pass 2^32.
fn noise_of(case: &Case) -> Noise<'static> {
    Noise { seed: case.seed, draw: case.seed as u32, rows: Rows::From((1 << 32) - 2) }
}

/// The noise that a case is given, of which `noise_is_right` shows that it is right.
fn eps_of(case: &Case) -> Vec<f32> {
    let mut eps = vec![0.0; case.elements()];
    let execution = Execution { level: Level::PORTABLE, threads: 1 };
    let (rows, columns) = case.shape;
    noise::sample::<Normal>(execution, &noise_of(case), rows, columns, &mut eps);
    eps
}

/// Compares the values of a KL, in all its forms, with the sums of the true ones.
fn check_kl<T: Dtype>(
    what: &str,
    case: &Case,
    truths: &[Truth],
    (elements, rows, total): (&[T::Math], &[T::Math], T::Math),
) {
    let math = Format::of_math::<T>();
    let sum = |parts: &[Truth]| truth::sum(parts, math);
    for (&got, &truth) in elements.iter().zip(truths) {
        check::<T>(what, got, truth, math);
    }
    for (row, &got) in rows.iter().enumerate() {
        let columns = case.shape.1;
        check::<T>(&format!("{what} of a row"), got, sum(&truths[row * columns..][..columns]), math);
    }
    check::<T>(&format!("{what} in total"), total, sum(truths), math);
}

fn latent_forward<T: Dtype>(case: &Case) {
    let (mu, logvar): (Grid<T>, Grid<T>) = (case.grid(0), case.grid(1));
    let (noise, eps) = (noise_of(case), eps_of(case));
    let zero = <T::Math as From<f32>>::from(0.0);
    let at = |(row, column)| (mu.at(row, column), logvar.at(row, column));
    let kls: Vec<Truth> =
        case.places().map(at).map(|(m, l)| truth::Gaussians::to_unit(m, l).kl::<T>()).collect();
    let samples: Vec<Truth> = case
        .places()
        .map(at)
        .zip(&eps)
        .map(|((m, l), &eps)| truth::sample::<T>(m, l, f64::from(eps)))
        .collect();
    for execution in executions() {
        let mut z = vec![T::ZERO; case.elements()];
        let (mut elements, mut rows) = (vec![zero; case.elements()], vec![zero; case.shape.0]);
        let mut total = zero;
        let (mu, logvar) = (mu.matrix(), logvar.matrix());
        let sample = Some((&noise, &mut z[..]));
        ops::latent_forward(execution, mu, logvar, sample, KlTarget::Elements(&mut elements));
        ops::latent_forward(execution, mu, logvar, None, KlTarget::Rows(&mut rows));
        ops::latent_forward(execution, mu, logvar, None, KlTarget::Total(&mut total));
        for (&got, &truth) in z.iter().zip(&samples) {
            check::<T>("z", got, truth, Format::of::<T>());
        }
        check_kl::<T>("kl", case, &kls, (&elements, &rows, total));
    }
}

/// The gradient of a KL: one per element, or one per row.
struct OfKl<M> {
    values: Grid<M>,
    by_row: bool,
}

impl<M: Dtype> OfKl<M> {
    /// Both, as inputs of a case.
    fn both(case: &Case, number: usize) -> [Self; 2] {
        let column = (case.shape.0, 1);
        [
            Self { values: case.grid(number), by_row: false },
            Self { values: case.grid_of(number + 1, column), by_row: true },
        ]
    }

    fn grad(&self) -> KlGrad<'_, M> {
        if self.by_row { KlGrad::Rows(self.values.matrix()) } else { KlGrad::Elements(self.values.matrix()) }
    }

    fn at(&self, (row, column): (usize, usize)) -> f64 {
        self.values.at(row, if self.by_row { 0 } else { column })
    }
}

fn latent_backward<T: Dtype>(case: &Case)
where
    T::Math: Dtype,
{
    let (mu, logvar, grad_z): (Grid<T>, Grid<T>, Grid<T>) = (case.grid(0), case.grid(1), case.grid(2));
    let grads = OfKl::<T::Math>::both(case, 3);
    let (noise, eps) = (noise_of(case), eps_of(case));
    for grad_kl in grads.iter().map(Some).chain([None]) {
        for sampled in [true, false] {
            if !sampled && grad_kl.is_none() {
                continue;
            }
            let truths: Vec<[Truth; 2]> = case
                .places()
                .zip(&eps)
                .map(|((row, column), &eps)| {
                    let of_z = sampled.then(|| grad_z.at(row, column));
                    let of_kl = grad_kl.map(|grad| grad.at((row, column)));
                    let inputs = (mu.at(row, column), logvar.at(row, column), f64::from(eps));
                    truth::latent_gradients::<T>(inputs, of_z, of_kl)
                })
                .collect();
            for execution in executions() {
                let with_kl = grad_kl.is_some();
                let mut of_mu = vec![T::ZERO; if with_kl { case.elements() } else { 0 }];
                let mut of_logvar = vec![T::ZERO; case.elements()];
                ops::latent_backward(
                    execution,
                    with_kl.then(|| mu.matrix()),
                    logvar.matrix(),
                    sampled.then(|| (&noise, grad_z.matrix())),
                    grad_kl.map_or(KlGrad::Absent, OfKl::grad),
                    [&mut of_mu, &mut of_logvar],
                );
                for (&got, truth) in of_mu.iter().zip(&truths) {
                    check::<T>("gradient of mu", got, truth[0], Format::of::<T>());
                }
                for (&got, truth) in of_logvar.iter().zip(&truths) {
                    check::<T>("gradient of logvar", got, truth[1], Format::of::<T>());
                }
            }
        }
    }
}

/// The four inputs of a KL between Gaussians.
struct Priors<T>([Grid<T>; 4]);

impl<T: Dtype> Priors<T> {
    fn new(case: &Case) -> Self {
        Self(std::array::from_fn(|number| case.grid(number)))
    }

    fn matrices(&self) -> Gaussians<'_, T> {
        let [mu, logvar, prior_mu, prior_logvar] = self.0.each_ref().map(Grid::matrix);
        Gaussians { mu, logvar, prior_mu, prior_logvar }
    }

    fn at(&self, (row, column): (usize, usize)) -> truth::Gaussians {
        let [mu, logvar, prior_mu, prior_logvar] = self.0.each_ref().map(|grid| grid.at(row, column));
        truth::Gaussians { mu, logvar, prior_mu, prior_logvar }
    }
}

fn prior_forward<T: Dtype>(case: &Case) {
    let inputs = Priors::<T>::new(case);
    let zero = <T::Math as From<f32>>::from(0.0);
    let kls: Vec<Truth> = case.places().map(|place| inputs.at(place).kl::<T>()).collect();
    for execution in executions() {
        let (mut elements, mut rows) = (vec![zero; case.elements()], vec![zero; case.shape.0]);
        let mut total = zero;
        ops::prior_forward(execution, inputs.matrices(), KlTarget::Elements(&mut elements));
        ops::prior_forward(execution, inputs.matrices(), KlTarget::Rows(&mut rows));
        ops::prior_forward(execution, inputs.matrices(), KlTarget::Total(&mut total));
        check_kl::<T>("kl from a prior", case, &kls, (&elements, &rows, total));
    }
}

fn prior_backward<T: Dtype>(case: &Case)
where
    T::Math: Dtype,
{
    let inputs = Priors::<T>::new(case);
    for grad_kl in OfKl::<T::Math>::both(case, 4) {
        let truths: Vec<[Truth; 4]> =
            case.places().map(|place| inputs.at(place).kl_gradients::<T>(grad_kl.at(place))).collect();
        for execution in executions() {
            let mut grads: [Vec<T>; 4] = std::array::from_fn(|_| vec![T::ZERO; case.elements()]);
            ops::prior_backward(
                execution,
                inputs.matrices(),
                grad_kl.grad(),
                grads.each_mut().map(|grad| &mut grad[..]),
            );
            for (number, grad) in grads.iter().enumerate() {
                let what = format!(
                    "gradient of {} from a prior",
                    ["mu", "logvar", "prior_mu", "prior_logvar"][number]
                );
                for (&got, truth) in grad.iter().zip(&truths) {
                    check::<T>(&what, got, truth[number], Format::of::<T>());
                }
            }
        }
    }
}

/// Calls a function of this file with every dtype.
macro_rules! for_every_dtype {
    ($kernel:ident, $case:expr) => {
        $kernel::<f32>($case);
        $kernel::<f64>($case);
        $kernel::<bf16>($case);
        $kernel::<f16>($case);
    };
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn sample_and_kl_are_right(case in cases()) {
        for_every_dtype!(latent_forward, &case);
    }

    #[test]
    fn gradients_of_sample_and_kl_are_right(case in cases()) {
        for_every_dtype!(latent_backward, &case);
    }

    #[test]
    fn the_kl_from_a_prior_is_right(case in cases()) {
        for_every_dtype!(prior_forward, &case);
    }

    #[test]
    fn gradients_of_the_kl_from_a_prior_are_right(case in cases()) {
        for_every_dtype!(prior_backward, &case);
    }

    #[test]
    fn noise_is_right(case in cases(), draw: u32, first in 0_u64..1 << 63) {
        let (rows, columns) = case.shape;
        let scattered = |row: usize| first.wrapping_mul(row as u64 | 1) >> 1;
        let listed: Vec<i64> = (0..rows).map(|row| scattered(row) as i64).collect();
        let consecutive = (Rows::From(first), (0..rows as u64).map(|row| first + row).collect::<Vec<_>>());
        for (rows_of_noise, numbers) in [consecutive, (Rows::Listed(&listed), (0..rows).map(scattered).collect())] {
            let noise = Noise { seed: case.seed, draw, rows: rows_of_noise };
            for execution in executions() {
                let (mut uniforms, mut normals) = (vec![-1.0; case.elements()], vec![-1.0; case.elements()]);
                noise::sample::<Uniform>(execution, &noise, rows, columns, &mut uniforms);
                noise::sample::<Normal>(execution, &noise, rows, columns, &mut normals);
                for ((row, column), (uniform, normal)) in case.places().zip(uniforms.iter().zip(normals)) {
                    let number = numbers[row];
                    prop_assert_eq!(f64::from(*uniform), truth::uniform(case.seed, draw, number, column));
                    let truth = truth::normal(case.seed, draw, number, column);
                    check::<f32>("normal", normal, truth, Format::of::<f32>());
                }
            }
        }
    }

    #[test]
    fn permutations_are_right(n in 0_usize..if cfg!(miri) { 50 } else { 5000 }, seed: u64, draw: u32) {
        let mut order = vec![-1; n];
        noise::permutation(seed, draw, &mut order).expect("it fits in memory");
        prop_assert_eq!(order, truth::permutation(seed, draw, n));
    }

    #[test]
    fn folded_seeds_are_right(seed: u64, tag: u64) {
        prop_assert_eq!(noise::fold_in(seed, tag), truth::fold_in(seed, tag));
    }
}

#[test]
fn the_truth_is_true() {
    // Random123's known answer, and the KL of a Gaussian of which it is known to many digits.
    assert_eq!(
        truth::philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], 0x299f_31d0_a409_3822),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
    let kl = |mu, logvar| truth::Gaussians::to_unit(mu, logvar).kl::<f64>().value;
    assert_eq!(kl(3.0, 0.0), 4.5);
    assert!((kl(0.0, 1.0) - 0.359_140_914_229_522_6).abs() < 1e-15);
    assert!((kl(0.0, 1e-4) / 2.500_083_335_416_708_3e-9 - 1.0).abs() < 1e-14);
    let float32 = Format::of::<f32>();
    assert_eq!(float32.ulp(1.0), f64::from(f32::EPSILON));
    assert_eq!(float32.ulp(0.0), float32.smallest());
    assert_eq!(float32.smallest(), f64::from(f32::from_bits(1)));
    assert_eq!(Format::of::<f64>().smallest(), f64::from_bits(1));
    assert_eq!(Format::of::<f16>().smallest(), f64::from(f16::from_bits(1)));
    assert_eq!(Format::of::<bf16>().smallest(), f64::from(bf16::from_bits(1)));
}
