//! Free bits: the KL from the standard normal, counted in groups that are free up to a floor.
//!
//! A latent contributes the sum over its groups of max(floor, KL of the group) (Kingma et al. 2016, equation 15),
//! and a group at or below the floor has no gradient. What decides is the sum of a group, so a stretch of a row is
//! computed into a buffer first; the stretch ends where a group does.

use super::KlTarget;
use super::latent::gradients;
use super::sum::Sum;
use crate::element::{Element, Vector};
use crate::kl::Ratio;
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::math::deviation;
use crate::noise::{Noise, Normal, Visit, walk, walk_quietly};
use crate::split::{Span, for_each, pieces, threads_for};
use crate::{Execution, Matrix};

/// Elements that are worked on at a time where groups allow it: they and their KL stay in the first cache.
const BLOCK: usize = 4096;

/// How much of a KL is free.
#[derive(Clone, Copy, Debug)]
pub struct FreeBits {
    /// What a group counts at least, in nats.
    pub floor: f64,
    /// Neighbouring columns that form a group; it divides the number of columns.
    pub group: usize,
}

impl FreeBits {
    /// How a matrix is cut: into whole rows, or stretches of a row that begin where both a group and a slot do.
    fn spans(self, rows: usize, columns: usize) -> Vec<Span> {
        if rows == 0 || columns == 0 {
            return Vec::new();
        }
        let (length, step) = (self.stretch(columns), (BLOCK / columns).max(1));
        let mut spans = Vec::new();
        for row in (0..rows).step_by(step) {
            for column in (0..columns).step_by(length) {
                let columns = length.min(columns - column);
                spans.push(Span { row, rows: step.min(rows - row), column, columns });
            }
        }
        spans
    }

    /// Columns of a stretch.
    fn stretch(self, columns: usize) -> usize {
        // The least common multiple of the group and the lanes, whose number is a power of two.
        let unit = self.group << (LANES.trailing_zeros() - self.group.trailing_zeros().min(4));
        if columns <= BLOCK { columns } else { columns.min((BLOCK / unit).max(1) * unit) }
    }

    fn check<T>(self, mu: &Matrix<T>, logvar: &Matrix<T>) -> (usize, usize) {
        let (rows, columns) = (mu.rows(), mu.columns());
        assert_eq!((rows, columns), (logvar.rows(), logvar.columns()), "mu and logvar differ in shape");
        assert!(self.group > 0 && columns.is_multiple_of(self.group), "groups divide a row");
        (rows, columns)
    }

    /// The sum over the groups of a stretch, in `f64`.
    #[inline(always)]
    fn floored<V: Floats>(self, kl: &[V::Scalar]) -> f64 {
        let floor = V::Scalar::from_f64(self.floor);
        if self.group > 1 {
            let mut total = 0.0;
            for group in kl.chunks_exact(self.group) {
                total += counted(group_sum::<V>(group), floor);
            }
            return total;
        }
        let (whole, rest) = kl.as_chunks::<LANES>();
        let mut sum = Sum::<V>::new();
        for vector in whole {
            sum.add(V::load(vector).at_least(V::splat(floor)));
        }
        let mut total = sum.finish();
        for &kl in rest {
            total += counted(kl, floor);
        }
        total
    }

    /// Puts the gradient in the place of the KL of every element, and 0 where its group is free.
    #[inline(always)]
    fn replace_by_gradient<V: Floats>(self, kl: &mut [V::Scalar], gradient: V::Scalar) {
        let floor = V::Scalar::from_f64(self.floor);
        if self.group == 1 {
            for kl in kl {
                *kl = if *kl <= floor { V::Scalar::ZERO } else { gradient };
            }
            return;
        }
        for group in kl.chunks_exact_mut(self.group) {
            let free = group_sum::<V>(group) <= floor;
            group.fill(if free { V::Scalar::ZERO } else { gradient });
        }
    }
}

/// What a group counts; NaN stays.
#[inline(always)]
fn counted<M: Scalar>(kl: M, floor: M) -> f64 {
    if kl <= floor { floor.into() } else { kl.into() }
}

/// The KL of a group, a sum whose shape depends on its length alone.
#[inline(always)]
fn group_sum<V: Floats>(group: &[V::Scalar]) -> V::Scalar {
    if group.len() < LANES {
        let mut total = 0.0;
        for &kl in group {
            let kl: f64 = kl.into();
            total += kl;
        }
        return V::Scalar::from_f64(total);
    }
    let mut sum = Sum::<V>::new();
    for at in (0..group.len()).step_by(LANES) {
        sum.add(load(group, at));
    }
    V::Scalar::from_f64(sum.finish())
}

