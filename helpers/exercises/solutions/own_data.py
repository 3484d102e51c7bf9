# q1
answer = 11 * 8  # corners(4000, 512, 384) times corners(3000, 512, 384)


# q2
def read_line(line, width, height):
    label, x, y, w, h = (float(word) for word in line.split())
    left, top = (x - w / 2) * width, (y - h / 2) * height
    return int(label), (left, top, left + w * width, top + h * height)


# q3
def divide(boxes, row):
    return boxes[:, 3] <= row, boxes[:, 1] >= row


# q4
import torch
from torchvision.ops import box_iou, nms


def ask_all(detect, turned, image):
    boxes, scores = [], []
    for turn in range(8):
        view, _ = turned(image, torch.zeros(0, 4), turn)
        found = detect(view)
        back = {5: 6, 6: 5}.get(turn, turn)  # all others, done twice, change nothing
        boxes.append(turned(view, found["boxes"], back)[1])
        scores.append(found["scores"])
    boxes, scores = torch.cat(boxes), torch.cat(scores)
    keep = nms(boxes, scores, 0.3)
    near = (box_iou(boxes[keep], boxes) > 0.5) * scores  # (K, N)
    return near @ boxes / near.sum(dim=1, keepdim=True), scores[keep]
