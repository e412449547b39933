"""A Numba type that is a SIMD register full of sequences: kernels state their vector code instead of hoping for it.

An array whose items are records of n floats (``lanes(np.float32, 16)``) is read and written one record at a time as a
value of type :class:`Lanes`, which LLVM splits over as many registers as the processor needs. Lane k is sequence k and
never meets another lane, so results depend neither on n nor on the place of a sequence in its block.

Products and sums may be fused where the processor can. No other liberty is taken: inf and NaN keep their meaning.
"""

from __future__ import annotations

import operator
import platform
from functools import reduce

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

_FUSE = ("contract",)
_INDEX = ir.IntType(32)
_FLUSH = 0x8040
"""Bits of the SSE control register: flush to zero, denormals are zero."""
_LOWEST = {"float": -87.0, "double": -708.0}
"""Below this exp is 0 here; above it its result is a normal number."""


def lanes(dtype: type, width: int) -> np.dtype:
    """The item type of an array of ``width`` sequences side by side."""
    return np.dtype([("lane", dtype, (width,))])


class Lanes(types.Type):
    """The Numba type of ``width`` numbers of a floating type."""

    def __init__(self, dtype: types.Type, width: int):
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Lanes({dtype}, {width})")

    @classmethod
    def of(cls, array: types.Array) -> Lanes:
        """The type of the items of an array of lanes."""
        field = array.dtype.typeof("lane")
        return cls(field.dtype, field.shape[0])

    @property
    def vector(self) -> ir.VectorType:
        """The same in LLVM's terms."""
        return ir.VectorType(ir.FloatType() if self.dtype == types.float32 else ir.DoubleType(), self.width)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.vector)


@intrinsic
def load(typingctx, array, index):
    """Lanes ``array[index]``; no bounds are checked."""
    kind = Lanes.of(array)

    def build(context, builder, signature, args):
        return builder.load(_address(context, builder, array, args, kind), align=kind.dtype.bitwidth // 8)

    return kind(array, types.intp), build


@intrinsic
def at(typingctx, array, index):
    """The number ``array[index]``, integers widened; unchecked, since checks would cost as much as the arc."""
    kind = array.dtype if isinstance(array.dtype, types.Float) else types.intp

    def build(context, builder, signature, args):
        data = context.make_array(array)(context, builder, args[0]).data
        return context.cast(builder, builder.load(builder.gep(data, [args[1]])), array.dtype, kind)

    return kind(array, types.intp), build


@intrinsic
def weighted_sum(typingctx, values, index, weight, first, end):
    """Lanes sum of ``values[index[k]] x weight[k]`` over k = first ... end - 1, the inner loop of the recursions.

    Written out because Numba, left to itself, may count references to the arrays in it, at many times its cost.
    """
    kind = Lanes.of(values)

    def build(context, builder, signature, args):
        datas = [context.make_array(array)(context, builder, x).data for array, x in zip(signature.args[:3], args)]
        rows = builder.bitcast(datas[0], kind.vector.as_pointer())
        total = cgutils.alloca_once_value(builder, _constant(kind.vector, 0.0))
        with cgutils.for_range_slice(builder, *args[3:], step=args[3].type(1)) as (k, _):
            source = builder.sext(builder.load(builder.gep(datas[1], [k])), k.type)
            row = builder.load(builder.gep(rows, [source]), align=kind.dtype.bitwidth // 8)
            scale = _splat(builder, kind.vector, builder.load(builder.gep(datas[2], [k])))
            product = builder.fmul(row, scale, flags=_FUSE)
            builder.store(builder.fadd(builder.load(total), product, flags=_FUSE), total)
        return builder.load(total)

    return kind(values, index, weight, types.intp, types.intp), build


@intrinsic
def store(typingctx, array, index, value):
    """``array[index] = value``; no bounds are checked."""

    def build(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, array, args, value), align=value.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), build


@intrinsic
def everywhere(typingctx, array, scalar):
    """Lanes of the kind that ``array`` holds, all equal to a scalar."""
    kind = Lanes.of(array)

    def build(context, builder, signature, args):
        return _splat(builder, kind.vector, args[1])

    return kind(array, kind.dtype), build


@intrinsic
def larger(typingctx, a, b):
    """Where a > b, a, else b: a NaN in a is passed over, one in b stays."""

    def build(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, b), build


@intrinsic
def finite_or_zero(typingctx, a):
    """Where a > -inf, a, else 0."""

    def build(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[0], _constant(a.vector, float("-inf"))), args[0],
                              _constant(a.vector, 0.0))

    return a(a), build


