"""What does `python -m batchscope` do? What the command does: torchrun starts it so."""

from batchscope.cli import main

if __name__ == "__main__":
    main()
