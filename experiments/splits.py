"""Images and objects that an experiment makes of the benchmark's."""

from types import SimpleNamespace


class Split(SimpleNamespace):
    """Images, targets and classes, with the face of helpers.shapes.ShapesDataset."""

    def __len__(self) -> int:
        return len(self.targets)
