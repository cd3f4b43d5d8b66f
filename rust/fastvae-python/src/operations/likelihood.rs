//! The log-probability of data under what a decoder gives.

#![allow(unsafe_code)]

use super::kl::{KlInput, KlOutput};
use super::{Strided, execution, product, run, with_dtype};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::ops::{self, Density, LogVariance, LogVarianceGrad, Observed, Value};
use fastvae_core::{Element, Execution, Matrix};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Data as an address, the distance of its rows, their number, and what stands for 1 in bytes (0: it is floats of
/// the arithmetic's type).
type Data = (usize, usize, usize, u8);

/// Where and what the log-probability or its gradient is: the kind as for a KL, and the memory.
type Reduced = (u8, Strided);

/// The shape and place of one call.
#[derive(Clone, Copy)]
struct Call {
    execution: Execution,
    rows: usize,
    columns: usize,
    elements: usize,
}

impl Call {
    fn new(rows: usize, columns: usize, threads: usize) -> PyResult<Self> {
        Ok(Self { execution: execution(threads)?, rows, columns, elements: product(rows, columns)? })
    }

    fn input<T>(&self, name: &str, (address, stride): Strided) -> PyResult<Memory> {
        Memory::of_matrix::<T>(name, address, self.rows, self.columns, stride)
    }

    fn data<X>(&self, (address, stride, rows, _): Data) -> PyResult<Memory> {
        if self.rows != 0 && (rows == 0 || !self.rows.is_multiple_of(rows)) {
            return Err(PyValueError::new_err(format!(
                "target: {} rows are no multiple of its {rows}",
                self.rows
            )));
        }
        Memory::of_matrix::<X>("target", address, rows, self.columns, stride)
    }

    /// # Safety
    /// As [`Memory::read`].
    unsafe fn observed<'a, X>(&self, memory: Memory, (_, stride, rows, max): Data) -> Observed<'a, X> {
        // SAFETY: the caller's promise.
        let values = Matrix::new(unsafe { memory.read() }, rows, self.columns, stride);
        Observed { values, max: max.max(1) }
    }

    /// # Safety
    /// As [`Memory::read`].
    unsafe fn matrix<'a, T>(&self, memory: Memory, (_, stride): Strided) -> Matrix<'a, T> {
        // SAFETY: the caller's promise.
        Matrix::new(unsafe { memory.read() }, self.rows, self.columns, stride)
    }

    fn output<M>(&self, (kind, (address, _)): Reduced) -> PyResult<KlOutput> {
        check_kind(kind)?;
        KlOutput::new::<M>(kind, address, self.rows, self.columns)
    }

    fn gradient<M>(&self, (kind, memory): Reduced) -> PyResult<KlInput> {
        check_kind(kind)?;
        KlInput::new::<M>(kind, memory, self.rows, self.columns)
    }
}

fn check_kind(kind: u8) -> PyResult<()> {
    if matches!(kind, 1 | 2) {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("a log-probability is per element (1) or per row (2), got {kind}")))
}

/// Runs the body with the type of the data: bytes, or floats of the type of the arithmetic.
macro_rules! with_data {
    ($data:expr, $T:ty, |$X:ident| $body:expr) => {
        if $data.3 == 0 {
            type $X = <$T as Element>::Math;
            $body
        } else {
            type $X = u8;
            $body
        }
    };
}

/// The log-probability of data under Bernoulli variables.
#[pyfunction]
pub(crate) fn bernoulli_forward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    logits: Strided,
    target: Data,
    log_prob: Reduced,
    threads: usize,
) -> PyResult<()> {
    let call = Call::new(rows, columns, threads)?;
    with_dtype!(dtype, |T| with_data!(target, T, |X| bernoulli_forward_of::<T, X>(
        py, call, logits, target, log_prob
    )))
}

