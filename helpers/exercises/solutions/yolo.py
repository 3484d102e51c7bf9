"""Solutions of lecture 05: printed by q1.solution() and so on, executed by the tests."""

# q1
answer = 13 * 13 * (3 * 5 + 20)

# q2
import torch


def best_anchor(sizes, anchors):
    shared = torch.minimum(sizes[:, None], anchors).prod(dim=-1)  # (N, K)
    union = sizes.prod(dim=-1)[:, None] + anchors.prod(dim=-1) - shared
    return (shared / union).argmax(dim=1)


# q3
def split_box(output, num_boxes):
    return output.unflatten(-1, (num_boxes, -1))


# q4
def ask_twice(model, images):
    mirrored = model(images.flip(3)).flip(2)  # columns in their old places
    x = 1 - mirrored[..., :1]  # from the other side of the cell
    return (model(images) + torch.cat([x, mirrored[..., 1:]], dim=-1)) / 2
