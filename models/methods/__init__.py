"""The reconstruction methods that can be trained, by name."""

from models.methods.mica import Mica
from models.methods.pix2face import Pix2Face
from models.methods.ringnet import RingNet

METHODS = {"mica": Mica, "pix2face": Pix2Face, "ringnet": RingNet}
