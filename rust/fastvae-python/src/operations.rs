//! The functions of `fastvae._core`.

use crate::memory::{Memory, check_disjoint};
use fastvae_core::noise::{self, Distribution, Normal, Uniform};
use fastvae_core::ops::{self, Gaussians, KlGrad, KlTarget};
use fastvae_core::{Element, Execution, Level, Matrix, Noise, Rows};
use half::{bf16, f16};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use std::sync::OnceLock;

/// The environment variable that forces an instruction-set level.
const LEVEL_VARIABLE: &str = "FASTVAE_SIMD";

/// Work below this many elements is over before another thread would get the interpreter lock.
const ELEMENTS_TO_DETACH: usize = 1 << 16;

/// An address and the distance of rows, in elements.
type Strided = (usize, usize);

/// Runs the body with the type of a dtype code (`fastvae.ops.layout.DTYPE_CODES`).
macro_rules! with_dtype {
    ($code:expr, |$T:ident| $body:expr) => {
        match $code {
            0 => {
                type $T = f32;
                $body
            }
            1 => {
                type $T = f64;
                $body
            }
            2 => {
                type $T = bf16;
                $body
            }
            3 => {
                type $T = f16;
                $body
            }
            other => Err(PyValueError::new_err(format!("unknown dtype code {other}"))),
        }
    };
}

/// The level to use: the one `FASTVAE_SIMD` names, else the fastest.
pub(crate) fn level() -> PyResult<Level> {
    static CHOSEN: OnceLock<Result<Level, String>> = OnceLock::new();
    CHOSEN
        .get_or_init(|| {
            let Some(wanted) = std::env::var_os(LEVEL_VARIABLE) else {
                return Ok(Level::best());
            };
            let available = Level::available();
            available.iter().copied().find(|level| wanted == level.name()).ok_or_else(|| {
                let names: Vec<_> = available.into_iter().map(Level::name).collect();
                format!(
                    "{LEVEL_VARIABLE} is \"{}\"; this processor has: {}",
                    wanted.display(),
                    names.join(", ")
                )
            })
        })
        .clone()
        .map_err(PyValueError::new_err)
}

fn execution(threads: usize) -> PyResult<Execution> {
    Ok(Execution { level: level()?, threads })
}

/// Runs the work, without the interpreter lock where that pays.
fn run(py: Python<'_>, elements: usize, work: impl FnOnce() + Send) {
    if elements >= ELEMENTS_TO_DETACH { py.detach(work) } else { work() }
}

fn product(rows: usize, columns: usize) -> PyResult<usize> {
    rows.checked_mul(columns).ok_or_else(|| {
        PyValueError::new_err(format!("{rows} rows of {columns} columns do not fit in memory"))
    })
}

/// Columns are counted in blocks of four with 32 bits, rows with 63.
fn check_counters(rows: usize, columns: usize, row_offset: u64) -> PyResult<()> {
    if columns.div_ceil(noise::BLOCK) as u64 > 1 << 32 {
        return Err(PyValueError::new_err(format!("a row of noise has at most 2^34 columns, got {columns}")));
    }
    if row_offset.checked_add(rows as u64).is_none_or(|end| end > 1 << 63) {
        return Err(PyValueError::new_err(format!(
            "row numbers lie below 2^63; {rows} rows from {row_offset} on do not"
        )));
    }
    Ok(())
}

/// The instruction-set levels of this processor, the fastest last.
#[pyfunction]
pub(crate) fn levels() -> Vec<&'static str> {
    Level::available().into_iter().map(Level::name).collect()
}

/// The instruction-set level in use.
#[pyfunction]
pub(crate) fn simd_level() -> PyResult<&'static str> {
    Ok(level()?.name())
}

/// A new 64-bit seed from a seed and a tag.
#[pyfunction]
pub(crate) fn fold_in(seed: i64, tag: i64) -> i64 {
    noise::fold_in(seed as u64, tag as u64) as i64
}

fn fill<D: Distribution>(
    py: Python<'_>,
    target: usize,
    (rows, columns): (usize, usize),
    seed: i64,
    draw: u32,
    row_offset: u64,
    row_ids: usize,
    threads: usize,
) -> PyResult<()> {
    check_counters(rows, columns, row_offset)?;
    let elements = product(rows, columns)?;
    let target = Memory::new::<f32>("target", target, elements)?;
    let listed = if row_ids == 0 { None } else { Some(Memory::new::<i64>("row_ids", row_ids, rows)?) };
    check_disjoint::<f32, i64>(&[target], listed.as_slice())?;
    let execution = execution(threads)?;
    // SAFETY: the caller holds the tensor for the length of the call, and it shares no memory with `target`.
    let listed = listed.map(|ids| unsafe { ids.read::<i64>() });
    if let Some(negative) = listed.and_then(|ids| ids.iter().find(|&&id| id < 0)) {
        return Err(PyValueError::new_err(format!("row numbers lie in [0, 2^63), got {negative}")));
    }
    run(py, elements, || {
        // SAFETY: the caller made `target` for this call and holds it.
        let target = unsafe { target.write::<f32>() };
        let rows_of_noise = listed.map_or(Rows::From(row_offset), Rows::Listed);
        let noise = Noise { seed: seed as u64, draw, rows: rows_of_noise };
        noise::sample::<D>(execution, &noise, rows, columns, target);
    });
    Ok(())
}

