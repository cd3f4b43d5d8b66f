//! Networks of dense layers on plain tensors.

#![allow(unsafe_code)]

use super::{execution, run};
use crate::exchange::{Described, Kind, Known, Plain, empty_float32, threads};
use crate::memory::{Memory, are_apart};
use fastvae_core::ops::dense::PRODUCTS_PER_ELEMENT;
use fastvae_core::ops::{self, Layer, LayerGrad};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

/// The gradients of samples and of parameters, and whether all numbers of the latter are finite.
type Gradients<'py> = (Option<Bound<'py, PyAny>>, Bound<'py, PyList>, bool);

/// Layers with a `ReLU` between each two, and the memory of what is computed of them, which serves each call again.
#[pyclass(module = "fastvae._core")]
pub(crate) struct Dense {
    /// Weight and bias of each layer in turn.
    parameters: Vec<Py<PyAny>>,
    known: Option<Layers>,
    /// What the layers before the last one gave in the last call, one after the other, and the gradients of that.
    hidden: Vec<f32>,
    scratch: Vec<f32>,
    /// How many samples that was of; 0 where there was none, or it gave nothing.
    samples: usize,
}

/// Parameters that fit each other, and their gradients.
struct Layers {
    parameters: Vec<Known>,
    gradients: Vec<Known>,
    /// Of the samples, and of what each layer gives.
    widths: Vec<usize>,
}

impl Layers {
    fn of(py: Python<'_>, parameters: &[Py<PyAny>]) -> PyResult<Option<Self>> {
        let known = |tensor: &Py<PyAny>| Known::of(tensor.bind(py)).filter(|tensor| is_float32(tensor));
        let Some(parameters) = parameters.iter().map(known).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let mut widths = Vec::new();
        let (pairs, rest) = parameters.as_chunks::<2>();
        for [weight, bias] in pairs {
            let &[outputs, inputs] = weight.shape() else { return Ok(None) };
            if widths.is_empty() {
                widths.push(inputs);
            }
            if widths.last() != Some(&inputs) || bias.shape() != [outputs] {
                return Ok(None);
            }
            widths.push(outputs);
        }
        if widths.is_empty() || !rest.is_empty() {
            return Ok(None);
        }
        let mut gradients = Vec::new();
        for parameter in &parameters {
            let (gradient, _) = made(py, parameter.shape())?;
            let Some(known) = Known::of(&gradient) else { return Ok(None) };
            gradients.push(known);
        }
        Ok(Some(Self { parameters, gradients, widths }))
    }

    fn are_unchanged(&self, py: Python<'_>) -> bool {
        self.parameters.iter().chain(&self.gradients).all(|tensor| tensor.is_unchanged(py))
    }

    /// The width of what the last one gives.
    fn last(&self) -> usize {
        self.widths[self.widths.len() - 1]
    }

    /// How many numbers those before the last one give; None where what all give is more than memory holds.
    fn hidden(&self, samples: usize) -> Option<usize> {
        let all = self
            .widths
            .iter()
            .try_fold(0_usize, |sum, &width| sum.checked_add(width))?
            .checked_mul(samples)?;
        Some(all - samples * (self.widths[0] + self.last()))
    }

    /// The number of products, as so many elements of other operations.
    fn work(&self, samples: usize) -> usize {
        let weights = self.widths.windows(2).map(|pair| pair[0] * pair[1]);
        weights.fold(0, usize::saturating_add).saturating_mul(samples) / PRODUCTS_PER_ELEMENT
    }

    /// The memory of weights and biases, if all are where they were; runs nothing in Python.
    fn memory(&self, py: Python<'_>) -> Option<Vec<[Memory; 2]>> {
        pairs(&self.parameters, py)
    }

    /// That of their gradients.
    fn gradient_memory(&self, py: Python<'_>) -> Option<Vec<[Memory; 2]>> {
        pairs(&self.gradients, py)
    }
}

/// The memory of tensors, two at a time.
fn pairs(tensors: &[Known], py: Python<'_>) -> Option<Vec<[Memory; 2]>> {
    let (pairs, _) = tensors.as_chunks::<2>();
    pairs.iter().map(|[one, other]| Some([memory(one.now(py)?)?, memory(other.now(py)?)?])).collect()
}

/// The layers whose weights and biases are there.
///
/// # Safety
/// As for [`Memory::read`], for each.
unsafe fn layers<'a>(parameters: &[[Memory; 2]]) -> Vec<Layer<'a>> {
    // SAFETY: the caller's promise.
    parameters
        .iter()
        .map(|[weight, bias]| unsafe { Layer { weight: weight.read(), bias: bias.read() } })
        .collect()
}

fn is_float32(tensor: &Described) -> bool {
    tensor.kind == Kind::F32 && tensor.contiguous().is_some()
}

/// The memory of a contiguous tensor of float32.
fn memory(tensor: &Described) -> Option<Memory> {
    Memory::new::<f32>("a tensor", tensor.contiguous()?, tensor.elements()?).ok()
}

/// A new tensor, and its memory.
fn made<'py>(py: Python<'py>, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, Memory)> {
    let (tensor, address) = empty_float32(py, PyTuple::new(py, shape)?.as_any(), shape)?;
    Ok((tensor, Memory::new::<f32>("a result", address, shape.iter().product())?))
}

