"""The ``faceline`` command.

Exit status: 0 success, 1 the work failed, 2 the request was wrong. ``--json`` prints one JSON
document on stdout; logs and progress go to stderr.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines import cli_ablate, cli_track

logger = logging.getLogger("faceline")

TREE_WIDTH = 200
SCORE_WIDTH = 132
MOST_LINES = 20

RequestError = (
    ValueError,
    KeyError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    if not options.verbose:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request to the server
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except RequestError as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        logger.error("faceline: %s", text)  # noqa: TRY400 - the request was wrong, no traceback
        logger.debug("where it was found", exc_info=True)
        return 2
    except (RuntimeError, OSError) as error:  # a full disk, say
        logger.error("faceline: %s", error)  # noqa: TRY400 - the message says what to do
        logger.debug("where it was found", exc_info=True)
        return 1
    except KeyboardInterrupt:
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="faceline", description=__doc__.splitlines()[0])
    parser.add_argument("--verbose", action="store_true", help="more log lines on stderr")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="bring the graph, or what targets need, up to date")
    run.add_argument("targets", nargs="*", metavar="TARGET", help="a stage or a group of stages")
    run.add_argument("--engine", choices=("local", "prefect"), default="local")
    run.add_argument("--parallel", type=int, default=2, help="stages at once (default 2)")
    run.add_argument(
        "--pull", action="store_true", help="fetch from the DVC remote first, compute the rest"
    )
    run.add_argument("--json", action="store_true")
    run.set_defaults(command=_run)

    up = commands.add_parser("up", help="start a Prefect server and a Ray head on this machine")
    up.add_argument(
        "--worker", action="store_true", help="also deploy the flow and start a worker for it"
    )
    up.set_defaults(command=_up)
    down = commands.add_parser("down", help="end what `up` started, and nothing else")
    down.set_defaults(command=_down)

    register = commands.add_parser("register", help="one head scan to FLAME topology")
    register.add_argument("scan", type=Path, help="mesh file: obj, ply, gz")
    register.add_argument(
        "--landmarks",
        type=Path,
        help="npy, txt, pp or lnd: 7, 51 or 68 points on the scan; without, they are looked for",
    )
    register.add_argument(
        "--landmark-model",
        type=Path,
        help="finds landmarks where none are given (default: data/landmark_model, if it is there)",
    )
    register.add_argument(
        "--embedding", type=Path, help="landmark embedding that the points follow (npy, pkl or npz)"
    )
    register.add_argument(
        "--model", type=Path, required=True, help="FLAME: converted folder, npz or the owner's pkl"
    )
    register.add_argument("--preset", choices=("fast", "accurate"), default="accurate")
    register.add_argument("--out", type=Path, required=True)
    register.add_argument("--json", action="store_true")
    register.set_defaults(command=_register)

    render = commands.add_parser("render", help="one 300W-LP sample to PNCC and offset pictures")
    render.add_argument("sample", type=Path, help="the sample's .mat; its .jpg beside it")
    render.add_argument("--model", type=Path, required=True, help="3DMM folder")
    render.add_argument("--out", type=Path, required=True)
    render.add_argument("--json", action="store_true")
    render.set_defaults(command=_render)

    reconstruct = commands.add_parser("reconstruct", help="photographs to meshes")
    reconstruct.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    reconstruct.add_argument("--checkpoint", type=Path, required=True)
    reconstruct.add_argument("--out", type=Path, required=True)
    reconstruct.add_argument(
        "--one-person",
        action="store_true",
        help="all photographs show one person: one identity from all of them (pix2face, deng2019)",
    )
    reconstruct.add_argument("--json", action="store_true")
    reconstruct.set_defaults(command=_reconstruct)

    follow = commands.add_parser("track", help="the face in a video: parameters, overlay, meshes")
    cli_track.add_options(follow)
    follow.set_defaults(command=_track)

    _add_score(commands)

    lineage = commands.add_parser("lineage", help="where an artefact came from")
    kinds = lineage.add_subparsers(required=True, metavar="show|verify")
    show = kinds.add_parser("show", help="the tree down to raw inputs")
    show.add_argument("artefact", type=Path)
    show.add_argument("--format", choices=("tree", "mermaid", "json"), default="tree")
    show.add_argument("--json", action="store_const", const="json", dest="format")
    show.set_defaults(command=_lineage_show)
    verify = kinds.add_parser("verify", help="is everything still what dvc.lock says?")
    verify.add_argument("artefact", type=Path)
    verify.add_argument("--json", action="store_true")
    verify.set_defaults(command=_lineage_verify)

    ablate = commands.add_parser("ablate", help="a method's ablation table, by DVC experiments")
    cli_ablate.add_options(ablate)
    ablate.set_defaults(command=_ablate)

    preset = commands.add_parser("preset", help="write a size preset into the parameters")
    preset.add_argument("name", help="tiny, demo, bench or paper")
    preset.set_defaults(command=_preset)

    clean = commands.add_parser(
        "clean-cache",
        help="remove rows kept from runs of long ago, and every row of withdrawn subjects",
    )
    clean.add_argument("--older-than", type=float, default=30, metavar="DAYS")
    clean.set_defaults(command=_clean_cache)

    doctor = commands.add_parser("doctor", help="what is installed, present, valid, missing")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_score(commands: Any) -> None:  # noqa: ANN401 - argparse's private action
    score = commands.add_parser("score", help="measure predictions by a benchmark's protocol")
    score.add_argument(
        "protocol",
        metavar="PROTOCOL",
        help="now, now-metric, feng2018, feng2018-metric, stirling-now, stirling-now-metric, "
        "micc-genova, micc-deng, micc-ganfit, facewarehouse or bu3dfe",
    )
    single = score.add_argument_group("one prediction")
    single.add_argument("--scan", type=Path)
    single.add_argument("--scan-landmarks", type=Path, help="npy, txt, pp, lnd or ljson")
    single.add_argument("--prediction", type=Path)
    single.add_argument("--prediction-landmarks", type=Path)
    single.add_argument("--distances", type=Path, help="also write the distances (npy, mm)")
    folder = score.add_argument_group("a submission")
    folder.add_argument("--dataset", type=Path, help="benchmark folder in its owner's layout")
    folder.add_argument("--submission", type=Path, help="predictions in the benchmark's layout")
    folder.add_argument("--images", type=Path, help="list of the images that count")
    folder.add_argument(
        "--out", type=Path, help="folder for distances.parquet, scores.json and official files"
    )
    folder.add_argument("--method", default="submission", help="its name in official files")
    folder.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    score.add_argument(
        "--unit",
        choices=("m", "cm", "mm"),
        default="m",
        help="unit of the prediction (default m, as the benchmark)",
    )
    score.add_argument("--scan-unit", help="m, dm, cm or mm (default: the benchmark's)")
    score.add_argument(
        "--order", choices=("position", "name"), default="position", help="of the points of a .pp"
    )
    score.add_argument("--pairs", type=Path, help="corresponding vertices: prediction, truth")
    score.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="part of the protocol to do otherwise, e.g. statistic=mean (see docs/evaluation.md)",
    )
    score.add_argument("--json", action="store_true")
    score.set_defaults(command=_score)


def _clean_cache(options: argparse.Namespace) -> int:
    from stages.runtime import params
    from stages.runtime.row_cache import collect, purge

    checkout = _checkout()
    gone = collect(checkout / ".work", max_age_days=options.older_than)
    for folder in gone:
        logger.info("removed %s", folder)
    logger.info("%d row caches removed", len(gone))
    withdrawn = params.load(checkout / "params.yaml").takedown
    rows = purge(withdrawn, checkout / ".work")
    logger.info("%d rows of %d withdrawn subjects removed", rows, len(withdrawn))
    return 0


def _emit(content: Any) -> None:  # noqa: ANN401 - any JSON document
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


def _console(least_width: int = 0) -> Any:  # noqa: ANN401 - rich.console.Console, imported late
    """Return a console on stdout, at least so many characters wide: what is longer is cut."""
    from rich.console import Console

    console = Console(file=sys.stdout, soft_wrap=True)
    console.width = max(console.width, least_width)
    return console


def _checkout() -> Path:
    """Return the root of the checkout that holds the working directory.

    Raises:
        FileNotFoundError: No folder above holds a dvc.yaml.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    raise FileNotFoundError(f"expected to run inside a checkout with dvc.yaml, got {here}")


