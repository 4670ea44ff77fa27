"""python -m dida COMMAND ...; see cli.py."""

from dida.cli import main

if __name__ == "__main__":
    main()
