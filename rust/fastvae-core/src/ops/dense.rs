//! Dense layers with a `ReLU` between each two, forward and backward: a network in one call.
//!
//! The order of every sum is that of its terms, in chains of a fixed length, whatever the level, the number of threads and
//! the pieces that they take. So a training has the same bits on all of them, which those of a library for matrix
//! products do not: there the sizes of the caches or the number of threads have a say.
//!
//! A product is cut into pieces of columns or rows. Of a piece, a few vectors of columns of the right factor are copied to
//! where they lie next to each other, a chain of terms at a time, and meet a few rows of the left one: sums stay in
//! registers, and each number that is read is used for several of them.

#![expect(clippy::needless_range_loop, reason = "iterators over arrays of vectors take them through memory")]

use crate::Execution;
use crate::lanes::{Floats, LANES, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::ops::adam::Finite;
use crate::split::{Threads, for_each, threads_for};
use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

/// Terms of a sum that are added up one after the other; the sums of such chains are added up likewise.
const CHAIN: usize = 256;

/// Vectors of columns that are worked on together, at most.
const WIDEST: usize = 3;

/// Rows that are worked on together, at most.
const TALLEST: usize = 8;

/// Pieces of the columns of a product for each thread, so that one that is held up holds up less.
const COLUMN_PIECES: usize = 8;

/// Pieces of its rows: the right factor is copied for each.
const ROW_PIECES: usize = 3;

/// Rows of such a piece, at most: a thread keeps memory for as many.
const MOST_ROWS: usize = 512;

/// Products that take as long as an element does of the kernels that threads are counted by.
pub const PRODUCTS_PER_ELEMENT: usize = 16;

/// A layer: `x W^T + b`.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// `(outputs, inputs)`.
    pub weight: &'a [f32],
    /// `(outputs,)`.
    pub bias: &'a [f32],
}

impl Layer<'_> {
    fn outputs(&self) -> usize {
        self.bias.len()
    }

    fn inputs(&self) -> usize {
        self.weight.len() / self.outputs()
    }
}

/// The gradients of a layer.
#[derive(Debug)]
pub struct LayerGrad<'a> {
    /// `(outputs, inputs)`.
    pub weight: &'a mut [f32],
    /// `(outputs,)`.
    pub bias: &'a mut [f32],
}

