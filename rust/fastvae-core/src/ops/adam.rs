//! Adam, whose step does nothing unless every number is finite.
//!
//! The formulas, and so the bits, are those of the Triton kernels for CUDA (`python/fastvae/ops/triton/adam.py`).
//!
//! An average that has faded to the end of the normal numbers becomes 0. Where a weight has no gradient for hundreds of steps,
//! as one of a rare pixel or behind a `ReLU` that gives nothing, its average would fade into the subnormal numbers and,
//! rounded up each time, stay there: processors take several times as long for these, and nothing moves by them.

use crate::Execution;
use crate::lanes::{Floats, LANES, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::split::{for_each, threads_for};
use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::TryReserveError;

/// Elements that a thread takes at a time.
const CHUNK: usize = 1 << 15;

/// Vectors that are looked at side by side, so that none waits for the sum of another.
const SIDE_BY_SIDE: usize = 4;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Adam with decoupled weight decay (Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2), for
/// some tensors.
#[derive(Debug)]
pub struct Adam {
    betas: [f32; 2],
    eps: f64,
    states: Vec<State>,
}

/// A tensor that may be moved: its numbers, and its gradient.
pub type Trained<'a> = (&'a mut [f32], &'a [f32]);

/// All that is kept of a tensor from one step to the next.
#[derive(Debug)]
pub struct Averages<'a> {
    /// Of its gradient.
    pub means: &'a mut [f32],
    /// Of the square of its gradient.
    pub squares: &'a mut [f32],
    /// beta1^t and beta2^t after t steps.
    pub powers: &'a mut [f64; 2],
}

impl Adam {
    /// Before the first step: for each tensor its length, its learning rate and its weight decay.
    ///
    /// The betas are above 1/2.
    ///
    /// # Errors
    /// If there is not enough memory for the averages.
    pub fn new(
        betas: [f32; 2],
        eps: f64,
        tensors: impl IntoIterator<Item = (usize, f64, f64)>,
    ) -> Result<Self, TryReserveError> {
        let state = |(length, rate, weight_decay)| -> Result<_, TryReserveError> {
            Ok(State {
                rate,
                decay: rate * weight_decay,
                powers: [1.0, 1.0],
                means: Aligned::zeros(length)?,
                squares: Aligned::zeros(length)?,
            })
        };
        Ok(Self { betas, eps, states: tensors.into_iter().map(state).collect::<Result<_, _>>()? })
    }

    /// The length of each tensor.
    #[must_use]
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = usize> {
        self.states.iter().map(|state| state.means.length)
    }

    /// What is kept of each tensor: with the same numbers written to it, another one goes on as this one would.
    pub fn averages(&mut self) -> impl ExactSizeIterator<Item = Averages<'_>> {
        self.states.iter_mut().map(|state| Averages {
            means: state.means.values(),
            squares: state.squares.values(),
            powers: &mut state.powers,
        })
    }

    /// Moves the tensors that are there, if all their gradients and all other numbers are finite; says whether it did. The
    /// gradients are looked at unless they are known to be.
    ///
    /// # Panics
    /// If there are not as many tensors, or a tensor or a gradient is not as long, as at the beginning.
    pub fn step(
        &mut self,
        execution: Execution,
        tensors: Vec<Option<Trained<'_>>>,
        others: &[&[f32]],
        known: bool,
    ) -> bool {
        assert_eq!(tensors.len(), self.states.len(), "one for each tensor");
        let gradients = tensors.iter().flatten().map(|(_, gradient)| *gradient).filter(|_| !known);
        if !all_finite(execution, &gradients.chain(others.iter().copied()).collect::<Vec<_>>()) {
            return false;
        }
        let (mut items, mut elements) = (Vec::new(), 0);
        for (state, tensor) in self.states.iter_mut().zip(tensors) {
            if let Some(tensor) = tensor {
                elements += tensor.0.len();
                items.extend(state.step(tensor, self.betas, self.eps));
            }
        }
        for_each(items, threads_for(elements, execution.threads), |item| dispatch(execution.level, item));
        true
    }
}

/// What Adam keeps of a tensor.
#[derive(Debug)]
struct State {
    rate: f64,
    /// Times the learning rate.
    decay: f64,
    /// beta1^t and beta2^t after t steps.
    powers: [f64; 2],
    /// Averages of the gradient and of its square.
    means: Aligned,
    squares: Aligned,
}

