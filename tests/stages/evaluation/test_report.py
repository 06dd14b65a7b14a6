"""The report page: complete, self-contained, deterministic, and indifferent to gaps."""

import base64
import dataclasses
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from stages import evaluate, report
from stages.runtime.artifacts import read_json, write_json, write_table
from stages.runtime.contracts import table_of
from stages.runtime.params import ComputeParams, EvaluateParams, ReportParams

SECTION = ReportParams(
    reconstructions=2, qa_pictures=1, pncc_pictures=1, picture_px=64, sheet_pages=2, sheet_px=100
)
COMPUTE = ComputeParams(workers=1, ray_threshold_s=1e9, object_store_mb=100)
SECTIONS = [
    "scores",
    "likeness",
    "landmark-errors",
    "faces",
    "data",
    "registration",
    "landmarks",
    "renders",
    "training",
]
LANDMARKS = {"photographs": 3, "people": 1, "scored": 2, "failed": {"too dark": 1}}
LIKENESS = {
    "encoder": {"name": "recognizer b", "weights": "random", "synthetic": True},
    "photographs": 5,
    "people": 2,
    "photographs_without_face": 1,
    "renderings": 5,
    "not_rendered": 1,
    "cosine_mean": 0.4321,
    "cosine_std": 0.1,
    "same_pairs": 4,
    "different_pairs": 6,
    "same_mean": 0.61,
    "different_mean": 0.04,
    "emd_same": 0.1789,
    "emd_different": 0.3456,
    "recall": {"top1": 0.4, "top5": 1.0},
    "chance": {"top1": 0.5, "top5": 1.0},
    "distributions": {
        "cosine": [-1.0, 0.0, 1.0],
        "renderings": [0.0, 20.0, 100.0],
        "same": [0.0, 0.0, 100.0],
        "different": [0.0, 50.0, 100.0],
    },
}
VOID = {"meta", "link", "img", "br"}


class Checked(HTMLParser):
    """Collects links, images and identifiers, and checks that elements nest."""

    def __init__(self, document):
        super().__init__()
        self.open, self.ids, self.targets, self.tags = [], [], [], []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.targets += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)


def registrations(status, residual):
    blank = {"subject_id": "LYHM/1", "reason": "", "residual_q95_mm": 1.0, "landmark_rms_mm": 2.0}
    return blank | {
        "item_id": f"{status}{residual}",
        "status": status,
        "residual_median_mm": residual,
        "coverage": 0.9,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory, kit):
    folder = tmp_path_factory.mktemp("data")
    kit.write_packed_now(folder / "packed" / "now")
    write_json({"synthetic": True}, folder / "packed" / "now" / "meta.json")
    scoring = EvaluateParams(
        protocols=("now", "now-metric"),
        curve_max_mm=8.0,
        curve_step_mm=0.5,
        max_unscored_fraction=1.0,
        benchmarks={},
    )

    for method, bump in (("mica", 0.5), ("mean", 4.0)):
        kit.write_predictions(folder / "predictions" / method, bump)
        evaluate.run(
            scoring,
            COMPUTE,
            method=method,
            predictions=folder / "predictions" / method,
            now=folder / "packed" / "now",
            out=folder / "evaluation" / method,
            work=folder / "work",
        )
        write_json(LIKENESS, folder / "evaluation" / method / "likeness.json")
    write_json({"300w_lp": LANDMARKS}, folder / "evaluation" / "mica" / "landmarks.json")
    rows = [registrations("ok", 0.1), registrations("ok", 0.3), registrations("rejected", 9.0)]
    write_table(
        table_of(rows, "registrations"), folder / "registered" / "lyhm" / "registrations.parquet"
    )
    picture = cv2.imencode(".png", np.full((40, 60, 3), 99, np.uint8))[1].tobytes()
    for place in ("registered/lyhm/qa/rejected9.0.png", "rendered/300w_lp/preview/one.png"):
        (folder / place).parent.mkdir(parents=True)
        (folder / place).write_bytes(picture)
    for number, width in enumerate((150, 160, 170), start=1):
        sheet = cv2.imencode(".png", np.full((80, width, 3), 50 * number, np.uint8))[1].tobytes()
        name = f"worst-{number}.png" if number > 1 else "worst.png"
        (folder / "registered/lyhm/qa" / name).write_bytes(sheet)
    measured = {
        "held_out_images": 40,
        "mean_error_percent": 2.5,
        "median_error_percent": 2.25,
        "q95_error_percent": 5.0,
        "mean_error_percent_frontal": 2.0,
    }
    write_json(measured, folder / "landmark_model" / "metrics.json")
    found = {"item_id": "a", "subject_id": "b", "status": "ok", "reason": "", "provider": "dlib"}
    write_table(table_of([found], "landmarks"), folder / "landmarks" / "now" / "landmarks.parquet")
    history = [{"step": step, "train": {"loss": 1 / step}} for step in (1, 2, 3)]
    write_json(history, folder / "checkpoints" / "mica" / "history.json")
    known = {"weights": "synthetic-trained", "step": 3, "validation": {"face_mm": 1.234}}
    write_json(known, folder / "checkpoints" / "mica" / "metrics.json")
    here = {"status": "attached", "subjects": 12, "photographs": 24, "not_unified": 1}
    here |= {"role": "validation", "subjects_found": 13, "scans_rejected": 77}
    rows = [{"dataset": "LYHM", "synthetic": True, "published_subjects": 1211, **here}]
    write_json({"rows": rows, "published_source": "them"}, folder / "unified" / "table.json")
    model = {"title": "FLAME 2020", "synthetic": True, "unit": "m", "licence": "research"}
    write_json(model, folder / "models" / "flame" / "meta.json")
    write_json({"accuracy": 0.75}, folder / "recognizers" / "a" / "metrics.json")
    return folder


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "reports"
    report.run(SECTION, COMPUTE, data=data, out=out)
    document = (out / "report.html").read_text(encoding="utf-8")
    return SimpleNamespace(out=out, document=document, checked=Checked(document))


