//! Operators on plain tensors, results made and kernels called: the short way of small work.
//!
//! Each takes the arguments of its operator (`fastvae.ops.*.schema`) and gives what it gives, or None, with nothing
//! done, where a tensor is not plain or does not fit: `fastvae.ops.*.cpu` knows what to do with any other, and what to
//! say of it.

use super::gather::gather_batch;
use super::latent::{latent_backward, latent_forward};
use super::likelihood::{bernoulli_backward, bernoulli_forward, gaussian_backward, gaussian_forward};
use super::log_weight::{log_weight_backward, log_weight_forward};
use super::noise::fill;
use super::{Strided, check_counters, product};
use crate::exchange::{
    Described, InRows, Kind, MOST_AXES, Plain, empty_float32, increment_version, is_float32, is_tensor,
    shape_of, threads,
};
use fastvae_core::noise::{Distribution, Normal, Uniform};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString, PyTuple};

/// A tensor that was made.
type Made<'py> = Bound<'py, PyAny>;
/// What a call gives, if its tensors are plain.
type Given<T> = PyResult<Option<T>>;

/// Goes on with what is there, or gives None.
macro_rules! some {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

/// The number of a dtype, as in `fastvae.ops.layout.DTYPE_CODES`, where its arithmetic is in the dtype itself.
fn dtype(kind: Kind) -> Option<u8> {
    match kind {
        Kind::F32 => Some(0),
        Kind::F64 => Some(1),
        Kind::I64 | Kind::U8 | Kind::Bool => None,
    }
}

/// The number of a reduction, as in `fastvae.ops.layout.KL_CODES`, and the part of a shape that it leaves.
fn reduced<'a>(shape: &'a [usize], event_dims: usize, reduction: &str) -> Option<(u8, &'a [usize])> {
    let split = shape.len().checked_sub(event_dims)?;
    match reduction {
        "none" => Some((1, shape)),
        "sample" => Some((2, &shape[..split])),
        "sum" => Some((3, &[])),
        "dimension" => Some((4, &shape[split..])),
        _ => None,
    }
}

/// A tensor in rows, if it is plain and like another one.
fn alike(tensor: &Bound<'_, PyAny>, like: &Plain<'_, '_>, event_dims: usize) -> Option<InRows> {
    shaped(tensor, like.kind, like.shape(), event_dims)
}

/// A tensor in rows, if it is plain and of this kind and shape.
fn shaped(tensor: &Bound<'_, PyAny>, kind: Kind, shape: &[usize], event_dims: usize) -> Option<InRows> {
    let tensor = Plain::of(tensor)?;
    (tensor.kind == kind && tensor.shape() == shape).then(|| tensor.rows(event_dims))?
}

/// The gradient of a KL or a log-probability, if it is plain and of the shape that the reduction leaves.
fn reduced_grad(
    grad: &Bound<'_, PyAny>,
    like: &Plain<'_, '_>,
    event_dims: usize,
    reduction: &str,
) -> Option<(u8, Strided)> {
    let (code, shape) = reduced(like.shape(), event_dims, reduction)?;
    let grad = Plain::of(grad)?;
    // A matrix, or one of its rows; else a column.
    let columns = if matches!(code, 1 | 4) { event_dims } else { 0 };
    (grad.kind == like.kind && grad.shape() == shape).then_some((code, grad.rows(columns)?.strided()))
}

/// An integer in a range, if it is one and no subclass.
fn integer(value: &Bound<'_, PyAny>, limit: u64) -> Option<u64> {
    if !value.is_exact_instance_of::<PyInt>() {
        return None;
    }
    value.extract().ok().filter(|&value| value < limit)
}

fn integer_below(value: &Bound<'_, PyAny>, limit: u64) -> bool {
    integer(value, limit).is_some()
}