impl State {
    /// Counts a step, and gives what is to do for it, in pieces.
    fn step<'a>(
        &'a mut self,
        (values, gradient): Trained<'a>,
        betas: [f32; 2],
        eps: f64,
    ) -> impl Iterator<Item = Move<'a>> {
        for (power, beta) in self.powers.iter_mut().zip(betas) {
            *power *= f64::from(beta);
        }
        // rate m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), with one division for each element.
        let spread = (1.0 - self.powers[1]).sqrt();
        let step = (self.rate / (1.0 - self.powers[0]) * spread) as f32;
        let (floor, decay) = ((eps * spread) as f32, self.decay as f32);
        let (means, squares) = (self.means.values(), self.squares.values());
        for length in [values.len(), gradient.len()] {
            assert_eq!(length, means.len(), "a tensor stays as long as it was");
        }
        let averages = means.chunks_mut(CHUNK).zip(squares.chunks_mut(CHUNK));
        values.chunks_mut(CHUNK).zip(gradient.chunks(CHUNK)).zip(averages).map(
            move |((values, gradient), (means, squares))| Move {
                values,
                gradient,
                means,
                squares,
                betas,
                step,
                floor,
                decay,
            },
        )
    }
}

/// Numbers from the beginning of a line of the cache on, so that no vector of them lies in two.
#[derive(Debug)]
struct Aligned {
    memory: Vec<f32>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn zeros(length: usize) -> Result<Self, TryReserveError> {
        let (mut memory, room) = (Vec::<f32>::new(), length.saturating_add(LINE / size_of::<f32>()));
        memory.try_reserve_exact(room)?;
        memory.resize(room, 0.0);
        // A pointer that cannot be aligned, which only Miri has, gives more than there is.
        let start = memory.as_ptr().align_offset(LINE).min(room - length);
        Ok(Self { memory, start, length })
    }

    fn values(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..][..self.length]
    }
}

/// Whether no number is infinite or NaN.
fn all_finite(execution: Execution, tensors: &[&[f32]]) -> bool {
    let found = AtomicBool::new(false);
    let items: Vec<_> = tensors.iter().flat_map(|tensor| tensor.chunks(CHUNK)).collect();
    let elements = tensors.iter().map(|tensor| tensor.len()).sum();
    for_each(items, threads_for(elements, execution.threads), |values| {
        if !dispatch(execution.level, Finite(values)) {
            found.store(true, Ordering::Relaxed);
        }
    });
    !found.into_inner()
}

/// Whether no number of a slice is infinite or NaN.
pub(super) struct Finite<'a>(pub(super) &'a [f32]);

impl Kernel for Finite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<L: Vectors>(self) -> bool {
        let zero = L::F32::splat(0.0);
        // 0 times a finite number is 0, times any other NaN, which a sum keeps.
        let mut sums = [zero; SIDE_BY_SIDE];
        let (groups, rest) = self.0.as_chunks::<{ SIDE_BY_SIDE * LANES }>();
        for group in groups {
            for (sum, vector) in sums.iter_mut().zip(group.as_chunks().0) {
                *sum = sum.add(L::F32::load(vector).mul(zero));
            }
        }
        for at in (0..rest.len()).step_by(LANES) {
            sums[0] = sums[0].add(load::<L::F32>(rest, at).mul(zero));
        }
        let mut lanes = [0.0; LANES];
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).store(&mut lanes);
        lanes.iter().all(|lane| !lane.is_nan())
    }
}

/// A step of a piece of a tensor: a number moves by `step` times m / (sqrt(v) + floor), after it lost `decay` times itself.
struct Move<'a> {
    values: &'a mut [f32],
    gradient: &'a [f32],
    means: &'a mut [f32],
    squares: &'a mut [f32],
    betas: [f32; 2],
    step: f32,
    floor: f32,
    decay: f32,
}

impl Kernel for Move<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let Self { values, gradient, means, squares, betas, step, floor, decay } = self;
        let splat = L::F32::splat;
        let [keep_mean, keep_square] = betas.map(splat);
        // Exact, as the betas are above 1/2.
        let [take_mean, take_square] = betas.map(|beta| splat(1.0 - beta));
        // A difference: without decay it is 0 and not -0, and a weight of -0 stays what it is.
        let (step, floor, decay) = (splat(-step), splat(floor), splat(0.0 - decay));
        let (least, zero) = (splat(f32::MIN_POSITIVE), splat(0.0));
        for at in (0..values.len()).step_by(LANES) {
            let g = load::<L::F32>(gradient, at);
            let mean = keep_mean.fma(load(means, at), take_mean.mul(g));
            let mean = mean.select_within(least, zero, mean);
            let square = keep_square.fma(load(squares, at), take_square.mul(g.mul(g)));
            let square = square.select_within(least, zero, square);
            let ratio = mean.div(square.sqrt().add(floor));
            let value = load::<L::F32>(values, at);
            store(mean, means, at);
            store(square, squares, at);
            store(step.fma(ratio, decay.fma(value, value)), values, at);
        }
    }
}
