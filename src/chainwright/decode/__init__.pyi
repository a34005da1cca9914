from .run import generate as generate
from .run import in_order as in_order
from .sampling import Sampling as Sampling
