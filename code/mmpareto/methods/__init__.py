"""Training methods: what is minimised, how gradients are integrated and modulated, what happens between epochs."""

from mmpareto.methods.base import METHODS as METHODS
from mmpareto.methods.base import Boundary as Boundary
from mmpareto.methods.base import Engine as Engine
from mmpareto.methods.base import Method as Method
from mmpareto.methods.base import MethodError as MethodError
from mmpareto.methods.base import Piece as Piece
from mmpareto.methods.base import Turn as Turn
from mmpareto.methods.base import build_method as build_method
from mmpareto.models import Losses as Losses
from mmpareto.models import cross_entropies as cross_entropies
