"""Save a committee of four heads as a repair: python save_committee.py FOLDER."""

import sys

from chainwright_pile.committee import Committee
from chainwright_pile.margin import MarginDetector

if __name__ == "__main__":
    repair = Committee([(1, 0), (1, 3), (2, 1), (2, 6)], MarginDetector(0.2))
    print(f"Saved to {repair.save_pretrained(sys.argv[1])}.")
