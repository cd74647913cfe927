"""``python -m cnnvis_cli`` is the same as ``cnnvis``."""

from cnnvis_cli.cli import main

if __name__ == "__main__":
    main()
