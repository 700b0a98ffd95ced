"""`python -m mingpt_lightning`: the same as `python main.py` and the command `mingpt-lightning`."""

from mingpt_lightning.cli.main import main

if __name__ == "__main__":
    main()