/// The KL of a slot from the standard normal.
#[inline(always)]
fn kl_of<T: Element, L: Vectors>(mu: Vector<T, L>, logvar: Vector<T, L>) -> Vector<T, L> {
    Ratio::to_unit(deviation(logvar)).kl(mu)
}

/// As [`super::latent_forward`], with free bits; the KL is summed per row or in total.
///
/// # Panics
/// If the shapes of the arguments differ, groups do not divide a row, or the KL is to go elsewhere.
pub fn free_bits_forward<T: Element>(
    execution: Execution,
    mu: Matrix<T>,
    logvar: Matrix<T>,
    free_bits: FreeBits,
    sample: Option<(&Noise, &mut [T])>,
    kl: KlTarget<T::Math>,
) {
    let (rows, columns) = free_bits.check(&mu, &logvar);
    let spans = free_bits.spans(rows, columns);
    let (noise, z) = match sample {
        Some((noise, z)) => {
            assert_eq!(z.len(), rows * columns, "z has the wrong length");
            (Some(noise), z)
        }
        None => (None, &mut [] as &mut [T]),
    };
    let samples = pieces(z, spans.iter().map(|span| if noise.is_some() { span.elements() } else { 0 }));
    let stretches = if columns == 0 { 1 } else { columns.div_ceil(free_bits.stretch(columns)) };
    let mut sums = vec![0.0; rows * stretches];
    let items: Vec<_> = spans
        .iter()
        .zip(samples)
        .zip(pieces(&mut sums, spans.iter().map(|span| span.rows)))
        .map(|((&span, z), sums)| Forward { mu, logvar, free_bits, noise, span, z, sums })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
    match kl {
        KlTarget::Rows(all) => {
            assert_eq!(all.len(), rows, "one value per row");
            for (of_row, parts) in all.iter_mut().zip(sums.chunks(stretches)) {
                *of_row = T::Math::from_f64(parts.iter().sum());
            }
        }
        KlTarget::Total(total) => *total = T::Math::from_f64(sums.iter().sum()),
        _ => panic!("free bits are summed per row or in total"),
    }
}

struct Forward<'a, T: Element> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    free_bits: FreeBits,
    noise: Option<&'a Noise<'a>>,
    span: Span,
    z: &'a mut [T],
    /// One for each row of the span.
    sums: &'a mut [f64],
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let (span, noise) = (self.span, self.noise);
        let kl = vec![T::Math::ZERO; span.columns];
        match noise {
            Some(noise) => walk::<L, Normal>(noise, span, &mut ForwardSlots::<T, true> { work: self, kl }),
            None => walk_quietly::<L>(span, &mut ForwardSlots::<T, false> { work: self, kl }),
        }
    }
}

struct ForwardSlots<'a, T: Element, const SAMPLE: bool> {
    work: Forward<'a, T>,
    /// Of the elements of a row.
    kl: Vec<T::Math>,
}

impl<T: Element, L: Vectors, const SAMPLE: bool> Visit<L> for ForwardSlots<'_, T, SAMPLE> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Forward { mu, logvar, free_bits, span, z, sums, .. } = &mut self.work;
        let (stretch, at) = span.stretch(row, column);
        let m = T::load::<L>(mu.within(row, *span), at);
        let l = T::load::<L>(logvar.within(row, *span), at);
        if SAMPLE {
            let sigma = deviation(l);
            T::store::<L>(m.add(sigma.times(T::Math::from_f32::<L>(noise))), &mut z[stretch], at);
        }
        store(kl_of::<T, L>(m, l), &mut self.kl, at);
        if at + LANES >= span.columns {
            sums[row - span.row] = free_bits.floored::<Vector<T, L>>(&self.kl);
        }
    }
}