fn bernoulli_forward_of<T: Element, X: Value<T::Math>>(
    py: Python<'_>,
    call: Call,
    logits: Strided,
    target: Data,
    log_prob: Reduced,
) -> PyResult<()> {
    let logits_memory = call.input::<T>("logits", logits)?;
    let data_memory = call.data::<X>(target)?;
    let output = call.output::<T::Math>(log_prob)?;
    check_disjoint::<T::Math, T>(&[output.memory], &[logits_memory])?;
    check_disjoint::<T::Math, X>(&[output.memory], &[data_memory])?;
    run(py, call.elements, || {
        // SAFETY: the caller holds the tensors for the length of the call, made the output for it, and the output
        // shares memory with none of them.
        let (logits, observed, log_prob) = unsafe {
            (call.matrix(logits_memory, logits), call.observed::<X>(data_memory, target), output.target())
        };
        ops::bernoulli_forward::<T, X>(call.execution, logits, observed, log_prob);
    });
    Ok(())
}

/// The gradient of [`bernoulli_forward`] with respect to the logits.
#[pyfunction]
pub(crate) fn bernoulli_backward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    logits: Strided,
    target: Data,
    grad: Reduced,
    grad_logits: usize,
    threads: usize,
) -> PyResult<()> {
    let call = Call::new(rows, columns, threads)?;
    with_dtype!(dtype, |T| with_data!(target, T, |X| bernoulli_backward_of::<T, X>(
        py,
        call,
        logits,
        target,
        grad,
        grad_logits
    )))
}

fn bernoulli_backward_of<T: Element, X: Value<T::Math>>(
    py: Python<'_>,
    call: Call,
    logits: Strided,
    target: Data,
    grad: Reduced,
    grad_logits: usize,
) -> PyResult<()> {
    let logits_memory = call.input::<T>("logits", logits)?;
    let data_memory = call.data::<X>(target)?;
    let input = call.gradient::<T::Math>(grad)?;
    let output = Memory::new::<T>("grad_logits", grad_logits, call.elements)?;
    check_disjoint::<T, T>(&[output], &[logits_memory])?;
    check_disjoint::<T, X>(&[output], &[data_memory])?;
    check_disjoint::<T, T::Math>(&[output], &[input.memory])?;
    run(py, call.elements, || {
        // SAFETY: as for the forward pass.
        let (logits, observed, grad, grad_logits) = unsafe {
            (
                call.matrix(logits_memory, logits),
                call.observed::<X>(data_memory, target),
                input.grad(),
                output.write(),
            )
        };
        ops::bernoulli_backward::<T, X>(call.execution, logits, observed, grad, grad_logits);
    });
    Ok(())
}

/// The logarithm of a variance: a matrix, or (where `shared`) one element of the arithmetic's type.
#[derive(Clone, Copy)]
struct LogVarianceInput {
    memory: Memory,
    rows: Strided,
    shared: bool,
}

impl LogVarianceInput {
    fn new<T: Element>(call: Call, rows: Strided, shared: bool) -> PyResult<Self> {
        let memory = if shared {
            Memory::new::<T::Math>("logvar", rows.0, 1)?
        } else {
            call.input::<T>("logvar", rows)?
        };
        Ok(Self { memory, rows, shared })
    }

    fn check_disjoint<T: Element, O>(&self, outputs: &[Memory]) -> PyResult<()> {
        if self.shared {
            check_disjoint::<O, T::Math>(outputs, &[self.memory])
        } else {
            check_disjoint::<O, T>(outputs, &[self.memory])
        }
    }

    /// # Safety
    /// As [`Memory::read`].
    unsafe fn logvar<'a, T: Element>(&self, call: Call) -> LogVariance<'a, T> {
        // SAFETY: the caller's promise.
        unsafe {
            if self.shared {
                LogVariance::All(self.memory.read::<T::Math>()[0])
            } else {
                LogVariance::Each(call.matrix(self.memory, self.rows))
            }
        }
    }
}

/// The log-density of data under Gaussian variables; where `shared`, `logvar` is one element of the arithmetic's
/// type.
#[pyfunction]
pub(crate) fn gaussian_forward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    mean: Strided,
    logvar: Strided,
    shared: bool,
    target: Data,
    log_prob: Reduced,
    threads: usize,
) -> PyResult<()> {
    let call = Call::new(rows, columns, threads)?;
    with_dtype!(dtype, |T| with_data!(target, T, |X| gaussian_forward_of::<T, X>(
        py,
        call,
        mean,
        LogVarianceInput::new::<T>(call, logvar, shared)?,
        target,
        log_prob
    )))
}

