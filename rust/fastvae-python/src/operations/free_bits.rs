//! The sample and its KL from the standard normal with free bits.

#![allow(unsafe_code)]

use super::kl::{KlInput, KlOutput};
use super::{Strided, check_counters, execution, product, run, with_dtype};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::ops::{self, FreeBits, KlGrad};
use fastvae_core::{Element, Matrix, Noise, Rows};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

fn check(columns: usize, (floor, group): (f64, usize), kl_kind: u8) -> PyResult<FreeBits> {
    if group == 0 || !columns.is_multiple_of(group) {
        return Err(PyValueError::new_err(format!(
            "group_size must divide the {columns} columns of a row, got {group}"
        )));
    }
    if !matches!(kl_kind, 2 | 3) {
        return Err(PyValueError::new_err("free bits go with a KL per sample or in total"));
    }
    Ok(FreeBits { floor, group })
}

/// Samples z (unless there is no noise) and computes the KL per row or in total.
#[pyfunction]
pub(crate) fn free_bits_forward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    mu: Strided,
    logvar: Strided,
    z: usize,
    noise: Option<(i64, u32, u64)>,
    free_bits: (f64, usize),
    kl_kind: u8,
    kl: usize,
    threads: usize,
) -> PyResult<()> {
    let elements = product(rows, columns)?;
    let execution = execution(threads)?;
    check_counters(rows, columns, noise.map_or(0, |(.., row_offset)| row_offset))?;
    let free_bits = check(columns, free_bits, kl_kind)?;
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let mu_memory = Memory::of_matrix::<T>("mu", mu.0, rows, columns, mu.1)?;
        let logvar_memory = Memory::of_matrix::<T>("logvar", logvar.0, rows, columns, logvar.1)?;
        let z_memory = Memory::new::<T>("z", z, if noise.is_some() { elements } else { 0 })?;
        let kl_output = KlOutput::new::<M>(kl_kind, kl, rows, columns)?;
        check_disjoint::<T, T>(&[z_memory], &[mu_memory, logvar_memory])?;
        check_disjoint::<M, T>(&[kl_output.memory], &[mu_memory, logvar_memory, z_memory])?;
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, made z and kl for it, and no
            // output shares memory with anything else.
            let (mu_data, logvar_data, z, kl) = unsafe {
                (
                    mu_memory.read::<T>(),
                    logvar_memory.read::<T>(),
                    z_memory.write::<T>(),
                    kl_output.target::<M>(),
                )
            };
            let mu = Matrix::new(mu_data, rows, columns, mu.1);
            let logvar = Matrix::new(logvar_data, rows, columns, logvar.1);
            let noise = noise.map(|(seed, draw, row_offset)| Noise {
                seed: seed as u64,
                draw,
                rows: Rows::From(row_offset),
            });
            let sample = noise.as_ref().map(|noise| (noise, z));
            ops::free_bits_forward(execution, mu, logvar, free_bits, sample, kl);
        });
        Ok(())
    })
}

/// The gradients of [`free_bits_forward`].
#[pyfunction]
pub(crate) fn free_bits_backward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    mu: Strided,
    logvar: Strided,
    grad_z: Strided,
    noise: Option<(i64, u32, u64)>,
    free_bits: (f64, usize),
    kl_kind: u8,
    grad_kl: Strided,
    grad_mu: usize,
    grad_logvar: usize,
    threads: usize,
) -> PyResult<()> {
    let elements = product(rows, columns)?;
    let execution = execution(threads)?;
    check_counters(rows, columns, noise.map_or(0, |(.., row_offset)| row_offset))?;
    let free_bits = check(columns, free_bits, kl_kind)?;
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let mu_memory = Memory::of_matrix::<T>("mu", mu.0, rows, columns, mu.1)?;
        let logvar_memory = Memory::of_matrix::<T>("logvar", logvar.0, rows, columns, logvar.1)?;
        let z_memory = if noise.is_some() {
            Memory::of_matrix::<T>("grad_z", grad_z.0, rows, columns, grad_z.1)?
        } else {
            Memory::new::<T>("", 0, 0)?
        };
        let kl_input = KlInput::new::<M>(kl_kind, grad_kl, rows, columns)?;
        let outputs = [
            Memory::new::<T>("grad_mu", grad_mu, elements)?,
            Memory::new::<T>("grad_logvar", grad_logvar, elements)?,
        ];
        check_disjoint::<T, T>(&outputs, &[mu_memory, logvar_memory, z_memory])?;
        check_disjoint::<T, M>(&outputs, &[kl_input.memory])?;
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, made the gradients for it, and no
            // output shares memory with anything else.
            let (mu_data, logvar_data, z_data, kl, grads) = unsafe {
                (
                    mu_memory.read::<T>(),
                    logvar_memory.read::<T>(),
                    z_memory.read::<T>(),
                    kl_input.grad::<M>(),
                    outputs.map(|output| output.write::<T>()),
                )
            };
            let KlGrad::Rows(kl) = kl else { unreachable!("the kind was checked") };
            let noise = noise.map(|(seed, draw, row_offset)| Noise {
                seed: seed as u64,
                draw,
                rows: Rows::From(row_offset),
            });
            ops::free_bits_backward(
                execution,
                Matrix::new(mu_data, rows, columns, mu.1),
                Matrix::new(logvar_data, rows, columns, logvar.1),
                free_bits,
                noise.as_ref().map(|noise| (noise, Matrix::new(z_data, rows, columns, grad_z.1))),
                kl,
                grads,
            );
        });
        Ok(())
    })
}
