//! Every instruction-set level, thread count and chunking gives the same bits, and they are right.

mod strategies;

use fastvae_core::noise::{self, Normal, Uniform};
use fastvae_core::ops::{self, FreeBits, Gaussians, KlGrad, KlTarget};
use fastvae_core::{Execution, Level, Matrix, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;
use strategies::{
    Case, Distance, Dtype, Extent, Grid, bits, cases, config, plain, threads, under_every_execution,
};

const NOISE: Noise<'static> = Noise { seed: 0x1234_5678_9ABC_DEF0, draw: 3, rows: Rows::From(1 << 40) };

/// All results of all operations on one set of inputs.
fn everything<T: Dtype>(execution: Execution, case: &Case, inputs: &[Grid<T>; 4]) -> Vec<Vec<u64>> {
    let (rows, columns) = case.shape;
    let [mu, logvar, prior_mu, prior_logvar] = inputs.each_ref().map(Grid::matrix);
    let gaussians = Gaussians { mu, logvar, prior_mu, prior_logvar };
    let noise = NOISE;
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
    let mut per_column = vec![zero; columns];
    ops::prior_forward(execution, gaussians, KlTarget::Columns(&mut per_column));
    results.extend([bits(&per_row), bits(&per_element), bits(&per_column), bits(&[total])]);
    ops::latent_forward(execution, mu, logvar, None, KlTarget::Columns(&mut per_column));
    results.push(bits(&per_column));
    let sample = Some((&noise, &mut z_alone[..]));
    ops::latent_forward(execution, mu, logvar, sample, KlTarget::Columns(&mut per_column));
    assert_eq!(bits(&z), bits(&z_alone), "sampling beside the KL per column");
    assert_eq!(results.last(), Some(&bits(&per_column)), "fused and single KL per column");

    for group in groups(columns) {
        results.extend(with_free_bits(execution, case, [mu, logvar, prior_mu], group, &z));
    }
    results
}

/// Single columns, the fewest that divide a row, and all of it: below the lanes, above, and no multiple of them.
fn groups(columns: usize) -> Vec<usize> {
    let fewest = (2..columns).find(|&group| columns.is_multiple_of(group));
    let mut groups: Vec<usize> = [Some(1), fewest, Some(columns.max(1))].into_iter().flatten().collect();
    groups.dedup();
    groups
}

/// All results with free bits, of which `z` is known.
fn with_free_bits<T: Dtype>(
    execution: Execution,
    case: &Case,
    [mu, logvar, grad_z]: [Matrix<T>; 3],
    group: usize,
    z: &[T],
) -> Vec<Vec<u64>> {
    let ((rows, columns), elements) = (case.shape, case.elements());
    let zero = <T::Math as From<f32>>::from(0.0);
    let free_bits = FreeBits { floor: 0.5 * group as f64, group };
    let (mut z_too, mut per_row, mut alone) = (vec![T::ZERO; elements], vec![zero; rows], vec![zero; rows]);
    let (mut total, sample) = (zero, Some((&NOISE, &mut z_too[..])));
    ops::free_bits_forward(execution, mu, logvar, free_bits, sample, KlTarget::Rows(&mut per_row));
    ops::free_bits_forward(execution, mu, logvar, free_bits, None, KlTarget::Rows(&mut alone));
    ops::free_bits_forward(execution, mu, logvar, free_bits, None, KlTarget::Total(&mut total));
    assert_eq!(bits(z), bits(&z_too), "sampling beside free bits, {columns} columns in groups of {group}");
    assert_eq!(bits(&per_row), bits(&alone), "fused and single KL with free bits");
    let mut results = vec![bits(&per_row), bits(&[total])];
    let grad_kl = Matrix::contiguous(&per_row, rows, 1);
    for sample in [Some((&NOISE, grad_z)), None] {
        let (mut grad_mu, mut grad_logvar) = (vec![T::ZERO; elements], vec![T::ZERO; elements]);
        let grads = [&mut grad_mu[..], &mut grad_logvar[..]];
        ops::free_bits_backward(execution, mu, logvar, free_bits, sample, grad_kl, grads);
        results.extend([bits(&grad_mu), bits(&grad_logvar)]);
    }
    results
}

/// Compares the results of every execution with those of one.
fn check_all<T: Dtype>(case: &Case) {
    let inputs: [Grid<T>; 4] = std::array::from_fn(|number| case.grid(number));
    let expected = everything(plain(), case, &inputs);
    under_every_execution(case.elements(), |execution| {
        assert_eq!(expected, everything(execution, case, &inputs), "{} {execution:?}", T::NAME);
    });
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits(case in cases()) {
        check_all::<f32>(&case);
        check_all::<f64>(&case);
        check_all::<bf16>(&case);
        check_all::<f16>(&case);
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
        let expected = draw_all(plain(), Rows::From(first));
        under_every_execution(rows * columns, |execution| {
            assert_eq!(expected, draw_all(execution, Rows::From(first)), "{execution:?}");
            assert_eq!(expected, draw_all(execution, Rows::Listed(&numbers)), "{execution:?}");
        });
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

/// What all operations give for a case, in a number.
fn number_of<T: Dtype>(case: &Case) -> u64 {
    let inputs: [Grid<T>; 4] = std::array::from_fn(|number| case.grid(number));
    everything(plain(), case, &inputs).into_iter().flatten().fold(0, noise::fold_in)
}

/// They were the same on x86-64 and, in an emulator, on arm64. Who changes numbers on purpose changes these.
#[test]
fn the_bits_are_those_of_other_processors() {
    let case = Case { shape: (5, 70), distances: [Distance::Gap(0); 6], seed: 7, extent: Extent::Ordinary };
    assert_eq!(number_of::<f32>(&case), 0xcd41_3b31_7c05_3126);
    assert_eq!(number_of::<f64>(&case), 0x7c17_8607_6363_f74e);
    assert_eq!(number_of::<bf16>(&case), 0xfa2f_75ea_7d90_95f3);
    assert_eq!(number_of::<f16>(&case), 0x299c_18d6_1144_75dc);
}

/// Narrow rows are taken several at a time, by code for each number of vectors in a row; what is left of them is not.
#[test]
fn narrow_rows_have_the_same_bits_however_many_there_are() {
    let (rows, columns): (&[usize], &[usize]) = if cfg!(miri) {
        (&[9], &[5, 31])
    } else {
        (&[1, 2, 3, 4, 7, 8, 9, 17], &[1, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65])
    };
    for (&rows, &columns) in rows.iter().flat_map(|rows| columns.iter().map(move |columns| (rows, columns))) {
        for extent in [Extent::Ordinary, Extent::Extreme] {
            let distances = [0, 1, 2, 3, 4, 5].map(|gap| Distance::Gap(gap * 7));
            check_all::<f32>(&Case { shape: (rows, columns), distances, seed: 7, extent });
        }
    }
}

/// Threads that are lent, and those that a kernel starts where it is lent none.
#[test]
fn threads_give_the_same_bits_lent_or_started() {
    // Under Miri less pays for a thread (`split.rs`).
    // 2^18 elements pay for one that is started, so the last shape has work for three.
    let shapes = if cfg!(miri) { vec![(3, 520)] } else { vec![(1, 300_001), (300_001, 1), (49, 16_401)] };
    for shape in shapes {
        let distances = [Distance::Gap(0); 6];
        let case = Case { shape, distances, seed: 7, extent: Extent::Ordinary };
        let inputs: [Grid<f32>; 4] = std::array::from_fn(|number| case.grid(number));
        let run = |threads| Execution { level: Level::best(), threads };
        let numbers = |execution| {
            let noise = Noise { seed: 7, draw: 0, rows: Rows::From(0) };
            let mut normals = vec![0.0; case.elements()];
            noise::sample::<Normal>(execution, &noise, shape.0, shape.1, &mut normals);
            bits(&normals)
        };
        let expected = (everything(run(1), &case, &inputs), numbers(run(1)));
        let compare = |threads| {
            let results = (everything(run(threads), &case, &inputs), numbers(run(threads)));
            assert_eq!(expected, results, "{threads} threads on {shape:?}");
        };
        let counts: &[usize] = if cfg!(miri) { &[3] } else { &[2, 8] };
        for &threads in counts {
            assert_eq!(threads::used_by(|| compare(threads)), threads, "lent for {shape:?}");
            threads::with_none_lent(|| compare(threads));
        }
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