/// What the layers give for some samples: what those before the last give after their `ReLU`, one after the other, and
/// what the last one gives.
///
/// # Panics
/// If there is nothing to do, or a slice has another size than the layers and the number of samples give it.
pub fn dense_forward(
    execution: Execution,
    samples: usize,
    x: &[f32],
    layers: &[Layer<'_>],
    hidden: &mut [f32],
    y: &mut [f32],
) {
    check(samples, x, layers, hidden.len(), y.len());
    let (last, others) = layers.split_last().expect("there is a layer");
    let (mut x, mut hidden) = (x, hidden);
    for layer in others {
        let (into, rest) = hidden.split_at_mut(samples * layer.outputs());
        forward(execution, samples, x, layer, true, into);
        (x, hidden) = (into, rest);
    }
    forward(execution, samples, x, last, false, y);
}

/// The gradients of the layers, and of the samples where they are asked for, given the gradient of what the last layer
/// gave, and what [`dense_forward`] wrote. `scratch` is as large as `hidden`. Says whether all numbers of the gradients of
/// the layers are finite.
///
/// # Panics
/// As for [`dense_forward`].
pub fn dense_backward(
    execution: Execution,
    samples: usize,
    grad: &[f32],
    x: &[f32],
    layers: &[Layer<'_>],
    hidden: &[f32],
    grads: &mut [LayerGrad<'_>],
    mut of_x: Option<&mut [f32]>,
    scratch: &mut [f32],
) -> bool {
    check(samples, x, layers, hidden.len(), grad.len());
    assert_eq!(scratch.len(), hidden.len(), "a number for each that the hidden layers give");
    assert_eq!(grads.len(), layers.len(), "gradients for each layer");
    for (layer, of_layer) in layers.iter().zip(&*grads) {
        assert_eq!(of_layer.weight.len(), layer.weight.len(), "the gradient of a weight has its size");
        assert_eq!(of_layer.bias.len(), layer.bias.len(), "the gradient of a bias has its size");
    }
    assert!(
        of_x.as_ref().is_none_or(|of_x| of_x.len() == x.len()),
        "the gradient of the samples has their size"
    );
    let mut finite = true;
    let (mut grad, mut hidden, mut scratch) = (grad, hidden, scratch);
    for (number, (layer, of_layer)) in layers.iter().zip(grads).enumerate().rev() {
        finite &= if number == 0 {
            backward(execution, samples, grad, x, layer, of_layer, of_x.take().map(|of_x| (of_x, None)))
        } else {
            let before = hidden.len() - samples * layer.inputs();
            let (rest, into) = scratch.split_at_mut(before);
            let given = &hidden[before..];
            let of_inputs = Some((&mut *into, Some(given)));
            let finite = backward(execution, samples, grad, given, layer, of_layer, of_inputs);
            (grad, hidden, scratch) = (into, &hidden[..before], rest);
            finite
        };
    }
    finite
}

fn check(samples: usize, x: &[f32], layers: &[Layer<'_>], hidden: usize, last: usize) {
    assert!(samples > 0, "there is a sample");
    let (mut width, mut given) = (x.len() / samples, 0);
    assert_eq!(x.len(), samples * width, "samples of one width");
    for layer in layers {
        assert!(width > 0 && layer.outputs() > 0, "a layer has inputs and outputs");
        assert_eq!(layer.weight.len(), layer.outputs() * width, "a weight for each input of each output");
        width = layer.outputs();
        given += samples * width;
    }
    assert_eq!(last, samples * width, "what the last layer gives");
    assert_eq!(hidden, given - last, "what the hidden layers give");
}

/// Threads that pay for so many products.
fn threads(execution: Execution, products: usize) -> Threads {
    threads_for(products / PRODUCTS_PER_ELEMENT, execution.threads)
}

/// About so many equal pieces, whose lengths are multiples of a step but for the last one.
fn cut(total: usize, step: usize, pieces: usize) -> Vec<Range<usize>> {
    let length = (total / pieces / step * step).max(step);
    (0..total).step_by(length).map(|start| start..total.min(start + length)).collect()
}

/// Pieces of the columns of a matrix, as a list of stretches of its rows for each.
fn columns<'a>(matrix: &'a mut [f32], width: usize, pieces: &[Range<usize>]) -> Vec<Vec<&'a mut [f32]>> {
    let rows = matrix.len() / width;
    let mut stretches: Vec<Vec<_>> = pieces.iter().map(|_| Vec::with_capacity(rows)).collect();
    for mut row in matrix.chunks_exact_mut(width) {
        for (stretches, piece) in stretches.iter_mut().zip(pieces) {
            stretches.push(row.split_off_mut(..piece.len()).expect("pieces of a row"));
        }
    }
    stretches
}

fn forward(execution: Execution, samples: usize, x: &[f32], layer: &Layer<'_>, relu: bool, y: &mut [f32]) {
    let (outputs, inputs) = (layer.outputs(), layer.inputs());
    let threads = threads(execution, samples * outputs * inputs);
    let pieces = cut(outputs, WIDEST * LANES, COLUMN_PIECES * threads.most());
    let targets = columns(y, outputs, &pieces);
    let item = |(piece, y): (&Range<usize>, _)| Forward {
        x,
        inputs,
        weight: &layer.weight[piece.start * inputs..piece.end * inputs],
        bias: &layer.bias[piece.clone()],
        relu,
        y,
    };
    let items = pieces.iter().zip(targets).map(item).collect();
    for_each(items, threads, |item| dispatch(execution.level, item));
}

/// `x W^T + b` for some outputs.
struct Forward<'a> {
    x: &'a [f32],
    inputs: usize,
    weight: &'a [f32],
    bias: &'a [f32],
    relu: bool,
    y: Vec<&'a mut [f32]>,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(mut self) {
        let mut own = Workspace::take(0);
        let mut column = 0;
        while column < self.bias.len() {
            let vectors = vectors::<L>(self.bias.len() - column);
            for terms in chains(self.inputs) {
                let weight = &self.weight[column * self.inputs..];
                pack_transposed::<L::F32>(&mut own.panel, weight, self.inputs, terms.clone(), vectors);
                let target = Target {
                    rows: &mut self.y,
                    column,
                    begin: if terms.start == 0 { Begin::With(self.bias) } else { Begin::GoOn },
                    end: if terms.end == self.inputs && self.relu { End::Relu } else { End::AsIs },
                };
                product::<L>(
                    Left::Rows { matrix: self.x, width: self.inputs, terms },
                    &own.panel,
                    vectors,
                    target,
                );
            }
            column += vectors * LANES;
        }
        own.give_back();
    }
}

