//! Networks of dense layers on plain tensors.

#![allow(unsafe_code)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "what is in a list may be taken out of it during the call"
)]

use super::{execution, run};
use crate::exchange::{Kind, Plain, empty_float32, threads};
use crate::memory::Memory;
use fastvae_core::ops::{self, Layer, LayerGrad};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// A tensor that was made.
type Made<'py> = Bound<'py, PyAny>;
/// What a call gives, if its tensors are plain.
type Given<T> = PyResult<Option<T>>;

/// Products that take as long as an element of the other operations.
const PRODUCTS_PER_ELEMENT: usize = 16;

/// Samples, and the layers that they go through; the numbers of what all layers give fit in memory.
struct Network<'a, 'py> {
    x: Plain<'a, 'py>,
    /// Weight and bias of each layer in turn.
    parameters: Vec<Plain<'a, 'py>>,
    samples: usize,
    /// Of the samples, and of what each layer gives.
    widths: Vec<usize>,
}

impl<'a, 'py> Network<'a, 'py> {
    /// Of tensors that are all plain, contiguous and of float32, and that fit each other.
    fn of(x: &'a Bound<'py, PyAny>, parameters: &'a [Bound<'py, PyAny>]) -> Option<Self> {
        let x = floats(x)?;
        let parameters: Vec<_> = parameters.iter().map(floats).collect::<Option<_>>()?;
        let &[samples, width] = x.shape() else { return None };
        let mut widths = vec![width];
        let (layers, rest) = parameters.as_chunks::<2>();
        for [weight, bias] in layers {
            let &[outputs, inputs] = weight.shape() else { return None };
            if inputs != *widths.last()? || bias.shape() != [outputs] {
                return None;
            }
            widths.push(outputs);
        }
        widths.iter().try_fold(0_usize, |sum, &width| sum.checked_add(width))?.checked_mul(samples)?;
        (rest.is_empty() && !layers.is_empty()).then_some(Self { x, parameters, samples, widths })
    }

    /// How many numbers the layers before the last one give.
    fn hidden(&self) -> usize {
        self.samples * self.widths[1..self.widths.len() - 1].iter().sum::<usize>()
    }

    /// The shape of what the last one gives.
    fn last(&self) -> [usize; 2] {
        [self.samples, self.widths[self.widths.len() - 1]]
    }

    /// The number of products, as so many elements of other operations.
    fn work(&self) -> usize {
        let weights = self.widths.windows(2).map(|pair| pair[0] * pair[1]);
        weights.fold(0, usize::saturating_add).saturating_mul(self.samples) / PRODUCTS_PER_ELEMENT
    }

    /// The memory of the samples and of the parameters, if they are what they were.
    fn memory(&self) -> Option<(Memory, Vec<Memory>)> {
        Some((memory(&self.x)?, self.parameters.iter().map(memory).collect::<Option<_>>()?))
    }
}

/// A tensor that is plain, contiguous and of float32.
fn floats<'a, 'py>(tensor: &'a Bound<'py, PyAny>) -> Option<Plain<'a, 'py>> {
    Plain::of(tensor).filter(|tensor| tensor.kind == Kind::F32 && tensor.contiguous().is_some())
}

/// The memory of a tensor that still is what it was.
fn memory(tensor: &Plain<'_, '_>) -> Option<Memory> {
    let address = tensor.is_unchanged().then(|| tensor.contiguous())??;
    Memory::new::<f32>("a tensor", address, tensor.elements()?).ok()
}

/// A new tensor, and its memory.
fn made<'py>(py: Python<'py>, shape: &[usize]) -> PyResult<(Made<'py>, Memory)> {
    let (tensor, address) = empty_float32(py, PyTuple::new(py, shape)?.as_any(), shape)?;
    Ok((tensor, Memory::new::<f32>("a result", address, shape.iter().product())?))
}

/// The same for what hidden layers give, or nothing where there are none.
fn made_for_hidden<'py>(py: Python<'py>, network: &Network<'_, '_>) -> PyResult<(Option<Made<'py>>, Memory)> {
    match network.hidden() {
        0 => Ok((None, Memory::new::<f32>("nothing", 0, 0)?)),
        elements => made(py, &[elements]).map(|(tensor, memory)| (Some(tensor), memory)),
    }
}

