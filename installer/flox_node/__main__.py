"""`python -m flox_node`: the command line, for whoever has no script of that name."""

from flox_node.cli import main

if __name__ == "__main__":
    main()
