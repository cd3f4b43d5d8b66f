//! Several samples of one posterior, and the logarithm of the importance weight of each.
//!
//! With z = mu + sigma eps, log p(z) - log q(z | x) = 1/2 sum(eps^2 + logvar - z^2): the constants of the two
//! densities cancel. The difference of squares is a product, (eps - z)(eps + z), whose first factor
//! -(mu + (sigma - 1) eps) comes without cancellation from sigma - 1: where the posterior is the prior, the
//! weight is exactly 1.

use super::sum::{RUN, RowSum};
use super::{KlPiece, KlTarget, distribute, finish};
use crate::element::{Element, Vector};
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::math::exponential;
use crate::noise::{Noise, Normal, Visit, walk};
use crate::split::{SEGMENT, Span, finer, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};

/// Elements that the backward sums over the samples at a time: its buffers stay in the first cache, and the few
/// latents of a batch still make work for several threads.
const SUMMED: usize = 1024;

/// `samples` times z = mu + exp(logvar / 2) * eps into `z`, and log p(z) - log q(z | x) in nats, one per row of
/// every sample, into `log_weight`; both contiguous, sample by sample.
///
/// Sample `k` has the noise of draw `noise.draw + k`.
///
/// # Panics
/// If the shapes of the arguments differ, or the draws do not fit in 32 bits.
pub fn log_weight_forward<T: Element>(
    execution: Execution,
    mu: Matrix<T>,
    logvar: Matrix<T>,
    noise: &Noise,
    samples: usize,
    z: &mut [T],
    log_weight: &mut [T::Math],
) {
    let (rows, columns) = (mu.rows(), mu.columns());
    assert_eq!((rows, columns), (logvar.rows(), logvar.columns()), "mu and logvar differ in shape");
    assert_eq!(z.len(), samples * rows * columns, "z has the wrong length");
    assert_eq!(log_weight.len(), samples * rows, "one weight per row and sample");
    check_draws(noise, samples);
    let spans = spans(rows, columns);
    // A small matrix is one span: several samples of it make up one piece of work.
    let together = if spans.len() == 1 { (SEGMENT / (rows * columns)).max(1) } else { 1 };
    let firsts: Vec<_> = (0..samples).step_by(together).collect();
    let works = firsts.iter().flat_map(|&first| {
        let samples = together.min(samples - first);
        spans.iter().map(move |&span| (first, samples, span))
    });
    // What a piece of work writes is contiguous: that of a stretch of as many rows.
    let stacked: Vec<_> =
        works.clone().map(|(_, samples, span)| Span { rows: samples * span.rows, ..span }).collect();
    let mut partials = Vec::new();
    let mut target = KlTarget::Rows(log_weight);
    let mut items: Vec<_> = works
        .zip(pieces(z, stacked.iter().map(Span::elements)))
        .zip(distribute(&mut target, &mut partials, &stacked, columns))
        .map(|(((first, samples, span), z), log_weight)| Forward {
            mu,
            logvar,
            noise: Noise { draw: noise.draw + first as u32, ..*noise },
            samples,
            span,
            z,
            log_weight,
        })
        .collect();
    // All samples of a span after each other: its parameters are read once.
    items.sort_by_key(|item| (item.span.row, item.span.column));
    for_each(items, threads_for(z_elements(samples, rows, columns), execution.threads), |item| {
        dispatch(execution.level, item);
    });
    finish(&mut target, &partials, columns);
}

fn z_elements(samples: usize, rows: usize, columns: usize) -> usize {
    samples * rows * columns
}

fn check_draws(noise: &Noise, samples: usize) {
    assert!(u64::from(noise.draw) + samples as u64 <= 1 << 32, "the draws do not fit in 32 bits");
}

struct Forward<'a, T: Element> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    noise: Noise<'a>,
    samples: usize,
    span: Span,
    z: &'a mut [T],
    log_weight: KlPiece<'a, T::Math>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let (span, first, samples) = (self.span, self.noise, self.samples);
        let mut slots = ForwardSlots::<T, L> { work: self, sum: RowSum::new(span), sample: 0 };
        for sample in 0..samples {
            slots.sample = sample;
            walk::<L, Normal>(&Noise { draw: first.draw + sample as u32, ..first }, span, &mut slots);
        }
    }
}

struct ForwardSlots<'a, T: Element, L: Vectors> {
    work: Forward<'a, T>,
    sum: RowSum<Vector<T, L>>,
    /// Counted from the first of the work.
    sample: usize,
}

