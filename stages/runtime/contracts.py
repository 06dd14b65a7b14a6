"""The Arrow schemas that stages exchange.

Each schema carries its name and version; each field that needs it carries ``unit``, ``frame`` or
``order`` in its metadata. ``table_of`` is the only way rows become a table: it refuses unknown and
missing columns.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATUSES = ("ok", "failed", "rejected")
VALIDATION_SETS = frozenset({"FLORENCE"})
"""Unified sets whose people are never trained on: MICA validates on Florence alone."""


def _field(name: str, kind: Any, **facts: str) -> Any:  # noqa: ANN401 - pyarrow types
    import pyarrow as pa

    return pa.field(name, kind, metadata=facts or None)


@cache
def schema(name: str) -> Any:  # noqa: ANN401 - pyarrow.Schema, imported late
    """Return a named schema.

    Args:
        name: ``images``, ``scans``, ``subjects``, ``landmarks``, ``registrations``,
            ``unified_subjects``, ``rendered``, ``predictions``, ``landmark_predictions``,
            ``distances``, ``likeness``, ``tracked_frames`` or ``ablation``.

    Raises:
        KeyError: No schema has that name.
    """
    import pyarrow as pa

    f32, f64, i32, text = pa.float32(), pa.float64(), pa.int32(), pa.string()
    floats, doubles = pa.list_(f32), pa.list_(f64)
    item = [
        _field("item_id", text),
        _field("subject_id", text),
        _field("status", text, values="|".join(STATUSES)),
        _field("reason", text),
    ]
    raw = [
        *item,
        _field("source_path", text),
        _field("source_sha256", text),
        _field("split", text),
        _field("attributes", text, format="json"),
    ]
    pixels = {"unit": "px", "frame": "image, y down, pixel centres at +0.5"}
    flame = {"unit": "m", "frame": "FLAME: +x subject's left, +y up, +z toward the viewer"}
    fields = {
        "images": [
            *raw,
            _field("image", pa.binary(), format="encoded file"),
            _field("height_px", i32, unit="px"),
            _field("width_px", i32, unit="px"),
            _field("landmarks_px", floats, order="x0 y0 x1 y1 ...", **pixels),
            _field("landmark_order", text),
            _field("box_px", floats, order="left top right bottom", **pixels),
            _field("shape_para", doubles, unit="model units, not divided by sigma"),
            _field("exp_para", doubles, unit="model units, not divided by sigma"),
            _field("pose_para", doubles, order="pitch yaw roll tx ty tz scale", unit="rad, px"),
        ],
        "scans": [
            *raw,
            _field("vertices", floats, order="x0 y0 z0 ...", frame="the scan's own"),
            _field("faces", pa.list_(i32), order="a0 b0 c0 ..."),
            _field("colors", pa.list_(pa.uint8()), order="r0 g0 b0 ..."),
            _field("unit", text, values="m|dm|cm|mm|unknown"),
            _field("landmarks", floats, order="x0 y0 z0 ...", frame="the scan's own"),
            _field("landmark_order", text),
            _field("neutral", pa.bool_()),
            _field("capped", pa.bool_()),
        ],
        "subjects": [
            _field("subject_id", text),
            _field("items", i32),
            _field("failed", i32),
            _field("shard", i32),
        ],
        "landmarks": [
            *item,
            _field("points_px", floats, order="iBUG-68, x0 y0 ...", **pixels),
            _field("score", f32),
            _field("box_px", floats, order="left top right bottom", **pixels),
            _field("provider", text),
        ],
        "registrations": [
            *item,
            _field("beta", floats, unit="sigma"),
            _field("psi", floats, unit="sigma"),
            _field("theta", floats, unit="rad", order="global neck jaw left-eye right-eye"),
            _field("scale", f64, unit="m per scan unit"),
            _field("rotation", doubles, order="row-major 3x3, T_flame_from_scan"),
            _field("translation", doubles, unit="m", order="T_flame_from_scan"),
            _field("vertices", floats, order="x0 y0 z0 ...", **flame),
            _field("vertices_neutral", floats, order="x0 y0 z0 ...", **flame),
            _field("residual_median_mm", f32, unit="mm"),
            _field("residual_q95_mm", f32, unit="mm"),
            _field("template_median_mm", f32, unit="mm"),
            _field("template_q95_mm", f32, unit="mm"),
            _field("landmark_rms_mm", f32, unit="mm"),
            _field("coverage", f32, unit="fraction of the face region"),
            _field("flipped_faces", i32),
            _field("prior_energy", f32),
            _field("score", f32, unit="estimated probability that the registration is right"),
            _field("flags", text, format="json"),
            _field("cleaning", text, format="json: what was mended in the scan, with counts"),
            _field("landmark_source", text, values="file|views|shape"),
        ],
        "unified_subjects": [
            _field("subject_id", text),
            _field("dataset", text),
            _field("actor", text),
            _field("item_id", text),
            _field("parameters", text),
            _field("mesh", text),
            _field("images", pa.list_(text)),
            _field("status", text),
            _field("reason", text),
        ],
        "rendered": [
            *item,
            _field("split", text),
            _field("shard", text),
            _field("offset", pa.int64(), unit="bytes"),
            _field("length", pa.int64(), unit="bytes"),
            _field("crop", pa.list_(i32), order="top left height width", unit="px"),
            _field("height_px", i32, unit="px"),
            _field("width_px", i32, unit="px"),
            _field("landmark_error", f32, of="extent of the model's inner landmarks"),
            _field("flags", text, format="json"),
        ],
        "predictions": [
            *item,
            _field("benchmark", text),
            _field("challenge", text),
            _field("photographs", i32, order="how many the mesh rests on"),
            _field("mesh", text),
            _field("landmarks", text),
            _field("provider", text),
        ],
        "landmark_predictions": [
            *item,
            _field("set", text, values="300w_lp|aflw2000"),
            _field("points_px", floats, order="iBUG-68, x0 y0 ...", **pixels),
            _field("true_px", floats, order="iBUG-68, x0 y0 ...", **pixels),
            _field("points_mm", floats, unit="mm", frame="face model", order="x0 y0 z0 ..."),
            _field("true_mm", floats, unit="mm", frame="face model", order="x0 y0 z0 ..."),
        ],
        "distances": [
            *item,
            _field("protocol", text),
            _field("challenge", text),
            _field("scan", text),
            _field("distances_mm", floats, unit="mm", order="as kept", frame="scan to prediction"),
            _field("reverse_mm", floats, unit="mm", frame="prediction to scan"),
            _field("kept", pa.list_(i32), order="ascending vertex numbers of the scan"),
            _field("error_mm", f64, unit="mm", order="the protocol's one number per image"),
            _field("scan_vertices", i32),
            _field("scale", f64, unit="mm per unit of the prediction"),
            _field("landmark_scale", f64, unit="mm per unit of the prediction"),
            _field("landmark_rms_mm", f64, unit="mm"),
            _field("iterations", i32),
            _field("flags", text, format="json"),
        ],
        "likeness": [
            *item,
            _field("cosine", f64, unit="of the photograph's and its rendering's embeddings"),
            _field("rank", i32, unit="place of the best photograph of the right person, from 1"),
        ],
        "tracked_frames": [
            _field("frame", i32, order="from 0"),
            _field("name", text),
            _field("time_s", f64, unit="s"),
            _field("status", text, values="|".join(STATUSES)),
            _field("reason", text),
            _field("box_px", floats, order="left top right bottom", **pixels),
            _field("box_source", text, values="detected|interpolated|held|missing"),
            _field("faces", i32, of="all that were detected in the frame"),
            _field("score", f32),
            _field("landmarks_px", floats, order="iBUG-68, x0 y0 ...", of="detected", **pixels),
            _field("fitted_px", floats, order="iBUG-68, x0 y0 ...", of="the fitted head", **pixels),
            _field("landmark_rms_px", f64, unit="px", of="detected to fitted landmarks"),
            _field("photometric_rmse", f64, unit="RGB in 0..255", of="the visible face"),
            _field("depth_rmse_mm", f64, unit="mm", of="the face where reference depth exists"),
            _field("depth_bias_mm", f64, unit="mm", of="mean of fitted minus reference depth"),
        ],
        "ablation": [
            _field("method", text),
            _field("switch", text),
            _field("value", text),
            _field("changes", text, format="json: dotted parameter to value"),
            _field("experiment", text, format="name of the DVC experiment"),
            _field("seed", pa.int64(), of="the row; null: that of params.yaml"),
            _field("status", text, values="|".join(STATUSES)),
            _field("reason", text),
            _field("figure", text),
            _field("unit", text),
            _field("measured", f64),
            _field("synthetic", pa.bool_()),
            _field("weights", text),
        ],
    }
    version = "2" if name == "distances" else "1"
    return pa.schema(fields[name], metadata={"schema": f"faceline.{name}", "version": version})


def table_of(rows: Iterable[Mapping[str, Any]], name: str) -> Any:  # noqa: ANN401 - pyarrow.Table
    """Build a table of schema ``name`` from dict rows.

    Raises:
        ValueError: A row has a column that the schema lacks, or lacks one without a null.
    """
    import pyarrow as pa

    kind = schema(name)
    names = set(kind.names)
    collected = []
    for index, row in enumerate(rows):
        unknown = set(row) - names
        if unknown:
            raise ValueError(f"row {index} of {name}: unknown columns {sorted(unknown)}")
        for required in ("status", "reason"):
            if required in names and row.get(required) is None:
                raise ValueError(f"row {index} of {name}: expected a {required}, got none")
        if "status" in names and row["status"] not in STATUSES:
            raise ValueError(f"row {index} of {name}: status {row['status']!r} not in {STATUSES}")
        collected.append({column: row.get(column) for column in kind.names})
    columns = [array_of([row[field.name] for row in collected], field.type) for field in kind]
    return pa.Table.from_arrays(columns, schema=kind)


def array_of(values: Sequence[Any], kind: Any) -> Any:  # noqa: ANN401 - pyarrow.DataType, Array
    """``pyarrow.array(values, kind)``, from buffers where the values are plainly of that type.

    For anything but an array of its own, ``pyarrow.array`` imports pandas to ask whether it is a
    series: a third of a second of every process that writes a table.
    """
    import pyarrow as pa

    there = [value for value in values if value is not None]
    types = {type(value) for value in there}
    content: list[Any] = []
    children = []
    offsets = np.zeros(1, np.int64)
    if is_numeric(kind) and types <= {float if pa.types.is_floating(kind) else int}:
        filled = [0 if value is None else value for value in values]
        content = [np.array(filled, kind.to_pandas_dtype())]
    elif kind == pa.bool_() and types <= {bool}:
        content = [_bits([value is True for value in values])]
    elif (kind == pa.string() and types <= {str}) or (kind == pa.binary() and types <= {bytes}):
        parts = [value.encode() if isinstance(value, str) else value or b"" for value in values]
        offsets = np.cumsum([0, *map(len, parts)])
        content = [offsets.astype(np.int32), b"".join(parts)]
    elif pa.types.is_list(kind) and is_numeric(kind.value_type) and types <= {np.ndarray}:
        dtype = kind.value_type.to_pandas_dtype()
        if all(value.dtype == dtype and value.ndim == 1 for value in there):
            offsets = np.cumsum([0, *(0 if value is None else len(value) for value in values)])
            content = [offsets.astype(np.int32)]
            inner = pa.py_buffer(np.concatenate([np.empty(0, dtype), *there]))
            children = [pa.Array.from_buffers(kind.value_type, offsets[-1], [None, inner])]
    if not content or offsets[-1] >= 2**31:
        return pa.array(values, kind)
    known = None if len(there) == len(values) else _bits([value is not None for value in values])
    buffers = [None if part is None else pa.py_buffer(part) for part in (known, *content)]
    return pa.Array.from_buffers(kind, len(values), buffers, children=children)


def is_numeric(kind: Any) -> bool:  # noqa: ANN401 - pyarrow.DataType
    """Whether values of an Arrow type are integers or floats."""
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _bits(flags: Sequence[bool]) -> NDArray[np.uint8]:
    return np.packbits(np.array(flags, bool), bitorder="little")
