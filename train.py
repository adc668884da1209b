"""python train.py [group=option ...] [key=value ...]: train a run; with -m, one for every combination of values."""

from cnnlab.main import main

if __name__ == "__main__":
    main()