/// Fills a contiguous float32 matrix with standard normals.
#[pyfunction]
pub(crate) fn normal(
    py: Python<'_>,
    target: usize,
    rows: usize,
    columns: usize,
    seed: i64,
    draw: u32,
    row_offset: u64,
    row_ids: usize,
    threads: usize,
) -> PyResult<()> {
    fill::<Normal>(py, target, (rows, columns), seed, draw, row_offset, row_ids, threads)
}

/// Fills a contiguous float32 matrix with uniforms on [0, 1).
#[pyfunction]
pub(crate) fn uniform(
    py: Python<'_>,
    target: usize,
    rows: usize,
    columns: usize,
    seed: i64,
    draw: u32,
    row_offset: u64,
    row_ids: usize,
    threads: usize,
) -> PyResult<()> {
    fill::<Uniform>(py, target, (rows, columns), seed, draw, row_offset, row_ids, threads)
}

/// Fills an int64 vector with a random order of 0..n-1.
#[pyfunction]
pub(crate) fn permutation(py: Python<'_>, target: usize, n: usize, seed: i64, draw: u32) -> PyResult<()> {
    let target = Memory::new::<i64>("target", target, n)?;
    let mut result = Ok(());
    run(py, n, || {
        // SAFETY: the caller made `target` for this call and holds it.
        result = noise::permutation(seed as u64, draw, unsafe { target.write() });
    });
    result.map_err(|error| PyMemoryError::new_err(format!("permutation of {n} numbers: {error}")))
}

/// Memory of the values of a KL, or of its gradient: per element (1), per row (2) or in total (3).
fn kl_shape(kind: u8, rows: usize, columns: usize) -> PyResult<(usize, usize)> {
    match kind {
        0 => Ok((0, 0)),
        1 => Ok((rows, columns)),
        2 => Ok((rows, 1)),
        3 => Ok((1, 1)),
        other => Err(PyValueError::new_err(format!("unknown kind of KL {other}"))),
    }
}

/// A checked output for a KL.
struct KlOutput {
    kind: u8,
    memory: Memory,
}

impl KlOutput {
    fn new<M>(kind: u8, address: usize, rows: usize, columns: usize) -> PyResult<Self> {
        let (rows, columns) = kl_shape(kind, rows, columns)?;
        Ok(Self { kind, memory: Memory::new::<M>("kl", address, product(rows, columns)?)? })
    }

    /// # Safety
    /// As [`Memory::write`].
    unsafe fn target<'a, M>(&self) -> KlTarget<'a, M> {
        // SAFETY: the caller's promise.
        let values = unsafe { self.memory.write() };
        match self.kind {
            0 => KlTarget::Nowhere,
            1 => KlTarget::Elements(values),
            2 => KlTarget::Rows(values),
            _ => KlTarget::Total(&mut values[0]),
        }
    }
}

/// A checked gradient of a KL.
struct KlInput {
    kind: u8,
    memory: Memory,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl KlInput {
    fn new<M>(kind: u8, (address, stride): Strided, rows: usize, columns: usize) -> PyResult<Self> {
        // A total is a column in which every row is the same element.
        let (stride, kind) = if kind == 3 { (0, 2) } else { (stride, kind) };
        let (rows, columns) = kl_shape(kind, rows, columns)?;
        let memory = Memory::of_matrix::<M>("grad_kl", address, rows, columns, stride)?;
        Ok(Self { kind, memory, rows, columns, stride })
    }

    /// # Safety
    /// As [`Memory::read`].
    unsafe fn grad<'a, M>(&self) -> KlGrad<'a, M> {
        // SAFETY: the caller's promise.
        let values = Matrix::new(unsafe { self.memory.read() }, self.rows, self.columns, self.stride);
        match self.kind {
            0 => KlGrad::Absent,
            1 => KlGrad::Elements(values),
            _ => KlGrad::Rows(values),
        }
    }
}

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
    check_counters(rows, columns, noise.map_or(0, |(.., row_offset)| row_offset))?;
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
    check_counters(rows, columns, noise.map_or(0, |(.., row_offset)| row_offset))?;
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
