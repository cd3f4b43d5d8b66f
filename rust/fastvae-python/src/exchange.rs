//! Tensors as torch describes them to C, by way of `DLPack`'s exchange API (torch 2.10 and later).
//!
//! One call of a C function says of a Python tensor what a dozen calls of its methods would. For a small tensor those
//! take longer than the arithmetic.

#![allow(unsafe_code)]

use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi::{PyObject, c_str};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyCapsule, PyDict, PyInt, PyList, PyTuple};
use std::ffi::{CStr, c_int, c_void};
use std::ops::Deref;
use std::{ptr, slice};

/// The attribute of a tensor type, and the name of the capsule in it.
const ATTRIBUTE: &str = "__dlpack_c_exchange_api__";
const CAPSULE: &CStr = c_str!("dlpack_exchange_api");

/// The version of `DLPackExchangeAPI` that is laid out as below; a later minor one only adds to it.
const MAJOR: u32 = 1;

/// Tensors with more axes take the way that knows any number.
pub(crate) const MOST_AXES: usize = 8;

/// `DLPackExchangeAPIHeader`.
#[repr(C)]
struct Header {
    major: u32,
    minor: u32,
    previous: *const Header,
}

/// `DLPackExchangeAPI`, of which one function is used.
#[repr(C)]
struct Api {
    header: Header,
    managed_tensor_allocator: *const c_void,
    managed_tensor_from_py_object_no_sync: *const c_void,
    managed_tensor_to_py_object_no_sync: *const c_void,
    dltensor_from_py_object_no_sync: Option<Describe>,
    current_work_stream: *const c_void,
}

/// `DLPackDLTensorFromPyObjectNoSync`: 0 if all went well, else -1 with a Python exception set.
type Describe = unsafe extern "C" fn(*mut PyObject, *mut DlTensor) -> c_int;

/// `DLTensor`.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    axes: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

impl DlTensor {
    const NOTHING: Self = Self {
        data: ptr::null_mut(),
        device_type: 0,
        device_id: 0,
        axes: 0,
        code: 0,
        bits: 0,
        lanes: 0,
        shape: ptr::null(),
        strides: ptr::null(),
        byte_offset: 0,
    };
}

/// `kDLCPU`.
const CPU: i32 = 1;

/// What the elements of a tensor are; a bool is a byte that is 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    F64,
    I64,
    U8,
    Bool,
}

impl Kind {
    /// From `DLDataType`: `kDLInt` is 0, `kDLUInt` 1, `kDLFloat` 2, `kDLBool` 6.
    fn new(code: u8, bits: u8, lanes: u16) -> Option<Self> {
        match (code, bits, lanes) {
            (2, 32, 1) => Some(Self::F32),
            (2, 64, 1) => Some(Self::F64),
            (0, 64, 1) => Some(Self::I64),
            (1, 8, 1) => Some(Self::U8),
            (6, 8, 1) => Some(Self::Bool),
            _ => None,
        }
    }

    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::U8 | Self::Bool => 1,
        }
    }
}

/// What is needed of torch.
struct Torch {
    describe: Describe,
    tensor: Py<PyAny>,
    parameter: Py<PyAny>,
    float32: Py<PyAny>,
    size: Py<PyAny>,
    empty: Py<PyAny>,
    /// The options of a new tensor of float32 on the CPU.
    float32_cpu: Py<PyDict>,
    increment_version: Py<PyAny>,
    get_num_threads: Py<PyAny>,
    /// Methods as their classes have them: an attribute of one tensor that hides one must not run between the look at
    /// an address and its use.
    methods: Methods,
}