fn backward(
    execution: Execution,
    samples: usize,
    grad: &[f32],
    x: &[f32],
    layer: &Layer<'_>,
    of_layer: &mut LayerGrad<'_>,
    of_x: Option<(&mut [f32], Option<&[f32]>)>,
) -> bool {
    let (outputs, inputs) = (layer.outputs(), layer.inputs());
    let threads = threads(execution, samples * outputs * inputs * if of_x.is_some() { 2 } else { 1 });
    let mut items = Vec::new();
    if let Some((of_x, given)) = of_x {
        let pieces = cut(inputs, WIDEST * LANES, COLUMN_PIECES * threads.most());
        for (of_x, piece) in columns(of_x, inputs, &pieces).into_iter().zip(pieces) {
            items.push(Backward::OfInputs(OfInputs {
                grad,
                outputs,
                weight: layer.weight,
                inputs,
                piece,
                given,
                of_x,
            }));
        }
    }
    let (mut weights, mut biases) = (&mut *of_layer.weight, &mut *of_layer.bias);
    for piece in cut(outputs, TALLEST, (ROW_PIECES * threads.most()).max(outputs.div_ceil(MOST_ROWS))) {
        let weight = weights.split_off_mut(..piece.len() * inputs).expect("rows of the weight");
        let bias = biases.split_off_mut(..piece.len()).expect("as many biases");
        items.push(Backward::OfWeights(OfWeights {
            grad,
            outputs,
            x,
            inputs,
            first: piece.start,
            weight,
            bias,
        }));
    }
    let found = AtomicBool::new(false);
    for_each(items, threads, |item| match item {
        Backward::OfInputs(item) => dispatch(execution.level, item),
        Backward::OfWeights(item) => {
            if !dispatch(execution.level, item) {
                found.store(true, Ordering::Relaxed);
            }
        }
    });
    !found.into_inner()
}

enum Backward<'a> {
    OfInputs(OfInputs<'a>),
    OfWeights(OfWeights<'a>),
}

/// `grad W` for some inputs; 0 where a `ReLU` before the layer gave nothing.
struct OfInputs<'a> {
    grad: &'a [f32],
    outputs: usize,
    weight: &'a [f32],
    inputs: usize,
    piece: Range<usize>,
    given: Option<&'a [f32]>,
    of_x: Vec<&'a mut [f32]>,
}

impl Kernel for OfInputs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(mut self) {
        let mut own = Workspace::take(0);
        let mut column = 0;
        while column < self.piece.len() {
            let vectors = vectors::<L>(self.piece.len() - column);
            let columns = self.piece.start + column..self.piece.end;
            for terms in chains(self.outputs) {
                pack::<L::F32>(
                    &mut own.panel,
                    self.weight,
                    self.inputs,
                    terms.clone(),
                    columns.clone(),
                    vectors,
                );
                let end = match self.given {
                    Some(given) if terms.end == self.outputs => {
                        End::Where { given, width: self.inputs, column: columns.start }
                    }
                    _ => End::AsIs,
                };
                let begin = if terms.start == 0 { Begin::Anew } else { Begin::GoOn };
                let target = Target { rows: &mut self.of_x, column, begin, end };
                let left = Left::Rows { matrix: self.grad, width: self.outputs, terms };
                product::<L>(left, &own.panel, vectors, target);
            }
            column += vectors * LANES;
        }
        own.give_back();
    }
}