@intrinsic
def inverse(typingctx, a):
    """1 / a where a > 0, else 0."""

    def build(context, builder, signature, args):
        one, zero = (_constant(a.vector, x) for x in (1.0, 0.0))
        return builder.select(builder.fcmp_ordered(">", args[0], zero), builder.fdiv(one, args[0]), zero)

    return a(a), build


@intrinsic
def exp(typingctx, a):
    """e^a for a <= 0 to the last bit or two, 0 where the result would be no normal number, NaN for NaN."""

    def build(context, builder, signature, args):
        value, kind = args[0], a.vector
        lowest, zero = _constant(kind, _LOWEST[str(kind.element)]), _constant(kind, 0.0)
        normal = builder.fcmp_ordered(">", value, lowest)
        bounded = builder.select(normal, value, lowest)
        power = _exp_single(builder, kind, bounded) if a.dtype == types.float32 else _exp_double(builder, kind, bounded)
        number = builder.fcmp_ordered("==", value, value)
        return builder.select(normal, power, builder.select(number, zero, value))

    return a(a), build


@intrinsic
def flush_denormals(typingctx):
    """Take numbers too small for full precision as zero from now on; returns the setting before, for :func:`restore`.

    Peaked outputs produce many of them, and x86 processors are slow on them (four times slower kernels were seen). The
    setting is the thread's, so it must not outlive the kernel. Other processors are left as they are.
    """

    def build(context, builder, signature, args):
        setting = cgutils.alloca_once_value(builder, _INDEX(0))
        _call_sse(builder, "stmxcsr", setting)
        before = builder.load(setting)
        builder.store(builder.or_(before, _INDEX(_FLUSH)), setting)
        _call_sse(builder, "ldmxcsr", setting)
        return before

    return types.int32(), build


@intrinsic
def restore(typingctx, setting):
    """Go back to a setting of denormals."""

    def build(context, builder, signature, args):
        _call_sse(builder, "ldmxcsr", cgutils.alloca_once_value(builder, args[0]))
        return context.get_dummy_value()

    return types.none(types.int32), build


def _arithmetic(name: str):
    @intrinsic
    def apply(typingctx, a, b):
        def build(context, builder, signature, args):
            right = args[1] if isinstance(b, Lanes) else _splat(builder, a.vector, args[1])
            return getattr(builder, name)(args[0], right, flags=_FUSE)

        return a(a, b if isinstance(b, Lanes) else a.dtype), build

    def typed(a, b):
        if isinstance(a, Lanes) and isinstance(b, (Lanes, types.Float)):
            return lambda a, b: apply(a, b)
        return None

    return typed


for _operator, _instruction in ((operator.mul, "fmul"), (operator.add, "fadd"), (operator.sub, "fsub")):
    overload(_operator)(_arithmetic(_instruction))


def _address(context, builder, array, args, kind):
    data = context.make_array(array)(context, builder, args[0]).data
    return builder.gep(builder.bitcast(data, kind.vector.as_pointer()), [args[1]])


def _call_sse(builder, name, pointer):
    if platform.machine().lower() in ("x86_64", "amd64"):
        byte = ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(f"llvm.x86.sse.{name}", fnty=ir.FunctionType(ir.VoidType(), [byte]))
        builder.call(function, [builder.bitcast(pointer, byte)])


def _splat(builder, kind, scalar):
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INDEX(0))
    return builder.shuffle_vector(first, undefined, _constant(ir.VectorType(_INDEX, kind.count), 0))


def _constant(kind, value):
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)


def _exp_double(builder, kind, value):
    signature = ir.FunctionType(kind, [kind])
    return builder.call(builder.module.declare_intrinsic(f"llvm.exp.v{kind.count}f64", fnty=signature), [value])


def _exp_single(builder, kind, value):
    """2^k e^r with k = round(value / ln 2) and a polynomial in r, |r| <= ln(2) / 2 (Cephes' coefficients)."""
    ints = ir.VectorType(ir.IntType(32), kind.count)

    def fused(a, b, c):  # a b + c
        return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)

    def number(x):
        return _constant(kind, float(np.float32(x)))

    rounder = number(1.5 * 2**23)  # adding it leaves no bits below the point
    k = builder.fsub(fused(value, number(1.44269504088896341), rounder), rounder)
    r = fused(k, number(2.12194440e-4), fused(k, number(-0.693359375), value))  # ln 2 in two parts
    first, *others = 1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 0.16666665459, 0.50000001201
    series = reduce(lambda total, c: fused(total, r, number(c)), others, number(first))
    mantissa = fused(builder.fmul(r, r), series, builder.fadd(r, number(1.0)))
    exponent = builder.add(builder.fptosi(k, ints), _constant(ints, 127))
    return builder.fmul(mantissa, builder.bitcast(builder.shl(exponent, _constant(ints, 23)), kind))
