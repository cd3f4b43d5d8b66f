//! Several samples and the logarithms of their importance weights.

#![allow(unsafe_code)]

use super::{Strided, check_counters, execution, product, run, with_dtype};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::ops;
use fastvae_core::{Element, Matrix, Noise, Rows};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The rows of all samples together.
fn stacked(samples: usize, rows: usize, draw: u32) -> PyResult<usize> {
    if u64::from(draw).checked_add(samples as u64).is_none_or(|end| end > 1 << 32) {
        return Err(PyValueError::new_err(format!(
            "draws lie below 2^32; {samples} of them from {draw} on do not"
        )));
    }
    product(samples, rows)
}

/// Samples z a number of times, and computes log p(z) - log q(z | x) of each row of each sample.
#[pyfunction]
pub(crate) fn log_weight_forward(
    py: Python<'_>,
    dtype: u8,
    samples: usize,
    rows: usize,
    columns: usize,
    mu: Strided,
    logvar: Strided,
    noise: (i64, u32, u64),
    z: usize,
    log_weight: usize,
    threads: usize,
) -> PyResult<()> {
    let (seed, draw, row_offset) = noise;
    let all_rows = stacked(samples, rows, draw)?;
    let elements = product(all_rows, columns)?;
    let execution = execution(threads)?;
    check_counters(rows, columns, row_offset)?;
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let mu_memory = Memory::of_matrix::<T>("mu", mu.0, rows, columns, mu.1)?;
        let logvar_memory = Memory::of_matrix::<T>("logvar", logvar.0, rows, columns, logvar.1)?;
        let z_memory = Memory::new::<T>("z", z, elements)?;
        let weight_memory = Memory::new::<M>("log_weight", log_weight, all_rows)?;
        check_disjoint::<T, T>(&[z_memory], &[mu_memory, logvar_memory])?;
        check_disjoint::<M, T>(&[weight_memory], &[mu_memory, logvar_memory, z_memory])?;
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, made z and log_weight for it, and
            // no output shares memory with anything else.
            let (mu_data, logvar_data, z, log_weight) = unsafe {
                (
                    mu_memory.read::<T>(),
                    logvar_memory.read::<T>(),
                    z_memory.write::<T>(),
                    weight_memory.write::<M>(),
                )
            };
            ops::log_weight_forward(
                execution,
                Matrix::new(mu_data, rows, columns, mu.1),
                Matrix::new(logvar_data, rows, columns, logvar.1),
                &Noise { seed: seed as u64, draw, rows: Rows::From(row_offset) },
                samples,
                z,
                log_weight,
            );
        });
        Ok(())
    })
}

/// The gradients of [`log_weight_forward`]; an output that was not used has none.
#[pyfunction]
pub(crate) fn log_weight_backward(
    py: Python<'_>,
    dtype: u8,
    samples: usize,
    rows: usize,
    columns: usize,
    mu: Strided,
    logvar: Strided,
    noise: (i64, u32, u64),
    grad_z: Option<Strided>,
    grad_log_weight: Option<Strided>,
    grad_mu: usize,
    grad_logvar: usize,
    threads: usize,
) -> PyResult<()> {
    let (seed, draw, row_offset) = noise;
    let all_rows = stacked(samples, rows, draw)?;
    let elements = product(all_rows, columns)?;
    let execution = execution(threads)?;
    check_counters(rows, columns, row_offset)?;
    if grad_z.is_none() && grad_log_weight.is_none() {
        return Err(PyValueError::new_err("there is no gradient to pass on"));
    }
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let mu_memory = Memory::of_matrix::<T>("mu", mu.0, rows, columns, mu.1)?;
        let logvar_memory = Memory::of_matrix::<T>("logvar", logvar.0, rows, columns, logvar.1)?;
        let of_z = |(address, stride)| Memory::of_matrix::<T>("grad_z", address, all_rows, columns, stride);
        let z_memory = grad_z.map(of_z).transpose()?;
        let of_weight =
            |(address, stride)| Memory::of_matrix::<M>("grad_log_weight", address, all_rows, 1, stride);
        let weight_memory = grad_log_weight.map(of_weight).transpose()?;
        let of_one = product(rows, columns)?;
        let outputs = [
            Memory::new::<T>("grad_mu", grad_mu, of_one)?,
            Memory::new::<T>("grad_logvar", grad_logvar, of_one)?,
        ];
        check_disjoint::<T, T>(&outputs, &[mu_memory, logvar_memory])?;
        check_disjoint::<T, T>(&outputs, z_memory.as_slice())?;
        check_disjoint::<T, M>(&outputs, weight_memory.as_slice())?;
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, made the gradients for it, and no
            // output shares memory with anything else.
            let (mu_data, logvar_data, z_data, weight_data, grads) = unsafe {
                (
                    mu_memory.read::<T>(),
                    logvar_memory.read::<T>(),
                    z_memory.map(|memory| memory.read::<T>()),
                    weight_memory.map(|memory| memory.read::<M>()),
                    outputs.map(|output| output.write::<T>()),
                )
            };
            ops::log_weight_backward(
                execution,
                Matrix::new(mu_data, rows, columns, mu.1),
                Matrix::new(logvar_data, rows, columns, logvar.1),
                &Noise { seed: seed as u64, draw, rows: Rows::From(row_offset) },
                samples,
                grad_z.zip(z_data).map(|(grad, data)| Matrix::new(data, all_rows, columns, grad.1)),
                grad_log_weight.zip(weight_data).map(|(grad, data)| Matrix::new(data, all_rows, 1, grad.1)),
                grads,
            );
        });
        Ok(())
    })
}