/// `grad^T x` for some outputs, and the sums of `grad` over the samples.
struct OfWeights<'a> {
    grad: &'a [f32],
    outputs: usize,
    x: &'a [f32],
    inputs: usize,
    first: usize,
    weight: &'a mut [f32],
    bias: &'a mut [f32],
}

impl Kernel for OfWeights<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<L: Vectors>(self) -> bool {
        let samples = self.grad.len() / self.outputs;
        let own_outputs = self.first..self.first + self.bias.len();
        let mut rows: Vec<_> = self.weight.chunks_exact_mut(self.inputs).collect();
        let mut own = Workspace::take(samples.min(CHAIN) * rows.len().div_ceil(TALLEST));
        for terms in chains(samples) {
            let is_first = terms.start == 0;
            for column in (0..self.bias.len()).step_by(LANES) {
                let mut sum = L::F32::splat(0.0);
                for sample in terms.clone() {
                    sum = sum.add(load(&self.grad[sample * self.outputs..][own_outputs.clone()], column));
                }
                let sum = if is_first { sum } else { load::<L::F32>(self.bias, column).add(sum) };
                store(sum, self.bias, column);
            }
            turn(&mut own.turned, self.grad, self.outputs, terms.clone(), own_outputs.clone());
            let mut column = 0;
            while column < self.inputs {
                let vectors = vectors::<L>(self.inputs - column);
                pack::<L::F32>(
                    &mut own.panel,
                    self.x,
                    self.inputs,
                    terms.clone(),
                    column..self.inputs,
                    vectors,
                );
                let begin = if is_first { Begin::Anew } else { Begin::GoOn };
                let target = Target { rows: &mut rows, column, begin, end: End::AsIs };
                let left = Left::Turned { turned: &own.turned, terms: terms.len() };
                product::<L>(left, &own.panel, vectors, target);
                column += vectors * LANES;
            }
        }
        own.give_back();
        Finite(self.weight).run::<L>() && Finite(self.bias).run::<L>()
    }
}

/// The terms of a sum, a chain at a time.
fn chains(terms: usize) -> impl Iterator<Item = Range<usize>> {
    (0..terms).step_by(CHAIN).map(move |start| start..terms.min(start + CHAIN))
}

/// How many vectors of columns are worked on together where there are so many columns.
#[inline(always)]
fn vectors<L: Vectors>(columns: usize) -> usize {
    if L::MANY_SUMS { columns.div_ceil(LANES).min(WIDEST) } else { 1 }
}

/// Numbers of a right factor in the order in which they are read: of each term, some vectors of columns.
type Panel = [Line];

/// A vector in a line of the cache of its own: one that lies in two is read, and written, in two.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; LANES]);

/// Numbers of a left factor likewise: of some rows at a time, those that meet a term.
type Turned = [[f32; TALLEST]];

/// Memory for the factors of a product, which a thread keeps.
struct Workspace {
    panel: Vec<Line>,
    turned: Vec<[f32; TALLEST]>,
}

impl Default for Workspace {
    fn default() -> Self {
        Self::NOTHING
    }
}

thread_local! {
    static WORKSPACE: Cell<Workspace> = const { Cell::new(Workspace::NOTHING) };
}

impl Workspace {
    const NOTHING: Self = Self { panel: Vec::new(), turned: Vec::new() };

    /// The memory of this thread, with room for so much of a left factor.
    fn take(turned: usize) -> Self {
        let mut own = WORKSPACE.take();
        own.panel.resize(CHAIN * WIDEST, Line([0.0; LANES]));
        if own.turned.len() < turned {
            own.turned.resize(turned, [0.0; TALLEST]);
        }
        own
    }

    fn give_back(self) {
        WORKSPACE.set(self);
    }
}

/// Copies columns of some rows of a matrix, with zeros past its last column.
#[inline(always)]
fn pack<V: Floats<Scalar = f32>>(
    panel: &mut Panel,
    matrix: &[f32],
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    vectors: usize,
) {
    match vectors {
        1 => pack_of::<V, 1>(panel, matrix, width, rows, columns),
        2 => pack_of::<V, 2>(panel, matrix, width, rows, columns),
        _ => pack_of::<V, WIDEST>(panel, matrix, width, rows, columns),
    }
}

