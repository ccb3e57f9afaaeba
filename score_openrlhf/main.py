"""`python -m score_openrlhf.main CONFIG [key=value ...]` is `score-openrlhf train CONFIG [key=value ...]`."""

import sys

from score_openrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
