"""What the lectures say of their own ideas, measured: each switched off, full length, three seeds.

One module per lecture, NN_name.py, holds its variants as data and trains one of them:

    LECTURE, MODEL = "05_yolo", "YOLO"
    VARIANTS = {"main": {}, "always box 0": {"responsible": "first"}}  # first the lecture's own

    def train(seed: int, **variant) -> Outcome: ...

`python -m experiments 05` trains what data/experiments/05_yolo.json lacks, one row at a time.
"""