/// Gives a buffer a length.
fn resize(buffer: &mut Vec<f32>, length: usize) -> PyResult<()> {
    let missing = length.saturating_sub(buffer.len());
    buffer
        .try_reserve_exact(missing)
        .map_err(|error| PyMemoryError::new_err(format!("{length} numbers of hidden layers: {error}")))?;
    buffer.resize(length, 0.0);
    Ok(())
}

impl Dense {
    /// The layers, looked at closely where something changed.
    fn look(&mut self, py: Python<'_>) -> PyResult<bool> {
        if self.known.as_ref().is_none_or(|layers| !layers.are_unchanged(py)) {
            self.known = None;
            self.known = Layers::of(py, &self.parameters)?;
        }
        Ok(self.known.is_some())
    }
}

#[pymethods]
impl Dense {
    /// Of weight and bias of each layer in turn.
    #[new]
    fn new(parameters: Vec<Bound<'_, PyAny>>) -> Self {
        Self {
            parameters: parameters.into_iter().map(Bound::unbind).collect(),
            known: None,
            hidden: Vec::new(),
            scratch: Vec::new(),
            samples: 0,
        }
    }

    /// What the layers make of samples `(B, inputs)`.
    ///
    /// None, with nothing done, where a tensor is not plain, contiguous and of float32, or does not fit.
    fn forward<'py>(
        &mut self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.samples = 0;
        let Some(x) = Plain::of(x).filter(|x| is_float32(x)) else { return Ok(None) };
        let &[samples, width] = x.shape() else { return Ok(None) };
        if !self.look(py)? {
            return Ok(None);
        }
        let Some(layers) = self.known.as_ref().filter(|layers| layers.widths[0] == width) else {
            return Ok(None);
        };
        let Some(hidden) = layers.hidden(samples) else { return Ok(None) };
        let (y, of_y) = made(py, &[samples, layers.last()])?;
        let execution = execution(threads(py)?)?;
        resize(&mut self.hidden, hidden)?;
        // After the last call into Python.
        let (Some(x), Some(parameters)) = (x.now().and_then(memory), layers.memory(py)) else {
            return Ok(None);
        };
        let (hidden, work) = (&mut self.hidden[..], layers.work(samples));
        run(py, work, || {
            // SAFETY: this object or the caller holds the tensors, which are of these sizes and types; `y` is new.
            let (x, read, y) = unsafe { (x.read(), self::layers(&parameters), of_y.write()) };
            ops::dense_forward(execution, samples, x, &read, hidden, y);
        });
        self.samples = samples;
        Ok(Some(y))
    }

    /// The gradients of the samples that [`Self::forward`] took last, if `of_x`, and of each weight and bias, in memory that
    /// the next call writes to again; and whether all numbers of the latter are finite.
    ///
    /// None likewise.
    fn backward<'py>(
        &mut self,
        py: Python<'py>,
        grad: &Bound<'py, PyAny>,
        x: &Bound<'py, PyAny>,
        of_x: bool,
    ) -> PyResult<Option<Gradients<'py>>> {
        let (Some(grad), Some(x)) = (Plain::of(grad), Plain::of(x)) else { return Ok(None) };
        let Some(layers) = self.known.as_ref().filter(|_| is_float32(&grad) && is_float32(&x)) else {
            return Ok(None);
        };
        let samples = self.samples;
        if grad.shape() != [samples, layers.last()] || x.shape() != [samples, layers.widths[0]] {
            return Err(PyValueError::new_err(format!(
                "forward took {samples} samples of {} numbers and gave {}, got x of {:?} and a gradient of {:?}",
                layers.widths[0],
                layers.last(),
                x.shape(),
                grad.shape()
            )));
        }
        if !layers.are_unchanged(py) {
            return Ok(None);
        }
        let (of_x, x_written) = of_x.then(|| made(py, x.shape())).transpose()?.unzip();
        let execution = execution(threads(py)?)?;
        resize(&mut self.scratch, self.hidden.len())?;
        let (Some(grad), Some(x)) = (grad.now().and_then(memory), x.now().and_then(memory)) else {
            return Ok(None);
        };
        let (Some(parameters), Some(written)) = (layers.memory(py), layers.gradient_memory(py)) else {
            return Ok(None);
        };
        let (all_written, all_read) =
            (written.as_flattened(), [parameters.as_flattened(), &[grad, x]].concat());
        if !are_apart::<f32>(all_written, &all_read) {
            return Err(PyValueError::new_err(
                "x or the gradient is in the memory of a gradient that is written to",
            ));
        }
        let (hidden, scratch, mut finite) = (&self.hidden[..], &mut self.scratch[..], false);
        let work = layers.work(samples).saturating_mul(2);
        run(py, work, || {
            // SAFETY: as above; this object made the gradients, which share no memory with what is read, and the one of x is
            // new.
            let (grad, x, read, of_x, mut grads) = unsafe {
                let gradients =
                    |[weight, bias]: &[Memory; 2]| LayerGrad { weight: weight.update(), bias: bias.update() };
                (
                    grad.read(),
                    x.read(),
                    self::layers(&parameters),
                    x_written.map(|memory| memory.write()),
                    written.iter().map(gradients).collect::<Vec<_>>(),
                )
            };
            finite =
                ops::dense_backward(execution, samples, grad, x, &read, hidden, &mut grads, of_x, scratch);
        });
        Ok(Some((
            of_x,
            PyList::new(py, layers.gradients.iter().map(|gradient| gradient.tensor(py)))?,
            finite,
        )))
    }
}
