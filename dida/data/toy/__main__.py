"""python -m dida.data.toy ...: what `dida toy` does."""

import sys

from dida.cli import main

if __name__ == "__main__":
    main(["toy", *sys.argv[1:]])
