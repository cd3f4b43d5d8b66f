//! The dtypes of tensors, and the arithmetic each is computed in.

use crate::lanes::{Arithmetic, Floats, LANES, Vectors, Words, load, padded, store};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// The vector in which a dtype is computed at a level.
pub(crate) type Vector<T, L> = <<T as Element>::Math as Arithmetic>::Vector<L>;

/// A tensor element.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type of its arithmetic: never below `f32`.
    type Math: Arithmetic;
    /// 0, to make room with.
    const ZERO: Self;
    /// Whether most tensors are of it: bodies for several shapes of a tensor are compiled for this dtype alone.
    const USUAL: bool;

    /// Reads sixteen elements from `source[at..]`, with zeros past its end.
    fn load<L: Vectors>(source: &[Self], at: usize) -> Vector<Self, L>;
    /// Rounds once, and writes the lanes that `target[at..]` has room for.
    fn store<L: Vectors>(value: Vector<Self, L>, target: &mut [Self], at: usize);
}

macro_rules! direct {
    ($($float:ty, $usual:expr;)*) => {$(
        impl Element for $float {
            type Math = $float;
            const ZERO: Self = 0.0;
            const USUAL: bool = $usual;

            #[inline(always)]
            fn load<L: Vectors>(source: &[Self], at: usize) -> Vector<Self, L> {
                load(source, at)
            }

            #[inline(always)]
            fn store<L: Vectors>(value: Vector<Self, L>, target: &mut [Self], at: usize) {
                store(value, target, at);
            }
        }
    )*};
}

macro_rules! narrow {
    ($half:ty, $load:expr, $store:expr) => {
        impl Element for $half {
            type Math = f32;
            const ZERO: Self = <$half>::ZERO;
            const USUAL: bool = false;

            #[inline(always)]
            fn load<L: Vectors>(source: &[Self], at: usize) -> Vector<Self, L> {
                $load(&padded(HalfBits::bits(source), at))
            }

            #[inline(always)]
            fn store<L: Vectors>(value: Vector<Self, L>, target: &mut [Self], at: usize) {
                let rest = &mut HalfBits::bits_mut(target)[at..];
                if let Some(full) = rest.first_chunk_mut::<LANES>() {
                    $store(value, full);
                } else {
                    let mut lanes = [0; LANES];
                    $store(value, &mut lanes);
                    let length = rest.len();
                    rest.copy_from_slice(&lanes[..length]);
                }
            }
        }
    };
}

/// Half-precision numbers as their bits.
struct HalfBits;

impl HalfBits {
    #[inline(always)]
    fn bits<T>(values: &[T]) -> &[u16]
    where
        [T]: HalfFloatSliceExt,
    {
        values.reinterpret_cast()
    }

    #[inline(always)]
    fn bits_mut<T>(values: &mut [T]) -> &mut [u16]
    where
        [T]: HalfFloatSliceExt,
    {
        values.reinterpret_cast_mut()
    }
}

/// bfloat16 is the upper half of a float32.
#[inline(always)]
fn widen_bf16<W: Words>(source: &[u16; LANES]) -> W::Floats {
    W::load_u16(source).shift_left::<16>().to_floats()
}

/// Rounds to nearest, ties to even; a NaN becomes a quiet one with its sign.
#[inline(always)]
fn narrow_bf16<W: Words>(value: W::Floats, target: &mut [u16; LANES]) {
    let bits = W::from_bits(value);
    let odd = bits.shift_right::<16>().and(W::splat(1));
    let rounded = bits.add(W::splat(0x7FFF)).add(odd);
    // NaN does not compare as below or equal to anything.
    let infinite = W::Floats::splat(f32::INFINITY);
    let result = value.select_within(infinite, rounded.to_floats(), W::splat(0x7FC0_0000).to_floats());
    W::from_bits(result).shift_right::<16>().store_u16(target);
}

direct!(f32, true; f64, false;);
narrow!(bf16, widen_bf16::<L::U32>, narrow_bf16::<L::U32>);
narrow!(f16, <L::U32 as Words>::load_f16, <L::U32 as Words>::store_f16);