impl<T: Element, L: Vectors> Visit<L> for ForwardSlots<'_, T, L> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Forward { mu, logvar, span, z, log_weight, .. } = &mut self.work;
        let (stretch, at) = span.stretch(row, column);
        let m = T::load::<L>(mu.within(row, *span), at);
        let l = T::load::<L>(logvar.within(row, *span), at);
        let eps = T::Math::from_f32::<L>(noise);
        let e = exponential(l.mul(Vector::<T, L>::splat(T::Math::HALF)));
        let value = m.add(e.times(eps));
        let of_sample = &mut z[self.sample * span.elements()..][..span.elements()];
        T::store::<L>(value, &mut of_sample[stretch], at);
        // Where the row has ended, mu = logvar = 0 make this 0, whatever the noise.
        let twice = l.sub(e.growth.fma(eps, m).mul(eps.add(value)));
        if let Some(of_row) = self.sum.add(twice, at) {
            match log_weight {
                KlPiece::Rows(all) => {
                    all[self.sample * span.rows + row - span.row] = T::Math::from_f64(0.5 * of_row);
                }
                KlPiece::Partial(partial) => **partial = 0.5 * of_row,
                _ => {}
            }
        }
    }
}

/// The gradients of [`log_weight_forward`] with respect to mu and logvar, summed over the samples, with the noise
/// drawn again.
///
/// `grad_z` has a row for every row of every sample, `grad_log_weight` a column of them; at least one is there.
/// The sum over the samples is of fixed shape: runs of eight in the type itself, `f64` from there on.
///
/// # Panics
/// If the shapes of the arguments differ, the draws do not fit in 32 bits, or there is no gradient.
pub fn log_weight_backward<T: Element>(
    execution: Execution,
    mu: Matrix<T>,
    logvar: Matrix<T>,
    noise: &Noise,
    samples: usize,
    grad_z: Option<Matrix<T>>,
    grad_log_weight: Option<Matrix<T::Math>>,
    [grad_mu, grad_logvar]: [&mut [T]; 2],
) {
    let (rows, columns) = (mu.rows(), mu.columns());
    assert_eq!((rows, columns), (logvar.rows(), logvar.columns()), "mu and logvar differ in shape");
    assert!(grad_z.is_some() || grad_log_weight.is_some(), "there is no gradient to pass on");
    if let Some(grad) = &grad_z {
        assert_eq!((samples * rows, columns), (grad.rows(), grad.columns()), "one gradient per value of z");
    }
    if let Some(grad) = &grad_log_weight {
        assert_eq!((samples * rows, 1), (grad.rows(), grad.columns()), "one gradient per weight");
    }
    for grad in [&grad_mu, &grad_logvar] {
        assert_eq!(grad.len(), rows * columns, "a gradient has the wrong length");
    }
    check_draws(noise, samples);
    let spans = finer(&spans(rows, columns), SUMMED);
    let mu_pieces = pieces(grad_mu, spans.iter().map(Span::elements));
    let logvar_pieces = pieces(grad_logvar, spans.iter().map(Span::elements));
    let items: Vec<_> = spans
        .iter()
        .zip(mu_pieces.zip(logvar_pieces))
        .map(|(&span, outputs)| Backward {
            mu,
            logvar,
            noise: *noise,
            samples,
            grad_z,
            grad_log_weight,
            span,
            outputs: outputs.into(),
        })
        .collect();
    for_each(items, threads_for(z_elements(samples, rows, columns), execution.threads), |item| {
        dispatch(execution.level, item);
    });
}

struct Backward<'a, T: Element> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    noise: Noise<'a>,
    samples: usize,
    grad_z: Option<Matrix<'a, T>>,
    grad_log_weight: Option<Matrix<'a, T::Math>>,
    span: Span,
    outputs: [&'a mut [T]; 2],
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        match (self.grad_z.is_some(), self.grad_log_weight.is_some()) {
            (true, true) => self.run_with::<L, true, true>(),
            (true, false) => self.run_with::<L, true, false>(),
            (false, _) => self.run_with::<L, false, true>(),
        }
    }
}

