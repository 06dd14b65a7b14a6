"""Vectors for kernels: loops too short for a compiler to vectorise, and memory asked for ahead.

Numba leaves straight lines of code scalar, and a vectorised loop over a few channels costs more to
enter than it saves. So these steps are written as LLVM vectors, which LLVM fits to those that the
processor has: a pixel's channels side by side, eight, four or three, in the wider of the types
given; a vertex's coordinates in float64 until they are stored. Products and sums are rounded one by
one, as in scalar code.

The steps are called from kernels. Arrays are flat, places in them are ``np.uint64``. Nothing checks
them.
"""

from typing import Any, TypeAlias, no_type_check

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

Value: TypeAlias = Any
"""Numba and LLVM types and values, for which neither library has annotations."""

_INDEX = ir.IntType(32)
LINE_BYTES = 64
"""Of the caches of every x86-64 and most ARM processors."""


class Vectors:
    """Vectors of ``lanes`` numbers in the function that is being compiled."""

    def __init__(self, context: Value, builder: Value, lanes: int, *given: Value) -> None:
        """Take the widest of the types ``given`` for arithmetic."""
        self._context, self._builder, self._lanes = context, builder, lanes
        self.number = types.float64 if types.float64 in given else types.float32

    def vector(self, number: Value) -> Value:
        """LLVM's type of all lanes."""
        return ir.VectorType(self._context.get_value_type(number), self._lanes)

    def spread(self, kind: Value, value: Value) -> Value:
        """One number in all lanes."""
        number = self._context.cast(self._builder, value, kind, self.number)
        nothing = ir.Constant(self.vector(self.number), ir.Undefined)
        one = self._builder.insert_element(nothing, number, ir.Constant(_INDEX, 0))
        first = ir.Constant(ir.VectorType(_INDEX, self._lanes), [0] * self._lanes)
        return self._builder.shuffle_vector(one, nothing, first)

    def _address(self, kind: Value, array: Value, start: Value) -> Value:
        data = self._context.make_array(kind)(self._context, self._builder, array).data
        first = self._builder.gep(data, [start])
        return self._builder.bitcast(first, self.vector(kind.dtype).as_pointer())

    def load(self, kind: Value, array: Value, start: Value) -> Value:
        """Numbers of ``array`` from place ``start`` on."""
        address = self._address(kind, array, start)
        found = self._builder.load(address, align=kind.dtype.bitwidth // 8)
        wide = self.vector(self.number)
        return found if kind.dtype == self.number else self._builder.fpext(found, wide)

    def store(self, value: Value, kind: Value, array: Value, start: Value) -> None:
        """Put ``value`` into ``array`` from place ``start`` on, rounded to its type."""
        if kind.dtype != self.number:
            value = self._builder.fptrunc(value, self.vector(kind.dtype))
        address = self._address(kind, array, start)
        self._builder.store(value, address, align=kind.dtype.bitwidth // 8)

    def total(self, value: Value) -> Value:
        """Sum of the lanes: the halves added, then their halves, and so on."""
        lanes = self._lanes
        while lanes > 1:
            lanes //= 2
            low, high = (
                self._builder.shuffle_vector(
                    value,
                    value,
                    ir.Constant(ir.VectorType(_INDEX, lanes), list(range(first, first + lanes))),
                )
                for first in (0, lanes)
            )
            value = self._builder.fadd(low, high)
        return self._builder.extract_element(value, ir.Constant(_INDEX, 0))


def _blend(lanes: int) -> Value:
    @intrinsic
    @no_type_check
    def blend(
        _: Value,
        values: Value,
        i: Value,
        j: Value,
        k: Value,
        p: Value,
        q: Value,
        r: Value,
        out: Value,
        start: Value,
    ) -> Value:
        """Set ``out`` from ``start`` on to p values[i:] + q values[j:] + r values[k:]."""
        signature = types.void(values, i, j, k, p, q, r, out, start)

        def generate(context: Value, builder: Value, _: Value, arguments: Value) -> Value:
            vectors = Vectors(context, builder, lanes, values.dtype, p, q, r)
            parts = [
                builder.fmul(
                    vectors.spread(kind, weight), vectors.load(values, arguments[0], place)
                )
                for kind, weight, place in zip(
                    (p, q, r), arguments[4:7], arguments[1:4], strict=True
                )
            ]
            blended = builder.fadd(builder.fadd(parts[0], parts[1]), parts[2])
            vectors.store(blended, out, *arguments[7:])
            return context.get_dummy_value()

        return signature, generate

    return blend


def _unblend(lanes: int) -> Value:
    @intrinsic
    @no_type_check
    def unblend(
        _: Value,
        values: Value,
        i: Value,
        j: Value,
        k: Value,
        p: Value,
        q: Value,
        r: Value,
        gradient: Value,
        start: Value,
        to_values: Value,
    ) -> Value:
        """Add the gradient of a blend to ``to_values``; return its products with the three rows."""
        vectors_of = (values.dtype, gradient.dtype, to_values.dtype, p, q, r)
        number = types.float64 if types.float64 in vectors_of else types.float32
        signature = types.UniTuple(number, 3)(values, i, j, k, p, q, r, gradient, start, to_values)

        def generate(context: Value, builder: Value, signature: Value, arguments: Value) -> Value:
            vectors = Vectors(context, builder, lanes, *vectors_of)
            given = vectors.load(gradient, *arguments[7:9])
            sums = []
            for kind, weight, place in zip((p, q, r), arguments[4:7], arguments[1:4], strict=True):
                row = vectors.load(values, arguments[0], place)
                sums.append(vectors.total(builder.fmul(given, row)))
                step = builder.fmul(given, vectors.spread(kind, weight))
                before = vectors.load(to_values, arguments[9], place)
                vectors.store(builder.fadd(before, step), to_values, arguments[9], place)
            return context.make_tuple(builder, signature.return_type, sums)

        return signature, generate

    return unblend


@intrinsic
@no_type_check
def place_3(_: Value, base: Value, offset: Value, start: Value, camera: Value, out: Value) -> Value:
    """Set three numbers of ``out`` to the affine image of base + offset; return the first two.

    ``camera`` holds the three columns of the matrix and the shift, float64, each padded to four.
    """
    signature = types.UniTuple(out.dtype, 2)(base, offset, start, camera, out)

    def generate(context: Value, builder: Value, signature: Value, arguments: Value) -> Value:
        vectors = Vectors(context, builder, 4, types.float64)
        given = [
            context.make_array(kind)(context, builder, array).data
            for kind, array in ((base, arguments[0]), (offset, arguments[1]))
        ]
        columns = [
            vectors.load(camera, arguments[3], ir.Constant(arguments[2].type, 4 * number))
            for number in range(4)
        ]
        total = None
        for axis in range(3):
            place = builder.add(arguments[2], ir.Constant(arguments[2].type, axis))
            one, other = (builder.load(builder.gep(data, [place])) for data in given)
            point = vectors.spread(base.dtype, builder.fadd(one, other))
            term = builder.fmul(columns[axis], point)
            total = term if total is None else builder.fadd(total, term)
        placed = builder.fptrunc(
            builder.fadd(total, columns[3]), ir.VectorType(context.get_value_type(out.dtype), 4)
        )
        three = builder.shuffle_vector(
            placed, placed, ir.Constant(ir.VectorType(_INDEX, 3), [0, 1, 2])
        )
        Vectors(context, builder, 3, out.dtype).store(three, out, arguments[4], arguments[2])
        seen = [builder.extract_element(placed, ir.Constant(_INDEX, lane)) for lane in range(2)]
        return context.make_tuple(builder, signature.return_type, seen)

    return signature, generate


def ask_for(context: Value, builder: Value, kind: Value, array: Value, place: Value) -> None:
    """Let the function being compiled ask for the cache line of ``place`` in a flat ``array``."""
    data = context.make_array(kind)(context, builder, array).data
    signature = ir.FunctionType(ir.VoidType(), [data.type, _INDEX, _INDEX, _INDEX])
    ask = builder.module.declare_intrinsic("llvm.prefetch", [data.type], signature)
    to_read, keep, is_data = (ir.Constant(_INDEX, number) for number in (0, 3, 1))
    builder.call(ask, [builder.gep(data, [place]), to_read, keep, is_data])


@intrinsic
@no_type_check
def fetch(_: Value, array: Value, start: Value) -> Value:
    """Ask for the cache line of place ``start``, which need not exist, ahead of its use."""

    def generate(context: Value, builder: Value, _: Value, arguments: Value) -> Value:
        ask_for(context, builder, array, *arguments)
        return context.get_dummy_value()

    return types.void(array, start), generate


@intrinsic
@no_type_check
def clear_line(_: Value, array: Value, start: Value) -> Value:
    """Zero the cache line that begins at place ``start`` of a flat array, past the caches."""

    def generate(context: Value, builder: Value, _: Value, arguments: Value) -> Value:
        data = context.make_array(array)(context, builder, arguments[0]).data
        lanes = LINE_BYTES * 8 // array.dtype.bitwidth
        line = ir.VectorType(context.get_value_type(array.dtype), lanes)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), line.as_pointer())
        store = builder.store(ir.Constant(line, [0.0] * lanes), address, align=LINE_BYTES)
        flag = builder.module.add_metadata([ir.Constant(_INDEX, 1)])
        store.set_metadata("nontemporal", flag)
        return context.get_dummy_value()

    return types.void(array, start), generate


@intrinsic
@no_type_check
def finish_clearing(_: Value) -> Value:
    """Let other threads see what was cleared, which the order of other stores does not promise."""

    def generate(context: Value, builder: Value, _: Value, __: Value) -> Value:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


blend_2, blend_3, blend_4, blend_8 = _blend(2), _blend(3), _blend(4), _blend(8)
unblend_4, unblend_8 = _unblend(4), _unblend(8)
