//! Every kernel is right: at every level and thread count, for every shape, distance of rows and value.
//!
//! A kernel is one function here: it fills its inputs from the case, runs under every execution and compares every
//! number of its outputs with `truth`.

#![allow(clippy::float_cmp, reason = "what is exact is compared exactly")]

mod strategies;
mod truth;

use fastvae_core::noise::{self, Normal, Uniform};
use fastvae_core::ops::{self, FreeBits, Gaussians, KlGrad, KlTarget};
use fastvae_core::{Matrix, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;
use strategies::{Case, Dtype, Extent, Grid, cases, config, plain, under_every_execution};
use truth::{Format, Truth, check};

/// The noise of a case; its row numbers pass 2^32.
fn noise_of(case: &Case) -> Noise<'static> {
    Noise { seed: case.seed, draw: case.seed as u32, rows: Rows::From((1 << 32) - 2) }
}

/// The noise that a case is given, of which `noise_is_right` shows that it is right.
fn eps_of(case: &Case) -> Vec<f32> {
    let mut eps = vec![0.0; case.elements()];
    let (rows, columns) = case.shape;
    noise::sample::<Normal>(plain(), &noise_of(case), rows, columns, &mut eps);
    eps
}

/// A KL in all its forms.
struct Kl<'a, M> {
    elements: &'a [M],
    rows: &'a [M],
    columns: &'a [M],
    total: M,
}

