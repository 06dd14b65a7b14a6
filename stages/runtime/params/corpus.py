"""How much of each owner's data the embedded corpus imitates."""

from pydantic import Field

from stages.runtime.params.section import Section


class MorphableSizes(Section):
    """Stand-ins of the Basel models and of 3DDFA's (199 + 29 components, fixed by its users)."""

    heads: int = Field(ge=100, description="people behind the components, mirrored as well")
    modes_2009: int = Field(ge=1, le=199, description="the real file has 199")
    modes_2017: int = Field(ge=1, le=199, description="the real file has 199")
    expressions_2017: int = Field(ge=1, le=100, description="the real file has 100")


class Faces300WSizes(Section):
    """300W-LP and AFLW2000-3D."""

    faces: int = Field(ge=4, description="source photographs, each of another person")
    views: int = Field(ge=1, le=18, description="views per photograph, k = 0 the original")
    flip_every: int = Field(ge=1, description="every n-th photograph is flipped too")
    aflw: int = Field(ge=0, description="AFLW2000-3D samples")


class ScanSetSizes(Section):
    """A set of scans with photographs."""

    subjects: int = Field(ge=1)
    photos: int = Field(ge=1, description="per subject")
    size_px: int = Field(ge=96, description="longer side of a photograph")
    scan_vertices: int = Field(ge=2000, description="samples per scan before trimming")


class RangeSetSizes(ScanSetSizes):
    """FRGC; its range images have 480 x 640 pixels always."""

    scans: int = Field(ge=1, description="range images per subject, each with a photograph")
    photos: int = Field(ge=1, description="further photographs per subject")


class ExpressionSetSizes(ScanSetSizes):
    """BU-3DFE."""

    scans: int = Field(ge=1, le=7, description="expressions per subject, the first neutral")


class FrameSetSizes(Section):
    """BP4D+: every frame has a mesh and a photograph."""

    subjects: int = Field(ge=1)
    frames: int = Field(ge=1, description="per subject")
    size_px: int = Field(ge=96, description="longer side of a photograph")
    scan_vertices: int = Field(ge=2000, description="samples per scan before trimming")


class FaceWarehouseSizes(Section):
    """FaceWarehouse; its meshes have 11,510 vertices always."""

    subjects: int = Field(ge=1, le=150)
    poses: int = Field(ge=1, le=20, description="photographs per subject")
    meshes: int = Field(ge=1, le=20, description="of the poses, how many come with a mesh")
    blendshapes: int = Field(ge=0, description="subjects with shape.bs")
    size_px: int = Field(ge=96)


class SequenceSizes(Section):
    """D3DFACS; it has ten people."""

    subjects: int = Field(ge=1, le=10)
    sequences: int = Field(ge=1, le=10, description="per subject")
    scans: int = Field(ge=3, description="per sequence, from rest to the peak and back")
    photos: int = Field(ge=1, description="per subject")
    size_px: int = Field(ge=96, description="longer side of a photograph")
    scan_vertices: int = Field(ge=2000, description="samples per scan before trimming")


class IdentitySizes(Section):
    """VGGFace2."""

    identities: int = Field(ge=2)
    photos: int = Field(ge=2, description="per identity")
    size_px: int = Field(ge=64)


class SynthesizeParams(Section):
    """The embedded corpus."""

    broken: int = Field(ge=0, description="deliberately broken inputs of each kind")
    seconds_per_item: float = Field(gt=0, description="rough cost of a photograph or scan, s")
    morphable: MorphableSizes
    faces_300w: Faces300WSizes
    lyhm: ScanSetSizes
    stirling: ScanSetSizes
    facewarehouse: FaceWarehouseSizes
    frgc: RangeSetSizes
    bu3dfe: ExpressionSetSizes
    bp4d: FrameSetSizes
    now: ScanSetSizes
    vggface2: IdentitySizes
    d3dfacs: SequenceSizes
    florence: ScanSetSizes
