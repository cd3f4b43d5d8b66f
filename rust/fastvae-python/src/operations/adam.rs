//! Adam on plain tensors.

#![allow(unsafe_code)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "what is in a list may be taken out of it during the call"
)]

use super::{execution, run};
use crate::exchange::{Described, Kind, Known, Plain, increment_version, threads};
use crate::memory::{Memory, are_apart};
use fastvae_core::ops;
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Adam for some tensors of float32: what it keeps of them.
#[pyclass(module = "fastvae._core")]
pub(crate) struct Adam {
    adam: ops::Adam,
    /// The parameters as they were in the last step, and gradients that are kept.
    known: Vec<[Option<Known>; 2]>,
}

#[pymethods]
impl Adam {
    /// For each tensor its length, its learning rate and its weight decay.
    #[new]
    fn new(betas: (f32, f32), eps: f64, tensors: Vec<(usize, f64, f64)>) -> PyResult<Self> {
        if let Some(beta) = [betas.0, betas.1].into_iter().find(|beta| !(0.5..1.0).contains(beta)) {
            return Err(PyValueError::new_err(format!("betas must lie in [1/2, 1), got {beta}")));
        }
        let known = tensors.iter().map(|_| [None, None]).collect();
        let adam = ops::Adam::new(betas.into(), eps, tensors);
        adam.map(|adam| Self { adam, known })
            .map_err(|error| PyMemoryError::new_err(format!("the averages of Adam: {error}")))
    }

    /// Whether these can be parameters: they are plain, contiguous, of float32, and share no memory.
    #[staticmethod]
    fn takes(parameters: Vec<Bound<'_, PyAny>>) -> bool {
        let Some(plain) = parameters.iter().map(Plain::of).collect::<Option<Vec<_>>>() else { return false };
        let memories: Option<Vec<_>> = plain.iter().map(|tensor| floats(tensor.now()?)).collect();
        memories.is_some_and(|memories| are_apart::<f32>(&memories, &[]))
    }