def test_the_page_needs_nothing_else(written):
    assert written.checked.targets
    for target in written.checked.targets:
        assert target.startswith(("#", "data:"))
    assert not {"script", "iframe", "object"} & set(written.checked.tags)
    assert "@import" not in written.document
    assert "url(" not in written.document
    assert not re.search(r"https?://", written.document)


def test_every_section_is_there_and_linked(written):
    assert [i for i in written.checked.ids if i in SECTIONS] == SECTIONS
    links = [target for target in written.checked.targets if target.startswith("#")]
    assert links == [*[f"#{anchor}" for anchor in SECTIONS], "#registration-lyhm"]
    assert all(link[1:] in written.checked.ids for link in links)
    assert "Nothing to show" not in written.document


def test_the_table_of_sets_gives_role_and_verdicts(written):
    table = written.document.split("Scans with photographs, in one shape")[1].split("</table>")[0]
    for said in ("validation", ">13<", ">77<", "1,211"):
        assert said in table


def test_the_page_says_what_is_synthetic_and_what_is_published(written):
    assert "Synthetic data throughout" in written.document
    assert "Published, real data, not comparable" in written.document
    assert "below the" in written.document  # the sentence on the result


def test_scores_and_failures_are_shown(written, data):
    metrics = read_json(data / "evaluation" / "mica" / "metrics.json")["protocols"]["now-metric"]
    assert f">{metrics['median_mm']:.2f}<" in written.document
    assert "truncated image" in written.document
    assert "LYHM / Headspace" in written.document
    assert "<b>2.50&nbsp;%</b> of the outer-eye distance" in written.document
    assert "face mm&nbsp;1.234" in written.document
    assert "1,211" in written.document
    assert "FLAME 2020" in written.document
    assert "FaMoS_002</text>" in written.document  # by person
    assert "LYHM / Headspace: rejected9.0, rejected" in written.document
    assert ">0.200<" in written.document  # median of the accepted scans' residuals


def test_likeness_is_shown_with_its_encoder_and_chance(written):
    part = written.document.split('<section id="likeness">')[1].split("</section>")[0]
    for said in ("recognizer b", ">0.432<", ">0.179<", ">0.346<", ">0.40<", "By chance", ">0.50<"):
        assert said in part
    assert "pairs, two people" in part
    assert "Genova et al. 2018, table 3" in part
    summary = read_json(written.out / "metrics.json")
    assert summary["mica"]["likeness"]["recall"] == {"top1": 0.4, "top5": 1.0}