struct Methods {
    untyped_storage: Py<PyAny>,
    storage_offset: Py<PyAny>,
    is_neg: Py<PyAny>,
    new_empty: Py<PyAny>,
    nbytes: Py<PyAny>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

/// Lets tensors be read here from now on, given the module torch; False, and nothing done, where its exchange API is
/// another one.
#[pyfunction]
pub(crate) fn use_torch_tensors(torch: &Bound<'_, PyAny>) -> PyResult<bool> {
    let tensor = torch.getattr("Tensor")?;
    let Some(describe) = find_describe(&tensor) else { return Ok(false) };
    let float32 = torch.getattr("float32")?;
    let options = [("dtype", float32.clone()), ("device", torch.call_method1("device", ("cpu",))?)];
    let methods = Methods {
        untyped_storage: tensor.getattr("untyped_storage")?.unbind(),
        storage_offset: tensor.getattr("storage_offset")?.unbind(),
        is_neg: tensor.getattr("is_neg")?.unbind(),
        new_empty: tensor.getattr("new_empty")?.unbind(),
        nbytes: torch.getattr("UntypedStorage")?.getattr("nbytes")?.unbind(),
    };
    let found = Torch {
        describe,
        tensor: tensor.unbind(),
        parameter: torch.getattr("nn")?.getattr("Parameter")?.unbind(),
        float32: float32.unbind(),
        size: torch.getattr("Size")?.unbind(),
        empty: torch.getattr("empty")?.unbind(),
        float32_cpu: options.into_py_dict(torch.py())?.unbind(),
        increment_version: torch
            .getattr("autograd")?
            .getattr("graph")?
            .getattr("increment_version")?
            .unbind(),
        get_num_threads: torch.getattr("get_num_threads")?.unbind(),
        methods,
    };
    TORCH.get_or_init(torch.py(), || found);
    Ok(true)
}

fn find_describe(tensor: &Bound<'_, PyAny>) -> Option<Describe> {
    let capsule = tensor.getattr(ATTRIBUTE).ok()?.cast_into::<PyCapsule>().ok()?;
    let mut header: *const Header = capsule.pointer_checked(Some(CAPSULE)).ok()?.as_ptr().cast_const().cast();
    // SAFETY: a capsule of this name holds a `DLPackExchangeAPI` that lives as long as the process. Its header is the
    // same in all versions and leads to the table of the version before, or nowhere; a table of this major version
    // begins as `Api` does.
    unsafe {
        while let Some(table) = header.as_ref() {
            if table.major == MAJOR {
                return (*header.cast::<Api>()).dltensor_from_py_object_no_sync;
            }
            header = table.previous;
        }
    }
    None
}

/// How many threads torch uses for an operation.
pub(crate) fn threads(py: Python<'_>) -> PyResult<usize> {
    match TORCH.get(py) {
        Some(torch) => torch.get_num_threads.call0(py)?.extract(py),
        None => Ok(1),
    }
}

/// Whether a dtype is `torch.float32`.
pub(crate) fn is_float32(dtype: &Bound<'_, PyAny>) -> bool {
    TORCH.get(dtype.py()).is_some_and(|torch| dtype.is(&torch.float32))
}

/// Whether an object is a tensor, of any kind.
pub(crate) fn is_tensor(object: &Bound<'_, PyAny>) -> bool {
    TORCH
        .get(object.py())
        .is_none_or(|torch| object.is_instance(torch.tensor.bind(object.py())).unwrap_or(true))
}

/// A shape as people write it: a tuple, a list or a `torch.Size` of a few integers that are no subclasses, none
/// negative.
pub(crate) fn shape_of(shape: &Bound<'_, PyAny>) -> Option<Vec<usize>> {
    let torch = TORCH.get(shape.py())?;
    let sizes: Option<Vec<_>> = if shape.is_exact_instance_of::<PyList>() {
        shape.cast::<PyList>().ok()?.iter().map(|size| size_of_axis(&size)).collect()
    } else if shape.is_exact_instance_of::<PyTuple>() || shape.get_type().is(&torch.size) {
        shape.cast::<PyTuple>().ok()?.iter().map(|size| size_of_axis(&size)).collect()
    } else {
        None
    };
    sizes.filter(|sizes| sizes.len() <= MOST_AXES)
}

fn size_of_axis(size: &Bound<'_, PyAny>) -> Option<usize> {
    size.is_exact_instance_of::<PyInt>().then(|| size.extract().ok())?
}

/// An uninitialised contiguous tensor of float32 on the CPU, and its address.
pub(crate) fn empty_float32<'py>(
    py: Python<'py>,
    shape: &Bound<'py, PyAny>,
    sizes: &[usize],
) -> PyResult<(Bound<'py, PyAny>, usize)> {
    let torch = TORCH.get(py).ok_or_else(|| PyRuntimeError::new_err("torch is not known"))?;
    let new = torch.empty.bind(py).call((shape,), Some(torch.float32_cpu.bind(py)))?;
    let address = address_of_made(&new, sizes, Kind::F32)?;
    Ok((new, address))
}

