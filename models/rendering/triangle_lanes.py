"""The vector steps of triangles: x and y side by side, or three corners side by side.

Called from kernels as those of :mod:`models.rendering.lanes`: flat arrays, ``np.uint64`` places,
nothing checked, every sum and product rounded by itself as in scalar code.

With x and y of the corners relative to a pixel, X and Y, the edge values are the cross product
e = X x Y. They come out of X Y' - X' Y, where a dash moves every corner on by one, as (e2, e0, e1).
"""

from typing import no_type_check

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from models.rendering.lanes import Value, Vectors

ROW = 8
"""Numbers that are kept of a triangle's corners: u0 u1 u2 - v0 v1 v2 -, where - is any number."""
_INDEX = ir.IntType(32)


def _lane(number: int) -> Value:
    return ir.Constant(_INDEX, number)


def _arranged(builder: Value, one: Value, other: Value, *lanes: int) -> Value:
    """Lanes of two vectors, those of the second counted on from those of the first."""
    order = ir.Constant(ir.VectorType(_INDEX, len(lanes)), list(lanes))
    return builder.shuffle_vector(one, other, order)


def _rounded(builder: Value, name: str, vector: Value) -> Value:
    """LLVM's ``ceil`` or ``floor`` of each lane."""
    kind = f"v{vector.type.count}{vector.type.element.intrinsic_name}"
    signature = ir.FunctionType(vector.type, [vector.type])
    function = get_or_insert_function(builder.module, signature, f"llvm.{name}.{kind}")
    return builder.call(function, [vector])


def _of_two(builder: Value, relation: str, one: Value, other: Value) -> Value:
    """In each lane, the lesser (``<``) or the greater (``>``) number."""
    return builder.select(builder.fcmp_ordered(relation, one, other), one, other)


def _crossed(builder: Value, x: Value, y: Value) -> Value:
    """(e2, e0, e1, -) of corners (0, 1, 2, -)."""
    x_on, y_on = (_arranged(builder, value, value, 1, 2, 0, 0) for value in (x, y))
    return builder.fsub(builder.fmul(x, y_on), builder.fmul(x_on, y))


@intrinsic
@no_type_check
def box_triangle(
    _: Value,
    place: Value,
    i: Value,
    j: Value,
    k: Value,
    limits: Value,
    corners: Value,
    row: Value,
    boxes: Value,
    box: Value,
) -> Value:
    """Put a triangle's corners into ``corners`` from ``row`` on, and the pixels of its box.

    Args:
        place: Columns and rows of vertices from places i, j and k on, pixel centres at integers.
        i: First corner.
        j: Second corner.
        k: Third corner.
        limits: First column, first row, last column, last row of the picture.
        corners: ``ROW`` numbers a triangle.
        row: Where its begin.
        boxes: First column, first row, last column, last row of each triangle.
        box: Where its begin.

    Returns:
        Whether the corners are numbers, and whether the box holds a pixel centre.
    """
    signature = types.UniTuple(types.boolean, 2)(place, i, j, k, limits, corners, row, boxes, box)

    def generate(context: Value, builder: Value, signature: Value, arguments: Value) -> Value:
        pair = Vectors(context, builder, 2, place.dtype)

        def later(start: Value, step: int) -> Value:
            return builder.add(start, ir.Constant(start.type, step))

        a, b, c = (pair.load(place, arguments[0], start) for start in arguments[1:4])
        total = builder.fadd(builder.fadd(a, b), c)
        unknown = builder.fcmp_unordered("uno", total, total)
        lowest, highest = (
            _of_two(builder, relation, _of_two(builder, relation, a, b), c) for relation in "<>"
        )
        zero = ir.Constant(arguments[8].type, 0)
        first = _of_two(
            builder,
            ">",
            _rounded(builder, "ceil", lowest),
            pair.load(limits, arguments[4], zero),
        )
        last = _of_two(
            builder,
            "<",
            _rounded(builder, "floor", highest),
            pair.load(limits, arguments[4], later(zero, 2)),
        )
        pair.store(first, boxes, arguments[7], arguments[8])
        pair.store(last, boxes, arguments[7], later(arguments[8], 2))
        u, v = _arranged(builder, a, b, 0, 2), _arranged(builder, a, b, 1, 3)
        for value, step in ((u, 0), (c, 2), (v, 4), (_arranged(builder, c, c, 1, 1), 6)):
            pair.store(value, corners, arguments[5], later(arguments[6], step))
        holds = builder.fcmp_ordered("<=", first, last)
        found = (
            builder.not_(
                builder.or_(*(builder.extract_element(unknown, _lane(k)) for k in (0, 1)))
            ),
            builder.and_(*(builder.extract_element(holds, _lane(k)) for k in (0, 1))),
        )
        flags = [context.cast(builder, bit, types.boolean, types.boolean) for bit in found]
        return context.make_tuple(builder, signature.return_type, flags)

    return signature, generate