def test_likeness_that_could_not_be_measured_says_why(data, tmp_path):
    part = tmp_path / "data"
    shutil.copytree(data / "evaluation", part / "evaluation")
    counts = {"photographs": 0, "people": 0, "photographs_without_face": 6}
    gone = {"encoder": LIKENESS["encoder"], "renderings": 0, "not_rendered": 6, **counts}
    lost = gone | {"reason": "no prediction could be compared"}
    for method in ("mica", "mean"):
        write_json(lost, part / "evaluation" / method / "likeness.json")
    report.run(SECTION, COMPUTE, data=part, out=tmp_path / "out")
    document = (tmp_path / "out" / "report.html").read_text()
    Checked(document)
    assert document.count("no prediction could be compared") == 2


def test_published_tables_stand_apart_with_their_source(written):
    scores = written.document.split('<section id="scores">')[1].split("</section>")[0]
    assert "MICA (Zielonka et al. 2022), table 2" in scores
    assert scores.index("not scored") < scores.index("Published method")
    tables = re.findall(r"<table.*?</table>", written.document, flags=re.DOTALL)
    for one in tables:
        assert not ("Average head" in one and "Published method" in one)


def test_pictures_are_embedded(written):
    images = [target for target in written.checked.targets if target.startswith("data:image/png")]
    photographs = 0  # the tiny benchmark packs no pixels
    examples, methods = SECTION.reconstructions, 2
    assert len(images) == photographs + examples * (1 + 2 * methods) + 2


def test_the_worst_registrations_are_shown_small_and_in_order(written):
    sheets = [target for target in written.checked.targets if target.startswith("data:image/webp")]
    decoded = [
        cv2.imdecode(np.frombuffer(base64.b64decode(s.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        for s in sheets
    ]
    assert [image.shape for image in decoded] == [(53, 100, 3), (50, 100, 3)]
    assert abs(int(decoded[0].mean()) - 50) <= 2
    assert abs(int(decoded[1].mean()) - 100) <= 2
    assert "1 more in <code>lyhm/qa</code>" in written.document
    assert "Median residual of each scan, LYHM / Headspace" in written.document


def test_summary_for_metrics(written):
    summary = read_json(written.out / "metrics.json")
    assert sorted(summary) == ["mean", "mica"]
    assert summary["mica"]["now"]["missing"] == 1
    assert summary["mica"]["synthetic"] is True
    assert summary["mica"]["now-metric"]["median_mm"] < summary["mean"]["now-metric"]["median_mm"]


def test_a_rerun_gives_the_same_bytes(written, data, tmp_path):
    report.run(SECTION, COMPUTE, data=data, out=tmp_path / "again")
    for name in ("report.html", "metrics.json"):
        assert (tmp_path / "again" / name).read_bytes() == (written.out / name).read_bytes()


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path):
    report.run(SECTION, COMPUTE, data=tmp_path / "nothing", out=tmp_path / "out")
    document = (tmp_path / "out" / "report.html").read_text()
    Checked(document)
    assert document.count("Nothing to show") >= len(SECTIONS)
    assert "No trained method has been scored yet" in document
    assert "Synthetic" not in document
    assert read_json(tmp_path / "out" / "metrics.json") == {}


def test_missing_predictions_leave_a_gap_in_the_pictures(data, tmp_path):
    part = tmp_path / "data"
    for name in ("packed", "evaluation"):
        (part / name).parent.mkdir(exist_ok=True)
        (part / name).symlink_to(data / name)
    report.run(SECTION, COMPUTE, data=part, out=tmp_path / "out")
    assert "no prediction" in (tmp_path / "out" / "report.html").read_text()


def test_mixed_data_is_called_partly_synthetic(data):
    evaluations = report.load_evaluations(data)
    packed = report.load_packed(data)
    real = dataclasses.replace(packed[0], name="real", meta={"synthetic": False})
    assert "Partly synthetic" in report.notice(evaluations, [*packed, real])
    assert report.notice([], [real]) == ""
    assert report.notice([], []) == ""
