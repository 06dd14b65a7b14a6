"""Displacements of many faces at once: coefficients times directions, float32.

Few rows by very many columns, and the directions stay: laid out once in panels that fit into the
first cache, they are read once for all faces, ahead of their use. Each number is the sum over the
directions in their order by fused multiply-adds, so that its bits depend neither on the faces that
are multiplied with it nor on the processor, as they do in a BLAS. One without such an instruction
computes it step by step, fifty times slower; x86-64 has it since 2013, every 64-bit ARM does.
"""

from typing import Final, no_type_check

import numpy as np
from jaxtyping import Float
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from models.rendering.jit import kernel
from models.rendering.lanes import Value, Vectors, ask_for

_TARGET: Final = cpu_target.target_context.codegen().magic_tuple()
"""What numba compiles for, and keeps compiled code apart by."""
LANES: Final = 16 if "+avx512f" in _TARGET[2].split(",") else 8
"""Numbers that the processor multiplies at once."""
ROWS, VECTORS = (8, 2) if LANES == 16 else (4, 3)
"""A block of sums, faces by vectors, that with its factors fills the processor's registers."""
PANEL: Final = LANES * VECTORS
"""Columns laid out together."""


@intrinsic
@no_type_check
def _block(
    _: Value,
    coefficients: Value,
    row: Value,
    panels: Value,
    panel: Value,
    directions: Value,
    ahead: Value,
    pace: Value,
    out: Value,
    start: Value,
    stride: Value,
) -> Value:
    """Set ``ROWS`` by ``PANEL`` numbers of ``out`` to their sums over the directions.

    All arrays are flat, places are uint64: ``row`` is that of the block's coefficients, ``panel``
    that of the panel, ``ahead`` that from which ``pace`` numbers a step are asked for, ``start``
    that of the first result, ``stride`` the length of a row of ``out``.
    """
    signature = types.void(
        coefficients, row, panels, panel, directions, ahead, pace, out, start, stride
    )

    def generate(context: Value, builder: Value, _: Value, arguments: Value) -> Value:
        faces, row, matrix, panel, directions, ahead, pace, drawn, start, stride = arguments
        vectors = Vectors(context, builder, LANES, types.float32)
        vector = vectors.vector(types.float32)
        fused = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )

        def place(begin: Value, number: int) -> Value:
            return builder.add(begin, ir.Constant(begin.type, number))

        def times(value: Value, number: int) -> Value:
            return builder.mul(value, ir.Constant(value.type, number))

        nothing = ir.Constant(vector, [0.0] * LANES)
        sums = [
            [cgutils.alloca_once_value(builder, nothing) for _ in range(VECTORS)]
            for _ in range(ROWS)
        ]
        faces_data = context.make_array(coefficients)(context, builder, faces).data
        with cgutils.for_range(builder, directions) as loop:
            ask_for(
                context, builder, panels, matrix, builder.add(ahead, builder.mul(loop.index, pace))
            )
            first = builder.add(panel, times(loop.index, PANEL))
            columns = [
                vectors.load(panels, matrix, place(first, LANES * number))
                for number in range(VECTORS)
            ]
            weights = builder.add(row, times(loop.index, ROWS))
            for number, totals in enumerate(sums):
                weight = builder.load(builder.gep(faces_data, [place(weights, number)]))
                everywhere = vectors.spread(types.float32, weight)
                for total, column in zip(totals, columns, strict=True):
                    builder.store(
                        builder.call(fused, [everywhere, column, builder.load(total)]), total
                    )
        for number, totals in enumerate(sums):
            begin = builder.add(start, times(stride, number))
            for index, total in enumerate(totals):
                vectors.store(builder.load(total), out, drawn, place(begin, LANES * index))
        return context.get_dummy_value()

    return signature, generate


@kernel
@no_type_check
def _multiply(
    coefficients: np.ndarray, panels: np.ndarray, directions: int, out: np.ndarray
) -> None:
    """Set ``out`` (blocks * ROWS, panels * PANEL) from both factors as they are laid out, flat."""
    steps, rows, panel_size = np.uint64(directions), np.uint64(ROWS), np.uint64(PANEL)
    blocks, stride = np.uint64(out.shape[0]) // rows, np.uint64(out.shape[1])
    numbers = out.reshape(-1)
    pace = panel_size // blocks + np.uint64(1)  # the blocks ask for the next panel together
    for number in range(stride // panel_size):
        panel = number * panel_size * steps
        for block in range(blocks):
            row = block * steps * rows
            ahead = panel + panel_size * steps + block * steps * pace
            start = block * rows * stride + number * panel_size
            _block(coefficients, row, panels, panel, steps, ahead, pace, numbers, start, stride)


class Directions:
    """Directions of displacement, laid out for products with some tens of rows at a time.

    Attributes:
        count: Number of directions.
        columns: Numbers that each of them displaces.
    """

    def __init__(self, directions: Float[np.ndarray, "k n"]) -> None:
        """Lay out ``directions``, float32."""
        self.count, self.columns = directions.shape
        whole = self.columns // PANEL
        panels = np.zeros((-(-self.columns // PANEL), self.count, PANEL), dtype=np.float32)
        straight = directions[:, : whole * PANEL].reshape(self.count, whole, PANEL)
        panels[:whole] = straight.transpose(1, 0, 2)
        panels[whole:, :, : self.columns - whole * PANEL] = directions[:, whole * PANEL :]
        self._panels = panels.reshape(-1)

    def room(self, rows: int) -> Float[np.ndarray, "r m"]:
        """Undefined memory that :meth:`times` can put ``rows`` results into."""
        size = -(-rows // ROWS) * ROWS, -(-self.columns // PANEL) * PANEL
        return np.empty(size, dtype=np.float32)

    def times(
        self, coefficients: Float[np.ndarray, "b k"], room: Float[np.ndarray, "r m"]
    ) -> Float[np.ndarray, "b n"]:
        """Sums of the directions, each times its coefficient, per row.

        Args:
            coefficients: float32.
            room: Of :meth:`room` for at least as many rows; it is written to.

        Returns:
            A part of ``room``; the columns of one row lie side by side.
        """
        rows = len(coefficients)
        blocks = -(-rows // ROWS)
        laid = np.zeros((blocks * ROWS, self.count), dtype=np.float32)
        laid[:rows] = coefficients
        laid = np.ascontiguousarray(laid.reshape(blocks, ROWS, self.count).transpose(0, 2, 1))
        if blocks:
            _multiply(laid.reshape(-1), self._panels, self.count, room[: blocks * ROWS])
        return room[:rows, : self.columns]