def _run(options: argparse.Namespace) -> int:
    from pipelines.run import run

    outcomes = run(
        _checkout(),
        options.targets,
        engine=options.engine,
        parallel=options.parallel,
        pull=options.pull,
    )
    if options.json:
        _emit(
            [
                {
                    "stage": o.stage,
                    "state": o.state.value,
                    "seconds": round(o.seconds, 2),
                    "log": o.log,
                }
                for o in outcomes
            ]
        )
    return 1 if any(o.state.value in ("Failed", "Skipped") for o in outcomes) else 0


def _up(options: argparse.Namespace) -> int:
    from pipelines import servers
    from stages.runtime import params

    root = _checkout()
    section = params.load(root / "params.yaml").servers
    running = servers.up(root, section, worker=options.worker)
    clients = root / section.folder / "clients.sh"
    servers.write_environment(running, clients)
    for server in running:
        logger.info("%s runs (pid %d) %s", server.name, server.pid, server.address)
    logger.info("`faceline run` finds them; other programs: . %s", clients)
    return 0


def _down(_options: argparse.Namespace) -> int:
    from pipelines import servers

    ended = servers.down(_checkout())
    logger.info("ended: %s", ", ".join(ended) or "nothing ran")
    return 0


def _register(options: argparse.Namespace) -> int:
    from stages.register_file import register_scan_files

    finder = options.landmark_model
    built = Path("data/landmark_model")
    if finder is None and options.landmarks is None and built.is_dir():
        finder = built
    metrics = register_scan_files(
        options.scan,
        options.landmarks,
        options.embedding,
        options.model,
        options.out,
        preset=options.preset,
        landmark_model=finder,
    )
    return _finish(metrics, options, failed=metrics.get("status") != "ok")