impl<T: Element> Backward<'_, T> {
    #[inline(always)]
    fn run_with<L: Vectors, const SAMPLE: bool, const WEIGHT: bool>(self) {
        let (span, first, samples) = (self.span, self.noise, self.samples);
        let sums = [SampleSum::<T::Math>::new(span, samples), SampleSum::new(span, samples)];
        let mut slots = BackwardSlots::<T, SAMPLE, WEIGHT> { work: self, sums, sample: 0 };
        for sample in 0..samples {
            slots.sample = sample;
            walk::<L, Normal>(&Noise { draw: first.draw + sample as u32, ..first }, span, &mut slots);
            if sample % RUN == RUN - 1 || sample == samples - 1 {
                for sum in &mut slots.sums {
                    sum.flush::<L>();
                }
            }
        }
        for (sum, output) in slots.sums.iter().zip(slots.work.outputs) {
            for at in (0..output.len()).step_by(LANES) {
                T::store::<L>(sum.total::<L>(at), output, at);
            }
        }
    }
}

struct BackwardSlots<'a, T: Element, const SAMPLE: bool, const WEIGHT: bool> {
    work: Backward<'a, T>,
    sums: [SampleSum<T::Math>; 2],
    sample: usize,
}

impl<T: Element, L: Vectors, const SAMPLE: bool, const WEIGHT: bool> Visit<L>
    for BackwardSlots<'_, T, SAMPLE, WEIGHT>
{
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Backward { mu, logvar, grad_z, grad_log_weight, span, .. } = &self.work;
        let half = Vector::<T, L>::splat(T::Math::HALF);
        let (stretch, at) = span.stretch(row, column);
        let of_sample = self.sample * mu.rows() + row;
        let e = exponential(T::load::<L>(logvar.within(row, *span), at).mul(half));
        let step = e.times(T::Math::from_f32::<L>(noise));
        // What reaches z, by itself and by way of the weight, whose own part is -z.
        let mut of_z = half;
        let mut of_logvar = half;
        if SAMPLE && let Some(grad) = grad_z {
            of_z = T::load::<L>(grad.within(of_sample, *span), at);
        }
        if WEIGHT && let Some(grad) = grad_log_weight {
            let g = Vector::<T, L>::splat(grad.stretch(of_sample, 0, 1)[0]);
            let z = T::load::<L>(mu.within(row, *span), at).add(step);
            let zero = Vector::<T, L>::splat(T::Math::ZERO);
            let towards_prior = zero.sub(z);
            of_z = if SAMPLE { g.fma(towards_prior, of_z) } else { g.mul(towards_prior) };
            of_logvar = g.mul(half);
        }
        let chain = of_z.mul(half);
        of_logvar = if WEIGHT { chain.fma(step, of_logvar) } else { chain.mul(step) };
        let [sum_mu, sum_logvar] = &mut self.sums;
        let first = self.sample.is_multiple_of(RUN);
        sum_mu.add::<L>(of_z, first, stretch.clone(), at);
        sum_logvar.add::<L>(of_logvar, first, stretch, at);
    }
}

/// One sum over the samples for each element of a span: runs in the type itself, added up in `f64`.
struct SampleSum<M> {
    run: Vec<M>,
    /// Empty where all samples are one run.
    totals: Vec<[f64; LANES]>,
}

impl<M: Arithmetic> SampleSum<M> {
    fn new(span: Span, samples: usize) -> Self {
        let elements = span.elements();
        let totals = if samples > RUN { elements.div_ceil(LANES) } else { 0 };
        Self { run: vec![M::ZERO; elements], totals: vec![[0.0; LANES]; totals] }
    }

    /// Takes the slot that begins `at` elements into a stretch; the first sample of a run begins it.
    #[inline(always)]
    fn add<L: Vectors>(
        &mut self,
        value: M::Vector<L>,
        first: bool,
        stretch: core::ops::Range<usize>,
        at: usize,
    ) {
        let of_row = &mut self.run[stretch];
        let sum = if first { value } else { load::<M::Vector<L>>(of_row, at).add(value) };
        store(sum, of_row, at);
    }

    /// Ends a run.
    #[inline(always)]
    fn flush<L: Vectors>(&mut self) {
        for (index, total) in self.totals.iter_mut().enumerate() {
            load::<M::Vector<L>>(&self.run, index * LANES).add_to(total);
        }
    }

    /// The sums of the elements from `at`, a multiple of the lanes, on.
    #[inline(always)]
    fn total<L: Vectors>(&self, at: usize) -> M::Vector<L> {
        if self.totals.is_empty() {
            return load(&self.run, at);
        }
        let mut lanes = [M::ZERO; LANES];
        for (lane, &total) in lanes.iter_mut().zip(&self.totals[at / LANES]) {
            *lane = M::from_f64(total);
        }
        M::Vector::<L>::load(&lanes)
    }
}
