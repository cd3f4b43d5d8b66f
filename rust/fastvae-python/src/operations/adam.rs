//! Adam on plain tensors.

#![allow(unsafe_code)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "what is in a list may be taken out of it during the call"
)]

use super::{execution, run};
use crate::exchange::{Kind, Plain, increment_version, threads};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::ops;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Adam for some tensors of float32: what it keeps of them.
#[pyclass(module = "fastvae._core")]
pub(crate) struct Adam(ops::Adam);

#[pymethods]
impl Adam {
    /// For each tensor its length, its learning rate and its weight decay.
    #[new]
    fn new(betas: (f32, f32), eps: f64, tensors: Vec<(usize, f64, f64)>) -> PyResult<Self> {
        if let Some(beta) = [betas.0, betas.1].into_iter().find(|beta| !(0.5..1.0).contains(beta)) {
            return Err(PyValueError::new_err(format!("betas must lie in [1/2, 1), got {beta}")));
        }
        Ok(Self(ops::Adam::new(betas.into(), eps, tensors)))
    }

    /// Whether a step can be taken with these parameters: none is empty, and see `step`.
    #[staticmethod]
    fn takes(parameters: Vec<Bound<'_, PyAny>>) -> bool {
        let memories: Option<Vec<_>> = parameters.iter().map(floats).collect();
        memories.is_some_and(|memories| check_disjoint::<f32, f32>(&memories, &[]).is_ok())
    }

    /// Moves the parameters that have a gradient, if all gradients and all outputs are finite; gives whether it did.
    ///
    /// None, with nothing done, where a tensor is not plain, contiguous and of float32, where a parameter or a gradient is
    /// not as long as it should be, or where a parameter shares memory with something else.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "what is in a list may be taken out of it during the call"
    )]
    fn step<'py>(
        &mut self,
        py: Python<'py>,
        parameters: Vec<Bound<'py, PyAny>>,
        gradients: Vec<Option<Bound<'py, PyAny>>>,
        outputs: Vec<Bound<'py, PyAny>>,
    ) -> PyResult<Option<bool>> {
        let count = self.0.lengths().len();
        if parameters.len() != count || gradients.len() != count {
            return Err(PyValueError::new_err(format!(
                "made for {count} tensors, got {} parameters and {} gradients",
                parameters.len(),
                gradients.len()
            )));
        }
        let execution = execution(threads(py)?)?;
        let (mut written, mut read, mut elements) = (Vec::with_capacity(count), Vec::with_capacity(count), 0);
        for ((length, parameter), gradient) in self.0.lengths().zip(&parameters).zip(&gradients) {
            let Some(gradient) = gradient else { continue };
            let as_long = |tensor| floats(tensor).filter(|memory| memory.length() == length);
            let (Some(parameter), Some(gradient)) = (as_long(parameter), as_long(gradient)) else {
                return Ok(None);
            };
            written.push(parameter);
            read.push(gradient);
            elements += length;
        }
        for output in &outputs {
            let Some(output) = floats(output) else { return Ok(None) };
            read.push(output);
        }
        if check_disjoint::<f32, f32>(&written, &read).is_err() {
            return Ok(None);
        }
        let has_gradient: Vec<bool> = gradients.iter().map(Option::is_some).collect();
        let (adam, mut moved) = (&mut self.0, false);
        run(py, elements, || {
            // SAFETY: the caller holds the tensors for the length of the call, and what is written to shares no memory
            // with anything else.
            let (written, read): (Vec<_>, Vec<_>) = unsafe {
                (
                    written.into_iter().map(|memory| memory.update::<f32>()).collect(),
                    read.into_iter().map(|memory| memory.read::<f32>()).collect(),
                )
            };
            let (gradients, outputs) = read.split_at(written.len());
            let mut trained = written.into_iter().zip(gradients.iter().copied());
            let tensors = has_gradient.iter().map(|&has| if has { trained.next() } else { None }).collect();
            moved = adam.step(execution, tensors, outputs);
        });
        if moved {
            let used = parameters
                .iter()
                .zip(&gradients)
                .filter_map(|(own, gradient)| gradient.as_ref().and(Some(own)));
            increment_version(PyList::new(py, used.collect::<Vec<_>>())?.as_any())?;
        }
        Ok(Some(moved))
    }
}

/// The memory of a tensor, if it is plain, contiguous and of float32.
fn floats(tensor: &Bound<'_, PyAny>) -> Option<Memory> {
    let tensor = Plain::of(tensor).filter(|tensor| tensor.kind == Kind::F32)?;
    Memory::new::<f32>("a tensor", tensor.contiguous()?, tensor.elements()?).ok()
}
