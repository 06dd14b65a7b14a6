"""The toy head as a converted model, for the stage and the command."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from stages.runtime.artifacts import write_json, write_safetensors

TOY = Path(__file__).parents[2] / "models/geometry/toy_head.py"


@pytest.fixture(scope="package")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_head", TOY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="package")
def flame(toy, tmp_path_factory) -> Path:
    """The toy head as a converted model."""
    arrays, out = toy.toy_head(), tmp_path_factory.mktemp("flame")
    names = ("v_template", "faces", "shapedirs", "exprdirs", "posedirs", "weights", "parents")
    tensors = {name: getattr(arrays, name) for name in names}
    write_safetensors({**tensors, "J_regressor": arrays.joint_regressor}, out / "model.safetensors")
    faces, bary = toy.toy_landmarks(arrays)
    np.savez(
        out / "embeddings.npz",
        static_faces=faces,
        static_bary=bary,
        dynamic_faces=np.zeros((79, 17), np.int64),
        dynamic_bary=np.full((79, 17, 3), 1 / 3),
        full_faces=np.zeros(68, np.int64),
        full_bary=np.full((68, 3), 1 / 3),
    )
    write_json({"synthetic": True}, out / "meta.json")
    return out
