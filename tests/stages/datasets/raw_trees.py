"""Tiny raw trees in the owners' layouts, with the dirt that real ones have."""

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import scipy.io

SQUARE = "v 0 0 0\nv 100 0 0\nv 100 100 5\nv 0 100 0\nf 1 2 3 4\n"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def picture(suffix: str = ".jpg", height: int = 40, width: int = 60, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    done, data = cv2.imencode(suffix, cv2.resize(pixels, (width, height)))
    assert done
    return data.tobytes()


def scan_text(count: int = 80, seed: int = 0) -> str:
    points = np.random.default_rng(seed).normal(size=(count, 3)) * 60
    lines = [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in points]
    lines += [f"f {i} {i + 1} {i + 2}" for i in range(1, count - 1)]
    return "\n".join(lines) + "\n"


def mat(**variables: np.ndarray) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    return stream.getvalue()


def npy_object(value: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(value, dtype=object), allow_pickle=True)
    return stream.getvalue()


def points68(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(100, 350, (68, 2))


def sample_mat(seed: int = 0, **changed: np.ndarray | None) -> bytes:
    rng = np.random.default_rng(seed)
    variables: dict[str, np.ndarray | None] = {
        "pt2d": points68(seed).T,
        "roi": np.array([[-4, 10, 200, 210]], np.int16),
        "Shape_Para": rng.normal(size=(199, 1)) * 1e5,
        "Exp_Para": rng.normal(size=(29, 1)),
        "Pose_Para": np.array([[0.1, -0.7, 0.05, 220, 230, -60, 1.3e-3]], np.float32),
        **changed,
    }
    return mat(**{name: value for name, value in variables.items() if value is not None})


def w300lp(root: Path) -> Path:
    """Five good views, one without pose, one truncated picture, one with 67 points."""
    for k in range(2):
        write(root / "AFW" / f"AFW_1_{k}.jpg", picture(seed=k))
        write(root / "AFW" / f"AFW_1_{k}.mat", sample_mat(k))
        solid = points68(k) + np.r_[np.full(17, 30.0), np.zeros(51)][:, None]
        marks = mat(pts_2d=points68(k), pts_3d=solid)
        write(root / "landmarks" / "AFW" / f"AFW_1_{k}_pts.mat", marks)
        write(root / "AFW_Flip" / f"AFW_1_{k}.jpg", picture(seed=k))
        write(root / "AFW_Flip" / f"AFW_1_{k}.mat", sample_mat(k))
    write(root / "LFPW" / "LFPW_image_test_0001_0.jpg", picture())
    write(root / "LFPW" / "LFPW_image_test_0001_0.mat", sample_mat(Pose_Para=None))
    write(root / "LFPW" / "LFPW_image_test_0002_0.jpg", picture()[:300])
    write(root / "LFPW" / "LFPW_image_test_0002_0.mat", sample_mat())
    write(root / "LFPW" / "LFPW_image_test_0003_0.jpg", picture())
    write(root / "LFPW" / "LFPW_image_test_0003_0.mat", sample_mat(pt2d=np.ones((2, 67))))
    solid = np.random.default_rng(5).uniform(100, 300, (3, 68))
    write(root / "AFLW2000" / "image00002.jpg", picture())
    zeros = np.zeros((29, 1), np.uint8)
    aflw = sample_mat(9, pt2d=-np.ones((2, 21)), Exp_Para=zeros, pt3d_68=solid)
    write(root / "AFLW2000" / "image00002.mat", aflw)
    write(root / "AFLW2000" / "Code" / "readme.txt", "code")
    return root


def lyhm(root: Path) -> Path:
    """A good scan, one without landmarks, one with 67, one empty, one NaN, one without faces."""
    cases = {
        "00001": (scan_text(), "".join(f"{i}\n" for i in range(1, 69)), "neutral"),
        "00002": (scan_text(seed=2), None, "Neutral"),
        "00003": (scan_text(seed=3), "".join(f"{i}\n" for i in range(1, 68)), "neutral"),
        "00004": ("", None, "smile"),
        "00005": (scan_text().replace("v ", "v nan 0 0\nv ", 1), None, "smile"),
        "00006": ("v 0 0 0\nv 1 0 0\nv 0 1 0\n", None, ""),
        "00007": (scan_text(seed=7), "".join(f"{i}\n" for i in range(30, 98)), "smile"),
    }
    for k, (person, (scan, marks, expression)) in enumerate(cases.items()):
        folder, stem = root / "headspaceOnline" / "subjects" / person, f"13092516161{k}"
        write(folder / f"{stem}.obj", scan)
        write(folder / f"{stem}.mtl", "newmtl a\n")
        text = f"id:{person}\r\ngender:f\r\nage:\r\nexpression:{expression}\r\n"
        write(folder / "subject.txt", text)
        if marks is not None:
            write(folder / f"ldmks{stem}.txt", marks)
        pictures = root / "headspacePngTka" / "subjects" / person / stem
        for view in ("1A", "1C", "2C"):
            write(pictures / f"{view}.png", picture(".png", seed=k))
    write(root / "headspaceOnline/subjects/00001/130925161610_model_fit.obj", SQUARE)
    return root


def stirling(root: Path) -> Path:
    """Mixed-case names, variants, an expression scan, landmarks for some."""
    lnd = "".join(f"{k} {k}.5 {-k}.25 {2 * k}\n" for k in range(1, 8))
    for name in ("F_3D_N/F1001_N", "M_3D_N/m1002_N", "M_3D_N/m1002b_NH", "F_3D_N/F1001_A"):
        write(root / f"{name}.obj", SQUARE)
        write(root / f"{name}.bmp", picture(".bmp"))
    write(root / "lnd" / "f1001_n.lnd", lnd)
    write(root / "lnd" / "M1002_N.lnd", lnd.rpartition("7 ")[0])
    base = root / "Real_images__Subset_2D_FG2018"
    write(base / "HQ" / "F1001_001.jpg", picture())
    write(base / "HQ" / "M1002_014.JPG", picture(seed=1))
    write(base / "LQ" / "F1001_001.jpg", picture(seed=2))
    return root


def facewarehouse(root: Path) -> Path:
    """One person, neutral and one expression; quads; a landmark file with the wrong count."""
    land = "3\n0.5 0.5\n0.25 0.75\n0 1\n"
    for k in range(2):
        folder = root / "Tester_1" / "TrainingPose"
        write(folder / f"pose_{k}.obj", SQUARE.replace("100", "1.5"))
        write(folder / f"pose_{k}.png", picture(".png", 40, 60, k))
        write(folder / f"pose_{k}.land", land if k == 0 else land.replace("3\n", "4\n", 1))
    write(root / "Tester_1" / "Blendshape" / "shape_0.obj", SQUARE)
    return root


def picked(count: int = 7) -> str:
    head = (
        "<!DOCTYPE PickedPoints>\n<PickedPoints>\n <DocumentData>\n  <a/>\n  <b/>\n  <c/>\n  <d/>\n"
    )
    rows = "".join(
        f' <point active="1" y="{k}.5" x="-{k}e-1" z="{2 * k}" name="{k}"/>\n' for k in range(count)
    )
    return head + " </DocumentData>\n" + rows + "</PickedPoints>\n"


def now(root: Path, evil: bytes = b"") -> Path:
    """A validation subject with scan, a test subject without, a listed file that is missing."""
    release = root / "NoW_Dataset" / "final_release_version"
    val, test = "FaMoS_180424_03335_TA", "FaMoS_180425_03336_TA"
    box = {"left": 10, "right": 50, "top": np.float32(5), "bottom": 35}
    for person, challenge in ((val, "multiview_neutral"), (val, "selfie"), (test, "selfie")):
        stem = f"{person}/{challenge}/IMG_0041"
        write(release / "iphone_pictures" / f"{stem}.jpg", picture())
        write(release / "detected_face" / f"{stem}.npy", npy_object(box))
    if evil:
        write(release / "detected_face" / val / "selfie" / "IMG_0041.npy", evil)
    listed = [
        f"{val}/multiview_neutral/IMG_0041.jpg",
        f"{val}/selfie/IMG_0041.jpg",
        f"{val}/selfie/IMG_0099.jpg",
        "../../../../etc/passwd",
    ]
    write(root / "imagepathsvalidation.txt", "\n".join(listed) + "\n")
    write(root / "imagepathstest.txt", f"{test}/selfie/IMG_0041.jpg\n")
    write(root / "scans" / val / "natural_head_rotation.000001.obj", SQUARE)
    stem = f"{val}/natural_head_rotation.000001_picked_points.pp"
    write(root / "scans_lmks_onlypp" / stem, picked())
    return root


def vggface2(root: Path) -> Path:
    """Two training people and a test person; quoted names, a broken row, 68 points for one."""
    for part, key in (
        ("train", "n000002/0001_01"),
        ("train", "n000002/0002_01"),
        ("train", "n000003/0001_02"),
        ("test", "n000001/0001_01"),
    ):
        write(root / part / f"{key}.jpg", picture(seed=len(key)))
    table = 'NAME_ID,X,Y,W,H\n"n000002/0001_01",10,4,30,32\n"n000002/0002_01",1,x,3,4\n'
    write(root / "bb_landmark" / "loose_bb_train.csv", table)
    five = "NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n"
    write(
        root / "bb_landmark" / "loose_landmark_train.csv",
        five + '"n000002/0001_01",1,2,3,4,5,6,7,8,9,10.5\n',
    )
    stream = io.BytesIO()
    np.save(stream, points68())
    write(root / "train_annotated_torch7" / "n000003" / "0001_02.npy", stream.getvalue())
    return root


def range_text(
    depth: np.ndarray, *, header: str = "{rows} rows\n{columns} columns\npixels (flag X Y Z):\n"
) -> str:
    """An ``.abs`` of a grid of 1 mm with the given depth; NaN marks pixels without measurement."""
    rows, columns = depth.shape
    y, x = np.mgrid[0:rows, 0:columns].astype(float)
    valid = np.isfinite(depth)
    blocks = [np.where(valid, block, -999999.0) for block in (x, -y, depth)]
    lines = [" ".join(str(int(flag)) for flag in valid.ravel())]
    lines += [" ".join(f"{value:.6f}" for value in block.ravel()) for block in blocks]
    return header.format(rows=rows, columns=columns) + "\n".join(lines) + "\n"


def ppm(height: int = 4, width: int = 6, seed: int = 0) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return b"P6\n# a comment\n%d %d\n255\n" % (width, height) + pixels.tobytes(), pixels


def frgc(root: Path) -> Path:
    """Two sessions and the dropped one; a gzipped PPM, a cut one; truncated and empty scans."""
    flat = np.full((3, 4), -1500.0)
    text, base = range_text(flat), root / "FRGC-2.0-dist" / "nd1"
    write(base / "Fall2003range" / "04203d436.abs.gz", gzip.compress(text.encode()))
    write(base / "Fall2003range" / "04203d437.ppm.gz", gzip.compress(ppm()[0]))
    write(base / "Spring2004range" / "04203d500.abs", text)
    write(base / "Spring2004range" / "04203d501.JPG", picture())
    write(base / "Spring2003range" / "04203d100.abs", text)
    write(base / "Spring2004range" / "04300d10.abs", text[: len(text) // 2])
    write(base / "Spring2004range" / "04300d12.abs", range_text(flat * np.nan))
    write(base / "Spring2004range" / "04300d14.abs.gz", gzip.compress(text.encode())[:60])
    write(base / "Spring2004range" / "04300d15.ppm", ppm()[0][:-5])
    write(base / "Spring2004range" / "notes.txt", "not a recording")
    listed = "subject,scan\n04203,04203d436\n04203,04203d100\n"
    write(root / "neutral_frames.csv", listed)
    return root


WRL = """#VRML V2.0 utf8
# a comment with a brace { and a "quote
Group { children [ Shape {
  appearance Appearance { texture ImageTexture { url "odd{[name#.bmp" } }
  geometry IndexedFaceSet {
    coord Coordinate { point [ 0 0 0, 100 0 0, 100 100 5, 0 1.0e2 0 ] }
    texCoordIndex [ 0 1 2 3 -1 ]
    coordIndex [ 0, 1, 2, 3, -1 ]
  } } ] }
"""


def bnd(count: int = 83) -> str:
    return "".join(f"{k}\t\t{k}.5\t\t{-k}\t\t0.25\n" for k in range(count))


def bu3dfe(root: Path) -> Path:
    """RAW scans with F3D beside them, a cropped one alone, MICA's halves and converted scan."""
    person = root / "F0001"
    for stem in ("F0001_NE00WH", "F0001_HA03WH"):
        write(person / f"{stem}_RAW.wrl", WRL)
        write(person / f"{stem}_F3D.wrl", WRL.replace("100 100 5", "100 100 6"))
        write(person / f"{stem}_F3D.bnd", bnd())
        write(person / f"{stem}_F2D.bmp", picture(".bmp"))
    write(person / "F0001_NE00WH_RAW.bmp", picture(".bmp", 40, 80))
    write(person / "F0001_HA03WH_RAW_0.jpg", picture())
    write(person / "F0001_HA03WH_RAW_1.jpg", picture(seed=1))
    write(person / "F0001_NE00WH_RAW.pse", "camera")
    write(root / "M0002" / "M0002_NE00BL_F3D.wrl", gzip.compress(WRL.encode()))
    write(root / "M0002" / "M0002_NE00BL_F3D.bnd", bnd())
    write(root / "M0002" / "M0002_AN01BL_F3D.wrl", WRL)
    write(root / "M0002" / "M0002_AN01BL_F3D.bnd", bnd(82))
    write(root / "M0002" / "M0002_SA01BL_RAW.wrl", WRL[: WRL.index("1.0e2")])
    write(root / "M0002" / "M0002_DI01BL_F2D.bmp", picture(".bmp")[:500])
    write(root / "raw_ne_data" / "F0001_NE00WH_RAW.obj", SQUARE)
    return root


TEXTURED = (
    "mtllib 0001.mtl\nv 0 0 0\nv 100 0 0\nv 100 100 5\nv 0 100 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    "usemtl a\nf 1/1 2/2 3/3\nusemtl b\nf 1/1 3/3 4/4\n"
)


def bp4d(root: Path) -> Path:
    """Two tasks with frames of one number; points; one scan without faces; MICA's picks."""
    video = root / "2D+3D" / "F001"
    for task, frames in (("T1", ("0001", "0002", "0010")), ("T8", ("0001", "0005"))):
        for frame in frames:
            write(video / task / f"{frame}.obj", TEXTURED)
            write(video / task / f"{frame}.mtl", "newmtl a\nnewmtl b\n")
            write(video / task / f"{frame}.jpg", picture())
    marks = root / "3DFeatures" / "FacialLandmarks"
    lines = "".join(f"{k}.5,{-k},0.25\n" for k in range(83))
    write(marks / "F001_T1_0001.bndplus", lines)
    write(marks / "F001_T1_0002.bndplus", lines.replace("0.25", "x", 1))
    write(root / "2D+3D" / "M002" / "T1" / "0001.obj", TEXTURED.partition("usemtl")[0])
    write(root / "2D+3D" / "M002" / "T1" / "0001.jpg", picture()[:200])
    write(root / "scans" / "F003.obj", SQUARE)
    write(root / "images" / "F003" / "0491.jpg", picture())
    write(root / "neutral_frames.csv", "subject,scan\nF001,T1/0002\nF001,0005\n")
    return root


def d3dfacs(root: Path) -> Path:
    """Raw sequences of one actor, registrations of another, a third known to MICA alone."""
    for frame, depth in ((175, 5), (190, 7), (205, 6)):
        scan = SQUARE.replace("100 5", f"100 {depth}").replace("\n", "\r\n")
        write(root / "Adrian" / "1+2" / f"1+2_{frame}.obj", scan)
        write(root / "Adrian" / "1+2" / f"1+2_{frame}.mtl", "newmtl other\n")
    write(root / "Adrian" / "12" / "12_060.obj", SQUARE)
    write(root / "Adrian" / "12" / "12_090.obj", SQUARE[:9])
    aligned = root / "d3dfacs_alignments"
    for place in ("Adrian/1+2/1+2_190", "Nat/12/12_003", "Nat/12/12_010"):
        write(aligned / f"{place}.ply", ply_text())
    registered = root / "processed" / "registrations"
    for actor in ("Adrian", "Joe"):
        write(registered / f"{actor}_neutral.obj", SQUARE.replace("100", "0.1"))
    for actor in ("Adrian", "Joe"):
        write(root / "processed" / "images" / actor / "texture_1C_061.jpg", picture())
    write(root / "processed" / "images" / "Joe" / "texture_2C_061.jpg", picture()[:200])
    return root


def ply_text() -> str:
    head = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\n"
    head += "property float z\nelement face 2\nproperty list uchar int vertex_indices\nend_header\n"
    return head + "0 0 0\n.1 0 0\n.1 .1 .01\n0 .1 0\n3 0 1 2\n3 0 2 3\n"


def florence(root: Path) -> Path:
    """Both scans, frontal1 missing, frontal1 unreadable, none readable; sides, clips, a video."""
    for person, view, digits, content in (
        (1, "frontal1", "110920150452", SQUARE),
        (1, "frontal2", "110920150519", SQUARE.replace("100 5", "100 6")),
        (1, "sidel", "110920150600", SQUARE),
        (2, "frontal2", "110920160000", SQUARE),
        (3, "frontal1", "110921090000", SQUARE[: SQUARE.index("f ")]),
        (3, "frontal2", "110921090030", SQUARE),
        (4, "frontal1", "110922100000", "v nan 0 0\n" + SQUARE),
        (4, "frontal2", "110922100001", ""),
    ):
        folder = root / f"subject_{person:02d}" / "Model" / view
        write(folder / "obj" / f"{digits}.obj", content)
        write(folder / "obj" / f"{digits}.mtl", "newmtl mismatch\n")
        write(folder / "vrml" / f"{digits}.wrl", "#VRML V2.0 utf8\n")
    write(root / "subject_01" / "Video" / "Indoor-Cooperative.mjpg", picture())
    images = root / "images"
    write(images / "subject_01" / "Indoor-Cooperative" / "frame_0010.jpg", picture())
    write(images / "subject_01" / "PTZ-Indoor" / "frame_0010.jpg", picture(seed=1))
    write(images / "subject_01" / "PTZ-Outdoor" / "frame_0010.jpg", picture(seed=2))
    write(images / "subject_01" / "ptz_outdoor" / "frame_0020.jpg", picture(seed=2))
    write(images / "subject_02" / "PTZ-Indoor" / "frame_0010.jpg", picture()[:200])
    (images / "subject_02" / "Indoor-Cooperative").mkdir()
    tips = "subject,x,y,z\r\nsubject_1,100,100,8\r\nsubject_03,0,0,-400\r\n"
    write(root / "nose_tips.csv", tips)
    return root


class Evil:
    """Pickles as a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.path), "w"))


def evil_npy(tripwire: Path) -> bytes:
    head = npy_object(None)[:128]
    return head + pickle.dumps(np.array(Evil(tripwire), dtype=object), protocol=2)


TREES: dict[str, Callable[[Path], Path]] = {
    "300w_lp": w300lp,
    "lyhm": lyhm,
    "stirling": stirling,
    "facewarehouse": facewarehouse,
    "frgc": frgc,
    "bu3dfe": bu3dfe,
    "bp4d": bp4d,
    "now": now,
    "vggface2": vggface2,
    "d3dfacs": d3dfacs,
    "florence": florence,
}
