"""python train.py [group=option ...] [key=value ...]: train one run; with -m, every combination of lists of values."""

from cnnlab.main import main

if __name__ == "__main__":
    main()
