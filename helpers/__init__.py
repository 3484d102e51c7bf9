"""What the lectures use but do not teach.

Bad input raises ValueError, which names the argument, what it got and what was expected.

boxes         boxes checked, encoding and decoding of box deltas
anchors       anchors on the grid of a feature map

shapes        the synthetic data set and the frozen benchmark
photos        sample photographs that ship with an installed package
datasets      images and targets, checked before a training; anybody's folder; COCO's rows
proposals     selective search through OpenCV, and what it finds in the benchmark
features      an ImageNet-pretrained feature extractor
augmentation  random changes of training images, boxes moved along

training      device, seeds, budgets, batches, learning-rate schedule, the loop, history
detectors     what every detector is asked: its input, its detections, its AP, its milliseconds
evaluation    official COCO average precision through pycocotools, kinds of errors
records       run records and weights: one row of measurements per trained model
lessons       the lectures as code: find them, read them, load their definitions
setup         what a notebook's first cell does once it has found this folder

plotting      images with boxes, curves
figures       diagrams that take many lines to draw
explore       sliders for a figure
tables        Markdown tables: AP by run, recorded experiments
exercises     checks, hints and solutions, a module per lecture
"""