    /// Moves the parameters that have a gradient, if all gradients and all outputs are finite; gives whether it did. Gradients
    /// that are `finite` are not looked at; those that are `kept` are the same tensors in each call.
    ///
    /// None, with nothing done, where a tensor is not plain, contiguous and of float32, where a parameter or a gradient is
    /// not as long as it should be, or where a parameter shares memory with something else.
    #[pyo3(signature = (parameters, gradients, outputs, finite=false, kept=false))]
    fn step<'py>(
        &mut self,
        py: Python<'py>,
        parameters: Vec<Bound<'py, PyAny>>,
        gradients: Vec<Option<Bound<'py, PyAny>>>,
        outputs: Vec<Bound<'py, PyAny>>,
        finite: bool,
        kept: bool,
    ) -> PyResult<Option<bool>> {
        let count = self.adam.lengths().len();
        if parameters.len() != count || gradients.len() != count {
            return Err(PyValueError::new_err(format!(
                "made for {count} tensors, got {} parameters and {} gradients",
                parameters.len(),
                gradients.len()
            )));
        }
        let execution = execution(threads(py)?)?;
        let is_used: Vec<bool> = gradients.iter().map(Option::is_some).collect();
        let lengths =
            || self.adam.lengths().zip(&is_used).filter(|(_, used)| **used).map(|(length, _)| length);
        for ((known, parameter), gradient) in self.known.iter_mut().zip(&parameters).zip(&gradients) {
            let gradient = gradient.as_ref();
            for (known, tensor) in
                known.iter_mut().zip([gradient.map(|_| parameter), gradient.filter(|_| kept)])
            {
                *known = tensor.and_then(|tensor| Known::again(known.take(), tensor));
            }
        }
        let used: Vec<_> =
            parameters.into_iter().zip(&is_used).filter(|(_, used)| **used).map(|(own, _)| own).collect();
        let gradients: Vec<_> = gradients.into_iter().flatten().collect();
        let known = |which: usize| self.known.iter().filter_map(move |known| known[which].as_ref());
        let seen = if kept { &[][..] } else { &gradients[..] };
        // What runs methods in Python comes before addresses are taken.
        let Some(plain) = seen.iter().chain(&outputs).map(Plain::of).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let known = known(0).chain(known(1)).map(|known| known.now(py));
        let Some(memories) =
            known.chain(plain.iter().map(Plain::now)).map(|now| floats(now?)).collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        if memories.len() != used.len() + gradients.len() + outputs.len() {
            return Ok(None);
        }
        let (written, read) = memories.split_at(used.len());
        let as_long =
            |memories: &[Memory]| lengths().zip(memories).all(|(length, memory)| memory.length() == length);
        if !as_long(written) || !as_long(read) || !are_apart::<f32>(written, read) {
            return Ok(None);
        }
        let (elements, mut moved) = (lengths().sum(), false);
        let adam = &mut self.adam;
        run(py, elements, || {
            // SAFETY: the lists hold the tensors for the length of the call, whose memory this is, and what is written to
            // shares no memory with anything else.
            let (written, read): (Vec<_>, Vec<_>) = unsafe {
                (
                    written.iter().map(|memory| memory.update::<f32>()).collect(),
                    read.iter().map(|memory| memory.read::<f32>()).collect(),
                )
            };
            let (gradients, outputs) = read.split_at(written.len());
            let mut trained = written.into_iter().zip(gradients.iter().copied());
            let tensors = is_used.iter().map(|&used| if used { trained.next() } else { None }).collect();
            moved = adam.step(execution, tensors, outputs, finite);
        });
        if moved {
            increment_version(PyList::new(py, used)?.as_any())?;
        }
        Ok(Some(moved))
    }

    /// Copies the averages to tensors, of each gradient and then of each one's square, and gives beta1^t and beta2^t after the
    /// t steps of each.
    fn averages(&mut self, tensors: Vec<Bound<'_, PyAny>>) -> PyResult<Vec<[f64; 2]>> {
        let memories = self.places(&tensors)?;
        if !are_apart::<f32>(&memories, &[]) {
            return Err(PyValueError::new_err("two tensors share memory"));
        }
        let (means, squares) = memories.split_at(memories.len() / 2);
        let kept = self.adam.averages().zip(means).zip(squares);
        Ok(kept
            .map(|((kept, means), squares)| {
                // SAFETY: the list holds the tensors for the length of the call, whose memory this is, and they share none.
                let (means, squares) = unsafe { (means.update::<f32>(), squares.update::<f32>()) };
                means.copy_from_slice(kept.means);
                squares.copy_from_slice(kept.squares);
                *kept.powers
            })
            .collect())
    }

    /// Goes on from such averages and powers.
    fn restore(&mut self, tensors: Vec<Bound<'_, PyAny>>, powers: Vec<[f64; 2]>) -> PyResult<()> {
        let memories = self.places(&tensors)?;
        let (means, squares) = memories.split_at(memories.len() / 2);
        if powers.len() != means.len() {
            return Err(PyValueError::new_err(format!(
                "made for {} tensors, got the powers of {}",
                means.len(),
                powers.len()
            )));
        }
        if let Some(power) = powers.iter().flatten().find(|power| !(0.0..=1.0).contains(*power)) {
            return Err(PyValueError::new_err(format!("powers must lie in [0, 1], got {power}")));
        }
        for (((kept, means), squares), powers) in self.adam.averages().zip(means).zip(squares).zip(powers) {
            // SAFETY: the list holds the tensors for the length of the call, whose memory this is.
            let (means, squares) = unsafe { (means.read::<f32>(), squares.read::<f32>()) };
            kept.means.copy_from_slice(means);
            kept.squares.copy_from_slice(squares);
            *kept.powers = powers;
        }
        Ok(())
    }
}

impl Adam {
    /// The memory of two tensors for each that this was made for: first all of one kind, then those of the other.
    fn places(&self, tensors: &[Bound<'_, PyAny>]) -> PyResult<Vec<Memory>> {
        let lengths = || self.adam.lengths().chain(self.adam.lengths());
        let found = || {
            // What runs methods in Python comes before addresses are taken.
            let plain = tensors.iter().map(Plain::of).collect::<Option<Vec<_>>>()?;
            plain.iter().map(|tensor| floats(tensor.now()?)).collect::<Option<Vec<_>>>()
        };
        found().filter(|memories| memories.iter().map(|memory| memory.length()).eq(lengths())).ok_or_else(
            || {
                PyValueError::new_err(format!(
                    "expected plain, contiguous tensors of float32 of {:?} elements",
                    lengths().collect::<Vec<_>>()
                ))
            },
        )
    }
}

/// The memory of a contiguous tensor of float32.
fn floats(tensor: &Described) -> Option<Memory> {
    let address = (tensor.kind == Kind::F32).then(|| tensor.contiguous())??;
    Memory::new::<f32>("a tensor", address, tensor.elements()?).ok()
}
