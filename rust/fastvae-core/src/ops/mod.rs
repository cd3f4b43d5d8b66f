//! The operations: forward and backward are one pass over memory each. And the step that follows them.

pub mod adam;
pub mod bernoulli;
pub mod dense;
pub mod free_bits;
pub mod gather;
pub mod gaussian;
pub mod latent;
pub mod log_weight;
pub mod observed;
pub mod prior;
mod sum;

pub use adam::{Adam, Averages, Trained};
pub use bernoulli::{bernoulli_backward, bernoulli_forward};
pub use dense::{Layer, LayerGrad, dense_backward, dense_forward};
pub use free_bits::{FreeBits, free_bits_backward, free_bits_forward};
pub use gather::{Binarize, Sample, gather_batch};
pub use gaussian::{Density, LogVariance, LogVarianceGrad, gaussian_backward, gaussian_forward};
pub use latent::{latent_backward, latent_forward};
pub use log_weight::{log_weight_backward, log_weight_forward};
pub use observed::{Observed, Value};
pub use prior::{Gaussians, PriorGrads, prior_backward, prior_forward};

use crate::Matrix;
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, load};
use crate::split::{Span, bands, pieces, segments, spans};

/// Where a KL goes, or a log-probability.
#[derive(Debug)]
pub enum KlTarget<'a, M> {
    /// Nowhere: it is not computed.
    Nowhere,
    /// One value per element of a contiguous matrix.
    Elements(&'a mut [M]),
    /// One sum per row.
    Rows(&'a mut [M]),
    /// One sum per column.
    Columns(&'a mut [M]),
    /// The sum of everything.
    Total(&'a mut M),
}

impl<M> KlTarget<'_, M> {
    /// How a matrix is cut for this target.
    fn spans(&self, rows: usize, columns: usize) -> Vec<Span> {
        if let KlTarget::Columns(_) = self { bands(rows, columns) } else { spans(rows, columns) }
    }
}

/// The gradient of a KL, or of a log-probability.
#[derive(Clone, Copy, Debug)]
pub enum KlGrad<'a, M> {
    /// None: the KL was not used.
    Absent,
    /// One value per element.
    Elements(Matrix<'a, M>),
    /// One value per row (a matrix of one column; the distance of its rows is 0 for a total).
    Rows(Matrix<'a, M>),
}

impl<M: Arithmetic> KlGrad<'_, M> {
    /// The gradient of sixteen elements: those from `at` on in what a span has of a row.
    #[inline(always)]
    fn at<L: Vectors>(&self, row: usize, span: Span, at: usize) -> M::Vector<L> {
        match self {
            Self::Absent => M::Vector::<L>::splat(M::ZERO),
            Self::Elements(all) => load(all.within(row, span), at),
            Self::Rows(all) => M::Vector::<L>::splat(all.stretch(row, 0, 1)[0]),
        }
    }
}

/// The part of a [`KlTarget`] that one span writes.
#[derive(Debug)]
pub(crate) enum KlPiece<'a, M> {
    Nowhere,
    Elements(&'a mut [M]),
    Rows(&'a mut [M]),
    /// Partial sums of the columns over the rows of the span, in `f64`: whole vectors of them.
    Columns(&'a mut [[f64; LANES]]),
    /// A partial sum, in `f64`: of a stretch of a row, or of all that the span holds.
    Partial(&'a mut f64),
}

/// Distributes a target among spans; partial sums are added up by [`finish`].
fn distribute<'a, M>(
    target: &'a mut KlTarget<'_, M>,
    partials: &'a mut Vec<f64>,
    spans: &[Span],
    columns: usize,
) -> Vec<KlPiece<'a, M>> {
    match target {
        KlTarget::Nowhere => spans.iter().map(|_| KlPiece::Nowhere).collect(),
        KlTarget::Elements(all) => {
            pieces(all, spans.iter().map(Span::elements)).map(KlPiece::Elements).collect()
        }
        KlTarget::Rows(all) if segments(columns) == 1 => {
            pieces(all, spans.iter().map(|span| span.rows)).map(KlPiece::Rows).collect()
        }
        KlTarget::Columns(_) => {
            let vectors = columns.div_ceil(LANES);
            partials.resize(spans.len() * vectors * LANES, 0.0);
            let (all, _) = partials.as_chunks_mut();
            pieces(all, spans.iter().map(|_| vectors)).map(KlPiece::Columns).collect()
        }
        KlTarget::Rows(_) | KlTarget::Total(_) => {
            partials.resize(spans.len(), 0.0);
            partials.iter_mut().map(KlPiece::Partial).collect()
        }
    }
}

/// Adds up the partial sums, in the order of the spans.
fn finish<M: Scalar>(target: &mut KlTarget<'_, M>, partials: &[f64], columns: usize) {
    match target {
        KlTarget::Total(total) => **total = M::from_f64(partials.iter().sum()),
        KlTarget::Columns(all) => {
            for (column, of_column) in all.iter_mut().enumerate() {
                let of_bands = partials.chunks(columns.next_multiple_of(LANES)).map(|band| band[column]);
                *of_column = M::from_f64(of_bands.sum());
            }
        }
        KlTarget::Rows(rows) if columns == 0 => rows.fill(M::ZERO),
        KlTarget::Rows(rows) if segments(columns) > 1 => {
            for (row, parts) in rows.iter_mut().zip(partials.chunks(segments(columns))) {
                *row = M::from_f64(parts.iter().sum());
            }
        }
        _ => {}
    }
}

/// Checks a target against a matrix.
fn check_target<M>(target: &KlTarget<'_, M>, rows: usize, columns: usize) {
    match target {
        KlTarget::Elements(all) => assert_eq!(all.len(), rows * columns, "one value per element"),
        KlTarget::Rows(all) => assert_eq!(all.len(), rows, "one value per row"),
        KlTarget::Columns(all) => assert_eq!(all.len(), columns, "one value per column"),
        KlTarget::Nowhere | KlTarget::Total(_) => {}
    }
}

/// Checks a gradient against a matrix.
fn check_grad<M>(grad: &KlGrad<'_, M>, rows: usize, columns: usize) {
    match grad {
        KlGrad::Elements(all) => {
            assert_eq!((all.rows(), all.columns()), (rows, columns), "one value per element");
        }
        KlGrad::Rows(all) => assert_eq!((all.rows(), all.columns()), (rows, 1), "one value per row"),
        KlGrad::Absent => {}
    }
}