/// Whether a latent and its numbers are what they nearly always are, so that nothing is to be said of them.
#[pyfunction]
pub(crate) fn plain_latent(
    mu: &Bound<'_, PyAny>,
    logvar: &Bound<'_, PyAny>,
    event_dims: &Bound<'_, PyAny>,
    draw: &Bound<'_, PyAny>,
    row_offset: &Bound<'_, PyAny>,
) -> bool {
    let (Some(mu), Some(logvar)) = (Described::of(mu), Described::of(logvar)) else { return false };
    dtype(mu.kind).is_some()
        && mu.kind == logvar.kind
        && mu.shape() == logvar.shape()
        && integer_below(event_dims, mu.shape().len() as u64 + 1)
        && integer_below(draw, 1 << 32)
        && integer_below(row_offset, 1 << 63)
}

/// Whether each of these is a tensor that memory describes, or none.
#[pyfunction]
pub(crate) fn all_described(arguments: &Bound<'_, PyTuple>) -> bool {
    arguments.iter().all(|argument| {
        // To ask whether a number is a tensor takes longer than all there is to know of one.
        argument.is_exact_instance_of::<PyInt>()
            || argument.is_exact_instance_of::<PyString>()
            || Described::of(&argument).is_some()
            || !is_tensor(&argument)
    })
}

/// Where noise comes from: a seed, a draw, and the number of the first row.
type Noise<'a, 'py> = (&'a Bound<'py, PyAny>, u32, u64);

fn numbers((seed, draw, row_offset): Noise<'_, '_>) -> Option<(i64, u32, u64)> {
    Some((Plain::of(seed)?.integer()?, draw, row_offset))
}

/// A tensor for results, and its address; none, at 0, where there is no shape.
fn made<'py>(like: &Plain<'_, 'py>, shape: Option<&[usize]>) -> PyResult<(Option<Made<'py>>, usize)> {
    let Some(shape) = shape else { return Ok((None, 0)) };
    let (tensor, address) = like.new_empty(shape)?;
    Ok((Some(tensor), address))
}

/// z where there is noise, and the KL where there is a reduction.
fn latent<'py>(
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    noise: Option<Noise<'_, 'py>>,
    reduction: Option<&str>,
    event_dims: usize,
) -> Given<(Option<Made<'py>>, Option<Made<'py>>)> {
    let py = mu.py();
    let mu = some!(Plain::of(mu));
    let dtype = some!(dtype(mu.kind));
    let rows = some!(mu.rows(event_dims));
    let logvar = some!(alike(logvar, &mu, event_dims));
    let noise = match noise {
        Some(noise) => Some(some!(numbers(noise))),
        None => None,
    };
    let (code, shape) = match reduction {
        Some(reduction) => {
            let (code, shape) = some!(reduced(mu.shape(), event_dims, reduction));
            (code, Some(shape))
        }
        None => (0, None),
    };
    let (z, z_address) = made(&mu, noise.map(|_| mu.shape()))?;
    let (kl, kl_address) = made(&mu, shape)?;
    latent_forward(
        py,
        dtype,
        rows.count,
        rows.columns,
        rows.strided(),
        logvar.strided(),
        z_address,
        noise,
        code,
        kl_address,
        threads(py)?,
    )?;
    Ok(Some((z, kl)))
}