/// Says to autograd that a tensor, or each of several, was written to.
pub(crate) fn increment_version(tensor: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Some(torch) = TORCH.get(tensor.py()) {
        torch.increment_version.bind(tensor.py()).call1((tensor,))?;
    }
    Ok(())
}

/// What a method that takes no arguments says of an object.
fn ask<'py>(method: &Py<PyAny>, object: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    method.bind(object.py()).call1((object,)).ok()
}

/// The address of a tensor that torch made, which is what was asked for.
fn address_of_made(new: &Bound<'_, PyAny>, shape: &[usize], kind: Kind) -> PyResult<usize> {
    Described::of(new)
        .filter(|made| made.kind == kind && made.shape() == shape && made.elements() == made.extent())
        .map(|made| made.address)
        .ok_or_else(|| PyRuntimeError::new_err("torch made another tensor than it was asked for"))
}

/// What the exchange API says of a tensor that is exactly a `Tensor` or a `Parameter`, dense, on the CPU, of a few axes,
/// not empty, and aligned: all but whether its elements are within the storage and as they are stored.
#[derive(PartialEq)]
pub(crate) struct Described {
    pub(crate) kind: Kind,
    address: usize,
    axes: usize,
    shape: [usize; MOST_AXES],
    strides: [usize; MOST_AXES],
}

impl Described {
    /// Asks torch.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> Option<Self> {
        let py = object.py();
        let torch = TORCH.get(py)?;
        let of = object.get_type_ptr();
        if of != torch.tensor.as_ptr().cast() && of != torch.parameter.as_ptr().cast() {
            return None;
        }
        let mut told = DlTensor::NOTHING;
        // SAFETY: `object` has the type whose API this is, or one derived from it that is stored the same way; the
        // interpreter is held, and the description outlives the call.
        if unsafe { (torch.describe)(object.as_ptr(), &raw mut told) } != 0 {
            drop(PyErr::take(py));
            return None;
        }
        let axes = usize::try_from(told.axes).ok().filter(|&axes| axes <= MOST_AXES)?;
        let kind = Kind::new(told.code, told.bits, told.lanes)?;
        let address = told.data.expose_provenance();
        if told.device_type != CPU
            || told.byte_offset != 0
            || address == 0
            || !address.is_multiple_of(kind.size())
        {
            return None;
        }
        let mut described = Self { kind, address, axes, shape: [1; MOST_AXES], strides: [0; MOST_AXES] };
        if axes > 0 {
            if told.shape.is_null() || told.strides.is_null() {
                return None;
            }
            // SAFETY: both have a number for each axis, and live while the tensor keeps its shape. They are copied at
            // once; whoever changes a tensor in another thread during a call races, as with torch's own operators.
            let (shape, strides) = unsafe {
                (slice::from_raw_parts(told.shape, axes), slice::from_raw_parts(told.strides, axes))
            };
            for axis in 0..axes {
                described.shape[axis] = usize::try_from(shape[axis]).ok().filter(|&size| size > 0)?;
                described.strides[axis] = usize::try_from(strides[axis]).ok()?;
            }
        }
        Some(described)
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape[..self.axes]
    }

    /// The distance from the first element to behind the last one.
    fn extent(&self) -> Option<usize> {
        let mut axes = self.shape().iter().zip(self.strides);
        axes.try_fold(1_usize, |extent, (&size, stride)| extent.checked_add((size - 1).checked_mul(stride)?))
    }

    /// The number of elements.
    pub(crate) fn elements(&self) -> Option<usize> {
        self.shape().iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
    }

    /// The address of a tensor whose elements are one after the other.
    pub(crate) fn contiguous(&self) -> Option<usize> {
        self.rows(self.axes).map(|rows| rows.address)
    }

    /// The tensor as rows of its `event_dims` trailing axes, if memory allows to read it so.
    pub(crate) fn rows(&self, event_dims: usize) -> Option<InRows> {
        let split = self.axes.checked_sub(event_dims)?;
        let (count, stride) = collapse(&self.shape[..split], &self.strides[..split])?;
        let (columns, step) = collapse(&self.shape[split..self.axes], &self.strides[split..self.axes])?;
        (step == 1 || columns == 1).then_some(InRows { address: self.address, count, columns, stride })
    }
}

