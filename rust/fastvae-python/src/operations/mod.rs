//! The functions of `fastvae._core`, one file for each family, and what they share.

pub(crate) mod adam;
pub(crate) mod dense;
pub(crate) mod free_bits;
pub(crate) mod gather;
pub(crate) mod kl;
pub(crate) mod latent;
pub(crate) mod likelihood;
pub(crate) mod log_weight;
pub(crate) mod noise;
pub(crate) mod plain;
pub(crate) mod prior;

use fastvae_core::{Execution, Level, noise::BLOCK};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::OnceLock;

/// The environment variable that forces an instruction-set level.
const LEVEL_VARIABLE: &str = "FASTVAE_SIMD";

/// Work below this many elements is over before another thread would get the interpreter lock.
const ELEMENTS_TO_DETACH: usize = 1 << 16;

/// Elements of the largest matrix. No memory holds as many, but a tensor that is expanded from a few has them, and
/// the plan of its work alone would end the process for lack of memory.
const MOST_ELEMENTS: usize = 1 << 40;

/// An address and the distance of rows, in elements.
pub(crate) type Strided = (usize, usize);

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

pub(crate) fn execution(threads: usize) -> PyResult<Execution> {
    Ok(Execution { level: level()?, threads })
}

/// Runs the work, without the interpreter lock where that pays.
pub(crate) fn run(py: Python<'_>, elements: usize, work: impl FnOnce() + Send) {
    if elements >= ELEMENTS_TO_DETACH { py.detach(work) } else { work() }
}

/// The number of elements of a matrix.
pub(crate) fn product(rows: usize, columns: usize) -> PyResult<usize> {
    rows.checked_mul(columns).filter(|&elements| elements <= MOST_ELEMENTS).ok_or_else(|| {
        PyValueError::new_err(format!(
            "{rows} rows of {columns} columns are too many: a call takes at most 2^40 elements"
        ))
    })
}

/// Columns are counted in blocks of four with 32 bits, rows with 63.
pub(crate) fn check_counters(rows: usize, columns: usize, row_offset: u64) -> PyResult<()> {
    if columns.div_ceil(BLOCK) as u64 > 1 << 32 {
        return Err(PyValueError::new_err(format!("a row of noise has at most 2^34 columns, got {columns}")));
    }
    if row_offset.checked_add(rows as u64).is_none_or(|end| end > 1 << 63) {
        return Err(PyValueError::new_err(format!(
            "row numbers lie below 2^63; {rows} rows from {row_offset} on do not"
        )));
    }
    Ok(())
}

pub(crate) use with_dtype;