/// The gradients of mu, where there is a KL, and of logvar.
fn latent_grads<'py>(
    mu: Option<&Bound<'py, PyAny>>,
    logvar: &Bound<'py, PyAny>,
    sampled: Option<(&Bound<'py, PyAny>, Noise<'_, 'py>)>,
    kl: Option<(&Bound<'py, PyAny>, &str)>,
    event_dims: usize,
) -> Given<(Option<Made<'py>>, Made<'py>)> {
    let py = logvar.py();
    let logvar = some!(Plain::of(logvar));
    let dtype = some!(dtype(logvar.kind));
    let rows = some!(logvar.rows(event_dims));
    let mu = match mu {
        Some(mu) => some!(alike(mu, &logvar, event_dims)).strided(),
        None => (0, 0),
    };
    let (grad_z, noise) = match sampled {
        Some((grad_z, noise)) => {
            (some!(alike(grad_z, &logvar, event_dims)).strided(), Some(some!(numbers(noise))))
        }
        None => ((0, 0), None),
    };
    let (code, grad_kl) = match kl {
        Some((grad_kl, reduction)) => some!(reduced_grad(grad_kl, &logvar, event_dims, reduction)),
        None => (0, (0, 0)),
    };
    let (grad_mu, mu_address) = made(&logvar, kl.map(|_| logvar.shape()))?;
    let (grad_logvar, logvar_address) = logvar.new_empty(logvar.shape())?;
    latent_backward(
        py,
        dtype,
        rows.count,
        rows.columns,
        mu,
        rows.strided(),
        grad_z,
        noise,
        code,
        grad_kl,
        mu_address,
        logvar_address,
        threads(py)?,
    )?;
    Ok(Some((grad_mu, grad_logvar)))
}

/// `fastvae::reparametrize`.
#[pyfunction]
pub(crate) fn plain_reparametrize<'py>(
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: u32,
    row_offset: u64,
    event_dims: usize,
) -> Given<Made<'py>> {
    let results = latent(mu, logvar, Some((seed, draw, row_offset)), None, event_dims)?;
    Ok(results.and_then(|(z, _)| z))
}

/// `fastvae::reparametrize_backward`.
#[pyfunction]
pub(crate) fn plain_reparametrize_backward<'py>(
    grad_z: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: u32,
    row_offset: u64,
    event_dims: usize,
) -> Given<Made<'py>> {
    let grads = latent_grads(None, logvar, Some((grad_z, (seed, draw, row_offset))), None, event_dims)?;
    Ok(grads.map(|(_, grad_logvar)| grad_logvar))
}

/// `fastvae::gaussian_kl`, without free bits.
#[pyfunction]
#[pyo3(signature = (mu, logvar, event_dims, reduction, free_bits=0.0, group_size=1))]
pub(crate) fn plain_gaussian_kl<'py>(
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    event_dims: usize,
    reduction: &str,
    free_bits: f64,
    group_size: i64,
) -> Given<Made<'py>> {
    if (free_bits, group_size) != (0.0, 1) {
        return Ok(None);
    }
    let results = latent(mu, logvar, None, Some(reduction), event_dims)?;
    Ok(results.and_then(|(_, kl)| kl))
}

/// `fastvae::gaussian_kl_backward`, without free bits.
#[pyfunction]
#[pyo3(signature = (grad_kl, mu, logvar, event_dims, reduction, free_bits=0.0, group_size=1))]
pub(crate) fn plain_gaussian_kl_backward<'py>(
    grad_kl: &Bound<'py, PyAny>,
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    event_dims: usize,
    reduction: &str,
    free_bits: f64,
    group_size: i64,
) -> Given<(Made<'py>, Made<'py>)> {
    if (free_bits, group_size) != (0.0, 1) {
        return Ok(None);
    }
    let grads = latent_grads(Some(mu), logvar, None, Some((grad_kl, reduction)), event_dims)?;
    Ok(grads.and_then(|(grad_mu, grad_logvar)| Some((grad_mu?, grad_logvar))))
}

/// `fastvae::reparametrize_kl`, without free bits.
#[pyfunction]
#[pyo3(signature = (mu, logvar, seed, draw, row_offset, event_dims, reduction, free_bits=0.0, group_size=1))]
pub(crate) fn plain_reparametrize_kl<'py>(
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: u32,
    row_offset: u64,
    event_dims: usize,
    reduction: &str,
    free_bits: f64,
    group_size: i64,
) -> Given<(Made<'py>, Made<'py>)> {
    if (free_bits, group_size) != (0.0, 1) {
        return Ok(None);
    }
    let results = latent(mu, logvar, Some((seed, draw, row_offset)), Some(reduction), event_dims)?;
    Ok(results.and_then(|(z, kl)| Some((z?, kl?))))
}