/// A tensor with nothing special about it: its elements are also within its storage, and as they are stored.
pub(crate) struct Plain<'a, 'py> {
    object: &'a Bound<'py, PyAny>,
    described: Described,
}

impl Deref for Plain<'_, '_> {
    type Target = Described;

    fn deref(&self) -> &Described {
        &self.described
    }
}

impl<'a, 'py> Plain<'a, 'py> {
    /// The tensor, if it is plain.
    pub(crate) fn of(object: &'a Bound<'py, PyAny>) -> Option<Self> {
        let described = Described::of(object)?;
        let methods = &TORCH.get(object.py())?.methods;
        let bytes: usize = ask(&methods.nbytes, &ask(&methods.untyped_storage, object)?)?.extract().ok()?;
        let offset: usize = ask(&methods.storage_offset, object)?.extract().ok()?;
        let end = offset.checked_add(described.extent()?)?.checked_mul(described.kind.size())?;
        let negated: bool = ask(&methods.is_neg, object)?.extract().ok()?;
        (end <= bytes && !negated).then_some(Self { object, described })
    }

    /// What it is, if it is what it was, for whoever ran anything in Python since.
    pub(crate) fn now(&self) -> Option<&Described> {
        (Described::of(self.object)? == self.described).then_some(&self.described)
    }

    /// The integer in a tensor of one.
    pub(crate) fn integer(&self) -> Option<i64> {
        if self.kind != Kind::I64 || self.elements() != Some(1) {
            return None;
        }
        // SAFETY: the address is aligned and within the storage of a tensor that the caller holds; for one that another
        // thread changes meanwhile, see `Described::of`.
        Some(unsafe { ptr::with_exposed_provenance::<i64>(self.address).read() })
    }

    /// Whether autograd records what is done with it.
    pub(crate) fn requires_grad(&self) -> PyResult<bool> {
        self.object.getattr(intern!(self.object.py(), "requires_grad"))?.extract()
    }

    /// An uninitialised contiguous tensor of this kind, and its address.
    pub(crate) fn new_empty(&self, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, usize)> {
        self.made(shape, None, self.kind)
    }

    /// The same, of float32.
    pub(crate) fn new_empty_float32(&self, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, usize)> {
        let py = self.object.py();
        let float32 = TORCH.get(py).map(|torch| [(intern!(py, "dtype"), &torch.float32)]);
        let options = float32.map(|option| option.into_py_dict(py)).transpose()?;
        self.made(shape, options.as_ref(), Kind::F32)
    }