#[inline(always)]
fn pack_of<V: Floats<Scalar = f32>, const N: usize>(
    panel: &mut Panel,
    matrix: &[f32],
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let (panel, _) = panel.as_chunks_mut::<N>();
    for (row, into) in rows.zip(panel) {
        let from = &matrix[row * width..][columns.clone()];
        if let Some(whole) = from.as_chunks().0.first_chunk::<N>() {
            for n in 0..N {
                V::load(&whole[n]).store(&mut into[n].0);
            }
        } else {
            for n in 0..N {
                load::<V>(from, n * LANES).store(&mut into[n].0);
            }
        }
    }
}

/// Copies some columns of the rows of a matrix as rows, with zeros past its last row.
#[inline(always)]
fn pack_transposed<V: Floats<Scalar = f32>>(
    panel: &mut Panel,
    matrix: &[f32],
    width: usize,
    columns: Range<usize>,
    vectors: usize,
) {
    for vector in 0..vectors {
        for (block, column) in columns.clone().step_by(LANES).enumerate() {
            let mut rows = [V::splat(0.0); LANES];
            let there = matrix.chunks_exact(width).skip(vector * LANES);
            for (row, from) in rows.iter_mut().zip(there) {
                *row = load(&from[..columns.end], column);
            }
            let into = panel[block * LANES * vectors + vector..].iter_mut().step_by(vectors);
            for (row, into) in V::transposed(rows).into_iter().zip(into).take(columns.end - column) {
                row.store(&mut into.0);
            }
        }
    }
}

/// Copies some columns of some rows of a matrix, as the rows of a left factor.
#[inline(always)]
fn turn(turned: &mut Turned, matrix: &[f32], width: usize, rows: Range<usize>, columns: Range<usize>) {
    let groups = columns.clone().step_by(TALLEST);
    for (group, into) in groups.zip(turned.chunks_exact_mut(rows.len())) {
        for (row, into) in rows.clone().zip(into) {
            let from = &matrix[row * width..][group..columns.end];
            if let Some(whole) = from.first_chunk() {
                *into = *whole;
            } else {
                into[..from.len()].copy_from_slice(from);
            }
        }
    }
}

/// A left factor: some terms of the rows of a matrix, or rows that were turned.
enum Left<'a> {
    Rows { matrix: &'a [f32], width: usize, terms: Range<usize> },
    Turned { turned: &'a Turned, terms: usize },
}

/// Where a product goes.
struct Target<'a, 'b> {
    rows: &'a mut [&'b mut [f32]],
    column: usize,
    begin: Begin<'a>,
    end: End<'a>,
}

/// What a product is added to.
#[derive(Clone, Copy)]
enum Begin<'a> {
    /// Nothing.
    Anew,
    /// A number for each column.
    With(&'a [f32]),
    /// What is there.
    GoOn,
}

/// What is made of the sum.
#[derive(Clone, Copy)]
enum End<'a> {
    /// Nothing.
    AsIs,
    /// Itself where it is positive, or 0.
    Relu,
    /// Itself where a number of another matrix, from one of its columns on, is positive, or 0.
    Where { given: &'a [f32], width: usize, column: usize },
}

#[inline(always)]
fn product<L: Vectors>(left: Left<'_>, panel: &Panel, vectors: usize, target: Target<'_, '_>) {
    match vectors {
        1 => of_width::<L, 1>(left, panel, target),
        2 => of_width::<L, 2>(left, panel, target),
        _ => of_width::<L, WIDEST>(left, panel, target),
    }
}

