//! The data of a likelihood: bytes or floats, repeated for every sample of the code.

use crate::Matrix;
use crate::lanes::{Arithmetic, Floats, Scalar, Vectors, load, padded};
use crate::split::Span;

/// What data may consist of, where the arithmetic is in `M`.
pub trait Value<M: Arithmetic>: Copy + Send + Sync + 'static {
    /// Reads sixteen values from `source[at..]`, with zeros past its end.
    fn load<L: Vectors>(source: &[Self], at: usize) -> M::Vector<L>;
}

impl<M: Arithmetic> Value<M> for u8 {
    #[inline(always)]
    fn load<L: Vectors>(source: &[Self], at: usize) -> M::Vector<L> {
        M::Vector::<L>::load_u8(&padded(source, at))
    }
}

macro_rules! direct {
    ($($float:ty),*) => {$(
        impl Value<$float> for $float {
            #[inline(always)]
            fn load<L: Vectors>(source: &[Self], at: usize) -> <$float as Arithmetic>::Vector<L> {
                load(source, at)
            }
        }
    )*};
}

direct!(f32, f64);

/// Data, and what stands for 1 in it.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a, X> {
    /// Row `r` of the parameters belongs to row `r % values.rows()`.
    pub values: Matrix<'a, X>,
    /// What stands for 1: 255 for pixels, 1 for zeros and ones, and for floats.
    pub max: u8,
}

impl<'a, X> Observed<'a, X> {
    /// Checks the shape against that of the parameters.
    pub(crate) fn check(&self, rows: usize, columns: usize) {
        assert_eq!(self.values.columns(), columns, "the data has rows of another length");
        assert!(
            rows == 0 || (self.values.rows() != 0 && rows.is_multiple_of(self.values.rows())),
            "{rows} rows are no multiple of the {} of the data",
            self.values.rows()
        );
        assert_ne!(self.max, 0, "0 cannot stand for 1");
    }

    /// What a span of the parameters meets in one of its rows.
    #[inline(always)]
    pub(crate) fn within(&self, row: usize, span: Span) -> &'a [X] {
        self.values.within(row % self.values.rows(), span)
    }

    /// What stands for 1, in every lane.
    #[inline(always)]
    pub(crate) fn max<V: Floats>(&self) -> V {
        V::splat(V::Scalar::from(f32::from(self.max)))
    }

    /// What a step of 1 in the data is worth, in every lane.
    #[inline(always)]
    pub(crate) fn unit<V: Floats>(&self) -> V {
        V::splat(V::Scalar::ONE / V::Scalar::from(f32::from(self.max)))
    }
}