/// `fastvae::reparametrize_kl_backward`, without free bits.
#[pyfunction]
#[pyo3(signature = (grad_z, grad_kl, mu, logvar, seed, draw, row_offset, event_dims, reduction, free_bits=0.0, group_size=1))]
pub(crate) fn plain_reparametrize_kl_backward<'py>(
    grad_z: &Bound<'py, PyAny>,
    grad_kl: &Bound<'py, PyAny>,
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: u32,
    row_offset: u64,
    event_dims: usize,
    reduction: &str,
    free_bits: f64,
    group_size: i64,
) -> Given<(Made<'py>, Made<'py>)> {
    if (free_bits, group_size) != (0.0, 1) {
        return Ok(None);
    }
    let sampled = (grad_z, (seed, draw, row_offset));
    let grads = latent_grads(Some(mu), logvar, Some(sampled), Some((grad_kl, reduction)), event_dims)?;
    Ok(grads.and_then(|(grad_mu, grad_logvar)| Some((grad_mu?, grad_logvar))))
}

/// `fastvae::reparametrize_log_weight`.
#[pyfunction]
pub(crate) fn plain_reparametrize_log_weight<'py>(
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: u32,
    row_offset: u64,
    event_dims: usize,
    num_samples: usize,
) -> Given<(Made<'py>, Made<'py>)> {
    let py = mu.py();
    let mu = some!(Plain::of(mu));
    // z has one axis more.
    if num_samples == 0 || mu.shape().len() == MOST_AXES {
        return Ok(None);
    }
    let dtype = some!(dtype(mu.kind));
    let rows = some!(mu.rows(event_dims));
    let logvar = some!(alike(logvar, &mu, event_dims));
    let noise = some!(numbers((seed, draw, row_offset)));
    let (_, lead) = some!(reduced(mu.shape(), event_dims, "sample"));
    let (z, z_address) = mu.new_empty(&[&[num_samples], mu.shape()].concat())?;
    let (log_weight, weight_address) = mu.new_empty(&[&[num_samples], lead].concat())?;
    log_weight_forward(
        py,
        dtype,
        num_samples,
        rows.count,
        rows.columns,
        rows.strided(),
        logvar.strided(),
        noise,
        z_address,
        weight_address,
        threads(py)?,
    )?;
    Ok(Some((z, log_weight)))
}

/// `fastvae::reparametrize_log_weight_backward`.
#[pyfunction]
pub(crate) fn plain_reparametrize_log_weight_backward<'py>(
    grad_z: Option<&Bound<'py, PyAny>>,
    grad_log_weight: Option<&Bound<'py, PyAny>>,
    mu: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: u32,
    row_offset: u64,
    event_dims: usize,
    num_samples: usize,
) -> Given<(Made<'py>, Made<'py>)> {
    let py = mu.py();
    let mu = some!(Plain::of(mu));
    let dtype = some!(dtype(mu.kind));
    let rows = some!(mu.rows(event_dims));
    let logvar = some!(alike(logvar, &mu, event_dims));
    let noise = some!(numbers((seed, draw, row_offset)));
    let (_, lead) = some!(reduced(mu.shape(), event_dims, "sample"));
    // The samples are rows too, all of one below those of the other.
    let grad_z = match grad_z {
        Some(grad) => {
            let shape = [&[num_samples], mu.shape()].concat();
            Some(some!(shaped(grad, mu.kind, &shape, event_dims)).strided())
        }
        None => None,
    };
    let grad_log_weight = match grad_log_weight {
        Some(grad) => {
            let shape = [&[num_samples], lead].concat();
            Some(some!(shaped(grad, mu.kind, &shape, 0)).strided())
        }
        None => None,
    };
    let (grad_mu, mu_address) = mu.new_empty(mu.shape())?;
    let (grad_logvar, logvar_address) = mu.new_empty(mu.shape())?;
    log_weight_backward(
        py,
        dtype,
        num_samples,
        rows.count,
        rows.columns,
        rows.strided(),
        logvar.strided(),
        noise,
        grad_z,
        grad_log_weight,
        mu_address,
        logvar_address,
        threads(py)?,
    )?;
    Ok(Some((grad_mu, grad_logvar)))
}