fn gaussian_forward_of<T: Element, X: Value<T::Math>>(
    py: Python<'_>,
    call: Call,
    mean: Strided,
    logvar: LogVarianceInput,
    target: Data,
    log_prob: Reduced,
) -> PyResult<()> {
    let mean_memory = call.input::<T>("mean", mean)?;
    let data_memory = call.data::<X>(target)?;
    let output = call.output::<T::Math>(log_prob)?;
    check_disjoint::<T::Math, T>(&[output.memory], &[mean_memory])?;
    check_disjoint::<T::Math, X>(&[output.memory], &[data_memory])?;
    logvar.check_disjoint::<T, T::Math>(&[output.memory])?;
    run(py, call.elements, || {
        // SAFETY: the caller holds the tensors for the length of the call, made the output for it, and the output
        // shares memory with none of them.
        let (density, observed, log_prob) = unsafe {
            (
                Density { mean: call.matrix::<T>(mean_memory, mean), logvar: logvar.logvar::<T>(call) },
                call.observed::<X>(data_memory, target),
                output.target(),
            )
        };
        ops::gaussian_forward(call.execution, density, observed, log_prob);
    });
    Ok(())
}

/// The gradients of [`gaussian_forward`]; where `shared`, that of `logvar` is one element of the arithmetic's type.
#[pyfunction]
pub(crate) fn gaussian_backward(
    py: Python<'_>,
    dtype: u8,
    rows: usize,
    columns: usize,
    mean: Strided,
    logvar: Strided,
    shared: bool,
    target: Data,
    grad: Reduced,
    grads: [usize; 2],
    threads: usize,
) -> PyResult<()> {
    let call = Call::new(rows, columns, threads)?;
    with_dtype!(dtype, |T| with_data!(target, T, |X| gaussian_backward_of::<T, X>(
        py,
        call,
        mean,
        LogVarianceInput::new::<T>(call, logvar, shared)?,
        target,
        grad,
        grads
    )))
}

fn gaussian_backward_of<T: Element, X: Value<T::Math>>(
    py: Python<'_>,
    call: Call,
    mean: Strided,
    logvar: LogVarianceInput,
    target: Data,
    grad: Reduced,
    [grad_mean, grad_logvar]: [usize; 2],
) -> PyResult<()> {
    let mean_memory = call.input::<T>("mean", mean)?;
    let data_memory = call.data::<X>(target)?;
    let input = call.gradient::<T::Math>(grad)?;
    let mean_output = Memory::new::<T>("grad_mean", grad_mean, call.elements)?;
    let logvar_output = if logvar.shared {
        let output = Memory::new::<T::Math>("grad_logvar", grad_logvar, 1)?;
        check_disjoint::<T::Math, T>(&[output], &[mean_memory, mean_output])?;
        check_disjoint::<T::Math, X>(&[output], &[data_memory])?;
        check_disjoint::<T::Math, T::Math>(&[output], &[input.memory, logvar.memory])?;
        output
    } else {
        let output = Memory::new::<T>("grad_logvar", grad_logvar, call.elements)?;
        check_disjoint::<T, T>(&[output], &[mean_memory, mean_output, logvar.memory])?;
        check_disjoint::<T, X>(&[output], &[data_memory])?;
        check_disjoint::<T, T::Math>(&[output], &[input.memory])?;
        output
    };
    check_disjoint::<T, T>(&[mean_output], &[mean_memory])?;
    check_disjoint::<T, X>(&[mean_output], &[data_memory])?;
    check_disjoint::<T, T::Math>(&[mean_output], &[input.memory])?;
    logvar.check_disjoint::<T, T>(&[mean_output])?;
    run(py, call.elements, || {
        // SAFETY: the caller holds the tensors for the length of the call, made the gradients for it, and no
        // output shares memory with anything else.
        let (density, observed, grad, grad_mean, grad_logvar) = unsafe {
            (
                Density { mean: call.matrix::<T>(mean_memory, mean), logvar: logvar.logvar::<T>(call) },
                call.observed::<X>(data_memory, target),
                input.grad(),
                mean_output.write(),
                if logvar.shared {
                    LogVarianceGrad::All(&mut logvar_output.write::<T::Math>()[0])
                } else {
                    LogVarianceGrad::Each(logvar_output.write::<T>())
                },
            )
        };
        ops::gaussian_backward(call.execution, density, observed, grad, grad_mean, grad_logvar);
    });
    Ok(())
}
