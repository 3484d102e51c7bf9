"""What the lectures use but do not teach.

boxes       area, IoU, GIoU, format conversion, clipping, encoding and decoding of box deltas
anchors     anchors on the grid of a feature map
nms         greedy non-maximum suppression, over all boxes and per class
proposals   selective search through OpenCV (kept in a file once done), sliding windows
shapes      the synthetic data set, the frozen benchmark and its COCO export
photos      sample photographs that ship with an installed package
features    ImageNet-pretrained feature extractors
evaluation  official COCO average precision through pycocotools
augmentation  random changes of training images, boxes moved along
training    device, seeds, budgets, batches, learning-rate schedule, progress bar, history
detectors   what every detector is asked: its input, its detections, its milliseconds
records     run records: one row of measurements per trained model
reference   the committed records and weights: the latest of them, and how to renew them
exercises   what the checks of the exercises share
tables      Markdown tables: AP by run, and what the lecture and the paper say and we measured
plotting    images with boxes, curves
figures     the diagrams that the lecture text names and that take many lines to draw
explore     sliders for a figure
notebooks   load, execute, tidy and check the notebooks
hygiene     the rules that every notebook keeps
student     the student edition: the course without the solutions of its exercises
slides      where the notebooks' slides break, and what they leave out
setup       what a notebook's first cell does once it has found this folder
setup_cell  that first cell itself, kept once
readme      the table of results in the README, made from the committed records
publish     stamp the repository's address into notebooks and README
"""