/// The gradients of [`free_bits_forward`], with the noise drawn again.
///
/// `sample` is the noise and the gradient of z, `kl` the gradient of the KL, one per row (a matrix of one column).
///
/// # Panics
/// If the shapes of the arguments differ, or groups do not divide a row.
pub fn free_bits_backward<T: Element>(
    execution: Execution,
    mu: Matrix<T>,
    logvar: Matrix<T>,
    free_bits: FreeBits,
    sample: Option<(&Noise, Matrix<T>)>,
    kl: Matrix<T::Math>,
    [grad_mu, grad_logvar]: [&mut [T]; 2],
) {
    let (rows, columns) = free_bits.check(&mu, &logvar);
    assert_eq!((rows, 1), (kl.rows(), kl.columns()), "one gradient per row");
    if let Some((_, grad)) = &sample {
        assert_eq!((rows, columns), (grad.rows(), grad.columns()), "one gradient per value of z");
    }
    for grad in [&grad_mu, &grad_logvar] {
        assert_eq!(grad.len(), rows * columns, "a gradient has the wrong length");
    }
    let spans = free_bits.spans(rows, columns);
    let mu_pieces = pieces(grad_mu, spans.iter().map(Span::elements));
    let logvar_pieces = pieces(grad_logvar, spans.iter().map(Span::elements));
    let items: Vec<_> = spans
        .iter()
        .zip(mu_pieces.zip(logvar_pieces))
        .map(|(&span, (grad_mu, grad_logvar))| Backward {
            inputs: Inputs { mu, logvar, free_bits, kl, span },
            sample,
            grad_mu,
            grad_logvar,
        })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
}

#[derive(Clone, Copy)]
struct Inputs<'a, T: Element> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    free_bits: FreeBits,
    kl: Matrix<'a, T::Math>,
    span: Span,
}

struct Backward<'a, T: Element> {
    inputs: Inputs<'a, T>,
    sample: Option<(&'a Noise<'a>, Matrix<'a, T>)>,
    grad_mu: &'a mut [T],
    grad_logvar: &'a mut [T],
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let (inputs, sample) = (self.inputs, self.sample);
        let mut gradients = vec![T::Math::ZERO; inputs.span.elements()];
        walk_quietly::<L>(inputs.span, &mut KlGradients::<T> { inputs, gradients: &mut gradients });
        if let Some((noise, _)) = sample {
            let mut slots = BackwardSlots::<T, true> { work: self, gradients: &gradients };
            walk::<L, Normal>(noise, inputs.span, &mut slots);
        } else {
            let mut slots = BackwardSlots::<T, false> { work: self, gradients: &gradients };
            walk_quietly::<L>(inputs.span, &mut slots);
        }
    }
}

/// Finds what gradient reaches the KL of every element of a span.
struct KlGradients<'a, 'b, T: Element> {
    inputs: Inputs<'a, T>,
    gradients: &'b mut [T::Math],
}

impl<T: Element, L: Vectors> Visit<L> for KlGradients<'_, '_, T> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, _: L::F32) {
        let Inputs { mu, logvar, free_bits, kl, span } = self.inputs;
        let (stretch, at) = span.stretch(row, column);
        let m = T::load::<L>(mu.within(row, span), at);
        let l = T::load::<L>(logvar.within(row, span), at);
        let of_row = &mut self.gradients[stretch];
        store(kl_of::<T, L>(m, l), of_row, at);
        if at + LANES >= span.columns {
            free_bits.replace_by_gradient::<Vector<T, L>>(of_row, kl.stretch(row, 0, 1)[0]);
        }
    }
}

struct BackwardSlots<'a, 'b, T: Element, const SAMPLE: bool> {
    work: Backward<'a, T>,
    gradients: &'b [T::Math],
}

impl<T: Element, L: Vectors, const SAMPLE: bool> Visit<L> for BackwardSlots<'_, '_, T, SAMPLE> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Backward { inputs: Inputs { mu, logvar, span, .. }, sample, grad_mu, grad_logvar } =
            &mut self.work;
        let (stretch, at) = span.stretch(row, column);
        let m = T::load::<L>(mu.within(row, *span), at);
        let sigma = deviation(T::load::<L>(logvar.within(row, *span), at));
        let g_kl = load::<Vector<T, L>>(&self.gradients[stretch.clone()], at);
        let g_z = match sample {
            Some((_, grad)) if SAMPLE => T::load::<L>(grad.within(row, *span), at),
            _ => g_kl,
        };
        let eps = T::Math::from_f32::<L>(noise);
        let [of_mu, of_logvar] = gradients::<_, SAMPLE, true>(sigma, m, eps, g_z, g_kl);
        T::store::<L>(of_mu, &mut grad_mu[stretch.clone()], at);
        T::store::<L>(of_logvar, &mut grad_logvar[stretch], at);
    }
}
