//! Every instruction-set level, thread count and chunking gives the same bits, and they are right.

use fastvae_core::noise::{self, Normal, Uniform};
use fastvae_core::ops::{self, Gaussians, KlGrad, KlTarget};
use fastvae_core::{Element, Execution, Level, Matrix, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;

/// Shapes around the sizes at which tiles, segments and spans begin.
fn shapes() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        (1_usize..5, 1_usize..70),
        (1_usize..300, 1_usize..6),
        (1_usize..3, 1000_usize..1050),
        (1_usize..3, 16380_usize..16390),
        Just((2, 40000)),
        Just((20000, 1)),
    ]
}

/// A value that is worth trying, from any 32 bits.
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
        8 => 1e-6,
        _ => (bits as f32 / u32::MAX as f32 - 0.5) * 20.0,
    }
}

fn values(count: usize, seed: u64, extreme: bool) -> Vec<f32> {
    (0..count as u64)
        .map(|i| {
            let bits = noise::fold_in(seed, i) as u32;
            if extreme { interesting(bits) } else { (bits as f32 / u32::MAX as f32 - 0.5) * 10.0 }
        })
        .collect()
}

fn executions() -> Vec<Execution> {
    let threads = [1, 3];
    Level::available()
        .into_iter()
        .flat_map(|level| threads.map(|threads| Execution { level, threads }))
        .collect()
}

/// Bits, with one bit pattern for all NaN: which one an operation on two gives is not specified.
fn bits<T: Copy + Into<f64>>(values: &[T]) -> Vec<u64> {
    values
        .iter()
        .map(|&value| if value.into().is_nan() { u64::MAX } else { value.into().to_bits() })
        .collect()
}

struct Inputs<T> {
    mu: Vec<T>,
    logvar: Vec<T>,
    prior_mu: Vec<T>,
    prior_logvar: Vec<T>,
    rows: usize,
    columns: usize,
    stride: usize,
}

/// All results of all operations on one set of inputs.
fn everything<T>(execution: Execution, inputs: &Inputs<T>) -> Vec<Vec<u64>>
where
    T: Element + Into<f64>,
    T::Math: Into<f64>,
{
    let (rows, columns) = (inputs.rows, inputs.columns);
    let matrix = |data| Matrix::new(data, rows, columns, inputs.stride);
    let (mu, logvar) = (matrix(&inputs.mu), matrix(&inputs.logvar));
    let gaussians = Gaussians {
        mu,
        logvar,
        prior_mu: matrix(&inputs.prior_mu),
        prior_logvar: matrix(&inputs.prior_logvar),
    };
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

fn inputs<T: Copy>(
    (rows, columns): (usize, usize),
    gap: usize,
    seed: u64,
    extreme: bool,
    convert: impl Fn(f32) -> T,
) -> Inputs<T> {
    let stride = columns + gap;
    let data =
        |tag| values(rows * stride, noise::fold_in(seed, tag), extreme).into_iter().map(&convert).collect();
    Inputs { mu: data(1), logvar: data(2), prior_mu: data(3), prior_logvar: data(4), rows, columns, stride }
}

fn check_all<T>(inputs: &Inputs<T>)
where
    T: Element + Into<f64>,
    T::Math: Into<f64>,
{
    let executions = executions();
    let expected = everything(executions[0], inputs);
    for &execution in &executions[1..] {
        assert_eq!(expected, everything(execution, inputs), "{execution:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_level_and_thread_count_gives_the_same_bits(
        shape in shapes(), gap in 0_usize..3, seed: u64, extreme: bool
    ) {
        check_all(&inputs(shape, gap, seed, extreme, |value| value));
        check_all(&inputs(shape, gap, seed, extreme, f64::from));
        check_all(&inputs(shape, gap, seed, extreme, bf16::from_f32));
        check_all(&inputs(shape, gap, seed, extreme, f16::from_f32));
    }

    #[test]
    fn every_level_and_thread_count_gives_the_same_noise(
        shape in shapes(), seed: u64, draw: u32, first in 0_u64..u64::MAX / 2
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
