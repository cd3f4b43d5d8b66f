//! Every instruction-set level, thread count and chunking gives the same bits, and they are right.

mod strategies;

use fastvae_core::noise::{self, Normal, Uniform};
use fastvae_core::ops::{self, Gaussians, KlGrad, KlTarget};
use fastvae_core::{Execution, Level, Matrix, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;
use strategies::{Case, Distance, Dtype, Extent, Grid, bits, cases, config, executions};

/// All results of all operations on one set of inputs.
fn everything<T: Dtype>(execution: Execution, case: &Case, inputs: &[Grid<T>; 4]) -> Vec<Vec<u64>> {
    let (rows, columns) = case.shape;
    let [mu, logvar, prior_mu, prior_logvar] = inputs.each_ref().map(Grid::matrix);
    let gaussians = Gaussians { mu, logvar, prior_mu, prior_logvar };
    let noise = Noise { seed: 0x1234_5678_9ABC_DEF0, draw: 3, rows: Rows::From(1 << 40) };
    let elements = rows * columns;
    let zero = <T::Math as From<f32>>::from(0.0);
    let mut results = Vec::new();

    let (mut z, mut per_row) = (vec![T::ZERO; elements], vec![zero; rows]);
    ops::latent_forward(execution, mu, logvar, Some((&noise, &mut z)), KlTarget::Rows(&mut per_row));
    let (mut z_alone, mut kl_alone) = (vec![T::ZERO; elements], vec![zero; rows]);
    ops::latent_forward(execution, mu, logvar, Some((&noise, &mut z_alone)), KlTarget::Nowhere);
    ops::latent_forward(execution, mu, logvar, None, KlTarget::Rows(&mut kl_alone));
    assert_eq!(bits(&z), bits(&z_alone), "fused and single sampling");
    assert_eq!(bits(&per_row), bits(&kl_alone), "fused and single KL");
    let (mut per_element, mut total) = (vec![zero; elements], zero);
    ops::latent_forward(execution, mu, logvar, None, KlTarget::Elements(&mut per_element));
    ops::latent_forward(execution, mu, logvar, None, KlTarget::Total(&mut total));
    results.extend([bits(&z), bits(&per_row), bits(&per_element), bits(&[total])]);

    let grad_rows = Matrix::contiguous(&per_row, rows, 1);
    for kl in [KlGrad::Rows(grad_rows), KlGrad::Elements(Matrix::contiguous(&per_element, rows, columns))] {
        let (mut grad_mu, mut grad_logvar) = (vec![T::ZERO; elements], vec![T::ZERO; elements]);
        let grads = [&mut grad_mu[..], &mut grad_logvar[..]];
        ops::latent_backward(execution, Some(mu), logvar, Some((&noise, gaussians.prior_mu)), kl, grads);
        results.extend([bits(&grad_mu), bits(&grad_logvar)]);
        let grads = [&mut grad_mu[..], &mut grad_logvar[..]];
        ops::latent_backward(execution, Some(mu), logvar, None, kl, grads);
        results.extend([bits(&grad_mu), bits(&grad_logvar)]);
        let mut four: [Vec<T>; 4] = std::array::from_fn(|_| vec![T::ZERO; elements]);
        ops::prior_backward(execution, gaussians, kl, four.each_mut().map(|grad| &mut grad[..]));
        results.extend(four.iter().map(|grad| bits(grad)));
    }
    let mut grad_logvar = vec![T::ZERO; elements];
    let sample = Some((&noise, gaussians.prior_mu));
    ops::latent_backward(execution, None, logvar, sample, KlGrad::Absent, [&mut [], &mut grad_logvar]);
    results.push(bits(&grad_logvar));

    ops::prior_forward(execution, gaussians, KlTarget::Rows(&mut per_row));
    ops::prior_forward(execution, gaussians, KlTarget::Elements(&mut per_element));
    ops::prior_forward(execution, gaussians, KlTarget::Total(&mut total));
    results.extend([bits(&per_row), bits(&per_element), bits(&[total])]);
    results
}

fn check_all<T: Dtype>(case: &Case, executions: &[Execution]) {
    let inputs: [Grid<T>; 4] = std::array::from_fn(|number| case.grid(number));
    let expected = everything(executions[0], case, &inputs);
    for &execution in &executions[1..] {
        assert_eq!(expected, everything(execution, case, &inputs), "{} {execution:?}", T::NAME);
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits(case in cases()) {
        check_all::<f32>(&case, &executions());
        check_all::<f64>(&case, &executions());
        check_all::<bf16>(&case, &executions());
        check_all::<f16>(&case, &executions());
    }

    #[test]
    fn every_level_and_thread_count_gives_the_same_noise(
        shape in strategies::shapes(), seed: u64, draw: u32, first in 0_u64..u64::MAX / 2
    ) {
        let (rows, columns) = shape;
        let numbers: Vec<i64> = (0..rows as u64).map(|row| (first + row) as i64).collect();
        let draw_all = |execution, rows_of_noise| {
            let noise = Noise { seed, draw, rows: rows_of_noise };
            let (mut normals, mut uniforms) = (vec![0.0; rows * columns], vec![0.0; rows * columns]);
            noise::sample::<Normal>(execution, &noise, rows, columns, &mut normals);
            noise::sample::<Uniform>(execution, &noise, rows, columns, &mut uniforms);
            (bits(&normals), bits(&uniforms))
        };
        let executions = executions();
        let expected = draw_all(executions[0], Rows::From(first));
        for execution in executions {
            prop_assert_eq!(&expected, &draw_all(execution, Rows::From(first)));
            prop_assert_eq!(&expected, &draw_all(execution, Rows::Listed(&numbers)));
        }
    }

    #[test]
    fn the_kl_is_never_negative_and_right(mu in -20.0_f32..20.0, logvar in -20.0_f32..20.0) {
        for logvar in [logvar, logvar * 1e-3, logvar * 1e-6] {
            let mut kl = 0.0;
            let (m, l) = ([mu * 1e-4], [logvar]);
            let matrix = |data| Matrix::contiguous(data, 1, 1);
            let execution = Execution { level: Level::best(), threads: 1 };
            ops::latent_forward(execution, matrix(&m), matrix(&l), None, KlTarget::Total(&mut kl));
            let (m, l) = (f64::from(m[0]), f64::from(logvar));
            let excess = if l.abs() < 1e-3 { l * l / 2.0 * (1.0 + l / 3.0 * (1.0 + l / 4.0)) } else { l.exp_m1() - l };
            let truth = 0.5 * (m * m + excess);
            prop_assert!(kl >= 0.0);
            prop_assert!((f64::from(kl) - truth).abs() <= 1e-6 * truth, "{} {}", kl, truth);
        }
    }
}

/// Below half a million elements a kernel starts no second thread, whatever it is allowed.
#[test]
fn threads_that_are_started_give_the_same_bits() {
    // Under Miri, which is slow and finds races in any case, less pays for a thread (`split.rs`).
    let shapes = if cfg!(miri) { vec![(2, 16_400)] } else { vec![(1, 900_001), (900_001, 1), (55, 16_401)] };
    for shape in shapes {
        let distances = [Distance::Gap(0); 6];
        let case = Case { shape, distances, seed: 7, extent: Extent::Ordinary };
        let run = |threads| Execution { level: Level::best(), threads };
        let counts: &[usize] = if cfg!(miri) { &[1, 3] } else { &[1, 2, 3, 8] };
        let executions: Vec<_> = counts.iter().map(|&threads| run(threads)).collect();
        check_all::<f32>(&case, &executions);
        let numbers = |threads| {
            let noise = Noise { seed: 7, draw: 0, rows: Rows::From(0) };
            let mut normals = vec![0.0; case.elements()];
            noise::sample::<Normal>(run(threads), &noise, shape.0, shape.1, &mut normals);
            bits(&normals)
        };
        assert_eq!(numbers(1), numbers(3));
    }
}

#[test]
fn an_empty_row_has_no_kl() {
    let execution = Execution { level: Level::best(), threads: 1 };
    let (empty, mut rows) = ([0.0_f32; 0], [1.0_f32; 3]);
    let matrix = Matrix::contiguous(&empty, 3, 0);
    ops::latent_forward(execution, matrix, matrix, None, KlTarget::Rows(&mut rows));
    assert!(rows.iter().all(|&kl| kl == 0.0));
}

#[test]
fn a_bad_row_stays_in_its_row() {
    let execution = Execution { level: Level::best(), threads: 1 };
    let mut logvar = [0.0_f32; 3 * 20];
    logvar[25] = f32::NAN;
    let mu = [0.0_f32; 3 * 20];
    let (mut z, mut kl) = ([0.0; 60], [0.0; 3]);
    let noise = Noise { seed: 1, draw: 0, rows: Rows::From(0) };
    let matrix = |data| Matrix::contiguous(data, 3, 20);
    let sample = Some((&noise, &mut z[..]));
    ops::latent_forward(execution, matrix(&mu), matrix(&logvar), sample, KlTarget::Rows(&mut kl));
    assert_eq!(kl.map(f32::is_nan), [false, true, false]);
    assert_eq!(z.iter().filter(|value| value.is_nan()).count(), 1);
}

#[test]
#[should_panic(expected = "data has 5 elements, needs 6")]
fn a_matrix_does_not_reach_beyond_its_data() {
    let _ = Matrix::new(&[0.0_f32; 5], 2, 3, 3);
}
