"""The raw data sets that can be plugged in, by their key in ``params.yaml``."""

from stages.datasets.base import Adapter
from stages.datasets.bp4d import Bp4d
from stages.datasets.bu3dfe import Bu3dfe
from stages.datasets.d3dfacs import D3dFacs
from stages.datasets.facewarehouse import FaceWarehouse
from stages.datasets.florence import Florence
from stages.datasets.frgc import Frgc
from stages.datasets.lyhm import Lyhm
from stages.datasets.now import Now
from stages.datasets.stirling import Stirling
from stages.datasets.vggface2 import VggFace2
from stages.datasets.w300lp import W300LP

DATASETS: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        Bp4d(),
        Bu3dfe(),
        D3dFacs(),
        FaceWarehouse(),
        Florence(),
        Frgc(),
        Lyhm(),
        Now(),
        Stirling(),
        VggFace2(),
        W300LP(),
    )
}
