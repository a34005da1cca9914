from .accuracy import Accuracy as Accuracy
from .accuracy import evaluate as evaluate
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .flips import Flips as Flips
from .flips import flips as flips
from .samples import SampleAccuracy as SampleAccuracy
from .samples import evaluate_samples as evaluate_samples