def _render(options: argparse.Namespace) -> int:
    from stages.render import render_sample_files

    return _finish(render_sample_files(options.sample, options.model, options.out), options)


def _reconstruct(options: argparse.Namespace) -> int:
    from stages.reconstruct import reconstruct_photos
    from stages.runtime import params

    root = _checkout()
    rows = reconstruct_photos(
        options.images,
        options.checkpoint,
        options.out,
        section=params.load(root / "params.yaml").reconstruct,
        data=root / "data",
        one_person=options.one_person,
    )
    failed = all(row["status"] != "ok" for row in rows)
    if options.json:
        _emit(rows)
    else:
        for row in rows:
            _console().print(
                f"{row['image']}: {row['status']} {row['reason'] or row['note']}".rstrip()
            )
    return 1 if failed else 0


def _track(options: argparse.Namespace) -> int:
    meta = cli_track.track(options, _checkout())
    return _finish(meta, options, failed=meta["status"] != "ok")


def _ablate(options: argparse.Namespace) -> int:
    checkout = _checkout()
    if options.list:
        rows = cli_ablate.rows(options, checkout)
        if options.json:
            _emit(rows)
        else:
            sys.stdout.writelines(cli_ablate.line(row) for row in rows)
        return 0
    measured = cli_ablate.measure(options, checkout)
    if options.json:
        _emit(measured.rows)
    else:
        sys.stdout.write(measured.tables + "\n")
    return 1 if measured.failed else 0


def _score(options: argparse.Namespace) -> int:
    from stages.evaluate import score_dataset, score_files

    settings = {}
    for text in options.set:
        name, mark, value = text.partition("=")
        if not mark:
            raise ValueError(f"expected OPTION=VALUE after --set, got {text!r}")
        settings[name.replace("-", "_")] = value
    common = {
        "order": options.order,
        "options": settings,
        "scan_unit": options.scan_unit,
        "pairs": options.pairs,
    }
    if options.dataset is not None or options.submission is not None:
        if options.dataset is None or options.submission is None:
            raise ValueError("expected both --dataset and --submission, got one of them")
        result = score_dataset(
            options.protocol,
            options.dataset,
            options.submission,
            options.unit,
            out=options.out,
            images=options.images,
            method=options.method,
            compute=_workers(options.workers),
            **common,
        )
        if options.json:
            _emit(result)
        else:
            _show_scores(result)
        return 0
    if options.scan is None or options.prediction is None:
        raise ValueError(
            "expected --scan, --scan-landmarks, --prediction and --prediction-landmarks, "
            "or --dataset and --submission"
        )
    result = score_files(
        options.protocol,
        options.scan,
        options.scan_landmarks,
        options.prediction,
        options.prediction_landmarks,
        options.unit,
        options.distances,
        **common,
    )
    return _finish(result, options)


def _workers(count: int) -> Any:  # noqa: ANN401 - ComputeParams, imported late
    from stages.runtime.params import ComputeParams

    return ComputeParams(workers=count, ray_threshold_s=30.0, object_store_mb=200)


