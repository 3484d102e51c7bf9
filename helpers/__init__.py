"""What the lectures use but do not teach.

boxes       area, IoU, GIoU, format conversion, clipping, encoding and decoding of box deltas
nms         greedy non-maximum suppression, over all boxes and per class
shapes      the synthetic data set, the frozen benchmark and its COCO export
photos      sample photographs that ship with an installed package
features    ImageNet-pretrained feature extractors
evaluation  official COCO average precision through pycocotools
training    device, seeds, budgets, batches, learning-rate schedule, progress bar, history
records     run records: one row of measurements per trained model
plotting    images with boxes, curves
figures     the long architecture diagrams
explore     sliders for a figure
notebooks   load, execute, tidy and check the notebooks
hygiene     the rules that every notebook keeps
setup       what a notebook's first cell does once it has found this folder
setup_cell  that first cell itself, kept once
publish     stamp the repository's address into notebooks and README
"""
