"""`python -m tfgrpo_dspy` is the command line `tfgrpo`."""

from tfgrpo_dspy.cli import main

if __name__ == "__main__":
    main()
