"""Train, test and sample GPTs: `python main.py --help`."""

from mingpt_lightning.cli.main import main

if __name__ == "__main__":
    main()