#[inline(always)]
fn of_width<L: Vectors, const N: usize>(left: Left<'_>, panel: &Panel, mut target: Target<'_, '_>) {
    let (panel, _) = panel.as_chunks::<N>();
    let (mut row, rows) = (0, target.rows.len());
    match left {
        Left::Rows { matrix, width, terms } => {
            while row < rows {
                let matrix = &matrix[row * width..];
                row += match rows - row {
                    8.. if L::MANY_SUMS => {
                        of_rows::<L::F32, 8, N>(matrix, width, &terms, panel, &mut target, row)
                    }
                    4.. => of_rows::<L::F32, 4, N>(matrix, width, &terms, panel, &mut target, row),
                    _ => of_rows::<L::F32, 1, N>(matrix, width, &terms, panel, &mut target, row),
                };
            }
        }
        Left::Turned { turned, terms } => {
            for group in turned.chunks_exact(terms).take(rows.div_ceil(TALLEST)) {
                if L::MANY_SUMS {
                    of_turned::<L::F32, 8, N>(group, 0, panel, &mut target, row);
                } else {
                    of_turned::<L::F32, 4, N>(group, 0, panel, &mut target, row);
                    of_turned::<L::F32, 4, N>(group, 4, panel, &mut target, row + 4);
                }
                row += TALLEST;
            }
        }
    }
}

/// Takes some rows of a matrix; gives how many.
#[inline(always)]
fn of_rows<V: Floats<Scalar = f32>, const M: usize, const N: usize>(
    matrix: &[f32],
    width: usize,
    terms: &Range<usize>,
    panel: &[[Line; N]],
    target: &mut Target<'_, '_>,
    row: usize,
) -> usize {
    let mut rows = [&matrix[..0]; M];
    for m in 0..M {
        rows[m] = &matrix[m * width..][terms.start..][..terms.len()];
    }
    let mut sums = [[V::splat(0.0); N]; M];
    for (term, right) in panel[..terms.len()].iter().enumerate() {
        let mut left = [0.0; M];
        for m in 0..M {
            left[m] = rows[m][term];
        }
        add_products(left, right, &mut sums);
    }
    put(sums, target, row);
    M
}

/// Takes some of the rows that were turned, from one of them on.
#[inline(always)]
fn of_turned<V: Floats<Scalar = f32>, const M: usize, const N: usize>(
    group: &Turned,
    first: usize,
    panel: &[[Line; N]],
    target: &mut Target<'_, '_>,
    row: usize,
) {
    let mut sums = [[V::splat(0.0); N]; M];
    for (all, right) in group.iter().zip(panel) {
        let mut left = [0.0; M];
        left.copy_from_slice(&all[first..first + M]);
        add_products(left, right, &mut sums);
    }
    put(sums, target, row);
}

/// Adds the products of some numbers and some vectors.
#[inline(always)]
fn add_products<V: Floats<Scalar = f32>, const M: usize, const N: usize>(
    left: [f32; M],
    right: &[Line; N],
    sums: &mut [[V; N]; M],
) {
    let mut vectors = [V::splat(0.0); N];
    for n in 0..N {
        vectors[n] = V::load(&right[n].0);
    }
    for m in 0..M {
        let value = V::splat(left[m]);
        for n in 0..N {
            sums[m][n] = value.fma(vectors[n], sums[m][n]);
        }
    }
}

/// Writes sums to where they go, as far as there are such rows and columns.
#[inline(always)]
fn put<V: Floats<Scalar = f32>, const M: usize, const N: usize>(
    sums: [[V; N]; M],
    target: &mut Target<'_, '_>,
    row: usize,
) {
    let zero = V::splat(0.0);
    for m in 0..M {
        let Some(into) = target.rows.get_mut(row + m) else { break };
        for n in 0..N {
            let at = target.column + n * LANES;
            if at >= into.len() {
                break;
            }
            let sum = match target.begin {
                Begin::Anew => sums[m][n],
                Begin::With(numbers) => load::<V>(numbers, at).add(sums[m][n]),
                Begin::GoOn => load::<V>(into, at).add(sums[m][n]),
            };
            let sum = match target.end {
                End::AsIs => sum,
                End::Relu => sum.at_least(zero),
                End::Where { given, width, column } => {
                    let given = load::<V>(&given[(row + m) * width..][..width], column + n * LANES);
                    given.select_above(zero, sum, zero)
                }
            };
            store(sum, into, at);
        }
    }
}