@intrinsic
@no_type_check
def edges_at_pixel(
    _: Value, corners: Value, row: Value, x: Value, y: Value, edges: Value, start: Value
) -> Value:
    """Put a triangle's edge values at a pixel into ``edges`` from ``start`` on: e2, e0, e1, -.

    Returns:
        Whether none is positive, and whether none is negative.
    """
    signature = types.UniTuple(types.boolean, 2)(corners, row, x, y, edges, start)

    def generate(context: Value, builder: Value, signature: Value, arguments: Value) -> Value:
        four = Vectors(context, builder, 4, corners.dtype)
        half = builder.add(arguments[1], ir.Constant(arguments[1].type, ROW // 2))
        u, v = (four.load(corners, arguments[0], place) for place in (arguments[1], half))
        found = _crossed(
            builder,
            builder.fsub(u, four.spread(x, arguments[2])),
            builder.fsub(v, four.spread(y, arguments[3])),
        )
        four.store(found, edges, arguments[4], arguments[5])
        flags = []
        three = _arranged(builder, found, found, 0, 1, 2, 2)
        nothing = ir.Constant(three.type, [0.0] * 4)
        for relation in ("<=", ">="):
            bits = builder.fcmp_ordered(relation, three, nothing)
            whole = builder.bitcast(bits, ir.IntType(4))
            flags.append(builder.icmp_unsigned("==", whole, ir.Constant(whole.type, 15)))
        return context.make_tuple(builder, signature.return_type, flags)

    return signature, generate


@intrinsic
@no_type_check
def weights_3(_: Value, clip: Value, i: Value, j: Value, k: Value, px: Value, py: Value) -> Value:
    """Barycentrics of the pixel (px, py) in the triangle whose corners begin at places i, j and k.

    With X = x - px w and Y = y - py w they are the edge values divided by their sum, in float64.
    """
    signature = types.UniTuple(types.float64, 3)(clip, i, j, k, px, py)

    def generate(context: Value, builder: Value, signature: Value, arguments: Value) -> Value:
        given, wide = (Vectors(context, builder, 4, kind) for kind in (clip.dtype, types.float64))

        def widened(value: Value) -> Value:
            exact = clip.dtype == types.float64
            return value if exact else builder.fpext(value, wide.vector(types.float64))

        # Rows (x, y, z, w) of the corners to columns; the fourth lane repeats the third.
        a, b, c = (given.load(clip, arguments[0], place) for place in arguments[1:4])
        xy = _arranged(builder, a, b, 0, 4, 1, 5)
        x = widened(_arranged(builder, xy, c, 0, 1, 4, 4))
        y = widened(_arranged(builder, xy, c, 2, 3, 5, 5))
        w = widened(_arranged(builder, _arranged(builder, a, b, 3, 7, 3, 7), c, 0, 1, 7, 7))
        edges = _crossed(
            builder,
            builder.fsub(x, builder.fmul(wide.spread(px, arguments[4]), w)),
            builder.fsub(y, builder.fmul(wide.spread(py, arguments[5]), w)),
        )
        e0, e1, e2 = (builder.extract_element(edges, _lane(lane)) for lane in (1, 2, 0))
        total = builder.fadd(builder.fadd(e0, e1), e2)
        inverse = builder.fdiv(ir.Constant(total.type, 1.0), total)
        weights = builder.fmul(edges, wide.spread(types.float64, inverse))
        found = [builder.extract_element(weights, _lane(lane)) for lane in (1, 2, 0)]
        return context.make_tuple(builder, signature.return_type, found)

    return signature, generate