def _show_scores(result: dict[str, Any]) -> None:
    """Print the scores of a submission: one line per part, what is missing beside each score."""
    from rich.table import Table

    table = Table(title=f"{result['protocol']}, mm", title_justify="left", box=None)
    heads = ("images", "scored", "missing", "failed", "flagged")
    per_image = result["statistic"] != "vertices"
    columns = (
        ("image_error_mm", "per image"),
        ("image_error_std_mm", "± over images"),
        ("image_rmse_mm", "RMSE per image"),
    )
    pooled = (("median_mm", "median"), ("mean_mm", "mean"), ("std_mm", "std"))
    shown = columns + pooled if per_image else pooled + columns[:2]
    table.add_column("part")
    for name in (*heads, *(title for _, title in shown)):
        table.add_column(name, justify="right")
    for part, facts in {"all": result, **result["challenges"]}.items():
        figures = [facts[key] for key, _ in shown]
        table.add_row(
            part,
            *(str(facts[name]) for name in heads),
            *("-" if figure is None else f"{figure:.4f}" for figure in figures),
        )
    console = _console(SCORE_WIDTH)
    console.print(table)
    lines = [f"{e['item_id']}: {e['status']}: {e['reason']}" for e in result["unscored"]]
    lines += [f"{e['item_id']}: {flag}" for e in result["per_image"] for flag in e["flags"]]
    for line in lines[:MOST_LINES]:
        console.print(line, markup=False)
    if len(lines) > MOST_LINES:
        console.print(f"and {len(lines) - MOST_LINES} more: --json, or scores.json in --out")


def _finish(result: dict[str, Any], options: argparse.Namespace, *, failed: bool = False) -> int:
    """Print a result as JSON, or its plain entries one per line; return the exit status."""
    if options.json:
        _emit(result)
    else:
        from rich.table import Table

        table = Table(show_header=False, box=None, pad_edge=False)
        for key, value in result.items():
            if isinstance(value, dict):
                continue  # details per challenge and subject: --json
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            table.add_row(key.replace("_", " "), shown)
        _console().print(table)
    return 1 if failed else 0


def _lineage_show(options: argparse.Namespace) -> int:
    from pipelines.lineage.ancestry import ancestry, as_document, as_mermaid, read_lock
    from pipelines.lineage.tree import as_tree

    root = _checkout()
    target = _inside(options.artefact, root)
    node = ancestry(target, read_lock(root / "dvc.lock"))
    if options.format == "json":
        _emit(as_document(node))
    elif options.format == "mermaid":
        sys.stdout.write(as_mermaid(node) + "\n")
    else:
        _console(TREE_WIDTH).print(as_tree(node, root / target))
    return 0


def _lineage_verify(options: argparse.Namespace) -> int:
    from pipelines.lineage.verify import verify

    root = _checkout()
    problems = verify(_inside(options.artefact, root), root)
    if options.json:
        _emit({"artefact": options.artefact, "problems": problems})
    else:
        for line in problems or ["everything is what dvc.lock says"]:
            _console().print(line)
    return 1 if problems else 0


def _inside(path: Path, root: Path) -> str:
    """Return ``path`` relative to the checkout."""
    full = path if path.is_absolute() else Path.cwd() / path
    try:
        return full.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        raise ValueError(f"expected a path inside {root}, got {path}") from None


def _preset(options: argparse.Namespace) -> int:
    from pipelines.presets import apply

    changed = apply(options.name, _checkout())
    _console().print(f"{len(changed)} values changed: {', '.join(changed) or 'none'}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from pipelines.doctor import examine

    findings = examine(_checkout() / "params.yaml")
    if options.json:
        _emit(
            [
                {"group": f.group, "name": f.name, "good": f.good, "detail": f.detail}
                for f in findings
            ]
        )
    else:
        from rich.table import Table

        table = Table(title="faceline doctor", title_justify="left")
        for column in ("", "what", "kind", "detail"):
            table.add_column(column)
        for finding in findings:
            mark = "[green]ok[/]" if finding.good else "[red]no[/]"
            table.add_row(mark, finding.name, finding.group, finding.detail)
        _console().print(table)
    blocking = [f for f in findings if not f.good and f.group in ("package", "system")]
    return 1 if blocking else 0


if __name__ == "__main__":
    sys.exit(main())