/// The data of a likelihood in rows, one for each of the parameters, and what stands for 1 in bytes (0: floats).
fn observed(
    target: &Bound<'_, PyAny>,
    target_max: u8,
    parameters: &Plain<'_, '_>,
    event_dims: usize,
) -> Option<(usize, usize, usize, u8)> {
    let target = Plain::of(target)?;
    let max = match target.kind {
        Kind::U8 if target_max > 0 => target_max,
        Kind::Bool if target_max == 1 => 1,
        kind if kind == parameters.kind && target_max == 1 => 0,
        _ => return None,
    };
    if parameters.shape() != target.shape() {
        return None;
    }
    let rows = target.rows(event_dims)?;
    Some((rows.address, rows.stride, rows.count, max))
}

/// `fastvae::bernoulli_log_prob` of whole events.
#[pyfunction]
pub(crate) fn plain_bernoulli_log_prob<'py>(
    logits: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    target_max: u8,
    event_dims: usize,
) -> Given<Made<'py>> {
    let py = logits.py();
    if event_dims == 0 {
        return Ok(None);
    }
    let logits = some!(Plain::of(logits));
    let dtype = some!(dtype(logits.kind));
    let rows = some!(logits.rows(event_dims));
    let target = some!(observed(target, target_max, &logits, event_dims));
    let (code, shape) = some!(reduced(logits.shape(), event_dims, "sample"));
    let (log_prob, address) = logits.new_empty(shape)?;
    bernoulli_forward(
        py,
        dtype,
        rows.count,
        rows.columns,
        rows.strided(),
        target,
        (code, (address, 0)),
        threads(py)?,
    )?;
    Ok(Some(log_prob))
}

/// `fastvae::bernoulli_log_prob_backward` of whole events.
#[pyfunction]
pub(crate) fn plain_bernoulli_log_prob_backward<'py>(
    grad: &Bound<'py, PyAny>,
    logits: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    target_max: u8,
    event_dims: usize,
) -> Given<Made<'py>> {
    let py = logits.py();
    if event_dims == 0 {
        return Ok(None);
    }
    let logits = some!(Plain::of(logits));
    let dtype = some!(dtype(logits.kind));
    let rows = some!(logits.rows(event_dims));
    let target = some!(observed(target, target_max, &logits, event_dims));
    let grad = some!(reduced_grad(grad, &logits, event_dims, "sample"));
    let (grad_logits, address) = logits.new_empty(logits.shape())?;
    bernoulli_backward(
        py,
        dtype,
        rows.count,
        rows.columns,
        rows.strided(),
        target,
        grad,
        address,
        threads(py)?,
    )?;
    Ok(Some(grad_logits))
}

/// The logarithm of a variance, one for each of the means or (at no distance of rows) one for all of them, whether it is
/// that, and the shape of its gradient.
fn log_variance(
    logvar: &Bound<'_, PyAny>,
    mean: &Plain<'_, '_>,
    event_dims: usize,
) -> Option<(Strided, bool, Vec<usize>)> {
    let logvar = Plain::of(logvar)?;
    if logvar.kind != mean.kind {
        return None;
    }
    let rows = logvar.rows(if logvar.shape() == mean.shape() { event_dims } else { logvar.shape().len() })?;
    if logvar.shape() == mean.shape() {
        return Some((rows.strided(), false, logvar.shape().to_vec()));
    }
    (rows.columns == 1).then(|| ((rows.address, 0), true, logvar.shape().to_vec()))
}

/// `fastvae::gaussian_log_prob` of whole events.
#[pyfunction]
pub(crate) fn plain_gaussian_log_prob<'py>(
    mean: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    target_max: u8,
    event_dims: usize,
) -> Given<Made<'py>> {
    let py = mean.py();
    if event_dims == 0 {
        return Ok(None);
    }
    let mean = some!(Plain::of(mean));
    let dtype = some!(dtype(mean.kind));
    let rows = some!(mean.rows(event_dims));
    let (logvar, shared, _) = some!(log_variance(logvar, &mean, event_dims));
    let target = some!(observed(target, target_max, &mean, event_dims));
    let (code, shape) = some!(reduced(mean.shape(), event_dims, "sample"));
    let (log_prob, address) = mean.new_empty(shape)?;
    gaussian_forward(
        py,
        dtype,
        rows.count,
        rows.columns,
        rows.strided(),
        logvar,
        shared,
        target,
        (code, (address, 0)),
        threads(py)?,
    )?;
    Ok(Some(log_prob))
}

