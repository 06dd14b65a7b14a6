"""Size presets: `tiny` for tests, `demo` as committed, `bench` for hours or a GPU.

A preset is a YAML file in ``presets/`` that names only what differs; ``demo`` is the reference,
``paper`` has the published numbers of Deng et al., RingNet, MICA and pix2face.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.runtime.artifacts import write_bytes
from stages.runtime.params import section_files


def apply(name: str, root: Path) -> list[str]:
    """Write the values of preset ``name`` into params.yaml and the sections' own files.

    Comments and order are kept.

    Returns:
        The dotted names of the values that changed.

    Raises:
        FileNotFoundError: There is no such preset.
        KeyError: The preset names a parameter that there is not.
    """
    from ruamel.yaml import YAML

    source = root / "presets" / f"{name}.yaml"
    if not source.is_file():
        known = sorted(path.stem for path in (root / "presets").glob("*.yaml"))
        raise FileNotFoundError(f"expected one of the presets {known}, got {name!r}")
    yaml = YAML()
    yaml.width = 4096  # lines stay as they are
    yaml.representer.add_representer(type(None), _null)
    main = root / "params.yaml"
    sections = section_files(main)
    documents = {
        file: yaml.load((root / file).read_text(encoding="utf-8"))
        for file in [main.name, *sections.values()]
    }
    changed: dict[str, list[str]] = {file: [] for file in documents}
    params = documents[main.name]
    for section, values in (yaml.load(source.read_text(encoding="utf-8")) or {}).items():
        file = sections.get(section)
        if file is None:
            _merge(params, {section: values}, "", changed[main.name])
            continue
        shared = params.get(section, {})
        here = {key: value for key, value in values.items() if key in shared}
        there = {key: value for key, value in values.items() if key not in shared}
        _merge(shared, here, f"{section}.", changed[main.name])
        _merge(documents[file], there, f"{section}.", changed[file])
    for file, names in changed.items():
        if names:
            text = io.StringIO()
            yaml.dump(documents[file], text)
            write_bytes(root / file, text.getvalue().encode())
    return [name for names in changed.values() for name in names]


def _null(representer: Any, _: None) -> Any:  # noqa: ANN401 - ruamel's nodes
    """Write null as it is read, not as nothing."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _merge(into: Any, values: Mapping[str, Any], prefix: str, changed: list[str]) -> None:  # noqa: ANN401
    """Overwrite leaves of ``into``; unknown names are refused."""
    for key, value in values.items():
        if key not in into:
            raise KeyError(f"the preset names {prefix}{key}, which the parameters lack")
        if isinstance(value, Mapping) and isinstance(into[key], Mapping):
            _merge(into[key], value, f"{prefix}{key}.", changed)
        elif into[key] != value:
            into[key] = value
            changed.append(f"{prefix}{key}")
