//! Kernels of fastvae: counter-based noise, reparametrized sampling, Gaussian KL and the log-probabilities of
//! data, forward and backward.
//!
//! This crate knows neither Python nor torch. A tensor is a [`Matrix`] of rows with unit-stride columns; the
//! maths of each operation is one generic body over sixteen lanes, compiled once for every instruction-set
//! [`Level`] and chosen at run time. All levels, thread counts and chunkings give the same bits: see
//! `DESIGN.md` for how, and `docs/noise.md` for the noise contract.

mod element;
mod kl;
// Vectors of a level are sound only where the processor has it: they stay inside, behind `Level`.
mod lanes;
mod level;
mod math;
mod matrix;
pub mod noise;
pub mod ops;
mod philox;
mod split;

pub use element::Element;
pub use level::Level;
pub use matrix::Matrix;
pub use noise::{Noise, Rows};
pub use split::{Pool, lend_pool};

/// How a kernel is to be run; the numbers it gives do not depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Execution {
    /// Instruction set of the kernel bodies.
    pub level: Level,
    /// At most this many threads, the calling one included.
    pub threads: usize,
}
