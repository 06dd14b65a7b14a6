"""The reconstruction methods that can be trained, by name."""

from models.methods.deng2019 import Deng2019
from models.methods.mica import Mica
from models.methods.pix2face import Pix2Face
from models.methods.ringnet import RingNet

METHODS = {"deng2019": Deng2019, "mica": Mica, "pix2face": Pix2Face, "ringnet": RingNet}