/// Compares the values of a KL, in all its forms, with the sums of the true ones.
fn check_kl<T: Dtype>(what: &str, case: &Case, truths: &[Truth], kl: &Kl<T::Math>) {
    let &Kl { elements, rows, columns, total } = kl;
    let (width, math) = (case.shape.1, Format::of_math::<T>());
    let sum = |parts: &[Truth]| truth::sum(parts, math);
    for (&got, &truth) in elements.iter().zip(truths) {
        check::<T>(what, got, truth, math);
    }
    for (row, &got) in rows.iter().enumerate() {
        check::<T>(&format!("{what} of a row"), got, sum(&truths[row * width..][..width]), math);
    }
    for (column, &got) in columns.iter().enumerate() {
        // In `f64` throughout, and rounded once.
        let of_column = truths.iter().skip(column).step_by(width).copied();
        check::<T>(&format!("{what} of a column"), got, truth::sum_rounded(of_column, math, 1), math);
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
    under_every_execution(case.elements(), |execution| {
        let (mut z, mut z_too) = (vec![T::ZERO; case.elements()], vec![T::ZERO; case.elements()]);
        let (mut elements, mut rows) = (vec![zero; case.elements()], vec![zero; case.shape.0]);
        let (mut columns, mut total) = (vec![zero; case.shape.1], zero);
        let (mu, logvar) = (mu.matrix(), logvar.matrix());
        let sample = Some((&noise, &mut z[..]));
        ops::latent_forward(execution, mu, logvar, sample, KlTarget::Elements(&mut elements));
        ops::latent_forward(execution, mu, logvar, None, KlTarget::Rows(&mut rows));
        let sample = Some((&noise, &mut z_too[..]));
        ops::latent_forward(execution, mu, logvar, sample, KlTarget::Columns(&mut columns));
        ops::latent_forward(execution, mu, logvar, None, KlTarget::Total(&mut total));
        for z in [z, z_too] {
            for (got, &truth) in z.into_iter().zip(&samples) {
                check::<T>("z", got, truth, Format::of::<T>());
            }
        }
        check_kl::<T>("kl", case, &kls, &Kl { elements: &elements, rows: &rows, columns: &columns, total });
    });
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
            under_every_execution(case.elements(), |execution| {
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
            });
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
    under_every_execution(case.elements(), |execution| {
        let (mut elements, mut rows) = (vec![zero; case.elements()], vec![zero; case.shape.0]);
        let (mut columns, mut total) = (vec![zero; case.shape.1], zero);
        ops::prior_forward(execution, inputs.matrices(), KlTarget::Elements(&mut elements));
        ops::prior_forward(execution, inputs.matrices(), KlTarget::Rows(&mut rows));
        ops::prior_forward(execution, inputs.matrices(), KlTarget::Columns(&mut columns));
        ops::prior_forward(execution, inputs.matrices(), KlTarget::Total(&mut total));
        check_kl::<T>(
            "kl from a prior",
            case,
            &kls,
            &Kl { elements: &elements, rows: &rows, columns: &columns, total },
        );
    });
}

fn prior_backward<T: Dtype>(case: &Case)
where
    T::Math: Dtype,
{
    let inputs = Priors::<T>::new(case);
    for grad_kl in OfKl::<T::Math>::both(case, 4) {
        let truths: Vec<[Truth; 4]> =
            case.places().map(|place| inputs.at(place).kl_gradients::<T>(grad_kl.at(place))).collect();
        under_every_execution(case.elements(), |execution| {
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
        });
    }
}

/// A kernel with free bits on the inputs of a case: its groups, and what of each is free.
struct Floored<T: Dtype> {
    mu: Grid<T>,
    logvar: Grid<T>,
    free_bits: FreeBits,
    /// The KL of each group, row by row.
    groups: Vec<Truth>,
    /// What the arithmetic has as the floor.
    floor: f64,
}

/// A group of columns and a floor for them, from any 64 bits.
#[derive(Clone, Copy, Debug)]
struct Floor {
    group: u64,
    floor: u64,
}

impl<T: Dtype> Floored<T>
where
    T::Math: Dtype,
{
    fn new(case: &Case, choice: Floor) -> Self {
        let ((rows, columns), math) = (case.shape, Format::of_math::<T>());
        let (mu, logvar): (Grid<T>, Grid<T>) = (case.grid(0), case.grid(1));
        let divisors: Vec<usize> = (1..=columns.max(1)).filter(|&n| columns.is_multiple_of(n)).collect();
        let group = divisors[choice.group as usize % divisors.len()];
        let kl =
            |(row, column)| truth::Gaussians::to_unit(mu.at(row, column), logvar.at(row, column)).kl::<T>();
        let kls: Vec<Truth> = case.places().map(kl).collect();
        let groups: Vec<Truth> = kls
            .chunks(group)
            .map(|of_group| match group {
                1 => of_group[0],
                // Fewer than the lanes are added up in `f64`.
                2..16 => truth::sum_rounded(of_group.iter().copied(), math, 1),
                _ => truth::sum(of_group, math),
            })
            .collect();
        assert_eq!(groups.len(), rows * columns / group);
        // The KL of some group, so that there are groups on both sides and one at the floor; or any number.
        let typical =
            groups.get(choice.floor as usize % groups.len().max(1)).map_or(1.0, |group| group.value);
        let floor = match choice.floor >> 62 {
            0 => Extent::Ordinary.value(choice.floor).abs(),
            _ if typical.is_finite() => typical,
            _ => 0.0,
        };
        let free_bits = FreeBits { floor, group };
        Self { mu, logvar, free_bits, groups, floor: T::Math::nearest(floor).into() }
    }

    /// What a group counts; NaN stays.
    fn counted(&self, group: Truth) -> Truth {
        Truth { value: if group.value <= self.floor { self.floor } else { group.value }, ..group }
    }

    /// The sum over groups of what they count.
    fn sum(&self, groups: &[Truth]) -> Truth {
        let counted = groups.iter().map(|&group| self.counted(group));
        // Elements that are groups are added eight at a time; sums of groups in `f64`.
        let roundings = if self.free_bits.group == 1 { 8 } else { 1 };
        truth::sum_rounded(counted, Format::of_math::<T>(), roundings)
    }

    /// Whether a group is free; unknown within the error of its KL.
    fn is_free(&self, group: Truth) -> Option<bool> {
        let distance = group.value - self.floor;
        if distance.abs() <= group.tolerance { None } else { Some(group.value <= self.floor) }
    }
}

fn free_bits_forward<T: Dtype>(case: &Case, choice: Floor)
where
    T::Math: Dtype,
{
    let floored = Floored::<T>::new(case, choice);
    let math = Format::of_math::<T>();
    let (rows, columns) = case.shape;
    let (noise, eps) = (noise_of(case), eps_of(case));
    let zero = T::Math::nearest(0.0);
    let width = columns / floored.free_bits.group;
    let of_rows: Vec<Truth> =
        (0..rows).map(|row| floored.sum(&floored.groups[row * width..][..width])).collect();
    let of_all = floored.sum(&floored.groups);
    let sample = |((row, column), &eps): ((usize, usize), &f32)| {
        truth::sample::<T>(floored.mu.at(row, column), floored.logvar.at(row, column), f64::from(eps))
    };
    let samples: Vec<Truth> = case.places().zip(&eps).map(sample).collect();
    under_every_execution(case.elements(), |execution| {
        let (mu, logvar) = (floored.mu.matrix(), floored.logvar.matrix());
        let mut z = vec![T::ZERO; case.elements()];
        let (mut per_row, mut total) = (vec![zero; rows], zero);
        let sample = Some((&noise, &mut z[..]));
        let target = KlTarget::Rows(&mut per_row);
        ops::free_bits_forward(execution, mu, logvar, floored.free_bits, sample, target);
        let target = KlTarget::Total(&mut total);
        ops::free_bits_forward(execution, mu, logvar, floored.free_bits, None, target);
        for (&got, &truth) in z.iter().zip(&samples) {
            check::<T>("z beside free bits", got, truth, Format::of::<T>());
        }
        for (&got, &truth) in per_row.iter().zip(&of_rows) {
            check::<T>("kl of a row with free bits", got, truth, math);
        }
        check::<T>("kl with free bits in total", total, of_all, math);
    });
}

fn free_bits_backward<T: Dtype>(case: &Case, choice: Floor)
where
    T::Math: Dtype,
{
    let floored = Floored::<T>::new(case, choice);
    let grad_z: Grid<T> = case.grid(2);
    let grad_kl: Grid<T::Math> = case.grid_of(3, (case.shape.0, 1));
    let (noise, eps) = (noise_of(case), eps_of(case));
    for sampled in [true, false] {
        // The gradients of every element in a group that counts, and in one that is free.
        let gradients = |((row, column), &eps): ((usize, usize), &f32)| {
            let inputs = (floored.mu.at(row, column), floored.logvar.at(row, column), f64::from(eps));
            let of_z = sampled.then(|| grad_z.at(row, column));
            let counts = truth::latent_gradients::<T>(inputs, of_z, Some(grad_kl.at(row, 0)));
            let free = truth::latent_gradients::<T>(inputs, of_z, Some(0.0));
            // Without z there is nothing at all.
            let nothing = |truth| if sampled { truth } else { Truth { tolerance: 0.0, ..truth } };
            (counts, free.map(nothing))
        };
        let truths: Vec<_> = case.places().zip(&eps).map(gradients).collect();
        under_every_execution(case.elements(), |execution| {
            let (mut of_mu, mut of_logvar) = (vec![T::ZERO; case.elements()], vec![T::ZERO; case.elements()]);
            ops::free_bits_backward(
                execution,
                floored.mu.matrix(),
                floored.logvar.matrix(),
                floored.free_bits,
                sampled.then(|| (&noise, grad_z.matrix())),
                grad_kl.matrix(),
                [&mut of_mu, &mut of_logvar],
            );
            let length = floored.free_bits.group;
            let outputs = of_mu.chunks(length).zip(of_logvar.chunks(length));
            for ((of_group, got), &group) in truths.chunks(length).zip(outputs).zip(&floored.groups) {
                // A whole group is free or counts.
                let complaint = |free: bool| {
                    of_group.iter().zip(got.0.iter().zip(got.1)).find_map(|(truth, (&of_mu, &of_logvar))| {
                        let [mu, logvar] = if free { truth.1 } else { truth.0 };
                        let (math, stored) = (Format::of_math::<T>(), Format::of::<T>());
                        let of_mu = mu.complaint(of_mu.into(), math, stored);
                        of_mu.or_else(|| logvar.complaint(of_logvar.into(), math, stored))
                    })
                };
                let wrong = match floored.is_free(group) {
                    Some(free) => complaint(free),
                    None => complaint(true).and_then(|_| complaint(false)),
                };
                if let Some(wrong) = wrong {
                    panic!(
                        "{} gradients in a group of {group:?} under {:?}: {wrong}",
                        T::NAME,
                        floored.floor
                    );
                }
            }
        });
    }
}

/// A group whose KL is exactly 2 is free under a floor of 2 and counts under the number below that.
fn exactly_at_the_floor<T: Dtype>()
where
    T::Math: Dtype,
{
    let (math, group_of) = (Format::of_math::<T>(), |size: usize| if size == 1 { 1 } else { 4 });
    let shapes = [(1, 37), (4, 36), (16, 48), (19, 38), (100, 100)];
    for &(group, columns) in if cfg!(miri) { &shapes[1..2] } else { &shapes[..] } {
        // With logvar = 0 the KL is mu^2 / 2: one of mu = 2, or four of mu = 1; the last group has another 2.
        let (rows, parts) = (if cfg!(miri) { 1 } else { 3 }, group_of(group));
        let of_column = |column: usize| {
            let (inside, last) = (column % group, column / group + 1 == columns / group);
            let part = if parts == 1 { 2.0 } else { 1.0 };
            let size = parts * if last && group > parts { 2 } else { 1 };
            T::nearest(if inside < size { part } else { 0.0 })
        };
        let mu: Vec<T> = (0..rows * columns).map(|at| of_column(at % columns)).collect();
        let logvar = vec![T::ZERO; rows * columns];
        let matrix = |data| Matrix::contiguous(data, rows, columns);
        let grad = vec![T::Math::nearest(3.0); rows];
        let floors = [2.0 - math.ulp(1.0), 2.0, 2.0 + math.ulp(2.0)];
        for floor in floors {
            let free_bits = FreeBits { floor, group };
            let kl_of = |column: usize| -> f64 {
                let first = column / group * group;
                (first..first + group).map(|at| of_column(at).into()).map(|mu: f64| mu * mu / 2.0).sum()
            };
            let counted = (0..columns).step_by(group).map(|first| kl_of(first).max(floor)).sum::<f64>();
            under_every_execution(rows * columns, |execution| {
                let mut kl = vec![T::Math::nearest(0.0); rows];
                let target = KlTarget::Rows(&mut kl);
                ops::free_bits_forward(execution, matrix(&mu), matrix(&logvar), free_bits, None, target);
                let (mut of_mu, mut of_logvar) = (vec![T::ZERO; mu.len()], vec![T::ZERO; mu.len()]);
                ops::free_bits_backward(
                    execution,
                    matrix(&mu),
                    matrix(&logvar),
                    free_bits,
                    None,
                    Matrix::contiguous(&grad, rows, 1),
                    [&mut of_mu, &mut of_logvar],
                );
                for kl in kl {
                    assert!(
                        (kl.into() - counted).abs() <= 8.0 * math.epsilon() * counted,
                        "{kl:?} {counted}"
                    );
                }
                for (at, (&of_mu, &of_logvar)) in of_mu.iter().zip(&of_logvar).enumerate() {
                    let column = at % columns;
                    let expected = if kl_of(column) <= floor { 0.0 } else { 3.0 * mu[at].into() };
                    assert_eq!(of_mu.into(), expected, "{} groups of {group}, floor {floor}", T::NAME);
                    assert_eq!(of_logvar.into(), 0.0);
                }
            });
        }
    }
}

/// Calls a function of this file with every dtype.
macro_rules! for_every_dtype {
    ($kernel:ident $(, $argument:expr)*) => {
        $kernel::<f32>($($argument),*);
        $kernel::<f64>($($argument),*);
        $kernel::<bf16>($($argument),*);
        $kernel::<f16>($($argument),*);
    };
}

/// Every group and floor.
fn floors() -> impl Strategy<Value = Floor> {
    (any::<u64>(), any::<u64>()).prop_map(|(group, floor)| Floor { group, floor })
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
    fn the_kl_with_free_bits_is_right(case in cases(), floor in floors()) {
        for_every_dtype!(free_bits_forward, &case, floor);
    }

    #[test]
    fn gradients_with_free_bits_are_right(case in cases(), floor in floors()) {
        for_every_dtype!(free_bits_backward, &case, floor);
    }

    #[test]
    fn noise_is_right(case in cases(), draw: u32, first in 0_u64..1 << 63) {
        let (rows, columns) = case.shape;
        let scattered = |row: usize| first.wrapping_mul(row as u64 | 1) >> 1;
        let listed: Vec<i64> = (0..rows).map(|row| scattered(row) as i64).collect();
        let consecutive = (Rows::From(first), (0..rows as u64).map(|row| first + row).collect::<Vec<_>>());
        for (rows_of_noise, numbers) in [consecutive, (Rows::Listed(&listed), (0..rows).map(scattered).collect())] {
            let noise = Noise { seed: case.seed, draw, rows: rows_of_noise };
            under_every_execution(case.elements(), |execution| {
                let (mut uniforms, mut normals) = (vec![-1.0; case.elements()], vec![-1.0; case.elements()]);
                noise::sample::<Uniform>(execution, &noise, rows, columns, &mut uniforms);
                noise::sample::<Normal>(execution, &noise, rows, columns, &mut normals);
                for ((row, column), (uniform, normal)) in case.places().zip(uniforms.iter().zip(normals)) {
                    let number = numbers[row];
                    assert_eq!(f64::from(*uniform), truth::uniform(case.seed, draw, number, column));
                    let truth = truth::normal(case.seed, draw, number, column);
                    check::<f32>("normal", normal, truth, Format::of::<f32>());
                }
            });
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
fn a_group_exactly_at_the_floor_has_no_gradient_and_one_just_above_has_all() {
    for_every_dtype!(exactly_at_the_floor);
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