    fn made(
        &self,
        shape: &[usize],
        options: Option<&Bound<'py, PyDict>>,
        kind: Kind,
    ) -> PyResult<(Bound<'py, PyAny>, usize)> {
        let py = self.object.py();
        let torch = TORCH.get(py).ok_or_else(|| PyRuntimeError::new_err("torch is not known"))?;
        let mut arguments = Vec::with_capacity(1 + MOST_AXES);
        arguments.push(self.object.clone());
        // torch takes longer to read a tuple than numbers, of which it wants at least one.
        if shape.is_empty() {
            arguments.push(PyTuple::empty(py).into_any());
        }
        for &size in shape {
            arguments.push(size.into_pyobject(py)?.into_any());
        }
        let new = torch.methods.new_empty.bind(py).call(PyTuple::new(py, arguments)?, options)?;
        let address = address_of_made(&new, shape, kind)?;
        Ok((new, address))
    }
}

/// A tensor that was plain when it was looked at, and its storage: to see that it still is where it was takes a fraction of
/// that time.
pub(crate) struct Known {
    tensor: Py<PyAny>,
    storage: Py<PyAny>,
    bytes: usize,
    described: Described,
}

impl Known {
    /// The tensor, if it is plain.
    pub(crate) fn of(tensor: &Bound<'_, PyAny>) -> Option<Self> {
        let methods = &TORCH.get(tensor.py())?.methods;
        let storage = ask(&methods.untyped_storage, tensor)?;
        let bytes = ask(&methods.nbytes, &storage)?.extract().ok()?;
        let described = Plain::of(tensor)?.described;
        Some(Self { tensor: tensor.clone().unbind(), storage: storage.unbind(), bytes, described })
    }

    /// What was known of a tensor where it still holds, else what is seen now.
    pub(crate) fn again(known: Option<Self>, tensor: &Bound<'_, PyAny>) -> Option<Self> {
        let holds = |known: &Self| known.tensor.is(tensor) && known.is_unchanged(tensor.py());
        known.filter(holds).or_else(|| Self::of(tensor))
    }

    /// Whether it is where it was, of the same shape and sign, and its storage as large.
    pub(crate) fn is_unchanged(&self, py: Python<'_>) -> bool {
        let Some(Torch { methods, .. }) = TORCH.get(py) else { return false };
        let bytes = ask(&methods.nbytes, self.storage.bind(py));
        let negated = ask(&methods.is_neg, self.tensor.bind(py));
        bytes.and_then(|bytes| bytes.extract().ok()) == Some(self.bytes)
            && negated.and_then(|negated| negated.extract().ok()) == Some(false)
            && self.now(py).is_some()
    }

    pub(crate) fn tensor<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        self.tensor.bind(py)
    }

    /// What it is, if it is what it was; runs nothing in Python.
    pub(crate) fn now(&self, py: Python<'_>) -> Option<&Described> {
        (Described::of(self.tensor.bind(py))? == self.described).then_some(&self.described)
    }
}

impl Deref for Known {
    type Target = Described;

    fn deref(&self) -> &Described {
        &self.described
    }
}

/// A tensor as the kernels read it: rows of unit-stride columns.
#[derive(Clone, Copy)]
pub(crate) struct InRows {
    pub(crate) address: usize,
    pub(crate) count: usize,
    pub(crate) columns: usize,
    pub(crate) stride: usize,
}

impl InRows {
    /// The address and the distance of rows.
    pub(crate) fn strided(self) -> (usize, usize) {
        (self.address, self.stride)
    }
}

/// The one axis that these axes are together, as its size and its stride; None if they are not one.
fn collapse(sizes: &[usize], strides: &[usize]) -> Option<(usize, usize)> {
    let (mut size, mut step) = (1_usize, None);
    for (&extent, &stride) in sizes.iter().zip(strides).rev().filter(|(extent, _)| **extent != 1) {
        if stride != step.map_or(Some(stride), |step: usize| step.checked_mul(size))? {
            return None;
        }
        step.get_or_insert(stride);
        size = size.checked_mul(extent)?;
    }
    Some((size, step.unwrap_or(0)))
}