/// The layers whose weights and biases are there.
///
/// # Safety
/// As for [`Memory::read`], for each.
unsafe fn layers<'a>(parameters: &[Memory]) -> Vec<Layer<'a>> {
    let (pairs, _) = parameters.as_chunks::<2>();
    // SAFETY: the caller's promise.
    pairs.iter().map(|[weight, bias]| unsafe { Layer { weight: weight.read(), bias: bias.read() } }).collect()
}

/// What layers, given by weight and bias of each in turn, make of samples `(B, inputs)` with a `ReLU` between each two;
/// and what those gave, one after the other, or None without any.
///
/// None, with nothing done, where a tensor is not plain, contiguous and of float32, or does not fit.
#[pyfunction]
pub(crate) fn plain_dense<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    parameters: Vec<Bound<'py, PyAny>>,
) -> Given<(Made<'py>, Option<Made<'py>>)> {
    let Some(network) = Network::of(x, &parameters) else { return Ok(None) };
    let (y, of_y) = made(py, &network.last())?;
    let (hidden, of_hidden) = made_for_hidden(py, &network)?;
    let execution = execution(threads(py)?)?;
    // After the last call into Python.
    let Some((x, parameters)) = network.memory() else { return Ok(None) };
    let (samples, work) = (network.samples, network.work());
    run(py, work, || {
        // SAFETY: the caller and this function hold the tensors, which are of these sizes and types; the results are new.
        let (x, layers, hidden, y) =
            unsafe { (x.read(), layers(&parameters), of_hidden.write(), of_y.write()) };
        ops::dense_forward(execution, samples, x, &layers, hidden, y);
    });
    Ok(Some((y, hidden)))
}

/// The gradients of the samples, if `of_x`, and of each weight and bias; and whether all numbers of the latter are finite.
///
/// None likewise.
#[pyfunction]
pub(crate) fn plain_dense_backward<'py>(
    py: Python<'py>,
    grad: &Bound<'py, PyAny>,
    x: &Bound<'py, PyAny>,
    parameters: Vec<Bound<'py, PyAny>>,
    hidden: Option<&Bound<'py, PyAny>>,
    of_x: bool,
) -> Given<(Option<Made<'py>>, Vec<Made<'py>>, bool)> {
    let Some(network) = Network::of(x, &parameters) else { return Ok(None) };
    let Some(grad) = floats(grad).filter(|grad| grad.shape() == network.last()) else { return Ok(None) };
    let hidden = match hidden.map(floats) {
        None if network.hidden() == 0 => None,
        Some(Some(hidden)) if hidden.shape() == [network.hidden()] => Some(hidden),
        _ => return Ok(None),
    };
    let (mut grads, mut of_grads) = (Vec::new(), Vec::new());
    for parameter in &network.parameters {
        let (tensor, memory) = made(py, parameter.shape())?;
        grads.push(tensor);
        of_grads.push(memory);
    }
    let of_x = of_x.then(|| made(py, network.x.shape())).transpose()?;
    let (of_x, of_of_x) = of_x.unzip();
    let (_scratch, of_scratch) = made_for_hidden(py, &network)?;
    let execution = execution(threads(py)?)?;
    // After the last call into Python.
    let (Some((x, parameters)), Some(grad)) = (network.memory(), memory(&grad)) else { return Ok(None) };
    let hidden = match hidden.as_ref().map(memory) {
        None => Memory::new::<f32>("nothing", 0, 0)?,
        Some(Some(hidden)) => hidden,
        Some(None) => return Ok(None),
    };
    let (samples, work, mut finite) = (network.samples, network.work().saturating_mul(2), false);
    run(py, work, || {
        // SAFETY: as above.
        let (grad, x, layers, hidden, of_x, scratch) = unsafe {
            (
                grad.read(),
                x.read(),
                layers(&parameters),
                hidden.read(),
                of_of_x.map(|memory| memory.write()),
                of_scratch.write(),
            )
        };
        let (pairs, _) = of_grads.as_chunks::<2>();
        let grads = pairs.iter().map(|[weight, bias]| {
            // SAFETY: as above.
            unsafe { LayerGrad { weight: weight.write(), bias: bias.write() } }
        });
        let mut grads: Vec<_> = grads.collect();
        finite = ops::dense_backward(execution, samples, grad, x, &layers, hidden, &mut grads, of_x, scratch);
    });
    Ok(Some((of_x, grads, finite)))
}
