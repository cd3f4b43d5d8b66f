//! The sample and its KL from the standard normal.

#![allow(unsafe_code)]

use super::kl::{KlInput, KlOutput};
use super::{Strided, check_counters, execution, product, run, with_dtype};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::ops::{self};
use fastvae_core::{Element, Matrix, Noise, Rows};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Samples z (unless its address is 0) and computes the KL from the standard normal (unless its kind is 0).
#[pyfunction]
pub(crate) fn latent_forward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    mu: Strided,
    logvar: Strided,
    z: usize,
    noise: Option<(i64, u32, u64)>,
    kl_kind: u8,
    kl: usize,
    threads: usize,
) -> PyResult<()> {
    let elements = product(rows, columns)?;
    let execution = execution(threads)?;
    if let Some((.., row_offset)) = noise {
        check_counters(rows, columns, row_offset)?;
    }
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let mu_memory = Memory::of_matrix::<T>("mu", mu.0, rows, columns, mu.1)?;
        let logvar_memory = Memory::of_matrix::<T>("logvar", logvar.0, rows, columns, logvar.1)?;
        let z_memory = Memory::new::<T>("z", z, if noise.is_some() { elements } else { 0 })?;
        let kl_output = KlOutput::new::<M>(kl_kind, kl, rows, columns)?;
        let inputs = [mu_memory, logvar_memory];
        check_disjoint::<T, T>(&[z_memory], &inputs)?;
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
            ops::latent_forward(execution, mu, logvar, noise.as_ref().map(|noise| (noise, z)), kl);
        });
        Ok(())
    })
}

/// The gradients of [`latent_forward`]; that of mu is written only where there is a KL.
#[pyfunction]
pub(crate) fn latent_backward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    mu: Strided,
    logvar: Strided,
    grad_z: Strided,
    noise: Option<(i64, u32, u64)>,
    kl_kind: u8,
    grad_kl: Strided,
    grad_mu: usize,
    grad_logvar: usize,
    threads: usize,
) -> PyResult<()> {
    let elements = product(rows, columns)?;
    let execution = execution(threads)?;
    if let Some((.., row_offset)) = noise {
        check_counters(rows, columns, row_offset)?;
    }
    if noise.is_none() && kl_kind == 0 {
        return Err(PyValueError::new_err("there is no gradient to pass on"));
    }
    with_dtype!(dtype, |T| {
        type M = <T as Element>::Math;
        let (sampled, with_kl) = (noise.is_some(), kl_kind != 0);
        let empty = Memory::new::<T>("", 0, 0)?;
        let logvar_memory = Memory::of_matrix::<T>("logvar", logvar.0, rows, columns, logvar.1)?;
        let mu_memory =
            if with_kl { Memory::of_matrix::<T>("mu", mu.0, rows, columns, mu.1)? } else { empty };
        let z_memory = if sampled {
            Memory::of_matrix::<T>("grad_z", grad_z.0, rows, columns, grad_z.1)?
        } else {
            empty
        };
        let kl_input = KlInput::new::<M>(kl_kind, grad_kl, rows, columns)?;
        let mu_output = Memory::new::<T>("grad_mu", grad_mu, if with_kl { elements } else { 0 })?;
        let logvar_output = Memory::new::<T>("grad_logvar", grad_logvar, elements)?;
        check_disjoint::<T, T>(&[mu_output, logvar_output], &[mu_memory, logvar_memory, z_memory])?;
        check_disjoint::<T, M>(&[mu_output, logvar_output], &[kl_input.memory])?;
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, made the gradients for it, and no
            // output shares memory with anything else.
            let (mu_data, logvar_data, z_data, kl, grad_mu, grad_logvar) = unsafe {
                (
                    mu_memory.read::<T>(),
                    logvar_memory.read::<T>(),
                    z_memory.read::<T>(),
                    kl_input.grad::<M>(),
                    mu_output.write::<T>(),
                    logvar_output.write::<T>(),
                )
            };
            let noise = noise.map(|(seed, draw, row_offset)| Noise {
                seed: seed as u64,
                draw,
                rows: Rows::From(row_offset),
            });
            ops::latent_backward(
                execution,
                with_kl.then(|| Matrix::new(mu_data, rows, columns, mu.1)),
                Matrix::new(logvar_data, rows, columns, logvar.1),
                noise.as_ref().map(|noise| (noise, Matrix::new(z_data, rows, columns, grad_z.1))),
                kl,
                [grad_mu, grad_logvar],
            );
        });
        Ok(())
    })
}