/// `fastvae::gaussian_log_prob_backward` of whole events.
#[pyfunction]
pub(crate) fn plain_gaussian_log_prob_backward<'py>(
    grad: &Bound<'py, PyAny>,
    mean: &Bound<'py, PyAny>,
    logvar: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    target_max: u8,
    event_dims: usize,
) -> Given<(Made<'py>, Made<'py>)> {
    let py = mean.py();
    if event_dims == 0 {
        return Ok(None);
    }
    let mean = some!(Plain::of(mean));
    let dtype = some!(dtype(mean.kind));
    let rows = some!(mean.rows(event_dims));
    let (logvar, shared, logvar_shape) = some!(log_variance(logvar, &mean, event_dims));
    let target = some!(observed(target, target_max, &mean, event_dims));
    let grad = some!(reduced_grad(grad, &mean, event_dims, "sample"));
    let (grad_mean, mean_address) = mean.new_empty(mean.shape())?;
    let (grad_logvar, logvar_address) = mean.new_empty(&logvar_shape)?;
    gaussian_backward(
        py,
        dtype,
        rows.count,
        rows.columns,
        rows.strided(),
        logvar,
        shared,
        target,
        grad,
        [mean_address, logvar_address],
        threads(py)?,
    )?;
    Ok(Some((grad_mean, grad_logvar)))
}

/// One number per sample of a batch: its address.
fn row_numbers(tensor: &Bound<'_, PyAny>, count: Option<usize>) -> Option<(usize, usize)> {
    let tensor = Plain::of(tensor)?;
    let &[length] = tensor.shape() else { return None };
    let rows = tensor.rows(1).filter(|_| tensor.kind == Kind::I64)?;
    count.is_none_or(|count| count == length).then_some((rows.address, length))
}

/// `fastvae::gather_batch`, to float32.
#[pyfunction]
pub(crate) fn plain_gather_batch<'py>(
    data: &Bound<'py, PyAny>,
    index: &Bound<'py, PyAny>,
    rows: Option<&Bound<'py, PyAny>>,
    seed: Option<&Bound<'py, PyAny>>,
    draw: u32,
    data_max: Option<f32>,
    binarize: &str,
    dtype: &Bound<'py, PyAny>,
) -> Given<Made<'py>> {
    let py = data.py();
    let data = some!(Plain::of(data));
    let code = match data.kind {
        Kind::F32 => 0,
        Kind::U8 | Kind::Bool => 4,
        Kind::F64 | Kind::I64 => return Ok(None),
    };
    let &[_, ref sample @ ..] = data.shape() else { return Ok(None) };
    let samples = some!(data.rows(sample.len()));
    let index = some!(row_numbers(index, None));
    let binarize = match binarize {
        "none" => 0,
        "threshold" => 1,
        "dynamic" => 2,
        _ => return Ok(None),
    };
    let noise = if binarize == 2 {
        let numbers = match rows {
            Some(rows) => some!(row_numbers(rows, Some(index.1))).0,
            None => 0,
        };
        (some!(seed.and_then(Plain::of).and_then(|seed| seed.integer())), draw, numbers)
    } else {
        (0, 0, 0)
    };
    if !is_float32(dtype) {
        return Ok(None);
    }
    let shape: Vec<_> = [&[index.1], sample].concat();
    let (batch, address) = data.new_empty_float32(&shape)?;
    gather_batch(
        py,
        (code, 0),
        (samples.address, samples.count, samples.stride),
        samples.columns,
        index,
        data_max,
        binarize,
        noise,
        address,
        threads(py)?,
    )?;
    Ok(Some(batch))
}

