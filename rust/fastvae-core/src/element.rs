//! The dtypes of tensors, and the arithmetic each is computed in.

use crate::lanes::Arithmetic;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A tensor element.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type of its arithmetic: never below `f32`.
    type Math: Arithmetic;
    /// 0, to make room with.
    const ZERO: Self;
    /// Whether elements are converted through a buffer; if not, `Self` is `Math`.
    const STAGED: bool;

    /// The elements as `Math`, in place or in `buffer`.
    fn widen<'a>(source: &'a [Self], buffer: &'a mut [Self::Math]) -> &'a [Self::Math];
    /// Room for results: the target itself, or as much of `buffer`.
    fn room<'a>(target: &'a mut [Self], buffer: &'a mut [Self::Math]) -> &'a mut [Self::Math];
    /// Rounds results that were written to a buffer into the target.
    fn narrow(buffer: &[Self::Math], target: &mut [Self]);
}

macro_rules! direct {
    ($($float:ty),*) => {$(
        impl Element for $float {
            type Math = $float;
            const ZERO: Self = 0.0;
            const STAGED: bool = false;

            #[inline(always)]
            fn widen<'a>(source: &'a [Self], _: &'a mut [Self]) -> &'a [Self] {
                source
            }

            #[inline(always)]
            fn room<'a>(target: &'a mut [Self], _: &'a mut [Self]) -> &'a mut [Self] {
                target
            }

            #[inline(always)]
            fn narrow(_: &[Self], _: &mut [Self]) {}
        }
    )*};
}

macro_rules! staged {
    ($($half:ty),*) => {$(
        impl Element for $half {
            type Math = f32;
            const ZERO: Self = <$half>::ZERO;
            const STAGED: bool = true;

            #[inline(always)]
            fn widen<'a>(source: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
                let buffer = &mut buffer[..source.len()];
                source.convert_to_f32_slice(buffer);
                buffer
            }

            #[inline(always)]
            fn room<'a>(target: &'a mut [Self], buffer: &'a mut [f32]) -> &'a mut [f32] {
                &mut buffer[..target.len()]
            }

            #[inline(always)]
            fn narrow(buffer: &[f32], target: &mut [Self]) {
                target.convert_from_f32_slice(&buffer[..target.len()]);
            }
        }
    )*};
}

direct!(f32, f64);
staged!(bf16, f16);
