//! The KL from a Gaussian prior.

#![allow(unsafe_code)]

use super::kl::{KlInput, KlOutput};
use super::{Strided, execution, product, run, with_dtype};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::ops::{self, Gaussians};
use fastvae_core::{Element, Matrix};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The memory of the four parameters of a KL between Gaussians.
fn gaussians_memory<T>(rows: usize, columns: usize, inputs: [Strided; 4]) -> PyResult<[Memory; 4]> {
    let memory = |name, i: usize| Memory::of_matrix::<T>(name, inputs[i].0, rows, columns, inputs[i].1);
    Ok([memory("mu", 0)?, memory("logvar", 1)?, memory("prior_mu", 2)?, memory("prior_logvar", 3)?])
}

/// # Safety
/// As [`Memory::read`].
unsafe fn gaussians<'a, T>(
    memory: [Memory; 4],
    rows: usize,
    columns: usize,
    inputs: [Strided; 4],
) -> Gaussians<'a, T> {
    // SAFETY: the caller's promise.
    let matrix = |i: usize| Matrix::new(unsafe { memory[i].read::<T>() }, rows, columns, inputs[i].1);
    Gaussians { mu: matrix(0), logvar: matrix(1), prior_mu: matrix(2), prior_logvar: matrix(3) }
}

/// The KL from a Gaussian prior; `inputs` are mu, logvar, prior mu and prior logvar.
#[pyfunction]
pub(crate) fn prior_forward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    inputs: [Strided; 4],
    kl_kind: u8,
    kl: usize,
    threads: usize,
) -> PyResult<()> {
    let elements = product(rows, columns)?;
    let execution = execution(threads)?;
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let memory = gaussians_memory::<T>(rows, columns, inputs)?;
        let kl_output = KlOutput::new::<M>(kl_kind, kl, rows, columns)?;
        check_disjoint::<M, T>(&[kl_output.memory], &memory)?;
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, made kl for it, and kl shares
            // memory with none of them.
            let (gaussians, kl) =
                unsafe { (gaussians::<T>(memory, rows, columns, inputs), kl_output.target::<M>()) };
            ops::prior_forward(execution, gaussians, kl);
        });
        Ok(())
    })
}

/// The gradients of [`prior_forward`] with respect to its four inputs.
#[pyfunction]
pub(crate) fn prior_backward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    inputs: [Strided; 4],
    kl_kind: u8,
    grad_kl: Strided,
    grads: [usize; 4],
    threads: usize,
) -> PyResult<()> {
    let elements = product(rows, columns)?;
    let execution = execution(threads)?;
    if kl_kind == 0 {
        return Err(PyValueError::new_err("there is no gradient to pass on"));
    }
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let memory = gaussians_memory::<T>(rows, columns, inputs)?;
        let kl_input = KlInput::new::<M>(kl_kind, grad_kl, rows, columns)?;
        let output = |i: usize| Memory::new::<T>("a gradient", grads[i], elements);
        let outputs = [output(0)?, output(1)?, output(2)?, output(3)?];
        check_disjoint::<T, T>(&outputs, &memory)?;
        check_disjoint::<T, M>(&outputs, &[kl_input.memory])?;
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, made the gradients for it, and no
            // output shares memory with anything else.
            let (gaussians, kl, grads) = unsafe {
                (
                    gaussians::<T>(memory, rows, columns, inputs),
                    kl_input.grad::<M>(),
                    outputs.map(|output| output.write::<T>()),
                )
            };
            ops::prior_backward(execution, gaussians, kl, grads);
        });
        Ok(())
    })
}