/// The bits of a seed that was given: an integer of 64 bits, signed or unsigned, or a tensor of one.
fn seed_bits(seed: &Bound<'_, PyAny>) -> Option<i64> {
    if seed.is_exact_instance_of::<PyInt>() {
        let signed: Option<i64> = seed.extract().ok();
        return signed.or_else(|| seed.extract::<u64>().ok().map(|bits| bits as i64));
    }
    Plain::of(seed)?.integer()
}

/// Noise in a new tensor, or in the one that is given.
fn matrix<'py, D: Distribution>(
    shape: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: &Bound<'py, PyAny>,
    row_offset: &Bound<'py, PyAny>,
    event_dims: &Bound<'py, PyAny>,
    out: Option<&Bound<'py, PyAny>>,
    default_seed: &Bound<'py, PyAny>,
) -> Given<Made<'py>> {
    let py = shape.py();
    let sizes = some!(shape_of(shape));
    let event_dims = some!(integer(event_dims, sizes.len() as u64 + 1)) as usize;
    let draw = some!(integer(draw, 1 << 32)) as u32;
    let row_offset = some!(integer(row_offset, 1 << 63));
    let (lead, event) = sizes.split_at(sizes.len() - event_dims);
    let count = |sizes: &[usize]| sizes.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let (rows, columns) = (some!(count(lead)), some!(count(event)));
    // What is too large is refused in words of the long way, too.
    let fits = product(rows, columns).is_ok() && check_counters(rows, columns, row_offset).is_ok();
    if rows == 0 || columns == 0 || !fits {
        return Ok(None);
    }
    let given = match out {
        Some(out) => {
            let plain = some!(Plain::of(out));
            if plain.kind != Kind::F32 || plain.shape() != sizes || plain.requires_grad()? {
                return Ok(None);
            }
            some!(plain.contiguous());
            Some((out, plain))
        }
        None => None,
    };
    // Last, so that nothing is drawn in vain.
    let seed = if seed.is_none() {
        default_seed.call0()?.call_method0(intern!(py, "item"))?.extract()?
    } else {
        some!(seed_bits(seed))
    };
    let threads = threads(py)?;
    let is_new = given.is_none();
    let (values, address) = match given {
        // What drew the seed ran in Python.
        Some((out, plain)) => {
            let address = plain.now().and_then(Described::contiguous);
            let changed = || PyRuntimeError::new_err("out was changed while its noise was drawn");
            (out.clone(), address.ok_or_else(changed)?)
        }
        None => empty_float32(py, shape, &sizes)?,
    };
    fill::<D>(py, address, (rows, columns), seed, draw, row_offset, 0, threads)?;
    if !is_new {
        increment_version(&values)?;
    }
    Ok(Some(values))
}

/// `fastvae.noise.normal` of float32 on the CPU, with rows that are numbered from an offset on.
#[pyfunction]
#[pyo3(signature = (shape, seed, draw, row_offset, event_dims, out, default_seed))]
pub(crate) fn plain_normal<'py>(
    shape: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: &Bound<'py, PyAny>,
    row_offset: &Bound<'py, PyAny>,
    event_dims: &Bound<'py, PyAny>,
    out: Option<&Bound<'py, PyAny>>,
    default_seed: &Bound<'py, PyAny>,
) -> Given<Made<'py>> {
    matrix::<Normal>(shape, seed, draw, row_offset, event_dims, out, default_seed)
}

/// `fastvae.noise.uniform`, likewise.
#[pyfunction]
#[pyo3(signature = (shape, seed, draw, row_offset, event_dims, out, default_seed))]
pub(crate) fn plain_uniform<'py>(
    shape: &Bound<'py, PyAny>,
    seed: &Bound<'py, PyAny>,
    draw: &Bound<'py, PyAny>,
    row_offset: &Bound<'py, PyAny>,
    event_dims: &Bound<'py, PyAny>,
    out: Option<&Bound<'py, PyAny>>,
    default_seed: &Bound<'py, PyAny>,
) -> Given<Made<'py>> {
    matrix::<Uniform>(shape, seed, draw, row_offset, event_dims, out, default_seed)
}
