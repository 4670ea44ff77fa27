"""`train.py --src X --tgt Y --method M --steps 20` for every pair of domains and every method, on the CPU, with no
other option named.

    python -m tests.pairs                          all of them, one after the other, in an order of their own
    python -m tests.pairs --src loveda acdc        of these sources
    python -m tests.pairs --known runs/pairs.jsonl goes on where this was stopped, and writes docs/contributing.md

Every domain is made in files of its layout, two small pictures a split. What only costs time is made small behind the
options' back: the network, the crop and the batch, and scaled pictures are kept. Everything else is what the command
line gives.
"""
